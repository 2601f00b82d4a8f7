// Drives the plugin library as TensorRT would, without TensorRT:
//   plugin_host LIBRARY
//   LD_PRELOAD=LIBRARY plugin_host          says only whether the registry has the creator then
//
// libnvinfer is the first of that name: the stand-in of fake_nvinfer.cpp, or TensorRT's own, whose registry is then
// put to the test. Without a GPU everything but the computation of `enqueue` runs.

#include "plugin_driver.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace nvinfer1;

#define HAS_LOAD_LIBRARY (NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6)

namespace {

int passed = 0, failed = 0;

void check(bool ok, char const* what) {
    ok ? ++passed : ++failed;
    std::printf("%s %s\n", ok ? "ok  " : "FAIL", what);
}

// ---- The problem: three images, odd level sizes, samples far outside ----

constexpr int32_t kHeads = 8, kDim = 32, kPoints = 4, kBatch = 3;
std::vector<int32_t> const kPyramid = {37, 51, 19, 26, 10, 13, 5, 7, 3, 4};
// testEnqueue also runs with others.
std::vector<int32_t> shapes = kPyramid;
int32_t queries = 101;

int32_t levels() { return static_cast<int32_t>(shapes.size() / 2); }

int32_t tokens() {
    int32_t n = 0;
    for (int32_t l = 0; l < levels(); ++l) n += shapes[2 * l] * shapes[2 * l + 1];
    return n;
}

Dims dims(std::initializer_list<int64_t> sizes) {
    Dims d{};
    for (int64_t const size : sizes) d.d[d.nbDims++] = static_cast<Size>(size);
    return d;
}

#if NV_TENSORRT_MAJOR >= 9
std::vector<DataType> const kTypes = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
bool isBfloat16(DataType type) { return type == DataType::kBF16; }
#else
std::vector<DataType> const kTypes = {DataType::kFLOAT, DataType::kHALF};
bool isBfloat16(DataType) { return false; }
#endif

Tensors describe(DataType type, int32_t reference_dim, bool masked) {
    Tensors in = {
        {dims({kBatch, tokens(), kHeads, kDim}), type, TensorFormat::kLINEAR, 1.f},
        {dims({kBatch, queries, levels(), reference_dim}), DataType::kFLOAT, TensorFormat::kLINEAR, 1.f},
        {dims({kBatch, queries, kHeads, levels(), kPoints, 2}), type, TensorFormat::kLINEAR, 1.f},
        {dims({kBatch, queries, kHeads, levels(), kPoints}), type, TensorFormat::kLINEAR, 1.f},
    };
    if (masked) in.push_back({dims({kBatch, levels(), 2}), DataType::kINT32, TensorFormat::kLINEAR, 1.f});
    return in;
}

PluginTensorDesc describeOutput(DataType type) { return {dims({kBatch, queries, kHeads * kDim}), type, TensorFormat::kLINEAR, 1.f}; }

int64_t volume(Dims const& d) {
    int64_t n = 1;
    for (int32_t i = 0; i < d.nbDims; ++i) n *= d.d[i];
    return n;
}

// ---- Expressions of dimensions ----

// TensorRT's classes forward to implementations, which the host supplies.
struct ExprImpl : apiv::VDimensionExpr {
    Size value;
    explicit ExprImpl(Size v) : value(v) {}
    bool isConstant() const override { return true; }
    Size getConstantValue() const override { return value; }
    bool isSizeTensor() const { return false; }  // from TensorRT 10 on, as declareSizeTensor is
};

struct Expr : IDimensionExpr {
    ExprImpl impl;
    explicit Expr(Size v) : impl(v) { mImpl = &impl; }
};

struct BuilderImpl : apiv::VExprBuilder {
    std::vector<std::unique_ptr<Expr>> made;
    IDimensionExpr const* constant(Size value) override {
        made.push_back(std::make_unique<Expr>(value));
        return made.back().get();
    }
    IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a, IDimensionExpr const& b) override {
        if (op != DimensionOperation::kPROD) return nullptr;
        return constant(a.getConstantValue() * b.getConstantValue());
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) { return nullptr; }
};

struct Builder : IExprBuilder {
    BuilderImpl impl;
    Builder() { mImpl = &impl; }
};

DimsExprs expressions(Builder& builder, Dims const& d) {
    DimsExprs out{};
    out.nbDims = d.nbDims;
    for (int32_t i = 0; i < d.nbDims; ++i) out.d[i] = builder.constant(d.d[i]);
    return out;
}

// ---- Plugins from fields ----

Plugin make(Fields const& fields) {
    PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return Plugin(&collection);
}

PluginField shapesField(std::vector<int32_t> const& sides) {
    return {"spatial_shapes", sides.data(), PluginFieldType::kINT32, static_cast<int32_t>(sides.size())};
}

Plugin make() { return make({shapesField(shapes)}); }

void testCreator() {
    check(creator() != nullptr, "the library registers its creator when it is loaded");
    auto const* const names = creator()->getFieldNames();
    check(names->nbFields == 1 && std::strcmp(names->fields[0].name, "spatial_shapes") == 0 &&
              names->fields[0].type == PluginFieldType::kINT32,
          "the creator names its field and its type");
    check(static_cast<bool>(make()), "a plugin is made from its fields");
    check(!make({}), "missing fields are refused");
    check(!Plugin(static_cast<PluginFieldCollection const*>(nullptr)), "a missing collection is refused");
    std::vector<float> const floats = {1, 2};
    check(!make({{"spatial_shapes", floats.data(), PluginFieldType::kFLOAT32, 2}}), "a field of the wrong type is refused");
    check(!make({{"spatial_shapes", nullptr, PluginFieldType::kINT32, 4}}), "a field without data is refused");
    check(!make({shapesField({37, 51, 19})}), "an odd number of sizes is refused");
    check(!make({shapesField({37, 0})}), "a level without columns is refused");
    check(!make({shapesField({})}), "no levels are refused");
    check(!make({shapesField(std::vector<int32_t>(18, 2))}), "nine levels are refused");
    check(!make({shapesField(shapes), {"im2col_step", shapes.data(), PluginFieldType::kINT32, 1}}), "an unknown field is refused");
}

void testSerialisation() {
    Plugin const plugin = make();
    check(plugin.shapes() == shapes, "the fields to serialise are the fields given");
    Plugin const again = plugin.fromPlan();
    check(again && again.shapes() == shapes, "a plugin is made again from its serialised fields");
    Plugin const copy = plugin.copy();
    check(copy && copy.shapes() == shapes, "a clone has the same fields");
    Plugin const attached = make().forContext();  // outlives what it was made from
    check(attached && attached.shapes() == shapes, "a plugin attaches to a context");
    check(plugin.name() == "CodetrMsDeformAttn" && plugin.version() == "1" && plugin.nameSpace().empty(), "name, version and namespace");
#if NV_TENSORRT_MAJOR < 10
    std::string const bytes = plugin.serialised();
    bool any = false;
    for (size_t size = 0; size < bytes.size(); ++size) any |= static_cast<bool>(Plugin::fromBytes(bytes.substr(0, size)));
    check(!any, "serialised fields that are cut off are refused");
    check(!Plugin::fromBytes(bytes + '\0'), "serialised fields with a rest are refused");
    check(!Plugin(creator()->deserializePlugin("layer", nullptr, 8)), "missing bytes are refused");
    for (int32_t const inputs : {3, 6, -1}) {
        std::string changed = bytes;
        std::memcpy(&changed[changed.size() - sizeof(inputs)], &inputs, sizeof(inputs));
        check(!Plugin::fromBytes(changed), "serialised fields of another number of inputs are refused");
    }
    int32_t const negative = -1;
    std::string changed = bytes;
    std::memcpy(&changed[std::strlen("spatial_shapes") + 1], &negative, sizeof(negative));
    check(!Plugin::fromBytes(changed), "serialised fields of negative length are refused");
    for (bool const masked : {false, true}) {
        plugin.configure(describe(DataType::kHALF, 2, masked));
        check(Plugin::inputsOf(plugin.fromPlan().serialised()) == (masked ? 5 : 4), "a plan keeps the number of inputs");
        check(Plugin::inputsOf(plugin.copy().serialised()) == (masked ? 5 : 4), "a clone keeps the number of inputs");
    }
#endif
}

void testFormats() {
    Plugin const plugin = make();
    for (bool const masked : {false, true}) {
        for (DataType const type : kTypes) {
            Tensors tensors = describe(type, 2, masked);
            auto const inputs = static_cast<int32_t>(tensors.size());
            tensors.push_back(describeOutput(type));
            bool all = true;
            for (int32_t i = 0; i <= inputs; ++i) all &= plugin.supports(i, tensors, inputs);
            check(all, "linear FP32, FP16 and BF16 are supported");
            bool any = false;
            for (int32_t i = 0; i <= inputs; ++i) {
                for (DataType const other :
                     {DataType::kINT8, DataType::kBOOL, type == DataType::kFLOAT ? DataType::kHALF : DataType::kFLOAT}) {
                    if (other == tensors[i].type || (i == 0 && other != DataType::kINT8 && other != DataType::kBOOL)) continue;
                    Tensors changed = tensors;
                    changed[i].type = other;
                    any |= plugin.supports(i, changed, inputs);
                }
                Tensors changed = tensors;
                changed[i].format = TensorFormat::kCHW32;
                any |= plugin.supports(i, changed, inputs);
            }
            check(!any, "other types and formats are not supported");
        }
    }
    Tensors const tensors = describe(DataType::kHALF, 2, false);
    check(!plugin.supports(9, tensors, 4), "a position out of range is not supported");
    check(!plugin.supports(0, tensors, 3), "three inputs are not supported");
}

void testShapes() {
    Plugin const plugin = make();
    Builder builder;
    Tensors const in = describe(DataType::kHALF, 4, true);
    std::vector<DimsExprs> exprs;
    for (auto const& desc : in) exprs.push_back(expressions(builder, desc.dims));
    DimsExprs out{};
    check(plugin.outputShape(exprs, out, builder) && out.nbDims == 3 && out.d[0]->getConstantValue() == kBatch &&
              out.d[1]->getConstantValue() == queries && out.d[2]->getConstantValue() == kHeads * kDim,
          "the output has shape [batch, queries, heads * dim]");
    exprs[0].nbDims = 3;
    check(!plugin.outputShape(exprs, out, builder), "a wrong rank gives an error");
    for (DataType const type : kTypes) {
        DataType output_type{};
        check(plugin.outputType({type, DataType::kFLOAT, type, type}, output_type) && output_type == type,
              "the output has the type of value");
        check(!plugin.outputType({type, DataType::kFLOAT}, output_type), "two inputs give an error");
    }
    check(plugin.outputs() == 1, "there is one output");

    check(plugin.configure(in), "good inputs are accepted");
    Tensors open = in;
    for (auto& desc : open) desc.dims.d[0] = -1;
    check(plugin.configure(open), "a dynamic batch is accepted");
    struct Wrong {
        char const* what;
        int32_t input, axis;
        Size size;
    };
    for (Wrong const& wrong :
         {Wrong{"a token too few gives an error", 0, 1, tokens() - 1}, Wrong{"channels 30 give an error", 0, 3, 30},
          Wrong{"reference points of 3 numbers give an error", 1, 3, 3}, Wrong{"another batch gives an error", 2, 0, 2},
          Wrong{"other heads give an error", 3, 2, 4}, Wrong{"other levels give an error", 4, 1, 4}}) {
        Tensors changed = in;
        changed[wrong.input].dims.d[wrong.axis] = wrong.size;
        check(!plugin.configure(changed) && !plugin.changeShapes(changed), wrong.what);
    }
    Tensors ranked = in;
    ranked[2].dims.nbDims = 5;
    check(!plugin.changeShapes(ranked), "offsets of rank 5 give an error");
    Tensors typed = in;
    typed[1].type = DataType::kHALF;
    check(!plugin.changeShapes(typed), "FP16 reference points give an error");
    check(!plugin.changeShapesToNothing(), "missing descriptions give an error");
    check(plugin.changeShapes(in), "good shapes are accepted at run time");
}

void testEnqueueErrors() {
    Plugin const plugin = make();
    Tensors const in = describe(DataType::kHALF, 2, false);
    auto const out = describeOutput(DataType::kHALF);
    char dummy[64];
    void const* inputs[] = {dummy, dummy, dummy, dummy};
    void* outputs[] = {dummy};
    auto* const stream = reinterpret_cast<cudaStream_t>(dummy);
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "enqueue before the shapes are known gives an error");
    Tensors wrong = in;
    wrong[0].dims.d[1] -= 1;
    plugin.changeShapes(wrong);
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "enqueue after wrong shapes gives an error");
    plugin.changeShapes(in);
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, nullptr), "a null stream gives an error");
    check(!plugin.enqueue(nullptr, &out, inputs, outputs, stream), "missing descriptions give an error");
    check(!plugin.enqueue(in.data(), &out, nullptr, outputs, stream), "missing inputs give an error");
    inputs[2] = nullptr;
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "a null tensor gives an error");
}

// ---- enqueue against float64 ----

struct Problem {
    std::vector<double> value, reference, offsets, logits;
    std::vector<int32_t> valid;
};

double rounded(double x, DataType type) {
    if (type == DataType::kHALF) return static_cast<double>(__half2float(__float2half(static_cast<float>(x))));
    if (isBfloat16(type)) return static_cast<double>(__bfloat162float(__float2bfloat16(static_cast<float>(x))));
    return static_cast<double>(static_cast<float>(x));
}

Problem draw(DataType type, int32_t reference_dim, std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(-0.3, 1.3);
    Problem p;
    auto const fill = [&](std::vector<double>& v, int64_t n, DataType t, auto next) {
        v.resize(n);
        for (double& x : v) x = rounded(next(), t);
    };
    int64_t const samples = int64_t{kBatch} * queries * kHeads * levels() * kPoints;
    fill(p.value, int64_t{kBatch} * tokens() * kHeads * kDim, type, [&] { return normal(random); });
    fill(p.reference, int64_t{kBatch} * queries * levels() * reference_dim, DataType::kFLOAT, [&] { return uniform(random); });
    fill(p.offsets, samples * 2, type, [&] { return 5. * normal(random); });
    fill(p.logits, samples, type, [&] { return 2. * normal(random); });
    for (int32_t b = 0; b < kBatch; ++b) {
        for (int32_t l = 0; l < levels(); ++l) {
            p.valid.push_back(std::max(shapes[2 * l] - b * 3, 0));
            p.valid.push_back(std::max(shapes[2 * l + 1] - b * 2, 0));
        }
    }
    return p;
}

std::vector<double> solve(Problem const& p, int32_t reference_dim, bool masked) {
    std::vector<double> out(int64_t{kBatch} * queries * kHeads * kDim);
    int32_t const samples = levels() * kPoints;
    for (int64_t bqh = 0; bqh < int64_t{kBatch} * queries * kHeads; ++bqh) {
        int64_t const bq = bqh / kHeads, b = bq / queries, h = bqh % kHeads;
        double const* const logits = &p.logits[bqh * samples];
        double top = logits[0], total = 0;
        for (int32_t s = 0; s < samples; ++s) top = std::max(top, logits[s]);
        for (int32_t s = 0; s < samples; ++s) total += std::exp(logits[s] - top);
        int64_t start = 0;
        for (int32_t l = 0; l < levels(); ++l) {
            int32_t const height = shapes[2 * l], width = shapes[2 * l + 1];
            int32_t const rows = masked ? p.valid[(b * levels() + l) * 2] : height,
                          columns = masked ? p.valid[(b * levels() + l) * 2 + 1] : width;
            double const* const r = &p.reference[(bq * levels() + l) * reference_dim];
            for (int32_t i = 0; i < kPoints; ++i) {
                int32_t const s = l * kPoints + i;
                double const ox = p.offsets[(bqh * samples + s) * 2], oy = p.offsets[(bqh * samples + s) * 2 + 1];
                double const x = (reference_dim == 2 ? r[0] * width + ox : (r[0] + ox / kPoints * r[2] * 0.5) * width) - 0.5;
                double const y = (reference_dim == 2 ? r[1] * height + oy : (r[1] + oy / kPoints * r[3] * 0.5) * height) - 0.5;
                for (int32_t corner = 0; corner < 4; ++corner) {
                    double const cx = std::floor(x) + corner % 2, cy = std::floor(y) + corner / 2;
                    if (cx < 0 || cy < 0 || cx >= columns || cy >= rows) continue;
                    double const w = (1 - std::abs(x - cx)) * (1 - std::abs(y - cy)) * std::exp(logits[s] - top) / total;
                    int64_t const token = b * tokens() + start + static_cast<int64_t>(cy) * width + static_cast<int64_t>(cx);
                    for (int32_t c = 0; c < kDim; ++c) out[bqh * kDim + c] += w * p.value[(token * kHeads + h) * kDim + c];
                }
            }
            start += int64_t{height} * width;
        }
    }
    return out;
}

std::vector<char> pack(std::vector<double> const& v, DataType type) {
    std::vector<char> out(v.size() * (type == DataType::kFLOAT ? 4 : 2));
    for (size_t i = 0; i < v.size(); ++i) {
        auto const f = static_cast<float>(v[i]);
        if (type == DataType::kHALF)
            reinterpret_cast<__half*>(out.data())[i] = __float2half(f);
        else if (isBfloat16(type))
            reinterpret_cast<__nv_bfloat16*>(out.data())[i] = __float2bfloat16(f);
        else
            reinterpret_cast<float*>(out.data())[i] = f;
    }
    return out;
}

double unpack(std::vector<char> const& v, size_t i, DataType type) {
    if (type == DataType::kHALF) return static_cast<double>(__half2float(reinterpret_cast<__half const*>(v.data())[i]));
    if (isBfloat16(type)) return static_cast<double>(__bfloat162float(reinterpret_cast<__nv_bfloat16 const*>(v.data())[i]));
    return static_cast<double>(reinterpret_cast<float const*>(v.data())[i]);
}

bool cuda(cudaError_t error) {
    if (error != cudaSuccess) std::printf("    CUDA: %s\n", cudaGetErrorString(error));
    return error == cudaSuccess;
}

// The relative error of one enqueue, or infinity if a call failed.
double runEnqueue(DataType type, int32_t reference_dim, bool masked, std::mt19937_64& random) {
    double const failure = std::numeric_limits<double>::infinity();
    Problem const p = draw(type, reference_dim, random);
    Tensors const in = describe(type, reference_dim, masked);
    auto const out = describeOutput(type);
    Plugin const plugin = make().fromPlan().forContext();
    if (!plugin.changeShapes(in)) return failure;

    std::vector<char> valid(p.valid.size() * sizeof(int32_t));
    std::memcpy(valid.data(), p.valid.data(), valid.size());
    std::vector<std::vector<char>> const host = {pack(p.value, type), pack(p.reference, DataType::kFLOAT), pack(p.offsets, type),
                                                 pack(p.logits, type), valid};
    std::vector<char> result(volume(out.dims) * (type == DataType::kFLOAT ? 4 : 2), '\xff');  // NaN in all three types
    std::vector<void*> device(6, nullptr);
    cudaStream_t stream = nullptr;
    bool ok = cuda(cudaStreamCreate(&stream));
    for (size_t i = 0; i < host.size(); ++i) {
        ok = ok && cuda(cudaMalloc(&device[i], host[i].size())) &&
             cuda(cudaMemcpy(device[i], host[i].data(), host[i].size(), cudaMemcpyHostToDevice));
    }
    ok = ok && cuda(cudaMalloc(&device[5], result.size())) &&
         cuda(cudaMemcpy(device[5], result.data(), result.size(), cudaMemcpyHostToDevice));
    ok = ok && plugin.enqueue(in.data(), &out, device.data(), &device[5], stream);
    ok = ok && cuda(cudaStreamSynchronize(stream)) && cuda(cudaMemcpy(result.data(), device[5], result.size(), cudaMemcpyDeviceToHost));
    for (void* const pointer : device) cudaFree(pointer);
    if (stream) cudaStreamDestroy(stream);
    if (!ok) return failure;

    std::vector<double> const expected = solve(p, reference_dim, masked);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        double const d = unpack(result, i, type) - expected[i];
        difference += d * d;
        norm += expected[i] * expected[i];
    }
    return std::sqrt(difference / norm);
}

void testEnqueue() {
    std::mt19937_64 random{std::random_device{}()};
    struct Limit {
        DataType type;
        char const* name;
        double error;
    };
    std::vector<Limit> limits = {{DataType::kFLOAT, "FP32", 2e-6}, {DataType::kHALF, "FP16", 6e-4}};
#if NV_TENSORRT_MAJOR >= 9
    limits.push_back({DataType::kBF16, "BF16", 5e-3});
#endif
    std::vector<int32_t> const four_levels(kPyramid.begin(), kPyramid.begin() + 8), three_levels(kPyramid.begin(), kPyramid.begin() + 6);
    std::vector<int32_t> const two_levels(kPyramid.begin(), kPyramid.begin() + 4);  // the general kernel
    std::vector<int32_t> const many_tiles = {2, 4000, 2, 2000, 2, 1000};            // more for each block than it lists at a time
    constexpr int32_t kEveryToken = 0;
    struct Case {
        std::vector<int32_t> shapes;
        int32_t queries, reference_dim;
        bool masked;
    };
    std::vector<Case> cases;
    for (int32_t const count : {101, kEveryToken}) {
        for (int32_t const reference_dim : {2, 4}) {
            for (bool const masked : {false, true}) cases.push_back({kPyramid, count, reference_dim, masked});
        }
    }
    for (auto const& pyramid : {four_levels, three_levels, two_levels}) {
        cases.push_back({pyramid, 101, 4, true});
        cases.push_back({pyramid, kEveryToken, 2, false});
    }
    cases.push_back({kPyramid, 1, 4, false});
    cases.push_back({many_tiles, kEveryToken, 2, false});
    for (Limit const& limit : limits) {
        for (Case const& c : cases) {
            shapes = c.shapes;
            queries = c.queries == kEveryToken ? tokens() : c.queries;
            double const error = runEnqueue(limit.type, c.reference_dim, c.masked, random);
            std::printf("    %s, %d levels, %d queries, %d-d references, %s: relative error %.2e\n", limit.name, levels(), queries,
                        c.reference_dim, c.masked ? "masked" : "all valid", error);
            check(error <= limit.error, "enqueue agrees with float64");
        }
    }
    shapes = kPyramid;
    queries = 101;
}

// The ways to load a library, in turn, and both at once.
void testLoading(char const* path) {
    void* const first = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void* const second = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(first != nullptr && first == second && make(), "a library opened twice makes plugins");
    dlclose(second);
    check(static_cast<bool>(make()), "a library closed once of two times makes plugins");
    dlclose(first);
    check(creator() == nullptr, "unloading takes the creator back");
    void* const again = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(again != nullptr && make(), "a reloaded library makes plugins");

#if HAS_LOAD_LIBRARY
    auto* const registry = getPluginRegistry();
    auto handle = registry->loadLibrary(path);
    check(handle != nullptr && make(), "loadLibrary takes a library that is loaded already");
    if (handle) registry->deregisterLibrary(handle);
    check(creator() == nullptr, "deregisterLibrary takes its creator out");
    dlclose(again);
    for (char const* const what : {"loadLibrary registers the creator", "loadLibrary registers it a second time"}) {
        handle = registry->loadLibrary(path);
        check(handle != nullptr && make().fromPlan(), what);
        check(!make({shapesField({37, 0})}), "its creator refuses wrong fields");
        check(registry->loadLibrary(path) == nullptr && make(), "loadLibrary refuses the same library twice, and keeps it");
        if (handle) registry->deregisterLibrary(handle);
        check(creator() == nullptr && dlopen(path, RTLD_NOW | RTLD_NOLOAD) == nullptr, "deregisterLibrary unloads it");
    }
#else
    dlclose(again);
#endif
}

}  // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // a crash loses no line
    Dl_info nvinfer{};
    dladdr(reinterpret_cast<void*>(&getPluginRegistry), &nvinfer);
    std::printf("registry of %s\n", nvinfer.dli_fname);
    if (argc == 1) {
        check(creator() != nullptr && make(), "a preloaded library has registered its creator");
#if HAS_LOAD_LIBRARY
        char const* const preloaded = std::getenv("LD_PRELOAD");
        check(preloaded && getPluginRegistry()->loadLibrary(preloaded) && make(), "loadLibrary takes a preloaded library");
#endif
        return failed;
    }
    if (argc != 2) {
        std::printf("usage: plugin_host LIBRARY\n");
        return 2;
    }
    void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::printf("FAIL %s\n", dlerror());
        return 1;
    }
    testCreator();
    testSerialisation();
    testFormats();
    testShapes();
    testEnqueueErrors();
    int devices = 0;
    bool const gpu = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
    if (gpu) testEnqueue();

    dlclose(library);
    check(creator() == nullptr, "closing the library takes the creator back");
    testLoading(argv[1]);

    std::printf("%s\n", gpu ? "enqueue was run" : "enqueue was skipped: no GPU");
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
