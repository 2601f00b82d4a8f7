"""The C++ tests of `plugin_src`: built here, run here, and what the linker made of the plugin.

`TENSORRT_INCLUDE_DIR` names the folder of `NvInfer.h`, or several, separated by colons: every test of the plugin runs
with each of them.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.operators.cuda import find_nvcc
from serving.contract import PLUGIN_LIBRARY
from tests.plugin_src.host import OPTIONS, compiler

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "plugin_src"
HEADERS = [folder for folder in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if folder]


@dataclass(frozen=True)
class RealTensorRT:
    """A TensorRT whose registry works without a GPU: where `make` puts it, its library, and its Python bindings."""

    folder: Path
    library: str
    bindings: str | None = None  # those of 8.5 want cuDNN


# By the headers' release. Releases in between have none that a package index carries.
REAL = {
    "11": RealTensorRT(
        ROOT / "build/tensorrt-lean-11", "tensorrt_lean_libs/libnvinfer_lean.so.11", "tensorrt_lean_bindings"
    ),
    "10": RealTensorRT(
        ROOT / "build/tensorrt-lean-10", "tensorrt_lean_libs/libnvinfer_lean.so.10", "tensorrt_lean_bindings"
    ),
    "8.5": RealTensorRT(ROOT / "build/tensorrt-8.5", "tensorrt/libnvinfer.so.8"),
}


@dataclass(frozen=True)
class Built:
    """A build folder of the plugin, and the release of the headers it was built with."""

    folder: Path
    major: int
    minor: int

    @property
    def library(self):
        return self.folder / PLUGIN_LIBRARY

    @property
    def real(self):
        """The real TensorRT of the headers' release; skips where there is none."""
        real = REAL.get(str(self.major)) or REAL.get(f"{self.major}.{self.minor}")
        if real is None:
            pytest.skip(f"no package index carries a TensorRT {self.major}.{self.minor} whose registry can be asked")
        if not (real.folder / real.library).is_file():
            folder = real.folder.relative_to(ROOT)
            pytest.skip(f"no TensorRT in {folder}; make {folder}/.installed fetches it")
        return real


def run(*command, **options):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("query_tiles_test", id="every query is worked on once"),
        pytest.param("locate_test", id="corners and weights are those of bilinear interpolation"),
        pytest.param("schedule_test", id="a launch's layout is made once for a shape"),
        pytest.param("post_attention_work_test", id="every row is in the share of one cluster"),
    ],
)
def test_what_needs_no_gpu_of_the_kernel(program, tmp_path):
    compiler(*OPTIONS, "-O2", "-pthread", "-o", tmp_path / "test", SOURCES / f"test/{program}.cpp")
    assert run(tmp_path / "test").endswith(" passed, 0 failed\n")


@pytest.fixture(scope="module")
def kernels():
    """The folder of the first build, whose compiled kernels serve the others."""
    return []


@pytest.fixture(scope="module", params=HEADERS or [""], ids=lambda folder: folder or "no headers")
def built(request, kernels, tmp_path_factory):
    headers = request.param
    if not headers:
        pytest.skip("TENSORRT_INCLUDE_DIR is not set: the plugin was not compiled and its test host was skipped")
    # Who names the headers wants the plugin tested: without cmake or nvcc that fails.
    folder = tmp_path_factory.mktemp("plugin")
    settings = [f"-DTENSORRT_INCLUDE_DIR={headers}", f"-DCODETR_NVCC={find_nvcc()}", "-DCODETR_ARCHITECTURES=80;90"]
    settings += [f"-DCODETR_KERNELS={path}" for path in kernels]
    run("cmake", "-S", SOURCES, "-B", folder, *settings, "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")
    run("cmake", "--build", folder, "-j2")
    kernels[:] = kernels or [folder]
    asked = ("g++", "-E", "-P", "-x", "c++", "-I", headers, "-include", "NvInferVersion.h", "-")
    release = run(*asked, input="NV_TENSORRT_MAJOR NV_TENSORRT_MINOR").split()
    return Built(folder, *map(int, release))


@pytest.fixture
def real_nvinfer(built, tmp_path):
    """A folder with the real TensorRT under the name that the plugin asks for."""
    (tmp_path / f"libnvinfer.so.{built.major}").symlink_to(built.real.folder / built.real.library)
    return tmp_path


def with_libraries(folder):
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


def host_output(built, libraries):
    output = run(built.folder / "plugin_host", built.library, env=with_libraries(libraries))
    assert output.startswith(f"registry of {libraries}/libnvinfer.so.{built.major}\n")
    return output


def check_preloading(built, libraries):
    environment = with_libraries(libraries)
    without = subprocess.run([built.folder / "plugin_host"], capture_output=True, env=environment, check=False)
    assert without.returncode != 0  # nothing has registered it
    output = run(built.folder / "plugin_host", env={**environment, "LD_PRELOAD": str(built.library)})
    assert "ok   a preloaded library has registered its creators\n" in output


def test_plugin_is_driven_as_tensorrt_would(built):
    assert host_output(built, built.folder / "test").endswith(" passed, 0 failed\n")


def test_a_preloaded_plugin_registers_itself(built):
    check_preloading(built, built.folder / "test")


def test_plugin_is_taken_by_a_real_registry(built, real_nvinfer):
    assert host_output(built, real_nvinfer).endswith(" passed, 0 failed\n")


def test_a_preloaded_plugin_is_in_a_real_registry(built, real_nvinfer):
    check_preloading(built, real_nvinfer)


def test_plugin_is_taken_by_a_real_registry_of_python(built, real_nvinfer):
    """`load_library`, as Python programs and trtexec's --dynamicPlugins call it, in a process of its own."""
    if built.real.bindings is None:
        pytest.skip(f"the Python bindings of TensorRT {built.major}.{built.minor} want cuDNN")
    environment = {**with_libraries(real_nvinfer), "PYTHONPATH": str(built.real.folder)}
    script = Path(__file__).with_name("registry_runner.py")
    assert run(sys.executable, script, built.real.bindings, built.library, env=environment).splitlines() == [
        "before: no, no",
        "loaded: yes, yes",
        "build phase: made, made; runtime phase: made, made",
        "one size missing: refused, zero columns: refused, float sizes: refused, another name: refused",
        "window of 8: refused, shift of 7: refused, two sizes: refused, no shift: refused",
        "loaded again: no, still there: yes, yes",
        "unloaded: no, no",
        "reloaded: yes, yes",
        "build phase: made, made; runtime phase: made, made",
    ]


@pytest.mark.gpu
def test_enqueue_agrees_with_float64(built):
    assert "enqueue was run" in host_output(built, built.folder / "test")


def test_plugin_depends_on_libnvinfer_and_the_system_alone(built):
    lines = run("readelf", "-d", built.library).splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line}
    assert f"libnvinfer.so.{built.major}" in needed
    assert {name.split(".so")[0] for name in needed} <= {
        "libnvinfer",
        "libstdc++",
        "libgcc_s",
        "libm",
        "libc",
        "ld-linux-x86-64",
        "libpthread",
        "libdl",
        "librt",
    }


def test_plugin_exports_its_creators_and_nothing_of_cuda(built):
    symbols = run("nm", "-D", "--defined-only", "-C", built.library)
    assert (" T getCreators" if built.major >= 10 else " T getPluginCreators") in symbols
    assert " cuda" not in symbols
