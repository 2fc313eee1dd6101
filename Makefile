# make demo: train and show a model from nothing.  make test: the tests.  Both set up .venv first where it is missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Waiting OpenMP threads sleep instead of spinning, which matters as soon as two processes share the cores.
export OMP_WAIT_POLICY := PASSIVE
# They look for work this often before they do, or short operations would pay for waking them: 1.3 times the speed (docs/log.md).
export GOMP_SPINCOUNT := 20000
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test gpu-test lint types format docs clean

help:
	@echo "make demo      pretrain a small LLM, teach it to draw, write out/demo/report.html"
	@echo "make test      every test that needs no GPU   (ARGS='tests/sequence/test_mask.py -x' for some)"
	@echo "make gpu-test  the tests that need one"
	@echo "make lint      ruff over everything: rules and format  (make format repairs what it can)"
	@echo "make types     mypy, as far as pyproject.toml has it switched on"
	@echo "make docs      the documentation as a site in out/site"
	@echo "make clean     remove .venv, caches and build products; out/ stays"

demo: setup
	$(BIN)/python -m train.demo $(ARGS)

# A process for each core, with a thread each: tiny models gain little from a second one.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not gpu" -n auto --maxprocesses 8 --dist worksteal $(ARGS)

# What torch compiles there cannot pass through the checks of shapes and types.
gpu-test: setup
	JAXTYPING_DISABLE=1 $(BIN)/python -m pytest -q -m gpu $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/mkdocs build --strict -d out/site

setup: $(VENV)/installed

# The stamp is written last, so that an interrupted installation is repeated and a finished one is not.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
