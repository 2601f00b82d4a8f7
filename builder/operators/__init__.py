"""Deformable attention as an operator: schema and reference, CUDA build, TensorRT names and converter."""
