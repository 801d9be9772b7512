# `make demo` and `make test` are all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCH := .venv-bench/bin
BENCH_READY := .venv-bench/.ready

# Tests start many interpreters, and each compiles all it imports where none may keep what it compiled.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test tests computing waiting test-all test-versions check types pages lint train viewer bench bench-quick clean

demo: $(READY)
	@$(BIN)/pellucid demo

# Everything that `check` does, and all tests. Types are checked beside them: alone they would leave a processor idle.
test: lint
	@$(MAKE) --no-print-directory --jobs 3 types computing waiting

tests: $(READY)
	@$(MAKE) --no-print-directory --jobs 2 computing waiting

# What waits for browsers, servers and other processes runs beside what computes, in a process more than there are
# processors: else one of them would be idle for minutes. It shows its lines at its end, not between those of the other.
WAITING := tests/viewer tests/corpus

computing: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(WAITING:%=--ignore=%)

waiting: $(READY)
	@log=$$(mktemp); $(BIN)/python -m pytest $(WAITING) > $$log 2>&1; code=$$?; cat $$log; rm $$log; exit $$code

# The tests, and what takes longer: every combination of parameters (tests/conftest.py), every pair of a stranger's
# program and what people do to it, twenty thousand damaged files, savers that are killed five hundred times, and captures that are killed a thousand times.
test-all: test
	$(BIN)/python -m pytest -m long --numprocesses auto --maxprocesses 4 --dist worksteal
	$(BIN)/python tests/fuzz/campaign.py --files 20000
	$(BIN)/python tests/fuzz/kills.py --kills 500
	$(BIN)/python tests/fuzz/corpus_kills.py --kills 1000

# What depends on transformers, under each version in an environment of its own; what was seen: docs/versions.md.
VERSIONS ?= 5.20.0 5.24.0
VERSIONS_AT ?= .venv-versions
test-versions: $(VERSIONS:%=test-transformers-%)

test-transformers-%:
	test -x $(VERSIONS_AT)/$*/bin/python || $(PYTHON) -m venv $(VERSIONS_AT)/$*
	grep -v '^transformers==' constraints.txt > $(VERSIONS_AT)/$*/constraints.txt
	$(VERSIONS_AT)/$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VERSIONS_AT)/$*/constraints.txt transformers==$* --editable '.[dev]'
	$(VERSIONS_AT)/$*/bin/python -m pytest -q -m "" tests/conformance tests/run tests/generate tests/weights tests/ties

# Types and pages are checked at the same time: each takes one processor.
check: lint
	@$(MAKE) --no-print-directory --jobs 2 types pages

types: $(READY)
	$(BIN)/pyright

pages: $(READY)
	$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py -m 'not long and not slow_page'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

train: $(READY)
	$(BIN)/python training/train.py --text $(TEXT) --out .training

# The page that `pellucid view` writes: one file, built from viewer/ and committed, so that nobody needs Node to use it.
viewer: viewer/node_modules/.package-lock.json
	cd viewer && npm run --silent types && npm run --silent build

viewer/node_modules/.package-lock.json: viewer/package-lock.json
	cd viewer && npm ci

# Everything, on an idle machine: writes docs/benchmarks.md and docs/benchmarks.json.
bench: $(BENCH_READY)
	$(BENCH)/python benchmarks/bench.py

# Three minutes: shows the page and writes nothing.
bench-quick: $(BENCH_READY)
	$(BENCH)/python benchmarks/bench.py --quick

# Half of what is installed, which few tests of ours import: packages' own tests, models of transformers, parts of Ray.
# Whoever imports some of it compiles that.
NOT_COMPILED := /tests?/|/transformers/models/(?!__init__|auto|gpt2|llama|gpt_neox/)|/(moto|cfnlint|graphql|setuptools|networkx|debugpy|dask)/|/ray/(rllib|tune|serve|data|train|air|dashboard|llm)/

$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv: about three minutes, 2 GB."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[dev]'
	@# What pip would do on one processor; packages hold some files that are no Python.
	@$(BIN)/python -m compileall -qq -j 0 -x '$(NOT_COMPILED)' .venv/lib || true
	@touch $(READY)

# torch first, so that no peer chooses another one.
$(BENCH_READY): pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x $(BENCH)/python || $(PYTHON) -m venv .venv-bench
	$(BENCH)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BENCH)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement benchmarks/requirements.txt --editable '.[hf,stats,corpus]'
	touch $(BENCH_READY)

clean:
	rm -rf .venv .venv-bench $(VERSIONS_AT) build dist
