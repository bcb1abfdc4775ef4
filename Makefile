# `make demo` and `make test` need Python 3.11 or 3.12, make and git, and do everything else themselves.
PYTHON ?= $(shell for v in 3.12 3.11; do python$$v -c '' 2>/dev/null && echo python$$v && break; done)
BIN := .venv/bin
export RAY_AUTH_MODE ?= disabled

.PHONY: demo test test-slow test-whole test-benchmarks soak check lint types weights clean

demo: .venv/installed
	$(BIN)/python -m jobs.demo

# One file of tests after the other in each of two processes.
test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 1

# Processes that die, several nodes, nights, browsers: likewise, and each may take longer beside another.
test-slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not whole and not soak" --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1 --timeout 2400 -o faulthandler_timeout=3000

# By hand, before what they are about changes: runs that take minutes each, and the benchmarks' short forms.
test-whole: .venv/installed
	$(BIN)/python -m pytest -m whole --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1 --timeout 2400 -o faulthandler_timeout=3000

test-benchmarks: .venv/installed
	$(BIN)/python -m pytest -m benchmark --numprocesses 2 --dist loadfile --max-worker-restart 1 --timeout 1500 -o faulthandler_timeout=3300

soak: .venv/installed
	$(BIN)/python -m pytest -m soak -o faulthandler_timeout=0

check: lint types test test-slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

weights: .venv/installed
	$(BIN)/python -m jobs.weights.flow
	$(BIN)/python -m jobs.weights.autoencoder
	$(BIN)/python -m jobs.weights.transformer

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: neither python3.12 nor python3.11 was found; name one: make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs
