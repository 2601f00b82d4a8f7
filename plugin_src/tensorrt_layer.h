// What the plugin does whichever of TensorRT's plugin interfaces it is called through.
//
// Inputs, outputs and fields: README.md in this folder.
#pragma once

#include "interface.h"

#include <NvInferRuntime.h>

#include <cstdint>
#include <exception>
#include <string>
#include <vector>

namespace codetr {

// Errors go to TensorRT's logger, and to stderr where there is none yet.
void report(std::string const& message) noexcept;

// Prints a fault, if there is one, and turns it into TensorRT's status code.
int32_t status(std::string const& fault);

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

// Reads the creator's fields into `shapes`. Returns why they cannot be read, or an empty string.
std::string readFields(nvinfer1::PluginFieldCollection const* fields, std::vector<int32_t>& shapes);

// Why `shapes` are no levels' sizes, or an empty string.
std::string findShapesFault(std::vector<int32_t> const& shapes);

// A layer of deformable attention. Functions that return a string return what is wrong, or an empty string.
class Layer {
public:
    // `spatial_shapes` holds h0, w0, h1, w1, ... without a fault. `inputs` is 4, 5, or 0 where it is not known yet.
    explicit Layer(std::vector<int32_t> spatial_shapes, int32_t inputs = 0);

    std::vector<int32_t> const& spatialShapes() const { return spatial_shapes_; }
    int32_t inputs() const { return inputs_; }

    // Whether `tensor` may stand at `position` among inputs and outputs; `value` is the first of them.
    static bool supports(int32_t position, nvinfer1::PluginTensorDesc const& tensor, nvinfer1::PluginTensorDesc const& value,
                         int32_t inputs);
    std::string findFault(nvinfer1::PluginTensorDesc const* in, int32_t inputs) const;
    std::string findFault(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs) const;
    static std::string getOutputShape(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs& out,
                                      nvinfer1::IExprBuilder& builder);

    // `enqueue` works with the number of inputs set last; 0 stops it.
    void setInputs(int32_t inputs) { inputs_ = inputs; }
    std::string enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                        void const* const* inputs, void* const* outputs, cudaStream_t stream) const;

private:
    std::vector<int32_t> spatial_shapes_;
    int32_t inputs_;
};

}  // namespace codetr
