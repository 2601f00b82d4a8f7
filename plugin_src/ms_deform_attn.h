// Multi-scale deformable attention on the GPU: the launcher, free of frameworks.
//
// Formulas, shapes and types: README.md in this folder.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace codetr {

// The most levels a call may have. Their sizes travel as launch parameters, so the number is bounded.
constexpr int kMaxLevels = 8;

enum class ElementType : int32_t { kFloat32, kFloat16, kBFloat16 };

// One call. All tensors are contiguous and lie on the current device; `spatial_shapes` lies on the host.
struct MsDeformAttn {
    ElementType type;                 // of value, sampling_offsets, attention_logits and output
    void const* value;                // [batch, tokens, heads, dim]
    float const* reference_points;    // [batch, queries, levels, reference_dim]
    void const* sampling_offsets;     // [batch, queries, heads, levels, points, 2] (x, y)
    void const* attention_logits;     // [batch, queries, heads, levels, points]
    int32_t const* valid_shapes;      // [batch, levels, 2] (h, w), or null: every token counts
    void* output;                     // [batch, queries, heads * dim]
    int32_t batch;
    int32_t queries;
    int32_t heads;
    int32_t dim;
    int32_t levels;
    int32_t points;
    int32_t reference_dim;            // 2 (x, y) or 4 (cx, cy, w, h)
    int32_t const* spatial_shapes;    // [levels, 2] (h, w)
};

// The sum of h * w over levels.
int64_t countTokens(int32_t const* spatial_shapes, int32_t levels);

// Why `call` cannot run, or null if it can. Looks at sizes and pointers, never at the device.
char const* findFault(MsDeformAttn const& call);

// Starts the computation on `stream`. Allocates nothing, waits for nothing, may be captured in a CUDA graph.
// Returns cudaErrorInvalidValue where findFault() has a reason, and whatever the launch reports otherwise.
cudaError_t launchMsDeformAttn(MsDeformAttn const& call, cudaStream_t stream);

// The plain design for comparison in benchmarks: one thread a channel, everything recomputed by every thread.
cudaError_t launchMsDeformAttnPlain(MsDeformAttn const& call, cudaStream_t stream);

}  // namespace codetr
