# Each target installs what it needs: Debian packages where some are missing, and a virtual environment in .venv.
# PYTHON=/path/to/python names the Python to make it from (3.11 or newer).

SHELL := /bin/bash
export PYTHON
PYTEST = .venv/bin/python -m pytest -n auto

.PHONY: help demo demo-conda test test-all lint types bench clean

help:
	@echo "make demo      build families/pypi/base-notebook from its lock, start JupyterLab in it, see that it answers"
	@echo "make demo-conda   the same with conda packages, from a channel made here"
	@echo "make test      the tests (some minutes)"
	@echo "make test-all  the slow ones too (much longer, several GB)"
	@echo "make lint      format and style"
	@echo "make types     mypy --strict"
	@echo "make bench     measure against buildah, print a table of ratios"
	@echo "make clean     remove what the targets above made in this folder; the store stays"

demo:
	@scripts/prepare build
	@.venv/bin/python scripts/demo.py

demo-conda:
	@scripts/prepare test
	@.venv/bin/python scripts/demo_conda.py

test:
	@scripts/prepare test
	@$(PYTEST) -m "not slow" $(ARGS)

test-all:
	@scripts/prepare test
	@$(PYTEST) $(ARGS)

lint:
	@scripts/prepare test
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .

types:
	@scripts/prepare test
	@.venv/bin/mypy

bench:
	@scripts/prepare test
	@.venv/bin/python benchmarks/run.py $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
