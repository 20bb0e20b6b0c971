# Two commands for a fresh clone, each doing all of its own set-up: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
JOBS ?= 2

.PHONY: demo test checked check tests oldest benchmarks clean

demo: $(VENV)/installed
	$(BIN)/gaincal demo -o demo --overwrite

test: checked tests oldest

# The checks use one core while the oldest set is fetched.
checked: $(VENV)/installed-dev
	$(MAKE) --no-print-directory -j 2 check $(OLDEST)/installed

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Every way through the code once: the enumerations, the long tests and the speed belong to the current set.
oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest tests -n $(JOBS) --dist loadfile -m "not slow and not exhaustive"

benchmarks: $(VENV)/installed-dev
	$(BIN)/python benchmarks/run.py

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[plot]'
	touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(OLDEST)/installed: pyproject.toml tests/constraints-oldest.txt tests/make_oldest.sh
	bash tests/make_oldest.sh $(OLDEST)
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) demo build dist
