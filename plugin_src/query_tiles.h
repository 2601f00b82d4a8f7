// Which queries a thread block of the fast kernel works on, and in what order. Plain C++, so that it is tested on a CPU.
//
// Encoder queries are the tokens of the levels. The finest level is cut into tiles, and every other level into the same
// number of tiles, so that a tile is one part of the image on all levels: what one query samples, its neighbours on the
// finer and coarser levels find in the L1 cache. Tiles are taken row by row, every other row backwards, so that tiles
// that follow each other are neighbours. Other queries are one row in one tile.
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

// Divides by a number that is known beforehand, with a multiplication.
struct Divisor {
    static constexpr int kShift = 40;
    static constexpr int32_t kMaxDividend = 1 << 23;
    uint64_t factor;

    static Divisor of(int32_t divisor) { return {(uint64_t{1} << kShift) / static_cast<uint32_t>(divisor) + 1}; }
    // Exact for 0 <= x <= kMaxDividend and divisors below 2^17.
    CODETR_HOST_DEVICE int32_t divide(int32_t x) const { return static_cast<int32_t>(static_cast<uint32_t>(x) * factor >> kShift); }
};

template <int kMaps>
struct QueryTiles {
    int32_t maps;
    int32_t rows, columns;  // of tiles
    Divisor by_rows, by_columns;
    QueryMap map[kMaps];

    // Cuts every map into `tile_rows` x `tile_columns` tiles.
    void setGrid(int32_t tile_rows, int32_t tile_columns) {
        rows = tile_rows;
        columns = tile_columns;
        by_rows = Divisor::of(tile_rows);
        by_columns = Divisor::of(tile_columns);
    }
    // Where row `i` and column `j` of tiles begin on a map.
    CODETR_HOST_DEVICE int32_t top(int32_t index, int32_t i) const { return by_rows.divide(map[index].height * i); }
    CODETR_HOST_DEVICE int32_t left(int32_t index, int32_t j) const { return by_columns.divide(map[index].width * j); }
    // The column of the `k`-th tile of row `i`.
    CODETR_HOST_DEVICE int32_t column(int32_t i, int32_t k) const { return i % 2 == 0 ? k : columns - 1 - k; }
};

// A place in the order of the queries: behind the whole tiles before `tile` and a fraction of `tile` itself.
struct TilePlace {
    static constexpr int kFractionBits = 12;
    static constexpr uint32_t kWhole = 1u << kFractionBits;
    static constexpr int32_t kMaxTiles = 1 << 20;
    uint32_t bits;  // tile and, in the low bits, fraction

    static TilePlace at(int32_t tile, double fraction) {
        return {(static_cast<uint32_t>(tile) << kFractionBits) + static_cast<uint32_t>(fraction * kWhole)};
    }
    CODETR_HOST_DEVICE int32_t tile() const { return static_cast<int32_t>(bits >> kFractionBits); }
    CODETR_HOST_DEVICE uint32_t fraction() const { return bits & (kWhole - 1); }
    // The tile after the last one that lies before this place, if only in part.
    CODETR_HOST_DEVICE int32_t endTile() const { return tile() + (fraction() != 0 ? 1 : 0); }
    // How many of the `queries` of one part of `tile` lie before this place.
    CODETR_HOST_DEVICE int32_t before(int32_t queries) const {
        return static_cast<int32_t>(static_cast<uint64_t>(queries) * fraction() >> kFractionBits);
    }
};

// How much less a query costs in the outermost rows and columns of tiles and in those next to them, fitted to the cycles
// of shares cut in sixty ways: nothing is sampled beyond the border.
constexpr double kRowSavings[] = {0.04, 0.01};
constexpr double kColumnSavings[] = {0.05, 0.05};

constexpr double borderCost(int32_t i, int32_t count, double const (&savings)[2]) {
    int32_t const from_border = i < count - 1 - i ? i : count - 1 - i;
    return from_border < 2 ? 1 - savings[from_border] : 1;
}

// The height of row `i` of tiles on a map and the width of column `j`, counted as what a query in them costs.
template <int kMaps>
inline double heightCost(QueryTiles<kMaps> const& tiles, int32_t index, int32_t i) {
    return (tiles.top(index, i + 1) - tiles.top(index, i)) * borderCost(i, tiles.rows, kRowSavings);
}
template <int kMaps>
inline double widthCost(QueryTiles<kMaps> const& tiles, int32_t index, int32_t j) {
    return (tiles.left(index, j + 1) - tiles.left(index, j)) * borderCost(j, tiles.columns, kColumnSavings);
}

// What all queries cost.
template <int kMaps>
inline double totalCost(QueryTiles<kMaps> const& tiles) {
    double total = 0;
    for (int32_t m = 0; m < tiles.maps; ++m) {
        double height = 0, width = 0;
        for (int32_t i = 0; i < tiles.rows; ++i) height += heightCost(tiles, m, i);
        for (int32_t j = 0; j < tiles.columns; ++j) width += widthCost(tiles, m, j);
        total += height * width;
    }
    return total;
}

// Cuts the queries into shares that take the same time. Share s goes from places[s] to places[s + 1].
template <int kMaps>
inline void cutIntoShares(QueryTiles<kMaps> const& tiles, int32_t shares, TilePlace* places) {
    double const total = totalCost(tiles);
    double before = 0;
    int32_t share = 0;
    for (int32_t i = 0; i < tiles.rows; ++i) {
        double heights[kMaps];
        for (int32_t m = 0; m < tiles.maps; ++m) heights[m] = heightCost(tiles, m, i);
        for (int32_t k = 0; k < tiles.columns; ++k) {
            double cost = 0;
            for (int32_t m = 0; m < tiles.maps; ++m) cost += heights[m] * widthCost(tiles, m, tiles.column(i, k));
            for (; share < shares && total * share < (before + cost) * shares; ++share) {
                double const fraction = (total * share / shares - before) / cost;
                places[share] = TilePlace::at(i * tiles.columns + k, fraction > 0 ? fraction : 0);
            }
            before += cost;
        }
    }
    for (; share <= shares; ++share) places[share] = TilePlace::at(tiles.rows * tiles.columns, 0);
}

// The part of one tile that lies on one map, or what of it a thread block works on. Its queries are numbered row by row.
struct alignas(16) TilePart {
    int32_t count, begin;  // how many queries, and the first's number
    int32_t first_query;
    uint32_t sizes;  // of the map's rows and, in the low 16 bits, of the part's

    CODETR_HOST_DEVICE int32_t columns() const { return static_cast<int32_t>(sizes & 0xffffu); }
    CODETR_HOST_DEVICE int32_t mapWidth() const { return static_cast<int32_t>(sizes >> 16); }
};

// One part of a tile of the share that goes from `first` to `last`.
template <int kMaps>
CODETR_HOST_DEVICE TilePart makeTilePart(QueryTiles<kMaps> const& tiles, int32_t tile, int32_t index, TilePlace first, TilePlace last) {
    QueryMap const map = tiles.map[index];
    int32_t const i = tiles.by_columns.divide(tile);
    int32_t const j = tiles.column(i, tile - i * tiles.columns);
    int32_t const top = tiles.top(index, i), rows = tiles.top(index, i + 1) - top;
    int32_t const left = tiles.left(index, j), columns = tiles.left(index, j + 1) - left;
    TilePart part{};
    part.first_query = map.start + top * map.width + left;
    // Whole rows lie one behind the other, so any row length will do, also when the true one has more than 16 bits.
    bool const whole_rows = columns == map.width;
    part.sizes = whole_rows ? 0x80008000u : static_cast<uint32_t>(map.width) << 16 | static_cast<uint32_t>(columns);
    part.begin = tile == first.tile() ? first.before(rows * columns) : 0;
    part.count = (tile == last.tile() ? last.before(rows * columns) : rows * columns) - part.begin;
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
    int4 const words = reinterpret_cast<int4 const*>(parts)[index];
    TilePart const part{words.x, words.y, words.z, static_cast<uint32_t>(words.w)};
#else
    TilePart const part = parts[index];
#endif
    int32_t const number = part.begin + turn;
    // Exact while a part has fewer than 2^20 queries.
    float const position = static_cast<float>(number) + 0.5f;
#ifdef __CUDA_ARCH__
    auto const row = static_cast<int32_t>(__fdividef(position, static_cast<float>(part.columns())));
#else
    auto const row = static_cast<int32_t>(position / static_cast<float>(part.columns()));
#endif
    return {part.first_query + row * part.mapWidth() + number - row * part.columns(), true};
}

}  // namespace codetr
