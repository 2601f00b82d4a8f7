// The tests of the plugin of window attention.

#include "plugin_host.h"

#include <algorithm>

using namespace nvinfer1;

namespace {

constexpr char const* kName = "CodetrWindowAttention";

// ---- The problem: two images, sizes that no window divides ----

constexpr int32_t kBatch = 2, kHeight = 20, kWidth = 31, kHeads = 3, kDim = 32, kChannels = kHeads * kDim;

int32_t relativePositions(int32_t window) { return (2 * window - 1) * (2 * window - 1); }

Tensors describe(DataType type, int32_t window, bool biased) {
    Tensors in = {linear({kBatch, kHeight, kWidth, 3 * kChannels}, type), linear({relativePositions(window), kHeads}, type)};
    if (biased) in.push_back(linear({3 * kChannels}, type));
    return in;
}

PluginTensorDesc describeOutput(DataType type) { return linear({kBatch, kHeight, kWidth, kChannels}, type); }

Plugin makeOf(std::vector<int32_t> const& size, std::vector<int32_t> const& shift) {
    return makePlugin(kName, {field("window_size", size), field("shift", shift)});
}
Plugin make(int32_t size = 12, int32_t shift = 6) { return makeOf({size}, {shift}); }

bool has(Plugin const& plugin, int32_t size, int32_t shift) {
    return plugin && plugin.field("window_size") == std::vector<int32_t>{size} && plugin.field("shift") == std::vector<int32_t>{shift};
}

void testCreator() {
    auto const* const names = creator(kName)->getFieldNames();
    bool right =
        names->nbFields == 2 && std::strcmp(names->fields[0].name, "window_size") == 0 && std::strcmp(names->fields[1].name, "shift") == 0;
    for (int32_t i = 0; i < names->nbFields; ++i) right &= names->fields[i].type == PluginFieldType::kINT32;
    check(right, "the creator names its fields and their types");
    check(make(7, 0) && make(12, 11), "plugins are made of both windows");
    std::vector<int32_t> const twelve = {12}, six = {6};
    check(static_cast<bool>(makePlugin(kName, {field("shift", six), field("window_size", twelve)})), "fields come in any order");
    check(!makePlugin(kName, {field("window_size", twelve)}), "a missing shift is refused");
    check(!makePlugin(kName, {field("shift", six)}), "a missing window_size is refused");
    check(!makePlugin(kName, {}), "missing fields are refused");
    check(!Plugin(kName, nullptr), "a missing collection is refused");
    check(!make(8, 4), "windows of 8 are refused");
    check(!make(12, 12) && !make(12, -1), "a shift that is no part of a window is refused");
    check(!makeOf({12, 12}, {6}) && !makeOf({12}, {}), "fields of other lengths are refused");
    float const number = 12;
    check(!makePlugin(kName, {{"window_size", &number, PluginFieldType::kFLOAT32, 1}, field("shift", six)}),
          "a field of the wrong type is refused");
    check(!makePlugin(kName, {{"window_size", nullptr, PluginFieldType::kINT32, 1}, field("shift", six)}),
          "a field without data is refused");
    check(!makePlugin(kName, {field("window_size", twelve), field("shift", six), field("heads", six)}), "an unknown field is refused");
}

void testSerialisation() {
    Plugin const plugin = make(7, 3);
    check(has(plugin, 7, 3), "the fields to serialise are the fields given");
    check(has(plugin.fromPlan(), 7, 3), "a plugin is made again from its serialised fields");
    check(has(plugin.copy(), 7, 3), "a clone has the same fields");
    check(has(make(7, 3).forContext(), 7, 3), "a plugin attaches to a context");
    check(plugin.name() == kName && plugin.version() == "1" && plugin.nameSpace().empty(), "name, version and namespace");
#if NV_TENSORRT_MAJOR < 10
    std::string const bytes = plugin.serialised();
    bool any = false;
    for (size_t size = 0; size < bytes.size(); ++size) any |= static_cast<bool>(Plugin::fromBytes(kName, bytes.substr(0, size)));
    check(!any, "serialised fields that are cut off are refused");
    check(!Plugin::fromBytes("CodetrMsDeformAttn", bytes), "serialised fields of another plugin are refused");
    for (int32_t const inputs : {1, 4, -1}) {
        std::string changed = bytes;
        std::memcpy(&changed[changed.size() - sizeof(inputs)], &inputs, sizeof(inputs));
        check(!Plugin::fromBytes(kName, changed), "serialised fields of another number of inputs are refused");
    }
    int32_t const eight = 8;
    std::string changed = bytes;
    std::memcpy(&changed[std::strlen("window_size") + 1 + sizeof(int32_t)], &eight, sizeof(eight));
    check(!Plugin::fromBytes(kName, changed), "a serialised window of 8 is refused");
    for (bool const biased : {false, true}) {
        plugin.configure(describe(DataType::kHALF, 7, biased));
        check(Plugin::inputsOf(plugin.fromPlan().serialised()) == (biased ? 3 : 2), "a plan keeps the number of inputs");
        check(Plugin::inputsOf(plugin.copy().serialised()) == (biased ? 3 : 2), "a clone keeps the number of inputs");
    }
#endif
}

void testFormats() {
    Plugin const plugin = make();
    for (bool const biased : {false, true}) {
        for (DataType const type : kHalfTypes) {
            Tensors tensors = describe(type, 12, biased);
            auto const inputs = static_cast<int32_t>(tensors.size());
            tensors.push_back(describeOutput(type));
            bool all = true, any = false;
            for (int32_t i = 0; i <= inputs; ++i) all &= plugin.supports(i, tensors, inputs);
            for (int32_t i = 0; i <= inputs; ++i) {
                for (DataType const other : {DataType::kFLOAT, DataType::kINT32, DataType::kINT8}) {
                    Tensors changed = tensors;
                    changed[i].type = other;
                    any |= plugin.supports(i, changed, inputs);
                }
                for (DataType const other : kHalfTypes) {
                    if (i == 0 || other == type) continue;
                    Tensors changed = tensors;
                    changed[i].type = other;
                    any |= plugin.supports(i, changed, inputs);
                }
                Tensors changed = tensors;
                changed[i].format = TensorFormat::kCHW32;
                any |= plugin.supports(i, changed, inputs);
            }
            check(all, "linear FP16 and BF16 are supported");
            check(!any, "other types and formats are not supported");
        }
    }
    Tensors const tensors = describe(DataType::kHALF, 12, true);
    check(!plugin.supports(4, tensors, 3) && !plugin.supports(-1, tensors, 3), "a position out of range is not supported");
    check(!plugin.supports(0, tensors, 1), "one input is not supported");
}

void testShapes() {
    Plugin const plugin = make();
    Builder builder;
    for (bool const biased : {false, true}) {
        std::vector<DimsExprs> exprs;
        for (auto const& desc : describe(DataType::kHALF, 12, biased)) exprs.push_back(expressions(builder, desc.dims));
        DimsExprs out{};
        bool right = plugin.outputShape(exprs, out, builder) && out.nbDims == 4;
        Dims const expected = describeOutput(DataType::kHALF).dims;
        for (int32_t i = 0; right && i < 4; ++i) right = out.d[i]->getConstantValue() == expected.d[i];
        check(right && out.d[0] == exprs[0].d[0], "the output has shape [batch, height, width, channels], its batch that of qkv");
        exprs[0].nbDims = 3;
        check(!plugin.outputShape(exprs, out, builder), "a wrong rank gives an error");
        check(!plugin.outputShape({exprs[1]}, out, builder), "one input gives an error");
    }
    for (DataType const type : kHalfTypes) {
        DataType output_type{};
        check(plugin.outputType({type, type, type}, output_type) && output_type == type, "the output has the type of qkv");
#if NV_TENSORRT_MAJOR >= 10
        check(!plugin.outputType({type}, output_type), "one input gives an error");
#endif
    }
    check(plugin.outputs() == 1, "there is one output");

    Tensors const in = describe(DataType::kHALF, 12, true);
    check(plugin.configure(in) && plugin.configure(describe(DataType::kHALF, 12, false)), "good inputs are accepted");
    Tensors open = in;
    open[0].dims.d[0] = -1;
    check(plugin.configure(open), "a dynamic batch is accepted");
    for (auto& desc : open) std::fill_n(desc.dims.d, desc.dims.nbDims, -1);
    check(plugin.configure(open), "sizes that are not known yet are accepted");
    struct Wrong {
        char const* what;
        int32_t input, axis;
        Size size;
    };
    for (Wrong const& wrong :
         {Wrong{"channels that are no three times the heads' give an error", 0, 3, 2 * kChannels},
          Wrong{"no tokens give an error", 0, 2, 0}, Wrong{"a table of another window gives an error", 1, 0, 169},
          Wrong{"other heads give an error", 1, 1, 4}, Wrong{"a bias of other channels gives an error", 2, 0, kChannels}}) {
        Tensors changed = in;
        changed[wrong.input].dims.d[wrong.axis] = wrong.size;
        check(!plugin.configure(changed) && !plugin.changeShapes(changed), wrong.what);
    }
    Tensors ranked = in;
    ranked[0].dims.nbDims = 3;
    check(!plugin.changeShapes(ranked), "qkv of rank 3 gives an error");
    Tensors typed = in;
    typed[1].type = DataType::kFLOAT;
    check(!plugin.changeShapes(typed), "an FP32 table gives an error");
    check(!plugin.changeShapes({in[0]}), "one input gives an error");
    check(!plugin.changeShapesToNothing(), "missing descriptions give an error");
    check(plugin.changeShapes(in), "good shapes are accepted at run time");
}

void testEnqueueErrors() {
    Plugin const plugin = make();
    Tensors const in = describe(DataType::kHALF, 12, true);
    auto const out = describeOutput(DataType::kHALF);
    alignas(16) char dummy[64];
    void const* inputs[] = {dummy, dummy, dummy};
    void* outputs[] = {dummy};
    auto* const stream = reinterpret_cast<cudaStream_t>(dummy);
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "enqueue before the shapes are known gives an error");
    Tensors wrong = in;
    wrong[0].dims.d[3] -= 1;
    plugin.changeShapes(wrong);
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "enqueue after wrong shapes gives an error");
    plugin.changeShapes(in);
    check(!plugin.enqueue(nullptr, &out, inputs, outputs, stream), "missing descriptions give an error");
    check(!plugin.enqueue(in.data(), &out, nullptr, outputs, stream), "missing inputs give an error");
    for (void const*& input : inputs) {
        input = nullptr;
        check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "a null tensor gives an error");
        input = dummy;
    }
    inputs[0] = dummy + 8;
    check(!plugin.enqueue(in.data(), &out, inputs, outputs, stream), "a misaligned tensor gives an error");
    inputs[0] = dummy;
    Tensors large = in;
    large[0].dims.d[0] = 16385;
    plugin.changeShapes(large);
    check(!plugin.enqueue(large.data(), &out, inputs, outputs, stream), "more images than the kernel takes give an error");
}

// ---- enqueue against float64 ----

struct Problem {
    std::vector<double> qkv, bias_table, qkv_bias;  // the last is zeros where there is none
};

Problem draw(DataType type, int32_t window, bool biased, std::mt19937_64& random) {
    std::normal_distribution<double> normal;
    auto const next = [&] { return normal(random); };
    Problem p;
    p.qkv = drawn(int64_t{kBatch} * kHeight * kWidth * 3 * kChannels, type, next);
    p.bias_table = drawn(int64_t{relativePositions(window)} * kHeads, type, next);
    p.qkv_bias = biased ? drawn(3 * kChannels, type, next) : std::vector<double>(3 * kChannels);
    return p;
}

// By the book: the map is padded, rolled, numbered by region and cut into windows.
std::vector<double> solve(Problem const& p, int32_t window, int32_t shift) {
    std::vector<double> out(int64_t{kBatch} * kHeight * kWidth * kChannels);
    int32_t const rows = (kHeight + window - 1) / window * window, columns = (kWidth + window - 1) / window * window;
    auto const region = [&](int32_t position, int32_t length) { return (position >= length - window) + (position >= length - shift); };
    // Query, key or value of a head at a position of the rolled map.
    auto const at = [&](int32_t image, int32_t y, int32_t x, int32_t part, int32_t head) {
        int32_t const from_y = (y + shift) % rows, from_x = (x + shift) % columns;
        bool const inside = from_y < kHeight && from_x < kWidth;
        int64_t const token = (int64_t{image} * kHeight + from_y) * kWidth + from_x;
        return (inside ? &p.qkv[token * 3 * kChannels] : p.qkv_bias.data()) + part * kChannels + head * kDim;
    };
    for (int32_t image = 0; image < kBatch; ++image) {
        for (int32_t y = 0; y < rows; ++y) {
            for (int32_t x = 0; x < columns; ++x) {
                int32_t const to_y = (y + shift) % rows, to_x = (x + shift) % columns;
                if (to_y >= kHeight || to_x >= kWidth) continue;
                for (int32_t head = 0; head < kHeads; ++head) {
                    double const* const query = at(image, y, x, 0, head);
                    std::vector<double> scores, sums(kDim);
                    for (int32_t i = 0; i < window * window; ++i) {
                        int32_t const ky = y / window * window + i / window, kx = x / window * window + i % window;
                        double const* const key = at(image, ky, kx, 1, head);
                        double score = 0;
                        for (int32_t c = 0; c < kDim; ++c) score += query[c] * key[c];
                        int32_t const place = (y - ky + window - 1) * (2 * window - 1) + x - kx + window - 1;
                        bool const neighbours = region(y, rows) == region(ky, rows) && region(x, columns) == region(kx, columns);
                        scores.push_back(score / std::sqrt(kDim) + p.bias_table[place * kHeads + head] -
                                         (shift > 0 && !neighbours ? 100 : 0));
                    }
                    double const top = *std::max_element(scores.begin(), scores.end());
                    double total = 0;
                    for (int32_t i = 0; i < window * window; ++i) {
                        double const weight = std::exp(scores[i] - top);
                        double const* const value = at(image, y / window * window + i / window, x / window * window + i % window, 2, head);
                        for (int32_t c = 0; c < kDim; ++c) sums[c] += weight * value[c];
                        total += weight;
                    }
                    int64_t const token = (int64_t{image} * kHeight + to_y) * kWidth + to_x;
                    for (int32_t c = 0; c < kDim; ++c) out[token * kChannels + head * kDim + c] = sums[c] / total;
                }
            }
        }
    }
    return out;
}

void testEnqueue() {
    std::mt19937_64 random{std::random_device{}()};
    for (DataType const type : kHalfTypes) {
        for (int32_t const window : {7, 12}) {
            for (int32_t const shift : {0, window / 2}) {
                for (bool const biased : {false, true}) {
                    Problem const p = draw(type, window, biased, random);
                    std::vector<std::vector<char>> inputs = {pack(p.qkv, type), pack(p.bias_table, type)};
                    if (biased) inputs.push_back(pack(p.qkv_bias, type));
                    Plugin const plugin = make(window, shift).fromPlan().forContext();
                    auto const result = runEnqueue(plugin, describe(type, window, biased), inputs, describeOutput(type));
                    double const error = relativeError(result, solve(p, window, shift), type);
                    std::printf("    %s, windows of %d, shift %d, %s: relative error %.2e\n", nameOf(type), window, shift,
                                biased ? "a bias" : "no bias", error);
                    check(error <= (type == DataType::kHALF ? 6e-4 : 5e-3), "enqueue agrees with float64");
                }
            }
        }
    }
}

}  // namespace

void testWindowAttn(bool gpu) {
    testCreator();
    testSerialisation();
    testFormats();
    testShapes();
    testEnqueueErrors();
    if (gpu) testEnqueue();
}
