PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint

quickstart: $(VENV)/installed
	$(BIN)/python tools/quickstart.py

test: lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/installed-test
	$(BIN)/python -m flake8 sb tools tests
	$(BIN)/python -m mypy

# the stamps keep a second `make` from installing again until the requirements change
$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[test]'
	touch $(VENV)/installed $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
