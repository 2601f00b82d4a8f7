// Attention inside (shifted) windows of 7x7 or 12x12 tokens with heads of 32 channels, in one kernel: query, key and
// value are read where the projection left them, and the result is written where the next one reads it.
//
// A thread block makes one window of one head. Each warp takes 16 queries at a time and keeps their scores against all
// tokens of the window in registers: a multiplication on tensor cores, a softmax among four lanes, and the weights are
// the operand of the second multiplication as they are. Lane 4 * g + t of a warp holds
//
//     scores   of queries g and g + 8, tokens 8 * n + 2 * t and the next, for all n
//     queries  g and g + 8, channels 8 * t to 8 * t + 7        (16 bytes each)
//     keys     token 8 * n + g, channels 8 * t to 8 * t + 7    (16 bytes)
//
// The tensor core's own order of channels is another one, but a sum over channels has none: it is enough that queries and
// keys agree.

#include "window_attn.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

namespace codetr {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr float kRootDim = 5.65685425f;   // of 32 channels; scores are divided by it
constexpr float kRegionPenalty = -100.f;  // between tokens that are no neighbours, as in mmdetection
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kDim = kWindowHeadDim;
constexpr int kPieces = kDim * 2 / 16;  // of 16 bytes, of a token's head

template <typename T>
struct Type;

template <>
struct Type<__half> {
    static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
        __half2 const pair = __floats2half2_rn(lo, hi);
        uint32_t bits;
        memcpy(&bits, &pair, sizeof(bits));
        return bits;
    }
    static __device__ __forceinline__ float widen(__half x) { return __half2float(x); }
    // sums += a * b: 16x16 times 16x8.
    static __device__ __forceinline__ void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                    uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
};

template <>
struct Type<__nv_bfloat16> {
    static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
        __nv_bfloat162 const pair = __floats2bfloat162_rn(lo, hi);
        uint32_t bits;
        memcpy(&bits, &pair, sizeof(bits));
        return bits;
    }
    static __device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
    static __device__ __forceinline__ void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                    uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
};

__device__ __forceinline__ float exp2Approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t sharedAddress(void const* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// Starts to copy 16 bytes into shared memory, or zeros where there is nothing to copy.
__device__ __forceinline__ void copyAsync(uint32_t to, void const* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void waitForCopies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two 16x8 operands of a multiplication out of 16 rows of 16 channels; `address` is the lane's own row.
__device__ __forceinline__ void loadTransposed(uint32_t (&b)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
}

// Element i of lane t among four goes to element t of lane i.
__device__ __forceinline__ void transposeQuad(uint32_t (&x)[4], int t) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        bool const upper = t & step;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i & step) continue;
            uint32_t const received = __shfl_xor_sync(kFullWarp, upper ? x[i] : x[i + step], step);
            if (upper) {
                x[i] = received;
            } else {
                x[i + step] = received;
            }
        }
    }
}

__device__ __forceinline__ float maxOfQuad(float x) {
    x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
    return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}
__device__ __forceinline__ float sumOfQuad(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
}

constexpr int greatestDivisor(int a, int b) { return b == 0 ? a : greatestDivisor(b, a % b); }

template <int kWindow>
struct Sizes {
    static constexpr int kTokens = kWindow * kWindow;
    static constexpr int kTiles = (kTokens + 15) / 16;  // of 16 queries
    static constexpr int kColumns = (kTokens + 7) / 8;  // groups of 8 tokens
    static constexpr int kRows = kTiles * 16;           // of keys and values in shared memory
    static constexpr int kTable = (2 * kWindow - 1) * (2 * kWindow - 1);
    // Token 8 * n of a window has the same place in its row for every n that is a multiple of kPhases, so the bias of so
    // many groups is found with an index of their own, and that of the others at a constant distance from it.
    static constexpr int kPhases = kWindow / greatestDivisor(8, kWindow);
    static constexpr int kPhaseDistance = 8 * kPhases / kWindow * (2 * kWindow - 1);
    // The bias of two neighbouring tokens lies side by side, unless the second may be in the next row.
    static constexpr bool kPaired = kWindow % 2 == 0;
};

struct WindowCall {
    void const* qkv;
    void const* qkv_bias;
    void const* bias_table;
    void* output;
    WindowMap map;
    int32_t heads;
};

struct Query {
    uint4 low, high;                // of rows g and g + 8
    int32_t low_token, high_token;  // -1: there is none, and its result goes nowhere
};

template <int kWindow>
constexpr int kWarps = kWindow == 12 ? 3 : 4;
constexpr int kBlocks = 5;  // of a multiprocessor: 128 registers a thread for windows of 12, whose scores are 72 of them

template <typename T, int kWindow>
__global__ void __launch_bounds__(kWarps<kWindow> * 32, kBlocks) windowAttn(__grid_constant__ WindowCall const call) {
    using S = Sizes<kWindow>;
    constexpr int kThreads = kWarps<kWindow> * 32;
    constexpr int kTurnRows = kThreads / kPieces, kTurns = S::kRows / kTurnRows;
    static_assert(S::kRows % kTurnRows == 0, "whole turns");
    static_assert(S::kTiles % kWarps<kWindow> == 0, "all warps make the same number of turns");
    __shared__ alignas(128) uint4 keys[S::kRows * kPieces];
    __shared__ alignas(128) uint4 values[S::kRows * kPieces];  // piece c of row r at c ^ (r / 2 % 4): reads of a column meet no other
    __shared__ float2 biases[S::kPaired ? S::kTable : (S::kTable + 1) / 2];
    __shared__ alignas(16) uint8_t regions[S::kRows];

    int const thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    int const g = lane / 4, t = lane % 4;
    int32_t const head = static_cast<int32_t>(blockIdx.x), image = static_cast<int32_t>(blockIdx.z);
    WindowPlace const place = placeOf<kWindow>(call.map, static_cast<int32_t>(blockIdx.y));
    int64_t const tokens = static_cast<int64_t>(call.map.height) * call.map.width;
    uint32_t const token_pieces = call.heads * kPieces;  // of query, of key, of value and of the result
    uint4 const* const qkv = static_cast<uint4 const*>(call.qkv) + image * tokens * 3 * token_pieces + head * kPieces;
    uint4 const* const padding = call.qkv_bias == nullptr ? nullptr : static_cast<uint4 const*>(call.qkv_bias) + head * kPieces;

    // ---- What will be needed last is asked for first: everything is on its way at once
    constexpr int kTableTurns = (S::kTable + kThreads - 1) / kThreads;
    T table[kTableTurns];
#pragma unroll
    for (int turn = 0; turn < kTableTurns; ++turn) {
        int const i = min(thread + turn * kThreads, S::kTable - 1);
        table[turn] = static_cast<T const*>(call.bias_table)[i * call.heads + head];
    }

    // ---- Keys and values into shared memory: four threads a token, in each turn a piece of it
    int const first_row = thread / kPieces, piece = thread % kPieces;
    uint4 const* sources[kTurns];  // null: nothing but zeros
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
        int const row = first_row + turn * kTurnRows;
        int32_t const token =
            kTurnRows % kWindow == 0
                ? tokenAt<kWindow>(call.map, place, first_row / kWindow + turn * (kTurnRows / kWindow), first_row % kWindow)
                : tokenAt<kWindow>(call.map, place, row);
        sources[turn] = token >= 0 ? qkv + static_cast<uint32_t>(token) * (3 * token_pieces) : padding;
        if (S::kRows > S::kTokens && row >= S::kTokens) sources[turn] = nullptr;
    }
#pragma unroll
    for (int part = 1; part <= 2; ++part) {
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            int const row = first_row + turn * kTurnRows;
            uint4* const to = part == 1 ? keys + row * kPieces + piece : values + row * kPieces + (piece ^ (row / 2 % 4));
            copyAsync(sharedAddress(to), sources[turn] + part * token_pieces + piece, sources[turn] != nullptr);
        }
        commitCopies();
    }

    auto const loadQuery = [&](int tile) {
        int const low = tile * 16 + g, high = low + 8;
        Query query;
        query.low_token = low < S::kTokens ? tokenAt<kWindow>(call.map, place, low) : -1;
        query.high_token = high < S::kTokens ? tokenAt<kWindow>(call.map, place, high) : -1;
        // Where there is no query any other will do: its result goes nowhere.
        query.low = qkv[max(query.low_token, 0) * (3 * token_pieces) + t];
        query.high = qkv[max(query.high_token, 0) * (3 * token_pieces) + t];
        return query;
    };
    Query query = loadQuery(warp);

    // ---- The bias, in units of the scores before they are scaled
#pragma unroll
    for (int turn = 0; turn < kTableTurns; ++turn) {
        int const i = thread + turn * kThreads;
        if (i >= S::kTable) break;
        float const bias = Type<T>::widen(table[turn]) * kRootDim;
        if constexpr (S::kPaired) {
            biases[i].x = bias;
            if (i + 1 < S::kTable) biases[i + 1].y = bias;  // the token to the right lies one further back
        } else {
            reinterpret_cast<float*>(biases)[i] = bias;
        }
    }
    bool const masked = place.bottom || place.right;
    if (masked) {
        for (int i = thread; i < S::kRows; i += kThreads) regions[i] = static_cast<uint8_t>(regionAt<kWindow>(call.map, place, i));
    }
    waitForCopies<1>();
    __syncthreads();

#pragma unroll 1
    for (int turn = 0; turn < S::kTiles / kWarps<kWindow>; ++turn) {
        int const tile = warp + turn * kWarps<kWindow>;
        int const low = min(tile * 16 + g, S::kTokens - 1), high = min(tile * 16 + g + 8, S::kTokens - 1);
        float scores[S::kColumns][4];
        // ---- Bias
        int const low_row = biasRow<kWindow>(low), high_row = biasRow<kWindow>(high);
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n) {
            int const phase = n % S::kPhases, distance = n / S::kPhases * S::kPhaseDistance;
            int const first = 8 * phase + 2 * t;
            if constexpr (S::kPaired) {
                float2 const x = biases[low_row - biasColumn<kWindow>(first) - distance];
                float2 const y = biases[high_row - biasColumn<kWindow>(first) - distance];
                scores[n][0] = x.x, scores[n][1] = x.y, scores[n][2] = y.x, scores[n][3] = y.y;
            } else {
                float const* const single = reinterpret_cast<float const*>(biases);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    bool const exists = 8 * n + 7 < S::kTokens || 8 * n + 2 * t + i < S::kTokens;
                    int const column = biasColumn<kWindow>(first + i) + distance;
                    scores[n][i] = exists ? single[low_row - column] : -INFINITY;
                    scores[n][2 + i] = exists ? single[high_row - column] : -INFINITY;
                }
            }
        }
        if (masked) {
            int const low_region = regions[low], high_region = regions[high];
#pragma unroll
            for (int n = 0; n < S::kColumns; ++n) {
                auto const pair = *reinterpret_cast<uchar2 const*>(regions + 8 * n + 2 * t);
                if (pair.x != low_region) scores[n][0] += kRegionPenalty * kRootDim;
                if (pair.y != low_region) scores[n][1] += kRegionPenalty * kRootDim;
                if (pair.x != high_region) scores[n][2] += kRegionPenalty * kRootDim;
                if (pair.y != high_region) scores[n][3] += kRegionPenalty * kRootDim;
            }
        }
        // ---- Scores
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n) {
            uint4 const key = keys[(8 * n + g) * kPieces + t];
            Type<T>::multiply(scores[n], query.low.x, query.high.x, query.low.y, query.high.y, key.x, key.y);
            Type<T>::multiply(scores[n], query.low.z, query.high.z, query.low.w, query.high.w, key.z, key.w);
        }
        // ---- Softmax
        float tops[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) tops[i] = fmaxf(tops[i], scores[n][i]);
        }
        constexpr float kScale = kLog2E / kRootDim;
        float const low_top = maxOfQuad(fmaxf(tops[0], tops[1])) * kScale;
        float const high_top = maxOfQuad(fmaxf(tops[2], tops[3])) * kScale;
        float totals[4] = {};
        uint32_t weights[S::kTiles * 2][2];  // of rows g and g + 8
#pragma unroll
        for (int n = 0; n < S::kTiles * 2; ++n) {
            weights[n][0] = weights[n][1] = 0;
            if (n >= S::kColumns) continue;
            float const a = exp2Approx(fmaf(scores[n][0], kScale, -low_top)), b = exp2Approx(fmaf(scores[n][1], kScale, -low_top));
            float const c = exp2Approx(fmaf(scores[n][2], kScale, -high_top)), d = exp2Approx(fmaf(scores[n][3], kScale, -high_top));
            totals[0] += a, totals[1] += b, totals[2] += c, totals[3] += d;
            weights[n][0] = Type<T>::pack(a, b);
            weights[n][1] = Type<T>::pack(c, d);
        }
        float const low_sum = sumOfQuad(totals[0] + totals[1]), high_sum = sumOfQuad(totals[2] + totals[3]);
        // ---- Weighted values
        if (turn == 0) {
            waitForCopies<0>();
            __syncthreads();
        }
        Query next{};
        if (turn + 1 < S::kTiles / kWarps<kWindow>) next = loadQuery(tile + kWarps<kWindow>);
        float sums[kPieces][4] = {};
        int const matrix = lane / 8, row = matrix % 2 * 8 + lane % 8;  // whose address this lane gives
        uint32_t const address = sharedAddress(values + row * kPieces + (matrix / 2 ^ (row / 2 % 4)));
#pragma unroll
        for (int k = 0; k < S::kTiles; ++k) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t b[4];
                loadTransposed(b, (address ^ (32 * half)) + k * 16 * kPieces * 16);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    Type<T>::multiply(sums[2 * half + i], weights[2 * k][0], weights[2 * k][1], weights[2 * k + 1][0],
                                      weights[2 * k + 1][1], b[2 * i], b[2 * i + 1]);
                }
            }
        }
        // ---- Output
        float const low_share = __fdividef(1.f, low_sum), high_share = __fdividef(1.f, high_sum);
        uint32_t low_out[4], high_out[4];
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            low_out[i] = Type<T>::pack(sums[i][0] * low_share, sums[i][1] * low_share);
            high_out[i] = Type<T>::pack(sums[i][2] * high_share, sums[i][3] * high_share);
        }
        transposeQuad(low_out, t);
        transposeQuad(high_out, t);
        uint4* const output = static_cast<uint4*>(call.output) + image * tokens * token_pieces + head * kPieces + t;
        if (query.low_token >= 0) output[query.low_token * token_pieces] = make_uint4(low_out[0], low_out[1], low_out[2], low_out[3]);
        if (query.high_token >= 0) output[query.high_token * token_pieces] = make_uint4(high_out[0], high_out[1], high_out[2], high_out[3]);
        query = next;
    }
}

template <typename T, int kWindow>
cudaError_t launch(WindowAttn const& call, cudaStream_t stream) {
    WindowMap const map = makeWindowMap(call.height, call.width, kWindow, call.shift);
    WindowCall const window{call.qkv, call.qkv_bias, call.bias_table, call.output, map, call.heads};
    dim3 const blocks(call.heads, map.rows * map.columns, call.batch);
    windowAttn<T, kWindow><<<blocks, kWarps<kWindow> * 32, 0, stream>>>(window);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launchWindow(WindowAttn const& call, cudaStream_t stream) {
    return call.window == 7 ? launch<T, 7>(call, stream) : launch<T, 12>(call, stream);
}

}  // namespace

cudaError_t launchWindowAttn(WindowAttn const& call, cudaStream_t stream) {
    if (findFault(call) != nullptr) return cudaErrorInvalidValue;
    if (call.batch == 0 || call.height == 0 || call.width == 0) return cudaSuccess;
    return call.type == ElementType::kFloat16 ? launchWindow<__half>(call, stream) : launchWindow<__nv_bfloat16>(call, stream);
}

}  // namespace codetr
