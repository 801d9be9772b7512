"""Texts of unequal length: which positions belong together, and patches between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loops import METRIC, exact

import pellucid as pl
import support
from pellucid.patching.measured_runs import Direction

CLEAN, CORRUPTED = "Tom had a red ball.", "Sue has the ball."


def test_what_both_texts_share_belongs_together() -> None:
    model = pl.load()
    roles = pl.patching.align(model, "Tom had a red ball.", "Tom had a ball.")
    pieces = model.tokenize(["Tom had a red ball.", "Tom had a ball."]).strings
    for name, clean, corrupted in zip(roles.names, roles.clean, roles.corrupted, strict=True):
        assert pieces[0][clean[0][0]] == pieces[1][corrupted[0][0]]
        assert repr(pieces[0][clean[0][0]]) in name
    assert len(roles.names) == len(pieces[1]), "all of the shorter text"
    assert " red" not in str(roles)


def test_parts_by_words_and_numbers() -> None:
    model = pl.load()
    texts = "Lily saw a dog. The dog ran to Lily.", "Tom saw a big cat. The cat ran."
    roles = pl.patching.align(
        model, *texts, {"who": ("Lily saw", "Tom saw"), "animal": (("dog", 1), ("cat", 1)), "end": -1}
    )
    pieces = model.tokenize(list(texts)).strings
    found = {
        name: ("".join(pieces[0][i] for i in clean[0]), "".join(pieces[1][i] for i in corrupted[0]))
        for name, clean, corrupted in zip(roles.names, roles.clean, roles.corrupted, strict=True)
    }
    assert found["animal"] == (" dog", " cat")
    assert found["end"] == (".", ".")
    assert found["who"][0].endswith(" saw")
    assert len(roles.clean[0][0]) == len(roles.corrupted[0][0])


def test_a_part_is_patched_where_it_is_in_each_text() -> None:
    model = exact()
    clean, corrupted = support.ragged_ids(7, 6, seed=1), support.ragged_ids(5, 6, seed=9)
    roles = pl.patching.align(model, clean, corrupted, {"third": ([2, 3], [1, 2]), "end": (-1, -1)})
    swept = pl.patching.sweep(model, clean, corrupted, "resid_mid", over=("layer", "pos"), metric=METRIC, align=roles,
                              per_text=True)  # fmt: skip
    assert swept["pos"].values.tolist() == ["third", "end"]
    for text in range(2):
        (_, source), batch = model.run_with_ckpts([clean[text]]), model.tokenize([corrupted[text]])
        for layer in range(3):
            for number, (taken, into) in enumerate((((2, 3)[text], (1, 2)[text]), (-1, -1))):
                value = source[f"blocks.{layer}.resid_mid"][:, taken][:, None]
                edit = pl.Edit.replace(f"blocks.{layer}.resid_mid", value, pos=into)
                loop = METRIC(model.run(batch, edits=edit).detach(), batch)
                assert swept.values[layer, number, text] == pytest.approx(float(loop), abs=1e-10)
    turned = pl.patching.sweep(model, corrupted, clean, "resid_mid", over=("layer", "pos"), metric=METRIC,
                               align=roles.turned(), direction="noise", per_text=True)  # fmt: skip
    np.testing.assert_array_equal(turned.values, swept.values)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_true_pairs_what_both_texts_share(direction: Direction) -> None:
    model = exact()
    shorter = support.ragged_ids(5)
    longer = [[*shorter[0][:2], 91, *shorter[0][2:]]]

    def swept(clean: list[list[int]], corrupted: list[list[int]], align: Any) -> Any:
        return pl.patching.sweep(model, clean, corrupted, "resid_mid", over=("layer", "pos"), metric=METRIC,
                                 direction=direction, align=align)  # fmt: skip

    for texts in ((longer, shorter), (shorter, longer)):
        by_itself, found = swept(*texts, True), swept(*texts, pl.patching.align(model, *texts))
        assert by_itself["pos"].values.tolist() == found["pos"].values.tolist()
        assert len(by_itself["pos"]) == len(shorter[0])
        np.testing.assert_array_equal(by_itself.values, found.values)
    moved = shorter, [[*shorter[0][1:], 91]]
    np.testing.assert_array_equal(swept(*moved, False).values, swept(*moved, None).values)
    assert swept(*moved, True).shape != swept(*moved, False).shape


def test_the_last_token_needs_no_alignment() -> None:
    model = exact()
    clean, corrupted = support.ragged_ids(7, seed=1), support.ragged_ids(5, seed=9)
    swept = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer",), metric=METRIC, pos=-1)
    (_, source), batch = model.run_with_ckpts(clean), model.tokenize(corrupted)
    for layer in range(3):
        edit = pl.Edit.patch(f"blocks.{layer}.resid_pre", source, pos=-1)
        loop = METRIC(model.run(batch, edits=edit).detach(), batch)
        assert float(swept[layer]) == pytest.approx(float(loop), abs=1e-10)


def test_roles_print_as_a_table() -> None:
    model = pl.load()
    roles = pl.patching.align(model, [CLEAN, CLEAN], [CORRUPTED, CORRUPTED], {"start": 0, "end": -1})
    lines = repr(roles).splitlines()
    assert lines[0].startswith("part")
    assert lines[1].split() == ["start", "0;", "0", "|", "0;", "0"]
