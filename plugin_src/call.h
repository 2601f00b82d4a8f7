// One call of deformable attention, and why it cannot run. Plain C++, so that it is tested on a CPU.
//
// Formulas, shapes and types: README.md in this folder.
#pragma once

#include "interface.h"

#include <cstdint>

namespace codetr {

enum class ElementType : int32_t { kFloat32, kFloat16, kBFloat16 };

// All tensors are contiguous and lie on the current device; `spatial_shapes` lies on the host.
struct MsDeformAttn {
    ElementType type;               // of value, sampling_offsets, attention_logits and output
    void const* value;              // [batch, tokens, heads, dim]
    float const* reference_points;  // [batch, queries, levels, reference_dim]
    void const* sampling_offsets;   // [batch, queries, heads, levels, points, 2] (x, y)
    void const* attention_logits;   // [batch, queries, heads, levels, points]
    int32_t const* valid_shapes;    // [batch, levels, 2] (h, w), or null: every token counts
    void* output;                   // [batch, queries, heads * dim]
    int32_t batch;
    int32_t queries;
    int32_t heads;
    int32_t dim;
    int32_t levels;
    int32_t points;
    int32_t reference_dim;          // 2 (x, y) or 4 (cx, cy, w, h)
    int32_t const* spatial_shapes;  // [levels, 2] (h, w)
};

inline int64_t elementSize(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }

inline bool aligned(void const* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// The sum of h * w over levels.
inline int64_t countTokens(int32_t const* spatial_shapes, int32_t levels) {
    int64_t tokens = 0;
    for (int32_t i = 0; i < levels; ++i) tokens += static_cast<int64_t>(spatial_shapes[2 * i]) * spatial_shapes[2 * i + 1];
    return tokens;
}

inline bool isLevelSide(int64_t side) { return side >= 1 && side <= kMaxLevelSide; }

inline bool isHeadDim(int64_t dim) { return dim >= kChannelMultiple && dim % kChannelMultiple == 0; }

// Why `call` cannot run, or null if it can. Looks at sizes and pointers, never at the device.
inline char const* findFault(MsDeformAttn const& call) {
    if (call.type != ElementType::kFloat32 && call.type != ElementType::kFloat16 && call.type != ElementType::kBFloat16) {
        return message::kValueType;
    }
    if (call.batch < 0 || call.queries < 0) return "batch and queries must not be negative";
    if (call.heads < 1 || call.points < 1) return message::kHeadsAndPoints;
    if (!isHeadDim(call.dim)) return message::kChannels;
    if (call.levels < 1 || call.levels > kMaxLevels) return message::kLevels;
    if (call.reference_dim != 2 && call.reference_dim != 4) return message::kCoordinates;
    if (call.spatial_shapes == nullptr) return "spatial_shapes is missing";
    for (int32_t i = 0; i < 2 * call.levels; ++i) {
        if (!isLevelSide(call.spatial_shapes[i])) return message::kSides;
    }
    if (countTokens(call.spatial_shapes, call.levels) > kMaxTokens) return message::kManyTokens;
    if (call.batch == 0 || call.queries == 0) return nullptr;
    if (!call.value || !call.reference_points || !call.sampling_offsets || !call.attention_logits || !call.output) {
        return "a tensor is a null pointer";
    }
    auto const vector = static_cast<uintptr_t>(kChannelMultiple * elementSize(call.type));
    if (!aligned(call.value, vector) || !aligned(call.output, vector)) return "value and output must be aligned to 4 elements";
    if (!aligned(call.valid_shapes, 8)) return "valid_shapes must be aligned to 8 bytes";
    return nullptr;
}

}  // namespace codetr
