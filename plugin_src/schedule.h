// How a call of the fast kernel is laid out: found once for a shape, and kept. Plain C++, so that it is tested on a CPU.
#pragma once

#include "call.h"
#include "traits.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>

namespace codetr {

// What a launch hands to the fast kernel.
struct FastCall {
    void const* value;
    float const* reference_points;
    void const* sampling_offsets;
    void const* attention_logits;
    int32_t const* valid_shapes;
    void* output;
    int32_t batch, queries, tokens, reference_dim;
    FastLevel levels[kMaxFastLevels];
    QueryTiles<kMaxFastLevels> tiles;
    TilePlace places[kMaxShares + 1];  // share s goes from places[s] to places[s + 1]
};

// Whether the queries are the tokens of a pyramid whose first level is the finest, and so can be cut into tiles.
inline bool isEncoder(MsDeformAttn const& call, int64_t tokens) {
    if (call.queries != tokens || call.spatial_shapes[0] > kMaxSide || call.spatial_shapes[1] > kMaxSide) return false;
    for (int32_t i = 2; i < 2 * call.levels; ++i) {
        if (call.spatial_shapes[i] > call.spatial_shapes[i - 2]) return false;
    }
    return true;
}

// Lays out the queries and returns the items of one image and set of heads.
inline int32_t mapQueries(QueryTiles<kMaxFastLevels>& tiles, MsDeformAttn const& call, int64_t tokens, FastTraits const& traits) {
    bool const encoder = isEncoder(call, tokens);
    int32_t const* const shapes = call.spatial_shapes;
    tiles.maps = encoder ? call.levels : 1;
    tiles.setGrid(encoder ? (shapes[0] + traits.tile_rows - 1) / traits.tile_rows : 1,
                  encoder ? (shapes[1] + traits.tile_columns - 1) / traits.tile_columns : 1);
    int32_t start = 0;
    for (int32_t i = 0; i < std::min(tiles.maps, kMaxFastLevels); ++i) {
        tiles.map[i] = encoder ? QueryMap{shapes[2 * i], shapes[2 * i + 1], start} : QueryMap{1, call.queries, 0};
        start += tiles.map[i].height * tiles.map[i].width;
    }
    return (call.queries + kItemQueries - 1) / kItemQueries;
}

// Whether the fast kernel can run the call.
inline bool fitsFast(MsDeformAttn const& call, int64_t tokens) {
    if (call.heads != kHeads || call.dim != kDim || call.points != kPoints) return false;
    if (call.levels < 3 || call.levels > kMaxFastLevels) return false;
    for (int32_t i = 0; i < call.levels; ++i) {
        // The corners are neighbours inside the level, so it has two rows and columns.
        if (call.spatial_shapes[2 * i] < 2 || call.spatial_shapes[2 * i + 1] < 2) return false;
    }
    // Tokens: 32-bit offsets in units of 16 bytes. Queries that are no tokens are one part of one tile, whose numbers
    // `findQuery` needs to be exact in a float. Batch: blocks of the grid.
    if (tokens > (1 << 25) || (call.queries > (1 << 20) && !isEncoder(call, tokens)) || call.batch > 65535 / kHeadSets) return false;
    return aligned(call.value, 16) && aligned(call.sampling_offsets, 16) && aligned(call.attention_logits, 16) &&
           aligned(call.output, 16) && aligned(call.reference_points, 8) && aligned(call.valid_shapes, 8);
}

// A plane is one image and set of heads. One block fills a multiprocessor, so the blocks of all planes should fill
// the device once; where that would leave more than a thirtieth of it idle, up to four times.
inline int blocksPerPlane(int planes, int multiprocessors) {
    int best = 1;
    double best_use = 0;
    for (int waves = 1; waves <= 4; ++waves) {
        int const blocks = std::max(1, waves * multiprocessors / planes);
        int const slots = (blocks * planes + multiprocessors - 1) / multiprocessors * multiprocessors;
        double const use = static_cast<double>(blocks) * planes / slots;
        if (use > best_use + 1. / 30) {
            best_use = use;
            best = blocks;
        }
    }
    return best;
}

// Everything of a launch that depends on shapes and the device alone.
struct Schedule {
    QueryTiles<kMaxFastLevels> tiles;
    TilePlace places[kMaxShares + 1];
    int32_t blocks;  // of a plane
    int32_t warps;   // of a block
};

inline Schedule makeSchedule(MsDeformAttn const& call, int64_t tokens, int multiprocessors, FastTraits const& traits) {
    Schedule schedule{};
    int32_t const items = mapQueries(schedule.tiles, call, tokens, traits);
    schedule.blocks = std::min({blocksPerPlane(call.batch * kHeadSets, multiprocessors), items, kMaxShares});
    cutIntoShares(schedule.tiles, schedule.blocks, schedule.places);
    schedule.warps = std::min(traits.warps, (items + schedule.blocks - 1) / schedule.blocks);
    return schedule;
}

// What a schedule is kept by.
struct ScheduleKey {
    int32_t device, batch, queries, levels;
    std::array<int32_t, 2 * kMaxFastLevels> sides;

    static ScheduleKey of(MsDeformAttn const& call, int32_t device) {
        ScheduleKey key{device, call.batch, call.queries, call.levels, {}};
        std::copy_n(call.spatial_shapes, 2 * call.levels, key.sides.begin());
        return key;
    }
    bool operator==(ScheduleKey const& other) const {
        return device == other.device && batch == other.batch && queries == other.queries && levels == other.levels && sides == other.sides;
    }
};

// The schedules of the last shapes, for all threads of a process. A detector has one for its encoder and one for its
// decoder a batch size.
class ScheduleCache {
public:
    static constexpr int kKept = 64;

    // Returns the schedule of a key; where there is none, that of `make(schedule)`, which returns 0 or an error that goes
    // on to the caller.
    template <typename Make>
    int get(ScheduleKey const& key, Schedule& schedule, Make make) {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            for (int i = 0; i < count_; ++i) {
                if (entries_[i].key == key) {
                    schedule = entries_[i].schedule;
                    return 0;
                }
            }
        }
        if (int const error = make(schedule); error != 0) return error;
        std::lock_guard<std::mutex> const lock(mutex_);
        entries_[next_] = {key, schedule};
        next_ = (next_ + 1) % kKept;
        count_ = std::min(count_ + 1, kKept);
        return 0;
    }

private:
    struct Entry {
        ScheduleKey key;
        Schedule schedule;
    };
    std::mutex mutex_;
    std::array<Entry, kKept> entries_;
    int count_ = 0, next_ = 0;
};

}  // namespace codetr
