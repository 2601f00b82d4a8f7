// What tests/plugin_src/test_fake_hopper.py asks of the stand-in: its numbers, and a small kernel that makes one mistake.

#include "fake_hopper.h"

#include <string>

namespace codetr {
namespace {

using namespace hopper;

constexpr int kBlocks = 2, kThreads = 2 * kWarpgroup, kSlots = 2, kPieces = 6;
constexpr int kTile = 64 * 128, kHalf = kTile / kBlocks;
constexpr int kBarriersAt = (1 + kSlots) * kTile, kSharedBytes = kBarriersAt + 2 * kSlots * 8;

// Their order is that of the test's list.
enum Mistake {
    kNone,
    kNotShown,          // what was stored, to products
    kNoBarrier,         // between stores and the product
    kSoonGivenBack,     // a slot, before the wait
    kSoonRead,          // sums, before the wait
    kSoonOverwritten,   // the operand, before the wait
    kPhaseLate,         // a wait
    kArrivalMissing,    // at a barrier
    kArrivalTwice,      // at a barrier
    kFewBytes,          // expected
    kBarriersNotShown,  // to the cluster
    kClusterNotSynced,  // before its barriers are used
    kGoneEarly,         // a block whose slots the other one still fills
    kOutOfBounds,       // a load
    kMisaligned,        // a prefetch
    kRegistersTwice,    // given
    kManyRegisters,     // taken, where none have been given
    kWarpDivided,       // between two functions of all its threads
    kProductForHalf,    // of the warpgroup's threads
    kOthersNumber,      // of a barrier, used by two warpgroups
};

struct Work {
    char const* a;       // [64, 64] of float16
    char const* pieces;  // tiles of [64, 64] of float16, swizzled
    char* output;        // [2, 128, 32] of float32, as threads have it
    Mistake mistake;
};

struct Place {
    int slot = 0, phase = 0;
    void advance() {
        if (++slot == kSlots) slot = 0, phase ^= 1;
    }
};

void produce(Work const& work, uint64_t* full, uint64_t* empty, char* slots) {
    int const rank = rankInCluster();
    Place place;
    for (int piece = 0; piece < kPieces; ++piece) {
        waitFor(empty + place.slot, place.phase ^ 1);
        if (work.mistake == kArrivalTwice && piece == 3) arriveAndExpect(full + place.slot, kTile);
        arriveAndExpect(full + place.slot, work.mistake == kFewBytes ? kHalf : kTile);
        copyToCluster(slots + place.slot * kTile + rank * kHalf, work.pieces + piece * kTile + rank * kHalf, kHalf, full + place.slot, 3);
        place.advance();
    }
    if (work.mistake == kMisaligned) prefetch(work.pieces, 1000);
}

void consume(Work const& work, uint64_t* full, uint64_t* empty, char* slots, char* a) {
    int const thread = threadInBlock() % kWarpgroup;
    Mistake const mistake = work.mistake;
    for (int i = 0; i < 4; ++i) {
        int const row = thread / 2, chunk = thread % 2 * 4 + i;
        Vector const vector = loadGlobal(work.a + row * 128 + chunk * 16 + (mistake == kOutOfBounds && thread == 127 ? 64 : 0));
        storeShared(a + row * 128 + (chunk ^ row % 8) * 16, vector);
    }
    if (mistake != kNotShown) showToProducts();
    if (mistake != kNoBarrier) syncWarpgroup(1);
    float sums[32];
    Place taken;
    auto const giveBack = [&] {
        if (thread < kBlocks && !(mistake == kArrivalMissing && thread == 1)) arriveAt(empty + taken.slot, thread);
    };
    for (int piece = 0; piece < kPieces; ++piece) {
        waitFor(full + taken.slot, taken.phase);
        if (mistake == kProductForHalf && thread >= 64) continue;
        multiply<Half>(sums, a, slots + taken.slot * kTile, piece > 0);
        commitProducts();
        if (mistake == kSoonGivenBack) giveBack();
        if (mistake == kSoonOverwritten && piece == 2) storeShared(a + thread * 16, Vector{});
        if (mistake != kSoonRead || piece < kPieces - 1) waitForProducts<0>();
        if (mistake != kSoonGivenBack) giveBack();
        taken.advance();
    }
    if (mistake == kPhaseLate && thread == 77) waitFor(full, 1);
    if (mistake == kWarpDivided) {
        if (thread == 0) warpgroupInBlock();
        sumOfQuad(0);
    }
    char* const output = work.output + (rankInCluster() * kWarpgroup + thread) * static_cast<int>(sizeof sums);
    for (int i = 0; i < 8; ++i) {
        Vector vector;
        std::memcpy(&vector, sums + 4 * i, sizeof vector);
        storeGlobal(output + 16 * i, vector);
    }
    waitForProducts<0>();
}

void kernel(Work const& work) {
    Mistake const mistake = work.mistake;
    char *const a = sharedMemory(), *const slots = a + kTile;
    auto const full = reinterpret_cast<uint64_t*>(a + kBarriersAt), empty = full + kSlots;
    if (threadInBlock() == 0) {
        for (int i = 0; i < kSlots; ++i) {
            initBarrier(full + i, 1);
            initBarrier(empty + i, kBlocks);
        }
        if (mistake != kBarriersNotShown) showBarriers();
    }
    syncBlock();
    if (mistake != kClusterNotSynced) syncCluster();
    if (mistake == kOthersNumber) syncWarpgroup(1);
    if (warpgroupInBlock() == 0) {
        if (mistake != kManyRegisters) giveRegisters<64>();
        if (mistake == kRegistersTwice) giveRegisters<64>();
        if (threadInBlock() == 0) produce(work, full, empty, slots);
    } else {
        if (mistake == kManyRegisters) takeRegisters<256>();
        consume(work, full, empty, slots, a);
    }
    if (mistake != kGoneEarly) syncCluster();
}

}  // namespace
}  // namespace codetr

extern "C" {

// Runs the kernel; returns what the stand-in found, or an empty string.
char const* runSmallKernel(void const* a, void const* pieces, void* output, int32_t mistake, uint64_t seed, bool late) {
    using namespace codetr;
    static std::string fault;
    Work const work{static_cast<char const*>(a), static_cast<char const*>(pieces), static_cast<char*>(output),
                    static_cast<Mistake>(mistake)};
    size_t const output_bytes = sizeof(float) * kBlocks * kWarpgroup * 32;
    hopper::fake::Launch const launch{
        1,
        kBlocks,
        kThreads,
        kSharedBytes,
        seed,
        late,
        {{"a", a, kTile, false}, {"pieces", pieces, size_t{kPieces} * kTile, false}, {"output", output, output_bytes, true}}};
    fault = hopper::simulate(launch, [&] { kernel(work); });
    return fault.c_str();
}

// As `type` 0 float16, 1 bfloat16, 2 E4M3; four numbers a call for the last, two for the others.
uint32_t packNumbers(int32_t type, float const* x) {
    if (type == 0) return codetr::hopper::pack<codetr::hopper::Half>(x[0], x[1]);
    if (type == 1) return codetr::hopper::pack<codetr::hopper::BFloat16>(x[0], x[1]);
    return codetr::hopper::packE4m3(x[0], x[1], x[2], x[3]);
}

void unpackNumbers(int32_t type, uint32_t pair, float* x) {
    using namespace codetr::hopper;
    float2 const numbers = type == 0 ? unpack<Half>(pair) : unpack<BFloat16>(pair);
    x[0] = numbers.x;
    x[1] = numbers.y;
}
}
