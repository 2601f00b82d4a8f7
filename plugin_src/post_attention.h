// All that follows an encoder layer's deformable attention, in one kernel: what a call is, and why it may be refused. Plain
// C++ but for the launcher.
//
// Formula, shapes and the order of weights and vectors: README.md in this folder.
#pragma once

#include "call.h"

#ifdef __CUDACC__
#define CODETR_HOST_DEVICE __host__ __device__
#else
#define CODETR_HOST_DEVICE
#endif

struct CUstream_st;

namespace codetr {

constexpr char const* kPostAttentionName = "post_attention";
constexpr char const* kPostAttentionSchema =
    "post_attention(Tensor attended, Tensor residual, Tensor weights, Tensor vectors, int hidden, bool e4m3) -> Tensor";
constexpr char const* kPostAttentionFollowedName = "post_attention_followed";
constexpr char const* kPostAttentionFollowedSchema =
    "post_attention_followed(Tensor attended, Tensor residual, Tensor position, Tensor weights, Tensor vectors, int hidden, bool e4m3, "
    "int offsets, int logits) -> (Tensor, Tensor, Tensor, Tensor)";

namespace post {

constexpr int kWidth = 256;            // of a token
constexpr int kPieceBytes = 16 << 10;  // in which the weights are read
constexpr int kBlockColumns = 128;     // of a projection, whose weights are four pieces for each
constexpr int kPiecesOfColumns = 4;
constexpr int kChunk = 128;       // hidden numbers that are there at a time
constexpr int kMaxHidden = 2048;  // the vectors lie in shared memory
constexpr int kColumnMultiple = 32;
constexpr int kMaxColumns = 1024;
constexpr int kScalars = 8;
// Scalars behind the vectors of a layer.
enum Scalar : int { kInputFactor, kHiddenScale, kHiddenFactor, kOutputScale, kFirstEpsilon, kSecondEpsilon };

// Where each of the vectors begins, in numbers; those of the next layer's products come behind the scalars.
struct Vectors {
    int hidden;
    CODETR_HOST_DEVICE constexpr int outputBias() const { return 0; }
    CODETR_HOST_DEVICE constexpr int firstWeight() const { return kWidth; }
    CODETR_HOST_DEVICE constexpr int firstBias() const { return 2 * kWidth; }
    CODETR_HOST_DEVICE constexpr int hiddenBias() const { return 3 * kWidth; }
    CODETR_HOST_DEVICE constexpr int secondProductBias() const { return 3 * kWidth + hidden; }
    CODETR_HOST_DEVICE constexpr int secondWeight() const { return 4 * kWidth + hidden; }
    CODETR_HOST_DEVICE constexpr int secondBias() const { return 5 * kWidth + hidden; }
    CODETR_HOST_DEVICE constexpr int scalars() const { return 6 * kWidth + hidden; }
    CODETR_HOST_DEVICE constexpr int columnBias() const { return 6 * kWidth + hidden + kScalars; }
};

CODETR_HOST_DEVICE constexpr int roundUp(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace post

// One call; all tensors are contiguous and on the device.
struct PostAttention {
    ElementType type;      // of all tensors but weights and vectors: float16 or bfloat16
    bool e4m3;             // the feed-forward network's products are of E4M3 numbers
    bool followed;         // by the next layer's products
    void const* attended;  // [rows, 256]
    void const* residual;  // [rows, 256]
    void const* position;  // [rows, 256], if followed
    void const* weights;   // bytes
    float const* vectors;
    void* tokens;   // [rows, 256]
    void* value;    // [rows, 256], if followed, as are the next two
    void* offsets;  // [rows, offset_columns]
    void* logits;   // [rows, logit_columns]
    int64_t rows;
    int32_t hidden;  // width of the feed-forward network
    int32_t offset_columns;
    int32_t logit_columns;
};

// The 128-column blocks of the next layer's products: those of the value, then of offsets and logits.
inline int64_t countFollowingBlocks(PostAttention const& call) {
    if (!call.followed) return 0;
    return (post::kWidth + post::roundUp(call.offset_columns + call.logit_columns, post::kBlockColumns)) / post::kBlockColumns;
}

// Of `weights`.
inline int64_t countPieces(PostAttention const& call) {
    int64_t const of_chunk = 2 * post::kWidth * post::kChunk * (call.e4m3 ? 1 : 2) / post::kPieceBytes;  // both products' weights
    int64_t const blocks = post::kWidth / post::kBlockColumns + countFollowingBlocks(call);
    return blocks * post::kPiecesOfColumns + call.hidden / post::kChunk * of_chunk;
}

// Of `vectors`.
inline int64_t countNumbers(PostAttention const& call) {
    return post::Vectors{call.hidden}.columnBias() + countFollowingBlocks(call) * post::kBlockColumns;
}

// Why `call` cannot run, or null if it can. Looks at sizes and pointers, never at the device.
inline char const* findFault(PostAttention const& call) {
    if (call.type != ElementType::kFloat16 && call.type != ElementType::kBFloat16) return "attended must be float16 or bfloat16";
    if (call.hidden < post::kChunk || call.hidden > post::kMaxHidden || call.hidden % post::kChunk != 0)
        return "hidden must be a multiple of 128 from 128 to 2048";
    if (call.followed) {
        for (int32_t const columns : {call.offset_columns, call.logit_columns}) {
            if (columns < post::kColumnMultiple || columns > post::kMaxColumns || columns % post::kColumnMultiple != 0)
                return "offsets and logits must be multiples of 32 from 32 to 1024";
        }
        if (call.offset_columns + call.logit_columns > post::kMaxColumns) return "offsets and logits must be 1024 columns at most";
    }
    if (call.rows < 0) return "rows must not be negative";
    if (call.rows >= (int64_t{1} << 31) / post::kWidth) return "there are too many rows";
    if (call.rows == 0) return nullptr;
    bool const lacks = !call.attended || !call.residual || !call.weights || !call.vectors || !call.tokens;
    if (lacks || (call.followed && (!call.position || !call.value || !call.offsets || !call.logits))) return "a tensor is a null pointer";
    for (void const* tensor : {call.attended, call.residual, call.position, call.weights, static_cast<void const*>(call.vectors),
                               static_cast<void const*>(call.tokens), static_cast<void const*>(call.value),
                               static_cast<void const*>(call.offsets), static_cast<void const*>(call.logits)}) {
        if (!aligned(tensor, 16)) return "tensors must be aligned to 16 bytes";
    }
    return nullptr;
}

// Starts the kernel on `stream`; returns a cudaError_t, 0 where it started.
int launchPostAttention(PostAttention const& call, CUstream_st* stream);

}  // namespace codetr
