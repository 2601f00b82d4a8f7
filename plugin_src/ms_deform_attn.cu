// Multi-scale deformable attention: softmax, sampling positions, bilinear sampling and the weighted sum in one kernel.
//
// Two kernels: `deformAttnFast` for 8 heads of 32 channels, 4 points and 3 to 5 levels (what the detectors use), and
// `deformAttnGeneral` for everything else. This file launches them. Why they look the way they do: NOTES.md.

#include "ms_deform_attn.h"

#include "fast.cuh"
#include "general.cuh"
#include "schedule.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace codetr {
namespace {

ScheduleCache schedules;

// Finds the schedule of a call on the current device.
cudaError_t findSchedule(MsDeformAttn const& call, int64_t tokens, Schedule& schedule) {
    int device = 0;
    if (auto const error = cudaGetDevice(&device); error != cudaSuccess) return error;
    return static_cast<cudaError_t>(schedules.get(ScheduleKey::of(call, device), schedule, [&](Schedule& made) -> int {
        int multiprocessors = 0, major = 0, minor = 0;
        for (auto const& [value, attribute] :
             {std::pair{&multiprocessors, cudaDevAttrMultiProcessorCount}, std::pair{&major, cudaDevAttrComputeCapabilityMajor},
              std::pair{&minor, cudaDevAttrComputeCapabilityMinor}}) {
            if (auto const error = cudaDeviceGetAttribute(value, attribute, device); error != cudaSuccess) return error;
        }
        made = makeSchedule(call, tokens, multiprocessors, fastTraits(major * 100 + minor * 10));
        return cudaSuccess;
    }));
}

template <typename T, int kLevels>
cudaError_t launchFast(MsDeformAttn const& call, int64_t tokens, cudaStream_t stream) {
    Schedule schedule;
    if (auto const error = findSchedule(call, tokens, schedule); error != cudaSuccess) return error;
    FastCall fast{};
    fast.value = call.value;
    fast.reference_points = call.reference_points;
    fast.sampling_offsets = call.sampling_offsets;
    fast.attention_logits = call.attention_logits;
    fast.valid_shapes = call.valid_shapes;
    fast.output = call.output;
    fast.batch = call.batch;
    fast.queries = call.queries;
    fast.tokens = static_cast<int32_t>(tokens);
    fast.reference_dim = call.reference_dim;
    int32_t start = 0;
    for (int32_t i = 0; i < kLevels; ++i) {
        fast.levels[i] = {call.spatial_shapes[2 * i], call.spatial_shapes[2 * i + 1], start};
        start += fast.levels[i].height * fast.levels[i].width;
    }
    fast.tiles = schedule.tiles;
    std::copy(std::begin(schedule.places), std::end(schedule.places), fast.places);
    size_t const shared = sizeof(Samples<T, kLevels>) * schedule.warps;
    static_assert(
        sizeof(Samples<T, kLevels>) * mostWarps() + sizeof(LevelConstants) * kLevels + sizeof(TilePart) * kChunkTiles * kMaxFastLevels <=
            48 * 1024,
        "more shared memory has to be asked for");
    deformAttnFast<T, kLevels><<<dim3(schedule.blocks, call.batch * kHeadSets), schedule.warps * 32, shared, stream>>>(fast);
    return cudaGetLastError();
}

template <typename T>
cudaError_t launch(MsDeformAttn const& call, cudaStream_t stream) {
    int64_t const tokens = countTokens(call.spatial_shapes, call.levels);
    if (!fitsFast(call, tokens)) return launchGeneral<T, 4>(call, tokens, stream);
    switch (call.levels) {
        case 3: return launchFast<T, 3>(call, tokens, stream);
        case 4: return launchFast<T, 4>(call, tokens, stream);
        default: return launchFast<T, 5>(call, tokens, stream);
    }
}

}  // namespace

cudaError_t launchMsDeformAttn(MsDeformAttn const& call, cudaStream_t stream) {
    if (findFault(call) != nullptr) return cudaErrorInvalidValue;
    if (call.batch == 0 || call.queries == 0) return cudaSuccess;
    switch (call.type) {
        case ElementType::kFloat16: return launch<__half>(call, stream);
        case ElementType::kBFloat16: return launch<__nv_bfloat16>(call, stream);
        default: return launch<float>(call, stream);
    }
}

}  // namespace codetr
