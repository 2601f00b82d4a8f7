// torch.ops.codetr.linear_e4m3 on CUDA, through PyTorch's stable ABI.
//
// Schema, shapes and types: builder/operators/linear_e4m3.py and README.md in this folder.

#include "linear_e4m3.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>

// Declared by the header above only where CUDA headers of PyTorch are asked for.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kFirstCapability = 89;  // of GPUs that multiply E4M3 numbers

void expect(bool fits, char const* name, char const* words) { STD_TORCH_CHECK(fits, codetr::kLinearOperatorName, ": ", name, " ", words); }

void checkBeside(char const* name, Tensor const& tensor, Tensor const& x) {
    expect(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), name, "must lie on the device of x");
}

void checkNumber(char const* name, Tensor const& tensor, Tensor const& x) {
    checkBeside(name, tensor, x);
    expect(tensor.scalar_type() == ScalarType::Float && tensor.numel() == 1, name, "must be one float32 number");
}

void checkMatrix(char const* name, Tensor const& tensor) {
    expect(tensor.scalar_type() == ScalarType::Float8_e4m3fn && tensor.dim() == 2, name, "must be a float8_e4m3fn matrix");
}

void checkCapability(int32_t device) {
    int major = 0, minor = 0;
    bool const known = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
    STD_TORCH_CHECK(known && 10 * major + minor >= kFirstCapability, codetr::kLinearOperatorName,
                    ": needs a GPU of compute capability 8.9 or later, this one has ", major, ".", minor);
}

Tensor linearE4m3(Tensor x, Tensor weight, Tensor bias, Tensor x_scale, Tensor weight_scale, Tensor factor, int64_t activation) {
    checkMatrix("x", x);
    checkMatrix("weight", weight);
    checkBeside("weight", weight, x);
    checkBeside("bias", bias, x);
    checkNumber("x_scale", x_scale, x);
    checkNumber("weight_scale", weight_scale, x);
    checkNumber("factor", factor, x);
    int64_t const rows = x.size(0), in = x.size(1), out = weight.size(0);
    expect(weight.size(1) == in, "weight", "must have as many columns as x");
    expect(bias.dim() == 1 && bias.size(0) == out, "bias", "must have one number for each row of weight");

    int32_t const device = x.get_device_index();
    torch::stable::accelerator::DeviceGuard const guard(device);
    x = torch::stable::contiguous(x);
    weight = torch::stable::contiguous(weight);
    bias = torch::stable::contiguous(bias);
    Tensor output = torch::stable::new_empty(x, {rows, out});

    codetr::LinearE4m3 call{};
    call.bias_type = bias.scalar_type() == ScalarType::Half       ? codetr::ElementType::kFloat16
                     : bias.scalar_type() == ScalarType::BFloat16 ? codetr::ElementType::kBFloat16
                                                                  : codetr::ElementType::kFloat32;
    call.x = x.const_data_ptr();
    call.weight = weight.const_data_ptr();
    call.bias = bias.const_data_ptr();
    call.x_scale = static_cast<float const*>(x_scale.const_data_ptr());
    call.weight_scale = static_cast<float const*>(weight_scale.const_data_ptr());
    call.factor = static_cast<float const*>(factor.const_data_ptr());
    call.output = output.mutable_data_ptr();
    call.rows = rows;
    call.in = in;
    call.out = out;
    call.activation = static_cast<codetr::Activation>(activation);
    char const* const refused = codetr::findFault(call);
    STD_TORCH_CHECK(refused == nullptr, codetr::kLinearOperatorName, ": ", refused);
    if (rows == 0) return output;
    checkCapability(device);

    codetr::LinearPlan plan{};
    std::string fault = codetr::planLinearE4m3(call, device, plan);
    STD_TORCH_CHECK(fault.empty(), codetr::kLinearOperatorName, ": ", fault);
    // PyTorch's allocator keeps it for whatever comes next on this stream, in a captured graph too.
    Tensor workspace = torch::stable::new_empty(x, {static_cast<int64_t>(plan.workspace)}, ScalarType::Byte);
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS, codetr::kLinearOperatorName,
                    ": the device of x has no current stream");
    fault = codetr::launchLinearE4m3(call, plan, workspace.mutable_data_ptr(), static_cast<cudaStream_t>(stream));
    STD_TORCH_CHECK(fault.empty(), codetr::kLinearOperatorName, ": ", fault);
    return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(codetr, library) {
    if (std::getenv(codetr::kSchemaVariable) == nullptr) library.def(codetr::kLinearSchema);
}

STABLE_TORCH_LIBRARY_IMPL(codetr, CUDA, library) { library.impl(codetr::kLinearOperatorName, TORCH_BOX(&linearE4m3)); }
