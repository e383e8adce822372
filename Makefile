# Everything runs in an environment of its own, .venv, which the first target sets up.
# constraints-cpu.txt keeps it on the CPU build of PyTorch; `make demo CONSTRAINTS=` takes PyTorch's own choice.
PYTHON ?= python3
CONSTRAINTS ?= -c constraints-cpu.txt
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types docs app space browser clean

demo: $(VENV)/.base
	$(BIN)/stylegan-inversion demo --output demo

app: $(VENV)/.app
	$(BIN)/python app.py

space:
	rm -rf build/space
	$(PYTHON) spaces/assemble.py build/space $(if $(SPACE),--name $(SPACE))

browser: $(VENV)/.dev
	rm -rf build/browser
	$(BIN)/python spaces/assemble.py build/browser --browser

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/properdocs build --strict -f mkdocs.yml

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, such as: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.app: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[app]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # dependency groups
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[app,train,evaluate,folders,clip,export]' --group dev
	touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --group docs
	touch $@

clean:
	rm -rf $(VENV) build dist demo outputs
