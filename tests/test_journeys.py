"""How many files a reader goes through to follow a journey from its call to its result; it may shrink, not grow."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from typer.testing import CliRunner

import pellucid as pl
import support
from pellucid.cli import app

PACKAGE = str(Path(pl.__file__).parent)
TEXT = "Once upon a time"


@contextmanager
def files_entered() -> Iterator[set[str]]:
    """The files of the package in which a function was called, other than to import them."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name != "<module>" and code.co_filename.startswith(PACKAGE):
            files.add(code.co_filename.removeprefix(PACKAGE))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(before)


Journey = Callable[[pl.CkptedTransformer, pl.Batch, Any], Any]

JOURNEYS: dict[str, tuple[int, Journey]] = {
    "load": (34, lambda model, batch, theirs: pl.load()),
    "model(batch)": (11, lambda model, batch, theirs: model(batch)),
    "capture everything": (16, lambda model, batch, theirs: model.run_with_ckpts(batch)),
    "generate three tokens": (28, lambda model, batch, theirs: model.generate(TEXT, max_new_tokens=3)),
    "compare": (48, lambda model, batch, theirs: pl.compare(model, theirs(), inputs=TEXT)),
    "pellucid run TEXT": (52, lambda model, batch, theirs: CliRunner().invoke(app, ["run", TEXT])),
}
"""At most how many files, and the journey: of a model, a batch, and what makes transformers' model of its weights."""


@pytest.mark.parametrize("name", JOURNEYS)
def test_a_journey_leads_through_few_files(name: str) -> None:
    most, go = JOURNEYS[name]
    model = pl.load()
    batch, theirs = model.tokenize(TEXT), functools.cache(lambda: pl.to_hf(model))
    go(model, batch, theirs)  # whatever is imported and kept at the first time
    with files_entered() as files:
        go(model, batch, theirs)
    assert 3 < len(files) <= most, sorted(files)


def test_files_are_counted_where_functions_are_called() -> None:
    with files_entered() as files:
        support.glass()
    assert {"/family/network.py", "/run/model.py", "/gpt2/model.py"} <= files
