# Needs Python >= 3.10 and a package index, nothing else. PYTHON=python3.12 make test picks another one.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadgroup

# The suite starts hundreds of processes, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all lint bench bench-peers faults fuzz clean
.DEFAULT_GOAL := test

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fast,embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.run
	$(BIN)/rpc demo

# The quick part of the suite; test-all is the rest: what is marked `slow`.
test: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.dev
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks run $(ARGS)

bench-peers: $(VENV)/.dev
	$(BIN)/python -m benchmarks peers $(ARGS)

faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults $(ARGS)

# Where atheris can be installed: https://pypi.org/project/atheris has wheels for Linux.
fuzz: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python -m tests.fuzzing $(ARGS)

clean:
	rm -rf $(VENV) .peers .fuzzing .mypy_cache .ruff_cache .pytest_cache .hypothesis dist clients/node/dist clients/node/node_modules
