// The layout of a launch: chosen by shape and GPU, made once, kept.

#include "../schedule.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <thread>
#include <vector>

using namespace codetr;

namespace {

int passed = 0, failed = 0;

void expect(bool fits, char const* what) {
    ++(fits ? passed : failed);
    if (!fits) std::printf("FAILED %s\n", what);
}

constexpr int32_t kPyramid[] = {192, 288, 96, 144, 48, 72, 24, 36, 12, 18};

alignas(16) unsigned char memory[16];

MsDeformAttn callOf(int32_t const* shapes, int32_t levels, int32_t queries, int32_t batch = 1) {
    MsDeformAttn call{};
    call.type = ElementType::kFloat16;
    call.value = call.sampling_offsets = call.attention_logits = memory;
    call.reference_points = reinterpret_cast<float const*>(memory);
    call.output = memory;
    call.batch = batch;
    call.queries = queries;
    call.heads = kHeads;
    call.dim = kDim;
    call.levels = levels;
    call.points = kPoints;
    call.reference_dim = 2;
    call.spatial_shapes = shapes;
    return call;
}

void testWhichKernel() {
    auto const tokens = static_cast<int32_t>(countTokens(kPyramid, 5));
    MsDeformAttn const encoder = callOf(kPyramid, 5, tokens), decoder = callOf(kPyramid, 5, 900);
    expect(isEncoder(encoder, tokens) && !isEncoder(decoder, tokens), "queries that are the tokens are an encoder's");
    int32_t const upside_down[] = {12, 18, 24, 36, 48, 72};
    auto const few = static_cast<int32_t>(countTokens(upside_down, 3));
    expect(!isEncoder(callOf(upside_down, 3, few), few), "the finest level comes first");
    int32_t const wide[] = {2, kMaxSide + 1, 2, 2, 2, 2};
    auto const many = static_cast<int32_t>(countTokens(wide, 3));
    expect(!isEncoder(callOf(wide, 3, many), many), "a side that tiles cannot count");
    expect(fitsFast(encoder, tokens) && fitsFast(decoder, tokens), "the detector's own calls");
    MsDeformAttn call = encoder;
    call.heads = 4;
    expect(!fitsFast(call, tokens), "other heads");
    call = encoder;
    call.points = 8;
    expect(!fitsFast(call, tokens), "other points");
    call = encoder;
    call.levels = 2;
    expect(!fitsFast(call, tokens), "too few levels");
    call = encoder;
    call.value = memory + 8;
    expect(!fitsFast(call, tokens), "values that are not aligned");
    int32_t const thin[] = {9, 9, 4, 4, 1, 2};
    expect(!fitsFast(callOf(thin, 3, 900), countTokens(thin, 3)), "a level of one row has no two corners");
    expect(!fitsFast(callOf(kPyramid, 5, (1 << 20) + 1), tokens), "more queries than a float counts");
}

void testBlocks() {
    for (int multiprocessors : {20, 46, 84, 108, 132, 148}) {
        for (int planes = 1; planes <= 300; ++planes) {
            int const blocks = blocksPerPlane(planes, multiprocessors);
            int const in_all = blocks * planes, turns = (in_all + multiprocessors - 1) / multiprocessors;
            if (blocks < 1 || (turns > 4 && blocks > 1)) {
                expect(false, "one to four turns of blocks");
                return;
            }
            // More turns are taken only for a thirtieth of the device.
            int const one = std::max(1, multiprocessors / planes);
            int const slots = (one * planes + multiprocessors - 1) / multiprocessors * multiprocessors;
            double const use = static_cast<double>(one) * planes / slots;
            if (use >= 29. / 30 && blocks != one) {
                expect(false, "one turn where that fills the device");
                return;
            }
        }
    }
    expect(blocksPerPlane(4, 132) == 33, "an H100 with one image: 132 blocks");
    expect(true, "one to four turns of blocks");
}

void testSchedule() {
    auto const tokens = static_cast<int32_t>(countTokens(kPyramid, 5));
    Schedule const encoder = makeSchedule(callOf(kPyramid, 5, tokens), tokens, 132, fastTraits(900));
    expect(encoder.blocks == 33 && encoder.warps == 12, "blocks and warps of an encoder");
    expect(encoder.tiles.maps == 5 && encoder.tiles.rows == 10 && encoder.tiles.columns == 36, "tiles of 20 x 8 queries");
    expect(encoder.places[0].bits == 0 && encoder.places[33].tile() == 360, "shares from the first to the last tile");
    Schedule const decoder = makeSchedule(callOf(kPyramid, 5, 900), tokens, 132, fastTraits(900));
    expect(decoder.tiles.maps == 1 && decoder.blocks == 33 && decoder.warps == 7, "225 items of 33 blocks are 7 warps");
    Schedule const small = makeSchedule(callOf(kPyramid, 5, 3), tokens, 132, fastTraits(900));
    expect(small.blocks == 1 && small.warps == 1, "no more blocks than items");
}

void testTraits() {
    expect(fastTraits(900).measured && fastTraits(900).architecture == 900, "Hopper is measured");
    expect(fastTraits(860).architecture == 860 && fastTraits(870).architecture == 860, "the row from an architecture on");
    expect(fastTraits(1030).architecture == 1000 && fastTraits(1210).architecture == 1200, "newer architectures");
    expect(fastTraits(750).architecture == 800, "an older architecture has the first row");
    int32_t before = 0;
    for (FastTraits const& row : kFastTraits) {
        expect(row.architecture > before && row.warps >= 1 && row.warps <= mostWarps(), "rows in order");
        before = row.architecture;
    }
}

void testCache() {
    ScheduleCache cache;
    int made = 0;
    auto const get = [&](int32_t device, int32_t batch, int32_t queries, int32_t const* shapes) {
        Schedule schedule;
        MsDeformAttn const call = callOf(shapes, 5, queries, batch);
        cache.get(ScheduleKey::of(call, device), schedule, [&](Schedule& fresh) {
            ++made;
            fresh = makeSchedule(call, countTokens(shapes, 5), 132, fastTraits(900));
            return 0;
        });
        return schedule;
    };
    Schedule const first = get(0, 1, 900, kPyramid), again = get(0, 1, 900, kPyramid);
    expect(made == 1 && again.blocks == first.blocks && again.warps == first.warps && again.places[7].bits == first.places[7].bits &&
               again.tiles.map[0].width == first.tiles.map[0].width,
           "the second call finds what the first has made");
    get(0, 2, 900, kPyramid);
    get(0, 1, 901, kPyramid);
    get(1, 1, 900, kPyramid);
    int32_t other[10];
    std::copy(std::begin(kPyramid), std::end(kPyramid), other);
    --other[9];
    get(0, 1, 900, other);
    expect(made == 5, "batch, queries, device and sides tell shapes apart");
    for (int i = 0; i < ScheduleCache::kKept; ++i) get(0, 1, 1000 + i, kPyramid);
    made = 0;
    get(0, 1, 1000 + ScheduleCache::kKept - 1, kPyramid);
    expect(made == 0, "the newest stay");
    get(0, 1, 900, kPyramid);
    expect(made == 1, "the oldest go");
    Schedule schedule;
    auto const key = ScheduleKey::of(callOf(kPyramid, 5, 7), 0);
    expect(cache.get(key, schedule, [](Schedule&) { return 2; }) == 2, "an error goes on to the caller");
    expect(cache.get(key, schedule, [](Schedule&) { return 0; }) == 0, "and is not kept");

    std::vector<std::thread> threads;
    threads.reserve(4);
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&cache, t] {
            for (int i = 0; i < 2000; ++i) {
                Schedule found;
                MsDeformAttn const call = callOf(kPyramid, 5, 1 + (i * 7 + t) % 100);
                cache.get(ScheduleKey::of(call, 0), found, [&](Schedule& fresh) {
                    fresh.blocks = call.queries;
                    return 0;
                });
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    int wrong = 0;
    for (int32_t queries = 1; queries <= 100; ++queries) {
        Schedule found;
        cache.get(ScheduleKey::of(callOf(kPyramid, 5, queries), 0), found, [&](Schedule& fresh) {
            fresh.blocks = queries;
            return 0;
        });
        wrong += found.blocks != queries;
    }
    expect(wrong == 0, "threads do not mix schedules up");
}

}  // namespace

int main() {
    testWhichKernel();
    testBlocks();
    testSchedule();
    testTraits();
    testCache();
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
