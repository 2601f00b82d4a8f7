"""The C++ tests of `plugin_src`: built here, run here, and what the linker made of the plugin."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from builder.operators.cuda import find_nvcc

SOURCES = Path(__file__).parents[2] / "plugin_src"


def run(*command, **options):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_query_is_worked_on_once(tmp_path):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    run(
        "g++",
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        tmp_path / "test",
        SOURCES / "test/query_tiles_test.cpp",
    )
    assert run(tmp_path / "test").endswith(" passed, 0 failed\n")


@pytest.fixture(scope="module")
def build_folder(tmp_path_factory):
    headers = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not headers:
        pytest.skip("TENSORRT_INCLUDE_DIR is not set: the plugin was not compiled and its test host was skipped")
    # Who names the headers wants the plugin tested: without cmake or nvcc that fails.
    folder = tmp_path_factory.mktemp("plugin")
    settings = (f"-DTENSORRT_INCLUDE_DIR={headers}", f"-DCODETR_NVCC={find_nvcc()}", "-DCODETR_ARCHITECTURES=80;90")
    run("cmake", "-S", SOURCES, "-B", folder, *settings)
    run("cmake", "--build", folder, "-j2")
    return folder


def host_environment(folder):
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder / 'test'}:{os.environ.get('LD_LIBRARY_PATH', '')}"}


def host_output(folder):
    return run(folder / "plugin_host", folder / "libcodetr_plugin.so", env=host_environment(folder))


def test_plugin_is_driven_as_tensorrt_would(build_folder):
    assert host_output(build_folder).endswith(" passed, 0 failed\n")


def test_a_preloaded_plugin_registers_itself(build_folder):
    environment = host_environment(build_folder)
    without = subprocess.run([build_folder / "plugin_host"], capture_output=True, env=environment, check=False)
    assert without.returncode == 1  # nothing has registered it
    library = str(build_folder / "libcodetr_plugin.so")
    assert run(build_folder / "plugin_host", env={**environment, "LD_PRELOAD": library}).startswith("ok ")


@pytest.mark.gpu
def test_enqueue_agrees_with_float64(build_folder):
    assert "enqueue was run" in host_output(build_folder)


def test_plugin_depends_on_libnvinfer_and_the_system_alone(build_folder):
    lines = run("readelf", "-d", build_folder / "libcodetr_plugin.so").splitlines()
    needed = {line.split("[")[1].rstrip("]").split(".so")[0] for line in lines if "(NEEDED)" in line}
    assert "libnvinfer" in needed
    assert needed <= {
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


def test_plugin_exports_its_creators_and_nothing_of_cuda(build_folder):
    symbols = run("nm", "-D", "--defined-only", "-C", build_folder / "libcodetr_plugin.so")
    assert " T getCreators" in symbols
    assert " cuda" not in symbols
