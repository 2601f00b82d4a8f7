// The functions of hopper.cuh on a CPU, for tests of the kernels that use them; include it first. `simulate` runs a kernel,
// cluster after cluster, every thread a fiber, in an order that a seed decides, and says what went wrong first.
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

#undef _FORTIFY_SOURCE  // whose longjmp refuses to leave for another stack
#include <csetjmp>

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define CODETR_EVERYWHERE
#define CODETR_CLUSTER(blocks)
#define CODETR_PARAMETER
#define CODETR_CLUSTER(blocks)
#define CODETR_ONLY_ON_HOPPER

struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace codetr {
namespace hopper {

struct Half {};
struct BFloat16 {};
struct E4M3 {};

struct alignas(16) Vector {
    uint32_t words[4];
};

constexpr int kWarpgroup = 128;

namespace fake {

constexpr int kWarp = 32;
constexpr int kRegistersOfBlock = 65536;
constexpr size_t kStackBytes = 256 << 10;
constexpr int kPoison = 0xff;  // a NaN in every type

// ---- Numbers ----

// A type of numbers: bits of the fraction, the exponent of its smallest normal number, its largest number and what is beyond.
struct Format {
    int fraction, least;
    double largest;
    uint32_t sign, largest_bits, beyond_bits, nan_bits;
};
constexpr Format kHalf{10, -14, 65504, 0x8000, 0x7bff, 0x7c00, 0x7fff};
constexpr Format kBFloat16{7, -126, 3.3895313892515355e38, 0x8000, 0x7f7f, 0x7f80, 0x7fff};
constexpr Format kE4M3{3, -6, 448, 0x80, 0x7e, 0x7e, 0x7f};

// To the nearest, the even one of two.
inline uint32_t encode(Format const& format, float value) {
    if (std::isnan(value)) return format.nan_bits;
    uint32_t const sign = std::signbit(value) ? format.sign : 0;
    double const size = std::fabs(static_cast<double>(value));
    if (size == 0) return sign;
    if (std::isinf(size)) return sign | format.beyond_bits;
    int const exponent = std::max(std::ilogb(size), format.least);
    auto const units = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, format.fraction - exponent)));
    if (std::ldexp(units, exponent - format.fraction) > format.largest) return sign | format.beyond_bits;
    // Subnormal numbers have no hidden bit; a fraction that rounds up carries into the exponent.
    return sign | ((static_cast<uint32_t>(exponent - format.least) << format.fraction) + units);
}

inline float decode(Format const& format, uint32_t bits) {
    uint32_t const size = bits & (format.sign - 1);
    double value;
    if (size > format.beyond_bits) {
        value = std::numeric_limits<double>::quiet_NaN();
    } else if (size > format.largest_bits) {
        value = std::numeric_limits<double>::infinity();
    } else {
        uint32_t const high = size >> format.fraction, low = size & ((1U << format.fraction) - 1);
        uint32_t const units = high == 0 ? low : low | 1U << format.fraction;
        value = std::ldexp(units, static_cast<int>(std::max(high, 1U)) - 1 + format.least - format.fraction);
    }
    return static_cast<float>(bits & format.sign ? -value : value);
}

inline Format const& formatOf(Half) { return kHalf; }
inline Format const& formatOf(BFloat16) { return kBFloat16; }
inline Format const& formatOf(E4M3) { return kE4M3; }

inline std::vector<float> tableOf(Format const& format) {
    std::vector<float> table(2 * format.sign);
    for (uint32_t bits = 0; bits < table.size(); ++bits) table[bits] = decode(format, bits);
    return table;
}

template <typename T>
float const* numbersOf() {
    static std::vector<float> const table = tableOf(formatOf(T{}));
    return table.data();
}

// ---- What a run is ----

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

struct Wait {
    enum Kind { kNothing, kPhase, kMeeting, kProducts, kRegisters } kind = kNothing;
    Barrier const* barrier = nullptr;
    Meeting const* meeting = nullptr;
    unsigned number = 0;  // parity, number of the meeting, or how many products
    std::string what;
};

// Of a warpgroup: what its products add to. The threads' registers hold NaN meanwhile.
struct Sums {
    int columns;
    std::vector<float> values;  // [64, columns]
    std::array<float*, kWarpgroup> registers;
};

struct Product {
    int type;  // 0 float16, 1 bfloat16, 2 E4M3
    bool from_registers;
    uint32_t a, b;  // where the tiles begin
    int depth;      // bytes
    int add;
    std::shared_ptr<Sums> sums;
    std::vector<uint32_t> registers;  // [128, depth / 8]
    int threads = 0;                  // that have come to it
    bool done = false;
};

struct Warpgroup {
    std::vector<std::unique_ptr<Product>> products;
    std::vector<size_t> groups;  // where each committed group ends
    size_t first_pending = 0;
};

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
    int begun = 0;  // calls of beginProducts
    struct Open {
        std::shared_ptr<Sums> sums;
        size_t last;  // of its products
    };
    std::vector<Open> open;
    std::map<float const*, int> closed;  // sums that a wait has given back, and `begun` then
    struct Used {
        uint64_t content;
        int begun;
    };
    std::map<uint32_t const*, Used> used;  // operands in registers, as the last product had them
    std::vector<uint32_t> unshown;         // words of 8 bytes
    int gave = 0, took = 0;

    Warp& warp() const;
    Warpgroup& warpgroup() const;
    int lane() const { return number % kWarp; }
    int inWarpgroup() const { return number % kWarpgroup; }
};

struct Copy {
    Block* block;
    uint32_t place;
    int bytes;
    void const* source;
    Barrier* barrier;
    int delay;
    bool late;
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
};

inline Warp& Thread::warp() const { return block->warps[number / kWarp]; }
inline Warpgroup& Thread::warpgroup() const { return block->warpgroups[number / kWarpgroup]; }

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
    ucontext_t scheduler_start;
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

inline std::string text(long long number) { return std::to_string(number); }

inline std::string nameOf(Thread const& thread) {
    return "cluster " + text(machine()->cluster) + ", block " + text(thread.block->rank) + ", thread " + text(thread.number);
}

// ---- Fibers ----

inline void toScheduler() {
    if (_setjmp(self().context) == 0) _longjmp(machine()->scheduler, 1);
}

[[noreturn]] inline void fail(std::string const& fault) {
    if (machine()->fault.empty()) machine()->fault = nameOf(self()) + ": " + fault;
    for (;;) toScheduler();
}

inline bool ready(Thread const& thread) {
    Wait const& wait = thread.wait;
    switch (wait.kind) {
        case Wait::kNothing: return true;
        case Wait::kPhase: return (wait.barrier->phase & 1) != wait.number;
        case Wait::kMeeting: return wait.meeting->number != wait.number;
        case Wait::kRegisters: return thread.block->free_registers >= static_cast<int>(wait.number);
        case Wait::kProducts: {
            auto const& products = thread.warpgroup().products;
            for (size_t i = thread.warpgroup().first_pending; i < wait.number; ++i) {
                if (products[i]->threads < kWarpgroup) return false;
            }
            return true;
        }
    }
    return true;
}

// Until what `wait` describes has happened; others may go on before in any case.
inline void block(Wait const& wait) {
    self().wait = wait;
    toScheduler();
    self().wait = Wait{};
}

inline void meet(Meeting& meeting, char const* what) {
    unsigned const number = meeting.number;
    if (++meeting.arrived == meeting.wanted) {
        meeting.arrived = 0;
        ++meeting.number;
    }
    Wait wait;
    wait.kind = Wait::kMeeting;
    wait.meeting = &meeting;
    wait.number = number;
    wait.what = what;
    block(wait);
}

// With the other threads of the warp, which must all come to the same function; returns which of the two rows of values counts.
inline int meetWarp(char const* purpose, float value = 0) {
    Warp& warp = self().warp();
    int const row = warp.meeting.number & 1;
    if (warp.meeting.arrived == 0) warp.purpose = purpose;
    if (warp.purpose != purpose) fail(std::string("calls ") + purpose + " where other threads of its warp call " + warp.purpose);
    warp.values[row][self().lane()] = value;
    meet(warp.meeting, purpose);
    return row;
}

// Others may go on first.
inline void pause(int one_in) {
    if (draw(one_in) == 0) block(Wait{});
}

inline void begin() {
    (*machine()->kernel)();
    Thread& thread = self();
    Block& block = *thread.block;
    if (!thread.open.empty()) fail("ends with products that it has not waited for");
    if (thread.groups.size() != thread.warpgroup().groups.size() || thread.products != thread.warpgroup().products.size())
        fail("ends with fewer products than other threads of its warpgroup");
    if (block.all.arrived > 0) fail("ends while other threads wait in syncBlock");
    if (machine()->all.arrived > 0) fail("ends while other threads wait in syncCluster");
    thread.done = true;
    ++machine()->ended;
    if (++block.ended == static_cast<int>(block.threads.size())) {
        for (Copy const& copy : machine()->copies) {
            if (copy.block == &block) fail("ends its block, into which a copy to byte " + text(copy.place) + " is still under way");
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
    makecontext(&thread.start, begin, 0);
    setcontext(&thread.start);
}

// ---- Shared memory and barriers ----

inline bool overlap(uint32_t a, size_t a_bytes, uint32_t b, size_t b_bytes) { return a < b + b_bytes && b < a + a_bytes; }

inline uint32_t placeOf(void const* pointer, int bytes, int alignment, char const* what) {
    Block const& block = *self().block;
    auto const place = reinterpret_cast<intptr_t>(pointer) - reinterpret_cast<intptr_t>(block.bytes);
    if (place < 0 || place + bytes > static_cast<intptr_t>(block.size))
        fail(std::string(what) + ": " + text(bytes) + " bytes at byte " + text(place) + " of shared memory, which has " + text(block.size));
    if (place % alignment != 0)
        fail(std::string(what) + ": byte " + text(place) + " of shared memory is no multiple of " + text(alignment));
    return static_cast<uint32_t>(place);
}

inline void checkGlobal(void const* pointer, int64_t bytes, bool write, char const* what) {
    auto const begin = reinterpret_cast<uintptr_t>(pointer);
    if (begin % 16 != 0 || bytes % 16 != 0 || bytes <= 0)
        fail(std::string(what) + ": " + text(bytes) + " bytes at an address that is " + text(begin % 16) + " past a multiple of 16");
    std::string nearest = "no buffer";
    uintptr_t least = 1 << 20;  // bytes from it
    for (Buffer const& buffer : machine()->launch->buffers) {
        auto const first = reinterpret_cast<uintptr_t>(buffer.begin), last = first + buffer.bytes;
        if (begin >= first && begin + bytes <= last) {
            if (write && !buffer.writable) fail(std::string(what) + ": " + buffer.name + " is not to be written");
            return;
        }
        uintptr_t const distance = begin < first ? first - begin : begin < last ? 0 : begin - last;
        if (distance >= least) continue;
        least = distance;
        nearest = "byte " + text(static_cast<long long>(begin - first)) + " of " + buffer.name + ", which has " + text(buffer.bytes);
    }
    fail(std::string(what) + ": " + text(bytes) + " bytes out of bounds, at " + nearest);
}

// The operands of products that are still to be done.
inline void checkOperands(Block const& block, uint32_t place, size_t bytes, char const* what) {
    for (Warpgroup const& warpgroup : block.warpgroups) {
        for (size_t i = warpgroup.first_pending; i < warpgroup.products.size(); ++i) {
            Product const& product = *warpgroup.products[i];
            if (product.done) continue;
            bool const b = overlap(place, bytes, product.b, static_cast<size_t>(product.sums->columns) * 128);
            if (b || (!product.from_registers && overlap(place, bytes, product.a, 64 * 128)))
                fail(std::string(what) + " byte " + text(place) + " of block " + text(block.rank) +
                     ", which a product that nobody has waited for may still read");
        }
    }
}

inline void checkCopies(uint32_t place, size_t bytes, Block const& block, char const* what) {
    for (Copy const& copy : machine()->copies) {
        if (copy.block == &block && overlap(place, bytes, copy.place, copy.bytes))
            fail(std::string(what) + " byte " + text(place) + " of block " + text(block.rank) + " while a copy writes there");
    }
}

inline void checkBarriers(uint32_t place, size_t bytes, Block const& block, char const* what) {
    auto const found = block.barriers.lower_bound(place < 7 ? 0 : place - 7);
    if (found != block.barriers.end() && overlap(place, bytes, found->first, 8))
        fail(std::string(what) + " byte " + text(place) + ", where a barrier is");
}

inline Barrier& barrierOf(Block& block, uint32_t place, char const* what) {
    auto const found = block.barriers.find(place);
    if (found == block.barriers.end())
        fail(std::string(what) + ": no barrier has been set up at byte " + text(place) + " of block " + text(block.rank));
    return found->second;
}

inline void completeIfDone(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.arrivals;
    ++barrier.phase;
}

inline void arrive(Barrier& barrier, char const* what) {
    if (barrier.pending == 0)
        fail(std::string(what) + ": the barrier at byte " + text(barrier.place) + " counts " + text(barrier.arrivals) +
             " arrivals, and has had them in phase " + text(barrier.phase) + " already; " + text(barrier.bytes) + " bytes are missing");
    --barrier.pending;
    completeIfDone(barrier);
}

inline void checkAlive(Block const& block, char const* what) {
    if (block.ended == static_cast<int>(block.threads.size())) fail(std::string(what) + ": block " + text(block.rank) + " has ended");
}

inline void store(void* pointer, void const* source, int bytes) {
    Thread& thread = self();
    Block& block = *thread.block;
    uint32_t const place = placeOf(pointer, bytes, bytes, "storeShared");
    checkOperands(block, place, bytes, "writes");
    checkCopies(place, bytes, block, "writes");
    checkBarriers(place, bytes, block, "writes");
    std::memcpy(pointer, source, bytes);
    for (uint32_t word = place / 8; word < (place + bytes) / 8; ++word) {
        block.unshown[word] = thread.number + 1;
        thread.unshown.push_back(word);
    }
}

inline void land(Copy const& copy) {
    std::memcpy(copy.block->bytes + copy.place, copy.source, copy.bytes);
    std::memcpy(copy.block->shadow.data() + copy.place, copy.source, copy.bytes);
    copy.barrier->bytes -= copy.bytes;
    completeIfDone(*copy.barrier);
}

// ---- Products ----

inline std::shared_ptr<Sums> openSums(Thread& thread, Product& product, size_t number, float* registers, int columns, bool created) {
    int const count = columns / 2;
    for (Thread::Open& open : thread.open) {
        float* const place = open.sums->registers[thread.inWarpgroup()];
        if (place == registers) {
            if (open.sums->columns != columns) fail("adds products of different widths to the same sums");
            open.last = number;
            return open.sums;
        }
        if (place < registers + count && registers < place + open.sums->columns / 2) fail("adds products to parts of the sums of others");
    }
    auto const closed = thread.closed.find(registers);
    if (thread.begun == (closed == thread.closed.end() ? 0 : closed->second))
        fail("begins products with sums that were its own since the last beginProducts");
    std::shared_ptr<Sums> sums = product.sums;
    if (created) {
        sums = std::make_shared<Sums>();
        sums->columns = columns;
        sums->values.resize(static_cast<size_t>(64) * columns);
        sums->registers.fill(nullptr);
    }
    int const t = thread.inWarpgroup(), row = 16 * (t / 32) + t % 32 / 4;
    for (int i = 0; i < count; ++i) {
        sums->values[(row + 8 * (i / 2 % 2)) * columns + 8 * (i / 4) + 2 * (t % 4) + i % 2] = registers[i];
    }
    sums->registers[t] = registers;
    thread.open.push_back({sums, number});
    return sums;
}

// Registers that have changed since a product had them, or are new, need a beginProducts in between.
inline void checkFence(Thread& thread, uint32_t const* registers, int count) {
    uint64_t content = 0;
    for (int i = 0; i < count; ++i) content = (content ^ registers[i]) * 0x9e3779b97f4a7c15 + 1;
    auto const found = thread.used.find(registers);
    bool const changed = found == thread.used.end() || found->second.content != content;
    if (changed && thread.begun == (found == thread.used.end() ? 0 : found->second.begun))
        fail("begins a product of registers that were written since the last beginProducts");
    thread.used[registers] = {content, thread.begun};
}

// By every thread of a warpgroup; `registers` null: `a` is where a tile begins.
inline void multiply(int type, float* sums, int columns, uint32_t a, uint32_t const* registers, uint32_t b, int depth, int add) {
    Thread& thread = self();
    Block& block = *thread.block;
    Warpgroup& warpgroup = thread.warpgroup();
    size_t const number = thread.products++;
    bool const created = number == warpgroup.products.size();
    if (created) {
        auto product = std::make_unique<Product>();
        product->type = type;
        product->from_registers = registers != nullptr;
        product->a = a;
        product->b = b;
        product->depth = depth;
        product->add = add;
        if (registers) product->registers.resize(static_cast<size_t>(kWarpgroup) * depth / 8);
        warpgroup.products.push_back(std::move(product));
        for (bool const second : {false, true}) {
            if (!second && registers) continue;
            uint32_t const place = second ? b : a;
            size_t const bytes = static_cast<size_t>(second ? columns : 64) * 128;
            if ((place & 0x380) != 0 || (place & 15) != 0) fail("a tile of a product begins at byte " + text(place));
            if ((place & ~127U) + bytes > block.size) fail("a tile of a product leaves shared memory, at byte " + text(place));
            checkCopies(place, bytes, block, "begins a product that reads");
            checkBarriers(place, bytes, block, "begins a product that reads");
            for (size_t word = place / 8; word < (place + bytes) / 8 && word < block.unshown.size(); ++word) {
                if (block.unshown[word] != 0)
                    fail("begins a product that reads byte " + text(static_cast<long long>(8 * word)) + ", which thread " +
                         text(block.unshown[word] - 1) + " has stored and not shown to products");
            }
        }
    }
    Product& product = *warpgroup.products[number];
    bool const alike = product.type == type && product.from_registers == (registers != nullptr) && product.a == a && product.b == b &&
                       product.depth == depth && product.add == add;
    if (!alike) fail("asks for another product than other threads of its warpgroup, its number " + text(static_cast<long long>(number)));
    if (registers) {
        checkFence(thread, registers, depth / 8);
        std::memcpy(&product.registers[static_cast<size_t>(thread.inWarpgroup()) * depth / 8], registers, depth / 2);
    }
    auto const opened = openSums(thread, product, number, sums, columns, created);
    if (created) product.sums = opened;
    if (product.sums != opened) fail("adds a product to other sums than other threads of its warpgroup");
    std::fill(sums, sums + columns / 2, std::numeric_limits<float>::quiet_NaN());
    ++product.threads;
}

template <typename T>
void toFloats(uint8_t const* bytes, int count, float* numbers) {
    float const* const table = numbersOf<T>();
    constexpr int kBytes = std::is_same<T, E4M3>::value ? 1 : 2;
    for (int i = 0; i < count / kBytes; ++i) numbers[i] = table[kBytes == 1 ? bytes[i] : bytes[2 * i] | bytes[2 * i + 1] << 8];
}

inline void toFloats(int type, uint8_t const* bytes, int count, float* numbers) {
    if (type == 0) toFloats<Half>(bytes, count, numbers);
    if (type == 1) toFloats<BFloat16>(bytes, count, numbers);
    if (type == 2) toFloats<E4M3>(bytes, count, numbers);
}

// [rows, numbers of `depth` bytes], of a swizzled tile.
inline void readTile(Block const& block, Product const& product, uint32_t place, int rows, float* numbers, int numbers_of_row) {
    uint8_t bytes[128];
    for (int row = 0; row < rows; ++row) {
        for (int c = 0; c < product.depth; c += 16) {
            uint32_t const address = place + row * 128 + c;
            std::memcpy(bytes + c, block.shadow.data() + (address ^ (address >> 7 & 7) << 4), 16);
        }
        toFloats(product.type, bytes, product.depth, numbers + row * numbers_of_row);
    }
}

inline void readRegisters(Product const& product, float* numbers, int numbers_of_row) {
    static uint8_t bytes[64][128];
    for (int t = 0; t < kWarpgroup; ++t) {
        for (int i = 0; i < product.depth / 8; ++i) {
            int const row = 16 * (t / 32) + t % 32 / 4 + 8 * (i % 2), c = 32 * (i / 4) + 16 * (i % 4 / 2) + 4 * (t % 4);
            std::memcpy(&bytes[row][c], &product.registers[static_cast<size_t>(t) * product.depth / 8 + i], 4);
        }
    }
    for (int row = 0; row < 64; ++row) toFloats(product.type, bytes[row], product.depth, numbers + row * numbers_of_row);
}

inline void compute(Block const& block, Product& product) {
    static float a[64 * 128], b[256 * 128], b_turned[128 * 256];
    int const depth = product.type == 2 ? product.depth : product.depth / 2, columns = product.sums->columns;
    if (product.from_registers) readRegisters(product, a, depth);
    if (!product.from_registers) readTile(block, product, product.a, 64, a, depth);
    readTile(block, product, product.b, columns, b, depth);
    for (int column = 0; column < columns; ++column) {
        for (int k = 0; k < depth; ++k) b_turned[k * columns + column] = b[column * depth + k];
    }
    if (!product.add) std::fill(product.sums->values.begin(), product.sums->values.end(), 0.0F);
    for (int row = 0; row < 64; ++row) {
        float* const sums = product.sums->values.data() + static_cast<ptrdiff_t>(row) * columns;
        for (int k = 0; k < depth; ++k) {
            float const factor = a[row * depth + k];
            float const* const line = b_turned + static_cast<ptrdiff_t>(k) * columns;
            for (int column = 0; column < columns; ++column) sums[column] += factor * line[column];
        }
    }
    product.done = true;
    product.registers = {};
}

inline void finishProducts(int pending) {
    Thread& thread = self();
    Warpgroup& warpgroup = thread.warpgroup();
    if (static_cast<int>(thread.groups.size()) <= pending) return;
    size_t const target = thread.groups[thread.groups.size() - 1 - pending];
    Wait wait;
    wait.kind = Wait::kProducts;
    wait.number = static_cast<unsigned>(target);
    wait.what = "products that not all threads of the warpgroup have begun";
    block(wait);
    for (; warpgroup.first_pending < target; ++warpgroup.first_pending)
        compute(*thread.block, *warpgroup.products[warpgroup.first_pending]);
    auto const finished = [&](Thread::Open const& open) {
        if (open.last >= target) return false;
        int const t = thread.inWarpgroup(), row = 16 * (t / 32) + t % 32 / 4, columns = open.sums->columns;
        for (int i = 0; i < columns / 2; ++i) {
            open.sums->registers[t][i] = open.sums->values[(row + 8 * (i / 2 % 2)) * columns + 8 * (i / 4) + 2 * (t % 4) + i % 2];
        }
        thread.closed[open.sums->registers[t]] = thread.begun;
        return true;
    };
    thread.open.erase(std::remove_if(thread.open.begin(), thread.open.end(), finished), thread.open.end());
}

// ---- The scheduler ----

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
        for (Meeting& meeting : block.named) meeting = {kWarpgroup, 0, 0};
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

// Runs some of the threads of a warp that can go on; false if there are none.
inline bool runWarp(Machine& machine, Block& block, int warp) {
    int const first = draw(kWarp), step = 2 * draw(kWarp / 2) + 1;
    int left = draw(4) == 0 ? 1 + draw(kWarp) : kWarp;
    bool ran = false;
    for (int i = 0; i < kWarp && left > 0 && machine.fault.empty(); ++i) {
        Thread& thread = block.threads[static_cast<size_t>(warp) * kWarp + (first + i * step) % kWarp];
        if (thread.done || !ready(thread)) continue;
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

// Those that are due; where `force`, one more.
inline bool landCopies(Machine& machine, bool force, bool late) {
    bool landed = false;
    auto& copies = machine.copies;
    for (size_t i = 0; i < copies.size();) {
        bool const due = !copies[i].late && --copies[i].delay <= 0;
        if (!due && !(force && copies[i].late == late && !landed)) {
            ++i;
            continue;
        }
        Copy const copy = copies[i];
        copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
        land(copy);
        landed = true;
    }
    return landed;
}

inline std::string describe(Thread const& thread) {
    Wait const& wait = thread.wait;
    if (wait.kind == Wait::kPhase) {
        Barrier const& barrier = *wait.barrier;
        return "waitFor(the barrier at byte " + text(barrier.place) + ", parity " + text(wait.number) + "), which is in phase " +
               text(barrier.phase) + " and lacks " + text(barrier.pending) + " of " + text(barrier.arrivals) + " arrivals and " +
               text(barrier.bytes) + " bytes";
    }
    if (wait.kind == Wait::kMeeting)
        return wait.what + ", to which " + text(wait.meeting->arrived) + " of " + text(wait.meeting->wanted) + " threads have come";
    return wait.what;
}

inline std::string reportOfWaiting(Machine const& machine) {
    std::string report = "cluster " + text(machine.cluster) + ": nothing can go on";
    for (auto const& block : machine.blocks) {
        std::vector<Thread> const& threads = block->threads;
        for (size_t first = 0, last = 0; first < threads.size(); first = last) {
            std::string const what = threads[first].done ? "" : describe(threads[first]);
            for (last = first + 1; last < threads.size() && (threads[last].done ? "" : describe(threads[last])) == what;) ++last;
            if (what.empty()) continue;
            report += "\n  block " + text(block->rank) + ", threads " + text(static_cast<long long>(first)) + " to " +
                      text(static_cast<long long>(last - 1)) + ": " + what;
        }
    }
    return report;
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
        landCopies(one, false, false);
        if (runAny(one, false) || landCopies(one, true, false) || runAny(one, true) || landCopies(one, true, true)) continue;
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

// ---- Where a thread is ----

inline int threadInBlock() { return fake::self().number; }
inline int warpgroupInBlock() {
    fake::meetWarp("warpgroupInBlock");
    return fake::self().number / kWarpgroup;
}
inline int rankInCluster() { return fake::self().block->rank; }
inline int clusterInGrid() { return fake::machine()->cluster; }
inline int clustersInGrid() { return fake::machine()->launch->clusters; }
// Of the caller's block; a multiple of 1024.
inline char* sharedMemory() { return fake::self().block->bytes; }

// ---- Numbers ----

template <typename T>
uint32_t pack(float low, float high) {
    fake::Format const& format = fake::formatOf(T{});
    return fake::encode(format, low) | fake::encode(format, high) << 16;
}
template <typename T>
float2 unpack(uint32_t pair) {
    float const* const numbers = fake::numbersOf<T>();
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
inline Vector loadShared(void const* place) {
    uint32_t const offset = fake::placeOf(place, sizeof(Vector), sizeof(Vector), "loadShared");
    fake::checkCopies(offset, sizeof(Vector), *fake::self().block, "reads");
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
    if (block.ended > 0) fake::fail("comes to syncBlock, to which " + fake::text(block.ended) + " threads that have ended will not come");
    fake::meet(block.all, "syncBlock");
}
inline void syncWarpgroup(int number) {
    fake::Block& block = *fake::self().block;
    if (number < 1 || number > 15) fake::fail("syncWarpgroup(" + fake::text(number) + "): 1 to 15 are meant");
    fake::Meeting& meeting = block.named[number];
    int const warpgroup = fake::self().number / kWarpgroup;
    if (meeting.arrived == 0) block.named_warpgroups[number] = warpgroup;
    if (block.named_warpgroups[number] != warpgroup)
        fake::fail("syncWarpgroup(" + fake::text(number) + "), where threads of another warpgroup wait");
    fake::meet(meeting, "syncWarpgroup");
}
inline void syncCluster() {
    int const ended = fake::machine()->ended;
    if (ended > 0) fake::fail("comes to syncCluster, to which " + fake::text(ended) + " threads that have ended will not come");
    fake::meet(fake::machine()->all, "syncCluster");
}

inline void initBarrier(uint64_t* barrier, int arrivals) {
    fake::Block& block = *fake::self().block;
    uint32_t const place = fake::placeOf(barrier, 8, 8, "initBarrier");
    if (arrivals < 1 || arrivals >= 1 << 20) fake::fail("initBarrier with " + fake::text(arrivals) + " arrivals");
    if (block.barriers.count(place)) fake::fail("initBarrier: there is a barrier at byte " + fake::text(place) + " already");
    block.barriers[place] = {static_cast<int>(place), arrivals, arrivals, 0, 0, fake::self().number, false};
}
inline void showBarriers() {
    for (auto& placed : fake::self().block->barriers) {
        if (placed.second.setter == fake::self().number) placed.second.shown = true;
    }
}
inline void arriveAndExpect(uint64_t* barrier, int bytes) {
    fake::pause(8);
    fake::Block& block = *fake::self().block;
    fake::Barrier& own = fake::barrierOf(block, fake::placeOf(barrier, 8, 8, "arriveAndExpect"), "arriveAndExpect");
    if (own.pending == 0) fake::arrive(own, "arriveAndExpect");
    own.bytes += bytes;
    if (own.bytes >= 1 << 20) fake::fail("arriveAndExpect: a barrier counts bytes up to 2^20 - 1");
    fake::arrive(own, "arriveAndExpect");
}
inline void arriveAt(uint64_t* barrier, int rank) {
    fake::pause(8);
    uint32_t const place = fake::placeOf(barrier, 8, 8, "arriveAt");
    auto& blocks = fake::machine()->blocks;
    if (rank < 0 || rank >= static_cast<int>(blocks.size())) fake::fail("arriveAt: there is no block " + fake::text(rank));
    fake::checkAlive(*blocks[rank], "arriveAt");
    fake::Barrier& other = fake::barrierOf(*blocks[rank], place, "arriveAt");
    if (!other.shown) fake::fail("arriveAt: the barrier at byte " + fake::text(place) + " has not been shown to the cluster");
    fake::arrive(other, "arriveAt");
}
inline void waitFor(uint64_t* barrier, int parity) {
    if (parity != 0 && parity != 1) fake::fail("waitFor: a parity of " + fake::text(parity));
    fake::Wait wait;
    wait.kind = fake::Wait::kPhase;
    wait.barrier = &fake::barrierOf(*fake::self().block, fake::placeOf(barrier, 8, 8, "waitFor"), "waitFor");
    wait.number = static_cast<unsigned>(parity);
    fake::block(wait);
}

// ---- Copies that go on beside the threads ----

inline void copyToCluster(void* place, void const* source, int bytes, uint64_t* barrier, uint16_t mask) {
    fake::pause(8);
    uint32_t const to = fake::placeOf(place, bytes, 16, "copyToCluster"), signal = fake::placeOf(barrier, 8, 8, "copyToCluster");
    fake::checkGlobal(source, bytes, false, "copyToCluster");
    auto& blocks = fake::machine()->blocks;
    if (mask == 0 || mask >> blocks.size() != 0) fake::fail("copyToCluster to blocks " + fake::text(mask) + ", a mask");
    for (auto const& block : blocks) {
        if ((mask >> block->rank & 1) == 0) continue;
        fake::checkAlive(*block, "copyToCluster");
        fake::Barrier& barrier_there = fake::barrierOf(*block, signal, "copyToCluster");
        if (!barrier_there.shown)
            fake::fail("copyToCluster: the barrier at byte " + fake::text(signal) + " has not been shown to the cluster");
        fake::checkOperands(*block, to, bytes, "copies to");
        fake::checkCopies(to, bytes, *block, "copies to");
        fake::checkBarriers(to, bytes, *block, "copies to");
        for (size_t word = to / 8; word < (to + static_cast<size_t>(bytes)) / 8; ++word) {
            if (block->unshown[word] != 0)
                fake::fail("copies to byte " + fake::text(static_cast<long long>(8 * word)) + " of block " + fake::text(block->rank) +
                           ", which thread " + fake::text(block->unshown[word] - 1) + " has stored and not ordered before copies");
        }
        std::memset(block->bytes + to, fake::kPoison, bytes);
        std::memset(block->shadow.data() + to, fake::kPoison, bytes);
        bool const late = fake::machine()->launch->late && fake::draw(2) == 0;
        fake::machine()->copies.push_back({block.get(), to, bytes, source, &barrier_there, 1 + fake::draw(1 + fake::draw(60)), late});
    }
}
inline void prefetch(void const* source, int bytes) { fake::checkGlobal(source, bytes, false, "prefetch"); }
inline void showToProducts() {
    fake::Thread& thread = fake::self();
    fake::Block& block = *thread.block;
    for (uint32_t const word : thread.unshown) {
        if (block.unshown[word] != thread.number + 1) continue;
        std::memcpy(block.shadow.data() + 8 * word, block.bytes + 8 * word, 8);
        block.unshown[word] = 0;
    }
    thread.unshown.clear();
}

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
        fake::Wait wait;
        wait.kind = fake::Wait::kRegisters;
        wait.number = static_cast<unsigned>(kCount - warp.registers);
        wait.what = "takeRegisters: more registers than are free";
        fake::block(wait);
        thread.block->free_registers -= kCount - warp.registers;
    }
    fake::meetWarp("takeRegisters");
    warp.registers = kCount;
}

// ---- Products of a warpgroup ----

inline void beginProducts() { ++fake::self().begun; }
inline void commitProducts() {
    fake::Thread& thread = fake::self();
    auto& groups = thread.warpgroup().groups;
    thread.groups.push_back(thread.products);
    size_t const number = thread.groups.size() - 1;
    if (number == groups.size()) groups.push_back(thread.products);
    if (groups[number] != thread.products) fake::fail("commits other products than other threads of its warpgroup");
}
template <int kPending>
void waitForProducts() {
    fake::finishProducts(kPending);
}
template <int kCount>
void pin(float (&)[kCount]) {}

inline uint64_t describe(char const* tile) {
    constexpr uint64_t kGroup = 1024 >> 4, kSwizzle128 = 1;
    uint32_t const place = fake::placeOf(tile, 1, 1024, "describe");
    return static_cast<uint64_t>(place >> 4) | uint64_t{1} << 16 | kGroup << 32 | kSwizzle128 << 62;
}

namespace fake {

template <typename T>
constexpr int kType = std::is_same<T, Half>::value       ? 0
                      : std::is_same<T, BFloat16>::value ? 1
                                                         : 2;

inline uint32_t beginOf(uint64_t description) {
    if (description >> 14 != (uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62) >> 14) fail("a product with another description");
    return static_cast<uint32_t>(description & 0x3fff) << 4;
}

}  // namespace fake

template <typename T, int kCount>
void product(T, float (&sums)[kCount], uint64_t a, uint64_t b, int add) {
    fake::multiply(fake::kType<T>, sums, 2 * kCount, fake::beginOf(a), nullptr, fake::beginOf(b), 32, add);
}
template <typename T>
void product(T, float (&sums)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int add) {
    uint32_t const a[] = {a0, a1, a2, a3};
    fake::multiply(fake::kType<T>, sums, 128, 0, a, fake::beginOf(b), 32, add);
}
template <typename T, int kCount>
void multiply(float (&sums)[kCount], char const* a, char const* b, int add) {
    static_assert(kCount == 32 || kCount == 64, "64 or 128 columns");
    fake::multiply(fake::kType<T>, sums, 2 * kCount, fake::beginOf(describe(a)), nullptr, fake::beginOf(describe(b)), 128, add);
}
template <typename T>
void multiply(float (&sums)[64], uint32_t const (&a)[16], char const* b, int add) {
    fake::multiply(fake::kType<T>, sums, 128, 0, a, fake::beginOf(describe(b)), 128, add);
}

}  // namespace hopper
}  // namespace codetr
