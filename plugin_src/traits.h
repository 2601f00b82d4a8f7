// What the fast kernel is made for, and its choices for each GPU. Plain C++, so that it is tested on a CPU.
#pragma once

#include "query_tiles.h"

#include <cstdint>

namespace codetr {

constexpr int kHeads = 8;
constexpr int kDim = 32;
constexpr int kPoints = 4;
constexpr int kBlockHeads = 2;  // heads a thread block serves; the values of two share 128-byte lines
constexpr int kHeadSets = kHeads / kBlockHeads;
constexpr int kItemQueries = 8 / kBlockHeads;  // a warp's item: so many queries x heads = 8 groups of 4 lanes
constexpr int kMaxFastLevels = 5;
constexpr int kChunkTiles = 40;  // tiles whose parts are listed in shared memory at a time
constexpr int kMaxShares = 64;   // of a plane; their places travel with the launch
constexpr int kMaxSide = 8192;   // of the finest level of an encoder

// The choices that were measured, each by GPU architecture (compute capability x 100, as __CUDA_ARCH__ has it).
struct FastTraits {
    int32_t architecture;             // the row holds from here to the next row
    int32_t warps;                    // of a block, which fills a multiprocessor: 168 registers a thread
    int32_t tile_rows, tile_columns;  // of queries of the finest level
    bool measured;                    // on such a GPU; else the row repeats what is best on Hopper
};

constexpr FastTraits kFastTraits[] = {
    {800, 12, 20, 8, false},   // Ampere, A100
    {860, 12, 20, 8, false},   // Ampere, RTX 30, A10
    {890, 12, 20, 8, false},   // Ada, RTX 40, L4, L40
    {900, 12, 20, 8, true},    // Hopper, H100, H200: NOTES.md
    {1000, 12, 20, 8, false},  // Blackwell, B200
    {1200, 12, 20, 8, false},  // Blackwell, RTX 50
};

// The row of an architecture; of an older one than all, the first.
constexpr FastTraits fastTraits(int32_t architecture) {
    FastTraits found = kFastTraits[0];
    for (FastTraits const& row : kFastTraits) {
        if (row.architecture <= architecture) found = row;
    }
    return found;
}

// The most warps of any row, for what is sized before the GPU is known.
constexpr int32_t mostWarps() {
    int32_t most = 0;
    for (FastTraits const& row : kFastTraits) most = row.warps > most ? row.warps : most;
    return most;
}

// Whether the tiles of the largest encoder can be counted and divided exactly.
constexpr bool tilesAreExact(FastTraits const& row) {
    int32_t const rows = (kMaxSide + row.tile_rows - 1) / row.tile_rows;
    int32_t const columns = (kMaxSide + row.tile_columns - 1) / row.tile_columns;
    return kMaxSide * rows <= Divisor::kMaxDividend && kMaxSide * columns <= Divisor::kMaxDividend && rows * columns < TilePlace::kMaxTiles;
}
constexpr bool allTilesAreExact() {
    for (FastTraits const& row : kFastTraits) {
        if (!tilesAreExact(row)) return false;
    }
    return true;
}
static_assert(allTilesAreExact(), "a row of kFastTraits has tiles that are too small");

struct FastLevel {
    int32_t height, width, start;
};

}  // namespace codetr
