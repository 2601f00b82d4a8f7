// The types of numbers of hopper.cuh on a CPU: rounding to them, and what their bits stand for.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace codetr {
namespace hopper {

struct Half {};
struct BFloat16 {};
struct E4M3 {};

namespace fake {

// A type of numbers: bits of the fraction, the exponent of its smallest normal number, its largest number and what is beyond.
struct Format {
    int fraction, least;
    double largest;
    uint32_t sign, largest_bits, beyond_bits, nan_bits;
};
constexpr Format kHalf{10, -14, 65504, 0x8000, 0x7bff, 0x7c00, 0x7fff};
constexpr Format kBFloat16{7, -126, 3.3895313892515355e38, 0x8000, 0x7f7f, 0x7f80, 0x7fff};
constexpr Format kE4M3{3, -6, 448, 0x80, 0x7e, 0x7e, 0x7f};

inline Format const& formatOf(Half) { return kHalf; }
inline Format const& formatOf(BFloat16) { return kBFloat16; }
inline Format const& formatOf(E4M3) { return kE4M3; }

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

// All numbers of a type, by their bits: 65,536, or 256 of E4M3.
using Numbers = std::vector<float>;

inline Numbers decodeAll(Format const& format) {
    Numbers numbers(2 * format.sign);
    for (uint32_t bits = 0; bits < numbers.size(); ++bits) numbers[bits] = decode(format, bits);
    return numbers;
}

template <typename T>
Numbers const& numbersOf() {
    static Numbers const numbers = decodeAll(formatOf(T{}));
    return numbers;
}

}  // namespace fake
}  // namespace hopper
}  // namespace codetr
