#include "hopper.cuh"
#include "post_attention.cuh"

namespace codetr {
namespace {

#ifndef CODETR_POST_HALVES
#define CODETR_POST_HALVES true
#endif

template <typename T, bool kE4m3, bool kFollowed>
cudaError_t start(post::Arguments const& arguments, int shared_bytes, cudaStream_t stream) {
    auto const kernel = post::postAttention<T, kE4m3, kFollowed>;
    cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (status != cudaSuccess) return status;
    int device = 0, processors = 0;
    status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;
    int64_t const tiles = (arguments.call.rows + post::kTileRows - 1) / post::kTileRows;
    int64_t const wanted = arguments.halves ? 2 * tiles : tiles, most = processors / post::kBlocks;
    auto const clusters = static_cast<unsigned>(wanted < most ? wanted : most);
    kernel<<<clusters * post::kBlocks, post::kThreads, shared_bytes, stream>>>(arguments);
    return cudaGetLastError();
}

template <typename T>
cudaError_t startFor(post::Arguments const& arguments, int shared_bytes, cudaStream_t stream) {
    PostAttention const& call = arguments.call;
    if (call.e4m3)
        return call.followed ? start<T, true, true>(arguments, shared_bytes, stream)
                             : start<T, true, false>(arguments, shared_bytes, stream);
    return call.followed ? start<T, false, true>(arguments, shared_bytes, stream) : start<T, false, false>(arguments, shared_bytes, stream);
}

}  // namespace

int launchPostAttention(PostAttention const& call, cudaStream_t stream) {
    if (findFault(call) != nullptr) return cudaErrorInvalidValue;
    if (call.rows == 0) return cudaSuccess;
    int device = 0, major = 0, minor = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (status != cudaSuccess) return status;
    if (major != 9 || minor != 0) return cudaErrorNoKernelImageForDevice;
    auto const numbers = static_cast<int>(countNumbers(call));
    int const slots = post::countSlots(call.e4m3, numbers);
    post::Arguments const arguments{call, static_cast<int>(countPieces(call)), numbers, slots, CODETR_POST_HALVES};
    int const shared_bytes = post::bytesBesideSlots(call.e4m3, numbers) + slots * post::kPieceBytes;
    return call.type == ElementType::kFloat16 ? startFor<__half>(arguments, shared_bytes, stream)
                                              : startFor<__nv_bfloat16>(arguments, shared_bytes, stream);
}

}  // namespace codetr
