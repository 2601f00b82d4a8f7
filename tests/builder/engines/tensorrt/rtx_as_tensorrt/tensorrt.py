"""TensorRT-RTX under TensorRT's name, compiling for compute capability 8.9, which it does without a GPU."""

from tensorrt_rtx_bindings import *  # noqa: F403
from tensorrt_rtx_bindings import Builder, ComputeCapability, Runtime, __version__  # noqa: F401

_create = Builder.create_builder_config


def _create_builder_config(self):
    config = _create(self)
    config.num_compute_capabilities = 1
    config.set_compute_capability(ComputeCapability.SM89, 0)
    return config


Builder.create_builder_config = _create_builder_config
