// An engine's candidates to detections, equal to `serving.postprocess.postprocess`.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "rules.hpp"

namespace codetr::run {

struct Found {
    std::array<float, 4> box;  // x1 y1 x2 y2 in pixels of the original
    float score;
    std::int32_t label;
};

// Returns one image's detections in the order in which suppression picks them: descending score, the earlier candidate
// first among equals.
//
// `boxes` are float32 [count, 4], x1 y1 x2 y2 in 0..1 of the valid image. `lowestScore` is what is wanted at least, in
// place of the rule's threshold.
std::vector<Found> detectionsOf(float const* boxes, float const* scores, std::int32_t const* labels, std::size_t count, Size original,
                                Suppression const& rule, std::size_t most, std::optional<float> lowestScore = {});

}  // namespace codetr::run
