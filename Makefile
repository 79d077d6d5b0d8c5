# `make demo` and `make test` set up all they need in .venv and run; nothing else is required but
# Python 3.11 or later and make.
PYTHON ?= python3
PYTHON313 ?= python3.13
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test coverage test-slow test-library test-oldest test-newest lint bench docs clean

demo: $(VENV)/installed
	$(BIN)/python launch.py --config=configs/quickstart/digits.py

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses=4

# The same tests with the library's coverage, which takes a tenth longer.
coverage: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --cov=cka_sr_jax

test-slow: $(VENV)/installed-dev
	KERNELS=default $(BIN)/python -m pytest -n auto --maxprocesses=4 -m slow

# With the oldest supported versions, and with the newest of all, on Python 3.13. SOME names tests:
# make test-oldest SOME=tests/similarity
test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -n auto --maxprocesses=4 $(SOME)

test-newest: $(VENV)-newest/installed
	$(VENV)-newest/bin/python -m pytest -n auto --maxprocesses=4 $(SOME)

# In an environment made anew with only the library's dependencies; needs a package index.
test-library: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_library.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What docs/speed.md measures, on this machine, in runs/benchmarks.md. DATA names a folder of TFDS sets.
bench: $(VENV)/installed-dev
	$(BIN)/python benchmarks/everything.py $(if $(DATA),--data_dir="$(DATA)")

# The site, in docs/_build/html.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest docs/_build runs

$(VENV)/installed: $(BIN)/python pyproject.toml
	@echo "Installing into $(VENV), which takes a minute or two ..."
	$(BIN)/python -m pip install --quiet --editable ".[train]"
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	@echo "Installing into $(VENV), which takes a minute or two ..."
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[train,docs]"
	@touch $@

$(VENV)-oldest/installed: tests/oldest.txt pyproject.toml
	$(PYTHON313) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint tests/oldest.txt --editable ".[test]"
	@touch $@

$(VENV)-newest/installed: pyproject.toml
	$(PYTHON313) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --editable ".[test]"
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11 or later, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: $(PYTHON) is Python %d.%d and cka_sr_jax needs 3.11 or later; name one: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
