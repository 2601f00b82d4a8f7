// A plugin as TensorRT sees it, under one name for both of TensorRT's plugin interfaces.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

extern "C" nvinfer1::IPluginRegistry* getPluginRegistry() noexcept;

using Tensors = std::vector<nvinfer1::PluginTensorDesc>;
using Fields = std::vector<nvinfer1::PluginField>;
using Size = std::remove_reference_t<decltype(nvinfer1::Dims{}.d[0])>;

inline std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic(Tensors const& tensors) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> out;
    for (auto const& desc : tensors) {
        nvinfer1::DynamicPluginTensorDesc each{};
        each.desc = desc;
        each.min = each.max = desc.dims;
        out.push_back(each);
    }
    return out;
}

#if NV_TENSORRT_MAJOR >= 10

using Creator = nvinfer1::IPluginCreatorV3One;

inline Creator* creator(char const* name) { return static_cast<Creator*>(getPluginRegistry()->getCreator(name, "1", "")); }

class Plugin {
public:
    explicit Plugin(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {}
    Plugin(char const* name, nvinfer1::PluginFieldCollection const* fields)
        : Plugin(create(name, fields, nvinfer1::TensorRTPhase::kBUILD)) {}
    explicit operator bool() const { return plugin_ != nullptr; }

    std::string name() const { return core()->getPluginName(); }
    std::string version() const { return core()->getPluginVersion(); }
    std::string nameSpace() const { return core()->getPluginNamespace(); }
    int32_t outputs() const { return build()->getNbOutputs(); }
    bool supports(int32_t position, Tensors const& tensors, int32_t inputs) const {
        return build()->supportsFormatCombination(position, dynamic(tensors).data(), inputs, 1);
    }
    bool outputShape(std::vector<nvinfer1::DimsExprs> const& in, nvinfer1::DimsExprs& out, nvinfer1::IExprBuilder& builder) const {
        return build()->getOutputShapes(in.data(), static_cast<int32_t>(in.size()), nullptr, 0, &out, 1, builder) == 0;
    }
    bool outputType(std::vector<nvinfer1::DataType> const& in, nvinfer1::DataType& out) const {
        return build()->getOutputDataTypes(&out, 1, in.data(), static_cast<int32_t>(in.size())) == 0;
    }
    bool configure(Tensors const& in) const {
        return build()->configurePlugin(dynamic(in).data(), static_cast<int32_t>(in.size()), nullptr, 1) == 0;
    }
    bool changeShapes(Tensors const& in) const {
        return runtime()->onShapeChange(in.data(), static_cast<int32_t>(in.size()), nullptr, 1) == 0;
    }
    bool changeShapesToNothing() const { return runtime()->onShapeChange(nullptr, 3, nullptr, 1) == 0; }
    bool enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out, void const* const* inputs,
                 void* const* outputs, cudaStream_t stream) const {
        return runtime()->enqueue(in, out, inputs, outputs, nullptr, stream) == 0;
    }

    // The numbers of a field that a plan keeps; empty without such a field.
    std::vector<int32_t> field(char const* name) const {
        auto const* const fields = runtime()->getFieldsToSerialize();
        for (int32_t i = 0; i < fields->nbFields; ++i) {
            auto const* const numbers = static_cast<int32_t const*>(fields->fields[i].data);
            if (std::strcmp(fields->fields[i].name, name) == 0) return {numbers, numbers + fields->fields[i].length};
        }
        return {};
    }
    Plugin copy() const { return Plugin(plugin_->clone()); }
    Plugin forContext() const { return Plugin(runtime()->attachToContext(nullptr)); }
    Plugin fromPlan() const {
        return Plugin(create(core()->getPluginName(), runtime()->getFieldsToSerialize(), nvinfer1::TensorRTPhase::kRUNTIME));
    }

private:
    static nvinfer1::IPluginV3* create(char const* name, nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase phase) {
        return creator(name) ? creator(name)->createPlugin("layer", fields, phase) : nullptr;
    }
    template <typename Capability>
    Capability* as(nvinfer1::PluginCapabilityType type) const {
        return static_cast<Capability*>(plugin_->getCapabilityInterface(type));
    }
    nvinfer1::IPluginV3OneCore* core() const { return as<nvinfer1::IPluginV3OneCore>(nvinfer1::PluginCapabilityType::kCORE); }
    nvinfer1::IPluginV3OneBuild* build() const { return as<nvinfer1::IPluginV3OneBuild>(nvinfer1::PluginCapabilityType::kBUILD); }
    nvinfer1::IPluginV3OneRuntime* runtime() const { return as<nvinfer1::IPluginV3OneRuntime>(nvinfer1::PluginCapabilityType::kRUNTIME); }

    std::unique_ptr<nvinfer1::IPluginV3> plugin_;
};

#else

using Creator = nvinfer1::IPluginCreator;

inline Creator* creator(char const* name) { return getPluginRegistry()->getPluginCreator(name, "1", ""); }

class Plugin {
public:
    explicit Plugin(nvinfer1::IPluginV2* plugin) : plugin_(static_cast<nvinfer1::IPluginV2DynamicExt*>(plugin)) {}
    Plugin(char const* name, nvinfer1::PluginFieldCollection const* fields)
        : Plugin(creator(name) ? creator(name)->createPlugin("layer", fields) : nullptr) {}
    explicit operator bool() const { return plugin_ != nullptr; }

    std::string name() const { return plugin_->getPluginType(); }
    std::string version() const { return plugin_->getPluginVersion(); }
    std::string nameSpace() const { return plugin_->getPluginNamespace(); }
    int32_t outputs() const { return plugin_->getNbOutputs(); }
    bool supports(int32_t position, Tensors const& tensors, int32_t inputs) const {
        return plugin_->supportsFormatCombination(position, tensors.data(), inputs, 1);
    }
    bool outputShape(std::vector<nvinfer1::DimsExprs> const& in, nvinfer1::DimsExprs& out, nvinfer1::IExprBuilder& builder) const {
        out = plugin_->getOutputDimensions(0, in.data(), static_cast<int32_t>(in.size()), builder);
        return out.nbDims >= 0;
    }
    bool outputType(std::vector<nvinfer1::DataType> const& in, nvinfer1::DataType& out) const {
        out = plugin_->getOutputDataType(0, in.data(), static_cast<int32_t>(in.size()));
        return true;  // this interface has no way to refuse
    }
    // configurePlugin returns nothing: the number of inputs, last among the serialised bytes, is 0 where it refused.
    bool configure(Tensors const& in) const {
        plugin_->configurePlugin(dynamic(in).data(), static_cast<int32_t>(in.size()), nullptr, 1);
        return inputsOf(serialised()) == static_cast<int32_t>(in.size());
    }
    bool changeShapes(Tensors const& in) const { return configure(in); }
    bool changeShapesToNothing() const {
        plugin_->configurePlugin(nullptr, 3, nullptr, 1);
        return inputsOf(serialised()) != 0;
    }
    bool enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out, void const* const* inputs,
                 void* const* outputs, cudaStream_t stream) const {
        return plugin_->enqueue(in, out, inputs, outputs, nullptr, stream) == 0;
    }

    // The numbers of a field that a plan keeps; empty without such a field.
    std::vector<int32_t> field(char const* name) const {
        std::string const bytes = serialised();
        for (size_t at = 0; at < bytes.size();) {
            std::string const found(bytes.c_str() + at);
            int32_t count = 0;
            std::memcpy(&count, bytes.data() + at + found.size() + 1, sizeof(count));
            std::vector<int32_t> numbers(count);
            size_t const start = at + found.size() + 1 + sizeof(count);
            std::memcpy(numbers.data(), bytes.data() + start, count * sizeof(int32_t));
            if (found == name) return numbers;
            at = start + count * sizeof(int32_t);
        }
        return {};
    }
    std::string serialised() const {
        std::string bytes(plugin_->getSerializationSize(), '\0');
        plugin_->serialize(&bytes[0]);
        return bytes;
    }
    static Plugin fromBytes(char const* name, std::string const& bytes) {
        return Plugin(creator(name)->deserializePlugin("layer", bytes.data(), bytes.size()));
    }
    static int32_t inputsOf(std::string const& bytes) {
        int32_t inputs = 0;
        std::memcpy(&inputs, bytes.data() + bytes.size() - sizeof(inputs), sizeof(inputs));
        return inputs;
    }
    Plugin copy() const { return Plugin(plugin_->clone()); }
    Plugin forContext() const { return copy(); }
    Plugin fromPlan() const { return fromBytes(plugin_->getPluginType(), serialised()); }

private:
    struct Destroy {
        void operator()(nvinfer1::IPluginV2DynamicExt* plugin) const { plugin->destroy(); }
    };
    std::unique_ptr<nvinfer1::IPluginV2DynamicExt, Destroy> plugin_;
};

#endif
