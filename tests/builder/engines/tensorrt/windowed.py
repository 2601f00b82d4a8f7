"""Window attention for tests of TensorRT's frontends: a network with two blocks of it, and what a plugin node means."""

from functools import cache

import torch
from onnx.reference.op_run import OpRun
from torch import nn

from builder.co_dino.config import SwinConfig
from builder.co_dino.swin import SwinTransformer
from builder.engines.tensorrt.plugin_onnx import DOMAIN
from builder.operators.window_attention import reference_window_attention
from builder.parts.layers import LayerNorm
from builder.parts.precision import convert
from builder.pipeline.export import InputSpec, export_detector

SPEC = InputSpec(64, 96, max_batch_size=2)  # 16 x 24 tokens, which windows of 7 do not divide


class Windowed(nn.Module):
    """Two blocks, one of them shifted: uint8 images in; what has the names of boxes, scores and labels out."""

    def __init__(self, dtype, window=7, bias=True):
        super().__init__()
        torch.manual_seed(0)
        config = SwinConfig(64, (2,), (2,), window_size=window, mlp_ratio=1, qkv_bias=bias, out_indices=(0,))
        self.backbone = SwinTransformer(config)
        for name, parameter in self.backbone.named_parameters():
            if name.endswith("table"):
                nn.init.normal_(parameter)
        convert(self, dtype, (LayerNorm,))
        self.eval().requires_grad_(False)

    def forward(self, images, image_sizes):
        pixels = images.permute(0, 3, 1, 2).to(self.backbone.patch_embed.weight.dtype) / 255
        (features,) = self.backbone(pixels)
        tokens = features.float().flatten(2).transpose(1, 2)
        return tokens[..., :4], tokens.amax(-1), tokens.argmax(-1).int()


@cache
def exported(dtype=torch.float16, **options):
    return export_detector(Windowed(dtype, **options), SPEC)


class CodetrWindowAttention(OpRun):
    """A plugin node in ONNX's own evaluator."""

    op_domain = DOMAIN

    def _run(
        self, qkv, bias_table, qkv_bias=None, window_size=None, shift=None, plugin_version=None, plugin_namespace=None
    ):
        qkv, bias_table, qkv_bias = (
            None if array is None else torch.from_numpy(array.copy()) for array in (qkv, bias_table, qkv_bias)
        )
        return (reference_window_attention(qkv, qkv_bias, bias_table, window_size, shift).numpy(),)
