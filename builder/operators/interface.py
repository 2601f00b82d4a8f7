"""What `plugin_src/interface.h` says, for Python: names, limits, and the words of a refusal.

A name here is the header's without its k, in capitals: kMaxLevels is MAX_LEVELS. A test compiles the header and
compares the two, so a change belongs into both.
"""

from __future__ import annotations

OPERATOR_NAME = "ms_deform_attn"  # in the library `codetr`
SCHEMA = (
    "ms_deform_attn(Tensor value, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
    "int[] spatial_shapes, Tensor? valid_shapes=None) -> Tensor"
)
# Environment, while the library is loaded: the schema is defined already.
SCHEMA_VARIABLE = "CODETR_SCHEMA_DEFINED"

# The tensors, in the order of the schema and of the plugin's inputs; the last may be missing.
INPUT_NAMES = ("value", "reference_points", "sampling_offsets", "attention_logits", "valid_shapes")

PLUGIN_NAME, PLUGIN_VERSION, PLUGIN_NAMESPACE = "CodetrMsDeformAttn", "1", ""  # version and namespace of all plugins
SPATIAL_SHAPES_FIELD = "spatial_shapes"  # the creator's only one, int32: h0, w0, h1, w1, ...

# Window attention, whose operator is defined in `window_attention`; the last of the plugin's inputs may be missing.
WINDOW_INPUT_NAMES = ("qkv", "bias_table", "qkv_bias")
WINDOW_PLUGIN_NAME = "CodetrWindowAttention"
WINDOW_SIZE_FIELD, SHIFT_FIELD = "window_size", "shift"  # the creator's, int32, one number each

# What the kernels can do; every implementation refuses the rest, in the same words.
MAX_LEVELS = 8
CHANNEL_MULTIPLE = 4
MAX_LEVEL_SIDE = 2**20
MAX_TOKENS = 2**31 - 1


class Message:
    """Why inputs are refused; {} stands for what was given or wanted."""

    VALUE_TYPE = "value must be float32, float16 or bfloat16"
    DEVICE = "{} must lie on the device of value"
    TYPE = (
        "{} has the wrong type; sampling_offsets and attention_logits have value's, reference_points float32, "
        "valid_shapes int32"
    )
    AXES = "{} must have {} axes, got {}"
    SHAPE = "{} must have shape {}, got {}"
    COORDINATES = "reference_points must end in 2 (x, y) or 4 (cx, cy, w, h)"
    HEADS_AND_POINTS = "there must be at least one head and one point"
    CHANNELS = "the channels of a head must be a positive multiple of 4"
    LEVELS = "there must be 1 to 8 levels"
    SIZES = "spatial_shapes must hold h and w of {} levels, got {} numbers"
    SIDES = "spatial_shapes must be positive, at most 2^20"
    MANY_TOKENS = "value has more than 2^31 tokens"
    TOKENS = "value has {} tokens, spatial_shapes make {}"
