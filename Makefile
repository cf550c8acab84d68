# Each target installs what it needs: Debian packages where some are missing, and a virtual environment in .venv.
# PYTHON=/path/to/python names the Python to make it from (3.11 or newer).

SHELL := /bin/bash
export PYTHON
PYTEST = .venv/bin/python -m pytest -n auto

.PHONY: help demo demo-conda test test-all lint types bench bench-conda clean

help:
	@echo "make demo         build families/pypi/base-notebook from its lock, start JupyterLab in it, see that it answers"
	@echo "make demo-conda   the same with conda packages, from a channel made here"
	@echo "make test         the tests (some minutes)"
	@echo "make test-all     the slow ones too (much longer, several GB)"
	@echo "make lint         format and style"
	@echo "make types        mypy --strict"
	@echo "make bench        measure against buildah, print a table of ratios"
	@echo "make bench-conda  the same for conda packages, beside rattler, PyYAML and buildah"
	@echo "make clean        remove what the targets above made in this folder; the store stays"

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

# CHANNEL is a channel of real records to solve on: a folder, or an archive of one.
CHANNEL ?= ../shared/data/conda-forge-channel.tar.xz
bench-conda:
	@scripts/prepare test
	@.venv/bin/python benchmarks/conda_lock.py $(CHANNEL)
	@.venv/bin/python benchmarks/conda_lock_read.py
	@.venv/bin/python benchmarks/conda_layers.py
	@.venv/bin/python benchmarks/conda_build.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
