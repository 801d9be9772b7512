"""Which library multiplies is measured once for a shape, kept, shown, and left alone if the caller says so."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from watched_products import Watch

import support
from pellucid.errors import PellucidError
from pellucid.numerics import products, quickest

SIDE = 128
"""Of matrices that are large enough to be measured."""


@pytest.fixture(autouse=True)
def _nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv(quickest.VARIABLE, raising=False)
    quickest.forget()
    yield
    quickest.forget()


def factors(rows: int = SIDE, inputs: int = SIDE, outputs: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*size, generator=drawn) for size in ((rows, inputs), (inputs, outputs), (outputs,)))  # type: ignore[return-value]


def slower(monkeypatch: pytest.MonkeyPatch, library: str) -> list[tuple[int, ...]]:
    """Let a library take 20 ms more for a product, and note the sizes that are measured."""
    name, seen = f"by_{library}", list[tuple[int, ...]]()
    plain = getattr(quickest, name)

    def late(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append((len(x), *weight.shape))
        assert weight.is_contiguous() or weight.t().is_contiguous(), "gaps, with which oneDNN is slow"
        time.sleep(0.02)
        return plain(x, weight, bias)

    monkeypatch.setattr(quickest, name, late)
    return seen


def library(rows: int = SIDE, **sizes: int) -> str:
    x, matrix, bias = factors(rows, **sizes)
    return quickest.library_for(x, matrix.t(), bias)


@pytest.mark.parametrize(("slow", "taken"), [("torch", "onednn"), ("onednn", "torch")])
def test_the_quicker_one_is_taken(slow: str, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slower(monkeypatch, slow)
    assert library() == taken
    (choice,) = quickest.choices().values()
    assert choice.library == taken
    assert choice.rates[taken] > choice.rates[slow] > 0


def test_a_shape_is_measured_once_and_so_are_nearly_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = slower(monkeypatch, "torch")
    first = library(100)
    once = len(seen)
    assert once > 1
    assert library(100) == library(SIDE) == library(65) == first
    assert len(seen) == once
    library(64)
    assert len(seen) == 2 * once


def test_more_threads_are_another_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = slower(monkeypatch, "torch")
    library()
    once = len(seen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    library()
    assert len(seen) == 2 * once


def test_small_products_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickest, "measured", lambda *product: pytest.fail("measured"))
    assert library(1) == "torch"


@pytest.mark.parametrize("by_outputs", [True, False])
def test_of_large_products_a_part_is_measured(by_outputs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows, and then fewer outputs; rows of a weight stay as far apart in memory as the model keeps them."""
    monkeypatch.setattr(quickest, "MEASURED", 2**20)
    seen = slower(monkeypatch, "torch")
    x, matrix, bias = factors(3000, outputs=1000)
    quickest.library_for(x, matrix.t().contiguous() if by_outputs else matrix.t(), bias)
    rows, outputs, inputs = seen[0]
    assert rows == quickest.FEWEST_ROWS
    assert outputs == (2**20 // (rows * inputs) if by_outputs else 1000)


@pytest.mark.parametrize("wish", quickest.LIBRARIES)
def test_whoever_names_a_library_gets_it(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(quickest.VARIABLE, wish)
    monkeypatch.setattr(quickest, "measured", lambda *product: pytest.fail("measured"))
    assert library() == library(1) == wish


def test_what_was_measured_is_kept_for_later_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "products.json"
    monkeypatch.setenv(quickest.VARIABLE, str(path))
    slower(monkeypatch, "torch")
    assert library() == "onednn"
    before = quickest.choices()
    quickest.forget()
    monkeypatch.setattr(quickest, "measured", lambda *product: pytest.fail("measured"))
    assert library() == "onednn"
    assert quickest.choices() == before


def test_another_machine_measures_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "products.json"
    monkeypatch.setenv(quickest.VARIABLE, str(path))
    with monkeypatch.context() as there:
        slower(there, "torch")
        assert library() == "onednn"
    quickest.forget()
    found = quickest.machine()
    monkeypatch.setattr(quickest, "machine", lambda: {**found, "processor": "another"})
    slower(monkeypatch, "onednn")
    assert library() == "torch"
    assert json.loads(path.read_text())["machine"]["processor"] == "another"


PRODUCTS = '{"machine": HERE, "products": [%s]}'
DAMAGED = (
    "", "[]", "{}", '{"machine": 1', "\0", PRODUCTS % "{}",
    PRODUCTS % '{"shape": {"rows": 1}, "library": "torch", "rates": {}}',
    PRODUCTS % '{"shape": SHAPE, "library": "mkl", "rates": {}}',
    PRODUCTS % '{"shape": SHAPE, "library": [], "rates": {}}',
    PRODUCTS % '{"shape": SHAPE, "library": "torch", "rates": []}',
    PRODUCTS % ('{"shape": SHAPE, "library": "torch", "rates": {"torch": ' + 400 * "9" + "}}"),
    PRODUCTS % '{"shape": {"rows": "1", "inputs": 1, "outputs": 1, "by_outputs": true, "biased": true, "threads": 1},'
    ' "library": "torch", "rates": {}}',
)  # fmt: skip
"""Where HERE is this machine, and SHAPE a shape."""


@pytest.mark.parametrize("text", DAMAGED)
@pytest.mark.remedy("measured-products")
def test_a_file_that_is_something_else(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "products.json"
    shape = quickest.Product(128, SIDE, SIDE, False, True, 1)._asdict()
    path.write_text(text.replace("HERE", json.dumps(quickest.machine())).replace("SHAPE", json.dumps(shape)))
    monkeypatch.setenv(quickest.VARIABLE, str(path))
    with pytest.raises(PellucidError, match=r"products\.json") as caught:
        library()
    assert caught.value.code == "measured-products"
    assert "Remove the file" in caught.value.remedy
    path.unlink()
    assert library() in quickest.LIBRARIES


def test_a_misspelt_library_is_not_a_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(quickest.VARIABLE, "oneDNN")
    for rows in (1, SIDE):  # the first are too few to be measured
        with pytest.raises(PellucidError, match="'oneDNN', expected torch, onednn, packed or the path") as caught:
            library(rows)
        assert caught.value.code == "measured-products"
    assert not list(tmp_path.iterdir())


MOST_CALLS = 23
"""Calls of our functions, and their calls of C, for a product whose way is known: each is a tenth of a microsecond.

What functions of torch's and of Python's call in turn depends on their versions.
"""


@torch.no_grad()
def test_to_choose_takes_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    x, matrix, bias = factors()
    quick, calls = products.QuickProducts(), list[str]()
    ours = str(Path(quickest.__file__).parents[1])

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(ours):
            calls.append(event)

    for slow in quickest.LIBRARIES:
        quickest.forget()
        with monkeypatch.context() as patch:
            slower(patch, slow)
            quick.affine(x, matrix, bias)
        calls.clear()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            quick.affine(x, matrix, bias)
        finally:
            sys.setprofile(before)
        assert 0 < len(calls) <= MOST_CALLS


def test_a_model_runs_by_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once oneDNN is the quicker one, every product of a run that is large enough is taken by it, and none if not."""
    ids = support.some_ids(8, 16) % 200
    sizes: dict[str, Any] = {"n_embd": 96, "n_head": 4, "n_layer": 1, "vocab_size": 200, "numerics": "fast"}
    for slow in quickest.LIBRARIES:
        quickest.forget()
        with monkeypatch.context() as patch:
            slower(patch, slow)
            model = support.glass(**sizes)
            with torch.no_grad(), Watch() as watch:
                first, measured = model(ids), watch.seen
                second = model(ids)
            assert torch.equal(first, second)
            assert watch.seen - measured == (5 if slow == "torch" else 0)
            assert len(quickest.choices()) == 5


def test_exact_numerics_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "library_for", lambda *product: pytest.fail("asked"))
    support.glass(n_embd=96, n_head=4, n_layer=1)(support.some_ids(8, 16))


def test_a_choice_at_random_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant takes whichever library was measured to be slower."""
    right = quickest.measured

    def wrong(*product: Any) -> quickest.Choice:
        choice = right(*product)
        return choice._replace(library=min(choice.rates, key=lambda name: choice.rates[name]))

    monkeypatch.setattr(quickest, "measured", wrong)
    with pytest.raises(AssertionError):
        test_the_quicker_one_is_taken("torch", "onednn", monkeypatch)
