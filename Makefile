# `make demo` and `make test` set everything up on a machine that has only Python 3.11, pip, gcc and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench bench-gpu clean

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): torch alone is several GB, this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,data,metrics,timm,hf,export]' tensorboard
	touch $@

# Trains GMM-ViT and the plain ViT on the digits, prints both accuracies and the path of the report.
demo: $(READY)
	$(BIN)/gmmvit train --recipe digits --mask gmm --out runs/demo --overwrite
	$(BIN)/gmmvit train --recipe digits --mask none --out runs/demo-none --overwrite
	@echo; echo "On the 360 held-out digits (one image is 0.28 %; README has means over seeds), best and last epoch:"
	@echo "GMM-ViT   $$($(BIN)/gmmvit eval runs/demo | grep top1) $$($(BIN)/gmmvit eval runs/demo --weights last | grep top1)"
	@echo "plain ViT $$($(BIN)/gmmvit eval runs/demo-none | grep top1) $$($(BIN)/gmmvit eval runs/demo-none --weights last | grep top1)"
	@echo "report:   $$($(BIN)/gmmvit report runs/demo runs/demo-none)"

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadscope

# The figures in README and docs that a CPU can give (an hour); `ORIGINAL=path` adds the original's training loop.
bench: $(READY)
	$(BIN)/python benchmarks/augment.py --data-dir ../shared/data --out benchmarks/results/augment-cpu.csv
	$(BIN)/python benchmarks/attention_cpu.py --out benchmarks/results/attention-cpu.csv
	$(BIN)/python benchmarks/train_throughput.py --data-dir ../shared/data $(if $(ORIGINAL),--original $(ORIGINAL)) \
		--out benchmarks/results/train-throughput-cpu.csv

# The figures that take a GPU (under nine minutes), and the kernels' tests on it where pytest is installed. Runs with
# the python at hand, which needs torch, triton and numpy, and for the training what timm brings: `PYTHON=...`.
bench-gpu:
	@if $(PYTHON) -c 'import pytest' 2>/dev/null; then PYTHONPATH=src $(PYTHON) -m pytest -x -q tests/attention/test_triton.py; \
	else echo "pytest is not installed: the kernels are compared with the formula by benchmarks/gpu.py alone"; fi
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --out benchmarks/results

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
