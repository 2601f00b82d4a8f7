// What the kernels, the TensorRT plugins, the PyTorch operators and Python have in common: names, limits, the words of a
// refusal. Plain C++. builder/operators/interface.py says the same in Python: kMaxLevels is MAX_LEVELS there. A test
// compiles this file (test/interface_host.cpp) and compares them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace codetr {

// ---- The operator ----

constexpr char const* kOperatorName = "ms_deform_attn";  // in the library `codetr`
constexpr char const* kSchema =
    "ms_deform_attn(Tensor value, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
    "int[] spatial_shapes, Tensor? valid_shapes=None) -> Tensor";
// Environment: the schema is defined already, so the library must not define it.
constexpr char const* kSchemaVariable = "CODETR_SCHEMA_DEFINED";

// The tensors, in the order of the operator's schema and of the plugin's inputs; the last may be missing.
enum Input : int32_t { kValue, kReferencePoints, kSamplingOffsets, kAttentionLogits, kValidShapes };
constexpr char const* kInputNames[] = {"value", "reference_points", "sampling_offsets", "attention_logits", "valid_shapes"};
constexpr int32_t kMinInputs = 4;
constexpr int32_t kMaxInputs = 5;
static_assert(sizeof(kInputNames) / sizeof(kInputNames[0]) == kMaxInputs && kValidShapes == kMaxInputs - 1, "a name for each input");

// ---- The plugins ----

constexpr char const* kPluginName = "CodetrMsDeformAttn";
constexpr char const* kPluginVersion = "1";                    // of all plugins
constexpr char const* kPluginNamespace = "";                   // of all plugins
constexpr char const* kSpatialShapesField = "spatial_shapes";  // INT32: h0, w0, h1, w1, ...

// Window attention, whose operator is described in window_call.h. The bias of the projection may be missing, so it is last.
enum WindowInput : int32_t { kQkv, kBiasTable, kQkvBias };
constexpr char const* kWindowInputNames[] = {"qkv", "bias_table", "qkv_bias"};
constexpr int32_t kMinWindowInputs = 2;
constexpr int32_t kMaxWindowInputs = 3;
constexpr char const* kWindowPluginName = "CodetrWindowAttention";
constexpr char const* kWindowSizeField = "window_size";  // INT32, one number: 7 or 12
constexpr char const* kShiftField = "shift";             // INT32, one number: 0 to window_size - 1

// ---- What the kernels can do ----

constexpr int32_t kMaxLevels = 8;  // their sizes travel as launch parameters, so the number is bounded
constexpr int32_t kChannelMultiple = 4;
constexpr int32_t kMaxLevelSide = 1 << 20;
constexpr int64_t kMaxTokens = (int64_t{1} << 31) - 1;
static_assert(kMaxLevels == 8 && kChannelMultiple == 4 && kMaxLevelSide == 1 << 20 && kMaxTokens >> 31 == 0,
              "messages, below and in tensorrt_ms_deform_attn.cpp, name these numbers");

// Why inputs are refused; {} stands for what was given or wanted.
#define CODETR_MESSAGES(MESSAGE)                                                          \
    MESSAGE(kValueType, "value must be float32, float16 or bfloat16")                     \
    MESSAGE(kDevice, "{} must lie on the device of value")                                \
    MESSAGE(kType,                                                                        \
            "{} has the wrong type; sampling_offsets and attention_logits have value's, " \
            "reference_points float32, valid_shapes int32")                               \
    MESSAGE(kAxes, "{} must have {} axes, got {}")                                        \
    MESSAGE(kShape, "{} must have shape {}, got {}")                                      \
    MESSAGE(kCoordinates, "reference_points must end in 2 (x, y) or 4 (cx, cy, w, h)")    \
    MESSAGE(kHeadsAndPoints, "there must be at least one head and one point")             \
    MESSAGE(kChannels, "the channels of a head must be a positive multiple of 4")         \
    MESSAGE(kLevels, "there must be 1 to 8 levels")                                       \
    MESSAGE(kSizes, "spatial_shapes must hold h and w of {} levels, got {} numbers")      \
    MESSAGE(kSides, "spatial_shapes must be positive, at most 2^20")                      \
    MESSAGE(kManyTokens, "value has more than 2^31 tokens")                               \
    MESSAGE(kTokens, "value has {} tokens, spatial_shapes make {}")

namespace message {
#define CODETR_DECLARE(name, text) constexpr char const* name = text;
CODETR_MESSAGES(CODETR_DECLARE)
#undef CODETR_DECLARE
}  // namespace message

// `message` with a value in the place of each {}.
inline std::string fill(std::string message, std::initializer_list<std::string> values) {
    size_t place = 0;
    for (std::string const& value : values) {
        place = message.find("{}", place);
        message.replace(place, 2, value);
        place += value.size();
    }
    return message;
}

}  // namespace codetr
