# Needs Python 3.10-3.13 and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two at a time, whatever the number of cores: each has a Ray of its own.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: train test test-all lint bench clean

train: $(READY)  ## Train CartPole to its stop.
	$(BIN)/raytrain train configs/cartpole.yaml

test: $(READY)  ## Everything that takes minutes, with real Ray and real kills.
	$(PYTEST) -m "not slow"

test-all: $(READY)  ## And what takes longer.
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## Benchmark tables, printed and written to build/benchmarks.json.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	$(BIN)/python tests/benchmarks

# Torch comes first and alone: with it in place, no other package asks for another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,mujoco,atari]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
