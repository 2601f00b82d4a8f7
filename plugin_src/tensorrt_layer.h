// What the plugins do whichever of TensorRT's plugin interfaces they are called through.
//
// Inputs, outputs and fields: README.md in this folder.
#pragma once

#include "call.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace codetr {

// Errors of a plugin go to TensorRT's logger, and to stderr where there is none yet.
void report(char const* plugin, std::string const& message) noexcept;

// Prints a fault, if there is one, and turns it into TensorRT's status code.
int32_t status(char const* plugin, std::string const& fault);

// Runs `body`, which returns a T or throws; an exception becomes a message and `failed`.
template <typename T, typename Body>
T guarded(char const* plugin, char const* where, T failed, Body body) noexcept {
    try {
        return body();
    } catch (std::exception const& error) {
        try {
            report(plugin, std::string(where) + ": " + error.what());
        } catch (...) {
            report(plugin, "out of memory");
        }
    } catch (...) {
        report(plugin, where);
    }
    return failed;
}

// The numbers of each of a plugin's fields, in the plugin's order.
using Fields = std::vector<std::vector<int32_t>>;

// The arguments of TensorRT's enqueue. The arrays are not null; tensors may be, and shapes may be others than were told.
struct Enqueued {
    nvinfer1::PluginTensorDesc const* in;
    int32_t count;  // of inputs
    void const* const* inputs;
    void* output;
    cudaStream_t stream;
};

constexpr int32_t kMaxFields = 2;  // of a plugin

// What tells the library's plugins apart. Functions that return a string return what is wrong, or an empty string.
struct PluginKind {
    char const* name;
    char const* const* fields;  // their names; each is a list of INT32
    int32_t field_count;
    char const* const* input_names;
    char const* wanted;              // the number of inputs, in words
    int32_t min_inputs, max_inputs;  // they differ by one: the last may be missing
    std::string (*findFieldFault)(Fields const& fields);
    // Whether `type` may stand at `position` among inputs and output; `first` is that of the first input.
    bool (*isRightType)(int32_t position, int32_t inputs, nvinfer1::DataType type, nvinfer1::DataType first);
    char const* types;  // that are right, in words
    // The shapes of the inputs, as long as a plugin may have them; -1 is any size.
    std::vector<std::vector<int64_t>> (*expectedShapes)(nvinfer1::PluginTensorDesc const* in, Fields const& fields);
    // What else is wrong with inputs of these shapes.
    std::string (*findSizeFault)(nvinfer1::PluginTensorDesc const* in);
    std::string (*getOutputShape)(nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs& out, nvinfer1::IExprBuilder& builder);
    std::string (*launch)(Enqueued const& arguments, Fields const& fields);
};

extern PluginKind const kMsDeformAttnPlugin;
extern PluginKind const kWindowAttnPlugin;

// Reads a creator's fields into `fields`. Returns why they cannot be read, or an empty string.
std::string readFields(PluginKind const& kind, nvinfer1::PluginFieldCollection const* given, Fields& fields);

// A layer of one of the plugins. Functions that return a string return what is wrong, or an empty string.
class Layer {
public:
    // `fields` are without a fault. `inputs` is a number that the plugin takes, or 0 where it is not known yet.
    Layer(PluginKind const& kind, Fields fields, int32_t inputs = 0) : kind_(&kind), fields_(std::move(fields)), inputs_(inputs) {}

    PluginKind const& kind() const { return *kind_; }
    Fields const& fields() const { return fields_; }
    int32_t inputs() const { return inputs_; }

    std::string findCountFault(int32_t inputs, int32_t outputs) const;
    // Whether `tensor` may stand at `position` among inputs and output; `first` is the first input.
    bool supports(int32_t position, nvinfer1::PluginTensorDesc const& tensor, nvinfer1::PluginTensorDesc const& first,
                  int32_t inputs) const;
    std::string findFault(nvinfer1::PluginTensorDesc const* in, int32_t inputs) const;
    std::string findFault(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs) const;
    std::string getOutputShape(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs& out,
                               nvinfer1::IExprBuilder& builder) const;

    // `enqueue` works with the number of inputs set last; 0 stops it.
    void setInputs(int32_t inputs) { inputs_ = inputs; }
    std::string enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                        void const* const* inputs, void* const* outputs, cudaStream_t stream) const;

private:
    PluginKind const* kind_;
    Fields fields_;
    int32_t inputs_;
};

// ---- What the plugins' own files share ----

#if NV_TENSORRT_MAJOR >= 9
inline bool isBfloat16(nvinfer1::DataType type) { return type == nvinfer1::DataType::kBF16; }
#else
inline bool isBfloat16(nvinfer1::DataType) { return false; }
#endif

ElementType elementType(nvinfer1::DataType type);

// The size of an input's axis; -1 where it is not known, or where there is no such axis.
int64_t sizeOf(nvinfer1::PluginTensorDesc const* in, int32_t input, int32_t axis);

// What a launcher returned, in words; empty if it started.
std::string explainLaunch(cudaError_t error);

}  // namespace codetr
