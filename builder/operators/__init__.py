"""Deformable and window attention and FP8 layers as operators.

Schemas, references, CUDA build, TensorRT names and converters.
"""
