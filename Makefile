# Two commands do all the set-up: `make demo` and `make test`. Another environment: `make test VENV=/some/where`.
PYTHON ?= python3
VENV ?= .venv
NO_TORCH ?= .venv-no-torch
LOWEST ?= .venv-lowest
NEWEST ?= .venv-newest
PIP_ARGS ?=
WORKERS ?= 2

# Extras and the groups of pyproject.toml; `--group` needs pip 25.1.
EXTRAS := benchmark,dask,io,train,tutorials
PIP := -m pip install --quiet --disable-pip-version-check
UPDATE_PIP := $(PIP) 'pip>=25.1'
BIN := $(VENV)/bin
INSTALL := $(BIN)/python $(PIP) -c constraints.txt $(PIP_ARGS)
SPHINX := DOCS_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

.PHONY: help demo test lint types docs unit notebooks tutorials pytest coverage mutants bench format dist wheel-demo clean \
  lowest test-lowest test-newest test-no-torch

help:
	@echo "make demo                superresolve the embedded phantom into demo_output/"
	@echo "make test                lint, types, documentation, all tests"
	@echo "make lint|types|docs|unit|notebooks|format"
	@echo "make tutorials           run the tutorials and store their outputs; TUTORIALS='quickstart cells' runs some"
	@echo "make mutants             whether the tests notice faults (an hour)"
	@echo "make bench               every number of the project, and the model card (hours)"
	@echo "make coverage            all tests, and the share of lines that they reach"
	@echo "make dist                wheel and sdist in dist/, checked, with their sizes"
	@echo "make wheel-demo          the wheel in an environment of its own, and the seconds to the first picture"
	@echo "make lowest              the lowest versions that pyproject.toml allows, into .ci/lowest.txt (needs uv)"
	@echo "make test-lowest         the tests that matter with these versions"
	@echo "make test-newest         all tests with the newest versions"
	@echo "make test-no-torch       what needs no torch, with the newest of everything else"
	@echo "make clean               remove the environment and what was built"

# The three things that a bare machine can lack are named before anything is downloaded.
$(BIN)/python $(LOWEST)/bin/python $(NEWEST)/bin/python $(NO_TORCH)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: '$(PYTHON)' is not installed. Install Python 3.11 or later, or name one: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or later is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Creating the environment $(@:/bin/python=)"
	@$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing hadmst-sc"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing hadmst-sc with what the tests and the documentation need"
	@$(BIN)/python $(UPDATE_PIP)
	@$(INSTALL) -e '.[$(EXTRAS)]' --group dev
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run
	@$(BIN)/hadmst-sc demo --output demo_output --overwrite

# pytest comes last: its summary is the verdict. What uses one core each runs side by side.
test: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j 2 lint types docs
	@$(MAKE) --no-print-directory pytest

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev
	@$(BIN)/mypy

# Pages show the stored outputs of the tutorials.
docs: $(VENV)/.dev
	@$(SPHINX)
	@echo "docs/_build/html/index.html"

# Files side by side, in processes of one thread: most are too small for the threads of torch.
pytest: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

unit: $(VENV)/.dev
	@$(BIN)/python -m pytest tests/unit tests/contract tests/property

notebooks: $(VENV)/.dev
	@$(BIN)/python -m pytest -m notebook

# Outputs that agree with the stored ones stay; look at the others before you commit them.
tutorials: $(VENV)/.dev
	@$(BIN)/python tutorials/run.py $(TUTORIALS)

# The slowest check, and not part of `make test`: faults are put into a copy of the project, one by one.
mutants: $(VENV)/.dev
	@$(BIN)/python .ci/mutants.py

bench: $(VENV)/.dev
	@$(BIN)/hadmst-sc benchmark
	@$(BIN)/hadmst-sc benchmark card

# All tests but those of the tutorials, which run in processes of their own.
coverage: $(VENV)/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not notebook' \
	  --cov --cov-report=term:skip-covered

# Needs neither torch nor the package itself.
dist: | $(BIN)/python
	@$(BIN)/python $(UPDATE_PIP)
	@$(INSTALL) --group dist
	@rm -rf dist
	@$(BIN)/python -m hatchling build
	@$(BIN)/python -m twine check --strict dist/*
	@du --apparent-size -h dist/*

wheel-demo: $(VENV)/.dev
	@HADMST_WHEEL_DEMO=1 $(BIN)/python -m pytest tests/packaging

# The floors of pyproject.toml are the versions of this file: a test compares them.
lowest:
	@uv pip compile pyproject.toml --all-extras --resolution lowest-direct --python-version 3.11 --python-platform linux \
	  --quiet --no-annotate --custom-compile-command 'make lowest' | grep -Ev '^(cuda|nvidia|triton)' >.ci/lowest.txt

# Without images, which are those of the newest matplotlib.
test-lowest: | $(LOWEST)/bin/python
	@$(LOWEST)/bin/python $(UPDATE_PIP)
	@$(LOWEST)/bin/python $(PIP) $(PIP_ARGS) -c .ci/lowest.txt -e '.[$(EXTRAS)]' --group test
	@$(LOWEST)/bin/python -m pytest tests/cli tests/contract tests/e2e tests/io tests/pp

# Without the constraints: a release that breaks something is seen here before it reaches users.
test-newest: | $(NEWEST)/bin/python
	@$(NEWEST)/bin/python $(UPDATE_PIP)
	@$(NEWEST)/bin/python $(PIP) --upgrade $(PIP_ARGS) -e '.[$(EXTRAS)]' --group test
	@$(NEWEST)/bin/python -m pytest

test-no-torch: | $(NO_TORCH)/bin/python
	@$(NO_TORCH)/bin/python .ci/requirements_without_torch.py >$(NO_TORCH)/requirements.txt
	@$(NO_TORCH)/bin/python $(PIP) --upgrade $(PIP_ARGS) -r $(NO_TORCH)/requirements.txt
	@$(NO_TORCH)/bin/python $(PIP) --no-deps $(PIP_ARGS) -e .
	@$(NO_TORCH)/bin/python -m pytest

clean:
	rm -rf .venv .venv-* dist docs/_build docs/_generated docs/reference/api demo_output .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
