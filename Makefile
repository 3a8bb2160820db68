PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow test-cluster bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/ssl-dist demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: install
	$(BIN)/pytest -m slow --timeout 1800

test-cluster: install
	$(BIN)/pytest -m hosts -rs

bench: install
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.nt_xent
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.mixing

clean:
	rm -rf .venv runs stores *.egg-info
