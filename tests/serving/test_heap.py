"""What a step frees stays with its process: blocks of megabytes cost no page faults the second time."""

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from serving.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def one_image():
    decoded = np.ones(3 << 20, np.uint8)
    canvas, batch = decoded + 1, np.stack([decoded])
for _ in range(5):
    one_image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    one_image()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    assert faults("kept") < 200 < 2_000 < faults("given back")
