// Runs the threads of a launch as fibers, cluster after cluster, warps in an order that a seed decides, and lands copies between
// them; where nothing can go on, says who waits for what.
#pragma once

#include "fake_hopper_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace codetr {
namespace hopper {
namespace fake {

constexpr int kRegistersOfBlock = 65536;
constexpr size_t kStackBytes = 256 << 10;

// ---- A thread ----

inline void runThread() {
    (*machine()->kernel)();
    Thread& thread = self();
    Block& block = *thread.block;
    Warpgroup const& warpgroup = thread.warpgroup();
    if (!thread.open.empty()) fail("ends with products that it has not waited for");
    if (thread.groups.size() != warpgroup.groups.size() || thread.products != warpgroup.products.size())
        fail("ends with fewer products than other threads of its warpgroup");
    if (block.all.arrived > 0) fail("ends while other threads wait in syncBlock");
    if (machine()->all.arrived > 0) fail("ends while other threads wait in syncCluster");
    thread.done = true;
    ++machine()->ended;
    ++block.ended;
    if (block.hasEnded()) {
        for (Copy const& copy : machine()->copies) {
            if (copy.block == &block) fail("ends its block, into which a copy to byte ", copy.place, " is still under way");
        }
    }
    for (;;) toScheduler();
}

inline void resume(Thread& thread) {
    machine()->self = &thread;
    if (_setjmp(machine()->scheduler) != 0) return;
    if (thread.started) _longjmp(thread.context, 1);
    thread.started = true;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack;
    thread.start.uc_stack.ss_size = kStackBytes;
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, runThread, 0);
    setcontext(&thread.start);
}

// ---- Who goes on ----

// Runs some of the threads of a warp that can go on; false if there are none.
inline bool runWarp(Machine& machine, Block& block, int warp) {
    int const first = draw(kWarp), step = 2 * draw(kWarp / 2) + 1;
    int left = draw(4) == 0 ? 1 + draw(kWarp) : kWarp;
    bool ran = false;
    for (int i = 0; i < kWarp && left > 0 && machine.fault.empty(); ++i) {
        Thread& thread = block.threads[static_cast<size_t>(warp) * kWarp + (first + i * step) % kWarp];
        if (thread.done || (thread.wait.over && !thread.wait.over())) continue;
        resume(thread);
        ran = true;
        --left;
    }
    return ran;
}

inline bool runAny(Machine& machine, bool late) {
    int const warps = static_cast<int>(machine.blocks[0]->warps.size()), count = static_cast<int>(machine.blocks.size()) * warps;
    int const first = draw(count);
    for (int i = 0; i < count; ++i) {
        int const chosen = (first + i) % count;
        Block& block = *machine.blocks[chosen / warps];
        if (block.warps[chosen % warps].late == late && runWarp(machine, block, chosen % warps)) return true;
    }
    return false;
}

// Those that are due.
inline void landCopies(Machine& machine) {
    auto& copies = machine.copies;
    for (Copy& copy : copies) --copy.delay;
    auto const landed = [](Copy const& copy) {
        bool const due = !copy.late && copy.delay <= 0;
        if (due) land(copy);
        return due;
    };
    copies.erase(std::remove_if(copies.begin(), copies.end(), landed), copies.end());
}

// One before it is due; false if there is none.
inline bool landAny(Machine& machine, bool late) {
    auto& copies = machine.copies;
    auto const found = std::find_if(copies.begin(), copies.end(), [late](Copy const& copy) { return copy.late == late; });
    if (found == copies.end()) return false;
    land(*found);
    copies.erase(found);
    return true;
}

inline std::string reportOfWaiting(Machine const& machine) {
    std::string report = join("cluster ", machine.cluster, ": nothing can go on");
    for (auto const& block : machine.blocks) {
        std::vector<Thread> const& threads = block->threads;
        auto const wait_of = [&](size_t i) { return threads[i].done ? "" : threads[i].wait.what(); };
        for (size_t first = 0, last = 0; first < threads.size(); first = last) {
            std::string const what = wait_of(first);
            for (last = first + 1; last < threads.size() && wait_of(last) == what;) ++last;
            if (!what.empty()) report += join("\n  block ", block->rank, ", threads ", first, " to ", last - 1, ": ", what);
        }
    }
    return report;
}

// ---- A launch ----

inline void setUp(Machine& machine, std::vector<void*> const& stacks) {
    Launch const& launch = *machine.launch;
    int const registers = std::min(255, kRegistersOfBlock / launch.threads) / 8 * 8, warps = launch.threads / kWarp;
    machine.all = {launch.blocks * launch.threads, 0, 0};
    // Which warps are late: a third of them, a whole block, or one.
    int const kind = draw(3), late_block = draw(launch.blocks), late_warp = draw(warps);
    for (int rank = 0; rank < launch.blocks; ++rank) {
        auto made = std::make_unique<Block>();
        Block& block = *made;
        block.rank = rank;
        block.size = launch.shared_bytes;
        size_t const rounded = (launch.shared_bytes + 1023) / 1024 * 1024;
        block.bytes = static_cast<char*>(std::aligned_alloc(1024, rounded));
        std::memset(block.bytes, kPoison, rounded);
        block.shadow.assign(rounded, static_cast<char>(kPoison));
        block.unshown.assign(rounded / 8, 0);
        block.all = {launch.threads, 0, 0};
        block.named.fill({kWarpgroup, 0, 0});
        block.threads = std::vector<Thread>(launch.threads);
        block.warps = std::vector<Warp>(warps);
        block.warpgroups = std::vector<Warpgroup>(launch.threads / kWarpgroup);
        for (int i = 0; i < warps; ++i) {
            block.warps[i].registers = registers;
            bool const late = kind == 0 ? draw(3) == 0 : rank == late_block && (kind == 1 || i == late_warp);
            block.warps[i].late = launch.late && late;
        }
        for (int i = 0; i < launch.threads; ++i) {
            block.threads[i].block = &block;
            block.threads[i].number = i;
            block.threads[i].stack = stacks[static_cast<size_t>(rank) * launch.threads + i];
        }
        machine.blocks.push_back(std::move(made));
    }
}

inline std::string runCluster(Launch const& launch, std::function<void()> const& kernel, int cluster, std::vector<void*> const& stacks) {
    Machine one;
    one.launch = &launch;
    one.kernel = &kernel;
    one.cluster = cluster;
    one.random = launch.seed * 1000003 + static_cast<uint64_t>(cluster);
    machine() = &one;
    setUp(one, stacks);
    while (one.fault.empty() && one.ended < one.all.wanted) {
        landCopies(one);
        if (runAny(one, false) || landAny(one, false) || runAny(one, true) || landAny(one, true)) continue;
        one.fault = reportOfWaiting(one);
    }
    for (auto const& block : one.blocks) std::free(block->bytes);
    machine() = nullptr;
    return one.fault;
}

}  // namespace fake

// Runs `kernel` as every thread of the launch; returns what went wrong first, or an empty string.
inline std::string simulate(fake::Launch const& launch, std::function<void()> const& kernel) {
    std::vector<void*> stacks(static_cast<size_t>(launch.blocks) * launch.threads);
    for (void*& stack : stacks) {
        stack = mmap(nullptr, fake::kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) return "there is no memory for stacks";
    }
    std::string fault;
    for (int cluster = 0; cluster < launch.clusters && fault.empty(); ++cluster) fault = fake::runCluster(launch, kernel, cluster, stacks);
    for (void* const stack : stacks) munmap(stack, fake::kStackBytes);
    return fault;
}

}  // namespace hopper
}  // namespace codetr
