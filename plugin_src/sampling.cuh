// What a warp of the fast kernel does with its item: fetches inputs, makes samples, adds them up.
//
// A warp's item: four queries of two heads, so eight sums of 32 channels. Its lanes work in two ways, one after the other.
//
//   making samples (LaneTask): eight lanes a query, a level of a head each
//
//     lane       0    1    2    3    4    5    6    7  |  8 .. 15   16 .. 23   24 .. 31
//     query      ------------------ 0 ---------------  |     1         2          3
//     head       0    0    0    0    0    1    1    1
//     level      0    1    2    3    4    0    1    2      four points each
//     besides    ---- head 1, level 3 --  -- level 4 --    one point each: the two levels left of ten
//
//   adding them up (Sums): four lanes a query and head, 16 bytes of each 64 of channels each (float32: twice 16 of 128)
//
//     lane       0  1  2  3 | 4  5  6  7 | 8  9 10 11 | 12 .. 15 | 16 ..         28 .. 31
//     group           0     |     1      |     2      |    3     |  4     ...      7
//     query           0     |     0      |     1      |    1     |  2              3
//     head            0     |     1      |     0      |    1     |  0              1
//     channels   0- 8-16-24-
//
// Between the two lies shared memory: `Samples`, one of each warp.
#pragma once

#include "elements.cuh"
#include "locate.h"
#include "schedule.h"

#include <type_traits>

namespace codetr {
namespace {

// Loads what is read once, and stores: neither may push values out of the L1 cache.
template <typename V>
__device__ __forceinline__ V loadOnce(V const* pointer) {
    V v;
    if constexpr (sizeof(V) == 16) {
        uint4 u;
        asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "l"(pointer));
        memcpy(&v, &u, sizeof(v));
    } else if constexpr (sizeof(V) == 8) {
        uint2 u;
        asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(u.x), "=r"(u.y) : "l"(pointer));
        memcpy(&v, &u, sizeof(v));
    } else if constexpr (sizeof(V) == 4) {
        uint32_t u;
        asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(u) : "l"(pointer));
        memcpy(&v, &u, sizeof(v));
    } else {
        uint16_t u;
        asm("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(u) : "l"(pointer));
        memcpy(&v, &u, sizeof(v));
    }
    return v;
}

__device__ __forceinline__ void storeOnce(uint4* pointer, uint4 v) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(pointer), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

template <int kOffset>
__device__ __forceinline__ uint4 loadUnits(uint64_t address) {
    uint4 v;
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4+%5];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address), "n"(kOffset));
    return v;
}

__device__ __forceinline__ uint64_t addUnits(uint64_t base, uint32_t units) {
    uint64_t address;
    asm("mad.wide.u32 %0, %1, 16, %2;" : "=l"(address) : "r"(units), "l"(base));
    return address;
}

// A reference point: its centre, and its size if it is a box.
struct Reference {
    float2 center, size;
};

__device__ __forceinline__ Reference loadReference(float const* reference_point, int32_t dim) {
    Reference reference{};
    reference.center = loadOnce(reinterpret_cast<float2 const*>(reference_point));
    if (dim == 4) reference.size = loadOnce(reinterpret_cast<float2 const*>(reference_point) + 1);
    return reference;
}

struct Anchor {
    Axis x, y;
};

template <typename T>
__device__ __forceinline__ Anchor makeAnchor(LevelConstants const& level, Reference const& reference, int32_t dim) {
    float const scale_x = dim == 4 ? reference.size.x * level.width * (0.5f / kPoints) : 1.f;
    float const scale_y = dim == 4 ? reference.size.y * level.height * (0.5f / kPoints) : 1.f;
    return {makeAxis<T>(reference.center.x, level.width, scale_x), makeAxis<T>(reference.center.y, level.height, scale_y)};
}

// `kCount` neighbouring elements as they lie in memory.
template <typename T, int kCount>
struct Raw {
    static constexpr int kBytes = sizeof(T) * kCount;
    using Word = std::conditional_t<kBytes >= 16, uint4,
                                    std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
    Word words[kBytes / sizeof(Word)];

    __device__ __forceinline__ void load(T const* from) {
#pragma unroll
        for (size_t i = 0; i < kBytes / sizeof(Word); ++i) words[i] = loadOnce(reinterpret_cast<Word const*>(from) + i);
    }
    __device__ __forceinline__ float get(int i) const {
        T elements[kCount];
        memcpy(elements, words, sizeof(elements));
        return toFloat(elements[i]);
    }
};

// Which samples of its query a lane makes. The eight lanes of a query share out the levels of both heads in the order in
// which they lie in memory, so that hardly a sector is fetched twice: a whole level each; of the two that are left of
// ten, a point each.
template <int kLevels>
struct LaneTask {
    static constexpr int kChunks = kBlockHeads * kLevels;  // levels of heads
    static constexpr bool kRest = kChunks > 8;
    static constexpr bool kIdle = kChunks < 8;  // the last lanes repeat the last chunk and throw it away
    int u;                                      // which of the eight lanes
    int chunk, head, level;
    int rest_level;  // of the single point; its head is the last

    __device__ __forceinline__ explicit LaneTask(int lane)
        : u(lane & 7), chunk(min(u, kChunks - 1)), head(chunk / kLevels), level(chunk % kLevels), rest_level(kLevels - 2 + u / kPoints) {}

    __device__ __forceinline__ bool idle() const { return kIdle && u >= kChunks; }
};

// What a lane needs to make its samples.
template <typename T, int kLevels>
struct LaneInputs {
    Raw<T, 2 * kPoints> offsets;
    Raw<T, kPoints> logits;
    Reference reference;
    Raw<T, 2> rest_offset;
    Raw<T, 1> rest_logit;

    // The pointers belong to the query and the block's first head.
    __device__ __forceinline__ void load(LaneTask<kLevels> const& task, T const* logits_at, T const* offsets_at, float const* reference_at,
                                         int32_t dim) {
        offsets.load(offsets_at + task.chunk * kPoints * 2);
        logits.load(logits_at + task.chunk * kPoints);
        reference = loadReference(reference_at + task.level * dim, dim);
        if constexpr (LaneTask<kLevels>::kRest) {
            rest_offset.load(offsets_at + (8 * kPoints + task.u) * 2);
            rest_logit.load(logits_at + 8 * kPoints + task.u);
        }
    }
};

// A warp's samples in shared memory: every lane prepares some, all four lanes of a group read all of theirs.
// Slot `slotOf(group, level)` of a row belongs to one group; the exclusive-or keeps reads and all but single points'
// writes in float32 free of conflicts.
template <typename T, int kLevels>
struct Samples {
    static constexpr int kWeightRows = sizeof(T) == 4 ? 4 : 2;
    uint4 offsets[kLevels][8];               // of the four points
    uint4 weights[kLevels][kWeightRows][8];  // 16-bit types: two points a row; float32: one point a row
};

__device__ __forceinline__ int slotOf(int group, int level) { return group ^ (level < 4 ? level << 1 : 7); }
// The same for row `pair` of the weights of 16-bit types.
__device__ __forceinline__ int pairSlot(int slot, int pair) { return slot ^ pair << 2; }

template <typename T, int kLevels>
__device__ __forceinline__ void storeLevel(Samples<T, kLevels>& samples, int level, int group, Corners const (&c)[kPoints]) {
    int const slot = slotOf(group, level);
    samples.offsets[level][slot] = {c[0].offset, c[1].offset, c[2].offset, c[3].offset};
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (int p = 0; p < kPoints; ++p) {
            samples.weights[level][p][slot] = {__float_as_uint(c[p].w00), __float_as_uint(c[p].w01), __float_as_uint(c[p].w10),
                                               __float_as_uint(c[p].w11)};
        }
    } else {
        using P = Packed<T>;
#pragma unroll
        for (int p = 0; p < kPoints; p += 2) {
            samples.weights[level][p / 2][pairSlot(slot, p / 2)] = {bits(P::round(c[p].w00, c[p].w01)), bits(P::round(c[p].w10, c[p].w11)),
                                                                    bits(P::round(c[p + 1].w00, c[p + 1].w01)),
                                                                    bits(P::round(c[p + 1].w10, c[p + 1].w11))};
        }
    }
}

template <typename T, int kLevels>
__device__ __forceinline__ void storePoint(Samples<T, kLevels>& samples, int level, int group, int point, Corners const& c) {
    int const slot = slotOf(group, level);
    reinterpret_cast<uint32_t*>(&samples.offsets[level][slot])[point] = c.offset;
    if constexpr (sizeof(T) == 4) {
        samples.weights[level][point][slot] = {__float_as_uint(c.w00), __float_as_uint(c.w01), __float_as_uint(c.w10),
                                               __float_as_uint(c.w11)};
    } else {
        using P = Packed<T>;
        reinterpret_cast<uint2*>(&samples.weights[level][point >> 1][pairSlot(slot, point >> 1)])[point & 1] = {
            bits(P::round(c.w00, c.w01)), bits(P::round(c.w10, c.w11))};
    }
}

__device__ __forceinline__ uint32_t element(uint4 const& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// A lane's eight channels of one sum. 16-bit types: channels 8t..8t+7, the four corners of a sample added in the
// element type and the samples in float32 by the tensor cores, whose multiplication by the identity is the cheapest
// widening addition there is. float32: channels 4t..4t+3 and 16+4t..16+4t+3.
template <typename T>
struct Sums {
    float a[4] = {}, b[4] = {};
    uint32_t identity;
    __device__ __forceinline__ explicit Sums(uint32_t id) : identity(id) {}

    static __device__ __forceinline__ uint32_t identityColumn(int group, int t) {
        uint32_t column = (2 * t == group ? Packed<T>::kOne : 0u) | (2 * t + 1 == group ? Packed<T>::kOne << 16 : 0u);
        asm("" : "+r"(column));  // keep it, rather than make it again for every use
        return column;
    }

    __device__ __forceinline__ void add(uint64_t upper, uint64_t lower, uint32_t w0, uint32_t w1) {
        using P = Packed<T>;
        constexpr int kNext = kTokenUnits<T> * 16;
        uint4 const v00 = loadUnits<0>(upper), v01 = loadUnits<kNext>(upper);
        uint4 const v10 = loadUnits<0>(lower), v11 = loadUnits<kNext>(lower);
        auto const w00 = P::lowTwice(w0), w01 = P::highTwice(w0), w10 = P::lowTwice(w1), w11 = P::highTwice(w1);
        typename P::Pair sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum[i] = __hmul2(w00, P::fromBits(element(v00, i)));
            sum[i] = __hfma2(w01, P::fromBits(element(v01, i)), sum[i]);
            sum[i] = __hfma2(w10, P::fromBits(element(v10, i)), sum[i]);
            sum[i] = __hfma2(w11, P::fromBits(element(v11, i)), sum[i]);
        }
        P::addWide(a, sum[0], sum[1], identity);
        P::addWide(b, sum[2], sum[3], identity);
    }

    __device__ __forceinline__ void store(T* head, int t, float scale) const {
        using P = Packed<T>;
        uint4 const out = {bits(P::round(a[0] * scale, a[1] * scale)), bits(P::round(a[2] * scale, a[3] * scale)),
                           bits(P::round(b[0] * scale, b[1] * scale)), bits(P::round(b[2] * scale, b[3] * scale))};
        storeOnce(reinterpret_cast<uint4*>(head) + t, out);
    }
};

template <>
struct Sums<float> {
    float a[4] = {}, b[4] = {};
    __device__ __forceinline__ explicit Sums(uint32_t) {}

    static __device__ __forceinline__ uint32_t identityColumn(int, int) { return 0; }

    __device__ __forceinline__ void add(uint64_t upper, uint64_t lower, float4 w) {
        constexpr int kNext = kTokenUnits<float> * 16;
        addCorner(loadUnits<0>(upper), loadUnits<64>(upper), w.x);
        addCorner(loadUnits<kNext>(upper), loadUnits<kNext + 64>(upper), w.y);
        addCorner(loadUnits<0>(lower), loadUnits<64>(lower), w.z);
        addCorner(loadUnits<kNext>(lower), loadUnits<kNext + 64>(lower), w.w);
    }

    __device__ __forceinline__ void addCorner(uint4 u, uint4 v, float w) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            a[i] = fmaf(w, __uint_as_float(element(u, i)), a[i]);
            b[i] = fmaf(w, __uint_as_float(element(v, i)), b[i]);
        }
    }

    __device__ __forceinline__ void store(float* head, int t, float scale) const {
        storeOnce(reinterpret_cast<uint4*>(head) + t, scaled(a, scale));
        storeOnce(reinterpret_cast<uint4*>(head) + t + 4, scaled(b, scale));
    }

    static __device__ __forceinline__ uint4 scaled(float const (&x)[4], float scale) {
        return {__float_as_uint(x[0] * scale), __float_as_uint(x[1] * scale), __float_as_uint(x[2] * scale), __float_as_uint(x[3] * scale)};
    }
};

// Combines what the eight lanes of a query hold for each of its two heads. The result is that of the lane's own head:
// head 0 for the lower four lanes, head 1 for the upper.
template <typename Combine>
__device__ __forceinline__ float reduceHeads(float head0, float head1, bool upper, Combine combine) {
    float x = combine(upper ? head1 : head0, __shfl_xor_sync(kFullWarp, upper ? head0 : head1, 4));
    x = combine(x, __shfl_xor_sync(kFullWarp, x, 1));
    return combine(x, __shfl_xor_sync(kFullWarp, x, 2));
}

// The axis that lane `from` holds.
template <typename T>
__device__ __forceinline__ Axis shuffleAxis(Axis axis, int from, int32_t reference_dim) {
    if constexpr (kSplit<T>) axis.origin.whole = __shfl_sync(kFullWarp, axis.origin.whole, from);
    axis.origin.part = __shfl_sync(kFullWarp, axis.origin.part, from);
    if (reference_dim == 4) axis.scale = __shfl_sync(kFullWarp, axis.scale, from);
    return axis;
}

// Makes the corners and weights of a query's samples for all its lanes. `level` and `rest_level` belong to the lane's
// task. Returns the sum of the softmax weights of the lane's own head, of which the largest is 1: the sums are divided by
// it at the end.
template <typename T, int kLevels>
__device__ __forceinline__ float prepareSamples(Samples<T, kLevels>& samples, LaneInputs<T, kLevels> const& in,
                                                LaneTask<kLevels> const& task, LevelConstants const& level,
                                                LevelConstants const& rest_level, int lane, int32_t reference_dim) {
    constexpr bool kRest = LaneTask<kLevels>::kRest;
    bool const upper = (lane & 4) != 0;
    int const first_group = lane >> 3 << 1;

    float const top_of_chunk = fmaxf(fmaxf(in.logits.get(0), in.logits.get(1)), fmaxf(in.logits.get(2), in.logits.get(3)));
    float top0 = task.head == 0 ? top_of_chunk : -INFINITY, top1 = task.head == 1 ? top_of_chunk : -INFINITY;
    if constexpr (kRest) top1 = fmaxf(top1, in.rest_logit.get(0));
    float const top = kLog2E * reduceHeads(top0, top1, upper, [](float x, float y) { return fmaxf(x, y); });
    float const other_top = __shfl_xor_sync(kFullWarp, top, 4);
    float const top_of_task = upper == (task.head == 1) ? top : other_top;

    Anchor const anchor = makeAnchor<T>(level, in.reference, reference_dim);
    float total = 0.f;
    Corners corners[kPoints];
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
        float const attention = exp2Approx(fmaf(in.logits.get(p), kLog2E, -top_of_task));
        total += attention;
        corners[p] =
            locate<T>(level, coordinate<T>(anchor.x, in.offsets.get(2 * p)), coordinate<T>(anchor.y, in.offsets.get(2 * p + 1)), attention);
    }
    if (!task.idle()) {
        storeLevel<T, kLevels>(samples, task.level, first_group + task.head, corners);
    } else {
        total = 0.f;
    }
    float total0 = task.head == 0 ? total : 0.f, total1 = task.head == 1 ? total : 0.f;
    if constexpr (kRest) {
        // Lane number `rest_level` of the eight has that level as its own, and so its anchor.
        int const from = (lane & ~7) | task.rest_level;
        Axis const x = shuffleAxis<T>(anchor.x, from, reference_dim), y = shuffleAxis<T>(anchor.y, from, reference_dim);
        float const attention = exp2Approx(fmaf(in.rest_logit.get(0), kLog2E, upper ? -top : -other_top));
        total1 += attention;
        Corners const corner =
            locate<T>(rest_level, coordinate<T>(x, in.rest_offset.get(0)), coordinate<T>(y, in.rest_offset.get(1)), attention);
        storePoint<T, kLevels>(samples, task.rest_level, first_group + 1, lane % kPoints, corner);
    }
    return reduceHeads(total0, total1, upper, [](float x, float y) { return x + y; });
}

// Adds up a lane's channels of all samples of its group.
template <typename T, int kLevels>
__device__ __forceinline__ Sums<T> sumSamples(Samples<T, kLevels> const& samples, FastCall const& call, uint64_t base, int group,
                                              uint32_t identity) {
    Sums<T> sums(identity);
#pragma unroll
    for (int i = 0; i < kLevels; ++i) {
        int const level = kLevels - 1 - i;  // 2 % faster than from the finest to the coarsest
        int const slot = slotOf(group, level);
        uint4 const offset = samples.offsets[level][slot];
        uint32_t const row_units = static_cast<uint32_t>(call.levels[level].width) * kTokenUnits<T>;
#pragma unroll
        for (int p = 0; p < kPoints; ++p) {
            uint64_t const upper = addUnits(base, element(offset, p));
            uint64_t const lower = addUnits(base, element(offset, p) + row_units);
            if constexpr (sizeof(T) == 4) {
                uint4 const w = samples.weights[level][p][slot];
                sums.add(upper, lower, {__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w)});
            } else {
                uint4 const w = samples.weights[level][p / 2][pairSlot(slot, p / 2)];
                sums.add(upper, lower, p % 2 ? w.z : w.x, p % 2 ? w.w : w.y);
            }
        }
    }
    return sums;
}

}  // namespace
}  // namespace codetr
