# make demo: the main job on a real model. make test: every quick test. make help: the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_MODEL = $$($(BIN)/python -c 'import importlib.util, pathlib; \
    print(pathlib.Path(importlib.util.find_spec("onnx").origin).parent / \
    "backend/test/data/light/light_resnet50.onnx")')

# Stamps: an install is redone only when what it depends on has changed.
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check readme docs clean

help: ## Say what each target does.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(BASE) ## Analyse a real ResNet-50 on an H100 and print what limits each operator.
	$(BIN)/opbound analyze "$(DEMO_MODEL)" --hardware h100-sxm-80gb --batch 32 --top 20

test: $(DEV) ## Run the quick tests.
	$(BIN)/python -m pytest -q -n auto --dist worksteal

test-all: $(DEV) ## Run every test, the slow ones too.
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m ""

check: $(DEV) ## Format, lint, types, layers.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

readme: $(DEV) ## Write the present output of their commands into README.md and docs/.
	OPBOUND_UPDATE_DOCS=1 $(BIN)/python -m pytest -q -m "" -k commands_print tests/opbound/test_readme.py tests/opbound/test_docs.py

docs: $(DEV) ## Build the site of docs/ in build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## Remove the environment and every cache.
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "opbound needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(BASE): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV): $(BASE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,hf,dev,docs]'
	@touch $@
