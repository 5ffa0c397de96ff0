# Headrace: `make help` says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
SEEDS ?= 200
SECONDS ?= 1200
WORKERS ?= 2
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: help demo test unit check format proto docs simulate model chaos fuzz bench clean

help: ## Show this help
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One sentence names what is missing, before anything is half made.
.venv/made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headrace needs Python 3.11 or newer: set PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "this Python cannot make virtual environments: apt-get install python3-venv"; exit 2; }
	@command -v git >/dev/null || { echo "headrace needs git: apt-get install git"; exit 2; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

.venv/made-dev: .venv/made
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/made ## Build this repository with Headrace itself: no root, no Docker, two minutes
	@$(BIN)/headrace run

test: .venv/made-dev ## Run all tests; installs what they need from Debian's packages where it may
	@scripts/test_needs
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile tests

unit: .venv/made-dev ## Run the fast tests of the pure rooms
	@$(RUN) -m pytest tests/unit tests/test_tidy.py

check: .venv/made-dev ## Lint, types, import contracts, and that everything generated is fresh
	@scripts/check

format: .venv/made-dev ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

proto: .venv/made-dev ## Make the stubs of the wire contract anew
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(RUN) scripts/make_stubs.py

docs: .venv/made-dev ## Make the generated parts of the documentation anew
	@$(RUN) scripts/make_docs.py

simulate: .venv/made-dev ## Run the simulation over SEEDS=n seeds
	@$(RUN) scripts/simulate.py --seeds $(SEEDS)

model: ## Check the model of the lease protocol with spin
	@$(PYTHON) scripts/check_model.py

chaos: .venv/made-dev ## Break real daemons for half an hour while 2,000 jobs run, and judge all of it (root)
	@$(RUN) scripts/chaos.py

.venv/made-fuzz: .venv/made-dev
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

fuzz: .venv/made-fuzz ## Feed the loader what a fuzzer makes for SECONDS=n
	@$(RUN) scripts/fuzz_loader.py --seconds $(SECONDS)

bench: .venv/made-dev ## Run the benchmarks, each beside its peer
	@for script in benchmarks/*.py; do echo "== $$script"; $(RUN) $$script; done

clean: ## Remove what was made here
	@rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
