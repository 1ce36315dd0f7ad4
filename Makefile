# Two commands do all the set-up: `make demo` and `make test`. Each makes the virtual environment when there is none.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OLDEST ?= .venv-oldest
# Only the price list in this wheel is read, as a second opinion; it is not installed.
LITELLM ?= litellm==1.109.1
# torch is for tests and examples only; the pinned version is a CPU build where the index offers one.
TORCH  ?= torch==2.13.0
# Leads the decoder's fuzz by coverage; it has wheels for some platforms and Pythons only.
ATHERIS ?= atheris==3.0.0

# Tests that run at once. Much of their time goes into waiting for programs that they start: one more than two cores has.
WORKERS ?= 3

# Some images forbid it. Then every program that a test starts compiles all of Tollspan before its first line.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo rag test lint style types unit oldest wheel bench soak clean

demo: $(VENV)/.demo
	$(BIN)/tollspan demo

# The other example, with a vector store and a torch ranker.
rag: $(VENV)/.rag
	$(BIN)/tollspan demo rag_ranker

# Types and the wheel take turns beside the tests; what they say comes last. The oldest versions (`make oldest`) are part
# of `make soak`: with them it took more than half an hour on two cores.
test: style
	@$(MAKE) --no-print-directory --keep-going types wheel > $(VENV)/beside.log 2>&1 & beside=$$!; \
	$(MAKE) --no-print-directory unit; unit=$$?; \
	wait $$beside; beside=$$?; cat $(VENV)/beside.log; \
	test $$unit -eq 0 && test $$beside -eq 0

lint: style types

style: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

# A file of tests goes to one process. What numba compiles is cached before, or every service that the first tests start
# compiles it for itself.
unit: $(VENV)/.test
	@$(BIN)/python -c "from tollspan.processor import pipeline; from tollspan.processor.decode import fused; fused.prepare(wait=True)"
	$(BIN)/python -m pytest -q -m "not soak" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The clients' tests with the oldest versions that are supported, each in an environment of its own that is kept.
oldest: $(VENV)/bin/python
	$(BIN)/python tests/versions/oldest.py $(OLDEST)

# The wheel, in an empty environment, away from the source tree, runs the demo.
wheel: $(VENV)/.test
	$(BIN)/python tests/end_to_end/check_wheel.py

bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/run.py

# Hours. The fault table goes to tests/faults/results.md, a row as soon as it is known; how long each test took comes at
# the end. One fault alone, which replaces its row: make soak ONLY=kill_nine
soak: $(VENV)/.soak
	@TOLLSPAN_FAULT_TABLE=tests/faults/results.md TOLLSPAN_TEST_PATIENCE_S=600 \
	$(BIN)/python -m pytest -q -m soak --durations=0 --durations-min=1 $(if $(ONLY),-k "$(ONLY)"); soaked=$$?; \
	$(if $(ONLY),,$(BIN)/python tests/versions/oldest.py $(OLDEST) &&) test $$soaked -eq 0

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tollspan needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.rag: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[rag]'
	@touch $@ $(VENV)/.demo

# Python compiles what is imported, on both cores; pip would compile all of it first, on one.
$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[test]'
	@$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/litellm '$(LITELLM)' || echo "litellm's price list could not be downloaded: one test will be skipped"
	@$(BIN)/python tests/browser/chromium.py > /dev/null || true
	@touch $@ $(VENV)/.demo

$(VENV)/.soak: $(VENV)/.test
	@$(BIN)/pip install --quiet --disable-pip-version-check '$(ATHERIS)' || echo "atheris could not be installed: the decoder will be fuzzed by mutations alone"
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
