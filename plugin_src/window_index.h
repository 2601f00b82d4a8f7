// Where the tokens of a (shifted) window lie, for the kernel and for a test on the CPU. Plain C++.
//
// A map of height x width tokens is padded at the bottom and on the right to whole windows, rolled up and to the left by
// `shift`, and cut into windows, as Swin Transformer does; nothing is moved, only counted.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CODETR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CODETR_HOST_DEVICE inline
#endif

namespace codetr {

struct WindowMap {
    int32_t height, width;  // tokens
    int32_t shift;          // tokens, below the side of a window
    int32_t rows, columns;  // windows
};

inline WindowMap makeWindowMap(int32_t height, int32_t width, int32_t window, int32_t shift) {
    return {height, width, shift, (height + window - 1) / window, (width + window - 1) / window};
}

// One window: the position of its first token on the map that is not rolled, and whether it is in the last row or column
// of windows of a shifted map, where it holds what is no neighbourhood.
struct WindowPlace {
    int32_t y, x;
    bool bottom, right;
};

template <int kWindow>
CODETR_HOST_DEVICE WindowPlace placeOf(WindowMap const& map, int32_t window) {
    int32_t const row = window / map.columns, column = window - row * map.columns;
    bool const shifted = map.shift > 0;
    return {row * kWindow + map.shift, column * kWindow + map.shift, shifted && row == map.rows - 1, shifted && column == map.columns - 1};
}

// Which token of the map, row by row, is `dy` rows below and `dx` columns beside the first of a window; -1 in the padding.
template <int kWindow>
CODETR_HOST_DEVICE int32_t tokenAt(WindowMap const& map, WindowPlace const& place, int32_t dy, int32_t dx) {
    int32_t const padded_height = map.rows * kWindow, padded_width = map.columns * kWindow;
    int32_t y = place.y + dy, x = place.x + dx;
    y -= y >= padded_height ? padded_height : 0;
    x -= x >= padded_width ? padded_width : 0;
    bool const inside = (y < map.height) & (x < map.width);  // both, without a branch
    return inside ? y * map.width + x : -1;
}

// The same for the position of a token in its window, row by row.
template <int kWindow>
CODETR_HOST_DEVICE int32_t tokenAt(WindowMap const& map, WindowPlace const& place, int32_t position) {
    return tokenAt<kWindow>(map, place, position / kWindow, position % kWindow);
}

// Positions of one window whose numbers differ are no neighbours.
template <int kWindow>
CODETR_HOST_DEVICE int32_t regionAt(WindowMap const& map, WindowPlace const& place, int32_t position) {
    bool const below = place.bottom && position / kWindow >= kWindow - map.shift;
    bool const beside = place.right && position % kWindow >= kWindow - map.shift;
    return 2 * below + beside;
}

// The row of the bias table for the pair (i, j) is biasRow(i) - biasColumn(j).
template <int kWindow>
CODETR_HOST_DEVICE constexpr int32_t biasColumn(int32_t position) {
    return position / kWindow * (2 * kWindow - 1) + position % kWindow;
}

template <int kWindow>
CODETR_HOST_DEVICE constexpr int32_t biasRow(int32_t position) {
    return biasColumn<kWindow>(position) + (kWindow - 1) * 2 * kWindow;
}

}  // namespace codetr
