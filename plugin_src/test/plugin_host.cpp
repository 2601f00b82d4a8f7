// Drives the plugin library as TensorRT would, without TensorRT:
//   plugin_host LIBRARY
//   LD_PRELOAD=LIBRARY plugin_host          says only whether the registry has the creator then
//
// libnvinfer is the first of that name: the stand-in of fake_nvinfer.cpp, or TensorRT's own, whose registry is then
// put to the test. Without a GPU everything but the computation of `enqueue` runs.

#include <NvInferRuntime.h>

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

extern "C" IPluginRegistry* getPluginRegistry() noexcept;

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
    for (int64_t const size : sizes) d.d[d.nbDims++] = size;
    return d;
}

std::vector<PluginTensorDesc> describe(DataType type, int32_t reference_dim, bool masked) {
    std::vector<PluginTensorDesc> in = {
        {dims({kBatch, tokens(), kHeads, kDim}), type, TensorFormat::kLINEAR, 1.f},
        {dims({kBatch, queries, levels(), reference_dim}), DataType::kFLOAT, TensorFormat::kLINEAR, 1.f},
        {dims({kBatch, queries, kHeads, levels(), kPoints, 2}), type, TensorFormat::kLINEAR, 1.f},
        {dims({kBatch, queries, kHeads, levels(), kPoints}), type, TensorFormat::kLINEAR, 1.f},
    };
    if (masked) in.push_back({dims({kBatch, levels(), 2}), DataType::kINT32, TensorFormat::kLINEAR, 1.f});
    return in;
}

PluginTensorDesc describeOutput(DataType type) { return {dims({kBatch, queries, kHeads * kDim}), type, TensorFormat::kLINEAR, 1.f}; }

std::vector<DynamicPluginTensorDesc> dynamic(std::vector<PluginTensorDesc> const& in) {
    std::vector<DynamicPluginTensorDesc> out;
    for (auto const& desc : in) out.push_back({desc, desc.dims, desc.dims, desc.dims});
    return out;
}

int64_t volume(Dims const& d) {
    int64_t n = 1;
    for (int32_t i = 0; i < d.nbDims; ++i) n *= d.d[i];
    return n;
}

// ---- Expressions of dimensions ----

// TensorRT's classes forward to implementations, which the host supplies.
struct ExprImpl : apiv::VDimensionExpr {
    int64_t value;
    explicit ExprImpl(int64_t v) : value(v) {}
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
};

struct Expr : IDimensionExpr {
    ExprImpl impl;
    explicit Expr(int64_t v) : impl(v) { mImpl = &impl; }
};

struct BuilderImpl : apiv::VExprBuilder {
    std::vector<std::unique_ptr<Expr>> made;
    IDimensionExpr const* constant(int64_t value) override {
        made.push_back(std::make_unique<Expr>(value));
        return made.back().get();
    }
    IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& a, IDimensionExpr const& b) override {
        if (op != DimensionOperation::kPROD) return nullptr;
        return constant(a.getConstantValue() * b.getConstantValue());
    }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override { return nullptr; }
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

// ---- The plugin as TensorRT sees it ----

struct Plugin {
    std::unique_ptr<IPluginV3> plugin;
    explicit Plugin(IPluginV3* p) : plugin(p) {}
    explicit operator bool() const { return plugin != nullptr; }
    template <typename Capability>
    Capability* as(PluginCapabilityType type) const {
        return static_cast<Capability*>(plugin->getCapabilityInterface(type));
    }
    IPluginV3OneCore* core() const { return as<IPluginV3OneCore>(PluginCapabilityType::kCORE); }
    IPluginV3OneBuild* build() const { return as<IPluginV3OneBuild>(PluginCapabilityType::kBUILD); }
    IPluginV3OneRuntime* runtime() const { return as<IPluginV3OneRuntime>(PluginCapabilityType::kRUNTIME); }
};

IPluginCreatorV3One* creator() {
    return static_cast<IPluginCreatorV3One*>(getPluginRegistry()->getCreator("CodetrMsDeformAttn", "1", ""));
}

Plugin make(std::vector<PluginField> const& fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return Plugin(creator()->createPlugin("layer", &collection, phase));
}

PluginField shapesField(std::vector<int32_t> const& sides) {
    return {"spatial_shapes", sides.data(), PluginFieldType::kINT32, static_cast<int32_t>(sides.size())};
}

Plugin make() { return make({shapesField(shapes)}); }

void testCreator() {
    check(creator() != nullptr, "the library registers its creator when it is loaded");
    auto const* const names = creator()->getFieldNames();
    check(names->nbFields == 1 && std::strcmp(names->fields[0].name, "spatial_shapes") == 0, "the creator names its field");
    check(static_cast<bool>(make()), "a plugin is made from its fields");
    check(!make({}), "missing fields are refused");
    check(Plugin(creator()->createPlugin("layer", nullptr, TensorRTPhase::kBUILD)).plugin == nullptr, "a missing collection is refused");
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
    auto const* const fields = plugin.runtime()->getFieldsToSerialize();
    check(fields->nbFields == 1 && fields->fields[0].length == static_cast<int32_t>(shapes.size()) &&
              std::memcmp(fields->fields[0].data, shapes.data(), shapes.size() * sizeof(int32_t)) == 0,
          "the fields to serialise are the fields given");
    Plugin const again(creator()->createPlugin("layer", fields, TensorRTPhase::kRUNTIME));
    check(again && again.runtime()->getFieldsToSerialize()->fields[0].length == static_cast<int32_t>(shapes.size()),
          "a plugin is made again from its serialised fields");
    Plugin const copy(plugin.plugin->clone());
    check(copy && copy.runtime()->getFieldsToSerialize()->fields[0].data != fields->fields[0].data, "a clone owns its fields");
    Plugin const attached(plugin.runtime()->attachToContext(nullptr));
    check(static_cast<bool>(attached), "a plugin attaches to a context");
    check(std::string(plugin.core()->getPluginName()) == "CodetrMsDeformAttn" && std::string(plugin.core()->getPluginVersion()) == "1" &&
              std::string(plugin.core()->getPluginNamespace()).empty(),
          "name, version and namespace");
}

void testFormats() {
    Plugin const plugin = make();
    for (bool const masked : {false, true}) {
        for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
            auto tensors = dynamic(describe(type, 2, masked));
            auto const inputs = static_cast<int32_t>(tensors.size());
            tensors.push_back(dynamic({describeOutput(type)})[0]);
            bool all = true;
            for (int32_t i = 0; i <= inputs; ++i) all &= plugin.build()->supportsFormatCombination(i, tensors.data(), inputs, 1);
            check(all, "linear FP32, FP16 and BF16 are supported");
            bool any = false;
            for (int32_t i = 0; i <= inputs; ++i) {
                auto changed = tensors;
                changed[i].desc.type = i == 0 ? DataType::kINT8 : type == DataType::kFLOAT ? DataType::kHALF : DataType::kINT64;
                any |= plugin.build()->supportsFormatCombination(i, changed.data(), inputs, 1);
                changed = tensors;
                changed[i].desc.format = TensorFormat::kCHW32;
                any |= plugin.build()->supportsFormatCombination(i, changed.data(), inputs, 1);
            }
            check(!any, "other types and formats are not supported");
        }
    }
    auto const tensors = dynamic(describe(DataType::kHALF, 2, false));
    check(!plugin.build()->supportsFormatCombination(9, tensors.data(), 4, 1), "a position out of range is not supported");
    check(!plugin.build()->supportsFormatCombination(0, tensors.data(), 3, 1), "three inputs are not supported");
}

void testShapes() {
    Plugin const plugin = make();
    Builder builder;
    auto const in = describe(DataType::kHALF, 4, true);
    std::vector<DimsExprs> exprs;
    for (auto const& desc : in) exprs.push_back(expressions(builder, desc.dims));
    DimsExprs out{};
    check(plugin.build()->getOutputShapes(exprs.data(), 5, nullptr, 0, &out, 1, builder) == 0 && out.nbDims == 3 &&
              out.d[0]->getConstantValue() == kBatch && out.d[1]->getConstantValue() == queries &&
              out.d[2]->getConstantValue() == kHeads * kDim,
          "the output has shape [batch, queries, heads * dim]");
    exprs[0].nbDims = 3;
    check(plugin.build()->getOutputShapes(exprs.data(), 5, nullptr, 0, &out, 1, builder) != 0, "a wrong rank gives an error");
    std::vector<DataType> const types = {DataType::kBF16, DataType::kFLOAT, DataType::kBF16, DataType::kBF16};
    DataType output_type{};
    check(plugin.build()->getOutputDataTypes(&output_type, 1, types.data(), 4) == 0 && output_type == DataType::kBF16,
          "the output has the type of value");
    check(plugin.build()->getOutputDataTypes(&output_type, 1, types.data(), 2) != 0, "two inputs give an error");
    check(plugin.build()->getNbOutputs() == 1, "there is one output");

    auto const good = dynamic(in);
    check(plugin.build()->configurePlugin(good.data(), 5, nullptr, 1) == 0, "good inputs are accepted");
    auto open = good;
    for (auto& desc : open) desc.desc.dims.d[0] = -1;
    check(plugin.build()->configurePlugin(open.data(), 5, nullptr, 1) == 0, "a dynamic batch is accepted");
    struct Wrong {
        char const* what;
        int32_t input, axis;
        int64_t size;
    };
    for (Wrong const& wrong : {Wrong{"a token too few gives an error", 0, 1, tokens() - 1}, Wrong{"channels 30 give an error", 0, 3, 30},
                               Wrong{"reference points of 3 numbers give an error", 1, 3, 3}, Wrong{"another batch gives an error", 2, 0, 2},
                               Wrong{"other heads give an error", 3, 2, 4}, Wrong{"other levels give an error", 4, 1, 4}}) {
        auto changed = in;
        changed[wrong.input].dims.d[wrong.axis] = wrong.size;
        check(plugin.build()->configurePlugin(dynamic(changed).data(), 5, nullptr, 1) != 0 &&
                  plugin.runtime()->onShapeChange(changed.data(), 5, nullptr, 1) != 0,
              wrong.what);
    }
    auto ranked = in;
    ranked[2].dims.nbDims = 5;
    check(plugin.runtime()->onShapeChange(ranked.data(), 5, nullptr, 1) != 0, "offsets of rank 5 give an error");
    auto typed = in;
    typed[1].type = DataType::kHALF;
    check(plugin.runtime()->onShapeChange(typed.data(), 5, nullptr, 1) != 0, "FP16 reference points give an error");
    check(plugin.runtime()->onShapeChange(nullptr, 5, nullptr, 1) != 0, "missing descriptions give an error");
    check(plugin.runtime()->onShapeChange(in.data(), 5, nullptr, 1) == 0, "good shapes are accepted at run time");
}

void testEnqueueErrors() {
    Plugin const plugin = make();
    auto const in = describe(DataType::kHALF, 2, false);
    auto const out = describeOutput(DataType::kHALF);
    char dummy[64];
    void const* inputs[] = {dummy, dummy, dummy, dummy};
    void* outputs[] = {dummy};
    auto* const stream = reinterpret_cast<cudaStream_t>(dummy);
    check(plugin.runtime()->enqueue(in.data(), &out, inputs, outputs, nullptr, stream) != 0, "enqueue before onShapeChange gives an error");
    plugin.runtime()->onShapeChange(in.data(), 4, &out, 1);
    check(plugin.runtime()->enqueue(in.data(), &out, inputs, outputs, nullptr, nullptr) != 0, "a null stream gives an error");
    check(plugin.runtime()->enqueue(nullptr, &out, inputs, outputs, nullptr, stream) != 0, "missing descriptions give an error");
    check(plugin.runtime()->enqueue(in.data(), &out, nullptr, outputs, nullptr, stream) != 0, "missing inputs give an error");
    inputs[2] = nullptr;
    check(plugin.runtime()->enqueue(in.data(), &out, inputs, outputs, nullptr, stream) != 0, "a null tensor gives an error");
}

// ---- enqueue against float64 ----

struct Problem {
    std::vector<double> value, reference, offsets, logits;
    std::vector<int32_t> valid;
};

double rounded(double x, DataType type) {
    if (type == DataType::kHALF) return static_cast<double>(__half2float(__float2half(static_cast<float>(x))));
    if (type == DataType::kBF16) return static_cast<double>(__bfloat162float(__float2bfloat16(static_cast<float>(x))));
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
            int32_t const rows = masked ? p.valid[(b * levels() + l) * 2] : height, columns = masked ? p.valid[(b * levels() + l) * 2 + 1] : width;
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
        if (type == DataType::kHALF) reinterpret_cast<__half*>(out.data())[i] = __float2half(f);
        else if (type == DataType::kBF16) reinterpret_cast<__nv_bfloat16*>(out.data())[i] = __float2bfloat16(f);
        else reinterpret_cast<float*>(out.data())[i] = f;
    }
    return out;
}

double unpack(std::vector<char> const& v, size_t i, DataType type) {
    if (type == DataType::kHALF) return static_cast<double>(__half2float(reinterpret_cast<__half const*>(v.data())[i]));
    if (type == DataType::kBF16) return static_cast<double>(__bfloat162float(reinterpret_cast<__nv_bfloat16 const*>(v.data())[i]));
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
    auto const in = describe(type, reference_dim, masked);
    auto const out = describeOutput(type);
    Plugin const plugin(make().runtime()->attachToContext(nullptr));
    if (plugin.runtime()->onShapeChange(in.data(), static_cast<int32_t>(in.size()), &out, 1) != 0) return failure;

    std::vector<char> valid(p.valid.size() * sizeof(int32_t));
    std::memcpy(valid.data(), p.valid.data(), valid.size());
    std::vector<std::vector<char>> const host = {pack(p.value, type), pack(p.reference, DataType::kFLOAT), pack(p.offsets, type),
                                                 pack(p.logits, type), valid};
    std::vector<char> result(volume(out.dims) * (type == DataType::kFLOAT ? 4 : 2), '\xff');  // NaN in all three types
    std::vector<void*> device(6, nullptr);
    cudaStream_t stream = nullptr;
    bool ok = cuda(cudaStreamCreate(&stream));
    for (size_t i = 0; i < host.size(); ++i) {
        ok = ok && cuda(cudaMalloc(&device[i], host[i].size())) && cuda(cudaMemcpy(device[i], host[i].data(), host[i].size(), cudaMemcpyHostToDevice));
    }
    ok = ok && cuda(cudaMalloc(&device[5], result.size())) && cuda(cudaMemcpy(device[5], result.data(), result.size(), cudaMemcpyHostToDevice));
    ok = ok && plugin.runtime()->enqueue(in.data(), &out, device.data(), &device[5], nullptr, stream) == 0;
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
    Limit const limits[] = {{DataType::kFLOAT, "FP32", 2e-6}, {DataType::kHALF, "FP16", 6e-4}, {DataType::kBF16, "BF16", 5e-3}};
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
    auto* const registry = getPluginRegistry();
    void* const first = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void* const second = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(first != nullptr && first == second && make(), "a library opened twice makes plugins");
    dlclose(second);
    check(static_cast<bool>(make()), "a library closed once of two times makes plugins");
    dlclose(first);
    check(creator() == nullptr, "unloading takes the creator back");
    void* const again = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    check(again != nullptr && make(), "a reloaded library makes plugins");

    auto handle = registry->loadLibrary(path);
    check(handle != nullptr && make(), "loadLibrary takes a library that is loaded already");
    if (handle) registry->deregisterLibrary(handle);
    check(creator() == nullptr, "deregisterLibrary takes its creator out");
    dlclose(again);

    for (char const* const what : {"loadLibrary registers the creator", "loadLibrary registers it a second time"}) {
        handle = registry->loadLibrary(path);
        check(handle != nullptr && make() && make({shapesField(shapes)}, TensorRTPhase::kRUNTIME), what);
        check(!make({shapesField({37, 0})}), "its creator refuses wrong fields");
        check(registry->loadLibrary(path) == nullptr && make(), "loadLibrary refuses the same library twice, and keeps it");
        if (handle) registry->deregisterLibrary(handle);
        check(creator() == nullptr && dlopen(path, RTLD_NOW | RTLD_NOLOAD) == nullptr, "deregisterLibrary unloads it");
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 1) {
        check(creator() != nullptr && make(), "a preloaded library has registered its creator");
        char const* const preloaded = std::getenv("LD_PRELOAD");
        check(preloaded && getPluginRegistry()->loadLibrary(preloaded) && make(), "loadLibrary takes a preloaded library");
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
