# Each target sets itself up: the first one makes $(VENV) and installs what it needs, at the versions of constraints.txt.
# `make test ARGS="-k heun"` hands arguments on; `make PYTHON=python3.12 VENV=.venv312 test` chooses another interpreter.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
ARGS ?=

PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Stamps: a file in the environment says that a step is done, and is older than what the step depends on when it is not.
TORCH := $(VENV)/.torch
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev

.PHONY: help test demo examples lint format types docs wheel bench clean
.DEFAULT_GOAL := help

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

# torch first and alone: the build that fits this machine is chosen here, and nothing later asks for another one.
$(TORCH): constraints.txt
	@echo "installing into $(VENV); the first time takes minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	@touch $@

$(DEMO): $(TORCH) pyproject.toml
	$(INSTALL) --editable ".[demo]"
	@touch $@

$(DEV): $(TORCH) pyproject.toml
	$(INSTALL) --editable ".[dev]"
	@touch $(DEMO) $@

test: $(DEV) ## run the tests (ARGS="-m slow" for the slow ones)
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 8 $(ARGS)

demo: $(DEMO) ## sample digits in parallel and sequentially, and compare
	$(PY) examples/digits/demo.py $(ARGS)

examples: $(DEV) ## run every example script
	@set -e; for script in $(wildcard examples/*.py); do echo "-- $$script"; $(PY) "$$script"; done

lint: $(DEV) ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV) ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(DEV) ## mypy --strict and pyright
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)

docs: $(DEV) ## build the pages into docs/_build; a warning is an error
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build

# The wheel is built from the sdist, which proves that the sdist is complete. No build/ of an earlier run may leak in.
wheel: $(DEV) ## build sdist and wheel into dist/
	rm -rf build dist
	$(PY) -m build --quiet --no-isolation --outdir dist .
	rm -rf build

bench: $(DEV) ## run the benchmarks
	$(PY) -m benchmarks $(ARGS)

clean: ## remove the environment, caches and everything built
	rm -rf $(VENV) build dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
