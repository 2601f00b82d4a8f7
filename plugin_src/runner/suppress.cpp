#include "suppress.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace codetr::run {

namespace {

float overlap(float lowA, float highA, float lowB, float highB) { return std::max(std::min(highA, highB) - std::max(lowA, lowB), 0.0f); }

// By what picking one box multiplies the score of another; nothing where they are no neighbours.
std::optional<float> weightOf(Found const& a, Found const& b, Suppression const& rule) {
    if (!rule.classAgnostic && a.label != b.label) {
        return {};
    }
    auto const& [ax1, ay1, ax2, ay2] = a.box;
    auto const& [bx1, by1, bx2, by2] = b.box;
    float const shared = overlap(ax1, ax2, bx1, bx2) * overlap(ay1, ay2, by1, by2);
    float const areas = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1);
    float const iou = shared / std::max(areas - shared, std::numeric_limits<float>::min());
    if (rule.kind == Suppressing::kHard) {
        return iou > rule.iouThreshold ? std::optional(0.0f) : std::nullopt;
    }
    return iou >= rule.iouThreshold ? std::optional(1.0f - iou) : std::nullopt;
}

// The scores at which boxes are picked; -1 for those that never are.
std::vector<float> suppressed(std::vector<Found> const& candidates, Suppression const& rule) {
    std::size_t const count = candidates.size();
    std::vector<float> final(count, -1.0f), remaining(count);
    std::transform(candidates.begin(), candidates.end(), remaining.begin(), [](Found const& each) { return each.score; });
    std::size_t const first = static_cast<std::size_t>(std::max_element(remaining.begin(), remaining.end()) - remaining.begin());
    for (std::size_t round = 0; round < count; ++round) {
        std::size_t const best = static_cast<std::size_t>(std::max_element(remaining.begin(), remaining.end()) - remaining.begin());
        if (remaining[best] <= 0.0f) {
            break;
        }
        final[best] = remaining[best];
        for (std::size_t i = 0; i < count; ++i) {
            if (remaining[i] > 0.0f) {
                remaining[i] *= weightOf(candidates[best], candidates[i], rule).value_or(1.0f);
            }
        }
        remaining[best] = 0.0f;
    }
    // What has no neighbour keeps its score, whatever it is.
    for (std::size_t i = 0; i < count; ++i) {
        if (final[i] < 0.0f && candidates[i].score <= 0.0f) {
            bool const isAlone = std::none_of(candidates.begin(), candidates.end(), [&](Found const& other) {
                return &other != &candidates[i] && weightOf(other, candidates[i], rule);
            });
            final[i] = isAlone ? candidates[i].score : -1.0f;
        }
    }
    final[first] = candidates[first].score;
    return final;
}

}  // namespace

std::vector<Found> detectionsOf(float const* boxes, float const* scores, std::int32_t const* labels, std::size_t count, Size original,
                                Suppression const& rule, std::size_t most, std::optional<float> lowestScore) {
    float const limits[4] = {static_cast<float>(original.width), static_cast<float>(original.height), static_cast<float>(original.width),
                             static_cast<float>(original.height)};
    std::vector<Found> candidates;
    for (std::size_t i = 0; i < count; ++i) {
        float const* box = boxes + 4 * i;
        bool const isFinite = std::isfinite(scores[i]) && std::all_of(box, box + 4, [](float side) { return std::isfinite(side); });
        bool const isWanted = lowestScore ? scores[i] >= *lowestScore : rule.scoreThreshold > 0 ? scores[i] > rule.scoreThreshold : true;
        if (!isFinite || !isWanted) {
            continue;
        }
        Found found{{}, scores[i], labels[i]};
        for (std::size_t k = 0; k < 4; ++k) {
            float const side = box[k] * limits[k];
            found.box[k] = rule.clip ? std::min(std::max(side, 0.0f), limits[k]) : side;
        }
        candidates.push_back(found);
    }
    if (candidates.empty()) {
        return {};
    }
    std::vector<float> final;
    if (rule.kind == Suppressing::kNone) {
        std::transform(candidates.begin(), candidates.end(), std::back_inserter(final), [](Found const& each) { return each.score; });
    } else {
        final = suppressed(candidates, rule);
    }
    std::size_t const first = static_cast<std::size_t>(
        std::max_element(candidates.begin(), candidates.end(), [](Found const& a, Found const& b) { return a.score < b.score; }) -
        candidates.begin());
    float const least = rule.kind == Suppressing::kSoft ? rule.minScore : 0.0f;
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        if (i == first || final[i] >= least) {
            order.push_back(i);
        }
    }
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return final[a] > final[b]; });
    std::vector<Found> result;
    for (std::size_t const i : order) {
        if (result.size() < most && (!lowestScore || final[i] >= *lowestScore)) {
            result.push_back({candidates[i].box, final[i], candidates[i].label});
        }
    }
    return result;
}

}  // namespace codetr::run
