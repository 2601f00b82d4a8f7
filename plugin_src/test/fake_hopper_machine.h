// What a simulated launch consists of: blocks, warps and threads, barriers, copies under way, products that nobody has waited
// for. One cluster is simulated at a time.
#pragma once

#include <csetjmp>

#include <ucontext.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "fake_hopper_numbers.h"

namespace codetr {
namespace hopper {

constexpr int kWarpgroup = 128;

namespace fake {

constexpr int kWarp = 32;
constexpr int kPoison = 0xff;  // a NaN in every type

// ---- What a caller asks for ----

struct Buffer {
    std::string name;
    void const* begin;
    size_t bytes;
    bool writable;
};

struct Launch {
    int clusters;
    int blocks;   // of a cluster
    int threads;  // of a block
    size_t shared_bytes;
    uint64_t seed;
    bool late;  // some warps and copies go on only where nothing else can
    std::vector<Buffer> buffers;
};

// ---- What waits for what ----

struct Barrier {
    int place, arrivals, pending;
    int64_t bytes;
    unsigned phase;
    int setter;
    bool shown;
};

// Threads that go on together.
struct Meeting {
    int wanted, arrived;
    unsigned number;
};

// Without `over`, a thread waits for nothing.
struct Wait {
    std::function<bool()> over;
    std::function<std::string()> what;
};

// ---- Products ----

constexpr int kRows = 64, kRowBytes = 128;  // of a product's tile of `a`; one of `b` has as many rows as there are columns

// Of a warpgroup: what its products add to. The threads' registers hold NaN meanwhile.
struct Sums {
    int columns;
    std::vector<float> values;  // [64, columns]
    std::array<float*, kWarpgroup> registers;
};

struct Operands {
    Numbers const* numbers;  // of their type
    bool a_in_registers;
    uint32_t a, b;  // where the tiles begin
    int add;

    bool operator==(Operands const& other) const {
        return std::tie(numbers, a_in_registers, a, b, add) == std::tie(other.numbers, other.a_in_registers, other.a, other.b, other.add);
    }
};

constexpr int kOperandRegisters = kRows * kRowBytes / kWarpgroup / 4;  // of a thread

struct Product {
    Operands operands;
    std::shared_ptr<Sums> sums;
    std::vector<uint32_t> registers;  // [128, 16]
    int threads = 0;                  // that have come to it
    bool done = false;
};

struct Warpgroup {
    std::vector<std::unique_ptr<Product>> products;
    std::vector<size_t> groups;  // where each committed group ends
    size_t first_pending = 0;
};

// ---- Threads and blocks ----

struct Warp {
    Meeting meeting{kWarp, 0, 0};
    std::string purpose;
    float values[2][kWarp];
    int registers = 0;  // of each thread
    bool late = false;
};

struct Block;

struct Thread {
    Block* block = nullptr;
    int number = 0;
    std::jmp_buf context;
    ucontext_t start;
    void* stack = nullptr;
    bool started = false, done = false;
    Wait wait;
    size_t products = 0;
    std::vector<size_t> groups;
    struct Open {
        std::shared_ptr<Sums> sums;
        size_t last;  // of its products
    };
    std::vector<Open> open;
    std::vector<uint32_t> unshown;  // words of 8 bytes
    int gave = 0, took = 0;

    Warp& warp() const;
    Warpgroup& warpgroup() const;
    int lane() const { return number % kWarp; }
    int inWarpgroup() const { return number % kWarpgroup; }
};

struct Block {
    int rank = 0;
    size_t size = 0;
    char* bytes = nullptr;     // as threads see it
    std::vector<char> shadow;  // as products see it
    std::vector<int> unshown;  // by words of 8 bytes, the thread that has written it, plus one
    std::map<uint32_t, Barrier> barriers;
    Meeting all{};
    std::array<Meeting, 16> named{};
    std::array<int, 16> named_warpgroups{};
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    int ended = 0;
    int free_registers = 0;  // of all warps together, by each's first thread

    bool hasEnded() const { return ended == static_cast<int>(threads.size()); }
};

inline Warp& Thread::warp() const { return block->warps[number / kWarp]; }
inline Warpgroup& Thread::warpgroup() const { return block->warpgroups[number / kWarpgroup]; }

struct Copy {
    Block* block;
    uint32_t place;
    int bytes;
    void const* source;
    Barrier* barrier;
    int delay;
    bool late;
};

struct Machine {
    Launch const* launch = nullptr;
    std::function<void()> const* kernel = nullptr;
    int cluster = 0;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<Copy> copies;
    Meeting all{};
    int ended = 0;
    uint64_t random = 0;
    std::string fault;
    std::jmp_buf scheduler;
    Thread* self = nullptr;
};

inline Machine*& machine() {
    static Machine* one = nullptr;
    return one;
}
inline Thread& self() { return *machine()->self; }

// 0 to count - 1 (splitmix64).
inline int draw(int count) {
    uint64_t x = machine()->random += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return static_cast<int>((x ^ x >> 31) % static_cast<uint64_t>(count));
}

template <typename... Parts>
std::string join(Parts const&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    return text.str();
}

}  // namespace fake
}  // namespace hopper
}  // namespace codetr
