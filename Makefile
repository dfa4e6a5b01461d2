# Each target is enough on its own on a fresh machine: what it needs is set up first, in .venv.
#   PYTHON=python3.12     the interpreter of a new .venv
#   DETECTRON2=SOURCE     detectron2 compiled from its repository (official), a folder, a wheel or a
#                         pip url; left out, its Python files from the package registry
# Tested on Linux; macOS is untried (torch has wheels for Apple silicon alone).

SHELL := /bin/bash
.DEFAULT_GOAL := help
export PYTHON DETECTRON2
# Where it is set, as in many containers, every process compiles anew all that it imports, longer
# than all else of its start.
unexport PYTHONDONTWRITEBYTECODE

python := .venv/bin/python
# One worker a core, and one torch thread a worker (tests/conftest.py).
WORKERS ?= auto

.PHONY: help setup demo reproduce-table test lint docs format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.* ## (.*)/\1|\2/' \
		| while IFS='|' read -r target text; do printf '  make %-16s %s\n' "$$target" "$$text"; done

setup: ## install everything into .venv (pinned versions; nothing is compiled)
	@tools/setup.sh

demo: setup ## generate the data set, train and evaluate two small detectors, print one table
	.venv/bin/bucketrank demo

# DATASET=coco GPUS=8 trains the full-size detectors; the rest narrows or widens the grid.
table_options := $(foreach name,DATASET DETECTORS LOSSES SEEDS PROFILE GPUS PROCESSES_PER_CELL OUTPUT,\
	$(if $($(name)),--$(shell echo $(name) | tr A-Z_ a-z-) '$($(name))'))

reproduce-table: setup ## train detectors x losses and compare them; see docs/choosing-a-loss.md
	.venv/bin/bucketrank table $(table_options)

test: setup ## run the tests
	$(python) -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

lint: setup ## check style, format and the types of the losses
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

docs: ## build the documentation's site; warnings and links that lead nowhere are errors
	@tools/setup.sh docs
	$(python) -m sphinx -W --keep-going -q -E -a docs build/docs
	@echo "docs: open build/docs/index.html"

format: setup ## put the sources into the house format
	$(python) -m ruff check --fix-only .
	$(python) -m ruff format .

clean: ## remove .venv, caches and build products; runs and data stay
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
