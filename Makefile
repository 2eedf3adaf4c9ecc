# Needs Python 3.11 or newer and make; everything else lands in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
# pip fetches torch, so that a mirror or a CPU-only wheel that pip is configured for is used; uv does the rest, and
# compiles all of it, on all cores.
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup compiled demo test test-all bench gpu docs lint format clean

setup: $(READY)

$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "etb_plugin needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try make PYTHON=python3.11"; exit 2; }
	@echo "setting up .venv (the first time takes a minute or more: torch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile uv '$(TORCH)'
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[lirpa,dev]'
	@touch $@

demo: setup
	$(BIN)/etb compare --dataset digits --methods ibp,expected,crown --out runs/demo
	$(BIN)/etb bounds --checkpoint runs/demo/cells/expected-*/last.safetensors \
	  --methods ibp,ibp:by=auto_LiRPA,crown,crown:by=auto_LiRPA,expected

# Where Python is told to leave no caches, each of the tests' several hundred processes would compile it all again.
compiled: setup
	$(BIN)/python -m compileall -q etb_plugin

test: compiled
	$(BIN)/pytest --numprocesses 2 --dist worksteal

test-all: compiled
	$(BIN)/pytest --numprocesses 2 -m ''

# Ratios within one run, for a quiet machine: some ten minutes.
bench: setup
	$(BIN)/etb bench steps --model small,medium --seconds 8 --out compare/results/bench-steps.json \
	  --methods nominal,pgd,ibp,ibp-fast,crown-ibp,sabr,mtl-ibp,mtl-expected,expected,expected:rows=top-3,expected:rows=fused
	$(BIN)/etb bench bounds --model small --batch-size 10 --eps 0.01 --seconds 5 --out compare/results/bench-bounds.json
	$(BIN)/etb bench epochs --methods ibp,crown-ibp,pgd,expected:rows=fused,mtl-ibp,mtl-expected \
	  --out compare/results/bench-epochs.json
	$(BIN)/python -W ignore compare/steps.py --out compare/results/steps.json

GPU_METHODS := nominal,pgd,ibp,crown-ibp,expected,expected:rows=top-3,expected:rows=fused,mtl-ibp,mtl-expected,sabr,taps

# On a machine with a GPU: each line ends within minutes, or goes on where it stopped when it is called again.
gpu: setup
	$(BIN)/pytest --numprocesses 4 tests/training tests/bounds
	$(BIN)/etb bench steps --device cuda --model small,medium,large --seconds 1 --out compare/results/gpu-steps.json \
	  --methods $(GPU_METHODS)
	$(BIN)/etb bench steps --device cuda --model cnn7-bn --dataset cifar10 --batch-size 128 --eps 2/255 --seconds 1 \
	  --methods $(GPU_METHODS) --out compare/results/gpu-steps-cnn7-bn.json
	$(BIN)/etb bench bounds --device cuda --model small --eps 0.01 --batch-size 20 --out compare/results/gpu-bounds.json
	for file in papers/gowal-2019-table-6-mnist-0.1 papers/gowal-2019-table-6-mnist-0.3 ctbench/mnist-0.1 \
	  ctbench/mnist-0.3 ctbench/cifar10-2 ctbench/cifar10-8; do \
	  $(BIN)/etb compare configs/$$file.yaml --device cuda --out runs/gpu/$$(basename $$file) || exit 1; done

# The documentation as a site, at http://127.0.0.1:8000, built anew as pages change.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --num-workers 2

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
