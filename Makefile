# Two commands do everything: `make quickstart` and `make test`. Each creates what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint benchmark clean

quickstart: $(VENV)/.installed
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 8

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

benchmark: $(VENV)/.installed
	$(BIN)/python scripts/benchmark.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
