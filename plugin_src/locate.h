// Where a sample lies and what its four corners weigh. Plain C++, so that it is tested on a CPU.
#pragma once

#include "traits.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace codetr {

CODETR_HOST_DEVICE float saturate(float x) {
#ifdef __CUDA_ARCH__
    return __saturatef(x);
#else
    return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f;
#endif
}

CODETR_HOST_DEVICE uint32_t floatBits(float x) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(x);
#else
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
#endif
}

// A position along one axis in pixels, whole + part. float32 values deserve better than a float32 position, whose last
// bit costs them 1e-5 on a map of 480 pixels: for them `whole` holds the integer nearest and `part` what is left. For the
// 16-bit types everything is in `part`.
struct Coordinate {
    float whole, part;
};

template <typename T>
constexpr bool kSplit = sizeof(T) == 4;

template <typename T>
CODETR_HOST_DEVICE float approximate(Coordinate c) {
    if constexpr (kSplit<T>) return c.whole + c.part;
    return c.part;
}

// How far `c` lies to the right of the integer `base`.
template <typename T>
CODETR_HOST_DEVICE float distance(Coordinate c, float base) {
    if constexpr (kSplit<T>) return (c.whole - base) + c.part;
    return c.part - base;
}

// The line offset -> coordinate of one axis.
struct Axis {
    Coordinate origin;
    float scale;  // pixels for one unit of offset
};

// `center` in 0..1 of a level of `size` pixels.
template <typename T>
CODETR_HOST_DEVICE Axis makeAxis(float center, float size, float scale) {
    if constexpr (kSplit<T>) {
        float const whole = rintf(center * size);
        return {{whole, fmaf(center, size, -whole) - 0.5f}, scale};
    }
    return {{0.f, fmaf(center, size, -0.5f)}, scale};
}

template <typename T>
CODETR_HOST_DEVICE Coordinate coordinate(Axis const& axis, float offset) {
    if constexpr (kSplit<T>) {
        float const whole = rintf(offset * axis.scale);
        return {axis.origin.whole + whole, axis.origin.part + fmaf(offset, axis.scale, -whole)};
    }
    return {0.f, fmaf(offset, axis.scale, axis.origin.part)};
}

// Adding 1.5 * 2^23 to a small float rounds it to an integer and leaves that integer in the low bits.
constexpr float kRoundMagic = 12582912.f;
constexpr uint32_t kRoundMagicBits = 0x4B400000u;

// What the sampling of one level needs. Lanes of a warp work on different levels and fetch theirs from shared memory.
struct alignas(16) LevelConstants {
    float width, height;
    float last_x, last_y;    // where the clamp of the left and upper corner ends
    float right_x, lower_y;  // 1, or -1 if the valid part of the level has no second column or row
    float upper_y;           // 1, or -1 if the valid part of the level is empty
    uint32_t origin;         // 16-byte units: of the level's first token, less the magic of both coordinates
};

template <typename T>
constexpr uint32_t kTokenUnits = kHeads * kDim * sizeof(T) / 16;

// `rows` x `columns` of the level are valid.
template <typename T>
CODETR_HOST_DEVICE LevelConstants makeLevelConstants(FastLevel const& size, int32_t rows, int32_t columns) {
    bool const empty = rows == 0 || columns == 0;
    LevelConstants level;
    level.width = static_cast<float>(size.width);
    level.height = static_cast<float>(size.height);
    level.last_x = fmaxf(static_cast<float>(columns) - 2.25f, -0.25f);
    level.last_y = fmaxf(static_cast<float>(rows) - 2.25f, -0.25f);
    level.right_x = columns >= 2 ? 1.f : -1.f;
    level.lower_y = rows >= 2 && !empty ? 1.f : -1.f;
    level.upper_y = !empty ? 1.f : -1.f;
    level.origin = (static_cast<uint32_t>(size.start) - kRoundMagicBits * (static_cast<uint32_t>(size.width) + 1u)) * kTokenUnits<T>;
    return level;
}

struct Corners {
    uint32_t offset;  // of the upper left corner from the image's values, in 16-byte units
    float w00, w01, w10, w11;
};

// Position and corner weights of one sample. The four corners always lie inside the level's valid part: where the
// sample leaves it, the corners stop at the border and a tent function, max(0, 1 - distance), gives them the weights
// that reading zeros outside would have left.
template <typename T>
CODETR_HOST_DEVICE Corners locate(LevelConstants const& level, Coordinate x, Coordinate y, float attention) {
    float const rounded_x = fminf(fmaxf(approximate<T>(x) - 0.5f, -0.25f), level.last_x) + kRoundMagic;
    float const rounded_y = fminf(fmaxf(approximate<T>(y) - 0.5f, -0.25f), level.last_y) + kRoundMagic;
    float const dx = distance<T>(x, rounded_x - kRoundMagic);
    float const dy = distance<T>(y, rounded_y - kRoundMagic);
    float const left = saturate(1.f - fabsf(dx));
    float const right = saturate(level.right_x - fabsf(dx - 1.f));
    float const upper = saturate(level.upper_y - fabsf(dy)) * attention;
    float const lower = saturate(level.lower_y - fabsf(dy - 1.f)) * attention;
    uint32_t const token = floatBits(rounded_y) * static_cast<uint32_t>(level.width) + floatBits(rounded_x);
    return {token * kTokenUnits<T> + level.origin, left * upper, right * upper, left * lower, right * lower};
}

}  // namespace codetr
