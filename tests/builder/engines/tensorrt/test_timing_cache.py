import os

import pytest

from builder.engines import EngineError
from builder.engines.tensorrt import timing_cache

# What a wrong path may lead to.
FOREIGN = {
    "text": b"precious\n",
    "pickle": b"\x80\x02}q\x00.",
    "zip": b"PK\x03\x04",
    "a plan": b"ftrt\x00\x00",
    "trtexec's own": bytes(range(64)),
    "almost": timing_cache.MARK[:-2],
}


def test_timings_are_handed_to_tensorrt_and_kept(tmp_path):
    path = tmp_path / "cache"
    for before, after in ((None, b"one"), (b"one", b"one two"), (b"one two", b"")):
        with timing_cache.unpacked(path) as file:
            assert (file.read_bytes() if file.exists() else None) == before
            file.write_bytes(after)
        assert path.read_bytes() == timing_cache.MARK + after
        assert not file.exists()
    assert os.listdir(tmp_path) == ["cache"]


def test_an_empty_file_may_become_a_cache_and_without_one_there_is_none(tmp_path):
    (tmp_path / "cache").touch()
    timing_cache.check(tmp_path / "cache")
    with timing_cache.unpacked(tmp_path / "cache") as file:
        assert file.read_bytes() == b""
        file.unlink()  # TensorRT left nothing
    assert (tmp_path / "cache").read_bytes() == b""
    with timing_cache.unpacked(None) as file:
        assert file is None


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_file_is_refused_and_stays(tmp_path, kind):
    path = tmp_path / "cache"
    path.write_bytes(FOREIGN[kind])
    for refuse in (lambda: timing_cache.check(path), lambda: timing_cache.unpacked(path).__enter__()):
        with pytest.raises(EngineError, match="it is no file of an earlier build's timings, and would be replaced"):
            refuse()
    assert path.read_bytes() == FOREIGN[kind]


@pytest.mark.parametrize("left", [b"one, half of two", None])
def test_a_build_that_ends_early_keeps_its_timings(tmp_path, left):
    path = tmp_path / "cache"
    path.write_bytes(timing_cache.MARK + b"one")

    def build():
        with timing_cache.unpacked(path) as file:
            if left:
                file.write_bytes(left)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert path.read_bytes() == timing_cache.MARK + (left or b"one")
    assert os.listdir(tmp_path) == ["cache"]


@pytest.mark.parametrize("place", ["folder", "none/cache", "file/cache", "loop"])
def test_a_place_that_cannot_be_a_file_is_refused(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(EngineError, match=r"^timing cache .*name another"):
        timing_cache.check(tmp_path / place)
