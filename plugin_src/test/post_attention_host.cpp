// What tests/plugin_src/test_post_attention.py asks of the kernel and of its header, without CUDA.

#include "fake_hopper.h"

#include "../post_attention.cuh"

#include <string>

namespace codetr {
namespace {

using Kernel = void (*)(post::Arguments);

template <typename T>
Kernel kernelFor(PostAttention const& call) {
    if (call.e4m3) return call.followed ? post::postAttention<T, true, true> : post::postAttention<T, true, false>;
    return call.followed ? post::postAttention<T, false, true> : post::postAttention<T, false, false>;
}

std::string run(PostAttention const& call, int clusters, bool halves, uint64_t seed, bool late) {
    auto const bytes = static_cast<size_t>(call.rows) * post::kWidth * 2;
    auto const numbers = static_cast<int>(countNumbers(call));
    int const slots = post::countSlots(call.e4m3, numbers);
    post::Arguments const arguments{call, static_cast<int>(countPieces(call)), numbers, slots, halves};
    hopper::fake::Launch launch{clusters, post::kBlocks, post::kThreads, 0, seed, late, {}};
    launch.shared_bytes = post::bytesBesideSlots(call.e4m3, numbers) + static_cast<size_t>(slots) * post::kPieceBytes;
    launch.buffers = {{"attended", call.attended, bytes, false},
                      {"residual", call.residual, bytes, false},
                      {"weights", call.weights, static_cast<size_t>(countPieces(call)) * post::kPieceBytes, false},
                      {"tokens", call.tokens, bytes, true}};
    if (call.followed) {
        launch.buffers.push_back({"position", call.position, bytes, false});
        launch.buffers.push_back({"value", call.value, bytes, true});
        launch.buffers.push_back({"offsets", call.offsets, static_cast<size_t>(call.rows) * call.offset_columns * 2, true});
        launch.buffers.push_back({"logits", call.logits, static_cast<size_t>(call.rows) * call.logit_columns * 2, true});
    }
    Kernel const kernel = call.type == ElementType::kFloat16 ? kernelFor<hopper::Half>(call) : kernelFor<hopper::BFloat16>(call);
    return hopper::simulate(launch, [&] { kernel(arguments); });
}

}  // namespace
}  // namespace codetr

extern "C" {

char const* postAttentionSchema() { return codetr::kPostAttentionSchema; }
char const* postAttentionFollowedSchema() { return codetr::kPostAttentionFollowedSchema; }

char const* describePostAttentionFault(codetr::PostAttention const* call) { return codetr::findFault(*call); }

int64_t countPostAttentionPieces(codetr::PostAttention const* call) { return codetr::countPieces(*call); }
int64_t countPostAttentionNumbers(codetr::PostAttention const* call) { return codetr::countNumbers(*call); }

// Runs the kernel on the stand-in; returns what went wrong, or an empty string.
char const* runPostAttention(codetr::PostAttention const* call, int32_t clusters, bool halves, uint64_t seed, bool late) {
    static std::string fault;
    fault = codetr::run(*call, clusters, halves, seed, late);
    return fault.c_str();
}
}
