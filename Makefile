# Everything stands on `setup`, which makes .venv once and again when what it installs changes.
#   make demo      set up and run the main job on the embedded default
#   make test      set up and pass the tests
#   make coverage  the same, more slowly, with the lines that they do not reach
#   make check     formatting, lint, types, documentation
#   make audit     known vulnerabilities and unsafe calls
#   make bench     benchmarks, in minutes

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.fedsparse-ready

# Three files at a time on two cores: tests of workers and nodes wait for processes to start. In the
# order of their names, files that take long do not come last.
SUITE := -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: setup kernels demo test coverage check format docs audit bench clean

demo: setup
	$(BIN)/fedsparse run --preset demo

test: setup
	$(BIN)/python -m pytest $(SUITE)

coverage: setup
	$(BIN)/python -m pytest $(SUITE) --cov --cov-report=term

setup: $(STAMP) kernels

# Compiles the native kernels where their sources or the compiler changed.
kernels: $(STAMP)
	@$(BIN)/python fedsparse/kernels/build.py

$(STAMP): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedsparse needs Python 3.11 or newer: make PYTHON=python3.11 setup" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev,report,data,onnx]'
	touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# In an environment of its own. What needs the network is bounded, and fails nothing without it.
AUDIT := .venv-audit

audit: setup
	test -x $(AUDIT)/bin/bandit || { $(PYTHON) -m venv $(AUDIT) && \
		$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check 'bandit[toml]>=1.8' 'pip-audit>=2.7'; }
	$(AUDIT)/bin/bandit -q -c pyproject.toml -r fedsparse clients strategies edge_export simulations
	timeout 300 $(AUDIT)/bin/pip-audit --timeout 20 --path $$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])') || \
		echo "pip-audit: it found something, or could not ask; see above"

bench: setup
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' \
		-o python_functions='bench_*' --benchmark-only

clean:
	rm -rf build dist site .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
