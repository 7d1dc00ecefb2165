# Sets itself up: every target creates the virtual environment and installs what it needs, once.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup fit test test-slow test-lowest check docs wheel clean

VENV ?= .venv
# the first of these that is new enough; `make test PYTHON=/path/to/python3` chooses another
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# e.g. PIP_OPTIONS="--index-url ADDRESS" where torch comes from another index
PIP_OPTIONS ?=
PYTEST_OPTIONS ?=
RECIPE ?= recipes/vlm2vec.yaml

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.core  ## the environment alone; then: source .venv/bin/activate

fit: $(VENV)/.core  ## train the default recipe on the packaged data, measure it, write a bundle (RECIPE=... for another)
	$(VENV)/bin/zoo fit --config $(RECIPE)

test: $(VENV)/.dev  ## all tests that take seconds, without network
	$(VENV)/bin/python -m pytest -n auto $(PYTEST_OPTIONS)

test-slow: $(VENV)/.dev  ## the tests that take minutes
	$(VENV)/bin/python -m pytest -m "slow and not gpu" $(PYTEST_OPTIONS)

test-lowest:  ## all tests with the oldest supported versions, in an environment of their own
	$(MAKE) test VENV=.venv-lowest PIP_OPTIONS="-c constraints.txt $(PIP_OPTIONS)"

check: $(VENV)/.dev  ## lint, format, types, import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/layers

docs: $(VENV)/.dev  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

wheel: $(VENV)/.dev  ## the wheel, into dist/
	$(VENV)/bin/python -m build --wheel

clean:  ## remove what was built here, but for the environment and the runs
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: embedding-zoo needs Python 3.11 or newer; here is $$(python3 --version 2>&1)." \
		"Install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: embedding-zoo needs Python 3.11" \
		"or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: no virtual environment could be made; on Debian and" \
		"Ubuntu: apt install python3-venv" >&2; exit 1; }

# The stamps make the second call instant; a changed pyproject.toml installs again. Python compiles what it imports, so pip
# need not compile all of torch first.
$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --no-compile $(PIP_OPTIONS) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --no-compile $(PIP_OPTIONS) -e '.[dev]'
	@touch $@ $(VENV)/.core
