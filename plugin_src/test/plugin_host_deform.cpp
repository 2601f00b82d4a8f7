// The tests of the plugin of deformable attention.

#include "plugin_host.h"

using namespace nvinfer1;

namespace {

constexpr char const* kName = "CodetrMsDeformAttn";

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

std::vector<DataType> types() {
    std::vector<DataType> all = {DataType::kFLOAT};
    all.insert(all.end(), kHalfTypes.begin(), kHalfTypes.end());
    return all;
}

Tensors describe(DataType type, int32_t reference_dim, bool masked) {
    Tensors in = {
        linear({kBatch, tokens(), kHeads, kDim}, type),
        linear({kBatch, queries, levels(), reference_dim}, DataType::kFLOAT),
        linear({kBatch, queries, kHeads, levels(), kPoints, 2}, type),
        linear({kBatch, queries, kHeads, levels(), kPoints}, type),
    };
    if (masked) in.push_back(linear({kBatch, levels(), 2}, DataType::kINT32));
    return in;
}

PluginTensorDesc describeOutput(DataType type) { return linear({kBatch, queries, kHeads * kDim}, type); }

PluginField shapesField(std::vector<int32_t> const& sides) { return field("spatial_shapes", sides); }

Plugin make(Fields const& fields) { return makePlugin(kName, fields); }
Plugin make() { return make({shapesField(shapes)}); }

void testCreator() {
    check(creator(kName) != nullptr, "the library registers its creator when it is loaded");
    auto const* const names = creator(kName)->getFieldNames();
    check(names->nbFields == 1 && std::strcmp(names->fields[0].name, "spatial_shapes") == 0 &&
              names->fields[0].type == PluginFieldType::kINT32,
          "the creator names its field and its type");
    check(static_cast<bool>(make()), "a plugin is made from its fields");
    check(!make({}), "missing fields are refused");
    check(!Plugin(kName, nullptr), "a missing collection is refused");
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
    check(plugin.field("spatial_shapes") == shapes, "the fields to serialise are the fields given");
    Plugin const again = plugin.fromPlan();
    check(again && again.field("spatial_shapes") == shapes, "a plugin is made again from its serialised fields");
    Plugin const copy = plugin.copy();
    check(copy && copy.field("spatial_shapes") == shapes, "a clone has the same fields");
    Plugin const attached = make().forContext();  // outlives what it was made from
    check(attached && attached.field("spatial_shapes") == shapes, "a plugin attaches to a context");
    check(plugin.name() == kName && plugin.version() == "1" && plugin.nameSpace().empty(), "name, version and namespace");
#if NV_TENSORRT_MAJOR < 10
    std::string const bytes = plugin.serialised();
    bool any = false;
    for (size_t size = 0; size < bytes.size(); ++size) any |= static_cast<bool>(Plugin::fromBytes(kName, bytes.substr(0, size)));
    check(!any, "serialised fields that are cut off are refused");
    check(!Plugin::fromBytes(kName, bytes + '\0'), "serialised fields with a rest are refused");
    check(!Plugin(creator(kName)->deserializePlugin("layer", nullptr, 8)), "missing bytes are refused");
    for (int32_t const inputs : {3, 6, -1}) {
        std::string changed = bytes;
        std::memcpy(&changed[changed.size() - sizeof(inputs)], &inputs, sizeof(inputs));
        check(!Plugin::fromBytes(kName, changed), "serialised fields of another number of inputs are refused");
    }
    int32_t const negative = -1;
    std::string changed = bytes;
    std::memcpy(&changed[std::strlen("spatial_shapes") + 1], &negative, sizeof(negative));
    check(!Plugin::fromBytes(kName, changed), "serialised fields of negative length are refused");
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
        for (DataType const type : types()) {
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
    for (DataType const type : types()) {
        DataType output_type{};
        check(plugin.outputType({type, DataType::kFLOAT, type, type}, output_type) && output_type == type,
              "the output has the type of value");
#if NV_TENSORRT_MAJOR >= 10
        check(!plugin.outputType({type, DataType::kFLOAT}, output_type), "two inputs give an error");
#endif
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

Problem draw(DataType type, int32_t reference_dim, std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(-0.3, 1.3);
    int64_t const samples = int64_t{kBatch} * queries * kHeads * levels() * kPoints;
    Problem p;
    p.value = drawn(int64_t{kBatch} * tokens() * kHeads * kDim, type, [&] { return normal(random); });
    p.reference = drawn(int64_t{kBatch} * queries * levels() * reference_dim, DataType::kFLOAT, [&] { return uniform(random); });
    p.offsets = drawn(samples * 2, type, [&] { return 5. * normal(random); });
    p.logits = drawn(samples, type, [&] { return 2. * normal(random); });
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

// The relative error of one enqueue, infinite if a call failed.
double runEnqueue(DataType type, int32_t reference_dim, bool masked, std::mt19937_64& random) {
    Problem const p = draw(type, reference_dim, random);
    std::vector<char> valid(p.valid.size() * sizeof(int32_t));
    std::memcpy(valid.data(), p.valid.data(), valid.size());
    std::vector<std::vector<char>> inputs = {pack(p.value, type), pack(p.reference, DataType::kFLOAT), pack(p.offsets, type),
                                             pack(p.logits, type)};
    if (masked) inputs.push_back(valid);
    Plugin const plugin = make().fromPlan().forContext();
    auto const result = runEnqueue(plugin, describe(type, reference_dim, masked), inputs, describeOutput(type));
    return relativeError(result, solve(p, reference_dim, masked), type);
}

void testEnqueue() {
    std::mt19937_64 random{std::random_device{}()};
    auto const limit = [](DataType type) { return type == DataType::kFLOAT ? 2e-6 : type == DataType::kHALF ? 6e-4 : 5e-3; };
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
    for (DataType const type : types()) {
        for (Case const& c : cases) {
            shapes = c.shapes;
            queries = c.queries == kEveryToken ? tokens() : c.queries;
            double const error = runEnqueue(type, c.reference_dim, c.masked, random);
            std::printf("    %s, %d levels, %d queries, %d-d references, %s: relative error %.2e\n", nameOf(type), levels(), queries,
                        c.reference_dim, c.masked ? "masked" : "all valid", error);
            check(error <= limit(type), "enqueue agrees with float64");
        }
    }
    shapes = kPyramid;
    queries = 101;
}

// The ways to load a library, in turn, and both at once.
}  // namespace

void testMsDeformAttn(bool gpu) {
    testCreator();
    testSerialisation();
    testFormats();
    testShapes();
    testEnqueueErrors();
    if (gpu) testEnqueue();
}
