#include "tensorrt_plugin.h"

#ifdef CODETR_PLUGIN_V2

#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

namespace codetr {
namespace {

// This interface does not tell `enqueue` how many inputs there are, so a plan keeps it beside the creator's field.
constexpr char const* kInputsField = "inputs";

void writeField(std::vector<char>& out, char const* name, std::vector<int32_t> const& numbers) {
    auto const append = [&out](void const* data, size_t size) {
        auto const* const bytes = static_cast<char const*>(data);
        out.insert(out.end(), bytes, bytes + size);
    };
    auto const count = static_cast<int32_t>(numbers.size());
    append(name, std::strlen(name) + 1);
    append(&count, sizeof(count));
    append(numbers.data(), numbers.size() * sizeof(int32_t));
}

// Each field is its name with a zero, the count and the numbers.
std::vector<char> serialise(Layer const& layer) {
    std::vector<char> out;
    for (int32_t i = 0; i < layer.kind().field_count; ++i) writeField(out, layer.kind().fields[i], layer.fields()[i]);
    writeField(out, kInputsField, {layer.inputs()});
    return out;
}

std::map<std::string, std::vector<int32_t>> readSerialised(char const* data, size_t size) {
    char const* const end = data + size;
    auto const need = [&](size_t bytes) {
        if (static_cast<size_t>(end - data) < bytes) throw std::invalid_argument("the plan's bytes of this plugin are cut off");
    };
    std::map<std::string, std::vector<int32_t>> fields;
    while (data != end) {
        std::string const name(data, strnlen(data, end - data));
        need(name.size() + 1);
        data += name.size() + 1;
        int32_t count = 0;
        need(sizeof(count));
        std::memcpy(&count, data, sizeof(count));
        data += sizeof(count);
        if (count < 0) throw std::invalid_argument("the plan's field " + name + " has a negative length");
        need(count * sizeof(int32_t));
        std::vector<int32_t> numbers(count);
        if (count > 0) std::memcpy(numbers.data(), data, count * sizeof(int32_t));
        data += count * sizeof(int32_t);
        fields[name] = std::move(numbers);
    }
    return fields;
}

Layer deserialise(PluginKind const& kind, void const* data, size_t size) {
    if (data == nullptr) throw std::invalid_argument("the plan's bytes of this plugin are missing");
    auto found = readSerialised(static_cast<char const*>(data), size);
    auto const wrong = [] { throw std::invalid_argument("the plan was built with another version of this plugin"); };
    auto const& inputs = found[kInputsField];
    if (found.size() != static_cast<size_t>(kind.field_count) + 1 || inputs.size() != 1) wrong();
    if (inputs[0] != 0 && (inputs[0] < kind.min_inputs || inputs[0] > kind.max_inputs)) wrong();
    Fields fields;
    for (int32_t i = 0; i < kind.field_count; ++i) {
        auto const field = found.find(kind.fields[i]);
        if (field == found.end()) wrong();
        fields.push_back(field->second);
    }
    std::string const fault = kind.findFieldFault(fields);
    if (!fault.empty()) throw std::invalid_argument(fault);
    return Layer(kind, std::move(fields), inputs[0]);
}

}  // namespace

Plugin::Plugin(Layer layer) : layer_(std::move(layer)), serialised_(serialise(layer_)) {}

nvinfer1::IPluginV2DynamicExt* Plugin::clone() const noexcept {
    return guarded<nvinfer1::IPluginV2DynamicExt*>(name(), "clone", nullptr, [this] { return new Plugin(layer_); });
}

nvinfer1::DataType Plugin::getOutputDataType(int32_t, nvinfer1::DataType const* input_types, int32_t inputs) const noexcept {
    return input_types == nullptr || inputs < layer_.kind().min_inputs ? nvinfer1::DataType::kFLOAT : input_types[0];
}

nvinfer1::DimsExprs Plugin::getOutputDimensions(int32_t, nvinfer1::DimsExprs const* in, int32_t inputs,
                                                nvinfer1::IExprBuilder& builder) noexcept {
    nvinfer1::DimsExprs failed{};
    failed.nbDims = -1;
    return guarded(name(), "getOutputDimensions", failed, [&] {
        nvinfer1::DimsExprs out{};
        return status(name(), layer_.getOutputShape(in, inputs, out, builder)) == 0 ? out : failed;
    });
}

bool Plugin::supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* tensors, int32_t inputs,
                                       int32_t outputs) noexcept {
    return guarded(name(), "supportsFormatCombination", false, [&] {
        if (tensors == nullptr || !layer_.findCountFault(inputs, outputs).empty() || position < 0 || position > inputs) return false;
        return layer_.supports(position, tensors[position], tensors[0], inputs);
    });
}

void Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs, nvinfer1::DynamicPluginTensorDesc const*,
                             int32_t) noexcept {
    guarded<int32_t>(name(), "configurePlugin", -1, [&] {
        int32_t const result = status(name(), layer_.findFault(in, inputs));
        layer_.setInputs(result == 0 ? inputs : 0);
        serialised_ = serialise(layer_);
        return result;
    });
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                        void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
    return guarded<int32_t>(name(), "enqueue", -1,
                            [&] { return status(name(), layer_.enqueue(input_descs, output_descs, inputs, outputs, stream)); });
}

void Plugin::serialize(void* buffer) const noexcept {
    if (buffer != nullptr) std::memcpy(buffer, serialised_.data(), serialised_.size());
}

Creator::Creator(PluginKind const& kind) noexcept : kind_(kind) {
    for (int32_t i = 0; i < kind.field_count; ++i) fields_[i] = {kind.fields[i], nullptr, nvinfer1::PluginFieldType::kINT32, 0};
    collection_ = {kind.field_count, fields_};
}

nvinfer1::IPluginV2* Creator::createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields) noexcept {
    return guarded<nvinfer1::IPluginV2*>(kind_.name, "createPlugin", nullptr, [&]() -> nvinfer1::IPluginV2* {
        Fields numbers;
        if (status(kind_.name, readFields(kind_, fields, numbers)) != 0) return nullptr;
        return new Plugin(Layer(kind_, std::move(numbers)));
    });
}

nvinfer1::IPluginV2* Creator::deserializePlugin(nvinfer1::AsciiChar const*, void const* data, size_t size) noexcept {
    return guarded<nvinfer1::IPluginV2*>(kind_.name, "deserializePlugin", nullptr,
                                         [&] { return new Plugin(deserialise(kind_, data, size)); });
}

}  // namespace codetr

#endif  // CODETR_PLUGIN_V2
