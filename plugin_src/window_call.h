// One call of attention inside (shifted) windows, and why it may be refused. Plain C++.
//
// Formulas, shapes and types: README.md in this folder.
#pragma once

#include "call.h"
#include "window_index.h"

namespace codetr {

constexpr char const* kWindowOperatorName = "window_attention";
constexpr char const* kWindowSchema =
    "window_attention(Tensor qkv, Tensor? qkv_bias, Tensor bias_table, int window_size, int shift) -> Tensor";
constexpr int32_t kWindowHeadDim = 32;
constexpr int32_t kMaxWindows = 65535;  // of a map; they and the images are two axes of the grid of thread blocks
constexpr int32_t kMaxWindowBatch = 16384;

inline bool isWindow(int64_t side) { return side == 7 || side == 12; }

// The rows of the bias table: one for each relative position of two tokens of a window.
inline int64_t countRelativePositions(int64_t window) { return (2 * window - 1) * (2 * window - 1); }

// One call; all tensors are contiguous, on the device and of one type.
struct WindowAttn {
    ElementType type;
    void const* qkv;         // [batch, height, width, 3, heads, 32]
    void const* qkv_bias;    // [3, heads, 32], what the padding has for query, key and value; null: zeros
    void const* bias_table;  // [(2 * window - 1)^2, heads]
    void* output;            // [batch, height, width, heads, 32]
    int32_t batch;
    int32_t height;
    int32_t width;
    int32_t heads;
    int32_t window;
    int32_t shift;
};

// Why `call` cannot run, or null if it can. Looks at sizes and pointers, never at the device.
inline char const* findFault(WindowAttn const& call) {
    if (call.type != ElementType::kFloat16 && call.type != ElementType::kBFloat16) return "qkv must be float16 or bfloat16";
    if (!isWindow(call.window)) return "window_size must be 7 or 12";
    if (call.shift < 0 || call.shift >= call.window) return "shift must be at least 0 and less than window_size";
    if (call.batch < 0 || call.height < 0 || call.width < 0) return "sizes must not be negative";
    if (call.heads < 1) return "there must be at least one head";
    WindowMap const map = makeWindowMap(call.height, call.width, call.window, call.shift);
    if (call.batch > kMaxWindowBatch) return "batch is more than 16384";
    if (static_cast<int64_t>(map.rows) * map.columns > kMaxWindows) return "a map has more than 65535 windows";
    // The kernel counts the pieces of 16 bytes of an image in 32 bits.
    if (static_cast<int64_t>(call.height) * call.width > (int64_t{1} << 32) / (12 * static_cast<int64_t>(call.heads)))
        return "qkv is too large";
    if (call.batch == 0 || call.height == 0 || call.width == 0) return nullptr;
    if (!call.qkv || !call.bias_table || !call.output) return "a tensor is a null pointer";
    if (!aligned(call.qkv, 16) || !aligned(call.qkv_bias, 16) || !aligned(call.output, 16))
        return "qkv, qkv_bias and output must be aligned to 16 bytes";
    return nullptr;
}

}  // namespace codetr
