# Everything runs in .venv, which the first target that needs it creates. Set PYTHON to choose the interpreter (3.11 or newer).
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check install
SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do if $$p -c '$(SUITABLE)' 2>/dev/null; then echo $$p; break; fi; done)
# Tests run in parallel processes, one thread each.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types docs format clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## prune a trained model, prove it, measure it, write a report
	@$(BIN)/secateur demo

test: $(VENV)/.test  ## run the test suite
	@echo "Running the tests in $(JOBS) processes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

check: lint types docs test  ## format, lint, types, documentation, tests

lint: $(VENV)/.test  ## formatting and lint rules
	@echo "Checking format and lint"
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .

types: $(VENV)/.test  ## mypy, strict, on src
	@echo "Checking types"
	@$(BIN)/mypy --no-error-summary

docs: $(VENV)/.docs  ## build the documentation into site/, warnings are errors
	@echo "Building the documentation into site/"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict

format: $(VENV)/.test  ## format the code and apply safe fixes
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist site out .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "No Python 3.11 or newer found; set PYTHON=/path/to/python" >&2; exit 1; fi
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# The images are data inside a package whose code and dependencies are not wanted, hence --no-deps.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Installing Secateur for the demo (PyTorch is a large download the first time)"
	@$(PIP) --editable '.[demo,onnx,vision]'
	@$(PIP) --no-deps foolbox==3.3.4
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	@echo "Installing Secateur with what the tests need (PyTorch is a large download the first time)"
	@$(PIP) --editable '.[dev,demo,onnx,train,transformers,vision]'
	@$(PIP) --no-deps foolbox==3.3.4
	@touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	@echo "Installing the documentation tools"
	@$(PIP) --editable '.[docs]'
	@touch $@
