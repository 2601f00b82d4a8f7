// How post_attention divides rows among clusters, and shared memory among what lies there.

#include "../post_attention_work.h"

#include <algorithm>
#include <cstdio>
#include <vector>

using namespace codetr;
using namespace codetr::post;

namespace {

int passed = 0, failed = 0;

void expect(bool fits, char const* what) {
    ++(fits ? passed : failed);
    if (!fits) std::printf("FAILED %s\n", what);
}

// How often each row is in a share, and the most rows that one block of a cluster has; empty if the shares do not end.
std::vector<int> coverage(int64_t rows, int clusters, bool halves, int& most) {
    std::vector<int> times(static_cast<size_t>(rows), 0);
    most = 0;
    for (int cluster = 0; cluster < clusters; ++cluster) {
        int own = 0;
        for (int round = 0;; ++round) {
            Share const share = shareOf(rows, round, cluster, clusters, halves);
            if (share.rows == 0) break;
            if (round > rows / kTileRows) return {};
            own += share.rows;
            for (int64_t row = share.first; row < std::min(rows, share.first + kBlocks * share.rows); ++row)
                ++times[static_cast<size_t>(row)];
        }
        most = std::max(most, own);
    }
    return times;
}

void testEveryRowIsInOneShare() {
    bool once = true, ends = true;
    for (int64_t rows = 1; rows < 2600; rows += rows < 600 ? 1 : 37) {
        for (int const clusters : {1, 2, 3, 5, 66}) {
            for (bool const halves : {false, true}) {
                int most = 0;
                std::vector<int> const times = coverage(rows, clusters, halves, most);
                ends = ends && !times.empty();
                once = once && std::all_of(times.begin(), times.end(), [](int count) { return count == 1; });
            }
        }
    }
    expect(ends, "every cluster comes to an end");
    expect(once, "every row is in one share");
}

void testHalfTilesEvenOutTheLastRound() {
    int most = 0;
    coverage(73656, 66, false, most);  // 288 tiles: four rounds, and 24 tiles for 66 clusters
    expect(most == 5 * kConsumers * kRows, "whole tiles take five rounds");
    coverage(73656, 66, true, most);
    expect(most == 4 * kConsumers * kRows + kRows, "half tiles four and a half");
    coverage(30785, 66, true, most);  // 121 tiles: 55 in the second round, too many to be halved
    expect(most == 2 * kConsumers * kRows, "a round with more than half of the clusters stays whole");
}

void testEverySecondClusterHasItsHalfFirst() {
    expect(shareOf(73656, 0, 0, 66, true).rows == kConsumers * kRows, "an even cluster begins with a tile");
    expect(shareOf(73656, 0, 1, 66, true).rows == kRows, "an odd one with half of one");
    expect(shareOf(73656, 0, 65, 66, true).rows == kConsumers * kRows, "but for those without a half");
}

void testSharedMemoryIsEnough() {
    for (bool const e4m3 : {false, true}) {
        for (int const columns : {0, kWidth + 512, kWidth + kMaxColumns}) {
            int const numbers = Vectors{kMaxHidden}.columnBias() + columns, slots = countSlots(e4m3, numbers);
            expect(slots >= kFewestSlots && slots <= kMaxSlots, "there are slots for what a warpgroup has at once");
            expect(bytesBesideSlots(e4m3, numbers) + slots * kPieceBytes <= kSharedBytes, "all fits a block's shared memory");
        }
    }
}

}  // namespace

int main() {
    testEveryRowIsInOneShare();
    testHalfTilesEvenOutTheLastRound();
    testEverySecondClusterHasItsHalfFirst();
    testSharedMemoryIsEnough();
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
