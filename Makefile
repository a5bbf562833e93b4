# Everything here sets up .venv first, from constraints.txt (the tested set). PYTHON chooses the interpreter that makes it.

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
# One thread per process: the test workers share the cores, and sums then have one order.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help setup demo test check bench tables docs

help:
	@echo "make demo   train a control and a steerable encoder on bundled photographs, audit both, write runs/demo/report.html"
	@echo "make test   the default test suite (JOBS=$(JOBS) processes)"
	@echo "make check  ruff and pyright"
	@echo "make bench  measure speed; writes results/*.json"
	@echo "make tables SIZE=small|full DATA=FOLDER  train and evaluate the cells of recipes/tables that are missing (JOBS side by side)"
	@echo "make docs   write the generated pages and tables again from results/*.json and the docstrings"

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and \
		"$(PYTHON) is Python %d.%d; expected 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: setup
	$(BIN)/steerable demo

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	$(BIN)/python benchmarks/transforms.py

SIZE ?= small
DATA ?= ../shared/data
tables: JOBS = 1
tables: setup
	$(BIN)/python benchmarks/tables.py recipes/tables/$(SIZE)/*.yaml --data $(DATA) --jobs $(JOBS)

docs: setup
	$(BIN)/python docs/pictures/idea.py
	$(BIN)/python docs/pictures/depth.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/python benchmarks/results_table.py
