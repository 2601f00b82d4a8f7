// Simulated products of a warpgroup: what its threads must agree on when they begin one, and the sums, which are computed when
// the first warp's wait for them returns. Layouts: PTX ISA 8.5, sections on wgmma.
#pragma once

#include "fake_hopper_memory.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

namespace codetr {
namespace hopper {
namespace fake {

// The first of the two rows of a thread, by its number in the warpgroup; the second is 8 below.
inline int firstRowOf(int thread) { return 16 * (thread / 32) + thread % 32 / 4; }

// Where in [64, columns] sum `i` of a thread lies.
inline int placeOfSum(int thread, int i, int columns) {
    return (firstRowOf(thread) + 8 * (i / 2 % 2)) * columns + 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

// ---- Beginning one ----

inline uint32_t placeOfTile(char const* tile, int rows) { return placeOf(tile, rows * kRowBytes, 1024, "multiply"); }

inline void checkTile(Block const& block, uint32_t place, int rows) {
    auto const bytes = static_cast<size_t>(rows) * kRowBytes;
    char const* const what = "begins a product that reads";
    checkCopies(block, place, bytes, what);
    checkBarriers(block, place, bytes, what);
    checkShown(block, place, bytes, what, "shown to products");
}

// Those that the thread's product `number` adds to: its open ones in these registers, or else the warpgroup's, which the first
// thread to come makes.
inline std::shared_ptr<Sums> openSums(Thread& thread, std::shared_ptr<Sums> sums, size_t number, float* registers, int columns) {
    int const t = thread.inWarpgroup(), count = columns / 2;
    for (Thread::Open& open : thread.open) {
        float* const place = open.sums->registers[t];
        if (place == registers) {
            if (open.sums->columns != columns) fail("adds products of different widths to the same sums");
            open.last = number;
            return open.sums;
        }
        if (place < registers + count && registers < place + open.sums->columns / 2) fail("adds products to parts of the sums of others");
    }
    if (!sums) {
        sums = std::make_shared<Sums>();
        sums->columns = columns;
        sums->values.resize(static_cast<size_t>(kRows) * columns);
        sums->registers.fill(nullptr);
    }
    for (int i = 0; i < count; ++i) sums->values[placeOfSum(t, i, columns)] = registers[i];
    sums->registers[t] = registers;
    thread.open.push_back({sums, number});
    return sums;
}

// By every thread of a warpgroup; `registers` null: `a` is a tile.
inline void beginProduct(float* sums, int columns, Operands const& operands, uint32_t const* registers) {
    Thread& thread = self();
    Warpgroup& warpgroup = thread.warpgroup();
    size_t const number = thread.products++;
    if (number == warpgroup.products.size()) {
        if (!registers) checkTile(*thread.block, operands.a, kRows);
        checkTile(*thread.block, operands.b, columns);
        warpgroup.products.push_back(std::make_unique<Product>());
        Product& made = *warpgroup.products.back();
        made.operands = operands;
        if (registers) made.registers.resize(static_cast<size_t>(kWarpgroup) * kOperandRegisters);
    }
    Product& product = *warpgroup.products[number];
    if (!(product.operands == operands)) fail("asks for another product than other threads of its warpgroup, its number ", number);
    if (registers) std::copy_n(registers, kOperandRegisters, product.registers.begin() + thread.inWarpgroup() * kOperandRegisters);
    auto const opened = openSums(thread, product.sums, number, sums, columns);
    if (!product.sums) product.sums = opened;
    if (product.sums != opened) fail("adds a product to other sums than other threads of its warpgroup");
    std::fill_n(sums, columns / 2, std::numeric_limits<float>::quiet_NaN());
    ++product.threads;
}

inline void commitProducts() {
    Thread& thread = self();
    auto& groups = thread.warpgroup().groups;
    size_t const number = thread.groups.size();
    thread.groups.push_back(thread.products);
    if (number == groups.size()) groups.push_back(thread.products);
    if (groups[number] != thread.products) fail("commits other products than other threads of its warpgroup");
}

// ---- Computing it ----

// Decodes a row; returns where the next one goes.
inline float* decodeRow(Numbers const& numbers, uint8_t const* bytes, float* row) {
    if (numbers.size() == 1 << 8) return std::transform(bytes, bytes + kRowBytes, row, [&](uint8_t bits) { return numbers[bits]; });
    for (int i = 0; i < kRowBytes; i += 2) *row++ = numbers[bytes[i] | bytes[i + 1] << 8];
    return row;
}

// A swizzled tile as [rows, depth].
inline void readTile(Block const& block, uint32_t place, int rows, Numbers const& numbers, float* to) {
    uint8_t bytes[kRowBytes];
    for (int row = 0; row < rows; ++row) {
        char const* const from = block.shadow.data() + place + row * kRowBytes;
        for (int c = 0; c < kRowBytes; c += 16) std::memcpy(bytes + c, from + (c ^ row % 8 * 16), 16);
        to = decodeRow(numbers, bytes, to);
    }
}

// The `a` that threads have passed in registers, as [64, depth].
inline void readRegisters(Product const& product, float* to) {
    static uint8_t bytes[kRows][kRowBytes];
    for (int t = 0; t < kWarpgroup; ++t) {
        for (int i = 0; i < kOperandRegisters; ++i) {
            int const row = firstRowOf(t) + 8 * (i % 2), c = 32 * (i / 4) + 16 * (i % 4 / 2) + 4 * (t % 4);
            std::memcpy(&bytes[row][c], &product.registers[static_cast<size_t>(t) * kOperandRegisters + i], 4);
        }
    }
    for (auto const& row : bytes) to = decodeRow(*product.operands.numbers, row, to);
}

inline void compute(Block const& block, Product& product) {
    constexpr int kMostColumns = 128;
    static float a[kRows * kRowBytes], b[kMostColumns * kRowBytes], b_turned[kRowBytes * kMostColumns];
    Operands const& operands = product.operands;
    int const depth = operands.numbers->size() == 1 << 8 ? kRowBytes : kRowBytes / 2, columns = product.sums->columns;
    if (operands.a_in_registers) readRegisters(product, a);
    if (!operands.a_in_registers) readTile(block, operands.a, kRows, *operands.numbers, a);
    readTile(block, operands.b, columns, *operands.numbers, b);
    for (int column = 0; column < columns; ++column) {
        for (int k = 0; k < depth; ++k) b_turned[k * columns + column] = b[column * depth + k];
    }
    std::vector<float>& values = product.sums->values;
    if (!operands.add) std::fill(values.begin(), values.end(), 0.0F);
    for (int row = 0; row < kRows; ++row) {
        float* const sums = values.data() + static_cast<ptrdiff_t>(row) * columns;
        for (int k = 0; k < depth; ++k) {
            float const factor = a[row * depth + k];
            float const* const line = b_turned + static_cast<ptrdiff_t>(k) * columns;
            for (int column = 0; column < columns; ++column) sums[column] += factor * line[column];
        }
    }
    product.done = true;
    product.registers = {};
}

// ---- Waiting for it ----

// For all groups of products but the last `pending`.
inline void finishProducts(int pending) {
    Thread& thread = self();
    Warpgroup& warpgroup = thread.warpgroup();
    if (static_cast<int>(thread.groups.size()) <= pending) return;
    size_t const target = thread.groups[thread.groups.size() - 1 - pending];
    auto const begun_by_all = [&warpgroup, target] {
        for (size_t i = warpgroup.first_pending; i < target; ++i) {
            if (warpgroup.products[i]->threads < kWarpgroup) return false;
        }
        return true;
    };
    waitUntil(begun_by_all, [] { return "products that not all threads of the warpgroup have begun"; });
    for (; warpgroup.first_pending < target; ++warpgroup.first_pending)
        compute(*thread.block, *warpgroup.products[warpgroup.first_pending]);
    auto const give_back = [&](Thread::Open const& open) {
        if (open.last >= target) return false;
        int const t = thread.inWarpgroup(), columns = open.sums->columns;
        float* const registers = open.sums->registers[t];
        for (int i = 0; i < columns / 2; ++i) registers[i] = open.sums->values[placeOfSum(t, i, columns)];
        return true;
    };
    thread.open.erase(std::remove_if(thread.open.begin(), thread.open.end(), give_back), thread.open.end());
}

}  // namespace fake
}  // namespace hopper
}  // namespace codetr
