# `make` lists the targets. All targets use .venv, which is made with the system's Python.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# There may be more workers than cores: tests mostly wait for engines and packets.
WORKERS ?= 4
PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadgroup --no-loadscope-reorder
LOCK := tests/lock
# The folders of tests that need only Python.
QUICK := tests/unit tests/docs tests/harness
PIP := $(BIN)/pip --quiet --disable-pip-version-check
LOCKED := --require-hashes --requirement
# Locks for all supported Pythons and systems, with the sums of all files and without index URLs.
UV := $(VENV)/tools/bin/uv --quiet pip compile --no-config --upgrade --universal --python-version=3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command='make lock'
export PYTHON
PREFIX ?= /usr/local

.DEFAULT_GOAL := help
.PHONY: help venv check demo bench soak test test-all test-supply lock audit wheel packages-newest lint format clean packages-venv packages-bench packages-lab packages-desk packages-rivals packages-cockpit packages-browser packages-compose tree-bookworm tree-trixie tree-sid tree-image install uninstall deb image arch pyz sbom release fuzz

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

demo: packages-lab $(VENV)/.project ## Show ipv6natd at work in a sandbox (as root)
	@exec $(BIN)/python -m tests.harness.demo

check: lint ## Style, types and unit tests, in a minute; T=tests/unit/policy for a part
	$(BIN)/pytest --quiet --numprocesses=auto --dist=loadgroup $(or $(T),$(QUICK))

test: packages-lab packages-desk packages-rivals packages-cockpit check tree-bookworm tree-trixie $(VENV)/newest/.stamp ## `make check`, then every test that CI runs (as root)
	$(PYTEST) $(QUICK:%=--ignore=%)

test-all: packages-lab packages-desk packages-rivals packages-cockpit packages-browser lint tree-bookworm tree-trixie tree-sid tree-image $(VENV)/newest/.stamp $(VENV)/3.12/.stamp $(VENV)/tools/.stamp ## All tests, with all engines, Pythons and libraries; writes reports into docs/
	$(PYTEST) --engines=all --report=docs

test-supply: packages-lab lint tree-trixie tree-sid $(VENV)/newest/.stamp $(VENV)/3.12/.stamp ## Every Python with every version of the libraries; writes docs/supply.md (as root)
	$(PYTEST) --engines=all --report=docs tests/system/supply

lock: $(VENV)/tools/.stamp ## Raise the pinned versions in tests/lock to the newest
	@for name in build test tools; do $(UV) --group=$$name --output-file=$(LOCK)/$$name.txt; done
	@$(UV) --extra=legacy pyproject.toml --output-file=$(LOCK)/newest.txt

audit: $(VENV)/tools/.stamp ## Ask PyPI whether a version in tests/lock has a known vulnerability
	@failed=0; for name in build test tools newest; do echo "$$name:"; \
	$(VENV)/tools/bin/pip-audit --strict --disable-pip --require-hashes -r $(LOCK)/$$name.txt || failed=1; \
	done; exit $$failed

soak: packages-lab packages-rivals $(VENV)/.tests ## Faults and long random runs, an hour (SEED=, MINUTES=); writes docs/reliability.md (as root)
	$(BIN)/python -m tests.stress.soak $(if $(SEED),--seed=$(SEED)) $(if $(MINUTES),--minutes=$(MINUTES))

install: ## Install into DESTDIR and PREFIX (/usr/local), as root, from any distribution
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/install.sh --with-python

uninstall: ## Stop the service, remove its rules and the files of `make install` (PREFIX, DESTDIR), as root
	@DESTDIR="$(DESTDIR)" PREFIX="$(PREFIX)" packaging/uninstall.sh

bench: packages-lab packages-bench $(VENV)/.tests ## Measure the speed; writes docs/performance (as root)
	$(BIN)/python -m bench

wheel: $(VENV)/.project ## Build wheel and sdist into dist/, reproducibly
	@SOURCE_DATE_EPOCH=$$(date -d "$$(sed -n 's/^ -- .*>  //p' packaging/deb/debian/changelog | head -n 1)" +%s) \
	$(BIN)/hatchling build

pyz: $(VENV)/newest/.stamp ## Build dist/ipv6natd.pyz, one file with all libraries
	@packaging/pyz.sh $(VENV)/newest

fuzz: $(VENV)/.fuzz ## Feed every parser with generated input; FUZZ=, SECONDS=600, SEED=, KEEP=1
	$(BIN)/python -m tests.stress.fuzz $(FUZZ) --seconds=$(or $(SECONDS),600) --seed=$(or $(SEED),0) $(if $(KEEP),--keep)

deb: ## Build the package for Debian into dist/
	packaging/deb/build.sh

image: deb ## Build the container image of dist/ipv6natd_*.deb into dist/ipv6natd-image.tar, as root
	@tests/install.sh trees
	packaging/container/build.sh dist/ipv6natd_*_all.deb

arch: ## Build the package for Arch into dist/
	packaging/arch/build.sh

sbom: $(VENV)/tools/.stamp $(VENV)/newest/.stamp ## List the libraries of the single file in dist/ipv6natd.cdx.json (CycloneDX)
	@mkdir -p dist
	@$(PIP) freeze --path $(VENV)/newest --exclude python-iptables | $(VENV)/tools/bin/cyclonedx-py requirements \
	--pyproject=pyproject.toml --output-reproducible --of=JSON -o dist/ipv6natd.cdx.json -

release: $(VENV)/newest/.stamp sbom ## Make the files of the release with the tag TAG in dist/release, as root (IMAGE=no: as any user)
	@packaging/release.sh "$(TAG)" $(VENV)/newest dist/ipv6natd.cdx.json

venv: $(VENV)/.project ## Make .venv with ipv6natd and ipv6natctl in it

lint: $(VENV)/.tests ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(VENV)/.tests ## Format the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove .venv and files of the tools
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .fuzz dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Whole trees of other Debian suites with their engines, each made once outside of this folder.
tree-bookworm tree-trixie tree-sid: packages-lab $(VENV)/.project
	@$(BIN)/python -m tests.harness.trees $(@:tree-%=%)

# What the container image has except ipv6natd, so that a test of the image needs no network.
tree-image: packages-lab packages-compose $(VENV)/.project
	@$(BIN)/python -m tests.harness.image

packages-lab:
	@tests/install.sh lab

packages-compose:
	@tests/install.sh compose

packages-desk:
	@tests/install.sh desk

packages-cockpit:
	@tests/install.sh cockpit

packages-browser:
	@tests/install.sh browser

packages-rivals:
	@tests/install.sh rivals

packages-bench:
	@tests/install.sh bench

packages-newest:
	@tests/install.sh newest

packages-venv:
	@tests/install.sh venv

# The stamps prevent a second installation, so that no network is needed. The libraries come from the
# distribution if it has them, as on a user's host.
$(VENV)/.project: pyproject.toml $(LOCK)/build.txt | packages-venv
	@echo "Making $(VENV) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(PIP) install $(LOCKED) $(LOCK)/build.txt
	@$(PIP) install --no-build-isolation -e .
	@touch $@

$(VENV)/.tests: $(LOCK)/test.txt $(VENV)/.project
	@$(PIP) install $(LOCKED) $(LOCK)/test.txt
	@touch $@

$(VENV)/.fuzz: $(VENV)/.tests
	@$(PIP) install atheris==3.0.0
	@touch $@

# The newest tested libraries, in one folder for every Python. The only compiled library does not
# depend on the version of Python, only its file name does.
$(VENV)/newest/.stamp: $(LOCK)/newest.txt $(VENV)/.project | packages-newest
	@echo "Getting the newest libraries ..."
	@rm -rf $(@D)
	@$(PIP) install --no-deps --target=$(@D) $(LOCKED) $(LOCK)/newest.txt
	@cd $(@D) && ln -s libxtwrapper.*.so libxtwrapper.so
	@touch $@

# Debian has no Python 3.12; the tests use one of pyenv, if it is installed. It gets only the newest
# libraries, by a .pth file: commands that the tests run have no $PYTHONPATH.
$(VENV)/3.12/.stamp: $(LOCK)/test.txt $(VENV)/.project
	@python=$$(ls -d ~/.pyenv/versions/3.12.*/bin/python3.12 2>/dev/null | tail -n 1); \
	test -z "$$python" || { "$$python" -m venv --clear $(@D) && \
	$(@D)/bin/pip --quiet --disable-pip-version-check install $(LOCKED) $(LOCK)/test.txt && \
	echo "$(CURDIR)/$(VENV)/newest" >$(@D)/lib/python3.12/site-packages/newest.pth; }
	@mkdir -p $(@D) && touch $@

$(VENV)/tools/.stamp: $(LOCK)/tools.txt $(VENV)/.project
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/pip --quiet --disable-pip-version-check install $(LOCKED) $(LOCK)/tools.txt
	@touch $@
