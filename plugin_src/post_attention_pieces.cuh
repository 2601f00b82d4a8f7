// The weights on their way to the products of post_attention.cuh: one thread of each block fetches them piece by piece into a
// ring of slots, for both blocks of the cluster, and the warpgroups that multiply give the slots back.
#pragma once

#include "post_attention_work.h"

namespace codetr {
namespace post {
namespace {

using namespace hopper;

struct Arguments {
    PostAttention call;
    int pieces;   // of the weights
    int numbers;  // of the vectors
    int slots;
    bool halves;  // the last round may be of half tiles, so that more clusters have a share
};

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

}  // namespace
}  // namespace post
}  // namespace codetr
