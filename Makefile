# Set-up and every check of this project. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types layers docs check bench fuzz lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the command .venv/bin/marblerun and everything the tests need

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup ## run the whole way once: a confidential app starts, impostors are refused
	$(BIN)/marblerun demo

test: setup ## run all tests
	$(BIN)/python -m pytest --cov --cov-report=term

lint: setup ## format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## strict type checks
	$(BIN)/mypy

layers: setup ## the arrows of docs/architecture.md
	$(BIN)/lint-imports

docs: setup ## build the documentation; broken links fail
	$(BIN)/mkdocs build --strict --quiet

check: lint types layers docs test ## everything that must be green before a change lands

bench: setup ## compare the hot paths with a peer in one run
	$(BIN)/python -m benchmarks

fuzz: setup ## the long sweeps: bytes, lengths, parts, collateral, dates, and changed inputs beside dcap-qvl
	$(BIN)/python -m tests.attestation.sweep
	$(BIN)/python -m tests.fuzz
	$(BIN)/python -m tests.coordinator.damage

lock: setup ## resolve the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements-dev.lock

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .import_linter_cache site dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
