"""NVIDIA's own benchmark on the same plan: its command line, and what it says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from builder.pipeline.export import INPUT_NAMES, InputSpec
from serving.contract import PLUGIN_LIBRARY
from serving.errors import CodetrError

PROGRAM = "trtexec"
_MEDIAN = re.compile(r"GPU Compute Time:.*?median = ([0-9.]+) ms")


def command(plan: Path, spec: InputSpec, sizes: Path, inputs: Sequence[str] = INPUT_NAMES) -> str:
    """Return the line that measures `plan`, without copies to and from the GPU, as one CUDA graph.

    Args:
        plan: TensorRT's file, with the plugin's library beside it if it has plugin layers.
        spec: of its inputs; the largest batch is measured.
        sizes: what `write_sizes` wrote; without it trtexec makes up sizes.
        inputs: that the plan reads.
    """
    shapes = (f"{spec.max_batch_size}x{spec.height}x{spec.width}x3", f"{spec.max_batch_size}x2")
    named = ",".join(f"{name}:{shape}" for name, shape in zip(INPUT_NAMES, shapes, strict=True) if name in inputs)
    plugin = plan.with_name(PLUGIN_LIBRARY)
    words = [
        PROGRAM,
        f"--loadEngine={plan}",
        *([f"--staticPlugins={plugin}"] if plugin.is_file() else []),
        *([f"--shapes={named}"] if spec.is_dynamic else []),  # a plan of one shape takes none
        *([f"--loadInputs={INPUT_NAMES[1]}:{sizes}"] if INPUT_NAMES[1] in inputs else []),
        *("--useCudaGraph", "--useSpinWait", "--noDataTransfers"),
        *("--warmUp=1000", "--duration=10", "--percentile=50,90,99"),
    ]
    return shlex.join(words)


def write_sizes(spec: InputSpec, path: Path) -> Path:
    """Write the largest batch of full image sizes as trtexec reads them, and return `path`."""
    np.array([[spec.height, spec.width]] * spec.max_batch_size, "<i4").tofile(path)
    return path


def run(line: str, log: Path) -> float | None:
    """Run a line of `command` and keep what it says in `log`.

    Returns:
        The median of the GPU's compute time in milliseconds; None if trtexec is not on PATH.

    Raises:
        CodetrError: trtexec failed or told no time.
    """
    if not shutil.which(PROGRAM):
        return None
    done = subprocess.run(
        shlex.split(line), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, errors="replace"
    )
    log.write_text(done.stdout, encoding="utf-8")
    median = median_ms(done.stdout)
    if done.returncode != 0 or median is None:
        raise CodetrError(f"trtexec ended with status {done.returncode} and no time; {log} says why")
    return median


def median_ms(text: str) -> float | None:
    """Return the median of the GPU's compute time that trtexec printed; None if it did not."""
    found = _MEDIAN.search(text)
    return None if found is None else float(found[1])
