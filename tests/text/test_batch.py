"""What a batch knows, so that a run of it asks the device for nothing and can be captured into a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from pellucid.text import batching

RAGGED = support.ragged_ids(3, 11, 7)
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("rows", [RAGGED, [RAGGED[1]]], ids=["padded", "alone"])
def test_a_prepared_batch_asks_for_no_number(rows: list[list[int]]) -> None:
    for numerics in ("exact", "fast", "bfloat16"):
        model = support.glass(numerics=numerics)
        batch = model.tokenize(rows)
        with torch.no_grad():
            model(batch)
            assert not checks.ops(lambda: model(batch)).count(*checks.WAITS)  # noqa: B023 (called at once)
            assert not checks.ops(lambda: model.run_with_ckpts(batch)).count(*checks.WAITS)  # noqa: B023


def test_a_mask_that_is_written_to_is_looked_at_again() -> None:
    batch = support.glass().tokenize([RAGGED[1]])
    assert not batch.padded
    batch.mask[0, 0] = False
    assert batch.padded
    assert not support.glass().tokenize([[1, 2]]).to("meta").padded, "known before it was sent"


def test_ids_are_taken_as_they_are_while_a_graph_is_captured(monkeypatch: Patch) -> None:
    model, ids = support.glass(), support.some_ids(2, 11)
    with torch.no_grad():
        expected, last = model(ids), model.next_token_logits(ids)
        monkeypatch.setattr(batching, "is_recorded", lambda ids: True)
        for run in (model, model.run_with_ckpts, model.next_token_logits):
            assert not checks.ops(lambda: run(ids)).count(*checks.WAITS)  # noqa: B023
        assert torch.equal(model(ids), expected)
        assert torch.equal(model.run_with_ckpts(ids)[0], expected)
        assert torch.equal(model.next_token_logits(ids), last)
        assert torch.equal(model(ids[0]), model(ids[:1]))
        assert model.tokenize(ids).ids.data_ptr() == ids.data_ptr(), "a replay would not see what is written there"
        for masked in (lambda: model.tokenize(ids, mask=torch.ones_like(ids)), lambda: model(_as_mapping(ids))):
            with pytest.raises(pl.InputError) as caught:
                masked()
            assert caught.value.code == "mask-while-captured"


def _as_mapping(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_batch_of_an_equal_configuration_is_not_checked_again() -> None:
    one, other = support.glass(), support.glass()
    batch = one.tokenize(RAGGED)
    assert batch.padded
    assert other.config is not one.config
    with torch.no_grad():
        other(batch)  # its weights are looked at once
        assert not checks.ops(lambda: other(batch)).count(*checks.WAITS)
    small = support.glass(vocab_size=50)
    with pytest.raises(pl.InputError):
        small(batch)


def test_labels_follow_the_ids() -> None:
    model = support.glass()
    batch = model.tokenize([[1, 2, 3]])
    assert batch.strings == [["1", "2", "3"]]
    batch.ids[0, 1] = 7
    assert model.run_with_ckpts(batch)[1].batch.strings == [["1", "7", "3"]]


# Mutants: each check must fail on what is broken


def ids_as_they_are() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_ids_are_taken_as_they_are_while_a_graph_is_captured(patch)


def prepared_batches_ask_for_nothing() -> None:
    test_a_prepared_batch_asks_for_no_number(RAGGED)


def asks_about_pads(patch: Patch) -> None:
    patch.setattr(pl.Batch, "padded", property(lambda self: not bool(self.mask.all())))
    patch.setattr(pl.Batch, "known", lambda self, *, padded: self)


def never_looks_again(patch: Patch) -> None:
    patch.setattr(pl.Batch, "_writes", lambda self: 0)


def forgets_what_it_checked(patch: Patch) -> None:
    patch.setattr(pl.TransformerConfig, "__eq__", lambda self, other: self is other)


def checks_ids_always(patch: Patch) -> None:
    patch.setattr(batching.Batcher, "_unchecked", lambda self, ids, _: self._assemble(ids, torch.ones_like(ids).bool()))


def labels_once(patch: Patch) -> None:
    plain = pl.Batch.strings.fget
    assert plain is not None
    known: dict[int, Any] = {}
    patch.setattr(pl.Batch, "strings", property(lambda self: known.setdefault(id(self), plain(self))))


@pytest.mark.parametrize(("breaks", "check"), [
    (asks_about_pads, prepared_batches_ask_for_nothing),
    (never_looks_again, test_a_mask_that_is_written_to_is_looked_at_again),
    (forgets_what_it_checked, test_a_batch_of_an_equal_configuration_is_not_checked_again),
    (checks_ids_always, ids_as_they_are),
    (labels_once, test_labels_follow_the_ids),
])  # fmt: skip
def test_what_is_broken_is_noticed(breaks: Callable[[Patch], None], check: Callable[[], None]) -> None:
    check()
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check()
