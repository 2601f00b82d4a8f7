// Simulated memory: bounds and alignment of accesses, barriers in shared memory, and what threads, copies and products do to
// each other there.
#pragma once

#include "fake_hopper_waiting.h"

#include <cstring>

namespace codetr {
namespace hopper {
namespace fake {

// ---- Bounds and alignment ----

inline uint32_t placeOf(void const* pointer, int bytes, int alignment, char const* what) {
    Block const& block = *self().block;
    auto const place = reinterpret_cast<intptr_t>(pointer) - reinterpret_cast<intptr_t>(block.bytes);
    if (place < 0 || place + bytes > static_cast<intptr_t>(block.size))
        fail(what, ": ", bytes, " bytes at byte ", place, " of shared memory, which has ", block.size);
    if (place % alignment != 0) fail(what, ": byte ", place, " of shared memory is no multiple of ", alignment);
    return static_cast<uint32_t>(place);
}

inline void checkGlobal(void const* pointer, int64_t bytes, bool write, char const* what) {
    auto const begin = reinterpret_cast<uintptr_t>(pointer);
    if (begin % 16 != 0 || bytes % 16 != 0 || bytes <= 0)
        fail(what, ": ", bytes, " bytes at an address that is ", begin % 16, " past a multiple of 16");
    std::string nearest = "no buffer";
    uintptr_t least = 1 << 20;  // bytes from it
    for (Buffer const& buffer : machine()->launch->buffers) {
        auto const first = reinterpret_cast<uintptr_t>(buffer.begin), last = first + buffer.bytes;
        if (begin >= first && begin + bytes <= last) {
            if (write && !buffer.writable) fail(what, ": ", buffer.name, " is not to be written");
            return;
        }
        uintptr_t const distance = begin < first ? first - begin : begin < last ? 0 : begin - last;
        if (distance >= least) continue;
        least = distance;
        nearest = join("byte ", static_cast<intptr_t>(begin - first), " of ", buffer.name, ", which has ", buffer.bytes);
    }
    fail(what, ": ", bytes, " bytes out of bounds, at ", nearest);
}

// ---- What may not be touched ----

inline bool overlap(uint32_t a, size_t a_bytes, uint32_t b, size_t b_bytes) { return a < b + b_bytes && b < a + a_bytes; }

// The operands of products that are still to be done.
inline void checkOperands(Block const& block, uint32_t place, size_t bytes, char const* what) {
    for (Warpgroup const& warpgroup : block.warpgroups) {
        for (size_t i = warpgroup.first_pending; i < warpgroup.products.size(); ++i) {
            Product const& product = *warpgroup.products[i];
            Operands const& operands = product.operands;
            bool const a = !operands.a_in_registers && overlap(place, bytes, operands.a, size_t{kRows} * kRowBytes);
            if (a || overlap(place, bytes, operands.b, static_cast<size_t>(product.sums->columns) * kRowBytes))
                fail(what, " byte ", place, " of block ", block.rank, ", which a product that nobody has waited for may still read");
        }
    }
}

inline void checkCopies(Block const& block, uint32_t place, size_t bytes, char const* what) {
    for (Copy const& copy : machine()->copies) {
        if (copy.block == &block && overlap(place, bytes, copy.place, copy.bytes))
            fail(what, " byte ", place, " of block ", block.rank, " while a copy writes there");
    }
}

inline void checkBarriers(Block const& block, uint32_t place, size_t bytes, char const* what) {
    auto const found = block.barriers.lower_bound(place < 7 ? 0 : place - 7);
    if (found != block.barriers.end() && overlap(place, bytes, found->first, 8)) fail(what, " byte ", place, ", where a barrier is");
}

inline void checkWrite(Block const& block, uint32_t place, size_t bytes, char const* what) {
    checkOperands(block, place, bytes, what);
    checkCopies(block, place, bytes, what);
    checkBarriers(block, place, bytes, what);
}

// What threads have stored and not made visible; `rest` ends the message.
inline void checkShown(Block const& block, uint32_t place, size_t bytes, char const* what, char const* rest) {
    for (size_t word = place / 8; word < (place + bytes) / 8; ++word) {
        if (block.unshown[word] == 0) continue;
        fail(what, " byte ", 8 * word, " of block ", block.rank, ", which thread ", block.unshown[word] - 1, " has stored and not ", rest);
    }
}

// ---- Barriers ----

inline Barrier& barrierOf(Block& block, uint32_t place, char const* what) {
    auto const found = block.barriers.find(place);
    if (found == block.barriers.end()) fail(what, ": no barrier has been set up at byte ", place, " of block ", block.rank);
    return found->second;
}

// For threads of any block of the cluster.
inline Barrier& shownBarrierOf(Block& block, uint32_t place, char const* what) {
    if (block.hasEnded()) fail(what, ": block ", block.rank, " has ended");
    Barrier& barrier = barrierOf(block, place, what);
    if (!barrier.shown) fail(what, ": the barrier at byte ", place, " has not been shown to the cluster");
    return barrier;
}

inline void completeIfDone(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.arrivals;
    ++barrier.phase;
}

// `bytes` more are expected.
inline void arrive(Barrier& barrier, int bytes, char const* what) {
    if (barrier.pending == 0)
        fail(what, ": the barrier at byte ", barrier.place, " counts ", barrier.arrivals, " arrivals, and has had them in phase ",
             barrier.phase, " already; ", barrier.bytes, " bytes are missing");
    barrier.bytes += bytes;
    if (barrier.bytes >= 1 << 20) fail(what, ": a barrier counts bytes up to 2^20 - 1");
    --barrier.pending;
    completeIfDone(barrier);
}

// ---- Stores and copies ----

inline void store(void* pointer, void const* source, int bytes) {
    Thread& thread = self();
    Block& block = *thread.block;
    uint32_t const place = placeOf(pointer, bytes, bytes, "storeShared");
    checkWrite(block, place, bytes, "writes");
    std::memcpy(pointer, source, bytes);
    for (uint32_t word = place / 8; word < (place + bytes) / 8; ++word) {
        block.unshown[word] = thread.number + 1;
        thread.unshown.push_back(word);
    }
}

// What the caller has stored becomes what products read.
inline void showStored() {
    Thread& thread = self();
    Block& block = *thread.block;
    for (uint32_t const word : thread.unshown) {
        if (block.unshown[word] != thread.number + 1) continue;
        std::memcpy(block.shadow.data() + 8 * word, block.bytes + 8 * word, 8);
        block.unshown[word] = 0;
    }
    thread.unshown.clear();
}

inline void startCopy(Block& block, uint32_t place, void const* source, int bytes, Barrier& barrier) {
    checkWrite(block, place, bytes, "copies to");
    checkShown(block, place, bytes, "copies to", "ordered before copies");
    std::memset(block.bytes + place, kPoison, bytes);
    std::memset(block.shadow.data() + place, kPoison, bytes);
    bool const late = machine()->launch->late && draw(2) == 0;
    machine()->copies.push_back({&block, place, bytes, source, &barrier, 1 + draw(1 + draw(60)), late});
}

inline void land(Copy const& copy) {
    std::memcpy(copy.block->bytes + copy.place, copy.source, copy.bytes);
    std::memcpy(copy.block->shadow.data() + copy.place, copy.source, copy.bytes);
    copy.barrier->bytes -= copy.bytes;
    completeIfDone(*copy.barrier);
}

}  // namespace fake
}  // namespace hopper
}  // namespace codetr
