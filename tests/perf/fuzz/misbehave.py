"""A judge that fails as decoders may. It stands apart so that the child processes which call it start quickly."""

from __future__ import annotations

import os
import time

import numpy as np

from perf.fuzz.outcomes import Outcome, judge
from serving.decode import ImageLimits
from serving.rules import Pixels


def misbehave(data: bytes, size: tuple[int, int], rule: Pixels, limits: ImageLimits) -> Outcome:
    """What a file's text asks for: the ways in which a decoder may fail."""
    if data == b"crash":
        os.abort()
    if data == b"hang":
        time.sleep(600)
    if data == b"spin":
        end = time.process_time() + 1.5
        while time.process_time() < end:
            pass
    if data == b"memory":
        try:
            np.ones(4 * 2**30, np.uint8)
        except MemoryError as error:
            return Outcome("memory", repr(error))
    return judge(data, size, rule, limits)
