# Everything runs in one virtual environment, which `make` builds when it is missing and rebuilds
# when pyproject.toml or the pinned versions change. Nothing is installed outside of it.
#
#   make test PYTEST_ARGS="-k jit -x" WORKERS=0       some of the tests, in one process
#   make test PYTHON=python3.13 VENV=.venv-3.13       another Python, beside the first

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=

CONSTRAINTS := .ci/constraints.txt
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

# The rooms of tests/ that depend most on Python and JAX. On a second Python they run without what is marked as slow.
CORE := tests/core tests/transforms tests/initializers tests/nn tests/ecosystem

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:

.PHONY: help
help:  ## Say what there is to make.
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | awk -F: '{ printf "make %-10s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(VENV)/.examples  ## Train a classifier of handwritten digits; draw examples/digits.png.
	MPLBACKEND=Agg $(BIN)/python examples/digits.py

.PHONY: test
test: $(VENV)/.test  ## Run every test.
	$(PYTEST) $(PYTEST_ARGS)

.PHONY: test-core
test-core: $(VENV)/.test  ## Run the tests of what depends on JAX most, for another Python or JAX.
	$(PYTEST) -m "not slow" $(CORE) $(PYTEST_ARGS)

.PHONY: lint
lint: $(VENV)/.lint  ## Check the formatting and the style.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

.PHONY: format
format: $(VENV)/.lint  ## Fix what `make lint` can fix.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(VENV)/.test $(VENV)/.bench $(VENV)/.types  ## Check the types of the package and its tests.
	$(BIN)/basedpyright --pythonpath $(BIN)/python

.PHONY: docs
docs: $(VENV)/.docs  ## Build the documentation into site/; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .ci/mkdocs.yml

.PHONY: bench
bench: $(VENV)/.bench  ## Run the benchmarks, which print ratios.
	$(BIN)/python -m tests.benchmarks

.PHONY: clean
clean:  ## Delete all that was built.
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(VENV)/.made is the environment; $(VENV)/.test says that the packages of elegy[test] are in it.
$(VENV)/.made: pyproject.toml $(CONSTRAINTS)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.%: $(VENV)/.made
	@echo "Installing elegy[$*] into $(VENV): a minute or two, the first time."
	@$(BIN)/python -m pip install -qq --no-input --disable-pip-version-check \
		--constraint $(CONSTRAINTS) --editable '.[$*]'
	@touch $@
