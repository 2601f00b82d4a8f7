// Multi-scale deformable attention: softmax, sampling positions, bilinear sampling and the weighted sum in one kernel.
//
// Two kernels: `deformAttnFast` for 8 heads of 32 channels, 4 points and 3 to 5 levels (what the detectors use), and
// `deformAttnGeneral` for everything else. Why they look the way they do, with measurements: NOTES.md.

#include "ms_deform_attn.h"

#include "query_tiles.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace codetr {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float exp2Approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---------------------------------------------------------------------------------------------------------------
// Element types

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

// ---------------------------------------------------------------------------------------------------------------
// Coordinates

// A position along one axis in pixels, whole + part. float32 values deserve better than a float32 position, whose last
// bit costs them 1e-5 on a map of 480 pixels: for them `whole` holds the integer nearest and `part` what is left. For the
// 16-bit types everything is in `part`.
struct Coordinate {
    float whole, part;
};

template <typename T>
constexpr bool kSplit = sizeof(T) == 4;

template <typename T>
__device__ __forceinline__ float approximate(Coordinate c) {
    if constexpr (kSplit<T>) return c.whole + c.part;
    return c.part;
}

// How far `c` lies to the right of the integer `base`.
template <typename T>
__device__ __forceinline__ float distance(Coordinate c, float base) {
    if constexpr (kSplit<T>) return (c.whole - base) + c.part;
    return c.part - base;
}

// The line offset -> coordinate of one axis.
struct Axis {
    Coordinate origin;
    float scale;  // pixels for one unit of offset
};

// `center` in 0..1 of a level of `size` pixels.
template <typename T>
__device__ __forceinline__ Axis makeAxis(float center, float size, float scale) {
    if constexpr (kSplit<T>) {
        float const whole = rintf(center * size);
        return {{whole, fmaf(center, size, -whole) - 0.5f}, scale};
    }
    return {{0.f, fmaf(center, size, -0.5f)}, scale};
}

template <typename T>
__device__ __forceinline__ Coordinate coordinate(Axis const& axis, float offset) {
    if constexpr (kSplit<T>) {
        float const whole = rintf(offset * axis.scale);
        return {axis.origin.whole + whole, axis.origin.part + fmaf(offset, axis.scale, -whole)};
    }
    return {0.f, fmaf(offset, axis.scale, axis.origin.part)};
}

// ---------------------------------------------------------------------------------------------------------------
// The fast kernel: 8 heads x 32 channels, 4 points

constexpr int kHeads = 8;
constexpr int kDim = 32;
constexpr int kPoints = 4;
constexpr int kBlockHeads = 2;  // heads a thread block serves; the values of two share 128-byte lines
constexpr int kHeadSets = kHeads / kBlockHeads;
constexpr int kItemQueries = 8 / kBlockHeads;  // a warp's item: so many queries x heads = 8 groups of 4 lanes
constexpr int kMaxFastLevels = 5;
constexpr int kTileRows = 20;  // of queries of the finest level
constexpr int kTileColumns = 8;
constexpr int kChunkTiles = 40;  // tiles whose parts are listed in shared memory at a time
constexpr int kMaxShares = 64;   // of a plane; their places travel with the launch
constexpr int kMaxSide = 8192;   // of the finest level of an encoder
static_assert(kMaxSide * ((kMaxSide + kTileRows - 1) / kTileRows) <= Divisor::kMaxDividend);
static_assert(kMaxSide * ((kMaxSide + kTileColumns - 1) / kTileColumns) <= Divisor::kMaxDividend);
static_assert(((kMaxSide + kTileRows - 1) / kTileRows) * ((kMaxSide + kTileColumns - 1) / kTileColumns) < TilePlace::kMaxTiles);
constexpr int kFastWarps = 12;   // of a block, which fills a multiprocessor: 168 registers a thread

// Adding 1.5 * 2^23 to a small float rounds it to an integer and leaves that integer in the low bits.
constexpr float kRoundMagic = 12582912.f;
constexpr uint32_t kRoundMagicBits = 0x4B400000u;

struct FastLevel {
    int32_t height, width, start;
};

struct FastCall {
    void const* value;
    float const* reference_points;
    void const* sampling_offsets;
    void const* attention_logits;
    int32_t const* valid_shapes;
    void* output;
    int32_t batch, queries, tokens, reference_dim;
    FastLevel levels[kMaxFastLevels];
    QueryTiles<kMaxFastLevels> tiles;
    TilePlace places[kMaxShares + 1];  // share s goes from places[s] to places[s + 1]
};

// What the sampling of one level needs. Lanes of a warp work on different levels and fetch theirs from shared memory.
struct alignas(16) LevelConstants {
    float width, height;
    float last_x, last_y;    // where the clamp of the left and upper corner ends
    float right_x, lower_y;  // 1, or -1 if the valid part of the level has no second column or row
    float upper_y;           // 1, or -1 if the valid part of the level is empty
    uint32_t origin;         // 16-byte units: of the level's first token, less the magic of both coordinates
};

template <typename T>
constexpr uint32_t kTokenUnits = kHeads * kDim * sizeof(T) / 16;

template <typename T>
__device__ LevelConstants makeLevelConstants(FastCall const& call, int32_t image, int32_t index, int32_t levels) {
    FastLevel const size = call.levels[index];
    int32_t rows = size.height, columns = size.width;
    if (call.valid_shapes != nullptr) {
        int2 const valid = reinterpret_cast<int2 const*>(call.valid_shapes)[static_cast<int64_t>(image) * levels + index];
        rows = min(max(valid.x, 0), size.height);
        columns = min(max(valid.y, 0), size.width);
    }
    bool const empty = rows == 0 || columns == 0;
    LevelConstants level;
    level.width = static_cast<float>(size.width);
    level.height = static_cast<float>(size.height);
    level.last_x = fmaxf(static_cast<float>(columns) - 2.25f, -0.25f);
    level.last_y = fmaxf(static_cast<float>(rows) - 2.25f, -0.25f);
    level.right_x = columns >= 2 ? 1.f : -1.f;
    level.lower_y = rows >= 2 && !empty ? 1.f : -1.f;
    level.upper_y = !empty ? 1.f : -1.f;
    level.origin = (static_cast<uint32_t>(size.start) - kRoundMagicBits * (static_cast<uint32_t>(size.width) + 1u)) *
                   kTokenUnits<T>;
    return level;
}

struct Corners {
    uint32_t offset;  // of the upper left corner from the image's values, in 16-byte units
    float w00, w01, w10, w11;
};

// Position and corner weights of one sample. The four corners always lie inside the level's valid part: where the
// sample leaves it, the corners stop at the border and a tent function, max(0, 1 - distance), gives them the weights
// that reading zeros outside would have left.
template <typename T>
__device__ __forceinline__ Corners locate(LevelConstants const& level, Coordinate x, Coordinate y, float attention) {
    float const rounded_x = fminf(fmaxf(approximate<T>(x) - 0.5f, -0.25f), level.last_x) + kRoundMagic;
    float const rounded_y = fminf(fmaxf(approximate<T>(y) - 0.5f, -0.25f), level.last_y) + kRoundMagic;
    float const dx = distance<T>(x, rounded_x - kRoundMagic);
    float const dy = distance<T>(y, rounded_y - kRoundMagic);
    float const left = __saturatef(1.f - fabsf(dx));
    float const right = __saturatef(level.right_x - fabsf(dx - 1.f));
    float const upper = __saturatef(level.upper_y - fabsf(dy)) * attention;
    float const lower = __saturatef(level.lower_y - fabsf(dy - 1.f)) * attention;
    uint32_t const token = __float_as_uint(rounded_y) * static_cast<uint32_t>(level.width) + __float_as_uint(rounded_x);
    return {token * kTokenUnits<T> + level.origin, left * upper, right * upper, left * lower, right * lower};
}

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
    asm("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4+%5];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(address), "n"(kOffset));
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

__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float toFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

// `kCount` neighbouring elements as they lie in memory.
template <typename T, int kCount>
struct Raw {
    static constexpr int kBytes = sizeof(T) * kCount;
    using Word = std::conditional_t<kBytes >= 16, uint4, std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
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
        : u(lane & 7), chunk(min(u, kChunks - 1)), head(chunk / kLevels), level(chunk % kLevels),
          rest_level(kLevels - 2 + u / kPoints) {}

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
            samples.weights[level][p][slot] = {__float_as_uint(c[p].w00), __float_as_uint(c[p].w01),
                                               __float_as_uint(c[p].w10), __float_as_uint(c[p].w11)};
        }
    } else {
        using P = Packed<T>;
#pragma unroll
        for (int p = 0; p < kPoints; p += 2) {
            samples.weights[level][p / 2][pairSlot(slot, p / 2)] = {
                bits(P::round(c[p].w00, c[p].w01)), bits(P::round(c[p].w10, c[p].w11)),
                bits(P::round(c[p + 1].w00, c[p + 1].w01)), bits(P::round(c[p + 1].w10, c[p + 1].w11))};
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

__device__ __forceinline__ uint32_t element(uint4 const& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

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
__device__ __forceinline__ float prepareSamples(Samples<T, kLevels>& samples, LaneInputs<T, kLevels> const& in, LaneTask<kLevels> const& task,
                                                LevelConstants const& level, LevelConstants const& rest_level, int lane,
                                                int32_t reference_dim) {
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
        corners[p] = locate<T>(level, coordinate<T>(anchor.x, in.offsets.get(2 * p)), coordinate<T>(anchor.y, in.offsets.get(2 * p + 1)), attention);
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

// Block (x, y) takes share x of the queries of image and head set y. Its warps take items of the share in turn.
template <typename T, int kLevels>
__global__ void __launch_bounds__(kFastWarps * 32, 1) deformAttnFast(__grid_constant__ FastCall const call) {
    extern __shared__ uint4 shared[];
    __shared__ LevelConstants levels[kLevels];
    __shared__ TilePart parts[kChunkTiles * kMaxFastLevels];
    int const lane = threadIdx.x & 31, group = lane >> 2, t = lane & 3;
    auto& samples = reinterpret_cast<Samples<T, kLevels>*>(shared)[threadIdx.x >> 5];
    uint32_t const identity = Sums<T>::identityColumn(group, t);

    // First of all, because parameters come from memory too.
    TilePlace const first = call.places[blockIdx.x], last = call.places[blockIdx.x + 1];
    int32_t const image = static_cast<int32_t>(blockIdx.y) / kHeadSets;
    int const first_head = static_cast<int>(blockIdx.y % kHeadSets) * kBlockHeads, head = first_head + group % kBlockHeads;
    LaneTask<kLevels> const task(lane);
    if (threadIdx.x < kLevels) levels[threadIdx.x] = makeLevelConstants<T>(call, image, threadIdx.x, kLevels);
    uint64_t const base = __cvta_generic_to_global(
        static_cast<T const*>(call.value) + (static_cast<int64_t>(image) * call.tokens * kHeads + head) * kDim) + t * 16;

    auto const stride = static_cast<int32_t>(blockDim.x >> 5) * kItemQueries;
    auto turn = static_cast<int32_t>(threadIdx.x >> 5) * kItemQueries + group / kBlockHeads;
    int32_t const end_tile = last.endTile();
    for (int32_t tile = first.tile(); tile < end_tile; tile += kChunkTiles) {
        if (tile != first.tile()) __syncthreads();
        bool const encoder = call.tiles.maps > 1;
        int const part_count = min(end_tile - tile, kChunkTiles) * (encoder ? kLevels : 1);
        for (int i = static_cast<int>(threadIdx.x); i < part_count; i += static_cast<int>(blockDim.x)) {
            parts[i] = makeTilePart(call.tiles, tile + (encoder ? i / kLevels : i), encoder ? i % kLevels : 0, first, last);
        }
        __syncthreads();
        LevelConstants const level = levels[task.level], rest_level = levels[task.rest_level];
        int index = 0;
        LaneInputs<T, kLevels> in;
        auto const load = [&](int32_t query_of_image) {
            int64_t const query = static_cast<int64_t>(image) * call.queries + query_of_image;
            int64_t const first_sample = (query * kHeads + first_head) * (kLevels * kPoints);
            in.load(task, static_cast<T const*>(call.attention_logits) + first_sample, static_cast<T const*>(call.sampling_offsets) + first_sample * 2,
                    call.reference_points + query * kLevels * call.reference_dim, call.reference_dim);
        };
        Turn next = findQuery(parts, part_count, index, turn);
        load(next.query);
#pragma unroll 1
        while (__any_sync(kFullWarp, next.exists)) {
            Turn const now = next;
            float const total = prepareSamples<T, kLevels>(samples, in, task, level, rest_level, lane, call.reference_dim);
            __syncwarp();
            if (now.exists) turn += stride;
            next = findQuery(parts, part_count, index, turn);
            load(next.query);  // arrives while the present samples are added up
            Sums<T> const sums = sumSamples<T, kLevels>(samples, call, base, group, identity);
            __syncwarp();
            int64_t const query_head = (static_cast<int64_t>(image) * call.queries + now.query) * kHeads + head;
            if (now.exists) sums.store(static_cast<T*>(call.output) + query_head * kDim, t, __fdividef(1.f, total));
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The general kernel: any number of heads, levels and points, any dim that is a multiple of 4

constexpr int kGeneralThreads = 256;

struct GeneralCall {
    void const* value;
    float const* reference_points;
    void const* sampling_offsets;
    void const* attention_logits;
    int32_t const* valid_shapes;
    void* output;
    int64_t elements;  // batch * queries * heads * dim / kVector
    int64_t tokens;
    int32_t queries, heads, dim, levels, points, reference_dim;
    int32_t heights[kMaxLevels], widths[kMaxLevels];
};

__device__ __forceinline__ void fromFloat(float& y, float x) { y = x; }
__device__ __forceinline__ void fromFloat(__half& y, float x) { y = __float2half_rn(x); }
__device__ __forceinline__ void fromFloat(__nv_bfloat16& y, float x) { y = __float2bfloat16_rn(x); }

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
    T x[kVector];
};

// One thread makes kVector channels of one query and head. kVector is 4, or 1 for the plain design.
template <typename T, int kVector>
__global__ void __launch_bounds__(kGeneralThreads) deformAttnGeneral(__grid_constant__ GeneralCall const call) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kGeneralThreads + threadIdx.x;
    if (index >= call.elements) return;
    int32_t const vectors = call.dim / kVector;
    int64_t const query_head = index / vectors;
    int32_t const channel = static_cast<int32_t>(index % vectors) * kVector;
    int64_t const query = query_head / call.heads;
    int32_t const head = static_cast<int32_t>(query_head % call.heads);
    int64_t const image = query / call.queries;
    int32_t const samples = call.levels * call.points;
    T const* const logits = static_cast<T const*>(call.attention_logits) + query_head * samples;
    T const* const offsets = static_cast<T const*>(call.sampling_offsets) + query_head * samples * 2;

    float top = toFloat(logits[0]);
    for (int32_t s = 1; s < samples; ++s) top = fmaxf(top, toFloat(logits[s]));

    float total = 0.f;
    float sums[kVector] = {};
    int64_t const token_stride = static_cast<int64_t>(call.heads) * call.dim;
    T const* tokens = static_cast<T const*>(call.value) + image * call.tokens * token_stride + head * call.dim + channel;
    for (int32_t level = 0; level < call.levels; ++level) {
        int32_t const height = call.heights[level], width = call.widths[level];
        int32_t valid_height = height, valid_width = width;
        if (call.valid_shapes != nullptr) {
            int2 const valid = reinterpret_cast<int2 const*>(call.valid_shapes)[image * call.levels + level];
            valid_height = min(valid.x, height);
            valid_width = min(valid.y, width);
        }
        float const* const reference = call.reference_points + (query * call.levels + level) * call.reference_dim;
        float scale_x = 1.f, scale_y = 1.f;
        if (call.reference_dim == 4) {
            scale_x = reference[2] * static_cast<float>(width) * 0.5f / static_cast<float>(call.points);
            scale_y = reference[3] * static_cast<float>(height) * 0.5f / static_cast<float>(call.points);
        }
        Axis const axis_x = makeAxis<T>(reference[0], static_cast<float>(width), scale_x);
        Axis const axis_y = makeAxis<T>(reference[1], static_cast<float>(height), scale_y);
        for (int32_t point = 0; point < call.points; ++point) {
            int32_t const s = level * call.points + point;
            float const attention = exp2Approx((toFloat(logits[s]) - top) * kLog2E);
            total += attention;
            Coordinate const exact_x = coordinate<T>(axis_x, toFloat(offsets[2 * s]));
            Coordinate const exact_y = coordinate<T>(axis_y, toFloat(offsets[2 * s + 1]));
            float const x = approximate<T>(exact_x), y = approximate<T>(exact_y);
            // Beyond these bounds nothing is read, and within them the conversion to integers is exact.
            if (!(x > -1.f && y > -1.f && x < static_cast<float>(valid_width) && y < static_cast<float>(valid_height))) continue;
            int32_t const x0 = static_cast<int32_t>(floorf(x)), y0 = static_cast<int32_t>(floorf(y));
            float const dx = distance<T>(exact_x, floorf(x)), dy = distance<T>(exact_y, floorf(y));
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
                int32_t const cx = x0 + (corner & 1), cy = y0 + (corner >> 1);
                if (cx < 0 || cy < 0 || cx >= valid_width || cy >= valid_height) continue;
                float const weight = attention * (corner & 1 ? dx : 1.f - dx) * (corner >> 1 ? dy : 1.f - dy);
                auto const v = *reinterpret_cast<Vector<T, kVector> const*>(
                    tokens + (static_cast<int64_t>(cy) * width + cx) * token_stride);
#pragma unroll
                for (int i = 0; i < kVector; ++i) sums[i] = fmaf(weight, toFloat(v.x[i]), sums[i]);
            }
        }
        tokens += static_cast<int64_t>(height) * width * token_stride;
    }
    Vector<T, kVector> out;
#pragma unroll
    for (int i = 0; i < kVector; ++i) fromFloat(out.x[i], sums[i] / total);
    *reinterpret_cast<Vector<T, kVector>*>(static_cast<T*>(call.output) + query_head * call.dim + channel) = out;
}

// ---------------------------------------------------------------------------------------------------------------
// Launchers

// Whether the queries are the tokens of a pyramid whose first level is the finest, and so can be cut into tiles.
bool isEncoder(MsDeformAttn const& call, int64_t tokens) {
    if (call.queries != tokens || call.spatial_shapes[0] > kMaxSide || call.spatial_shapes[1] > kMaxSide) return false;
    for (int32_t i = 2; i < 2 * call.levels; ++i) {
        if (call.spatial_shapes[i] > call.spatial_shapes[i - 2]) return false;
    }
    return true;
}

// Lays out the queries and returns the items of one image and set of heads.
int32_t mapQueries(QueryTiles<kMaxFastLevels>& tiles, MsDeformAttn const& call, int64_t tokens) {
    bool const encoder = isEncoder(call, tokens);
    int32_t const* const shapes = call.spatial_shapes;
    tiles.maps = encoder ? call.levels : 1;
    tiles.setGrid(encoder ? (shapes[0] + kTileRows - 1) / kTileRows : 1, encoder ? (shapes[1] + kTileColumns - 1) / kTileColumns : 1);
    int32_t start = 0;
    for (int32_t i = 0; i < tiles.maps; ++i) {
        tiles.map[i] = encoder ? QueryMap{shapes[2 * i], shapes[2 * i + 1], start} : QueryMap{1, call.queries, 0};
        start += tiles.map[i].height * tiles.map[i].width;
    }
    return (call.queries + kItemQueries - 1) / kItemQueries;
}

bool fitsFast(MsDeformAttn const& call, int64_t tokens) {
    if (call.heads != kHeads || call.dim != kDim || call.points != kPoints) return false;
    if (call.levels < 3 || call.levels > kMaxFastLevels) return false;
    for (int32_t i = 0; i < call.levels; ++i) {
        // The corners are neighbours inside the level, so it has two rows and columns.
        if (call.spatial_shapes[2 * i] < 2 || call.spatial_shapes[2 * i + 1] < 2) return false;
    }
    // Tokens: 32-bit offsets in units of 16 bytes. Queries that are no tokens are one part of one tile, whose numbers
    // `findQuery` needs to be exact in a float. Batch: blocks of the grid.
    if (tokens > (1 << 25) || (call.queries > (1 << 20) && !isEncoder(call, tokens)) || call.batch > 65535 / kHeadSets) return false;
    return aligned(call.value, 16) && aligned(call.sampling_offsets, 16) && aligned(call.attention_logits, 16) &&
           aligned(call.output, 16) && aligned(call.reference_points, 8) && aligned(call.valid_shapes, 8);
}

// A plane is one image and set of heads. One block fills a multiprocessor, so the blocks of all planes should fill
// the device once; where that would leave more than a thirtieth of it idle, up to four times.
int blocksPerPlane(int planes, int multiprocessors) {
    int best = 1;
    double best_use = 0;
    for (int waves = 1; waves <= 4; ++waves) {
        int const blocks = std::max(1, waves * multiprocessors / planes);
        int const slots = (blocks * planes + multiprocessors - 1) / multiprocessors * multiprocessors;
        double const use = static_cast<double>(blocks) * planes / slots;
        if (use > best_use + 1. / 30) {
            best_use = use;
            best = blocks;
        }
    }
    return best;
}

template <typename T, int kLevels>
cudaError_t launchFast(MsDeformAttn const& call, int64_t tokens, cudaStream_t stream) {
    FastCall fast{};
    fast.value = call.value;
    fast.reference_points = call.reference_points;
    fast.sampling_offsets = call.sampling_offsets;
    fast.attention_logits = call.attention_logits;
    fast.valid_shapes = call.valid_shapes;
    fast.output = call.output;
    fast.batch = call.batch;
    fast.queries = call.queries;
    fast.tokens = static_cast<int32_t>(tokens);
    fast.reference_dim = call.reference_dim;
    int32_t start = 0;
    for (int32_t i = 0; i < kLevels; ++i) {
        fast.levels[i] = {call.spatial_shapes[2 * i], call.spatial_shapes[2 * i + 1], start};
        start += fast.levels[i].height * fast.levels[i].width;
    }
    int32_t const items = mapQueries(fast.tiles, call, tokens);
    int device = 0, multiprocessors = 0;
    if (auto const error = cudaGetDevice(&device); error != cudaSuccess) return error;
    if (auto const error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device); error != cudaSuccess) {
        return error;
    }
    int const planes = call.batch * kHeadSets;
    int const blocks = std::min({blocksPerPlane(planes, multiprocessors), items, kMaxShares});
    cutIntoShares(fast.tiles, blocks, fast.places);
    int const warps = std::min(kFastWarps, (items + blocks - 1) / blocks);
    auto const kernel = deformAttnFast<T, kLevels>;
    size_t const shared = sizeof(Samples<T, kLevels>) * warps;
    static_assert(sizeof(Samples<T, kLevels>) * kFastWarps + sizeof(LevelConstants) * kLevels +
                      sizeof(TilePart) * kChunkTiles * kMaxFastLevels <= 48 * 1024,
                  "more shared memory has to be asked for");
    kernel<<<dim3(blocks, planes), warps * 32, shared, stream>>>(fast);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launchFastLevels(MsDeformAttn const& call, int64_t tokens, cudaStream_t stream) {
    switch (call.levels) {
        case 3: return launchFast<T, 3>(call, tokens, stream);
        case 4: return launchFast<T, 4>(call, tokens, stream);
        default: return launchFast<T, 5>(call, tokens, stream);
    }
}

template <typename T, int kVector>
cudaError_t launchGeneral(MsDeformAttn const& call, int64_t tokens, cudaStream_t stream) {
    GeneralCall general{};
    general.value = call.value;
    general.reference_points = call.reference_points;
    general.sampling_offsets = call.sampling_offsets;
    general.attention_logits = call.attention_logits;
    general.valid_shapes = call.valid_shapes;
    general.output = call.output;
    general.elements = static_cast<int64_t>(call.batch) * call.queries * call.heads * (call.dim / kVector);
    general.tokens = tokens;
    general.queries = call.queries;
    general.heads = call.heads;
    general.dim = call.dim;
    general.levels = call.levels;
    general.points = call.points;
    general.reference_dim = call.reference_dim;
    for (int32_t i = 0; i < call.levels; ++i) {
        general.heights[i] = call.spatial_shapes[2 * i];
        general.widths[i] = call.spatial_shapes[2 * i + 1];
    }
    int64_t const blocks = (general.elements + kGeneralThreads - 1) / kGeneralThreads;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    deformAttnGeneral<T, kVector><<<static_cast<unsigned>(blocks), kGeneralThreads, 0, stream>>>(general);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launch(MsDeformAttn const& call, bool plain, cudaStream_t stream) {
    int64_t const tokens = countTokens(call.spatial_shapes, call.levels);
    if (plain) return launchGeneral<T, 1>(call, tokens, stream);
    return fitsFast(call, tokens) ? launchFastLevels<T>(call, tokens, stream) : launchGeneral<T, 4>(call, tokens, stream);
}

cudaError_t launchAny(MsDeformAttn const& call, bool plain, cudaStream_t stream) {
    if (findFault(call) != nullptr) return cudaErrorInvalidValue;
    if (call.batch == 0 || call.queries == 0) return cudaSuccess;
    switch (call.type) {
        case ElementType::kFloat16: return launch<__half>(call, plain, stream);
        case ElementType::kBFloat16: return launch<__nv_bfloat16>(call, plain, stream);
        default: return launch<float>(call, plain, stream);
    }
}

}  // namespace

cudaError_t launchMsDeformAttn(MsDeformAttn const& call, cudaStream_t stream) { return launchAny(call, false, stream); }

cudaError_t launchMsDeformAttnPlain(MsDeformAttn const& call, cudaStream_t stream) { return launchAny(call, true, stream); }

}  // namespace codetr
