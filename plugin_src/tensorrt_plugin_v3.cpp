#include "tensorrt_plugin.h"

#ifdef CODETR_PLUGIN_V3

#include <utility>

namespace codetr {

MsDeformAttnPlugin::MsDeformAttnPlugin(Layer layer) : layer_(std::move(layer)) {
    auto const& shapes = layer_.spatialShapes();
    field_ = {kSpatialShapesField, shapes.data(), nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(shapes.size())};
    fields_ = {1, &field_};
}

nvinfer1::IPluginCapability* MsDeformAttnPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* MsDeformAttnPlugin::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>("clone", nullptr, [this] { return new MsDeformAttnPlugin(layer_); });
}

int32_t MsDeformAttnPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                            nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
    return guarded<int32_t>("configurePlugin", -1, [&] { return status(layer_.findFault(in, inputs)); });
}

bool MsDeformAttnPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                                   int32_t outputs) noexcept {
    if (tensors == nullptr || outputs != 1 || inputs < kMinInputs || inputs > kMaxInputs) return false;
    if (position < 0 || position > inputs) return false;
    return Layer::supports(position, tensors[position].desc, tensors[0].desc, inputs);
}

int32_t MsDeformAttnPlugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, nvinfer1::DataType const* input_types,
                                               int32_t inputs) const noexcept {
    return guarded<int32_t>("getOutputDataTypes", -1, [&] {
        if (output_types == nullptr || input_types == nullptr || outputs != 1 || inputs < kMinInputs || inputs > kMaxInputs) {
            return status("needs 4 or 5 inputs and 1 output");
        }
        output_types[0] = input_types[0];
        return 0;
    });
}

int32_t MsDeformAttnPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const*, int32_t,
                                            nvinfer1::DimsExprs* out, int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept {
    return guarded<int32_t>("getOutputShapes", -1, [&] {
        if (out == nullptr || outputs != 1) return status("needs 4 or 5 inputs and 1 output");
        return status(Layer::getOutputShape(in, inputs, out[0], builder));
    });
}

int32_t MsDeformAttnPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs, nvinfer1::PluginTensorDesc const*,
                                          int32_t) noexcept {
    return guarded<int32_t>("onShapeChange", -1, [&] {
        int32_t const result = status(layer_.findFault(in, inputs));
        layer_.setInputs(result == 0 ? inputs : 0);
        return result;
    });
}

int32_t MsDeformAttnPlugin::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                                    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
    return guarded<int32_t>("enqueue", -1, [&] { return status(layer_.enqueue(input_descs, output_descs, inputs, outputs, stream)); });
}

nvinfer1::IPluginV3* MsDeformAttnPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* MsDeformAttnPlugin::getFieldsToSerialize() noexcept { return &fields_; }

MsDeformAttnCreator::MsDeformAttnCreator() {
    field_ = {kSpatialShapesField, nullptr, nvinfer1::PluginFieldType::kINT32, 0};
    fields_ = {1, &field_};
}

nvinfer1::IPluginV3* MsDeformAttnCreator::createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields,
                                                       nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>("createPlugin", nullptr, [&]() -> nvinfer1::IPluginV3* {
        std::vector<int32_t> shapes;
        if (status(readFields(fields, shapes)) != 0) return nullptr;
        return new MsDeformAttnPlugin(Layer(std::move(shapes)));
    });
}

}  // namespace codetr

#endif  // CODETR_PLUGIN_V3
