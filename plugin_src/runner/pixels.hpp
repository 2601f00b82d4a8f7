// Pixels to an engine's input, equal to `serving.preprocess.resize_and_pad` bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "rules.hpp"

namespace codetr::run {

// Returns what an image fills of an engine's input.
Size validSize(Size image, Size engine, Pixels const& rule);

// Resizes RGB `image` [h, w, 3] bilinearly as OpenCV's INTER_LINEAR does, in fixed point.
std::vector<std::uint8_t> resizeLinear(std::uint8_t const* image, Size from, Size to);

// Resizes as Pillow's BILINEAR does, whose filter is as wide as the pixels it makes.
std::vector<std::uint8_t> resizeAntialiased(std::uint8_t const* image, Size from, Size to);

// Writes the image, resized by the rule, into the top left corner of `input` [height, width, 3], the rest of which
// becomes 0. Returns what it fills.
Size resizeAndPad(std::uint8_t const* image, Size from, std::uint8_t* input, Size engine, Pixels const& rule);

}  // namespace codetr::run
