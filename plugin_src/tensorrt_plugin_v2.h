// The plugins for TensorRT 8 and 9: IPluginV2DynamicExt and its creator.
#pragma once

#include "tensorrt_layer.h"

namespace codetr {

class Plugin : public nvinfer1::IPluginV2DynamicExt {
public:
    explicit Plugin(Layer layer);

    nvinfer1::IPluginV2DynamicExt* clone() const noexcept override;
    void destroy() noexcept override { delete this; }

    nvinfer1::AsciiChar const* getPluginType() const noexcept override { return name(); }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    void setPluginNamespace(nvinfer1::AsciiChar const*) noexcept override {}  // it is always the same

    int32_t getNbOutputs() const noexcept override { return 1; }
    nvinfer1::DataType getOutputDataType(int32_t index, nvinfer1::DataType const* input_types, int32_t inputs) const noexcept override;
    nvinfer1::DimsExprs getOutputDimensions(int32_t index, nvinfer1::DimsExprs const* in, int32_t inputs,
                                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::PluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override;
    // Called while building, with -1 for what is not known, and before running; it cannot fail, so `enqueue` does.
    void configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs, nvinfer1::DynamicPluginTensorDesc const* out,
                         int32_t outputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::PluginTensorDesc const*, int32_t, nvinfer1::PluginTensorDesc const*,
                            int32_t) const noexcept override {
        return 0;
    }

    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    size_t getSerializationSize() const noexcept override { return serialised_.size(); }
    void serialize(void* buffer) const noexcept override;

private:
    char const* name() const { return layer_.kind().name; }

    Layer layer_;
    std::vector<char> serialised_;
};

class Creator : public nvinfer1::IPluginCreator {
public:
    explicit Creator(PluginKind const& kind) noexcept;

    nvinfer1::IPluginV2* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields) noexcept override;
    nvinfer1::IPluginV2* deserializePlugin(nvinfer1::AsciiChar const* name, void const* data, size_t size) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kind_.name; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kPluginVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kPluginNamespace; }
    void setPluginNamespace(nvinfer1::AsciiChar const*) noexcept override {}  // it is always the same

private:
    PluginKind const& kind_;
    nvinfer1::PluginField fields_[kMaxFields]{};
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace codetr
