"""JPEG files: what their markers say (ITU-T T.81, annex B), and whether their data reach to the last row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from math import ceil

import numpy as np
import numpy.typing as npt
from PIL import JpegImagePlugin

from codetr_client.containers import MAX_PARTS
from codetr_client.errors import InvalidImageError

END = b"\xff\xd9"
# A marker among segments, and one behind the data of a scan: stuffed zeros and restart markers belong to those.
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_MARKER_BEHIND_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_SOI, _EOI, _SOS, _DRI, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE1, 0xEE
_RESTART = 0xD0  # the first of eight, which take turns
_BARE = frozenset({0x01, _SOI, *range(_RESTART, _RESTART + 8)})  # markers without a segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE, _EXTENDED, _PROGRESSIVE, _ARITHMETIC_PROGRESSIVE = 0xC0, 0xC1, 0xC2, 0xCA
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # APP0..15 and COM
# JFIF's and Adobe's segments tell the colours; libjpeg ignores shorter ones.
_COLOURS = {0xE0: (b"JFIF\0", 14), _APP14: (b"Adobe", 12)}
_BLOCK = 8  # pixels of a side
_COEFFICIENTS = _BLOCK**2

# libjpeg shows this value where the data did not suffice for a coded unit.
MISSING = 128
# libjpeg looks so far ahead of the last coded unit. One bits: no Huffman code consists of them.
_LOOKAHEAD = b"\xff\x00" * 8
# A progressive picture is decoded anew for every scan. Programs write 10, and at most a few dozen.
_MAX_SCANS = 100
_PIECE = 2**20  # bytes that are searched for restart markers at a time


@dataclass(frozen=True)
class Scan:
    """One pass over components: the coefficients `first`..`last` down to bit `low`, coded in `data[start:end]`.

    `restart` is the number of coded units between two restart markers, 0 without them.
    """

    components: tuple[int, ...]
    first: int
    last: int
    low: int
    restart: int
    start: int
    end: int


@dataclass
class Jpeg:
    """What the markers of a file say.

    Attributes:
        width: in pixels, as `height`.
        process: the code of the frame's marker; 0 if there is no frame.
        components: how many.
        sampling: a component's (horizontal, vertical) factors.
        transform: of the colours, by Adobe's segment: 0 for none, 1 for YCbCr; None without the segment.
        metadata: places in the file that no decoder needs.
        is_ended: whether the end marker is there.
    """

    width: int = 0
    height: int = 0
    process: int = 0
    components: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    transform: int | None = None
    scans: list[Scan] = field(default_factory=list)
    exif: bytes = b""
    metadata: list[tuple[int, int]] = field(default_factory=list)
    is_ended: bool = False

    @property
    def is_cmyk(self) -> bool:
        """Whether its colours are those of print."""
        return self.components == 4

    @property
    def is_progressive(self) -> bool:
        """Whether several scans send one coefficient."""
        return self.process in (_PROGRESSIVE, _ARITHMETIC_PROGRESSIVE)

    @property
    def is_usual(self) -> bool:
        """Whether decoders agree on its colours, and need no more than a pass: gray or YCbCr in one baseline scan."""
        if (
            self.process != _BASELINE
            or len(self.scans) != 1
            or self.components not in (1, 3)
            or len(self.sampling) != self.components
        ):
            return False
        luma, *chroma = self.sampling.values()
        halved = max(luma) <= 2 and all(factors == (1, 1) for factors in chroma)
        is_ycbcr = self.transform in (None, 1) and set(self.sampling) != set(b"RGB")
        return self.components == 1 or (halved and is_ycbcr)


def read_jpeg(data: bytes) -> Jpeg:
    """Read the markers of a file up to the end of its first picture; metadata in any state are stepped over.

    Raises:
        InvalidImageError: it has no frame, a segment before its pixels is cut short, or it has too many of a kind.
    """
    jpeg = Jpeg()
    try:
        _read_segments(data, jpeg)
    except IndexError as error:
        if not jpeg.scans:  # else there are pixels, though not all
            raise InvalidImageError("damaged JPEG header: a segment is cut short") from error
    if not jpeg.process:
        raise InvalidImageError("damaged JPEG header: it has no frame")
    if jpeg.components not in (1, 3, 4):
        raise InvalidImageError(f"damaged JPEG header: expected 1, 3 or 4 components, got {jpeg.components}")
    return jpeg


def _read_segments(data: bytes, jpeg: Jpeg) -> None:
    position, restart = len(b"\xff\xd8"), 0
    for _ in range(MAX_PARTS):
        match = _MARKER.search(data, position)
        if match is None:
            return
        start, marker = match.end(), data[match.end() - 1]
        if marker == _EOI or (marker == _SOI and jpeg.scans):  # or another picture
            jpeg.is_ended = marker == _EOI
            return
        if marker in _BARE:
            position = start
            continue
        position = start + max(_sixteen_bits(data, start), 2)
        body = data[start + 2 : position]
        if marker in _METADATA:
            _read_metadata(jpeg, marker, body, (match.start(), position))
        elif marker in _FRAMES and not jpeg.process:
            _read_frame(jpeg, marker, body)
        elif marker == _DRI:
            restart = _sixteen_bits(body, 0)
        elif marker == _SOS:
            scan = _read_scan(jpeg, body, restart, data, position)
            jpeg.scans.append(scan)
            position = scan.end
            if len(jpeg.scans) > _MAX_SCANS:
                raise InvalidImageError(f"damaged JPEG header: more than {_MAX_SCANS} scans")
    raise InvalidImageError(f"damaged JPEG header: more than {MAX_PARTS} segments")


def _sixteen_bits(data: bytes, start: int) -> int:
    return data[start] << 8 | data[start + 1]


def _read_metadata(jpeg: Jpeg, marker: int, body: bytes, place: tuple[int, int]) -> None:
    if marker == _APP1 and body.startswith(b"Exif\0") and not jpeg.exif:
        jpeg.exif = body
    name, length = _COLOURS.get(marker, (b"", None))
    if length is None or not body.startswith(name) or len(body) < length:
        jpeg.metadata.append(place)
    elif marker == _APP14:
        jpeg.transform = body[11]


def _read_frame(jpeg: Jpeg, marker: int, body: bytes) -> None:
    jpeg.process = marker
    jpeg.height, jpeg.width, jpeg.components = _sixteen_bits(body, 1), _sixteen_bits(body, 3), body[5]
    for start in range(6, 6 + 3 * jpeg.components, 3):
        jpeg.sampling[body[start]] = (max(body[start + 1] >> 4, 1), max(body[start + 1] & 15, 1))


def _read_scan(jpeg: Jpeg, body: bytes, restart: int, data: bytes, start: int) -> Scan:
    count = body[0]
    components = tuple(body[1 + 2 * index] for index in range(count))
    first, last, low = body[1 + 2 * count], body[2 + 2 * count], body[3 + 2 * count] & 15
    if not jpeg.is_progressive:
        first, last, low = 0, _COEFFICIENTS - 1, 0
        if count == jpeg.components:  # nothing follows but the end, which is found faster
            end = data.find(END, start)
            return Scan(components, first, last, low, restart, start, len(data) if end < 0 else end)
    match = _MARKER_BEHIND_SCAN.search(data, start)
    return Scan(components, first, last, low, restart, start, len(data) if match is None else match.start())


def without_metadata(data: bytes, jpeg: Jpeg) -> bytes:
    """Return a file with its pixels alone."""
    view, start = memoryview(data), 0
    kept = []
    for place, end in jpeg.metadata:
        kept.append(view[start:place])
        start = end
    return b"".join((*kept, view[start:]))


def fault(jpeg: Jpeg, data: bytes) -> str | None:
    """Return what the markers tell of data that are missing; None if they tell nothing.

    A decoder fills the gaps with gray, or with less detail, and says nothing: a JPEG has no checksums.
    """
    if not jpeg.is_ended:
        return "it is cut short, its end marker is missing"
    if any(_unsent(jpeg, component) for component in jpeg.sampling):
        return "it is cut short, scans are missing"
    if any(not _has_restart_markers(jpeg, scan, data) for scan in jpeg.scans if scan.restart):
        return "restart markers are missing"
    return None


def _unsent(jpeg: Jpeg, component: int) -> bool:
    """Return whether a coefficient of a component was not sent to its last bit."""
    sent = set[int]()
    for scan in jpeg.scans:
        if component in scan.components and not scan.low:
            sent.update(range(scan.first, scan.last + 1))
    return len(sent) < _COEFFICIENTS


def _has_restart_markers(jpeg: Jpeg, scan: Scan, data: bytes) -> bool:
    """Return whether the restart markers of a scan are all there and in turn."""
    missing = ceil(_coded_units(jpeg, scan) / scan.restart) - 1
    turn = 0
    for markers in _restart_markers(data, scan):
        markers = markers[:missing]
        if np.any(markers != (np.arange(turn, turn + len(markers)) % 8)):
            return False
        turn += len(markers)
        missing -= len(markers)
    return missing <= 0


def _restart_markers(data: bytes, scan: Scan) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the numbers, 0..7, of the restart markers of a scan, some at a time."""
    for start in range(scan.start, scan.end, _PIECE):
        piece = np.frombuffer(data, np.uint8, min(_PIECE + 1, scan.end - start), start)
        codes = piece[1:][piece[:-1] == 0xFF] - np.uint8(_RESTART)
        yield codes[codes < 8]


def _coded_units(jpeg: Jpeg, scan: Scan) -> int:
    across, down = (max(factors) for factors in zip(*jpeg.sampling.values(), strict=True))
    if len(scan.components) == 1:  # its units are blocks of its own resolution
        own_across, own_down = jpeg.sampling[scan.components[0]]
        own_width, own_height = ceil(jpeg.width * own_across / across), ceil(jpeg.height * own_down / down)
        return ceil(own_width / _BLOCK) * ceil(own_height / _BLOCK)
    return ceil(jpeg.width / (_BLOCK * across)) * ceil(jpeg.height / (_BLOCK * down))


def reaches_the_end(jpeg: Jpeg, data: bytes) -> bool:
    """Return whether the data of a Huffman-coded picture in one scan suffice for all coded units but the last few.

    It takes a decoding of its own, at an eighth of the size. Of other pictures nothing is known: True.
    """
    if jpeg.process not in (_BASELINE, _EXTENDED) or len(jpeg.scans) != 1:
        return True
    (scan,) = jpeg.scans
    if (_MARKER_BEHIND_SCAN if scan.restart else _MARKER).search(data, scan.start, scan.end):
        return False  # what stands there ends the scan
    # Without an end marker Pillow's decoder asks for more, and raises as there is no more, where libjpeg would fill.
    image = JpegImagePlugin.JpegImageFile(BytesIO(without_metadata(data[: scan.end], jpeg) + _LOOKAHEAD))
    image.draft(None, (1, 1))
    try:
        image.load()
    except OSError:
        return False
    return True
