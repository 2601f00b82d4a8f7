#include "tensorrt_plugin.h"

#ifdef CODETR_PLUGIN_V3

#include <utility>

namespace codetr {

Plugin::Plugin(Layer layer) : layer_(std::move(layer)) {
    for (int32_t i = 0; i < layer_.kind().field_count; ++i) {
        auto const& numbers = layer_.fields()[i];
        fields_.emplace_back(layer_.kind().fields[i], numbers.data(), nvinfer1::PluginFieldType::kINT32,
                             static_cast<int32_t>(numbers.size()));
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>(name(), "clone", nullptr, [this] { return new Plugin(layer_); });
}

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs, nvinfer1::DynamicPluginTensorDesc const*,
                                int32_t) noexcept {
    return guarded<int32_t>(name(), "configurePlugin", -1, [&] { return status(name(), layer_.findFault(in, inputs)); });
}

bool Plugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                       int32_t outputs) noexcept {
    return guarded(name(), "supportsFormatCombination", false, [&] {
        if (tensors == nullptr || !layer_.findCountFault(inputs, outputs).empty() || position < 0 || position > inputs) return false;
        return layer_.supports(position, tensors[position].desc, tensors[0].desc, inputs);
    });
}

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, nvinfer1::DataType const* input_types,
                                   int32_t inputs) const noexcept {
    return guarded<int32_t>(name(), "getOutputDataTypes", -1, [&] {
        bool const any = output_types != nullptr && input_types != nullptr;
        int32_t const result = status(name(), layer_.findCountFault(any ? inputs : 0, outputs));
        if (result == 0) output_types[0] = input_types[0];
        return result;
    });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const*, int32_t,
                                nvinfer1::DimsExprs* out, int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept {
    return guarded<int32_t>(name(), "getOutputShapes", -1, [&] {
        std::string fault = layer_.findCountFault(inputs, out == nullptr ? 0 : outputs);
        if (fault.empty()) fault = layer_.getOutputShape(in, inputs, out[0], builder);
        return status(name(), fault);
    });
}

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs, nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
    return guarded<int32_t>(name(), "onShapeChange", -1, [&] {
        int32_t const result = status(name(), layer_.findFault(in, inputs));
        layer_.setInputs(result == 0 ? inputs : 0);
        return result;
    });
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                        void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
    return guarded<int32_t>(name(), "enqueue", -1,
                            [&] { return status(name(), layer_.enqueue(input_descs, output_descs, inputs, outputs, stream)); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept { return &collection_; }

Creator::Creator(PluginKind const& kind) noexcept : kind_(kind) {
    for (int32_t i = 0; i < kind.field_count; ++i) fields_[i] = {kind.fields[i], nullptr, nvinfer1::PluginFieldType::kINT32, 0};
    collection_ = {kind.field_count, fields_};
}

nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>(kind_.name, "createPlugin", nullptr, [&]() -> nvinfer1::IPluginV3* {
        Fields numbers;
        if (status(kind_.name, readFields(kind_, fields, numbers)) != 0) return nullptr;
        return new Plugin(Layer(kind_, std::move(numbers)));
    });
}

}  // namespace codetr

#endif  // CODETR_PLUGIN_V3
