#include "tensorrt_layer.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

namespace codetr {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;

std::string describe(Dims const& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims; ++i) text += (i ? ", " : "") + std::to_string(static_cast<int64_t>(dims.d[i]));
    return text + "]";
}

std::string describe(std::vector<int64_t> const& sizes) {
    std::string text = "[";
    for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
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

std::string listOf(PluginKind const& kind) {
    std::string text;
    for (int32_t i = 0; i < kind.field_count; ++i) text += (i ? ", " : "") + std::string(kind.fields[i]);
    return text;
}

// The position of a field, or -1.
int32_t findField(PluginKind const& kind, char const* name) {
    for (int32_t i = 0; name != nullptr && i < kind.field_count; ++i) {
        if (std::strcmp(name, kind.fields[i]) == 0) return i;
    }
    return -1;
}

}  // namespace

void report(char const* plugin, std::string const& message) noexcept {
    try {
        std::string const line = std::string(plugin) + ": " + message;
        if (nvinfer1::ILogger* const logger = getLogger()) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
        } else {
            std::fprintf(stderr, "%s\n", line.c_str());
        }
    } catch (...) {
        // Nothing is left to say it with.
    }
}

int32_t status(char const* plugin, std::string const& fault) {
    if (fault.empty()) return 0;
    report(plugin, fault);
    return -1;
}

std::string readFields(PluginKind const& kind, nvinfer1::PluginFieldCollection const* given, Fields& fields) {
    if (given == nullptr || (given->nbFields > 0 && given->fields == nullptr)) return "the field collection is missing";
    std::vector<bool> found(kind.field_count, false);
    fields.assign(kind.field_count, {});
    for (int32_t i = 0; i < given->nbFields; ++i) {
        auto const& field = given->fields[i];
        int32_t const place = findField(kind, field.name);
        if (place < 0)
            return std::string("unknown field ") + (field.name ? field.name : "without a name") + "; the fields are " + listOf(kind);
        if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length < 0 || (field.length > 0 && field.data == nullptr)) {
            return std::string("field ") + field.name + " must be a list of INT32";
        }
        auto const* const numbers = static_cast<int32_t const*>(field.data);
        fields[place].assign(numbers, numbers + field.length);
        found[place] = true;
    }
    for (int32_t i = 0; i < kind.field_count; ++i) {
        if (!found[i]) return std::string("field ") + kind.fields[i] + " is missing";
    }
    return kind.findFieldFault(fields);
}

std::string Layer::findCountFault(int32_t inputs, int32_t outputs) const {
    if (inputs >= kind_->min_inputs && inputs <= kind_->max_inputs && outputs == 1) return {};
    return std::string("needs ") + kind_->wanted + " and 1 output, got " + std::to_string(inputs) + " and " + std::to_string(outputs);
}

bool Layer::supports(int32_t position, PluginTensorDesc const& tensor, PluginTensorDesc const& first, int32_t inputs) const {
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && kind_->isRightType(position, inputs, tensor.type, first.type);
}

std::string Layer::findFault(PluginTensorDesc const* in, int32_t inputs) const {
    if (in == nullptr) return "the input descriptions are missing";
    std::string fault = findCountFault(inputs, 1);
    if (!fault.empty()) return fault;
    for (int32_t i = 0; i < inputs; ++i) {
        if (kind_->isRightType(i, inputs, in[i].type, in[0].type)) continue;
        return std::string(kind_->input_names[i]) + " has type " + std::to_string(static_cast<int32_t>(in[i].type)) + "; " + kind_->types;
    }
    auto const expected = kind_->expectedShapes(in, fields_);
    for (int32_t i = 0; i < inputs; ++i) {
        if (fits(in[i].dims, expected[i])) continue;
        return std::string(kind_->input_names[i]) + " has shape " + describe(in[i].dims) + ", expected " + describe(expected[i]) +
               " (-1: any size)";
    }
    return kind_->findSizeFault(in);
}

std::string Layer::findFault(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs) const {
    std::vector<PluginTensorDesc> descs;
    for (int32_t i = 0; in != nullptr && i < inputs; ++i) descs.push_back(in[i].desc);
    return findFault(in == nullptr ? nullptr : descs.data(), inputs);
}

std::string Layer::getOutputShape(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs& out,
                                  nvinfer1::IExprBuilder& builder) const {
    std::string const fault = findCountFault(in == nullptr ? 0 : inputs, 1);
    return fault.empty() ? kind_->getOutputShape(in, out, builder) : fault;
}

std::string Layer::enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const* output_descs, void const* const* inputs,
                           void* const* outputs, cudaStream_t stream) const {
    if (!input_descs || !output_descs || !inputs || !outputs) return "enqueue got a null pointer";
    if (inputs_ == 0) return "enqueue was called before the inputs' shapes were told and found right";
    if (inputs_ == kind_->max_inputs && inputs[inputs_ - 1] == nullptr) {
        return std::string(kind_->input_names[inputs_ - 1]) + " is a null pointer";
    }
    return kind_->launch({input_descs, inputs_, inputs, outputs[0], stream}, fields_);
}

ElementType elementType(DataType type) {
    return type == DataType::kHALF ? ElementType::kFloat16 : isBfloat16(type) ? ElementType::kBFloat16 : ElementType::kFloat32;
}

int64_t sizeOf(PluginTensorDesc const* in, int32_t input, int32_t axis) {
    return axis < in[input].dims.nbDims ? static_cast<int64_t>(in[input].dims.d[axis]) : -1;
}

std::string explainLaunch(cudaError_t error) {
    return error == cudaSuccess ? "" : std::string("the launch failed: ") + cudaGetErrorString(error);
}

}  // namespace codetr
