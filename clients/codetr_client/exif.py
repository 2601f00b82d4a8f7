"""The orientation in EXIF metadata, the only metadata that decides about pixels."""

from __future__ import annotations

import struct

_PREFIX = b"Exif\0\0"  # of a JPEG's segment; some programs write it into PNG and WebP too
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION = 0x0112  # the tag
_ENTRY_BYTES = 12


def read_orientation(exif: bytes) -> int:
    """Return the orientation, 1..8 of EXIF 2.3 section 4.6.4, in the first directory of a TIFF structure.

    What cannot be read is upright, 1: broken metadata do not make the pixels unusable. The value is read as OpenCV
    reads it, as 16 bits whatever type its entry claims.
    """
    tiff = exif.removeprefix(_PREFIX)
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + count * _ENTRY_BYTES, _ENTRY_BYTES):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it points outside
        pass
    return 1
