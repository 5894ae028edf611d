# Everything sets itself up: PYTHON makes .venv the first time, and again when pyproject.toml has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A process for each core; the tests of a file stay together, for what they share is made once.
PARALLEL := -n auto --dist loadfile
test quick: export OPENBLAS_NUM_THREADS = 1

.PHONY: demo test quick bench bench-convert bench-load bench-lossy bench-sparse bench-checkpoint lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/python tools/demo.py

test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(VENV)/test.stamp
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/bench.stamp
	$(BIN)/python tools/bench.py lossless

bench-convert: $(VENV)/bench.stamp
	$(BIN)/python tools/bench.py convert

bench-load: $(VENV)/bench.stamp
	$(BIN)/python tools/bench.py load

bench-lossy: $(VENV)/bench.stamp
	$(BIN)/python tools/bench.py lossy

bench-sparse: $(VENV)/bench.stamp
	$(BIN)/python tools/bench.py sparse

bench-checkpoint: $(VENV)/bench.stamp
	$(BIN)/python tools/bench.py checkpoint

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# torch first and by its exact version: anything else would choose a build with CUDA.
$(VENV)/test.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
