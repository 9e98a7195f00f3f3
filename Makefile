# make quickstart and make test do everything on a machine that has Python 3.11, make and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup quickstart test test-slow check format bench clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## the virtual environment with everything in it

$(INSTALLED): pyproject.toml deployments/install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" sh deployments/install.sh

quickstart: $(INSTALLED)  ## three iterations of a real model on two cores
	$(BIN)/posttrain run deployments/quickstart.yaml

test: $(INSTALLED)  ## everything but the slow suites
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(INSTALLED)  ## the quickstart asserted, every algorithm on toys with a known optimum, kill -9 in every stage
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## speed, as ratios measured in one run
	$(BIN)/python tests/benchmarks/run.py

clean:  ## remove the virtual environments; artifacts and models stay
	rm -rf $(VENV) .bench-trl *.egg-info
