// torch.ops.codetr.window_attention on CUDA, through PyTorch's stable ABI.
//
// Schema, shapes and types: builder/operators/window_attention.py and README.md in this folder.

#include "window_attn.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <initializer_list>
#include <optional>

// Declared by the header above only where CUDA headers of PyTorch are asked for.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void checkBeside(char const* name, Tensor const& tensor, Tensor const& qkv, std::initializer_list<int64_t> sizes) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == qkv.get_device_index(), codetr::kWindowOperatorName, ": ", name,
                    " must lie on the device of qkv");
    STD_TORCH_CHECK(tensor.scalar_type() == qkv.scalar_type(), codetr::kWindowOperatorName, ": ", name, " must have the type of qkv");
    bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
    for (int64_t axis = 0; fits && axis < tensor.dim(); ++axis) fits = tensor.size(axis) == sizes.begin()[axis];
    STD_TORCH_CHECK(fits, codetr::kWindowOperatorName, ": ", name, " does not fit qkv and window_size");
}

Tensor windowAttention(Tensor qkv, std::optional<Tensor> qkv_bias, Tensor bias_table, int64_t window_size, int64_t shift) {
    STD_TORCH_CHECK(qkv.dim() == 4, codetr::kWindowOperatorName, ": qkv must have 4 axes, got ", qkv.dim());
    STD_TORCH_CHECK(bias_table.dim() == 2, codetr::kWindowOperatorName, ": bias_table must have 2 axes, got ", bias_table.dim());
    int64_t const heads = bias_table.size(1);
    STD_TORCH_CHECK(qkv.size(3) == 3 * heads * codetr::kWindowHeadDim, codetr::kWindowOperatorName,
                    ": qkv must have 3 * 32 channels for each of ", heads, " heads, got ", qkv.size(3));
    checkBeside("bias_table", bias_table, qkv, {(2 * window_size - 1) * (2 * window_size - 1), heads});
    if (qkv_bias) checkBeside("qkv_bias", *qkv_bias, qkv, {qkv.size(3)});

    torch::stable::accelerator::DeviceGuard const guard(qkv.get_device_index());
    qkv = torch::stable::contiguous(qkv);
    bias_table = torch::stable::contiguous(bias_table);
    if (qkv_bias) qkv_bias = torch::stable::contiguous(*qkv_bias);
    Tensor output = torch::stable::new_empty(qkv, {qkv.size(0), qkv.size(1), qkv.size(2), heads * codetr::kWindowHeadDim});

    codetr::WindowAttn call{};
    call.type = qkv.scalar_type() == ScalarType::Half       ? codetr::ElementType::kFloat16
                : qkv.scalar_type() == ScalarType::BFloat16 ? codetr::ElementType::kBFloat16
                                                            : codetr::ElementType::kFloat32;
    call.qkv = qkv.const_data_ptr();
    call.qkv_bias = qkv_bias ? qkv_bias->const_data_ptr() : nullptr;
    call.bias_table = bias_table.const_data_ptr();
    call.output = output.mutable_data_ptr();
    call.batch = static_cast<int32_t>(qkv.size(0));
    call.height = static_cast<int32_t>(qkv.size(1));
    call.width = static_cast<int32_t>(qkv.size(2));
    call.heads = static_cast<int32_t>(heads);
    call.window = static_cast<int32_t>(window_size);
    call.shift = static_cast<int32_t>(shift);
    char const* const fault = codetr::findFault(call);
    STD_TORCH_CHECK(fault == nullptr, codetr::kWindowOperatorName, ": ", fault);

    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(qkv.get_device_index(), &stream) == AOTI_TORCH_SUCCESS, codetr::kWindowOperatorName,
                    ": the device of qkv has no current stream");
    cudaError_t const error = codetr::launchWindowAttn(call, static_cast<cudaStream_t>(stream));
    STD_TORCH_CHECK(error == cudaSuccess, codetr::kWindowOperatorName, ": the launch failed: ", cudaGetErrorString(error));
    return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(codetr, library) {
    if (std::getenv(codetr::kSchemaVariable) == nullptr) library.def(codetr::kWindowSchema);
}

STABLE_TORCH_LIBRARY_IMPL(codetr, CUDA, library) { library.impl(codetr::kWindowOperatorName, TORCH_BOX(&windowAttention)); }
