# `make setup` once, then any other target. PYTHON is what the environment is made with.
PYTHON ?= python3
BIN := .venv/bin

# A test that takes five minutes hangs: it fails, and shows where each thread is
HANGS := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

# Tests and benchmarks start many processes. Without byte code, each would compile the tool again
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-all test-wheel lint bench parity docs dist clean

setup: .venv/.complete

.venv/.complete: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=24"
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps tf_keras==2.21.0  # its dependency would be a second TensorFlow
	touch $@

.venv/.bench: .venv/.complete
	$(BIN)/pip install --quiet --editable ".[dev,bench]"
	touch $@

demo: setup
	$(BIN)/mnv3-port demo

test: setup
	$(BIN)/python -m pytest -n logical --maxprocesses 4 -m "not slow" --durations=10 $(HANGS)

test-all: .venv/.bench
	$(BIN)/python -m pytest -n 4

# The README's commands from the wheel, in an environment that has nothing of this tree
test-wheel: setup
	$(BIN)/python -m pytest tests/test_wheel.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.bench
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/evaluating.py
	$(BIN)/python benchmarks/eight_bits.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/inference.py --name folding --threads 1 --forms "timm eager" "timm torch.compile" \
		"ours folded" "ours folded, torch.compile"
	$(BIN)/python scripts/write_benchmarks_page.py

parity: setup
	$(BIN)/python scripts/parity_table.py

docs: setup
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/python scripts/write_command_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel and source archive, checked, and tried in an environment that has nothing else
dist: setup
	$(BIN)/pip install --quiet build twine
	rm -rf dist build/tried
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/tried
	build/tried/bin/pip install --quiet torch==2.13.0
	build/tried/bin/pip install --quiet dist/*.whl
	cd build/tried && bin/mnv3-port demo --out demo
	cd build/tried && bin/python -c 'from PIL import Image; Image.new("RGB", (64, 64)).save("photo.png")'
	cd build/tried && bin/mnv3-port predict demo/small_075.pth photo.png

clean:
	rm -rf .venv build site dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
