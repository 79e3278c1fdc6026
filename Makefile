# Everything runs from .venv, made with the pinned versions of constraints.txt.
# DEMO_ARGS, TEST_ARGS, BENCH_ARGS: more arguments for the command behind a target.

PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
EXTRAS ?= molecules,climate,medical,dev,notebooks
BIN := .venv/bin
STAMP := .venv/.installed

# Data sets that no package brings are read from here; a folder beside the checkout serves when nothing else is said.
ifndef SCILDM_DATA
ifneq ($(wildcard ../shared/data),)
export SCILDM_DATA := $(abspath ../shared/data)
endif
endif

# One thread a test process: two processes with two threads each are slower than with one on a small machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: help install test slow demo bench lint format types clean

help:
	@echo "make install | test | slow | demo | bench | lint | format | types | clean"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

test: install
	$(PYTEST) -m "not slow and not network" $(TEST_ARGS)

slow: install
	$(PYTEST) -m "slow" $(TEST_ARGS)

demo: install
	$(BIN)/scildm demo --output runs/demo $(DEMO_ARGS)

bench: install
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
