#include "tensorrt_plugin.h"

#include "ms_deform_attn.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>

namespace codetr {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

enum Input : int32_t { kValue, kReferencePoints, kSamplingOffsets, kAttentionLogits, kValidShapes };
constexpr int32_t kMinInputs = 4;
constexpr int32_t kMaxInputs = 5;

// Errors go to TensorRT's logger, and to stderr where there is none yet.
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

// Runs `body`, which returns a T or throws; an exception becomes a message and `failed`.
template <typename T, typename Body>
T guarded(char const* where, T failed, Body body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        try {
            report(std::string(where) + ": " + error.what());
        } catch (...) {
            report("out of memory");
        }
    } catch (...) {
        report(where);
    }
    return failed;
}

bool isValueType(DataType type) {
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

ElementType elementType(DataType type) {
    return type == DataType::kHALF ? ElementType::kFloat16
         : type == DataType::kBF16 ? ElementType::kBFloat16
                                   : ElementType::kFloat32;
}

char const* inputName(int32_t input) {
    static char const* const kNames[] = {"value", "reference_points", "sampling_offsets", "attention_logits", "valid_shapes"};
    return kNames[input];
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

// Why these inputs do not belong together, or an empty string. `dims` and `types` have `count` entries.
std::string findInputFault(std::vector<Dims> const& dims, std::vector<DataType> const& types, std::vector<int32_t> const& shapes) {
    auto const count = static_cast<int32_t>(dims.size());
    if (count != kMinInputs && count != kMaxInputs) {
        return "needs 4 inputs, or 5 with valid_shapes, and got " + std::to_string(count);
    }
    for (int32_t i = 0; i < count; ++i) {
        bool const right = i == kValue             ? isValueType(types[i])
                         : i == kReferencePoints   ? types[i] == DataType::kFLOAT
                         : i == kValidShapes       ? types[i] == DataType::kINT32
                                                   : types[i] == types[kValue];
        if (!right) {
            return std::string(inputName(i)) + " has type " + std::to_string(static_cast<int32_t>(types[i])) +
                   "; value must be FP32, FP16 or BF16, sampling_offsets and attention_logits as value, "
                   "reference_points FP32, valid_shapes INT32";
        }
    }
    auto const at = [&dims](int32_t input, int32_t axis) -> int64_t {
        return axis < dims[input].nbDims ? static_cast<int64_t>(dims[input].d[axis]) : -1;
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
        if (fits(dims[i], expected[i])) continue;
        Dims wanted{};
        wanted.nbDims = static_cast<int32_t>(expected[i].size());
        for (int32_t axis = 0; axis < wanted.nbDims; ++axis) wanted.d[axis] = expected[i][axis];
        return std::string(inputName(i)) + " has shape " + describe(dims[i]) + ", expected " + describe(wanted) + " (-1: any size)";
    }
    int64_t const reference_dim = at(kReferencePoints, 3), dim = at(kValue, 3);
    if (reference_dim >= 0 && reference_dim != 2 && reference_dim != 4) {
        return "reference_points must end in 2 (x, y) or 4 (cx, cy, w, h), got " + std::to_string(reference_dim);
    }
    if (dim >= 0 && (dim < 4 || dim % 4 != 0)) {
        return "the channels of a head must be a positive multiple of 4, got " + std::to_string(dim);
    }
    return {};
}

template <typename Desc, typename GetDesc>
std::string findDescFault(Desc const* in, int32_t inputs, std::vector<int32_t> const& shapes, GetDesc get) {
    if (in == nullptr) return "the input descriptions are missing";
    std::vector<Dims> dims;
    std::vector<DataType> types;
    for (int32_t i = 0; i < inputs; ++i) {
        dims.push_back(get(in[i]).dims);
        types.push_back(get(in[i]).type);
    }
    return findInputFault(dims, types, shapes);
}

std::string findShapesFault(std::vector<int32_t> const& shapes) {
    if (shapes.empty() || shapes.size() % 2 != 0 || shapes.size() / 2 > kMaxLevels) {
        return "field spatial_shapes must hold h and w of 1 to 8 levels, got " + std::to_string(shapes.size()) + " numbers";
    }
    for (int32_t const side : shapes) {
        if (side < 1 || side > (1 << 20)) return "field spatial_shapes must hold 1 to 2^20, got " + std::to_string(side);
    }
    return {};
}

// Prints a fault, if there is one, and turns it into TensorRT's status code.
int32_t status(std::string const& fault) {
    if (fault.empty()) return 0;
    report(fault);
    return -1;
}

}  // namespace

MsDeformAttnPlugin::MsDeformAttnPlugin(std::vector<int32_t> spatial_shapes) : spatial_shapes_(std::move(spatial_shapes)) {
    field_ = {kSpatialShapesField, spatial_shapes_.data(), nvinfer1::PluginFieldType::kINT32,
              static_cast<int32_t>(spatial_shapes_.size())};
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
    return guarded<nvinfer1::IPluginV3*>("clone", nullptr, [this] {
        auto* const copy = new MsDeformAttnPlugin(spatial_shapes_);
        copy->input_count_ = input_count_;
        return copy;
    });
}

int32_t MsDeformAttnPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                                            nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
    return guarded<int32_t>("configurePlugin", -1, [&] {
        return status(findDescFault(in, inputs, spatial_shapes_, [](auto const& dynamic) { return dynamic.desc; }));
    });
}

bool MsDeformAttnPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                                   int32_t inputs, int32_t outputs) noexcept {
    if (tensors == nullptr || outputs != 1 || (inputs != kMinInputs && inputs != kMaxInputs)) return false;
    if (position < 0 || position > inputs) return false;
    auto const& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (position == kValue) return isValueType(tensor.type);
    if (position == kReferencePoints) return tensor.type == DataType::kFLOAT;
    if (position == kValidShapes && inputs == kMaxInputs) return tensor.type == DataType::kINT32;
    return tensor.type == tensors[kValue].desc.type;
}

int32_t MsDeformAttnPlugin::getOutputDataTypes(DataType* output_types, int32_t outputs, DataType const* input_types,
                                               int32_t inputs) const noexcept {
    return guarded<int32_t>("getOutputDataTypes", -1, [&] {
        if (output_types == nullptr || input_types == nullptr || outputs != 1 || inputs < kMinInputs || inputs > kMaxInputs) {
            return status("needs 4 or 5 inputs and 1 output");
        }
        output_types[0] = input_types[kValue];
        return 0;
    });
}

int32_t MsDeformAttnPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const*, int32_t,
                                            nvinfer1::DimsExprs* out, int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept {
    return guarded<int32_t>("getOutputShapes", -1, [&] {
        if (in == nullptr || out == nullptr || outputs != 1 || inputs < kMinInputs || inputs > kMaxInputs) {
            return status("needs 4 or 5 inputs and 1 output");
        }
        if (in[kValue].nbDims != 4 || in[kSamplingOffsets].nbDims != 6) {
            return status("value must have 4 axes and sampling_offsets 6, got " + std::to_string(in[kValue].nbDims) + " and " +
                          std::to_string(in[kSamplingOffsets].nbDims));
        }
        auto const* const channels = builder.operation(nvinfer1::DimensionOperation::kPROD, *in[kValue].d[2], *in[kValue].d[3]);
        if (channels == nullptr) return status("the output's channels cannot be expressed");
        out[0].nbDims = 3;
        out[0].d[0] = in[kValue].d[0];
        out[0].d[1] = in[kSamplingOffsets].d[1];
        out[0].d[2] = channels;
        return 0;
    });
}

int32_t MsDeformAttnPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                                          nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
    return guarded<int32_t>("onShapeChange", -1, [&] {
        int32_t const result = status(findDescFault(in, inputs, spatial_shapes_, [](auto const& desc) { return desc; }));
        input_count_ = result == 0 ? inputs : 0;
        return result;
    });
}

int32_t MsDeformAttnPlugin::enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                                    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept {
    return guarded<int32_t>("enqueue", -1, [&] {
        if (!input_descs || !output_descs || !inputs || !outputs) return status("enqueue got a null pointer");
        if (stream == nullptr) return status("enqueue got a null stream");
        if (input_count_ == 0) return status("enqueue was called before a successful onShapeChange");
        auto const& value = input_descs[kValue].dims;
        auto const& offsets = input_descs[kSamplingOffsets].dims;
        if (value.nbDims != 4 || offsets.nbDims != 6 || input_descs[kReferencePoints].dims.nbDims != 4) {
            return status("enqueue got other shapes than onShapeChange");
        }
        if (!isValueType(input_descs[kValue].type)) return status("value must be FP32, FP16 or BF16");
        MsDeformAttn call{};
        call.type = elementType(input_descs[kValue].type);
        call.value = inputs[kValue];
        call.reference_points = static_cast<float const*>(inputs[kReferencePoints]);
        call.sampling_offsets = inputs[kSamplingOffsets];
        call.attention_logits = inputs[kAttentionLogits];
        call.valid_shapes = input_count_ == kMaxInputs ? static_cast<int32_t const*>(inputs[kValidShapes]) : nullptr;
        call.output = outputs[0];
        call.batch = static_cast<int32_t>(value.d[0]);
        call.queries = static_cast<int32_t>(offsets.d[1]);
        call.heads = static_cast<int32_t>(value.d[2]);
        call.dim = static_cast<int32_t>(value.d[3]);
        call.levels = levels();
        call.points = static_cast<int32_t>(offsets.d[4]);
        call.reference_dim = static_cast<int32_t>(input_descs[kReferencePoints].dims.d[3]);
        call.spatial_shapes = spatial_shapes_.data();
        if (char const* const fault = findFault(call)) return status(fault);
        if (input_count_ == kMaxInputs && call.valid_shapes == nullptr) return status("valid_shapes is a null pointer");
        cudaError_t const error = launchMsDeformAttn(call, stream);
        return error == cudaSuccess ? 0 : status(std::string("the launch failed: ") + cudaGetErrorString(error));
    });
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
        if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr)) {
            report("the field collection is missing");
            return nullptr;
        }
        std::vector<int32_t> shapes;
        bool found = false;
        for (int32_t i = 0; i < fields->nbFields; ++i) {
            auto const& field = fields->fields[i];
            if (field.name == nullptr || std::strcmp(field.name, kSpatialShapesField) != 0) {
                report(std::string("unknown field ") + (field.name ? field.name : "without a name") + "; the only one is spatial_shapes");
                return nullptr;
            }
            if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length < 0 || (field.length > 0 && field.data == nullptr)) {
                report("field spatial_shapes must be a list of INT32");
                return nullptr;
            }
            auto const* const numbers = static_cast<int32_t const*>(field.data);
            shapes.assign(numbers, numbers + field.length);
            found = true;
        }
        if (!found) {
            report("field spatial_shapes is missing: h and w of each level as INT32");
            return nullptr;
        }
        if (status(findShapesFault(shapes)) != 0) return nullptr;
        return new MsDeformAttnPlugin(std::move(shapes));
    });
}

namespace {

// Registers the creator when the library is loaded, and takes it back when it is unloaded.
class Registration {
public:
    Registration() noexcept {
        if (auto* const registry = getPluginRegistry()) registered_ = registry->registerCreator(creator_, kPluginNamespace);
    }
    ~Registration() noexcept { takeBack(); }
    Registration(Registration const&) = delete;
    Registration& operator=(Registration const&) = delete;

    // Gives the creator to a registry that will register it itself.
    nvinfer1::IPluginCreatorInterface* handOver() noexcept {
        takeBack();
        return &creator_;
    }

private:
    void takeBack() noexcept {
        if (!registered_) return;
        if (auto* const registry = getPluginRegistry()) registry->deregisterCreator(creator_);
        registered_ = false;
    }

    MsDeformAttnCreator creator_;
    bool registered_ = false;
};

Registration registration;

}  // namespace
}  // namespace codetr

// IPluginRegistry::loadLibrary opens the library, which has then registered its creator, asks for its creators, and
// fails if one of them is registered already.
extern "C" __attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static nvinfer1::IPluginCreatorInterface* creators[1];
    creators[0] = codetr::registration.handOver();
    count = 1;
    return creators;
}

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {
    // Messages go to TensorRT's global logger.
}
