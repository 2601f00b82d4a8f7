// The plugin of window attention.
#include "tensorrt_layer.h"
#include "window_attn.h"

namespace codetr {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

constexpr char const* kFields[] = {kWindowSizeField, kShiftField};
constexpr int32_t kFieldCount = sizeof(kFields) / sizeof(kFields[0]);
static_assert(kFieldCount <= kMaxFields, "a creator has room for its fields");
constexpr int32_t kWindowSize = 0, kShift = 1;  // positions among them

std::string findFieldFault(Fields const& fields) {
    for (int32_t i : {kWindowSize, kShift}) {
        if (fields[i].size() != 1) {
            return std::string("field ") + kFields[i] + " must be one number, got " + std::to_string(fields[i].size());
        }
    }
    int32_t const window = fields[kWindowSize][0], shift = fields[kShift][0];
    if (!isWindow(window)) return "field window_size must be 7 or 12, got " + std::to_string(window);
    if (shift < 0 || shift >= window) {
        return "field shift must be at least 0 and less than window_size, got " + std::to_string(shift);
    }
    return {};
}

bool isRightType(int32_t position, int32_t, DataType type, DataType first) {
    return position == kQkv ? type == DataType::kHALF || isBfloat16(type) : type == first;
}

std::vector<std::vector<int64_t>> expectedShapes(PluginTensorDesc const* in, Fields const& fields) {
    int64_t const heads = sizeOf(in, kBiasTable, 1), channels = heads < 0 ? -1 : 3 * heads * kWindowHeadDim;
    return {
        {-1, -1, -1, channels},
        {countRelativePositions(fields[kWindowSize][0]), -1},
        {channels},
    };
}

std::string findSizeFault(PluginTensorDesc const* in) {
    int64_t const heads = sizeOf(in, kBiasTable, 1), height = sizeOf(in, kQkv, 1), width = sizeOf(in, kQkv, 2);
    if (heads == 0) return "there must be at least one head";
    if (height == 0 || width == 0) return "qkv must have tokens";
    return {};
}

std::string getOutputShape(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs& out, nvinfer1::IExprBuilder& builder) {
    if (in[kQkv].nbDims != 4 || in[kBiasTable].nbDims != 2) {
        return "qkv must have 4 axes and bias_table 2, got " + std::to_string(in[kQkv].nbDims) + " and " +
               std::to_string(in[kBiasTable].nbDims);
    }
    auto const* const dim = builder.constant(kWindowHeadDim);
    auto const* const channels =
        dim == nullptr ? nullptr : builder.operation(nvinfer1::DimensionOperation::kPROD, *in[kBiasTable].d[1], *dim);
    if (channels == nullptr) return "the output's channels cannot be expressed";
    out.nbDims = 4;
    for (int32_t i = 0; i < 3; ++i) out.d[i] = in[kQkv].d[i];
    out.d[3] = channels;
    return {};
}

std::string launch(Enqueued const& arguments, Fields const& fields) {
    auto const& qkv = arguments.in[kQkv].dims;
    auto const& bias_table = arguments.in[kBiasTable].dims;
    if (qkv.nbDims != 4 || bias_table.nbDims != 2) return "enqueue got other shapes than were told";
    WindowAttn call{};
    call.type = elementType(arguments.in[kQkv].type);
    call.qkv = arguments.inputs[kQkv];
    call.qkv_bias = arguments.count == kMaxWindowInputs ? arguments.inputs[kQkvBias] : nullptr;
    call.bias_table = arguments.inputs[kBiasTable];
    call.output = arguments.output;
    call.batch = static_cast<int32_t>(qkv.d[0]);
    call.height = static_cast<int32_t>(qkv.d[1]);
    call.width = static_cast<int32_t>(qkv.d[2]);
    call.heads = static_cast<int32_t>(bias_table.d[1]);
    call.window = fields[kWindowSize][0];
    call.shift = fields[kShift][0];
    if (char const* const fault = findFault(call)) return fault;
    return explainLaunch(launchWindowAttn(call, arguments.stream));
}

}  // namespace

PluginKind const kWindowAttnPlugin = {
    kWindowPluginName,
    kFields,
    kFieldCount,
    kWindowInputNames,
    "2 inputs, or 3 with qkv_bias,",
    kMinWindowInputs,
    kMaxWindowInputs,
    findFieldFault,
    isRightType,
    "qkv must be FP16 or BF16, the others as qkv",
    expectedShapes,
    findSizeFault,
    getOutputShape,
    launch,
};

}  // namespace codetr
