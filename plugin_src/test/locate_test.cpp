// What `locate` says of a sample must be bilinear interpolation with zeros outside the valid part, read from inside it.

#include "../locate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <tuple>

using namespace codetr;

namespace {

constexpr int32_t kStart = 1000;  // of the level among the tokens

struct Case {
    int32_t height, width, rows, columns;
};

// What the token in row `y` and column `x` weighs at the sample, by definition.
double expected(Case const& c, double sample_x, double sample_y, int32_t x, int32_t y) {
    if (y >= c.rows || x >= c.columns) return 0;
    return std::max(0., 1 - std::fabs(sample_x - x)) * std::max(0., 1 - std::fabs(sample_y - y));
}

// How far a sample's corners are from the definition, or 100 for a corner outside the valid part that weighs anything or
// outside the level at all.
template <typename T>
double faultOf(Case const& c, Coordinate x, Coordinate y, float attention) {
    LevelConstants const level = makeLevelConstants<T>({c.height, c.width, kStart}, c.rows, c.columns);
    Corners const found = locate<T>(level, x, y, attention);
    if (found.offset % kTokenUnits<T> != 0) return 100;
    auto const token = static_cast<int32_t>(found.offset / kTokenUnits<T>) - kStart;
    int32_t const top = token / c.width, left = token % c.width;
    if (token < 0 || left + 1 >= c.width || top + 1 >= c.height) return 100;
    double const at_x = double{x.whole} + x.part, at_y = double{y.whole} + y.part;
    float const weights[4] = {found.w00, found.w01, found.w10, found.w11};
    double worst = 0, total = 0;
    for (int corner = 0; corner < 4; ++corner) {
        double const wanted = expected(c, at_x, at_y, left + corner % 2, top + corner / 2) * attention;
        worst = std::max(worst, std::fabs(weights[corner] - wanted));
        total += wanted;
    }
    // No token beside the four weighs anything.
    auto const first_x = static_cast<int32_t>(std::floor(at_x)), first_y = static_cast<int32_t>(std::floor(at_y));
    for (int32_t row = std::max(first_y, 0); row <= first_y + 1; ++row) {
        for (int32_t column = std::max(first_x, 0); column <= first_x + 1; ++column) {
            total -= expected(c, at_x, at_y, column, row) * attention;
        }
    }
    return std::max(worst, std::fabs(total));
}

// A position as the kernel makes it for a type: from a reference point and an offset in pixels.
template <typename T>
Coordinate positionAt(float center, float size, float offset) {
    return coordinate<T>(makeAxis<T>(center, size, 1.f), offset);
}

// float32 values split positions into integer and fraction, which are exact where one float is not.
double splitError() {
    double worst = 0;
    std::mt19937 random(3);
    std::uniform_real_distribution<float> center(0, 1), offset(-40, 40);
    for (int i = 0; i < 10000; ++i) {
        float const c = center(random), o = offset(random);
        Coordinate const split = positionAt<float>(c, 480.f, o);
        worst = std::max(worst, std::fabs(double{split.whole} + split.part - (double{c} * 480 - 0.5 + o)));
    }
    return worst;
}

template <typename T>
double worstFault(std::mt19937& random) {
    Case const cases[] = {{2, 2, 2, 2}, {2, 2, 1, 1}, {7, 5, 7, 5},     {7, 5, 3, 4},     {7, 5, 1, 5},
                          {7, 5, 0, 0}, {7, 5, 4, 0}, {3, 480, 3, 480}, {3, 480, 2, 470}, {80, 120, 79, 1}};
    double worst = 0;
    for (Case const& c : cases) {
        std::uniform_real_distribution<float> center(-0.2f, 1.2f), offset(-3, 3), attention(0, 1);
        for (int i = 0; i < 4000; ++i) {
            bool const whole = i % 4 == 0;  // exactly on pixels, and on borders
            Coordinate x{}, y{};
            if (whole) {
                x.part = std::rint(center(random) * static_cast<float>(c.width));
                y.part = std::rint(center(random) * static_cast<float>(c.height));
            } else {
                x = positionAt<T>(center(random), static_cast<float>(c.width), offset(random));
                y = positionAt<T>(center(random), static_cast<float>(c.height), offset(random));
            }
            worst = std::max(worst, faultOf<T>(c, x, y, attention(random)));
        }
        for (float const far : {-1e6f, 1e6f, -1e9f, 1e9f}) worst = std::max(worst, faultOf<T>(c, {0.f, far}, {0.f, far}, 1.f));
    }
    return worst;
}

}  // namespace

int main() {
    std::mt19937 random(1);
    double const split = worstFault<float>(random), whole = worstFault<uint16_t>(random), error = splitError();
    int failed = 0;
    // One float32 position of 480 pixels is exact to 3e-5; two parts to what a fraction of one pixel is.
    for (auto const& [what, value, limit] :
         {std::tuple{"float32", split, 1e-6}, std::tuple{"16 bits", whole, 1e-6}, std::tuple{"split positions", error, 4e-6}}) {
        bool const fits = value <= limit;
        failed += !fits;
        std::printf("%s %s: %.2g of %.2g\n", fits ? "passed" : "FAILED", what, value, limit);
    }
    std::printf("%d passed, %d failed\n", 3 - failed, failed);
    return failed;
}
