# `make demo` and `make test` are all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check lint train clean

demo: $(READY)
	@$(BIN)/pellucid demo

# Everything that `check` does, and all tests; they start first, types come last because they take longest.
test: lint
	$(BIN)/python -m pytest
	$(BIN)/pyright

check: lint
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

train: $(READY)
	$(BIN)/python training/train.py --text $(TEXT) --out .training

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build dist
