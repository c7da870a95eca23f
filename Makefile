# Everything runs from the checkout's own environment, .venv; `make env` builds it from the pins in requirements/cpu.lock.
# On GPUs that is .venv-gpu, beside it: `make env-gpu`, from requirements/gpu.lock.
# NeMo-Run has another, .venv-launch, since it conflicts with vLLM's pins: `make env-launch`, from requirements/launch.lock.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LAUNCH := .venv-launch
GPU := .venv-gpu
# Where torch's build for CPUs is taken from when pip's configured index lacks it, as the public one does.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# 1 to make the GPU environment on a machine without GPUs, as where a container's image is built.
WITHOUT_GPU ?=
GPU_MACHINE := requirements/gpu_machine.py $(if $(WITHOUT_GPU),--without-gpu)
FIND_PYTHON := command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or call make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null || \
	{ echo "error: $(PYTHON) is not Python 3.11, which the pins are for; call make PYTHON=/path/to/python3.11" >&2; exit 1; }
PYTEST := $(BIN)/python -m pytest
# Workers that share the tests: more than a laptop's two cores, since servers and clusters are waited for. 0 runs them in one process.
# Groups that must not run side by side: tests/conftest.py.
WORKERS ?= 3
PARALLEL := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

BENCH := build/benchmarks

.PHONY: help env env-gpu env-launch gpu-lock quickstart comparison smollm2 test test-fast bench lint docs clean
help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(STAMP) ## the environment: pinned, a few minutes the first time, nothing afterwards

$(STAMP): requirements/cpu.lock setup.py
	@$(FIND_PYTHON)
	@echo "1/3 making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3 installing the pinned packages (a few minutes, 4 GB)"
	@# --no-deps: the lock file is complete; it leaves out what vLLM's CPU build names but cannot load (torchvision and friends).
	@$(BIN)/python requirements/install.py requirements/cpu.lock --local-index $(TORCH_CPU_INDEX)
	@echo "3/3 installing this checkout"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

env-gpu: $(GPU)/.installed ## the same for GPUs, in .venv-gpu: CUDA 13, Transformer Engine; a driver of 580 or newer, or WITHOUT_GPU=1

$(GPU)/.installed: requirements/gpu.lock setup.py
	@$(FIND_PYTHON)
	@echo "1/5 checking the machine"
	@$(PYTHON) $(GPU_MACHINE) before
	@echo "2/5 making $(GPU)"
	@$(PYTHON) -m venv $(GPU)
	@echo "3/5 installing the pinned packages (ten minutes, some 10 GB)"
	@# --no-deps: the lock file is complete.
	@$(GPU)/bin/python requirements/install.py requirements/gpu.lock --without transformer-engine-torch
	@echo "4/5 building transformer_engine_torch against them (some minutes; MAX_JOBS limits the compilers)"
	@$(GPU)/bin/python $(GPU_MACHINE) toolkit
	@# With the packages' CUDA, whatever toolkit the machine has. --no-cache-dir: what lies there may be built against another torch.
	@env -u CUDA_HOME NVTE_BUILD_USE_NVIDIA_WHEELS=1 $(GPU)/bin/python requirements/install.py requirements/gpu.lock \
		--only transformer-engine-torch --no-build-isolation --no-cache-dir --verbose
	@echo "5/5 installing this checkout, and looking at what it sees"
	@$(GPU)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(GPU)/bin/python $(GPU_MACHINE) after
	@touch $@

gpu-lock: env ## requirements/gpu.lock anew, from setup.py and requirements/cpu.lock
	@$(BIN)/python requirements/lock.py

env-launch: $(LAUNCH)/.installed ## NeMo-Run's own environment, for `python -m recipes.launch`; two minutes the first time

$(LAUNCH)/.installed: requirements/launch.lock
	@$(FIND_PYTHON)
	@echo "installing NeMo-Run into $(LAUNCH) (two minutes, 600 MB)"
	$(PYTHON) -m venv $(LAUNCH)
	@# --no-deps: the lock file is complete. There is no torch in it: whoever submits jobs needs none.
	@$(LAUNCH)/bin/python requirements/install.py requirements/launch.lock
	@# The checkout itself, which NeMo-Run's own commands import too.
	@$(LAUNCH)/bin/python -c 'import site; open(site.getsitepackages()[0] + "/checkout.pth", "w").write("$(CURDIR)\n")'
	@touch $@

quickstart: env ## train the tiny model end to end on the real stack, then say where the report is
	$(BIN)/megatron-entropic train quickstart --overwrite
	@echo "against plain GRPO: make comparison  (trains the same without control, a minute or two, and draws both in one page)"

comparison: env ## the quickstart's run beside one of plain GRPO, in one page; trains the quickstart first where it has not run
	@test -f runs/quickstart/report.html || $(BIN)/megatron-entropic train quickstart --overwrite
	$(BIN)/megatron-entropic train quickstart run.name=quickstart-grpo control.kind=none --overwrite
	$(BIN)/megatron-entropic report runs/quickstart --compare runs/quickstart-grpo

smollm2: env ## SmolLM2-135M-Instruct, a small pretrained model, under models/: for `megatron-entropic train smollm2_135m`
	$(BIN)/python -m recipes.smollm2

test: env ## the whole suite, with real vLLM servers
	$(PYTEST) tests $(PARALLEL)

test-fast: env ## the part that needs no servers and no patience
	$(PYTEST) tests $(PARALLEL) -m "not slow and not vllm"

bench: $(BENCH)/.installed ## token statistics beside verl, Liger-Kernel and Megatron-Core
	PYTHONPATH=$(BENCH) $(BIN)/python -m benchmarks.token_statistics --repeats 5 --json $(BENCH)/token_statistics.json

$(BENCH)/.installed: requirements/benchmarks.lock $(STAMP)
	@echo "installing the pinned competitors into $(BENCH), outside the environment (300 MB)"
	rm -rf $(BENCH)
	@$(BIN)/python requirements/install.py requirements/benchmarks.lock --target $(BENCH)
	@touch $@

lint: env ## ruff, mypy, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: env ## the pages as a site under build/site, with the settings page made from the code
	$(BIN)/megatron-entropic settings --markdown > docs/settings.md
	$(BIN)/mkdocs build --quiet --strict

clean: ## remove the environment and every cache; runs/ stays
	rm -rf $(VENV) $(GPU) $(LAUNCH) $(BENCH) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
