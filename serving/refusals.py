"""Why an image was refused, in a few fixed words for counts and log lines; the sentence for the user is the error's."""

from __future__ import annotations

from dataclasses import dataclass

from codetr_client.containers import image_format
from serving.decode import MAX_SIDE, ImageLimits, claimed_size
from serving.errors import InvalidImageError

# What became of an image, the only values that the metric's label `outcome` has.
DECODED = "decoded"
EMPTY = "empty"
TOO_MANY_BYTES = "too_many_bytes"
WRONG_FORMAT = "wrong_format"
BAD_HEADER = "bad_header"
TOO_MANY_PIXELS = "too_many_pixels"
DAMAGED = "damaged"

UNKNOWN_FORMAT = "unknown"


@dataclass(frozen=True)
class Refusal:
    """What can be told of a refused image without its content."""

    cause: str
    format: str
    bytes: int
    size: tuple[int, int] | None  # (width, height) in pixels as its header has it, if that can be read


class ImageRefusedError(InvalidImageError):
    """A step's answer to an image that it cannot use; the message is the user's."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


def explain(data: bytes, limits: ImageLimits) -> Refusal:
    """Return why `decode_image` refused these bytes under these limits; it looks at them in the same order."""
    name = image_format(data)
    if not data or len(data) > limits.max_bytes:  # beyond the limit not even the header is read
        return Refusal(TOO_MANY_BYTES if data else EMPTY, name or UNKNOWN_FORMAT, len(data), None)
    if name is None or name not in limits.formats:
        return Refusal(WRONG_FORMAT, name or UNKNOWN_FORMAT, len(data), None)
    size = claimed_size(data)
    if size is None or min(size) < 1:
        return Refusal(BAD_HEADER, name, len(data), size)
    too_large = size[0] * size[1] > limits.max_pixels or max(size) > MAX_SIDE
    return Refusal(TOO_MANY_PIXELS if too_large else DAMAGED, name, len(data), size)
