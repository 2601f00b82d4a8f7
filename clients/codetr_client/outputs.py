"""Where results may go: a source is never overwritten, nor is a file that no earlier run wrote."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from codetr_client.errors import CodetrError

JPEG_QUALITY = 92  # of the annotated pictures: no visible loss
# The JPEG comment by which a picture of an earlier run is known again, wherever it lies: these words and a checksum
# of the file. Programs that change a picture keep its comment, and a changed picture is no longer ours. The C++ client
# has the same.
MARK = b"annotated by codetr "
_NO_CHECKSUM = b"00000000"  # what stands there while it is computed
_MARK_WITHIN = 64  # Pillow writes the comment behind the JFIF segment of 20 bytes
_JPEG_SIDE = 65_500  # pixels, the most that libjpeg writes (JPEG_MAX_DIMENSION); an accepted image may have 35 more
_STEM_BYTES = 240  # of a name's 255, which leaves room for a number and the suffix

_Identity = tuple[int, int]


def is_own_picture(path: Path) -> bool:
    """Return whether `path` is a picture that `save_picture` wrote."""
    if path.suffix.lower() != ".jpg" or path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_MARK_WITHIN)
            if not start.startswith(b"\xff\xd8") or MARK not in start:
                return False
            content = start + file.read()
    except OSError:
        return False
    at = content.index(MARK) + len(MARK)
    end = at + len(_NO_CHECKSUM)
    return content[at:end] == _checksum(content[:at] + _NO_CHECKSUM + content[end:])


def _checksum(content: bytes) -> bytes:
    return f"{zlib.adler32(content):08x}".encode()


def plan_pictures(output: Path, stems: Sequence[str], sources: Iterable[Path]) -> list[Path]:
    """Return a path in `output` for each picture: `stem.jpg`, or `stem-2.jpg` and so on where that is not free.

    Taken are the names of other pictures of this run (whatever their case), of `sources`, of links, and of every file
    that no earlier run wrote. Pictures of earlier runs are overwritten.
    """
    kept, taken, planned = _identities(sources), set[str](), []
    for stem in map(_shortened, stems):
        picture, count = output / f"{stem}.jpg", 1
        while picture.name.casefold() in taken or not _is_free(picture, kept):
            count += 1
            picture = output / f"{stem}-{count}.jpg"
        taken.add(picture.name.casefold())
        planned.append(picture)
    return planned


def _shortened(stem: str) -> str:
    while len(os.fsencode(stem)) > _STEM_BYTES:
        stem = stem[:-1]
    return stem


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as JPEG with the mark of this project, whole or not at all.

    What is larger than a JPEG can be is made smaller.
    """
    buffer = io.BytesIO()
    if max(picture.size) > _JPEG_SIDE:
        width, height = (min(side, _JPEG_SIDE) for side in picture.size)
        picture = picture.resize((width, height))
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, comment=MARK + _NO_CHECKSUM)
    content = buffer.getvalue()
    write_whole(path, content.replace(MARK + _NO_CHECKSUM, MARK + _checksum(content), 1))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside `path` and rename it; what `path` was, a link too, is replaced and not written through.

    Raises:
        CodetrError: it cannot be written; `path` is as it was.
    """
    # By a number, because the name itself can have all the bytes that a name may have.
    partial = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a run that was killed
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    except OSError as error:
        raise CodetrError(f"cannot write {path}: {error.strerror}; free its disk or name another folder") from error
    finally:
        partial.unlink(missing_ok=True)


def check_folder(output: Path) -> None:
    """Check that results could go to the folder `output`, before anything that takes time; it is not made.

    Raises:
        CodetrError: it is a file or lies in one, or nothing may be written there.
    """
    if any(os.path.lexists(path) and not path.is_dir() for path in (output, *output.parents)):
        raise CodetrError(f"output {output}: it is a file or lies in one; expected a folder, name another")
    existing = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CodetrError(f"output {output}: nothing can be written in {existing}; name another folder")


def make_folder(output: Path) -> None:
    """Make the folder that results go to.

    Raises:
        CodetrError: it is a file, or cannot be made or written.
    """
    check_folder(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CodetrError(f"output {output}: cannot be made ({error.strerror}); name another folder") from error


def refuse_overwriting(outputs: Iterable[Path], sources: Iterable[Path | None]) -> None:
    """Check that none of the `outputs` is one of the `sources`, whatever they are called.

    Raises:
        CodetrError: one is; names it.
    """
    kept = _identities(source for source in sources if source is not None)
    for output in outputs:
        if _identity(output) in kept:
            raise CodetrError(f"{output} would be overwritten, but it is read: expected another output; name another")


def refuse_inside(folders: Iterable[Path], sources: Iterable[Path | None]) -> None:
    """Check that none of the `sources` lies in, or is, one of the `folders`, which are about to be replaced.

    Raises:
        CodetrError: one does; names both.
    """
    replaced = [folder.resolve() for folder in folders]
    for source in sources:
        for folder in replaced:
            if source is not None and source.exists() and source.resolve().is_relative_to(folder):
                raise CodetrError(f"{source} lies in {folder}, which is replaced; move it away, or name another output")


def _is_free(path: Path, kept: set[_Identity]) -> bool:
    return not os.path.lexists(path) or (is_own_picture(path) and _identity(path) not in kept)


def _identities(paths: Iterable[Path]) -> set[_Identity]:
    return {identity for path in paths if (identity := _identity(path)) is not None}


def _identity(path: Path) -> _Identity | None:
    """Return what is the same for every name of one file; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
