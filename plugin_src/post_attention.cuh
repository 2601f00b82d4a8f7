// The kernel of post_attention.h. It stands on hopper.cuh alone, or on test/fake_hopper.h, which runs it on a CPU.
//
// A cluster of two blocks works on 256 rows at a time, a warpgroup on 64, and reads all weights for them; each block fetches
// half of every piece and gives it to both. Between two products nothing leaves the registers of a warpgroup, but for the
// operand of the feed-forward network's first product.
//
// Whose numbers are whose: thread t of a warpgroup, lane l, has the rows r = 16 (t / 32) + l / 4 and r + 8. Of each 32
// columns it has the eight from 8 q on, q = l % 4, which are 16 bytes of a tensor. The weights lie in an order in which that
// is so for the sums of a product as for its operand in registers:
//
//     columns of 32   0..7     8..15    16..23   24..31
//     row r           q = 0    q = 1    q = 2    q = 3        row r + 8 the same
#pragma once

#include "post_attention.h"

namespace codetr {
namespace post {
namespace {

using namespace hopper;

constexpr int kBlocks = 2;     // in a cluster
constexpr int kConsumers = 2;  // warpgroups in a block that multiply
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kRows = 64;  // of a warpgroup
constexpr int kTileRows = kBlocks * kConsumers * kRows;
constexpr int kMaxSlots = 9;  // for pieces of the weights
constexpr int kGroups = kWidth / 32;
constexpr int kSlices = kWidth / 64;
constexpr int kOperandTile = kRows * 128;          // bytes: 64 rows of 128 bytes
constexpr int kOperandBytes = kRows * kWidth * 2;  // of a warpgroup, in T
constexpr int kE4m3OperandBytes = kRows * kWidth;
constexpr int kSharedBytes = 227 << 10;  // that a block may have

CODETR_EVERYWHERE constexpr int operandBytes(bool e4m3) { return kConsumers * (kOperandBytes + (e4m3 ? kE4m3OperandBytes : 0)); }
// Bytes of shared memory beside the slots: operands, vectors, barriers.
CODETR_EVERYWHERE constexpr int bytesBesideSlots(bool e4m3, int numbers) {
    return operandBytes(e4m3) + roundUp(4 * numbers, 16) + 2 * kMaxSlots * static_cast<int>(sizeof(uint64_t));
}
CODETR_EVERYWHERE constexpr int countSlots(bool e4m3, int numbers) {
    int const slots = (kSharedBytes - bytesBesideSlots(e4m3, numbers)) / kPieceBytes;
    return slots < kMaxSlots ? slots : kMaxSlots;
}

// The pieces that a warpgroup has at once, at the most: of the first product of a chunk, and half of the second of the one before.
constexpr int kFewestSlots = kSlices + 2;
static_assert(countSlots(true, Vectors{kMaxHidden}.columnBias() + kWidth + kMaxColumns) >= kFewestSlots,
              "a warpgroup would wait for itself");

struct Arguments {
    PostAttention call;
    int pieces;   // of the weights
    int numbers;  // of the vectors
    int slots;
    bool halves;  // the last round may be of half tiles, so that more clusters have a share
};

// What a cluster works on: `rows` for each of its blocks from `first` on.
struct Share {
    int64_t first;
    int rows;  // 0: nothing is left
};

// The share of a cluster in a round. A last round that has tiles for fewer than half of the clusters is one of half tiles. Every
// second cluster has its half first, so that not all of them wait for their rows at the same time.
__device__ inline Share shareOf(int64_t rows, int round, int cluster, int clusters, bool halves) {
    int64_t const tiles = (rows + kTileRows - 1) / kTileRows, left = tiles % clusters;
    int const whole = static_cast<int>(tiles / clusters);
    bool const split = halves && 2 * left <= clusters;
    int64_t const behind = static_cast<int64_t>(whole) * clusters * kTileRows;
    int64_t const first = behind + static_cast<int64_t>(cluster) * (split ? kTileRows / 2 : kTileRows);
    bool const takes_part = cluster < (split ? 2 * left : left) && first < rows;
    if (split && takes_part && cluster % 2 != 0 && round <= whole) round = round == 0 ? whole : round - 1;
    if (round < whole) return {(static_cast<int64_t>(round) * clusters + cluster) * kTileRows, kConsumers * kRows};
    if (round > whole || !takes_part) return {0, 0};
    return {first, split ? kRows : kConsumers * kRows};
}

// A block's shared memory.
struct Shared {
    char* operands;
    char* e4m3_operands;
    char* slots;
    float* vectors;
    uint64_t* full;
    uint64_t* empty;

    __device__ Shared(Arguments const& arguments) {
        operands = sharedMemory();
        e4m3_operands = operands + kConsumers * kOperandBytes;
        slots = operands + operandBytes(arguments.call.e4m3);
        vectors = reinterpret_cast<float*>(slots + arguments.slots * kPieceBytes);
        full = reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(vectors) + roundUp(4 * arguments.numbers, 16));
        empty = full + kMaxSlots;
    }
};

// A place in the ring of slots.
struct Place {
    int slot = 0, phase = 0;
    __device__ void advance(int slots) {
        if (++slot == slots) slot = 0, phase ^= 1;
    }
};

// The pieces as a warpgroup meets them. Whoever has taken one gives it back when no product reads it any more.
struct Pieces {
    Shared const& shared;
    int slots, thread;  // in the warpgroup
    Place taken, released;

    __device__ char const* take() {
        waitFor(shared.full + taken.slot, taken.phase);
        char const* const piece = shared.slots + taken.slot * kPieceBytes;
        taken.advance(slots);
        return piece;
    }
    __device__ void release(int count) {
        for (int i = 0; i < count; ++i) {
            if (thread < kBlocks) arriveAt(shared.empty + released.slot, thread);
            released.advance(slots);
        }
    }
    // Takes none of the next ones. Only those wait that give them back: another thread might be so late that a phase is over.
    __device__ void pass(int count) {
        for (int i = 0; i < count; ++i) {
            if (thread < kBlocks) {
                waitFor(shared.full + taken.slot, taken.phase);
                arriveAt(shared.empty + taken.slot, thread);
            }
            taken.advance(slots);
        }
        released = taken;
    }
};

// ---- The block's first warpgroup: weights from global memory ----

// Asks for rows of a tensor in the L2 cache.
__device__ inline void prefetchRows(void const* tensor, int64_t first, int64_t count, int64_t rows) {
    constexpr int64_t kStep = 32, kBytes = kWidth * 2;
    for (int64_t i = first; i < first + count && i < rows; i += kStep) {
        int64_t const some = rows - i < kStep ? rows - i : kStep;
        prefetch(static_cast<char const*>(tensor) + i * kBytes, static_cast<int>(some * kBytes));
    }
}

__device__ inline void produce(Arguments const& arguments, Shared const& shared) {
    PostAttention const& call = arguments.call;
    constexpr int kPart = kPieceBytes / kBlocks;
    int const rank = rankInCluster(), cluster = clusterInGrid(), clusters = clustersInGrid();
    char const* const weights = static_cast<char const*>(call.weights) + rank * kPart;
    Place place;
    Share share = shareOf(call.rows, 0, cluster, clusters, arguments.halves);
    for (int round = 0; share.rows > 0; ++round) {
        Share const next = shareOf(call.rows, round + 1, cluster, clusters, arguments.halves);
        for (int piece = 0; piece < arguments.pieces; ++piece) {
            waitFor(shared.empty + place.slot, place.phase ^ 1);
            arriveAndExpect(shared.full + place.slot, kPieceBytes);
            copyToCluster(shared.slots + place.slot * kPieceBytes + rank * kPart, weights + static_cast<int64_t>(piece) * kPieceBytes,
                          kPart, shared.full + place.slot, (1 << kBlocks) - 1);
            place.advance(arguments.slots);
            if (piece != arguments.pieces / 2) continue;
            if (call.followed) prefetchRows(call.position, share.first + rank * share.rows, share.rows, call.rows);
            prefetchRows(call.attended, next.first + rank * next.rows, next.rows, call.rows);
            prefetchRows(call.residual, next.first + rank * next.rows, next.rows, call.rows);
        }
        share = next;
    }
}

// ---- The others: products ----

// Eight numbers of a vector in shared memory.
struct Eight {
    float numbers[8];
    __device__ explicit Eight(float const* place) {
        float4 const low = *reinterpret_cast<float4 const*>(place), high = *reinterpret_cast<float4 const*>(place + 4);
        numbers[0] = low.x, numbers[1] = low.y, numbers[2] = low.z, numbers[3] = low.w;
        numbers[4] = high.x, numbers[5] = high.y, numbers[6] = high.z, numbers[7] = high.w;
    }
};

// The sums of a product with 128 columns, and where the eight numbers of row r (0) or r + 8 (1) in a group of 32 columns are.
__device__ constexpr int place(int group, int row, int i) { return 16 * group + 4 * (i / 2) + 2 * row + i % 2; }

// A thread's rows of a tensor [rows, columns] of T.
struct RowsOf {
    char* low;
    char* high;
    bool has_low, has_high;

    __device__ RowsOf(void const* tensor, int64_t row, int64_t rows, int columns)
        : low(static_cast<char*>(const_cast<void*>(tensor)) + 2 * row * columns),
          high(low + 2 * 8 * static_cast<int64_t>(columns)),
          has_low(row < rows),
          has_high(row + 8 < rows) {}
    __device__ Vector load(int row, int column) const {
        Vector x{};
        if (row == 0 ? has_low : has_high) x = loadGlobal((row == 0 ? low : high) + 2 * column);
        return x;
    }
    __device__ void store(int row, int column, Vector const& x) const {
        if (row == 0 ? has_low : has_high) storeGlobal((row == 0 ? low : high) + 2 * column, x);
    }
};

// 256 columns of the thread's two rows as operand of four products of 64: of each 32 bytes row r, r + 8, r, r + 8.
using Operand = uint32_t[kSlices][16];
__device__ __forceinline__ uint32_t& word(Operand& operand, int group, int row, int i) {
    return operand[group / 2][8 * (group % 2) + 4 * (i / 2) + 2 * (i % 2) + row];
}

template <typename T>
__device__ __forceinline__ void addVector(float (&sums)[64], int group, int row, Vector const& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 const pair = unpack<T>(x.words[i]);
        sums[place(group, row, 2 * i)] += pair.x;
        sums[place(group, row, 2 * i + 1)] += pair.y;
    }
}

template <typename T>
__device__ __forceinline__ Vector packSums(float const (&sums)[64], int group, int row) {
    Vector x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.words[i] = pack<T>(sums[place(group, row, 2 * i)], sums[place(group, row, 2 * i + 1)]);
    return x;
}

// The sum of a function of the 256 numbers of a row; four sums at a time, since each waits for the one before.
template <typename F>
__device__ __forceinline__ float sumOfRow(float const (&sums)[2][64], int row, F function) {
    float parts[4] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) parts[i % 4] += function(sums[i / 32][place(i % 32 / 8, row, i % 8)]);
    return sumOfQuad((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

// Normalises the two rows of 256 numbers over the quad that has them.
__device__ __forceinline__ void normalise(float (&sums)[2][64], float const* weight, float const* bias, float epsilon, int q) {
    float means[2], scales[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        means[row] = sumOfRow(sums, row, [](float x) { return x; }) * (1.f / kWidth);
        float const mean = means[row];
        scales[row] = inverseRoot(sumOfRow(sums, row, [mean](float x) { return (x - mean) * (x - mean); }) * (1.f / kWidth) + epsilon);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        Eight const w(weight + 32 * group + 8 * q), b(bias + 32 * group + 8 * q);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& x = sums[group / 4][place(group % 4, row, i)];
                x = (x - means[row]) * scales[row] * w.numbers[i] + b.numbers[i];
            }
        }
    }
}

template <typename T, bool kE4m3, bool kFollowed>
struct Consumer {
    Arguments const& arguments;
    Shared const& shared;
    Pieces pieces;
    int thread;  // in the warpgroup
    int number;  // of the warpgroup among those that multiply
    int q;
    char* x;       // the operand of the feed-forward network in T: four tiles of 64 columns
    char* x_e4m3;  // in E4M3: two of 128

    __device__ Consumer(Arguments const& arguments, Shared const& shared, int number)
        : arguments(arguments),
          shared(shared),
          pieces{shared, arguments.slots, threadInBlock() % kWarpgroup, {}, {}},
          thread(threadInBlock() % kWarpgroup),
          number(number),
          q(threadInBlock() % 4),
          x(shared.operands + number * kOperandBytes),
          x_e4m3(shared.e4m3_operands + number * kE4m3OperandBytes) {}

    __device__ void run() {
        PostAttention const& call = arguments.call;
        int const rank = rankInCluster(), cluster = clusterInGrid(), clusters = clustersInGrid();
        for (int round = 0;; ++round) {
            Share const share = shareOf(call.rows, round, cluster, clusters, arguments.halves);
            if (share.rows == 0) return;
            if (number * kRows >= share.rows) {
                pieces.pass(arguments.pieces);
                syncWarpgroup(1 + number);  // those that did not wait would be ahead of the phases
                continue;
            }
            compute(share.first + rank * share.rows + number * kRows + thread / 32 * 16 + thread % 32 / 4);
        }
    }

    // Rows `row` and `row` + 8 of the thread.
    __device__ void compute(int64_t row) {
        PostAttention const& call = arguments.call;
        Vectors const begin{call.hidden};
        float const* const scalars = shared.vectors + begin.scalars();
        float sums[2][64];
        {
            Operand attended;
            loadOperand(attended, RowsOf(call.attended, row, call.rows, kWidth));
            project(sums, attended);
        }
        addBias(sums, shared.vectors + begin.outputBias());
        addRows(sums, RowsOf(call.residual, row, call.rows, kWidth));
        normalise(sums, shared.vectors + begin.firstWeight(), shared.vectors + begin.firstBias(), scalars[kFirstEpsilon], q);
        writeOperands(sums, scalars[kInputFactor]);
        if constexpr (kE4m3) {
            feedForwardE4m3(sums, scalars[kHiddenScale], scalars[kHiddenFactor]);
            addKept(sums, scalars[kOutputScale]);
            addBias(sums, shared.vectors + begin.secondProductBias());
        } else {
            addBias(sums, shared.vectors + begin.secondProductBias());
            feedForward(sums);
        }
        normalise(sums, shared.vectors + begin.secondWeight(), shared.vectors + begin.secondBias(), scalars[kSecondEpsilon], q);
        Operand tokens;
        writeTokens(sums, tokens, RowsOf(call.tokens, row, call.rows, kWidth));
        if constexpr (kFollowed) follow(sums, tokens, row);
    }

    __device__ __forceinline__ void loadOperand(Operand& operand, RowsOf const& rows) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                Vector const vector = rows.load(row, 32 * group + 8 * q);
#pragma unroll
                for (int i = 0; i < 4; ++i) word(operand, group, row, i) = vector.words[i];
            }
        }
    }

    // sums = operand times the next eight pieces.
    __device__ __forceinline__ void project(float (&sums)[2][64], Operand const& operand) {
        beginProducts();
#pragma unroll
        for (int block = 0; block < 2; ++block) {
#pragma unroll
            for (int slice = 0; slice < kSlices; ++slice) {
                multiply<T>(sums[block], operand[slice], pieces.take(), slice > 0);
                commitProducts();
                if (block + slice == 0) continue;
                waitForProducts<1>();
                pieces.release(1);
            }
        }
        waitForProducts<0>();
        pieces.release(1);
        pin(sums[0]);
        pin(sums[1]);
    }

    __device__ __forceinline__ void addBias(float (&sums)[2][64], float const* bias) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) addBias(sums[group / 4], group % 4, bias + 32 * group);
    }
    __device__ __forceinline__ void addBias(float (&sums)[64], int group, float const* bias) {
        Eight const b(bias + 8 * q);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sums[place(group, 0, i)] += b.numbers[i];
            sums[place(group, 1, i)] += b.numbers[i];
        }
    }

    __device__ __forceinline__ void addRows(float (&sums)[2][64], RowsOf const& rows) {
        constexpr int kTogether = 4;  // groups whose loads are under way at once
#pragma unroll
        for (int first = 0; first < kGroups; first += kTogether) {
            Vector vectors[kTogether][2];
#pragma unroll
            for (int i = 0; i < 2 * kTogether; ++i) vectors[i / 2][i % 2] = rows.load(i % 2, 32 * (first + i / 2) + 8 * q);
#pragma unroll
            for (int i = 0; i < 2 * kTogether; ++i) {
                int const group = first + i / 2;
                addVector<T>(sums[group / 4], group % 4, i % 2, vectors[i / 2][i % 2]);
            }
        }
    }

    // The place of the thread's vector of T that nobody else reads.
    __device__ char* kept(int group, int row) const {
        return x + ((2 * group + row) * kWarpgroup + thread) * static_cast<int>(sizeof(Vector));
    }

    // The operand of the feed-forward network, in T or in E4M3; then also in T, to be added later.
    __device__ __forceinline__ void writeOperands(float (&sums)[2][64], float factor) {
        int const low = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                int const in_tile = low + 8 * row;
                Vector const vector = packSums<T>(sums[group / 4], group % 4, row);
                if constexpr (kE4m3) {
                    uint32_t words[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float const(&s)[64] = sums[group / 4];
                        words[i] = packE4m3(s[place(group % 4, row, 4 * i)] * factor, s[place(group % 4, row, 4 * i + 1)] * factor,
                                            s[place(group % 4, row, 4 * i + 2)] * factor, s[place(group % 4, row, 4 * i + 3)] * factor);
                    }
                    int const chunk = group % 4 * 2 + q / 2;
                    storeShared(x_e4m3 + group / 4 * kOperandTile + in_tile * 128 + (chunk ^ in_tile % 8) * 16 + q % 2 * 8, words[0],
                                words[1]);
                    storeShared(kept(group, row), vector);
                } else {
                    int const chunk = group % 2 * 4 + q;
                    storeShared(x + group / 2 * kOperandTile + in_tile * 128 + (chunk ^ in_tile % 8) * 16, vector);
                }
            }
        }
        showToProducts();
        syncWarpgroup(1 + number);
    }

    __device__ __forceinline__ void addKept(float (&sums)[2][64], float scale) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
#pragma unroll
                for (int i = 0; i < 8; ++i) sums[group / 4][place(group % 4, row, i)] *= scale;
                addVector<T>(sums[group / 4], group % 4, row, loadShared(kept(group, row)));
            }
        }
    }

    // sums += relu(x W1^T + b1) W2^T, 128 hidden numbers at a time. The last half of a chunk's second product and the next
    // chunk's first are under way together; for more there are no registers.
    __device__ __forceinline__ void feedForward(float (&sums)[2][64]) {
        float const* bias = shared.vectors + Vectors{arguments.call.hidden}.hiddenBias() + 2 * q;
        int const chunks = arguments.call.hidden / kChunk;
        constexpr int kHalf = kSlices / 2;  // pieces
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk, bias += kChunk) {
            float hidden[64];
            uint32_t operands[2][16];
            beginProducts();
#pragma unroll
            for (int slice = 0; slice < kSlices; ++slice) multiply<T>(hidden, x + slice * kOperandTile, pieces.take(), slice);
            commitProducts();
            if (chunk > 0) {
                waitForProducts<1>();
                pieces.release(kHalf);
            }
            waitForProducts<0>();
            pieces.release(kSlices);
            pin(hidden);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    float const* const h = hidden + 32 * half + 4 * j;
                    float2 const b = *reinterpret_cast<float2 const*>(bias + 64 * half + 8 * j);
                    operands[half][2 * j] = pack<T>(relu(h[0] + b.x), relu(h[1] + b.y));
                    operands[half][2 * j + 1] = pack<T>(relu(h[2] + b.x), relu(h[3] + b.y));
                }
                beginProducts();
                multiply<T>(sums[0], operands[half], pieces.take(), 1);
                multiply<T>(sums[1], operands[half], pieces.take(), 1);
                commitProducts();
            }
            waitForProducts<1>();
            pieces.release(kHalf);
        }
        waitForProducts<0>();
        pieces.release(kHalf);
        pin(sums[0]);
        pin(sums[1]);
    }

    // sums = relu(x W1^T + b1) W2^T in units of the scales, 128 hidden numbers at a time.
    __device__ __forceinline__ void feedForwardE4m3(float (&sums)[2][64], float scale, float factor) {
        float const* bias = shared.vectors + Vectors{arguments.call.hidden}.hiddenBias() + 2 * q;
        int const chunks = arguments.call.hidden / kChunk;
        uint32_t operand[16];
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk, bias += kChunk) {
            float hidden[64];
            beginProducts();
            multiply<E4M3>(hidden, x_e4m3, pieces.take(), 0);
            multiply<E4M3>(hidden, x_e4m3 + kOperandTile, pieces.take(), 1);
            commitProducts();
            if (chunk > 0) {
                waitForProducts<1>();
                pieces.release(2);
            }
            waitForProducts<0>();
            pieces.release(2);
            pin(hidden);
#pragma unroll
            for (int j = 0; j < 16; j += 2) {
                float2 const b = *reinterpret_cast<float2 const*>(bias + 8 * j), c = *reinterpret_cast<float2 const*>(bias + 8 * j + 8);
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    float const* const h = hidden + 4 * j + 2 * row;
                    operand[2 * (j / 2) + row] = packE4m3(factor * relu(scale * h[0] + b.x), factor * relu(scale * h[1] + b.y),
                                                          factor * relu(scale * h[4] + c.x), factor * relu(scale * h[5] + c.y));
                }
            }
            beginProducts();
            multiply<E4M3>(sums[0], operand, pieces.take(), chunk);
            multiply<E4M3>(sums[1], operand, pieces.take(), chunk);
            commitProducts();
        }
        waitForProducts<0>();
        pieces.release(2);
        pin(sums[0]);
        pin(sums[1]);
    }

    static __device__ __forceinline__ float relu(float x) { return fmaxf(x, 0.f); }

    __device__ __forceinline__ void writeTokens(float (&sums)[2][64], Operand& operand, RowsOf const& tokens) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                Vector const vector = packSums<T>(sums[group / 4], group % 4, row);
                tokens.store(row, 32 * group + 8 * q, vector);
#pragma unroll
                for (int i = 0; i < 4; ++i) word(operand, group, row, i) = vector.words[i];
            }
        }
    }

    // The next layer's products: the value of the tokens; offsets and logits of tokens and position. A block of 128 columns
    // is written while the next one multiplies.
    __device__ __forceinline__ void follow(float (&sums)[2][64], Operand& operand, int64_t row) {
        PostAttention const& call = arguments.call;
        float const* bias = shared.vectors + Vectors{call.hidden}.columnBias();
        RowsOf const value(call.value, row, call.rows, kWidth), position(call.position, row, call.rows, kWidth);
        startBlocks(sums, operand);
        writeValue(sums[0], bias, value, 0);
        Vector positions[kGroups];
        loadHalf(positions, position, 0);
        endBlock(sums[1]);
        addHalf(operand, positions, 0);
        loadHalf(positions, position, 1);
        writeValue(sums[1], bias + kBlockColumns, value, kBlockColumns);
        addHalf(operand, positions, 1);
        bias += kWidth;
        int const columns = call.offset_columns + call.logit_columns;
        int first = 0;
#pragma unroll 1
        for (; first + kBlockColumns < columns; first += 2 * kBlockColumns) {
            startBlocks(sums, operand);
            writeSampled(sums[0], bias, row, first);
            endBlock(sums[1]);
            writeSampled(sums[1], bias, row, first + kBlockColumns);
        }
        if (first >= columns) return;
        beginProducts();
        startSlices<0, kSlices>(sums[0], operand);
        endBlock(sums[0]);
        writeSampled(sums[0], bias, row, first);
    }

    // The rows of a half of the groups.
    __device__ __forceinline__ void loadHalf(Vector (&vectors)[kGroups], RowsOf const& rows, int half) {
#pragma unroll
        for (int i = 0; i < kGroups; ++i) vectors[i] = rows.load(i % 2, 32 * (kGroups / 2 * half + i / 2) + 8 * q);
    }

    __device__ __forceinline__ void addHalf(Operand& operand, Vector const (&vectors)[kGroups], int half) {
#pragma unroll
        for (int i = 0; i < 4 * kGroups; ++i) {
            uint32_t& pair = word(operand, kGroups / 2 * half + i / 8, i / 4 % 2, i % 4);
            pair = addPairs<T>(pair, vectors[i / 4].words[i % 4]);
        }
    }

    // Two blocks of 128 columns, of which the first is done on return. Its pieces are given back as soon as the second has
    // begun: there need not be slots for all of both.
    __device__ __forceinline__ void startBlocks(float (&sums)[2][64], Operand const& operand) {
        beginProducts();
        startSlices<0, kSlices>(sums[0], operand);
        startSlices<0, 1>(sums[1], operand);
        waitForProducts<1>();
        pieces.release(kSlices);
        startSlices<1, kSlices>(sums[1], operand);
        pin(sums[0]);
    }

    template <int kFirst, int kEnd>
    __device__ __forceinline__ void startSlices(float (&sums)[64], Operand const& operand) {
#pragma unroll
        for (int slice = kFirst; slice < kEnd; ++slice) multiply<T>(sums, operand[slice], pieces.take(), slice > 0);
        commitProducts();
    }

    __device__ __forceinline__ void endBlock(float (&sums)[64]) {
        waitForProducts<0>();
        pieces.release(kSlices);
        pin(sums);
    }

    __device__ __forceinline__ void writeValue(float (&sums)[64], float const* bias, RowsOf const& value, int first) {
#pragma unroll
        for (int group = 0; group < 4; ++group) {
            addBias(sums, group, bias + 32 * group);
#pragma unroll
            for (int low = 0; low < 2; ++low) value.store(low, first + 32 * group + 8 * q, packSums<T>(sums, group, low));
        }
    }

    __device__ __forceinline__ void writeSampled(float (&sums)[64], float const* bias, int64_t row, int first) {
        PostAttention const& call = arguments.call;
        RowsOf const offsets(call.offsets, row, call.rows, call.offset_columns), logits(call.logits, row, call.rows, call.logit_columns);
#pragma unroll
        for (int group = 0; group < 4; ++group) {
            int const begin = first + 32 * group, of_logits = begin - call.offset_columns;
            if (of_logits >= call.logit_columns) continue;
            addBias(sums, group, bias + begin);
#pragma unroll
            for (int low = 0; low < 2; ++low) {
                Vector const vector = packSums<T>(sums, group, low);
                if (of_logits < 0) {
                    offsets.store(low, begin + 8 * q, vector);
                } else {
                    logits.store(low, of_logits + 8 * q, vector);
                }
            }
        }
    }
};

template <typename T, bool kE4m3, bool kFollowed>
__global__ void CODETR_CLUSTER(kBlocks) __launch_bounds__(kThreads, 1) postAttention(CODETR_PARAMETER Arguments const arguments) {
    CODETR_ONLY_ON_HOPPER {
        Shared const shared(arguments);
        for (int i = threadInBlock(); i < arguments.numbers; i += kThreads) shared.vectors[i] = arguments.call.vectors[i];
        if (threadInBlock() == 0) {
            for (int i = 0; i < arguments.slots; ++i) {
                initBarrier(shared.full + i, 1);
                initBarrier(shared.empty + i, kBlocks * kConsumers);
            }
            showBarriers();
        }
        syncBlock();
        syncCluster();
        int const warpgroup = warpgroupInBlock();
        if (warpgroup == 0) {
            giveRegisters<24>();
            if (threadInBlock() == 0) produce(arguments, shared);
        } else {
            takeRegisters<240>();
            Consumer<T, kE4m3, kFollowed>(arguments, shared, warpgroup - 1).run();
        }
        syncCluster();  // the other block may still send pieces and give them back
    }
}

}  // namespace
}  // namespace post
}  // namespace codetr
