# Needs Python 3.11-3.14 and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two at a time, whatever the number of cores: each has a Ray of its own.
# Compiled first, for where PYTHONDONTWRITEBYTECODE is set: a run has a dozen processes that import.
PYTEST := $(BIN)/python -m compileall -q raytrain && $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: train unit test test-all lint format bench clean

train: $(READY)  ## Train CartPole to its stop.
	$(BIN)/raytrain train configs/cartpole.yaml

unit: $(READY)  ## What needs no Ray: under a minute.
	$(PYTEST) -m "not slow" tests/unit

test: $(READY)  ## Everything that takes minutes, with real Ray and real kills.
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## And what takes longer, with the lines that were run: build/coverage/html.
	$(PYTEST) --cov --cov-report=term --cov-report=html

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Benchmark tables, printed and written to build/benchmarks.json.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python tests/benchmarks

# The one that makes the environment, or has made it.
MAKER := $(if $(wildcard $(BIN)/pip),$(BIN)/python,$(PYTHON))
ANOTHER := Name another one: make clean; make train PYTHON=python3.12
# Python 2 must be able to read this.
CHECK := import sys; found = "%d.%d" % sys.version_info[:2]; found in ("3.11", "3.12", "3.13", "3.14") or \
	sys.exit("raytrain needs Python 3.11 to 3.14, and $(MAKER) is " + found + ". $(ANOTHER)")

# Torch comes first and alone: with it in place, no other package asks for another build of it.
$(READY): pyproject.toml constraints.txt
	@command -v $(MAKER) > /dev/null || { echo "There is no $(MAKER) here. $(ANOTHER)" >&2; exit 1; }
	@$(MAKER) -c '$(CHECK)'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,mujoco,atari]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
