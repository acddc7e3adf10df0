# Two commands do everything: `make run` and `make test`. Both make .venv when it is not there.
#
# .venv holds the pinned versions of requirements.lock. The stamps say what is installed in it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
RECIPE ?= recipes/quickstart.toml
RESULTS ?= benchmarks/results
WORKERS ?= 2

PLUGINS := $(wildcard plugins/distillkit-*)

.PHONY: help run test test-slow test-plugins test-plugins-slow check audit docs figures walk trust lock clean study
.PHONY: acceptance bench bench-53m bench-quickstart bench-writing bench-tokens bench-soft

help:
	@echo "make run          install, then distil the quickstart's student (RECIPE=... for another)"
	@echo "make test         install what tests need, then run them (WORKERS=... processes)"
	@echo "make test-slow    the tests that take long"
	@echo "make test-plugins the packages of plugins/, each installed with what it needs"
	@echo "make trust        what is promised of answers, weights, keys and disks, tried in full and written to docs/trust.md"
	@echo "make acceptance   the experiments that are too long for CI, each once, results as JSON (SMALL=--small)"
	@echo "make bench        measure every claim of benchmarks/README.md (RESULTS=... for another folder)"
	@echo "make study        what each way to distil is worth: 80 minutes, written to docs/study.md"
	@echo "make check        format, lint, types, generated docs, secrets, no code from data"
	@echo "make audit        look up known weaknesses of the pinned versions (needs the network)"
	@echo "make docs         write the generated docs again, and build the site: build/site/index.html"
	@echo "make figures      draw the pictures of the guide again"
	@echo "make walk         run every command of the guide (WALK=--write writes what they print into it)"
	@echo "make lock         pin the newest versions (needs uv)"

run: $(VENV)/.run
	$(BIN)/distillkit run $(RECIPE)

# A process that is done takes over tests of the others.
PARALLEL := -n $(WORKERS) --dist worksteal

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL)

# What measures speed comes last, with nothing beside it.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not timing"
	$(BIN)/python -m pytest -m "slow and timing"

# The table is written also when something did not hold: it says so. It wants Chromium, and root for small disks.
trust: $(VENV)/.dev
	rm -rf $(VENV)/trust
	DISTILLKIT_TRUST=$(CURDIR)/$(VENV)/trust $(BIN)/python -m pytest -m trust \
		--junitxml=$(VENV)/trust/tests.xml; code=$$?; \
	$(BIN)/python tests/support/trust_page.py $(VENV)/trust && exit $$code

# The packages stand in a folder of their own, not in .venv: the other tests and the generated docs must not see them.
test-plugins: $(VENV)/.plugins
	PYTHONPATH=$(CURDIR)/$(VENV)/plugins $(BIN)/python -m pytest $(PARALLEL) $(PLUGINS:=/tests)

test-plugins-slow: $(VENV)/.plugins
	PYTHONPATH=$(CURDIR)/$(VENV)/plugins $(BIN)/python -m pytest -m slow $(PLUGINS:=/tests)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python .ci/secrets.py
	$(BIN)/python .ci/lint.py

# Known weaknesses that have no fix and do not reach us: each is argued in SECURITY.md, and a test holds that it is.
ARGUED := CVE-2025-69872

audit:
	test -x $(VENV)/audit/bin/pip-audit || $(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check --quiet install "pip-audit>=2.9"
	$(VENV)/audit/bin/pip-audit --disable-pip --require-hashes --desc -r requirements.lock -r requirements-dev.lock \
		-r requirements-docs.lock $(addprefix --ignore-vuln ,$(ARGUED))

# Continues where an earlier call stopped.
acceptance: $(VENV)/.dev
	$(BIN)/python benchmarks/acceptance.py $(SMALL) --results $(RESULTS)/acceptance

# Every claim, also when one does not hold. Peers (torch, mlx-lm) are measured where they are installed.
bench:
	@$(MAKE) --keep-going --no-print-directory bench-tokens bench-quickstart bench-writing bench-soft bench-53m

bench-53m: $(VENV)/.run
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/train.py 53m --installed --json $(RESULTS)/train-53m.json

bench-quickstart: $(VENV)/.run
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/train.py quickstart --steps 20 --json $(RESULTS)/train-quickstart.json

bench-writing: $(VENV)/.run
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/generate.py --json $(RESULTS)/generate.json

bench-soft: $(VENV)/.run
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/soft.py quickstart --steps 30 --json $(RESULTS)/soft-quickstart.json
	$(BIN)/python benchmarks/soft.py 53m --json $(RESULTS)/soft-53m.json

bench-tokens: $(VENV)/.run
	@mkdir -p $(RESULTS)
	$(BIN)/python benchmarks/tokens.py --json $(RESULTS)/tokens.json

study: $(VENV)/.run
	$(BIN)/python benchmarks/study.py --markdown docs/study.md

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/diagrams.py
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/site
	@echo "The site: build/site/index.html"

FIGURES := $(sort $(wildcard docs/figures/[a-z]*.py))
WALK ?= --check

figures: $(VENV)/.docs
	@for figure in $(FIGURES); do echo $$figure; $(BIN)/python $$figure || exit 1; done
	$(BIN)/python docs/compare_picture.py docs/compare.png
	$(BIN)/python docs/picture.py docs/quickstart.svg "make run" $(abspath $(BIN))/distillkit run quickstart

walk: $(VENV)/.docs
	$(BIN)/python docs/walk.py $(WALK)

$(VENV)/.run: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("distillkit needs Python 3.11 or newer: make PYTHON=python3.11 run" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing distillkit into $(VENV)."
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/.docs: $(VENV)/.dev requirements-docs.lock
	$(PIP) install --require-hashes -r requirements-docs.lock
	@touch $@

$(VENV)/.plugins: $(VENV)/.dev $(wildcard $(PLUGINS:=/pyproject.toml) $(PLUGINS:=/*/*.py))
	$(PIP) install "mlx-lm>=0.32.2" "wandb>=0.20" "tensorboard>=2.15"
	rm -rf $(VENV)/plugins
	$(PIP) install --no-deps --no-build-isolation --target $(VENV)/plugins $(addprefix ./,$(PLUGINS))
	@touch $@

# Hashes without the name of any index, for every platform and Python that we support.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --extra cpu --group build pyproject.toml

lock:
	$(COMPILE) --upgrade -o requirements.lock
	$(COMPILE) --group test --group check -c requirements.lock -o requirements-dev.lock
	$(COMPILE) --group docs -c requirements-dev.lock -o requirements-docs.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
