# Every check starts here. All targets create their own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two files of tests at a time, each with one thread of the numeric libraries.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

.PHONY: demo quick test check bench readme clean

demo: $(VENV)/installed  ## extract the example images and search them
	rm -f demo.h5
	$(BIN)/rn50feat extract examples/images demo.h5 --weights random
	$(BIN)/rn50feat search examples/images/coast-cropped.jpg demo.h5 -k 3
	$(BIN)/rn50feat search --stored examples/images/hills-rotated.jpg demo.h5 -k 3 --exclude-self
	$(BIN)/rn50feat info demo.h5

quick: $(VENV)/installed  ## the tests of a minute, while you work
	$(PYTEST) -m "not slow and not network and not browser"

test: check  ## all checks and all tests
	$(PYTEST)

check: $(VENV)/installed  ## style, types and packaging
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/installed  ## compare the speed with the loop that most people write
	$(BIN)/python tests/benchmarks/extract.py

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) demo.h5 build dist *.egg-info

readme: $(VENV)/installed  ## write help texts, output and the screenshot into README and docs
	$(BIN)/python tests/readme.py --run
