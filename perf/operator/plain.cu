// The design of the usual reference kernels, for comparison: one thread a channel, everything recomputed by every thread.

#include "general.cuh"

namespace {

template <typename T>
cudaError_t launch(codetr::MsDeformAttn const& call, cudaStream_t stream) {
    return codetr::launchGeneral<T, 1>(call, codetr::countTokens(call.spatial_shapes, call.levels), stream);
}

}  // namespace

// On raw pointers, without a dispatcher. Returns a cudaError_t.
extern "C" __attribute__((visibility("default"))) int codetrMsDeformAttnPlain(codetr::MsDeformAttn const* call, void* stream) {
    if (codetr::findFault(*call) != nullptr) return cudaErrorInvalidValue;
    if (call->batch == 0 || call->queries == 0) return cudaSuccess;
    auto const on = static_cast<cudaStream_t>(stream);
    switch (call->type) {
        case codetr::ElementType::kFloat16: return launch<__half>(*call, on);
        case codetr::ElementType::kBFloat16: return launch<__nv_bfloat16>(*call, on);
        default: return launch<float>(*call, on);
    }
}
