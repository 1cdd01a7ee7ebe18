# `make demo` and `make test` set everything up on a machine that has only Python 3.11, pip, gcc and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-matrix lint docs node wheel bench gpu gpu-tune gpu-paper soak clean

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV): torch alone is several GB, this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,data,tiff,metrics,timm,hf,export,openvino,sweep,ray,demo,docs]' tensorboard
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
	$(BIN)/ruff check src tests benchmarks docs/site
	$(BIN)/ruff format --check src tests benchmarks docs/site
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# The slow tests: notebook, wheel, site, rehearsals of the GPU commands, sweeps on Ray, a new family through every command.
test-slow: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m slow

# The site: README, docs/, CONTRIBUTING and CHANGELOG, and the library from its docstrings. A warning is an error.
docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -q -c docs/site . site
	@echo "site/index.html"

# Other Pythons, the oldest and the newest torch, timm and transformers: an hour, each in its own environment.
test-matrix: $(READY)
	$(BIN)/python tests/packaging/matrix.py

# dist/gmmvit-VERSION.tar.gz and .whl, their metadata and the README checked.
wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

# The figures in README and docs that a CPU can give (an hour); `ORIGINAL=path` adds the original's training loop.
bench: $(READY)
	$(BIN)/python benchmarks/augment.py --data-dir ../shared/data --out benchmarks/results/augment-cpu.csv
	$(BIN)/python benchmarks/attention_cpu.py --out benchmarks/results/attention-cpu.csv
	$(BIN)/python benchmarks/train_throughput.py --data-dir ../shared/data $(if $(ORIGINAL),--original $(ORIGINAL)) \
		--out benchmarks/results/train-throughput-cpu.csv

# The GPU figures, with the python at hand, which needs torch, triton and numpy, and for the training what timm brings. `gpu` measures everything, `gpu-tune` tries tiles of the kernels, `gpu-paper` trains the paper's
# recipe on DATA, the archives of benchmarks/pack_cifar10.py.
OUT ?= benchmarks/results
DATA ?= packed
MINUTES ?= 10
GPU_PYTHON ?= python3
gpu:
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py --out $(OUT) --minutes 8

gpu-tune:
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py --out $(OUT) --minutes 4 --parts versions,tune

gpu-paper:
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu_paper.py --data $(DATA) --out $(OUT) --minutes $(MINUTES)

# Random kills, signals, full disks, damaged files, odd values and donors (seeded): trials and failures of all kinds,
# or KINDS=kill,folder (docs/reliability.md).
soak: $(READY)
	PYTHONPATH=benchmarks $(BIN)/python -m soak --minutes $(if $(filter file,$(origin MINUTES)),20,$(MINUTES)) \
		--seed $(or $(SEED),0) $(if $(KINDS),--kinds $(KINDS))

# The npm packages for the JavaScript of docs/export.md; without them its test is skipped.
node: $(READY)
	npm install --prefix $(VENV) --no-save --ignore-scripts onnxruntime-web sharp

clean:
	rm -rf $(VENV) .matrix build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
