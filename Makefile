# Every target sets up what it needs. Start with `make help`.

PYTHON ?= python3
CONFIG ?= config.example.json
VENV := .venv
BIN := $(VENV)/bin
LOCK := .ci/requirements.lock
READY := $(VENV)/.ready
PEERS := .venv-peers
RESULTS := .stoker/bench
UV := $(shell sed -n 's/^\(uv==[^ ;]*\).*/\1/p' $(LOCK))

.DEFAULT_GOAL := help
.PHONY: help setup demo run check test bench bench-growth bench-peers lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(READY) ## a virtual environment in .venv, with exactly the locked versions

# uv installs the lock in seconds; where it cannot (a mirror known to pip only), pip does the same more slowly.
$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("stoker needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r $(LOCK) \
	  || $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	touch $@

demo: $(READY) ## a node, three real services and one real job, from start to stop
	$(BIN)/stoker demo

run: $(READY) ## a node with the example containers, in the foreground; CONFIG=FILE for others
	$(BIN)/stoker serve --config $(CONFIG)

check: $(READY) ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) ## all tests; what this machine cannot run is listed at the end
	$(BIN)/pytest

bench: $(READY) ## the node beside a bare handler, the smallest node and other queues, with ratios; 3 rounds
	$(BIN)/python -m bench --json $(RESULTS)/comparison.json --plot $(RESULTS)/comparison.svg

bench-growth: $(READY) ## the node with up to a million finished jobs in its store
	$(BIN)/python -m bench.growth --json $(RESULTS)/growth.json --plot $(RESULTS)/growth.svg

# Each in an environment of its own: they need different versions of the same packages.
bench-peers: $(READY) ## install arq, saq and taskiq for `make bench`, and matplotlib for its plots
	for name in arq saq taskiq plot; do \
	  $(PYTHON) -m venv --without-pip $(PEERS)/$$name && \
	  $(BIN)/uv pip install --quiet --python $(PEERS)/$$name/bin/python -r bench/peers/$$name.txt || exit 1; \
	done

lock: $(READY) ## write the lock anew, from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --extra dev \
	  --python-version 3.11 --output-file $(LOCK) pyproject.toml

clean: ## remove all that these targets made
	rm -rf $(VENV) $(PEERS) .stoker dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
