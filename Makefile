# One command a job; each makes what it needs. Only python3 with venv, and make, must be there before.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODELS := models
PACKAGES := mesh edge cloud hardware
PROTOS := inference.proto health.proto reflection_v1.proto reflection_v1alpha.proto
EXTRAS ?= dev
OLDEST ?= python3.10

# Arguments for the command behind a target: make demo ARGS='--seconds 20', make test ARGS='-k router'.
ARGS ?=

export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help demo models test check lint oldest bench bench-offload protocol clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: models ## the main job on real models: a site, a router and a cloud node; a burst, a killed node
	$(BIN)/mesh demo $(ARGS)

models: $(INSTALLED) ## fetch the demonstration's models into models/, digests checked
	$(BIN)/python -m mesh.demo.models --to $(MODELS)

test: models ## the tests, with real models, processes and a real nats-server
	$(BIN)/python -m pytest -rs $(ARGS)

lint: $(INSTALLED) ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy docs/examples
	$(BIN)/lint-imports

check: lint test ## everything CI runs: lint, then the tests

oldest: ## the oldest Python that is promised, JetPack 6's, can import every module: make oldest OLDEST=python3.10
	$(OLDEST) -m venv $(VENV)/oldest
	$(VENV)/oldest/bin/python -m pip install --quiet --editable '.[demo]'
	$(VENV)/oldest/bin/python -m tests.imports

bench: models ## against the bare transport, the cost of each hop and of a router, batching, faults
	$(BIN)/python -m tests.bench.serving
	$(BIN)/python -m tests.bench.hops
	$(BIN)/python -m tests.bench.batching
	$(BIN)/python -m tests.bench.chaos
	$(BIN)/python -m tests.bench.isolation
	$(BIN)/python -m tests.bench.router_cpu

bench-offload: $(INSTALLED) ## every offload policy in every simulated mesh: docs/benchmarks/; a first look: ARGS=--quick
	@$(BIN)/python -c 'import matplotlib, scipy' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench.offload.publish $(ARGS)

protocol: $(INSTALLED) ## after a change to mesh/oip/*.proto: compile their descriptors
	$(BIN)/python -m grpc_tools.protoc -Imesh/oip --descriptor_set_out=mesh/oip/protocols.pb $(PROTOS)

clean: ## remove what these commands made: environment, models, caches
	rm -rf $(VENV) $(MODELS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is older than pyproject.toml when a dependency may have changed. An environment without pip is one whose
# making was interrupted or refused (Debian without python3-venv), so it is made again, and says why it cannot.
$(INSTALLED): pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@
