# Every target makes .venv, and brings it up to date when pyproject.toml has changed, before it runs.

PYTHON ?= python3
# What tests and demo also run against, where it can be installed. `make TORCH= test` does without.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all mutants lint bench docs clean

demo: $(VENV)/dev.stamp
	$(BIN)/python docs/examples/demo.py

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

test-all: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=long

# Are the tests strict? The code of the lowest rooms, broken in every small way: three quarters of an hour on two cores.
mutants: $(VENV)/mutants.stamp
	rm -rf mutants
	$(BIN)/python tests/mutants/run.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find refattn -name '*.py' | xargs $(BIN)/numpydoc lint
	$(BIN)/codespell
	$(BIN)/rumdl check
	$(BIN)/repo-review . --show err

# One pass over every benchmark at the last commit: what is not committed is not measured.
bench: $(VENV)/bench.stamp
	test -f ~/.asv-machine.json || $(BIN)/asv machine --yes
	$(BIN)/asv run --quick --show-stderr --launch-method spawn 'HEAD^!'

docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) demo.png .asv .hypothesis .mypy_cache .pytest_cache .ruff_cache .rumdl_cache build dist mutants docs/_build docs/_generated
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made.stamp:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/made.stamp
	$(PIP) --editable ".[plot,testing]" --group dev
	@test -z "$(TORCH)" || $(PIP) "$(TORCH)" || \
	  echo "NOTE: $(TORCH) was not installed. Tests of PyTorch will be counted as skipped; the demo leaves PyTorch out."
	touch $@

$(VENV)/mutants.stamp: pyproject.toml | $(VENV)/dev.stamp
	$(PIP) --group mutants
	touch $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/dev.stamp
	$(PIP) --group docs
	touch $@

$(VENV)/bench.stamp: pyproject.toml | $(VENV)/made.stamp
	$(PIP) --group bench
	touch $@
