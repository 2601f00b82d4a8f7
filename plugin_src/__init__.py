"""Kernels, TensorRT plugin and PyTorch operator: sources that are compiled where they are wanted."""

from pathlib import Path

SOURCES = Path(__file__).parent
