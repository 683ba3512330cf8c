# Set-up and every check of this project. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# How long each of the open-ended sweeps goes on.
SECONDS ?= 60
# How long the soak takes.
MINUTES ?= 1

.DEFAULT_GOAL := help
KUBE_APISERVER := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/marblerun/kube-apiserver

.PHONY: help setup optional kubernetes demo test lint types layers docs check bench soak fuzz mutate lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the command .venv/bin/marblerun and everything the tests need

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

optional: setup ## add what the extras need (TPM 2.0, PKCS#11), where the system's libraries are there
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-optional.lock || \
	  echo "left out: the tests of the extras are skipped (tpm needs the development files of the TPM software stack)"

# Nobody packages it for all systems; Go makes it from the released modules, which takes some minutes once.
kubernetes: ## build the API server of Kubernetes that the tests of distributed mode run against (needs Go; cached)
	@if test -x $(KUBE_APISERVER); then echo "there is $(KUBE_APISERVER)"; \
	elif ! command -v go >/dev/null; then echo "left out: Go is missing; the tests against Kubernetes are skipped"; \
	else cd tests/go/kubernetes && go build -mod=readonly -trimpath -o $(KUBE_APISERVER).new k8s.io/kubernetes/cmd/kube-apiserver && \
	  mv $(KUBE_APISERVER).new $(KUBE_APISERVER); fi

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

bench: setup ## every goal of speed beside its floor or a peer, in one run; the numbers go to bench.json too
	$(BIN)/python -m benchmarks --json bench.json

soak: setup ## everything at once for MINUTES: churn, refusals, updates, restarts; memory and descriptors must stay flat
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

fuzz: setup ## the long sweeps: evidence, collateral, dates, TCB statuses, made-up inputs beside dcap-qvl, damaged state
	$(BIN)/python -m tests.attestation.sweep
	$(BIN)/python -m tests.attestation.matrix
	$(BIN)/python -m tests.attestation.differential
	$(BIN)/python -m tests.attestation.reissued --seconds $(SECONDS)
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)
	$(BIN)/python -m tests.coordinator.damage

mutate: setup ## take one check at a time out of the verifiers: does a test notice?
	$(BIN)/python -m tests.mutate --jobs 2

lock: setup ## resolve the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements-dev.lock
	$(BIN)/uv pip compile pyproject.toml --extra tpm --extra pkcs11 -c requirements-dev.lock --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --quiet -o requirements-optional.lock

clean: ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .import_linter_cache site dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
