# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON picks the interpreter (3.11 to 3.13), VENV the place of the environment.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# A file's tests run in one process, which makes the models that they share once; in order, so that the last are short.
PYTEST = -q -n 2 --dist loadfile --no-loadscope-reorder
READY = $(VENV)/.gqakit-ready

.PHONY: demo test matrix lint ruff format docs mutation clean

demo: $(READY)
	$(BIN)/gqakit demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST)

# What must hold for every family, on all of them; `make test` has a sample.
matrix: $(READY)
	$(BIN)/python -m pytest $(PYTEST) -m matrix

lint: ruff
	$(BIN)/pyright --pythonpath $(BIN)/python

ruff: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

# Not a part of the tests: minutes to hours, by the number of mutants. See benchmarks/mutation.py.
mutation: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'mutmut>=3.8'
	$(BIN)/python benchmarks/mutation.py

clean:
	rm -rf $(VENV) demo-out benchmarks/out site

# torch comes first and alone: it is pinned, so that no open range can pull another build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
