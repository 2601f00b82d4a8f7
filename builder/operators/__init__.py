"""Deformable and window attention as operators: schemas, references, CUDA build, TensorRT names and converters."""
