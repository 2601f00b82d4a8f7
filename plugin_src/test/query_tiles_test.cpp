// Every query of every map must be worked on exactly once, whatever the sizes, shares and warps, and no share may have
// many more queries than another.

#include "../query_tiles.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

using namespace codetr;

namespace {

constexpr int kMaps = 5;
constexpr int kChunk = 16;

// Walks through the queries as the kernel's lanes do; returns how many were not visited exactly once.
int countFaults(QueryTiles<kMaps> const& tiles, int queries, int shares, int lanes) {
    std::vector<int> visits(queries);
    int outside = 0;
    std::vector<TilePlace> places(shares + 1);
    cutIntoShares(tiles, shares, places.data());
    for (int share = 0; share < shares; ++share) {
        for (int lane = 0; lane < lanes; ++lane) {
            int32_t turn = lane;
            TilePlace const first = places[share], last = places[share + 1];
            int const end = last.endTile();
            for (int tile = first.tile(); tile < end; tile += kChunk) {
                std::vector<TilePart> parts;
                for (int k = tile; k < end && k < tile + kChunk; ++k) {
                    for (int m = 0; m < tiles.maps; ++m) parts.push_back(makeTilePart(tiles, k, m, first, last));
                }
                int32_t index = 0;
                auto const count = static_cast<int32_t>(parts.size());
                for (Turn now = findQuery(parts.data(), count, index, turn); now.exists;
                     now = findQuery(parts.data(), count, index, turn)) {
                    bool const inside = now.query >= 0 && now.query < queries;
                    outside += !inside;
                    if (inside) ++visits[now.query];
                    turn += lanes;
                }
            }
        }
    }
    int faults = outside;
    for (int const n : visits) faults += n != 1;
    return faults;
}

// The queries of each share, in hundredths of the mean.
std::vector<int> shareSizes(QueryTiles<kMaps> const& tiles, int queries, int shares) {
    std::vector<TilePlace> places(shares + 1);
    cutIntoShares(tiles, shares, places.data());
    std::vector<int> sizes(shares);
    for (int share = 0; share < shares; ++share) {
        for (int tile = places[share].tile(); tile < places[share + 1].endTile(); ++tile) {
            for (int m = 0; m < tiles.maps; ++m) sizes[share] += makeTilePart(tiles, tile, m, places[share], places[share + 1]).count;
        }
        sizes[share] = static_cast<int>(int64_t{100} * sizes[share] * shares / queries);
    }
    return sizes;
}

int failed = 0, passed = 0;

void report(bool good, std::string const& what, char const* found, int number) {
    good ? ++passed : ++failed;
    std::printf("%s %s: %s %d\n", good ? "ok  " : "FAIL", what.c_str(), found, number);
}

void check(char const* name, std::vector<int> const& shapes, int tile_rows, int tile_columns, int shares, int lanes) {
    QueryTiles<kMaps> tiles{};
    tiles.maps = static_cast<int>(shapes.size() / 2);
    tiles.setGrid(tile_rows > 0 ? (shapes[0] + tile_rows - 1) / tile_rows : 1,
                  tile_columns > 0 ? (shapes[1] + tile_columns - 1) / tile_columns : 1);
    int queries = 0;
    for (int m = 0; m < tiles.maps; ++m) {
        tiles.map[m] = {shapes[2 * m], shapes[2 * m + 1], queries};
        queries += shapes[2 * m] * shapes[2 * m + 1];
    }
    std::string const what = std::string(name) + ", " + std::to_string(shares) + " shares";
    int const faults = countFaults(tiles, queries, shares, lanes);
    report(faults == 0, what, "queries not worked on once:", faults);
    if (queries >= 100 * shares) {
        // Shares of outer tiles only may have as many more as those cost less.
        std::vector<int> const sizes = shareSizes(tiles, queries, shares);
        int const largest = *std::max_element(sizes.begin(), sizes.end());
        report(largest <= 113, what, "largest share in % of the mean:", largest);
        bool const crosses_the_image = shares > 8;
        if (crosses_the_image) report(sizes[0] > sizes[shares / 2], what, "first share, at the border, in % of the mean:", sizes[0]);
    }
}

// At every step of the quotient, up to what the largest maps of an encoder give.
void checkDivisor(int divisor) {
    Divisor const by = Divisor::of(divisor);
    int wrong = 0;
    for (int x = divisor; x <= 1 << 23; x += divisor) wrong += by.divide(x - 1) != x / divisor - 1 || by.divide(x) != x / divisor;
    wrong += by.divide(1 << 23) != (1 << 23) / divisor;
    report(wrong == 0, "division by " + std::to_string(divisor), "wrong quotients:", wrong);
}

}  // namespace

int main() {
    for (int const divisor : {1, 2, 3, 7, 19, 36, 60, 410, 511, 1023, 1024}) checkDivisor(divisor);
    std::vector<int> const encoder608 = {152, 152, 76, 76, 38, 38, 19, 19, 10, 10};
    std::vector<int> const encoder1152 = {192, 288, 96, 144, 48, 72, 24, 36, 12, 18};
    for (int const shares : {1, 4, 33, 132}) {
        check("608x608", encoder608, 20, 8, shares, 48);
        check("768x1152", encoder1152, 20, 8, shares, 48);
        check("odd sizes", {37, 51, 19, 26, 10, 13, 5, 7, 3, 4}, 16, 8, shares, 7);
        check("a flat pyramid", {2, 300, 2, 150, 2, 75}, 16, 8, shares, 48);
        check("equal levels", {9, 9, 9, 9, 9, 9}, 16, 8, shares, 3);
        check("900 decoder queries", {1, 900}, 0, 0, shares, 7);
        check("one query", {1, 1}, 0, 0, shares, 1);
    }
    // The largest maps that the kernel cuts.
    check("8192 columns", {2048, 8192, 1024, 4096, 512, 2048}, 20, 8, 64, 48);
    check("8192 rows", {8192, 2048, 4096, 1024, 2048, 512}, 20, 8, 64, 48);
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
