// The kernel of post_attention.h. It stands on hopper.cuh alone, or on test/fake_hopper.h, which runs it on a CPU.
//
// A cluster of two blocks works on 256 rows at a time, a warpgroup on 64, and reads all weights for them; each block fetches
// half of every piece and gives it to both. Between two products nothing leaves a multiprocessor: sums and hidden numbers stay in
// registers, the operands of the feed-forward network and of what follows lie in shared memory.
#pragma once

#include "post_attention_pieces.cuh"
#include "post_attention_rows.cuh"

namespace codetr {
namespace post {
namespace {

constexpr int kThreads = (1 + kConsumers) * kWarpgroup;

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
        writeTokens(sums, RowsOf(call.tokens, row, call.rows, kWidth));
        if constexpr (kFollowed) follow(sums, row);
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
    // The place of the thread's vector of T in the operand.
    __device__ char* inOperand(int group, int row) const {
        int const in_tile = thread / 32 * 16 + thread % 32 / 4 + 8 * row, chunk = group % 2 * 4 + q;
        return x + group / 2 * kOperandTile + in_tile * 128 + (chunk ^ in_tile % 8) * 16;
    }
    // The same of eight numbers in E4M3.
    __device__ char* inE4m3Operand(int group, int row) const {
        int const in_tile = thread / 32 * 16 + thread % 32 / 4 + 8 * row, chunk = group % 4 * 2 + q / 2;
        return x_e4m3 + group / 4 * kOperandTile + in_tile * 128 + (chunk ^ in_tile % 8) * 16 + q % 2 * 8;
    }

    // After what the threads of the warpgroup have written as an operand.
    __device__ __forceinline__ void endOperand() {
        showToProducts();
        syncWarpgroup(1 + number);
    }

    // The operand of the feed-forward network, in T or in E4M3; then also in T, to be added later.
    __device__ __forceinline__ void writeOperands(float (&sums)[2][64], float factor) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float const(&s)[64] = sums[group / 4];
                Vector const vector = packSums<T>(s, group % 4, row);
                if constexpr (kE4m3) {
                    uint32_t words[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        words[i] = packE4m3(s[place(group % 4, row, 4 * i)] * factor, s[place(group % 4, row, 4 * i + 1)] * factor,
                                            s[place(group % 4, row, 4 * i + 2)] * factor, s[place(group % 4, row, 4 * i + 3)] * factor);
                    }
                    storeShared(inE4m3Operand(group, row), words[0], words[1]);
                    storeShared(kept(group, row), vector);
                } else {
                    storeShared(inOperand(group, row), vector);
                }
            }
        }
        endOperand();
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

    // The tokens, which are the operand of what follows too.
    __device__ __forceinline__ void writeTokens(float (&sums)[2][64], RowsOf const& tokens) {
        if constexpr (kFollowed && kE4m3) syncWarpgroup(1 + number);  // others have read what they kept there
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                Vector const vector = packSums<T>(sums[group / 4], group % 4, row);
                tokens.store(row, 32 * group + 8 * q, vector);
                if constexpr (kFollowed) storeShared(inOperand(group, row), vector);
            }
        }
        if constexpr (kFollowed) endOperand();
    }

    // The next layer's products: the value of the tokens; offsets and logits of tokens and position. A block of 128 columns
    // is written while the next one multiplies.
    __device__ __forceinline__ void follow(float (&sums)[2][64], int64_t row) {
        PostAttention const& call = arguments.call;
        float const* bias = shared.vectors + Vectors{call.hidden}.columnBias();
        RowsOf const value(call.value, row, call.rows, kWidth);
        Vector positions[2 * kGroups];
        startSlices<0, kSlices>(sums[0]);
        startBehind(sums[1], sums[0]);
        writeValue(sums[0], bias, value, 0);
        loadRows(positions, RowsOf(call.position, row, call.rows, kWidth));
        endBlock(sums[1]);
        addToOperand(positions);
        writeValue(sums[1], bias + kBlockColumns, value, kBlockColumns);
        bias += kWidth;
        int const columns = call.offset_columns + call.logit_columns;
        int first = 0;
#pragma unroll 1
        for (; first + kBlockColumns < columns; first += 2 * kBlockColumns) {
            startSlices<0, kSlices>(sums[0]);
            startBehind(sums[1], sums[0]);
            writeSampled(sums[0], bias, row, first);
            endBlock(sums[1]);
            writeSampled(sums[1], bias, row, first + kBlockColumns);
        }
        if (first >= columns) return;
        startSlices<0, kSlices>(sums[0]);
        endBlock(sums[0]);
        writeSampled(sums[0], bias, row, first);
    }

    __device__ __forceinline__ void loadRows(Vector (&vectors)[2 * kGroups], RowsOf const& rows) {
#pragma unroll
        for (int i = 0; i < 2 * kGroups; ++i) vectors[i] = rows.load(i % 2, 32 * (i / 2) + 8 * q);
    }

    __device__ __forceinline__ void addToOperand(Vector const (&vectors)[2 * kGroups]) {
#pragma unroll
        for (int i = 0; i < 2 * kGroups; ++i) {
            Vector sum = loadShared(inOperand(i / 2, i % 2));
#pragma unroll
            for (int j = 0; j < 4; ++j) sum.words[j] = addPairs<T>(sum.words[j], vectors[i].words[j]);
            storeShared(inOperand(i / 2, i % 2), sum);
        }
        endOperand();
    }

    template <int kFirst, int kEnd>
    __device__ __forceinline__ void startSlices(float (&sums)[64]) {
#pragma unroll
        for (int slice = kFirst; slice < kEnd; ++slice) multiply<T>(sums, x + slice * kOperandTile, pieces.take(), slice > 0);
        commitProducts();
    }

    // Starts a block; the one before it is done on return. That one's pieces are given back as soon as the block has begun:
    // there need not be slots for all of both.
    __device__ __forceinline__ void startBehind(float (&sums)[64], float (&before)[64]) {
        startSlices<0, 1>(sums);
        waitForProducts<1>();
        pieces.release(kSlices);
        startSlices<1, kSlices>(sums);
        pin(before);
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
