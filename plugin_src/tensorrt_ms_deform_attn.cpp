// The plugin of deformable attention.
#include "ms_deform_attn.h"
#include "tensorrt_layer.h"

namespace codetr {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;

constexpr char const* kFields[] = {kSpatialShapesField};
constexpr int32_t kFieldCount = sizeof(kFields) / sizeof(kFields[0]);
static_assert(kFieldCount <= kMaxFields, "a creator has room for its fields");

bool isValueType(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || isBfloat16(type); }

std::string findFieldFault(Fields const& fields) {
    auto const& shapes = fields[0];
    if (shapes.empty() || shapes.size() % 2 != 0 || shapes.size() / 2 > kMaxLevels) {
        return "field spatial_shapes must hold h and w of 1 to 8 levels, got " + std::to_string(shapes.size()) + " numbers";
    }
    for (int32_t const side : shapes) {
        if (!isLevelSide(side)) return "field spatial_shapes must hold 1 to 2^20, got " + std::to_string(side);
    }
    return {};
}

bool isRightType(int32_t position, int32_t inputs, DataType type, DataType value_type) {
    if (position == inputs) return type == value_type;  // the output
    return position == kValue             ? isValueType(type)
           : position == kReferencePoints ? type == DataType::kFLOAT
           : position == kValidShapes     ? type == DataType::kINT32
                                          : type == value_type;
}

std::vector<std::vector<int64_t>> expectedShapes(PluginTensorDesc const* in, Fields const& fields) {
    auto const& shapes = fields[0];
    auto const levels = static_cast<int64_t>(shapes.size() / 2);
    int64_t const batch = sizeOf(in, kValue, 0), heads = sizeOf(in, kValue, 2);
    int64_t const queries = sizeOf(in, kSamplingOffsets, 1), points = sizeOf(in, kSamplingOffsets, 4);
    int64_t const tokens = countTokens(shapes.data(), static_cast<int32_t>(levels));
    return {
        {batch, tokens, heads, -1},
        {batch, queries, levels, -1},
        {batch, queries, heads, levels, points, 2},
        {batch, queries, heads, levels, points},
        {batch, levels, 2},
    };
}

std::string findSizeFault(PluginTensorDesc const* in) {
    int64_t const reference_dim = sizeOf(in, kReferencePoints, 3), dim = sizeOf(in, kValue, 3);
    if (reference_dim >= 0 && reference_dim != 2 && reference_dim != 4) {
        return std::string(message::kCoordinates) + ", got " + std::to_string(reference_dim);
    }
    if (dim >= 0 && !isHeadDim(dim)) return std::string(message::kChannels) + ", got " + std::to_string(dim);
    return {};
}

std::string getOutputShape(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs& out, nvinfer1::IExprBuilder& builder) {
    if (in[kValue].nbDims != 4 || in[kSamplingOffsets].nbDims != 6) {
        return "value must have 4 axes and sampling_offsets 6, got " + std::to_string(in[kValue].nbDims) + " and " +
               std::to_string(in[kSamplingOffsets].nbDims);
    }
    auto const* const channels = builder.operation(nvinfer1::DimensionOperation::kPROD, *in[kValue].d[2], *in[kValue].d[3]);
    if (channels == nullptr) return "the output's channels cannot be expressed";
    out.nbDims = 3;
    out.d[0] = in[kValue].d[0];
    out.d[1] = in[kSamplingOffsets].d[1];
    out.d[2] = channels;
    return {};
}

std::string launch(Enqueued const& arguments, Fields const& fields) {
    auto const* const in = arguments.in;
    auto const& value = in[kValue].dims;
    auto const& offsets = in[kSamplingOffsets].dims;
    auto const& reference_points = in[kReferencePoints].dims;
    if (value.nbDims != 4 || offsets.nbDims != 6 || reference_points.nbDims != 4) return "enqueue got other shapes than were told";
    if (!isValueType(in[kValue].type)) return "value must be FP32, FP16 or BF16";
    bool const masked = arguments.count == kMaxInputs;
    MsDeformAttn call{};
    call.type = elementType(in[kValue].type);
    call.value = arguments.inputs[kValue];
    call.reference_points = static_cast<float const*>(arguments.inputs[kReferencePoints]);
    call.sampling_offsets = arguments.inputs[kSamplingOffsets];
    call.attention_logits = arguments.inputs[kAttentionLogits];
    call.valid_shapes = masked ? static_cast<int32_t const*>(arguments.inputs[kValidShapes]) : nullptr;
    call.output = arguments.output;
    call.batch = static_cast<int32_t>(value.d[0]);
    call.queries = static_cast<int32_t>(offsets.d[1]);
    call.heads = static_cast<int32_t>(value.d[2]);
    call.dim = static_cast<int32_t>(value.d[3]);
    call.levels = static_cast<int32_t>(fields[0].size() / 2);
    call.points = static_cast<int32_t>(offsets.d[4]);
    call.reference_dim = static_cast<int32_t>(reference_points.d[3]);
    call.spatial_shapes = fields[0].data();
    if (char const* const fault = findFault(call)) return fault;
    return explainLaunch(launchMsDeformAttn(call, arguments.stream));
}

}  // namespace

PluginKind const kMsDeformAttnPlugin = {
    kPluginName,
    kFields,
    kFieldCount,
    kInputNames,
    "4 inputs, or 5 with valid_shapes,",
    kMinInputs,
    kMaxInputs,
    findFieldFault,
    isRightType,
    "value must be FP32, FP16 or BF16, sampling_offsets and attention_logits as value, reference_points FP32, valid_shapes INT32",
    expectedShapes,
    findSizeFault,
    getOutputShape,
    launch,
};

}  // namespace codetr
