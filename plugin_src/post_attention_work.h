// How the kernel of post_attention.h divides its work and its shared memory. Plain C++, so that it is tested on a CPU.
#pragma once

#include "post_attention.h"

namespace codetr {
namespace post {
namespace {

constexpr int kBlocks = 2;     // in a cluster
constexpr int kConsumers = 2;  // warpgroups in a block that multiply
constexpr int kRows = 64;      // of a warpgroup
constexpr int kTileRows = kBlocks * kConsumers * kRows;
constexpr int kMaxSlots = 9;  // for pieces of the weights
constexpr int kGroups = kWidth / 32;
constexpr int kSlices = kWidth / 64;
constexpr int kOperandTile = kRows * 128;          // bytes: 64 rows of 128 bytes
constexpr int kOperandBytes = kRows * kWidth * 2;  // of a warpgroup, in T
constexpr int kE4m3OperandBytes = kRows * kWidth;
constexpr int kSharedBytes = 227 << 10;  // that a block may have

CODETR_HOST_DEVICE constexpr int operandBytes(bool e4m3) { return kConsumers * (kOperandBytes + (e4m3 ? kE4m3OperandBytes : 0)); }
// Bytes of shared memory beside the slots: operands, vectors, barriers.
CODETR_HOST_DEVICE constexpr int bytesBesideSlots(bool e4m3, int numbers) {
    return operandBytes(e4m3) + roundUp(4 * numbers, 16) + 2 * kMaxSlots * static_cast<int>(sizeof(uint64_t));
}
CODETR_HOST_DEVICE constexpr int countSlots(bool e4m3, int numbers) {
    int const slots = (kSharedBytes - bytesBesideSlots(e4m3, numbers)) / kPieceBytes;
    return slots < kMaxSlots ? slots : kMaxSlots;
}

// The pieces that a warpgroup has at once, at the most: of the first product of a chunk, and half of the second of the one before.
constexpr int kFewestSlots = kSlices + 2;
static_assert(countSlots(true, Vectors{kMaxHidden}.columnBias() + kWidth + kMaxColumns) >= kFewestSlots,
              "a warpgroup would wait for itself");

// What a cluster works on: `rows` for each of its blocks from `first` on.
struct Share {
    int64_t first;
    int rows;  // 0: nothing is left
};

// The share of a cluster in a round. A last round that has tiles for fewer than half of the clusters is one of half tiles. Every
// second cluster has its half first, so that not all of them wait for their rows at the same time.
CODETR_HOST_DEVICE inline Share shareOf(int64_t rows, int round, int cluster, int clusters, bool halves) {
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

}  // namespace
}  // namespace post
}  // namespace codetr
