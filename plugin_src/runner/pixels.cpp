#include "pixels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace codetr::run {

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr int kChannels = 3;

int rounded(double value) { return static_cast<int>(value + 0.5); }

long long floorDivide(long long a, long long b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

// DETR's rule: `serving.preprocess._edges`.
Size byEdges(Size image, Size engine, Pixels const& rule) {
    bool const isUpright = image.height <= image.width;  // the height is the shorter side
    long long const shorter = std::min(image.height, image.width), longer = std::max(image.height, image.width);
    long long size = rule.shortestEdge;
    if (longer * size > rule.longestEdge * shorter) {
        size = std::llrint(static_cast<double>(rule.longestEdge * shorter) / static_cast<double>(longer));  // half to even
    }
    long long const roomShort = isUpright ? engine.height : engine.width, roomLong = isUpright ? engine.width : engine.height;
    long long const fitting = -floorDivide(-(roomLong + 1) * shorter, longer) - 1;
    size = std::max(std::min({size, roomShort, fitting}), 1LL);
    int const other = static_cast<int>(std::min(std::max(size * longer / shorter, 1LL), roomLong));
    return isUpright ? Size{static_cast<int>(size), other} : Size{other, static_cast<int>(size)};
}

// ---- OpenCV ----

constexpr int kWeightBits = 11;

struct Tap {
    int index;        // of the first of two neighbours
    short near, far;  // their weights, of 2048 together
};

short fixed(float weight) { return static_cast<short>(std::clamp<long>(std::lrintf(weight * (1 << kWeightBits)), -32768, 32767)); }

// Where each pixel of a row of `to` pixels lies among `from`. At the borders of a row the neighbour beyond gets no
// weight; rows beyond the image are its first and last one instead, with their weights.
std::vector<Tap> tapsOf(int from, int to, bool isRow) {
    double const scale = 1.0 / (static_cast<double>(to) / from);
    std::vector<Tap> taps(static_cast<std::size_t>(to));
    for (int i = 0; i < to; ++i) {
        float place = static_cast<float>((i + 0.5) * scale - 0.5);
        int index = static_cast<int>(std::floor(place));
        place -= static_cast<float>(index);
        if (isRow && index < 0) {
            place = 0, index = 0;
        }
        if (isRow && index >= from - 1) {
            place = 0, index = from - 1;
        }
        taps[static_cast<std::size_t>(i)] = {index, fixed(1.0f - place), fixed(place)};
    }
    return taps;
}

Bytes halved(std::uint8_t const* image, Size from, Size to) {
    Bytes result(static_cast<std::size_t>(to.height) * to.width * kChannels);
    std::size_t const stride = static_cast<std::size_t>(from.width) * kChannels;
    for (int y = 0; y < to.height; ++y) {
        std::uint8_t const* row = image + 2 * y * stride;
        std::uint8_t* out = result.data() + static_cast<std::size_t>(y) * to.width * kChannels;
        for (int x = 0; x < to.width; ++x) {
            for (int c = 0; c < kChannels; ++c) {
                std::uint8_t const* p = row + (2 * x) * kChannels + c;
                out[x * kChannels + c] = static_cast<std::uint8_t>((p[0] + p[kChannels] + p[stride] + p[stride + kChannels] + 2) >> 2);
            }
        }
    }
    return result;
}

// ---- Pillow ----

constexpr int kPrecisionBits = 32 - 8 - 2;

struct Filter {
    int first = 0;
    std::vector<int> weights;
};

std::vector<Filter> filtersOf(int from, int to) {
    double const scale = static_cast<double>(from) / to, width = std::max(scale, 1.0);
    std::vector<Filter> filters(static_cast<std::size_t>(to));
    for (int i = 0; i < to; ++i) {
        double const centre = (i + 0.5) * scale;
        int const first = std::max(rounded(centre - width), 0), end = std::min(rounded(centre + width), from);
        std::vector<double> weights;
        double sum = 0.0;
        for (int j = first; j < end; ++j) {
            double const distance = std::abs((j - centre + 0.5) * (1.0 / width));
            weights.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
            sum += weights.back();
        }
        Filter& filter = filters[static_cast<std::size_t>(i)];
        filter.first = first;
        for (double weight : weights) {
            if (sum != 0.0) {
                weight /= sum;
            }
            filter.weights.push_back(static_cast<int>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kPrecisionBits)));
        }
    }
    return filters;
}

// One pass over lines of `count` elements that lie `step` apart; `inner` of them lie side by side.
void filtered(std::uint8_t const* in, std::uint8_t* out, std::vector<Filter> const& filters, int lines, std::size_t inLine,
              std::size_t outLine, std::size_t step, std::size_t inner) {
    for (int line = 0; line < lines; ++line) {
        std::uint8_t const* source = in + static_cast<std::size_t>(line) * inLine;
        std::uint8_t* target = out + static_cast<std::size_t>(line) * outLine;
        for (Filter const& filter : filters) {
            for (std::size_t k = 0; k < inner; ++k) {
                int sum = 1 << (kPrecisionBits - 1);
                std::uint8_t const* p = source + static_cast<std::size_t>(filter.first) * step + k;
                for (int const weight : filter.weights) {
                    sum += *p * weight;
                    p += step;
                }
                target[k] = static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
            }
            target += step;
        }
    }
}

}  // namespace

Size validSize(Size image, Size engine, Pixels const& rule) {
    if (rule.stretch) {
        return engine;
    }
    if (rule.shortestEdge > 0) {
        return byEdges(image, engine, rule);
    }
    double const scale = std::min(static_cast<double>(engine.width) / image.width, static_cast<double>(engine.height) / image.height);
    return {std::min(std::max(rounded(image.height * scale), 1), engine.height),
            std::min(std::max(rounded(image.width * scale), 1), engine.width)};
}

std::vector<std::uint8_t> resizeLinear(std::uint8_t const* image, Size from, Size to) {
    std::size_t const inRow = static_cast<std::size_t>(from.width) * kChannels, outRow = static_cast<std::size_t>(to.width) * kChannels;
    if (from == to) {
        return {image, image + inRow * from.height};
    }
    if (from.height == 2 * to.height && from.width == 2 * to.width) {
        return halved(image, from, to);  // OpenCV takes the mean of an area there
    }
    std::vector<Tap> const columns = tapsOf(from.width, to.width, true), rows = tapsOf(from.height, to.height, false);
    std::vector<int> lines[2] = {std::vector<int>(outRow), std::vector<int>(outRow)};
    int held[2] = {-1, -1};
    Bytes result(outRow * to.height);
    for (int y = 0; y < to.height; ++y) {
        Tap const& row = rows[static_cast<std::size_t>(y)];
        int const* pair[2];
        for (int k = 0; k < 2; ++k) {
            int const index = std::clamp(row.index + k, 0, from.height - 1);
            std::size_t const slot = static_cast<std::size_t>(index % 2);
            if (held[slot] != index) {
                std::uint8_t const* source = image + static_cast<std::size_t>(index) * inRow;
                for (std::size_t x = 0; x < columns.size(); ++x) {
                    Tap const& tap = columns[x];
                    std::uint8_t const* p = source + static_cast<std::size_t>(tap.index) * kChannels;
                    std::uint8_t const* q = tap.far != 0 ? p + kChannels : p;
                    for (int c = 0; c < kChannels; ++c) {
                        lines[slot][x * kChannels + c] = p[c] * tap.near + q[c] * tap.far;
                    }
                }
                held[slot] = index;
            }
            pair[k] = lines[slot].data();
        }
        std::uint8_t* out = result.data() + static_cast<std::size_t>(y) * outRow;
        for (std::size_t x = 0; x < outRow; ++x) {
            out[x] = static_cast<std::uint8_t>((((row.near * (pair[0][x] >> 4)) >> 16) + ((row.far * (pair[1][x] >> 4)) >> 16) + 2) >> 2);
        }
    }
    return result;
}

std::vector<std::uint8_t> resizeAntialiased(std::uint8_t const* image, Size from, Size to) {
    std::size_t const inRow = static_cast<std::size_t>(from.width) * kChannels, outRow = static_cast<std::size_t>(to.width) * kChannels;
    Bytes wide(image, image + inRow * from.height);
    if (to.width != from.width) {
        Bytes narrow(outRow * from.height);
        filtered(wide.data(), narrow.data(), filtersOf(from.width, to.width), from.height, inRow, outRow, kChannels, kChannels);
        wide = std::move(narrow);
    }
    if (to.height == from.height) {
        return wide;
    }
    Bytes result(outRow * to.height);
    filtered(wide.data(), result.data(), filtersOf(from.height, to.height), 1, 0, 0, outRow, outRow);
    return result;
}

Size resizeAndPad(std::uint8_t const* image, Size from, std::uint8_t* input, Size engine, Pixels const& rule) {
    Size const valid = validSize(from, engine, rule);
    Bytes const resized = rule.antialias ? resizeAntialiased(image, from, valid) : resizeLinear(image, from, valid);
    std::size_t const row = static_cast<std::size_t>(valid.width) * kChannels, stride = static_cast<std::size_t>(engine.width) * kChannels;
    std::memset(input, 0, stride * engine.height);
    for (int y = 0; y < valid.height; ++y) {
        std::memcpy(input + static_cast<std::size_t>(y) * stride, resized.data() + static_cast<std::size_t>(y) * row, row);
    }
    return valid;
}

}  // namespace codetr::run
