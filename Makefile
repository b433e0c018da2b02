# Everything runs in .venv, which is made with python3 alone and renewed when pyproject.toml or
# constraints.txt change. ARGS is passed on: make reproduce-cifar10 ARGS="--profile paper"
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.up-to-date

.PHONY: help setup test test-slow test-gate reproduce-cifar10 bench report lint fresh constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make or renew .venv with the tested versions

test: $(STAMP)  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gate" $(ARGS)

test-slow: $(STAMP)  ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(ARGS)

test-gate: $(STAMP)  ## the gate on planted and on unchanged code: half an hour
	$(BIN)/python -m pytest -m gate $(ARGS)

reproduce-cifar10: $(STAMP)  ## sample, score and compare with the paper, into runs/reproduce-cifar10/
	$(BIN)/cmrepro reproduce cifar10 --out runs/reproduce-cifar10 $(ARGS)

bench: $(STAMP)  ## the regression gate: speed and scores (ARGS=--full for full sizes, --update for baselines of this machine, --update-scores)
	$(BIN)/python -m pytest benchmarks $(ARGS)

report: $(STAMP)  ## the committed REPORT.md, tables and figures from the records in results/
	$(BIN)/cmrepro report $(ARGS)

lint: $(STAMP)  ## ruff, mypy and the import order
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fresh: $(STAMP)  ## the main job from a wheel, in an empty environment and an empty folder
	bash .ci/fresh

constraints: $(BIN)/uv  ## constraints.txt from pyproject.toml; ARGS=--upgrade takes newer versions
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
	  --custom-compile-command "make constraints (ARGS=--upgrade takes newer versions)" \
	  $(ARGS) pyproject.toml --output-file constraints.txt

clean:  ## remove .venv, caches and build products
	rm -rf .venv .tox .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks build dist
	find cmrepro tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing); name another one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# --exact removes packages that are no longer required, so that a renewed environment equals a new one.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --exact --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@
