"""What `plugin_src/tensorrt_layer.h` calls the TensorRT plugin of deformable attention, its field and its inputs."""

from __future__ import annotations

NAME, VERSION, NAMESPACE = "CodetrMsDeformAttn", "1", ""
SPATIAL_SHAPES_FIELD = "spatial_shapes"  # the creator's only one, int32: h0, w0, h1, w1, ...
# In the plugin's order; the last may be left out.
INPUT_NAMES = ("value", "reference_points", "sampling_offsets", "attention_logits", "valid_shapes")
