# `make demo` and `make test` each do all their own set-up in .venv; they need only Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-slow lint types unit docs conformity attack lock sbom audit wheel install install-test clean

demo: install
	$(BIN)/brickyard demo -o demo-output

test: lint types unit

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

unit: install-test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Also the tests marked slow: long campaigns, large networks, all variants of what `make test` tries one of.
test-slow: install-test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --slow

# The documentation site, in site/.
docs: install-test
	$(BIN)/python -m mkdocs build --strict

# Every architecture of the table, some twenty minutes on two cores; writes docs/architectures.md.
conformity: install-test
	$(BIN)/python tests/conformity

# All attacks of docs/trust.md; WRITE=--write writes their results and the page's table.
MINUTES ?= 60
attack: install-test
	$(BIN)/python tests/attacks --minutes $(MINUTES) $(WRITE)

# What the tests run with, pinned; a bill of materials; licences and known vulnerabilities.
lock: install-test
	$(BIN)/python tools/supply.py lock

sbom: install-test
	$(BIN)/python tools/supply.py sbom

audit: install-test
	$(BIN)/python tools/supply.py audit

# Source archive and wheel of the last commit: the same bytes wherever they are built.
wheel: install-test
	$(BIN)/python tools/supply.py release

install: $(VENV)/.demo
install-test: $(VENV)/.test

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Brickyard needs Python 3.11 or newer; try make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)

# torch and torchvision must fit each other: requirements.txt names a pair that was tried together.
$(VENV)/.demo: requirements.txt constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[plots]'
	touch $@

$(VENV)/.test: requirements.txt constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist site demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
