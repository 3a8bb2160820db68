PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-slow bench clean

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
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m slow --timeout 1800

bench: install
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.nt_xent
	$(BIN)/python -m benchmarks.memory

clean:
	rm -rf .venv runs stores *.egg-info
