// The general kernel: any number of heads, levels and points, any dim that is a multiple of 4.
#pragma once

#include "call.h"
#include "elements.cuh"
#include "locate.h"

#include <cuda_runtime_api.h>

namespace codetr {
namespace {

constexpr int kGeneralThreads = 256;

struct GeneralCall {
    void const* value;
    float const* reference_points;
    void const* sampling_offsets;
    void const* attention_logits;
    int32_t const* valid_shapes;
    void* output;
    int64_t elements;  // batch * queries * heads * dim / kVector
    int64_t tokens;
    int32_t queries, heads, dim, levels, points, reference_dim;
    int32_t heights[kMaxLevels], widths[kMaxLevels];
};

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
    T x[kVector];
};

// One thread makes kVector channels of one query and head: 4, and 1 in the benchmark's plain design (perf/operator).
template <typename T, int kVector>
__global__ void __launch_bounds__(kGeneralThreads) deformAttnGeneral(__grid_constant__ GeneralCall const call) {
    int64_t const index = static_cast<int64_t>(blockIdx.x) * kGeneralThreads + threadIdx.x;
    if (index >= call.elements) return;
    int32_t const vectors = call.dim / kVector;
    int64_t const query_head = index / vectors;
    int32_t const channel = static_cast<int32_t>(index % vectors) * kVector;
    int64_t const query = query_head / call.heads;
    int32_t const head = static_cast<int32_t>(query_head % call.heads);
    int64_t const image = query / call.queries;
    int32_t const samples = call.levels * call.points;
    T const* const logits = static_cast<T const*>(call.attention_logits) + query_head * samples;
    T const* const offsets = static_cast<T const*>(call.sampling_offsets) + query_head * samples * 2;

    float top = toFloat(logits[0]);
    for (int32_t s = 1; s < samples; ++s) top = fmaxf(top, toFloat(logits[s]));

    float total = 0.f;
    float sums[kVector] = {};
    int64_t const token_stride = static_cast<int64_t>(call.heads) * call.dim;
    T const* tokens = static_cast<T const*>(call.value) + image * call.tokens * token_stride + head * call.dim + channel;
    for (int32_t level = 0; level < call.levels; ++level) {
        int32_t const height = call.heights[level], width = call.widths[level];
        int32_t valid_height = height, valid_width = width;
        if (call.valid_shapes != nullptr) {
            int2 const valid = reinterpret_cast<int2 const*>(call.valid_shapes)[image * call.levels + level];
            valid_height = min(valid.x, height);
            valid_width = min(valid.y, width);
        }
        float const* const reference = call.reference_points + (query * call.levels + level) * call.reference_dim;
        float scale_x = 1.f, scale_y = 1.f;
        if (call.reference_dim == 4) {
            scale_x = reference[2] * static_cast<float>(width) * 0.5f / static_cast<float>(call.points);
            scale_y = reference[3] * static_cast<float>(height) * 0.5f / static_cast<float>(call.points);
        }
        Axis const axis_x = makeAxis<T>(reference[0], static_cast<float>(width), scale_x);
        Axis const axis_y = makeAxis<T>(reference[1], static_cast<float>(height), scale_y);
        for (int32_t point = 0; point < call.points; ++point) {
            int32_t const s = level * call.points + point;
            float const attention = exp2Approx((toFloat(logits[s]) - top) * kLog2E);
            total += attention;
            Coordinate const exact_x = coordinate<T>(axis_x, toFloat(offsets[2 * s]));
            Coordinate const exact_y = coordinate<T>(axis_y, toFloat(offsets[2 * s + 1]));
            float const x = approximate<T>(exact_x), y = approximate<T>(exact_y);
            // Beyond these bounds nothing is read, and within them the conversion to integers is exact.
            if (!(x > -1.f && y > -1.f && x < static_cast<float>(valid_width) && y < static_cast<float>(valid_height))) continue;
            int32_t const x0 = static_cast<int32_t>(floorf(x)), y0 = static_cast<int32_t>(floorf(y));
            float const dx = distance<T>(exact_x, floorf(x)), dy = distance<T>(exact_y, floorf(y));
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
                int32_t const cx = x0 + (corner & 1), cy = y0 + (corner >> 1);
                if (cx < 0 || cy < 0 || cx >= valid_width || cy >= valid_height) continue;
                float const weight = attention * (corner & 1 ? dx : 1.f - dx) * (corner >> 1 ? dy : 1.f - dy);
                auto const v =
                    *reinterpret_cast<Vector<T, kVector> const*>(tokens + (static_cast<int64_t>(cy) * width + cx) * token_stride);
#pragma unroll
                for (int i = 0; i < kVector; ++i) sums[i] = fmaf(weight, toFloat(v.x[i]), sums[i]);
            }
        }
        tokens += static_cast<int64_t>(height) * width * token_stride;
    }
    Vector<T, kVector> out;
#pragma unroll
    for (int i = 0; i < kVector; ++i) fromFloat(out.x[i], sums[i] / total);
    *reinterpret_cast<Vector<T, kVector>*>(static_cast<T*>(call.output) + query_head * call.dim + channel) = out;
}

template <typename T, int kVector>
cudaError_t launchGeneral(MsDeformAttn const& call, int64_t tokens, cudaStream_t stream) {
    GeneralCall general{};
    general.value = call.value;
    general.reference_points = call.reference_points;
    general.sampling_offsets = call.sampling_offsets;
    general.attention_logits = call.attention_logits;
    general.valid_shapes = call.valid_shapes;
    general.output = call.output;
    general.elements = static_cast<int64_t>(call.batch) * call.queries * call.heads * (call.dim / kVector);
    general.tokens = tokens;
    general.queries = call.queries;
    general.heads = call.heads;
    general.dim = call.dim;
    general.levels = call.levels;
    general.points = call.points;
    general.reference_dim = call.reference_dim;
    for (int32_t i = 0; i < call.levels; ++i) {
        general.heights[i] = call.spatial_shapes[2 * i];
        general.widths[i] = call.spatial_shapes[2 * i + 1];
    }
    int64_t const blocks = (general.elements + kGeneralThreads - 1) / kGeneralThreads;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    deformAttnGeneral<T, kVector><<<static_cast<unsigned>(blocks), kGeneralThreads, 0, stream>>>(general);
    return cudaGetLastError();
}

}  // namespace
}  // namespace codetr
