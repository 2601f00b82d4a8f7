# Targets a user needs: `make demo` shows the service at work, `make test` checks everything that runs without a GPU.
# PYTHON picks the interpreter (3.10-3.12); PIP_FLAGS is passed to every pip install, for example an index of
# PyTorch's CPU builds.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
# The client is tried alone, on the newest Python of its own range that can make an environment.
CLIENT_PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.10 $(PYTHON); do \
	$$p -c 'import ensurepip, venv' 2>/dev/null && echo $$p && break; done)
CLIENT_VENV := .venv-client
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
TRITON := .triton/pytriton
MMENGINE := build/mmengine

# Tests build each engine once and leave it here for the tests that serve it.
export CODETR_TEST_BUILDS := build/tests
# WORKERS processes of one thread each: one for the tests of a server, which mostly wait, the others for the rest.
WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := $(PYTEST) -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: audit help demo test test-fast test-all fuzz lint lint-models lint-kernels format plugin clean setup

setup: $(VENV)/.installed $(CLIENT_VENV)/.installed $(TRITON)/.installed ## create .venv, one for the client alone, and fetch tritonserver and perf_analyzer, once

$(VENV)/.installed: pyproject.toml constraints.txt clients/pyproject.toml hatch_build.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10, 3.11 or 3.12 found; install one or run make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ./clients -e ".[dev]"
	@touch $@

$(CLIENT_VENV)/.installed: clients/pyproject.toml
	test -x $(CLIENT_VENV)/bin/python || $(CLIENT_PYTHON) -m venv $(CLIENT_VENV)
	$(CLIENT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) "numpy>=2" hatchling ./clients
	@touch $@

$(TRITON)/.installed: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --upgrade --target $(TRITON) nvidia-pytriton==0.7.0
	$(BIN)/codetr bench install-perf-analyzer --folder .triton/perf_analyzer
	@touch $@

# mmengine's packages for tests that read what it writes, apart because it asks for another OpenCV.
$(MMENGINE)/.installed: tests/mmengine_runner/requirements.txt | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --upgrade --target $(MMENGINE) -r $<
	@touch $@

# The plugin's tests load it into registries of real TensorRTs, which work without a GPU: of the lean runtimes for
# headers of 10 and 11. 8.5's whole wheel is 549 MB and is fetched by its name only.
INSTALL_TENSORRT = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-deps --upgrade --target $(@D)

build/tensorrt-lean-11/.installed: | $(VENV)/.installed
	$(INSTALL_TENSORRT) tensorrt-lean-cu13-libs==11.4.0.106 tensorrt-lean-cu13-bindings==11.4.0.106
	@touch $@

build/tensorrt-lean-10/.installed: | $(VENV)/.installed
	$(INSTALL_TENSORRT) tensorrt-lean-cu12-libs==10.16.1.11 tensorrt-lean-cu12-bindings==10.16.1.11
	@touch $@

# TensorRT-RTX parses ONNX and builds without a GPU, as TensorRT does not.
build/tensorrt-rtx/.installed: | $(VENV)/.installed
	$(INSTALL_TENSORRT) tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
	@touch $@

build/tensorrt-8.5/.installed: | $(VENV)/.installed
	$(INSTALL_TENSORRT) --only-binary=:all: --python-version 3.10 tensorrt==8.5.3.1
	@touch $@

demo: setup ## build, serve and detect: writes runs/demo/
	$(BIN)/codetr demo --output runs/demo

# TENSORRT_INCLUDE_DIR names the folder of NvInfer.h, for tests also several, separated by colons; NVCC a compiler that
# is not on PATH: plugin_src/README.md
NVCC ?=
TENSORRT_INCLUDE_DIR ?=
TENSORRT_VERSIONS := $(wildcard $(addsuffix /NvInferVersion.h,$(subst :, ,$(TENSORRT_INCLUDE_DIR))))
TENSORRT_MAJORS := $(if $(TENSORRT_VERSIONS),$(shell sed -nE 's/^.define (NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) ([0-9]+).*/\2/p' $(TENSORRT_VERSIONS)))
TENSORRTS := $(if $(TENSORRT_VERSIONS),build/tensorrt-rtx/.installed) $(patsubst %,build/tensorrt-lean-%/.installed,$(filter 10 11,$(TENSORRT_MAJORS)))

test: setup $(MMENGINE)/.installed $(TENSORRTS) ## what needs no GPU, end to end on a real tritonserver
	rm -rf $(CODETR_TEST_BUILDS)
	$(PARALLEL) -m "not gpu and not slow"

test-fast: setup ## no server and no engines: a minute or two, while developing
	$(PARALLEL) -m "not gpu and not slow and not server and not engine"

test-all: test ## what takes minutes too: networks of full size, training
	$(PYTEST) -m "slow and not gpu"

# Where the counts go, and how many files: of each format in processes, in all through a server.
FUZZ_OUTPUT ?= runs/bench/fuzz
FUZZ_FILES ?= 26000
FUZZ_REQUESTS ?= 5400

fuzz: setup ## hostile images: 104,000 in processes, 5,400 through a real server, counted; a quarter of an hour
	OMP_NUM_THREADS=1 nice $(BIN)/codetr bench fuzz --files $(FUZZ_FILES) --requests $(FUZZ_REQUESTS) --output $(FUZZ_OUTPUT)

# Kernels, plugin, operator, and the programs in C++; the second list is what a host compiler can read without TensorRT and PyTorch.
KERNELS := $(wildcard plugin_src/*.h plugin_src/*.cuh plugin_src/*.cu plugin_src/*.cpp plugin_src/test/*.h plugin_src/test/*.cpp) perf/operator/plain.cu
PROGRAMS := $(wildcard plugin_src/runner/*.cpp plugin_src/runner/*.hpp plugin_src/runner/test/*.cpp clients/cpp/src/*.cpp clients/cpp/src/*.hpp clients/cpp/include/codetr/*)
PLAIN_CPP := $(addprefix plugin_src/test/,interface_host.cpp query_tiles_test.cpp locate_test.cpp schedule_test.cpp post_attention_work_test.cpp)

lint: setup lint-models lint-kernels ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each file of a model is a module `model`, of which mypy reads one at a time.
lint-models: setup
	@for file in model_repository/*/1/*.py; do $(BIN)/mypy --no-error-summary $$file || exit 1; done

lint-kernels: setup
	$(BIN)/clang-format --dry-run --Werror $(KERNELS) $(PROGRAMS)
	$(BIN)/clang-tidy --quiet $(PLAIN_CPP) -- -std=c++17

format: setup
	$(BIN)/clang-format -i $(KERNELS) $(PROGRAMS)
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

# pip-audit brings packages in other versions than ours, so it lies apart. Strict, because a package that its service
# does not tell of would pass otherwise.
AUDIT := build/audit

$(AUDIT)/.installed: | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --upgrade --target $(AUDIT) pip-audit==2.10.1
	@touch $@

audit: $(AUDIT)/.installed ## known weaknesses of the packages that setup installs; asks a service on the internet
	PYTHONPATH=$(AUDIT) $(BIN)/python -m pip_audit --requirement constraints.txt --no-deps --disable-pip --strict

plugin: ## the TensorRT plugin, build/plugin/libcodetr_plugin.so, and its tests
	@test -f "$(TENSORRT_INCLUDE_DIR)/NvInfer.h" || { echo "error: pass TENSORRT_INCLUDE_DIR=<folder of NvInfer.h>; plugin_src/README.md says where it comes from" >&2; exit 1; }
	cmake -S plugin_src -B build/plugin -DTENSORRT_INCLUDE_DIR="$(abspath $(TENSORRT_INCLUDE_DIR))" $(if $(NVCC),-DCODETR_NVCC="$(NVCC)")
	cmake --build build/plugin --parallel 2
	ctest --test-dir build/plugin --output-on-failure

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 14

clean: ## remove what make created; results in runs/ other than the demos' stay
	rm -rf $(VENV) $(CLIENT_VENV) .triton build runs/demo runs/demo-*
