# Each target sets up what it needs: a .venv with pinned versions. PYTHON=... chooses another interpreter.
SHELL := /bin/bash
PRESET ?= demo
ARGS ?=
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.11 python3.10,$(shell $(p) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $(p))))
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TOKENIZERS_PARALLELISM := false
# Threads that wait for each other for long sleep meanwhile, so that other programs get the cores: see nbs/00b_devices.ipynb.
export GOMP_SPINCOUNT := 1000
export KMP_BLOCKTIME := 1

# A system package is installed as root only after a yes: to the question, or with APT=yes. Without a terminal nobody is asked.
APT ?= ask
yes = test "$(APT)" = yes || { test "$(APT)" = ask && test -t 0 && read -rp "Run this as root: $(1) [y/N] " reply && test "$$reply" = y; }
apt = test $$(id -u) = 0 && { $(call yes,apt-get update && apt-get install -y $(1)); } && echo "Running as root: apt-get update && apt-get install -y $(1)" && apt-get update -q && apt-get install -yq $(1)

.PHONY: help report lint test lab export docs docs-serve clean setup links

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(READY) ## Make the .venv with pinned versions (the other commands do it by themselves), and the git hooks; APT=yes: python3-venv too, as root
	@test ! -e .git || ! command -v git >/dev/null || sh .githooks/install

$(READY): constraints.txt settings.ini setup.py
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 found. Install one, or say which: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call apt,python3-venv); } || { echo "Python's venv module is incomplete. Install it: sudo apt-get install python3-venv, or as root: make setup APT=yes"; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version): some minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs,pipeline,analysis,onnx,openvino,serve,excel,scale]'
	@touch $@

report: $(READY) ## Run the pipeline and publish reports/NAME; PRESET=paper or best, ARGS="--set data=... --set backbone=..."
	@imdb-sentiment report --preset $(PRESET) $(ARGS)

lint: $(READY) ## The quick checks, seconds: ruff on library, notebooks and tests, codespell, mypy on the library
	ruff check -q
	ruff format --check -q nbs tests setup.py
	codespell
	mypy --no-error-summary

# Two tests run at a time, and threads that wait for work would keep the other one from it. No test needs the Hub, and without a network it would be asked in vain for a minute.
test: export OMP_NUM_THREADS := 1
test: export HF_HUB_OFFLINE := 1
test: lint ## Every check: lint, notebooks in sync and clean, their asserts, pytest, the demo report end to end
	@command -v chromium >/dev/null || { $(call apt,chromium); } || echo "No Chromium: what needs a browser is skipped. Install it: sudo apt-get install chromium, or as root: make test APT=yes"
	python -c "from imdb_sentiment.examples import check_examples; check_examples()"
	python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

lab: $(READY) ## Open JupyterLab on the notebooks
	jupyter lab --notebook-dir=nbs

export: $(READY) ## Notebooks to library and README: run it after editing a notebook
	ruff format -q nbs tests setup.py
	nbdev_export
	nbdev_clean --fname nbs
	imdb-sentiment readme

links: $(READY) ## Write the project's address into all files, after user or repo changed in settings.ini
	@imdb-sentiment links
	@$(MAKE) export

docs: $(READY) ## Build the docs site in _site, offline; it runs the examples that the tests have not run
	@imdb-sentiment docs

docs-serve: docs ## Build the site and show it at http://127.0.0.1:8001
	python -m http.server 8001 --bind 127.0.0.1 --directory _site

clean: ## Delete run folders, caches and the .venv; published reports stay
	rm -rf runs _docs _site .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache nbs/.ipynb_checkpoints
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
