// A thread's share of the rows that a warpgroup of post_attention.cuh works on, and arithmetic on it.
//
// Whose numbers are whose: thread t of a warpgroup, lane l, has the rows r = 16 (t / 32) + l / 4 and r + 8. Of each 32
// columns it has the eight from 8 q on, q = l % 4, which are 16 bytes of a tensor. The weights lie in an order in which that
// is so for the sums of a product as for its operand in registers:
//
//     columns of 32   0..7     8..15    16..23   24..31
//     row r           q = 0    q = 1    q = 2    q = 3        row r + 8 the same
#pragma once

#include "post_attention_work.h"

namespace codetr {
namespace post {
namespace {

using namespace hopper;

// Eight numbers of a vector in shared memory.
struct Eight {
    float numbers[8];
    __device__ explicit Eight(float const* place) {
        float4 const low = *reinterpret_cast<float4 const*>(place), high = *reinterpret_cast<float4 const*>(place + 4);
        numbers[0] = low.x, numbers[1] = low.y, numbers[2] = low.z, numbers[3] = low.w;
        numbers[4] = high.x, numbers[5] = high.y, numbers[6] = high.z, numbers[7] = high.w;
    }
};

// The sums of a product with 128 columns, and where the eight numbers of row r (0) or r + 8 (1) in a group of 32 columns are.
__device__ constexpr int place(int group, int row, int i) { return 16 * group + 4 * (i / 2) + 2 * row + i % 2; }

// A thread's rows of a tensor [rows, columns] of T.
struct RowsOf {
    char* low;
    char* high;
    bool has_low, has_high;

    __device__ RowsOf(void const* tensor, int64_t row, int64_t rows, int columns)
        : low(static_cast<char*>(const_cast<void*>(tensor)) + 2 * row * columns),
          high(low + 2 * 8 * static_cast<int64_t>(columns)),
          has_low(row < rows),
          has_high(row + 8 < rows) {}
    __device__ Vector load(int row, int column) const {
        Vector x{};
        if (row == 0 ? has_low : has_high) x = loadGlobal((row == 0 ? low : high) + 2 * column);
        return x;
    }
    __device__ void store(int row, int column, Vector const& x) const {
        if (row == 0 ? has_low : has_high) storeGlobal((row == 0 ? low : high) + 2 * column, x);
    }
};

// 256 columns of the thread's two rows as operand of four products of 64: of each 32 bytes row r, r + 8, r, r + 8.
using Operand = uint32_t[kSlices][16];
__device__ __forceinline__ uint32_t& word(Operand& operand, int group, int row, int i) {
    return operand[group / 2][8 * (group % 2) + 4 * (i / 2) + 2 * (i % 2) + row];
}

template <typename T>
__device__ __forceinline__ void addVector(float (&sums)[64], int group, int row, Vector const& x) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        float2 const pair = unpack<T>(x.words[i]);
        sums[place(group, row, 2 * i)] += pair.x;
        sums[place(group, row, 2 * i + 1)] += pair.y;
    }
}

template <typename T>
__device__ __forceinline__ Vector packSums(float const (&sums)[64], int group, int row) {
    Vector x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.words[i] = pack<T>(sums[place(group, row, 2 * i)], sums[place(group, row, 2 * i + 1)]);
    return x;
}

// The sum of a function of the 256 numbers of a row; four sums at a time, since each waits for the one before.
template <typename F>
__device__ __forceinline__ float sumOfRow(float const (&sums)[2][64], int row, F function) {
    float parts[4] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) parts[i % 4] += function(sums[i / 32][place(i % 32 / 8, row, i % 8)]);
    return sumOfQuad((parts[0] + parts[1]) + (parts[2] + parts[3]));
}

// Normalises the two rows of 256 numbers over the quad that has them.
__device__ __forceinline__ void normalise(float (&sums)[2][64], float const* weight, float const* bias, float epsilon, int q) {
    float means[2], scales[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        means[row] = sumOfRow(sums, row, [](float x) { return x; }) * (1.f / kWidth);
        float const mean = means[row];
        scales[row] = inverseRoot(sumOfRow(sums, row, [mean](float x) { return (x - mean) * (x - mean); }) * (1.f / kWidth) + epsilon);
    }
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
        Eight const w(weight + 32 * group + 8 * q), b(bias + 32 * group + 8 * q);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& x = sums[group / 4][place(group % 4, row, i)];
                x = (x - means[row]) * scales[row] * w.numbers[i] + b.numbers[i];
            }
        }
    }
}

}  // namespace
}  // namespace post
}  // namespace codetr
