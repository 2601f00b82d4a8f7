// The element types of the tensors: float32, float16, bfloat16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace codetr {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float exp2Approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t bits(__half2 x) {
    uint32_t y;
    memcpy(&y, &x, sizeof(y));
    return y;
}
__device__ __forceinline__ uint32_t bits(__nv_bfloat162 x) {
    uint32_t y;
    memcpy(&y, &x, sizeof(y));
    return y;
}

template <typename T>
struct Packed;

template <>
struct Packed<__half> {
    using Pair = __half2;
    static constexpr uint32_t kOne = 0x3c00u;
    static __device__ __forceinline__ Pair fromBits(uint32_t x) {
        Pair y;
        memcpy(&y, &x, sizeof(y));
        return y;
    }
    static __device__ __forceinline__ Pair round(float lo, float hi) { return __floats2half2_rn(lo, hi); }
    static __device__ __forceinline__ Pair lowTwice(uint32_t x) { return __low2half2(fromBits(x)); }
    static __device__ __forceinline__ Pair highTwice(uint32_t x) { return __high2half2(fromBits(x)); }
    static __device__ __forceinline__ float2 widen(Pair x) { return __half22float2(x); }
    static __device__ __forceinline__ float widen(__half x) { return __half2float(x); }
    // sums += the 16x8 matrix that the warp holds in a0, a1, read as float32; `identity` from `identityColumn`.
    static __device__ __forceinline__ void addWide(float (&sums)[4], Pair a0, Pair a1, uint32_t identity) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(bits(a0)), "r"(bits(a1)), "r"(identity));
    }
};

template <>
struct Packed<__nv_bfloat16> {
    using Pair = __nv_bfloat162;
    static constexpr uint32_t kOne = 0x3f80u;
    static __device__ __forceinline__ Pair fromBits(uint32_t x) {
        Pair y;
        memcpy(&y, &x, sizeof(y));
        return y;
    }
    static __device__ __forceinline__ Pair round(float lo, float hi) { return __floats2bfloat162_rn(lo, hi); }
    static __device__ __forceinline__ Pair lowTwice(uint32_t x) { return __low2bfloat162(fromBits(x)); }
    static __device__ __forceinline__ Pair highTwice(uint32_t x) { return __high2bfloat162(fromBits(x)); }
    static __device__ __forceinline__ float2 widen(Pair x) { return __bfloat1622float2(x); }
    static __device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
    static __device__ __forceinline__ void addWide(float (&sums)[4], Pair a0, Pair a1, uint32_t identity) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(bits(a0)), "r"(bits(a1)), "r"(identity));
    }
};

__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float toFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void fromFloat(float& y, float x) { y = x; }
__device__ __forceinline__ void fromFloat(__half& y, float x) { y = __float2half_rn(x); }
__device__ __forceinline__ void fromFloat(__nv_bfloat16& y, float x) { y = __float2bfloat16_rn(x); }

}  // namespace
}  // namespace codetr
