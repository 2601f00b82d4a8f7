"""What happened to one file, and whether it may happen."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving.decode import ImageLimits
from serving.errors import InvalidImageError
from serving.preprocess import Preprocessed, preprocess
from serving.rules import Pixels

# accepted and refused are as it should be. The others are faults: another exception than the refusal, a message that
# tells of the server's inside, an answer that breaks the contract, the end of the process, no end, no more memory.
Kind = Literal["accepted", "refused", "exception", "leak", "wrong", "crash", "hang", "memory"]
FAULTS: tuple[Kind, ...] = ("exception", "leak", "wrong", "crash", "hang", "memory")

# What no message to a stranger may hold.
_LEAKS = re.compile(
    r"Traceback|File \"|\.(?:py|cpp|cc|hpp|so)\b|site-packages| at 0x[0-9a-f]|"
    r"(?:^|[\s(]|(?<!b)['\"])/(?:usr|opt|home|root|tmp|models|dev|build)\b"
)
_LONGEST = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a file: how, with which message, after how much CPU time, and the `digest` of what was made."""

    kind: Kind
    message: str
    seconds: float = 0.0
    digest: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether it should not have happened."""
        return self.kind in FAULTS

    @property
    def words(self) -> str:
        """The outcome without what differs from file to file: numbers and quoted bytes."""
        text = re.sub(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"", "…", self.message)
        return f"{self.kind}: " + re.sub(r"-?\d+(?:\.\d+)?", "N", text)

    @property
    def group(self) -> str:
        """The same without the decoder's own words, which follow ours behind a colon."""
        kind, _, text = self.words.partition(": ")
        return kind if kind == "accepted" else f"{kind}: {text.partition(': ')[0]}"


def judge(data: bytes, size: tuple[int, int], rule: Pixels, limits: ImageLimits) -> Outcome:
    """Pre-process a file as the server does, for an engine of (height, width), and return what happened; no time."""
    height, width = size
    try:
        prepared = preprocess(data, height, width, limits, rule)
    except InvalidImageError as error:
        if _is_about_memory(error):
            return Outcome("memory", str(error))
        fault = message_fault(str(error))
        return Outcome("leak", f"{fault}: {error}") if fault else Outcome("refused", str(error))
    except MemoryError as error:
        return Outcome("memory", repr(error))
    except Exception as error:  # of whatever kind: that is what is looked for
        return Outcome("exception", f"{type(error).__name__}: {error}")
    fault = contract_fault(prepared, size, limits)
    return Outcome("wrong", fault) if fault else Outcome("accepted", "", digest=digest(prepared))


def _is_about_memory(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "insufficient memory" in str(cause).lower():
            return True
        cause = cause.__cause__
    return False


def message_fault(message: str) -> str | None:
    """Return what is wrong with a message of ours to a client, or None: no reason, more than a line, or a leak."""
    if not message.strip() or message.endswith(": "):
        return "it names no reason"
    if not message.isprintable():
        return "it holds line breaks or control characters"
    return f"it has {len(message)} characters" if len(message) > _LONGEST else leak(message)


def leak(message: str) -> str | None:
    """Return what a message tells of the server's inside, or None: a path, a traceback, an address in memory."""
    found = _LEAKS.search(message)
    return f"it holds {found[0]!r}" if found else None


def contract_fault(prepared: Preprocessed, size: tuple[int, int], limits: ImageLimits) -> str | None:
    """Return what is wrong with an engine's input, or None."""
    images, (valid_h, valid_w), (h, w) = prepared
    if images.shape != (*size, 3) or images.dtype != np.uint8:
        return f"images are {images.dtype} {images.shape}"
    if not (1 <= valid_h <= size[0] and 1 <= valid_w <= size[1]):
        return f"the valid size is {valid_h}x{valid_w}"
    if h < 1 or w < 1 or h * w > limits.max_pixels:
        return f"the original size is {h}x{w}"
    return "pixels beyond the valid size" if images[valid_h:].any() or images[:, valid_w:].any() else None


def digest(prepared: Preprocessed) -> str:
    """Return the SHA-256 of an engine's input with its valid size, and the original's height and width."""
    height, width = prepared.original_size
    return f"{input_digest(prepared.images, np.array(prepared.image_size, np.int32)).hex()} {height}x{width}"


def input_digest(images: npt.NDArray[np.uint8], image_size: npt.NDArray[np.int32]) -> bytes:
    """Return the SHA-256 of one image as an engine gets it, uint8 `[H, W, 3]`, and its valid (height, width)."""
    return hashlib.sha256(images.tobytes() + image_size.astype(np.int32).tobytes()).digest()
