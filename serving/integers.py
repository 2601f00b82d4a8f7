"""How ONNX Runtime multiplies the integers of a quantised engine on this CPU."""

from __future__ import annotations

from typing import Any

from serving.manifest import cpu

# x86's instructions that add products of 8-bit integers in 32 bits.
EXACT = ("avx512_vnni", "avx_vnni")
# ONNX Runtime's `kOrtSessionOptionsAvx2PrecisionMode`: weights become unsigned. Without VNNI its faster kernels add two
# products of signed weights in 16 bits, where they are cut. On CPUs other than x86 it changes nothing.
UNSIGNED_WEIGHTS = "session.x64quantprecision"


def set_exact_integers(options: Any) -> None:
    """Have ONNX Runtime compute integer products exactly, on a CPU where it would not; files of float32 stay as fast.

    Args:
        options: `onnxruntime.SessionOptions`, before the session is made.
    """
    if not set(EXACT).intersection(cpu()["features"]):
        options.add_session_config_entry(UNSIGNED_WEIGHTS, "1")
