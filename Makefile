# Two commands do everything: `make run` and `make test`. Both make .venv when it is not there.
#
# .venv holds the pinned versions of requirements.lock. The stamps say what is installed in it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
RECIPE ?= recipes/quickstart.toml

.PHONY: help run test test-slow check docs lock clean

help:
	@echo "make run          install, then distil the quickstart's student (RECIPE=... for another)"
	@echo "make test         install what tests need, then run them"
	@echo "make test-slow    the tests that take long"
	@echo "make check        format, lint, types, generated docs, secrets"
	@echo "make docs         write the generated docs again"
	@echo "make lock         pin the newest versions (needs uv)"

run: $(VENV)/.run
	$(BIN)/distillkit run $(RECIPE)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python .ci/secrets.py

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

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

# Hashes without the name of any index, for every platform and Python that we support.
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate --extra cpu --group build pyproject.toml

lock:
	$(COMPILE) --upgrade -o requirements.lock
	$(COMPILE) --group test --group check -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
