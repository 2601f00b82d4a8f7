// Which queries a thread block of the fast kernel works on, and in what order. Plain C++, so that it is tested on a CPU.
//
// Encoder queries are the tokens of the levels. The finest level is cut into tiles, and every other level into the same
// number of tiles, so that a tile is one part of the image on all levels: what one query samples, its neighbours on the
// finer and coarser levels find in the L1 cache. Other queries are one row in one tile.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CODETR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CODETR_HOST_DEVICE inline
#endif

namespace codetr {

struct QueryMap {
    int32_t height, width, start;
};

template <int kMaps>
struct QueryTiles {
    int32_t maps;
    int32_t rows, columns;  // of tiles
    QueryMap map[kMaps];

    CODETR_HOST_DEVICE int32_t count() const { return rows * columns; }
};

// The part of one tile that lies on one map, or what of it a thread block works on. Its queries are numbered row by row.
struct alignas(16) TilePart {
    int32_t count, begin;  // how many queries, and the first's number
    int32_t columns, first_query, map_width;
    int32_t unused[3];
};

// The tiles from first to last (exclusive) of share `share` of `shares`. Neighbouring shares may have a tile in common.
CODETR_HOST_DEVICE int32_t firstTile(int32_t tiles, int32_t share, int32_t shares) { return tiles * share / shares; }
CODETR_HOST_DEVICE int32_t lastTile(int32_t tiles, int32_t share, int32_t shares) {
    return (tiles * (share + 1) + shares - 1) / shares;
}

// One part of a tile; of a tile in common, the fraction of its queries that belongs to the share.
template <int kMaps>
CODETR_HOST_DEVICE TilePart makeTilePart(QueryTiles<kMaps> const& tiles, int32_t tile, int32_t map_index, int32_t share, int32_t shares) {
    int32_t from = tiles.count() * share - tile * shares;  // in units of 1 / shares of a tile
    int32_t to = tiles.count() * (share + 1) - tile * shares;
    from = from > 0 ? from : 0;
    to = to < shares ? to : shares;
    QueryMap const map = tiles.map[map_index];
    int32_t const i = tile / tiles.columns, j = tile - i * tiles.columns;
    int32_t const top = map.height * i / tiles.rows, bottom = map.height * (i + 1) / tiles.rows;
    int32_t const left = map.width * j / tiles.columns, right = map.width * (j + 1) / tiles.columns;
    TilePart part{};
    part.first_query = map.start + top * map.width + left;
    part.map_width = map.width;
    part.columns = right - left;
    int64_t const queries = static_cast<int64_t>(bottom - top) * part.columns;
    part.begin = static_cast<int32_t>(queries * from / shares);
    part.count = static_cast<int32_t>(queries * to / shares) - part.begin;
    return part;
}

// The query whose turn it is.
struct Turn {
    int32_t query;
    bool exists;  // false: there are no more; `query` is one that is there all the same
};

// Finds the query `turn` queries after the beginning of part `index`; moves both on to the part it lies in.
CODETR_HOST_DEVICE Turn findQuery(TilePart const* parts, int32_t part_count, int32_t& index, int32_t& turn) {
    while (index < part_count && turn >= parts[index].count) turn -= parts[index++].count;
    if (index == part_count) return {0, false};
#ifdef __CUDA_ARCH__
    int4 const place = reinterpret_cast<int4 const*>(&parts[index])[0];
    TilePart const part{place.x, place.y, place.z, place.w, parts[index].map_width, {}};
#else
    TilePart const part = parts[index];
#endif
    int32_t const number = part.begin + turn;
    // Exact while a part has fewer than 2^20 queries or one row.
    float const position = static_cast<float>(number) + 0.5f;
#ifdef __CUDA_ARCH__
    auto const row = static_cast<int32_t>(__fdividef(position, static_cast<float>(part.columns)));
#else
    auto const row = static_cast<int32_t>(position / static_cast<float>(part.columns));
#endif
    return {part.first_query + row * part.map_width + number - row * part.columns, true};
}

}  // namespace codetr
