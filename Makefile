# Two commands do everything: `make quickstart` and `make test`. Each installs what it needs, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint docs benchmark gpu clean

quickstart: $(VENV)/.run
	$(BIN)/python scripts/quickstart.py

benchmark: $(VENV)/.run
	$(BIN)/python scripts/benchmark.py

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

# Those that take minutes: sweeps that are killed, Ray, SLURM's jobs, installed packages, seeds.
test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

# Everything that only a GPU can show, into gpu_check.txt.
gpu: $(VENV)/.dev
	PYTHON=$(BIN)/python scripts/gpu_check.sh

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site of docs/, without a warning, into build/site.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going docs build/site

$(VENV)/.run: EXTRAS := plots
$(VENV)/.dev: EXTRAS := dev
$(VENV)/.run $(VENV)/.dev: pyproject.toml
	@echo "Installing eakd[$(EXTRAS)] and PyTorch into $(VENV): a few minutes, once, mostly downloading."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV)
