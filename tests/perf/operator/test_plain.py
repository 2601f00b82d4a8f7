import pytest

from builder.cache import CACHE_VARIABLE
from builder.operators.cuda import HEADERS, CudaOperatorError
from perf.operator import plain
from plugin_src import SOURCES


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A GPU to build for, and an empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(plain, "architecture", lambda: "90")
    plain.load_plain_kernel.cache_clear()
    yield tmp_path
    plain.load_plain_kernel.cache_clear()


def compiler_of(tmp_path, monkeypatch, script):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n{script}\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(plain, "find_nvcc", lambda: compiler)


def test_it_is_built_once_for_the_gpu_at_hand_and_kept(machine, monkeypatch):
    source = machine / "a.c"
    source.write_text("int codetrMsDeformAttnPlain(void* call, void* stream) { return call == stream ? 7 : 0; }\n")
    build = f'while [ "$1" != -o ]; do shift; done; gcc -shared -fPIC {source} -o "$2"'
    compiler_of(machine, monkeypatch, build)
    assert plain.load_plain_kernel()(None, None) == 7
    plain.load_plain_kernel.cache_clear()
    assert plain.load_plain_kernel()(None, None) == 7
    (called,) = (machine / "called").read_text().splitlines()
    assert "-gencode=arch=compute_90,code=sm_90" in called
    assert called.endswith(str(plain.SOURCE))
    (kept,) = (machine / "cache").iterdir()
    assert kept.name.startswith("libcodetr_plain_sm90_")


def test_a_failed_build_is_told_and_leaves_nothing(machine, monkeypatch):
    compiler_of(machine, monkeypatch, "echo 'plain.cu(1): error: no' >&2; exit 1")
    with pytest.raises(CudaOperatorError, match=r"nvcc failed: plain.cu\(1\): error: no"):
        plain.load_plain_kernel()
    assert list((machine / "cache").iterdir()) == []


def test_every_header_that_a_kernel_includes_tells_builds_apart():
    included = {
        name
        for file in [plain.SOURCE, *(SOURCES / name for name in HEADERS), SOURCES / "ms_deform_attn.cu"]
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith('#include "')
        for name in [line.split('"')[1]]
    }
    assert included <= set(HEADERS)
