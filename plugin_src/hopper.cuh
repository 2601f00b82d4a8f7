// What the Hopper kernels ask of the machine, one thin function an instruction; test/fake_hopper.h has those that they call on
// a CPU. Sources: PTX ISA 8.5, sections on wgmma, mbarrier, cp.async.bulk and clusters.
#pragma once

#include "elements.cuh"

#define CODETR_PARAMETER __grid_constant__
// Before the body of a kernel, which is empty for other architectures.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CODETR_ONLY_ON_HOPPER if constexpr (false)
#else
#define CODETR_ONLY_ON_HOPPER
#endif
// So many blocks in a cluster; earlier architectures have none.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CODETR_CLUSTER(blocks)
#else
#define CODETR_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#endif

namespace codetr {
namespace hopper {
namespace {

using Half = __half;
using BFloat16 = __nv_bfloat16;
struct E4M3 {};

constexpr int kWarpgroup = 128;

// ---- Where a thread is ----

__device__ __forceinline__ int threadInBlock() { return static_cast<int>(threadIdx.x); }
// The number of the caller's warpgroup, known to the compiler as the same in a warp.
__device__ __forceinline__ int warpgroupInBlock() { return __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x) / kWarpgroup, 0); }

__device__ __forceinline__ int rankInCluster() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}
__device__ __forceinline__ int clusterInGrid() {
    uint32_t number;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(number));
    return static_cast<int>(number);
}
__device__ __forceinline__ int clustersInGrid() {
    uint32_t number;
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(number));
    return static_cast<int>(number);
}

// ---- Numbers ----

// Two numbers rounded to T, `low` in the low half.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    return bits(Packed<T>::round(low, high));
}
template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
    return Packed<T>::widen(Packed<T>::fromBits(pair));
}
// The sum of two pairs, rounded to T.
template <typename T>
__device__ __forceinline__ uint32_t addPairs(uint32_t a, uint32_t b) {
    float2 const x = unpack<T>(a), y = unpack<T>(b);
    return pack<T>(x.x + y.x, x.y + y.y);
}
// Four numbers in E4M3, a in the lowest byte; what is too large becomes +-448.
__device__ __forceinline__ uint32_t packE4m3(float a, float b, float c, float d) {
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return static_cast<uint32_t>(low) | static_cast<uint32_t>(high) << 16;
}
__device__ __forceinline__ float inverseRoot(float x) { return rsqrtf(x); }
// The sum over the four neighbouring threads that share a row.
__device__ __forceinline__ float sumOfQuad(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
}

// ---- Memory ----

struct alignas(16) Vector {
    uint32_t words[4];
};

__device__ __forceinline__ Vector loadGlobal(void const* place) {
    Vector x;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3])
                 : "l"(place));
    return x;
}
__device__ __forceinline__ void storeGlobal(void* place, Vector const& x) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(place), "r"(x.words[0]), "r"(x.words[1]), "r"(x.words[2]), "r"(x.words[3])
                 : "memory");
}

// The block's dynamic shared memory, which tiles want aligned to 1,024 bytes.
__device__ __forceinline__ char* sharedMemory() {
    extern __shared__ __align__(1024) char memory[];
    return memory;
}

__device__ __forceinline__ uint32_t inShared(void const* place) { return static_cast<uint32_t>(__cvta_generic_to_shared(place)); }

__device__ __forceinline__ Vector loadShared(void const* place) {
    Vector x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.words[0]), "=r"(x.words[1]), "=r"(x.words[2]), "=r"(x.words[3])
                 : "r"(inShared(place)));
    return x;
}
__device__ __forceinline__ void storeShared(void* place, Vector const& x) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(inShared(place)), "r"(x.words[0]), "r"(x.words[1]), "r"(x.words[2]),
                 "r"(x.words[3])
                 : "memory");
}
__device__ __forceinline__ void storeShared(void* place, uint32_t low, uint32_t high) {
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(inShared(place)), "r"(low), "r"(high) : "memory");
}

// ---- Threads waiting for each other ----

__device__ __forceinline__ void syncBlock() { __syncthreads(); }
// The caller's warpgroup; `number` 1 to 15 is another for each.
__device__ __forceinline__ void syncWarpgroup(int number) { asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kWarpgroup) : "memory"); }
__device__ __forceinline__ void syncCluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void initBarrier(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(inShared(barrier)), "r"(arrivals) : "memory");
}
// After the barriers of a block have been set up, before others of the cluster use them.
__device__ __forceinline__ void showBarriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void arriveAndExpect(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(inShared(barrier)), "r"(bytes) : "memory");
}
// At the barrier of this place in the shared memory of another block of the cluster, or the caller's own. It says that products
// are over, not that what the caller has written can be read: a wider scope would wait for all its writes.
__device__ __forceinline__ void arriveAt(uint64_t* barrier, int rank) {
    asm volatile(
        "{\n.reg .b32 place;\nmapa.shared::cluster.u32 place, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [place];\n}" ::"r"(inShared(barrier)),
        "r"(rank)
        : "memory");
}
__device__ __forceinline__ void waitFor(uint64_t* barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}" ::"r"(inShared(barrier)),
        "r"(parity)
        : "memory");
}

// ---- Copies that go on beside the threads ----

// To the same place of the blocks of the cluster that `mask` names, each of whose `barrier` learns of the bytes.
__device__ __forceinline__ void copyToCluster(void* place, void const* source, int bytes, uint64_t* barrier, uint16_t mask) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
                     inShared(place)),
                 "l"(source), "r"(bytes), "r"(inShared(barrier)), "h"(mask)
                 : "memory");
}
__device__ __forceinline__ void prefetch(void const* source, int bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}
// What the caller has written to shared memory becomes visible to products.
__device__ __forceinline__ void showToProducts() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Registers ----

template <int kCount>
__device__ __forceinline__ void giveRegisters() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void takeRegisters() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- Products of a warpgroup: 64 rows, N columns, 32 bytes of the depth ----

// Before products of registers that something else has written. Each `multiply` has it: ptxas else puts one of its own into
// divergent paths, and then makes all products of the kernel wait for each other (C7520).
__device__ __forceinline__ void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void waitForProducts() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler must not move reads of sums before the wait, or writes behind the begin.
template <int kCount>
__device__ __forceinline__ void pin(float (&sums)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// A tile of rows of 128 bytes, swizzled; groups of 8 rows follow each other.
__device__ __forceinline__ uint64_t describe(char const* tile) {
    constexpr uint64_t kGroup = 1024 >> 4, kSwizzle128 = 1;
    return static_cast<uint64_t>((inShared(tile) & 0x3ffff) >> 4) | uint64_t{1} << 16 | kGroup << 32 | kSwizzle128 << 62;
}

#define CODETR_SUMS8(s, i) \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), "+f"(s[i + 7])
#define CODETR_SUMS32(s, i) CODETR_SUMS8(s, i), CODETR_SUMS8(s, i + 8), CODETR_SUMS8(s, i + 16), CODETR_SUMS8(s, i + 24)
#define CODETR_NAMES32                                                                                               \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31"
#define CODETR_NAMES64                                                                                                  \
    CODETR_NAMES32                                                                                                      \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59," \
    "%60,%61,%62,%63"
// SHAPE with the types; TAIL: what follows the operands (negations and transpositions, which E4M3 has not).
#define CODETR_PRODUCTS(TYPE, SHAPE64, SHAPE128, SCALES, TRANSPOSED_A_B, TRANSPOSED_B)                                            \
    __device__ __forceinline__ void product(TYPE, float (&s)[32], uint64_t a, uint64_t b, int add) {                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned." SHAPE64 " {" CODETR_NAMES32        \
                     "}, %32, %33, p, " SCALES TRANSPOSED_A_B ";\n}"                                                              \
                     : CODETR_SUMS32(s, 0)                                                                                        \
                     : "l"(a), "l"(b), "r"(add));                                                                                 \
    }                                                                                                                             \
    __device__ __forceinline__ void product(TYPE, float (&s)[64], uint64_t a, uint64_t b, int add) {                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned." SHAPE128 " {" CODETR_NAMES64       \
                     "}, %64, %65, p, " SCALES TRANSPOSED_A_B ";\n}"                                                              \
                     : CODETR_SUMS32(s, 0), CODETR_SUMS32(s, 32)                                                                  \
                     : "l"(a), "l"(b), "r"(add));                                                                                 \
    }                                                                                                                             \
    __device__ __forceinline__ void product(TYPE, float (&s)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, \
                                            int add) {                                                                            \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned." SHAPE128 " {" CODETR_NAMES64       \
                     "}, {%64,%65,%66,%67}, %68, p, " SCALES TRANSPOSED_B ";\n}"                                                  \
                     : CODETR_SUMS32(s, 0), CODETR_SUMS32(s, 32)                                                                  \
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));                                                     \
    }
CODETR_PRODUCTS(Half, "m64n64k16.f32.f16.f16", "m64n128k16.f32.f16.f16", "1, 1", ", 0, 0", ", 0")
CODETR_PRODUCTS(BFloat16, "m64n64k16.f32.bf16.bf16", "m64n128k16.f32.bf16.bf16", "1, 1", ", 0, 0", ", 0")
CODETR_PRODUCTS(E4M3, "m64n64k32.f32.e4m3.e4m3", "m64n128k32.f32.e4m3.e4m3", "1, 1", "", "")
#undef CODETR_PRODUCTS
#undef CODETR_NAMES64
#undef CODETR_NAMES32
#undef CODETR_SUMS32
#undef CODETR_SUMS8

// sums (+)= a b^T over 128 bytes of the depth: 64 rows of `a` and 2 * kCount columns of `b`, tiles in shared memory; `add` 0
// begins anew.
template <typename T, int kCount>
__device__ __forceinline__ void multiply(float (&sums)[kCount], char const* a, char const* b, int add) {
    uint64_t const rows = describe(a), columns = describe(b);
    beginProducts();
#pragma unroll
    for (int step = 0; step < 4; ++step) product(T{}, sums, rows + 2 * step, columns + 2 * step, step > 0 ? 1 : add);
}
// The same with `a` in registers, four for each 32 bytes of the depth: rows r and r + 8 of the thread, first and second 16 bytes.
template <typename T>
__device__ __forceinline__ void multiply(float (&sums)[64], uint32_t const (&a)[16], char const* b, int add) {
    uint64_t const columns = describe(b);
    beginProducts();
#pragma unroll
    for (int step = 0; step < 4; ++step)
        product(T{}, sums, a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3], columns + 2 * step, step > 0 ? 1 : add);
}

}  // namespace
}  // namespace hopper
}  // namespace codetr
