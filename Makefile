# `make` lists the targets. Everything runs from .venv, made here from the system's own Python.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# Tests wait for engines and packets more than they compute, so there may be more than cores.
WORKERS ?= 3
PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadgroup
export PYTHON
PREFIX ?= /usr/local

.DEFAULT_GOAL := help
.PHONY: help venv demo bench test test-all lint format clean packages-venv packages-bench packages-lab packages-desk packages-rivals tree-bookworm tree-trixie tree-sid install deb arch release

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: packages-lab $(VENV)/.project ## Show the whole thing at work in a sandbox (as root)
	@exec $(BIN)/python -m tests.demo

test: packages-lab packages-desk packages-rivals lint tree-bookworm tree-trixie ## Lint, then every test that CI runs (as root)
	$(PYTEST)

test-all: packages-lab packages-desk packages-rivals lint tree-bookworm tree-trixie tree-sid ## The same with all engines; writes reports into docs/
	$(PYTEST) --engines=all --report=docs

install: ## Install into DESTDIR and PREFIX (/usr/local), as root, from any distribution
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/install.sh --with-python

bench: packages-lab packages-bench $(VENV)/.tests ## Measure how fast it is; writes docs/performance (as root)
	$(BIN)/python -m bench

deb: ## Build the package for Debian into dist/
	packaging/deb/build.sh

arch: ## Build the package for Arch into dist/
	packaging/arch/build.sh

release: ## Make what is published of the tag TAG into dist/release
	packaging/release.sh $(TAG)

venv: $(VENV)/.project ## Make .venv with ipv6natd and ipv6natctl in it

lint: $(VENV)/.tests ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.tests ## Put the sources into their one form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove .venv and what tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Whole trees of other suites of Debian, with their engines, each made once outside of this folder.
tree-bookworm tree-trixie tree-sid: packages-lab $(VENV)/.project
	@$(BIN)/python -m tests.trees $(@:tree-%=%)

packages-lab:
	@tests/install.sh lab

packages-desk:
	@tests/install.sh desk

packages-rivals:
	@tests/install.sh rivals

packages-bench:
	@tests/install.sh bench

packages-venv:
	@tests/install.sh venv

# The stamps: with them nothing is installed again, and no network is needed. The four libraries
# come from the distribution where it has them, as on a user's host.
$(VENV)/.project: pyproject.toml | packages-venv
	@echo "Making $(VENV) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/pip --quiet --disable-pip-version-check install -e .
	@touch $@

$(VENV)/.tests: pyproject.toml $(VENV)/.project
	@$(BIN)/pip --quiet --disable-pip-version-check install -e '.[test]'
	@touch $@
