// One product of E4M3 matrices that ends in E4M3, and why it may be refused. Plain C++.
//
// Formula, shapes and types: README.md in this folder.
#pragma once

#include "call.h"

namespace codetr {

constexpr char const* kLinearOperatorName = "linear_e4m3";
constexpr char const* kLinearSchema =
    "linear_e4m3(Tensor x, Tensor weight, Tensor bias, Tensor x_scale, Tensor weight_scale, Tensor factor, int activation) -> Tensor";
constexpr int64_t kLinearMultiple = 16;  // of channels in and out: bytes of a row, which cuBLASLt's FP8 kernels want so
constexpr int64_t kMaxLinearSide = (int64_t{1} << 31) - 1;

// Numbers of the schema's `activation`.
enum class Activation : int64_t { kNone, kRelu, kGelu };

// One call; all tensors are contiguous and on the device.
struct LinearE4m3 {
    ElementType bias_type;
    void const* x;         // E4M3 [rows, in]
    void const* weight;    // E4M3 [out, in]
    void const* bias;      // [out]
    float const* x_scale;  // one number each
    float const* weight_scale;
    float const* factor;  // what the output is multiplied by before it is rounded
    void* output;         // E4M3 [rows, out]
    int64_t rows;
    int64_t in;
    int64_t out;
    Activation activation;
};

// Why `call` cannot run, or null if it can. Looks at sizes and pointers, never at the device.
inline char const* findFault(LinearE4m3 const& call) {
    if (call.bias_type != ElementType::kFloat16 && call.bias_type != ElementType::kBFloat16) return "bias must be float16 or bfloat16";
    if (call.activation < Activation::kNone || call.activation > Activation::kGelu)
        return "activation must be 0 (none), 1 (ReLU) or 2 (GELU)";
    if (call.in < kLinearMultiple || call.out < kLinearMultiple || call.in % kLinearMultiple != 0 || call.out % kLinearMultiple != 0)
        return "channels in and out must be positive multiples of 16";
    if (call.rows < 0) return "rows must not be negative";
    if (call.rows > kMaxLinearSide || call.in > kMaxLinearSide || call.out > kMaxLinearSide) return "a matrix is too large";
    if (call.rows == 0) return nullptr;
    if (!call.x || !call.weight || !call.bias || !call.x_scale || !call.weight_scale || !call.factor || !call.output)
        return "a tensor is a null pointer";
    if (!aligned(call.x, 16) || !aligned(call.weight, 16) || !aligned(call.bias, 16) || !aligned(call.output, 16))
        return "x, weight, bias and output must be aligned to 16 bytes";
    return nullptr;
}

}  // namespace codetr
