"""The bundled model and its figures, computed once for all tests of this folder."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

import evaluate  # noqa: E402

FOLDER = ROOT / "src" / "pellucid" / "bundled"
TEXTS = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def folder() -> Path:
    """The folder that ships."""
    return FOLDER


@pytest.fixture(scope="session")
def texts() -> Path:
    """The folder of the two validation texts."""
    return TEXTS


@pytest.fixture(scope="session")
def stated() -> dict[str, Any]:
    """What card.json states."""
    return json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def found() -> dict[str, Any]:
    """The figures, computed again from the shipped files, but for the losses of texts, which take long."""
    model, tokenizer = evaluate.load(FOLDER)
    return evaluate.all_figures(model, tokenizer, TEXTS, validation=())
