// The fast kernel: 8 heads of 32 channels, 4 points, 3 to 5 levels.
#pragma once

#include "sampling.cuh"

namespace codetr {
namespace {

#ifdef __CUDA_ARCH__
constexpr int32_t kArchitecture = __CUDA_ARCH__;
#else
constexpr int32_t kArchitecture = 0;  // the host's pass compiles no kernel
#endif
constexpr int kFastWarps = fastTraits(kArchitecture).warps;

template <typename T>
__device__ LevelConstants levelConstants(FastCall const& call, int32_t image, int32_t index, int32_t levels) {
    FastLevel const size = call.levels[index];
    int32_t rows = size.height, columns = size.width;
    if (call.valid_shapes != nullptr) {
        int2 const valid = reinterpret_cast<int2 const*>(call.valid_shapes)[static_cast<int64_t>(image) * levels + index];
        rows = min(max(valid.x, 0), size.height);
        columns = min(max(valid.y, 0), size.width);
    }
    return makeLevelConstants<T>(size, rows, columns);
}

// Block (x, y) takes share x of the queries of image and head set y. Its warps take items of the share in turn.
template <typename T, int kLevels>
__global__ void __launch_bounds__(kFastWarps * 32, 1) deformAttnFast(__grid_constant__ FastCall const call) {
    extern __shared__ uint4 shared[];
    __shared__ LevelConstants levels[kLevels];
    __shared__ TilePart parts[kChunkTiles * kMaxFastLevels];
    int const lane = threadIdx.x & 31, group = lane >> 2, t = lane & 3;
    auto& samples = reinterpret_cast<Samples<T, kLevels>*>(shared)[threadIdx.x >> 5];
    uint32_t const identity = Sums<T>::identityColumn(group, t);

    // First of all, because parameters come from memory too.
    TilePlace const first = call.places[blockIdx.x], last = call.places[blockIdx.x + 1];
    int32_t const image = static_cast<int32_t>(blockIdx.y) / kHeadSets;
    int const first_head = static_cast<int>(blockIdx.y % kHeadSets) * kBlockHeads, head = first_head + group % kBlockHeads;
    LaneTask<kLevels> const task(lane);
    if (threadIdx.x < kLevels) levels[threadIdx.x] = levelConstants<T>(call, image, threadIdx.x, kLevels);
    uint64_t const base =
        __cvta_generic_to_global(static_cast<T const*>(call.value) + (static_cast<int64_t>(image) * call.tokens * kHeads + head) * kDim) +
        t * 16;

    auto const stride = static_cast<int32_t>(blockDim.x >> 5) * kItemQueries;
    auto turn = static_cast<int32_t>(threadIdx.x >> 5) * kItemQueries + group / kBlockHeads;
    int32_t const end_tile = last.endTile();
    for (int32_t tile = first.tile(); tile < end_tile; tile += kChunkTiles) {
        if (tile != first.tile()) __syncthreads();
        bool const encoder = call.tiles.maps > 1;
        int const part_count = min(end_tile - tile, kChunkTiles) * (encoder ? kLevels : 1);
        for (int i = static_cast<int>(threadIdx.x); i < part_count; i += static_cast<int>(blockDim.x)) {
            parts[i] = makeTilePart(call.tiles, tile + (encoder ? i / kLevels : i), encoder ? i % kLevels : 0, first, last);
        }
        __syncthreads();
        LevelConstants const level = levels[task.level], rest_level = levels[task.rest_level];
        int index = 0;
        LaneInputs<T, kLevels> in;
        auto const load = [&](int32_t query_of_image) {
            int64_t const query = static_cast<int64_t>(image) * call.queries + query_of_image;
            int64_t const first_sample = (query * kHeads + first_head) * (kLevels * kPoints);
            in.load(task, static_cast<T const*>(call.attention_logits) + first_sample,
                    static_cast<T const*>(call.sampling_offsets) + first_sample * 2,
                    call.reference_points + query * kLevels * call.reference_dim, call.reference_dim);
        };
        Turn next = findQuery(parts, part_count, index, turn);
        load(next.query);
#pragma unroll 1
        while (__any_sync(kFullWarp, next.exists)) {
            Turn const now = next;
            float const total = prepareSamples<T, kLevels>(samples, in, task, level, rest_level, lane, call.reference_dim);
            __syncwarp();
            if (now.exists) turn += stride;
            next = findQuery(parts, part_count, index, turn);
            load(next.query);  // arrives while the present samples are added up
            Sums<T> const sums = sumSamples<T, kLevels>(samples, call, base, group, identity);
            __syncwarp();
            int64_t const query_head = (static_cast<int64_t>(image) * call.queries + now.query) * kHeads + head;
            if (now.exists) sums.store(static_cast<T*>(call.output) + query_head * kDim, t, __fdividef(1.f, total));
        }
    }
}

}  // namespace
}  // namespace codetr
