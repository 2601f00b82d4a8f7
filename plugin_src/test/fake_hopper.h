// The functions that kernels call of hopper.cuh, in its order, on a CPU, for tests of these kernels; include it first.
// `simulate` runs a kernel, every thread a fiber, in an order that a seed decides, and says what went wrong first.
//
// It is as unkind as the machine may be:
// - A product reads its operands and writes its sums when the first warp's wait for it returns; until then sums are NaN, and
//   writing to an operand is an error. As in CUTLASS, one warp's wait is the end of the reading for all four.
// - A copy makes its destination NaN when it is started and lands at any later time.
// - What a thread stores to shared memory and does not show to products is not what products read, and reading it is an error.
// - A barrier knows two phases: who waits for one that ended two phases ago waits for ever.
// - Where nothing can go on, the run ends with a list of who waits for what.
// - Accesses are checked for bounds and alignment; global memory is what the caller of `simulate` names.
// Not found: data that threads exchange in shared memory without a barrier and that the order drawn happens to bring in time.
#pragma once

#undef _FORTIFY_SOURCE  // before any header: its longjmp refuses to leave for another stack

#include "fake_hopper_machine.h"
#include "fake_hopper_memory.h"
#include "fake_hopper_numbers.h"
#include "fake_hopper_products.h"
#include "fake_hopper_scheduler.h"
#include "fake_hopper_waiting.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define CODETR_CLUSTER(blocks)
#define CODETR_PARAMETER
#define CODETR_ONLY_ON_HOPPER

struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};

namespace codetr {
namespace hopper {

// ---- Where a thread is ----

inline int threadInBlock() { return fake::self().number; }
inline int warpgroupInBlock() {
    fake::meetWarp("warpgroupInBlock");
    return fake::self().number / kWarpgroup;
}
inline int rankInCluster() { return fake::self().block->rank; }
inline int clusterInGrid() { return fake::machine()->cluster; }
inline int clustersInGrid() { return fake::machine()->launch->clusters; }

// ---- Numbers ----

template <typename T>
uint32_t pack(float low, float high) {
    fake::Format const& format = fake::formatOf(T{});
    return fake::encode(format, low) | fake::encode(format, high) << 16;
}
template <typename T>
float2 unpack(uint32_t pair) {
    fake::Numbers const& numbers = fake::numbersOf<T>();
    return {numbers[pair & 0xffff], numbers[pair >> 16]};
}
template <typename T>
uint32_t addPairs(uint32_t a, uint32_t b) {
    float2 const x = unpack<T>(a), y = unpack<T>(b);
    return pack<T>(x.x + y.x, x.y + y.y);
}
inline uint32_t packE4m3(float a, float b, float c, float d) {
    uint32_t packed = 0;
    for (float const x : {d, c, b, a}) packed = packed << 8 | fake::encode(fake::kE4M3, x);
    return packed;
}
inline float inverseRoot(float x) { return 1 / std::sqrt(x); }
inline float sumOfQuad(float x) {
    int const row = fake::meetWarp("sumOfQuad", x), lane = fake::self().lane();
    float const* const values = fake::self().warp().values[row];
    return values[lane] + values[lane ^ 1] + (values[lane ^ 2] + values[lane ^ 3]);
}

// ---- Memory ----

struct alignas(16) Vector {
    uint32_t words[4];
};

inline Vector loadGlobal(void const* place) {
    fake::checkGlobal(place, sizeof(Vector), false, "loadGlobal");
    Vector x;
    std::memcpy(&x, place, sizeof x);
    return x;
}
inline void storeGlobal(void* place, Vector const& x) {
    fake::checkGlobal(place, sizeof(Vector), true, "storeGlobal");
    std::memcpy(place, &x, sizeof x);
}
// Of the caller's block; a multiple of 1024.
inline char* sharedMemory() { return fake::self().block->bytes; }
inline Vector loadShared(void const* place) {
    uint32_t const offset = fake::placeOf(place, sizeof(Vector), sizeof(Vector), "loadShared");
    fake::checkCopies(*fake::self().block, offset, sizeof(Vector), "reads");
    Vector x;
    std::memcpy(&x, place, sizeof x);
    return x;
}
inline void storeShared(void* place, Vector const& x) { fake::store(place, &x, sizeof x); }
inline void storeShared(void* place, uint32_t low, uint32_t high) {
    uint32_t const words[] = {low, high};
    fake::store(place, words, sizeof words);
}

// ---- Threads waiting for each other ----

inline void syncBlock() {
    fake::Block& block = *fake::self().block;
    if (block.ended > 0) fake::fail("comes to syncBlock, to which ", block.ended, " threads that have ended will not come");
    fake::meet(block.all, "syncBlock");
}
inline void syncWarpgroup(int number) {
    fake::Block& block = *fake::self().block;
    if (number < 1 || number > 15) fake::fail("syncWarpgroup(", number, "): 1 to 15 are meant");
    fake::Meeting& meeting = block.named[number];
    int const warpgroup = fake::self().number / kWarpgroup;
    if (meeting.arrived == 0) block.named_warpgroups[number] = warpgroup;
    if (block.named_warpgroups[number] != warpgroup) fake::fail("syncWarpgroup(", number, "), where threads of another warpgroup wait");
    fake::meet(meeting, "syncWarpgroup");
}
inline void syncCluster() {
    fake::Machine& machine = *fake::machine();
    if (machine.ended > 0) fake::fail("comes to syncCluster, to which ", machine.ended, " threads that have ended will not come");
    fake::meet(machine.all, "syncCluster");
}

inline void initBarrier(uint64_t* barrier, int arrivals) {
    fake::Block& block = *fake::self().block;
    uint32_t const place = fake::placeOf(barrier, 8, 8, "initBarrier");
    if (arrivals < 1 || arrivals >= 1 << 20) fake::fail("initBarrier with ", arrivals, " arrivals");
    if (block.barriers.count(place)) fake::fail("initBarrier: there is a barrier at byte ", place, " already");
    block.barriers[place] = {static_cast<int>(place), arrivals, arrivals, 0, 0, fake::self().number, false};
}
inline void showBarriers() {
    for (auto& placed : fake::self().block->barriers) {
        if (placed.second.setter == fake::self().number) placed.second.shown = true;
    }
}
inline void arriveAndExpect(uint64_t* barrier, int bytes) {
    fake::pause(8);
    uint32_t const place = fake::placeOf(barrier, 8, 8, "arriveAndExpect");
    fake::arrive(fake::barrierOf(*fake::self().block, place, "arriveAndExpect"), bytes, "arriveAndExpect");
}
inline void arriveAt(uint64_t* barrier, int rank) {
    fake::pause(8);
    uint32_t const place = fake::placeOf(barrier, 8, 8, "arriveAt");
    auto& blocks = fake::machine()->blocks;
    if (rank < 0 || rank >= static_cast<int>(blocks.size())) fake::fail("arriveAt: there is no block ", rank);
    fake::arrive(fake::shownBarrierOf(*blocks[rank], place, "arriveAt"), 0, "arriveAt");
}
inline void waitFor(uint64_t* barrier, int parity) {
    if (parity != 0 && parity != 1) fake::fail("waitFor: a parity of ", parity);
    fake::Barrier const& own = fake::barrierOf(*fake::self().block, fake::placeOf(barrier, 8, 8, "waitFor"), "waitFor");
    fake::waitUntil([&] { return static_cast<int>(own.phase & 1) != parity; },
                    [&] {
                        return fake::join("waitFor(the barrier at byte ", own.place, ", parity ", parity, "), which is in phase ",
                                          own.phase, " and lacks ", own.pending, " of ", own.arrivals, " arrivals and ", own.bytes,
                                          " bytes");
                    });
}

// ---- Copies that go on beside the threads ----

inline void copyToCluster(void* place, void const* source, int bytes, uint64_t* barrier, uint16_t mask) {
    fake::pause(8);
    uint32_t const to = fake::placeOf(place, bytes, 16, "copyToCluster"), signal = fake::placeOf(barrier, 8, 8, "copyToCluster");
    fake::checkGlobal(source, bytes, false, "copyToCluster");
    auto& blocks = fake::machine()->blocks;
    if (mask == 0 || mask >> blocks.size() != 0) fake::fail("copyToCluster to blocks ", mask, ", a mask");
    for (auto const& block : blocks) {
        if ((mask >> block->rank & 1) == 0) continue;
        fake::startCopy(*block, to, source, bytes, fake::shownBarrierOf(*block, signal, "copyToCluster"));
    }
}
inline void prefetch(void const* source, int bytes) { fake::checkGlobal(source, bytes, false, "prefetch"); }
inline void showToProducts() { fake::showStored(); }

// ---- Registers ----

template <int kCount>
void giveRegisters() {
    static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256, "what setmaxnreg takes");
    fake::Thread& thread = fake::self();
    if (++thread.gave > 1) fake::fail("gives registers a second time");
    fake::meetWarp("giveRegisters");
    fake::Warp& warp = thread.warp();
    if (warp.registers == kCount) return;
    if (warp.registers < kCount) fake::fail("gives registers to keep more than it has");
    thread.block->free_registers += warp.registers - kCount;
    warp.registers = kCount;
}
template <int kCount>
void takeRegisters() {
    static_assert(kCount % 8 == 0 && kCount >= 24 && kCount <= 256, "what setmaxnreg takes");
    fake::Thread& thread = fake::self();
    if (++thread.took > 1) fake::fail("takes registers a second time");
    fake::meetWarp("takeRegisters");
    fake::Warp& warp = thread.warp();
    if (warp.registers > kCount) fake::fail("takes registers to have fewer than it has");
    if (thread.lane() == 0) {
        int const more = kCount - warp.registers;
        int& free = thread.block->free_registers;
        fake::waitUntil([&] { return free >= more; }, [] { return "takeRegisters: more registers than are free"; });
        free -= more;
    }
    fake::meetWarp("takeRegisters");
    warp.registers = kCount;
}

// ---- Products of a warpgroup ----

inline void commitProducts() { fake::commitProducts(); }
template <int kPending>
void waitForProducts() {
    fake::finishProducts(kPending);
}
template <int kCount>
void pin(float (&)[kCount]) {}

template <typename T, int kCount>
void multiply(float (&sums)[kCount], char const* a, char const* b, int add) {
    static_assert(kCount == 32 || kCount == 64, "64 or 128 columns");
    uint32_t const rows = fake::placeOfTile(a, fake::kRows), columns = fake::placeOfTile(b, 2 * kCount);
    fake::beginProduct(sums, 2 * kCount, {&fake::numbersOf<T>(), false, rows, columns, add}, nullptr);
}
template <typename T>
void multiply(float (&sums)[64], uint32_t const (&a)[fake::kOperandRegisters], char const* b, int add) {
    fake::beginProduct(sums, 128, {&fake::numbersOf<T>(), true, 0, fake::placeOfTile(b, 128), add}, a);
}

}  // namespace hopper
}  // namespace codetr
