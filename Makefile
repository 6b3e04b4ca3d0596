# `make demo` and `make test` do all set-up themselves, in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test chaos check bench clean

demo: $(VENV)/.demo
	$(BIN)/paramdelta-dist demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

chaos: $(VENV)/.test
	$(BIN)/python -m pytest -m chaos tests/chaos

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

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
