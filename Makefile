# Two commands do all the set-up: `make demo` and `make test`. Another environment: `make test VENV=/some/where`.
PYTHON ?= python3
VENV ?= .venv
NO_TORCH ?= .venv-no-torch
PIP_ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
SPHINX := DOCS_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

.PHONY: help demo test lint types docs unit notebooks pytest mutants bench format dist wheel-demo test-no-torch clean

help:
	@echo "make demo                superresolve the embedded phantom into demo_output/"
	@echo "make test                lint, types, documentation, all tests"
	@echo "make lint|types|docs|unit|notebooks|format"
	@echo "make mutants             whether the tests notice faults (an hour)"
	@echo "make bench               every number of the project, and the model card (hours)"
	@echo "make dist                wheel and sdist in dist/"
	@echo "make wheel-demo          the wheel in an environment of its own, and the seconds to the first picture"
	@echo "make test-no-torch       what needs no torch, with the newest of everything else"
	@echo "make clean               remove the environment and what was built"

# The three things that a bare machine can lack are named before anything is downloaded.
$(BIN)/python $(NO_TORCH)/bin/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: '$(PYTHON)' is not installed. Install Python 3.11, 3.12 or 3.13, or name one: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: Python 3.11 to 3.13 is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make demo PYTHON=python3.12" >&2; exit 1; }
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
	@$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run
	@$(BIN)/hadmst-sc demo --output demo_output --overwrite

# pytest comes last: its summary is the verdict.
test: lint types docs pytest

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev
	@$(BIN)/mypy

# The tutorials are executed by the tests; `make docs DOCS_EXECUTE=auto` shows their pictures in the pages too.
docs: export DOCS_EXECUTE ?= off
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

# The slowest check, and not part of `make test`: faults are put into a copy of the project, one by one.
mutants: $(VENV)/.dev
	@$(BIN)/python .ci/mutants.py

bench: $(VENV)/.dev
	@$(BIN)/hadmst-sc benchmark
	@$(BIN)/hadmst-sc benchmark card

dist: $(VENV)/.dev
	@rm -rf dist
	@$(BIN)/python -m hatchling build

wheel-demo: $(VENV)/.dev
	@HADMST_WHEEL_DEMO=1 $(BIN)/python -m pytest tests/packaging

# Without the constraints: a release that breaks something is seen here before it reaches users.
test-no-torch: | $(NO_TORCH)/bin/python
	@$(NO_TORCH)/bin/python .ci/requirements_without_torch.py >$(NO_TORCH)/requirements.txt
	@$(NO_TORCH)/bin/python -m pip install --quiet --upgrade $(PIP_ARGS) -r $(NO_TORCH)/requirements.txt
	@$(NO_TORCH)/bin/python -m pip install --quiet --no-deps $(PIP_ARGS) -e .
	@$(NO_TORCH)/bin/python -m pytest

clean:
	rm -rf .venv .venv-no-torch dist docs/_build docs/_generated demo_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
