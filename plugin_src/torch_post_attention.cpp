// torch.ops.codetr.post_attention and post_attention_followed on CUDA, through PyTorch's stable ABI.
//
// Schemas, shapes and types: builder/operators/post_attention.py and README.md in this folder.

#include "post_attention.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <limits>
#include <optional>
#include <tuple>

// Declared by the header above only where CUDA headers of PyTorch are asked for.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One of the two operators at work: its name, for messages, and its call.
struct Work {
    char const* name;
    codetr::PostAttention call;
};

void checkBeside(Work const& work, char const* name, Tensor const& tensor, Tensor const& attended) {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == attended.get_device_index(), work.name, ": ", name,
                    " must lie on the device of attended");
}

void checkLike(Work const& work, char const* name, Tensor const& tensor, Tensor const& attended) {
    checkBeside(work, name, tensor, attended);
    bool const fits = tensor.scalar_type() == attended.scalar_type() && tensor.dim() == 2 && tensor.size(0) == attended.size(0) &&
                      tensor.size(1) == attended.size(1);
    STD_TORCH_CHECK(fits, work.name, ": ", name, " must have the type and shape of attended");
}

void checkPacked(Work const& work, char const* name, Tensor const& tensor, Tensor const& attended, ScalarType type, char const* words,
                 int64_t size) {
    checkBeside(work, name, tensor, attended);
    bool const fits = tensor.scalar_type() == type && tensor.dim() == 1 && tensor.size(0) == size;
    STD_TORCH_CHECK(fits, work.name, ": ", name, " must be ", size, " numbers of ", words, ", as pack returns them");
}

void checkCapability(char const* name, int32_t device) {
    int major = 0, minor = 0;
    bool const known = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
    STD_TORCH_CHECK(known && major == 9 && minor == 0, name, ": needs a GPU of compute capability 9.0, this one has ", major, ".", minor);
}

codetr::ElementType elementType(ScalarType type) {
    if (type == ScalarType::Half) return codetr::ElementType::kFloat16;
    return type == ScalarType::BFloat16 ? codetr::ElementType::kBFloat16 : codetr::ElementType::kFloat32;
}

// What the schema has in 64 bits; what is too large stays too large.
int32_t narrowed(int64_t number) {
    bool const fits = number >= 0 && number <= std::numeric_limits<int32_t>::max();
    return fits ? static_cast<int32_t>(number) : -1;
}

void checkSizes(Work const& work, Tensor const& attended) {
    STD_TORCH_CHECK(attended.dim() == 2, work.name, ": attended must be a matrix");
    char const* const refused = codetr::findFault(work.call);
    STD_TORCH_CHECK(refused == nullptr, work.name, ": ", refused);
    STD_TORCH_CHECK(attended.size(1) == codetr::post::kWidth, work.name, ": tokens must have ", codetr::post::kWidth, " channels, got ",
                    attended.size(1));
}

void launch(Work const& work, int32_t device) {
    char const* const refused = codetr::findFault(work.call);
    STD_TORCH_CHECK(refused == nullptr, work.name, ": ", refused);
    if (work.call.rows == 0) return;
    checkCapability(work.name, device);
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS, work.name,
                    ": the device of attended has no current stream");
    auto const error = static_cast<cudaError_t>(codetr::launchPostAttention(work.call, static_cast<cudaStream_t>(stream)));
    STD_TORCH_CHECK(error == cudaSuccess, work.name, ": the launch failed: ", cudaGetErrorString(error));
}

// Checks everything and starts the kernel; returns tokens, value, offsets and logits, of which the first alone counts
// where nothing follows.
std::tuple<Tensor, Tensor, Tensor, Tensor> run(Work work, Tensor attended, Tensor residual, std::optional<Tensor> position, Tensor weights,
                                               Tensor vectors) {
    codetr::PostAttention& call = work.call;
    call.type = elementType(attended.scalar_type());
    checkSizes(work, attended);  // without rows and tensors yet
    checkLike(work, "residual", residual, attended);
    if (position) checkLike(work, "position", *position, attended);
    checkPacked(work, "weights", weights, attended, ScalarType::Byte, "uint8", codetr::countPieces(call) * codetr::post::kPieceBytes);
    checkPacked(work, "vectors", vectors, attended, ScalarType::Float, "float32", codetr::countNumbers(call));

    int32_t const device = attended.get_device_index();
    torch::stable::accelerator::DeviceGuard const guard(device);
    attended = torch::stable::contiguous(attended);
    residual = torch::stable::contiguous(residual);
    if (position) position = torch::stable::contiguous(*position);
    weights = torch::stable::contiguous(weights);
    vectors = torch::stable::contiguous(vectors);
    call.rows = attended.size(0);
    Tensor tokens = torch::stable::new_empty(attended, {call.rows, codetr::post::kWidth});
    Tensor value = tokens, offsets = tokens, logits = tokens;
    if (call.followed) {
        value = torch::stable::new_empty(attended, {call.rows, codetr::post::kWidth});
        offsets = torch::stable::new_empty(attended, {call.rows, call.offset_columns});
        logits = torch::stable::new_empty(attended, {call.rows, call.logit_columns});
        call.position = position->const_data_ptr();
        call.value = value.mutable_data_ptr();
        call.offsets = offsets.mutable_data_ptr();
        call.logits = logits.mutable_data_ptr();
    }
    call.attended = attended.const_data_ptr();
    call.residual = residual.const_data_ptr();
    call.weights = weights.const_data_ptr();
    call.vectors = static_cast<float const*>(vectors.const_data_ptr());
    call.tokens = tokens.mutable_data_ptr();
    launch(work, device);
    return {tokens, value, offsets, logits};
}

Tensor postAttention(Tensor attended, Tensor residual, Tensor weights, Tensor vectors, int64_t hidden, bool e4m3) {
    Work work{codetr::kPostAttentionName, {}};
    work.call.e4m3 = e4m3;
    work.call.hidden = narrowed(hidden);
    return std::get<0>(run(work, attended, residual, std::nullopt, weights, vectors));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> postAttentionFollowed(Tensor attended, Tensor residual, Tensor position, Tensor weights,
                                                                 Tensor vectors, int64_t hidden, bool e4m3, int64_t offsets,
                                                                 int64_t logits) {
    Work work{codetr::kPostAttentionFollowedName, {}};
    work.call.e4m3 = e4m3;
    work.call.followed = true;
    work.call.hidden = narrowed(hidden);
    work.call.offset_columns = narrowed(offsets);
    work.call.logit_columns = narrowed(logits);
    return run(work, attended, residual, position, weights, vectors);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(codetr, library) {
    if (std::getenv(codetr::kSchemaVariable) == nullptr) {
        library.def(codetr::kPostAttentionSchema);
        library.def(codetr::kPostAttentionFollowedSchema);
    }
}

STABLE_TORCH_LIBRARY_IMPL(codetr, CUDA, library) {
    library.impl(codetr::kPostAttentionName, TORCH_BOX(&postAttention));
    library.impl(codetr::kPostAttentionFollowedName, TORCH_BOX(&postAttentionFollowed));
}
