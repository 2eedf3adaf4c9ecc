# Needs Python 3.11 or newer and make; everything else lands in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
# pip fetches torch, so that a mirror or a CPU-only wheel that pip is configured for is used; uv does the rest.
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-all bench lint format clean

setup: $(READY)

$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "etb_plugin needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try make PYTHON=python3.11"; exit 2; }
	@echo "setting up .venv (the first time takes a minute or more: torch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv '$(TORCH)'
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[lirpa,dev]'
	@touch $@

demo: setup
	$(BIN)/etb compare --dataset digits --methods ibp,expected,crown --out runs/demo
	$(BIN)/etb bounds --checkpoint runs/demo/cells/expected-*/last.safetensors \
	  --methods ibp,ibp:by=auto_LiRPA,crown,crown:by=auto_LiRPA,expected

test: setup
	$(BIN)/pytest --numprocesses 2

test-all: setup
	$(BIN)/pytest --numprocesses 2 -m ''

# Ratios to a nominal step within one run, for a quiet machine: some two minutes.
bench: setup
	$(BIN)/etb bench steps --model small,medium --seconds 8 --out compare/results/bench-steps.json \
	  --methods nominal,pgd,ibp,ibp-fast,crown-ibp,sabr,mtl-ibp,expected,expected:rows=top-3

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
