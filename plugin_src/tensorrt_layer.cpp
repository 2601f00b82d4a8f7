#include "tensorrt_layer.h"

#include "ms_deform_attn.h"

#include <cstdio>
#include <cstring>
#include <utility>

namespace codetr {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;

#if NV_TENSORRT_MAJOR >= 9
bool isBfloat16(DataType type) { return type == DataType::kBF16; }
#else
bool isBfloat16(DataType) { return false; }
#endif

bool isValueType(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || isBfloat16(type); }

ElementType elementType(DataType type) {
    return type == DataType::kHALF ? ElementType::kFloat16 : isBfloat16(type) ? ElementType::kBFloat16 : ElementType::kFloat32;
}

std::string describe(Dims const& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i) text += (i ? ", " : "") + std::to_string(static_cast<int64_t>(dims.d[i]));
    return text + "]";
}

// Whether `dims` has the rank and sizes of `expected`, where -1 on either side stands for any size.
bool fits(Dims const& dims, std::vector<int64_t> const& expected) {
    if (dims.nbDims != static_cast<int32_t>(expected.size())) return false;
    for (size_t i = 0; i < expected.size(); ++i) {
        if (dims.d[i] >= 0 && expected[i] >= 0 && dims.d[i] != expected[i]) return false;
    }
    return true;
}

bool isRightType(int32_t input, DataType type, DataType value_type) {
    return input == kValue             ? isValueType(type)
           : input == kReferencePoints ? type == DataType::kFLOAT
           : input == kValidShapes     ? type == DataType::kINT32
                                       : type == value_type;
}

// Why these inputs do not belong together, or an empty string. `in` has `count` entries.
std::string findInputFault(PluginTensorDesc const* in, int32_t count, std::vector<int32_t> const& shapes) {
    if (count != kMinInputs && count != kMaxInputs) {
        return "needs 4 inputs, or 5 with valid_shapes, and got " + std::to_string(count);
    }
    for (int32_t i = 0; i < count; ++i) {
        if (!isRightType(i, in[i].type, in[kValue].type)) {
            return std::string(kInputNames[i]) + " has type " + std::to_string(static_cast<int32_t>(in[i].type)) +
                   "; value must be FP32, FP16 or BF16, sampling_offsets and attention_logits as value, "
                   "reference_points FP32, valid_shapes INT32";
        }
    }
    auto const at = [in](int32_t input, int32_t axis) -> int64_t {
        return axis < in[input].dims.nbDims ? static_cast<int64_t>(in[input].dims.d[axis]) : -1;
    };
    auto const levels = static_cast<int64_t>(shapes.size() / 2);
    int64_t const batch = at(kValue, 0), heads = at(kValue, 2);
    int64_t const queries = at(kSamplingOffsets, 1), points = at(kSamplingOffsets, 4);
    int64_t const tokens = countTokens(shapes.data(), static_cast<int32_t>(levels));
    std::vector<std::vector<int64_t>> const expected = {
        {batch, tokens, heads, -1},
        {batch, queries, levels, -1},
        {batch, queries, heads, levels, points, 2},
        {batch, queries, heads, levels, points},
        {batch, levels, 2},
    };
    for (int32_t i = 0; i < count; ++i) {
        if (fits(in[i].dims, expected[i])) continue;
        Dims wanted{};
        wanted.nbDims = static_cast<int32_t>(expected[i].size());
        for (int32_t axis = 0; axis < wanted.nbDims; ++axis) wanted.d[axis] = expected[i][axis];
        return std::string(kInputNames[i]) + " has shape " + describe(in[i].dims) + ", expected " + describe(wanted) + " (-1: any size)";
    }
    int64_t const reference_dim = at(kReferencePoints, 3), dim = at(kValue, 3);
    if (reference_dim >= 0 && reference_dim != 2 && reference_dim != 4) {
        return std::string(message::kCoordinates) + ", got " + std::to_string(reference_dim);
    }
    if (dim >= 0 && !isHeadDim(dim)) return std::string(message::kChannels) + ", got " + std::to_string(dim);
    return {};
}

}  // namespace

void report(std::string const& message) noexcept {
    try {
        std::string const line = std::string(kPluginName) + ": " + message;
        if (nvinfer1::ILogger* const logger = getLogger()) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
        } else {
            std::fprintf(stderr, "%s\n", line.c_str());
        }
    } catch (...) {
        // Nothing is left to say it with.
    }
}

int32_t status(std::string const& fault) {
    if (fault.empty()) return 0;
    report(fault);
    return -1;
}

std::string readFields(nvinfer1::PluginFieldCollection const* fields, std::vector<int32_t>& shapes) {
    if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr)) return "the field collection is missing";
    bool found = false;
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        auto const& field = fields->fields[i];
        if (field.name == nullptr || std::strcmp(field.name, kSpatialShapesField) != 0) {
            return std::string("unknown field ") + (field.name ? field.name : "without a name") + "; the only one is spatial_shapes";
        }
        if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length < 0 || (field.length > 0 && field.data == nullptr)) {
            return "field spatial_shapes must be a list of INT32";
        }
        auto const* const numbers = static_cast<int32_t const*>(field.data);
        shapes.assign(numbers, numbers + field.length);
        found = true;
    }
    return found ? findShapesFault(shapes) : "field spatial_shapes is missing: h and w of each level as INT32";
}

std::string findShapesFault(std::vector<int32_t> const& shapes) {
    if (shapes.empty() || shapes.size() % 2 != 0 || shapes.size() / 2 > kMaxLevels) {
        return "field spatial_shapes must hold h and w of 1 to 8 levels, got " + std::to_string(shapes.size()) + " numbers";
    }
    for (int32_t const side : shapes) {
        if (!isLevelSide(side)) return "field spatial_shapes must hold 1 to 2^20, got " + std::to_string(side);
    }
    return {};
}

Layer::Layer(std::vector<int32_t> spatial_shapes, int32_t inputs) : spatial_shapes_(std::move(spatial_shapes)), inputs_(inputs) {}

bool Layer::supports(int32_t position, PluginTensorDesc const& tensor, PluginTensorDesc const& value, int32_t inputs) {
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    int32_t const output_like = kSamplingOffsets;  // an output has the type of value, as these do
    return isRightType(position == inputs ? output_like : position, tensor.type, value.type);
}

std::string Layer::findFault(PluginTensorDesc const* in, int32_t inputs) const {
    return in == nullptr ? "the input descriptions are missing" : findInputFault(in, inputs, spatial_shapes_);
}

std::string Layer::findFault(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs) const {
    std::vector<PluginTensorDesc> descs;
    for (int32_t i = 0; in != nullptr && i < inputs; ++i) descs.push_back(in[i].desc);
    return findFault(in == nullptr ? nullptr : descs.data(), inputs);
}

std::string Layer::getOutputShape(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs& out,
                                  nvinfer1::IExprBuilder& builder) {
    if (in == nullptr || inputs < kMinInputs || inputs > kMaxInputs) return "needs 4 or 5 inputs and 1 output";
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

std::string Layer::enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const* output_descs, void const* const* inputs,
                           void* const* outputs, cudaStream_t stream) const {
    if (!input_descs || !output_descs || !inputs || !outputs) return "enqueue got a null pointer";
    if (stream == nullptr) return "enqueue got a null stream";
    if (inputs_ == 0) return "enqueue was called before the inputs' shapes were told and found right";
    auto const& value = input_descs[kValue].dims;
    auto const& offsets = input_descs[kSamplingOffsets].dims;
    auto const& reference_points = input_descs[kReferencePoints].dims;
    if (value.nbDims != 4 || offsets.nbDims != 6 || reference_points.nbDims != 4) return "enqueue got other shapes than were told";
    if (!isValueType(input_descs[kValue].type)) return "value must be FP32, FP16 or BF16";
    MsDeformAttn call{};
    call.type = elementType(input_descs[kValue].type);
    call.value = inputs[kValue];
    call.reference_points = static_cast<float const*>(inputs[kReferencePoints]);
    call.sampling_offsets = inputs[kSamplingOffsets];
    call.attention_logits = inputs[kAttentionLogits];
    call.valid_shapes = inputs_ == kMaxInputs ? static_cast<int32_t const*>(inputs[kValidShapes]) : nullptr;
    call.output = outputs[0];
    call.batch = static_cast<int32_t>(value.d[0]);
    call.queries = static_cast<int32_t>(offsets.d[1]);
    call.heads = static_cast<int32_t>(value.d[2]);
    call.dim = static_cast<int32_t>(value.d[3]);
    call.levels = static_cast<int32_t>(spatial_shapes_.size() / 2);
    call.points = static_cast<int32_t>(offsets.d[4]);
    call.reference_dim = static_cast<int32_t>(reference_points.d[3]);
    call.spatial_shapes = spatial_shapes_.data();
    if (char const* const fault = codetr::findFault(call)) return fault;
    if (inputs_ == kMaxInputs && call.valid_shapes == nullptr) return "valid_shapes is a null pointer";
    cudaError_t const error = launchMsDeformAttn(call, stream);
    return error == cudaSuccess ? "" : std::string("the launch failed: ") + cudaGetErrorString(error);
}

}  // namespace codetr
