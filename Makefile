# Everything runs from .venv, which the first target that needs it creates; `make` alone lists the targets.

HOST       ?= 127.0.0.1
PORT       ?= 8000
RECIPE     ?= tiny-imagenet-cpu
DATA       ?= data/tiny-imagenet-200
CHECKPOINT ?= runs/$(RECIPE)/checkpoint.safetensors
OUT        ?= artifacts/$(RECIPE)
ARGS       ?=

# The first of these that runs and is new enough. PyTorch has the most builds for the older ones.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

VENV    := .venv
BIN     := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# On all cores, where pip compiles one file after another. Templates that are no Python, which some packages have, do not matter.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# ONNX Runtime reports to its makers unless told not to, and where it cannot, waits 10 s for that when it ends.
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test test-fast lint types check format train export bench bench-http bench-introspection bench-gpu gpu-wheels install install-dev clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

serve: install ## serve the embedded model: HOST=127.0.0.1 PORT=8000, ARGS for any other flag
	$(BIN)/residuum serve --host $(HOST) --port $(PORT) $(ARGS)

test: install-dev ## run all tests; ARGS="-k batcher" for some
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-fast: install-dev ## run the tests that need no server, browser, export or training, within a minute
	$(BIN)/python -m pytest --fast -p no:schemathesis --numprocesses auto --dist worksteal $(ARGS)

lint: install-dev ## check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install-dev ## check types, strictly
	$(BIN)/mypy

check: lint types test ## what CI runs: lint, types and tests

format: install-dev ## format, and repair what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train: install-dev ## train: RECIPE=tiny-imagenet-cpu DATA=data/tiny-imagenet-200
	$(BIN)/residuum train $(RECIPE) --data $(DATA) $(ARGS)

export: install-dev ## checkpoint -> artifact: CHECKPOINT=runs/... OUT=artifacts/...
	$(BIN)/residuum export $(CHECKPOINT) -o $(OUT) $(ARGS)

bench: install-dev ## measure engines and HTTP on this machine
	$(BIN)/residuum bench $(ARGS)

bench-http: install-dev ## measure the server beside its peers; needs wrk, makes .venv-peers, takes 12 minutes
	$(BIN)/python -m benchmarks.http $(ARGS)

bench-introspection: install-dev ## measure introspection beside captum, grad-cam and TorchLens; makes .venv-introspection-peers
	$(BIN)/python -m benchmarks.introspection $(ARGS)

# With .venv where there is one, else with the machine's Python: one that is lent for an hour has torch, and no network.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
WHEELS     ?= gpu-wheels

bench-gpu: ## measure everything on a machine with an NVIDIA GPU: ARGS="--wheels FOLDER --out FILE", takes 8 minutes
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

gpu-wheels: ## fetch what such a machine lacks, as wheels in pieces: WHEELS=gpu-wheels ARGS="--piece-mb 20"
	$(GPU_PYTHON) -m benchmarks.gpu_wheels $(WHEELS) $(ARGS)

install: $(VENV)/.installed ## create .venv with what serving needs, and no torch

install-dev: $(VENV)/.installed-dev ## the same with training, export, tests and tools

clean: ## remove .venv, caches and builds; runs/ and artifacts/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A file, not the folder: a venv that was left half made has no pip, and is made again.
$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Residuum needs Python 3.11 or newer: none found, name one with make PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Residuum needs Python 3.11 or newer; PYTHON=$(PYTHON) is none" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[openvino]'
	$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	$(COMPILE)
	@touch $@ $(VENV)/.installed
