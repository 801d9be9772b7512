"""Scores of heads on texts are those of loops and definitions."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import heads_cases as cases
import numpy as np
import pytest
import torch

import pellucid as pl
import support
from following import Case, follow, params
from pellucid.heads import detectors
from pellucid.measure import head_scores

families = pytest.mark.parametrize("family", cases.FAMILIES)
ATTENDED = ("previous", "first", "duplicate", "induction")

ROWS = [[5, 6, 5, 7, 6], [9, 9, 9], [8], [11, 12, 13, 11, 12, 13, 11]]
"""Tokens that occur twice, thrice, in a row; a text of one token, and of unequal length."""

MANY = [[*row, extra] for extra in (20, 21, 22) for row in ROWS]
"""More texts than run together."""


def near(found: Any, expected: np.ndarray) -> bool:
    return bool(np.allclose(found, expected, rtol=0, atol=1e-10, equal_nan=True))


@families
@pytest.mark.parametrize("rows", [ROWS, MANY])
def test_attention_scores_are_those_of_loops(family: str, rows: list[list[int]]) -> None:
    model = cases.model64(family)
    found = pl.heads.scores(model, rows)
    expected = cases.by_loops(model, rows)
    assert found["previous"].dims == ("layer", "head")
    assert list(found) == [*ATTENDED, "copying"]
    for name in ATTENDED:
        assert near(found[name], expected[name]), name


@families
def test_copying_is_its_definition(family: str) -> None:
    model = cases.FAMILIES[family]()
    found = pl.heads.scores(model, ROWS, tokens=99)
    at = [(text, place) for text, row in enumerate(ROWS) for place in range(len(row))]
    assert near(found["copying"], cases.copies(model, ROWS, at))
    assert 0 < float(found["copying"].max()) <= 1


def test_copying_is_measured_at_some_tokens_spread_over_all() -> None:
    model = support.glass()
    found = pl.heads.scores(model, ROWS, tokens=3)
    assert near(found["copying"], cases.copies(model, ROWS, [(0, 0), (2, 0), (3, 6)]))


def test_more_tokens_count_if_the_top_is_longer() -> None:
    model = support.glass()
    copying = [pl.heads.scores(model, ROWS, top=top).copying for top in (1, 5, 211, 999)]
    assert all(bool((a <= b).all()) for a, b in pairwise(copying))
    assert bool((copying[-1] == 1).all())


def test_one_text_several_ids_and_batches_are_texts() -> None:
    model = pl.load()
    text = "Lily and Tom went to the park. Lily and Tom"
    one = pl.heads.scores(model, text)
    assert one.identical(pl.heads.scores(model, [text]))
    assert one.identical(pl.heads.scores(model, model.tokenize(text)))
    assert one.equals(pl.heads.scores(model, torch.tensor([model.tokenizer.encode(text)])))
    assert one.attrs["top"] == 5
    assert one["previous"].attrs["units"] == "probability"


def test_padding_changes_nothing() -> None:
    model = cases.model64("gpt2")
    left, right = (pl.heads.scores(model, model.tokenize(ROWS, padding_side=side)) for side in ("left", "right"))
    for name in left:
        assert near(left[name], right[name].values), name


def test_an_end_id_that_looks_like_a_pad_is_text() -> None:
    """One at the edge of some rows, as a batch holds it with its mask."""
    model = support.glass(pad_token_id=7, eos_token_id=7)
    rows = torch.tensor([[7, 1, 2, 1], [3, 4, 3, 4]])
    batch = model.tokenize(rows, mask=torch.ones_like(rows))
    pattern = model.run_with_ckpts(batch, names="**.ckpt_pattern")[1].stack("attn.ckpt_pattern").double()
    assert near(pl.heads.scores(model, batch)["first"], pattern[..., 1:, 0].mean((1, 3)).numpy())


def test_induction_is_that_of_repeated_random_ids() -> None:
    """Of ids that are all different: nothing but the second copy has an earlier occurrence."""
    model = cases.model64("gpt2")
    ids, _ = head_scores.repeated_ids(model.config, 9, 1, 3)
    assert len(set(ids[0, -9:].tolist())) == 9
    measured = pl.measure.induction(model, length=9, texts=1, seed=3)
    assert near(pl.heads.scores(model, model.tokenize(ids, mask=torch.ones_like(ids)))["induction"], measured.values)


def test_nothing_is_repeated() -> None:
    found = pl.heads.scores(support.glass(), [[1, 2, 3]])
    assert bool(found[["duplicate", "induction"]].isnull().to_array().all())
    assert bool(found[["previous", "first", "copying"]].notnull().to_array().all())


# Name movers

MOVED = [[5, 6, 5, 7], [9, 8, 10, 9, 9]]


@families
def test_name_movers_are_their_definition(family: str) -> None:
    model = cases.FAMILIES[family]()
    found = pl.heads.name_movers(model, MOVED, [5, 9])
    expected = np.zeros(found.attention.shape)
    for row, places in zip(MOVED, ([0, 2], [0, 3]), strict=True):
        pattern = model.run_with_ckpts([row], names="**.ckpt_pattern")[1].stack("attn.ckpt_pattern").double().numpy()
        expected += sum(pattern[:, 0, :, -1, place] for place in places) / len(MOVED)
    assert np.allclose(found.attention, expected, rtol=0, atol=1e-6)
    at = [(0, 0), (0, 2), (1, 0), (1, 3)]
    assert near(found.copying, cases.copies(model, MOVED, at))
    assert near(found.negative_copying, cases.copies(model, MOVED, at, sign=-1))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=lambda kind: kind.__name__)
def test_the_token_that_a_text_lacks_is_its_own(kind: Any) -> None:
    with pytest.raises(pl.InputError, match="text 1 does not hold 7 before"):
        pl.heads.name_movers(support.glass(), MOVED, kind([5, 7]))


def test_the_bundled_model_s_head_that_moves_a_name_and_lowers_it() -> None:
    """What direct attribution says of the same text: head 2.1 reads " Tom", and what it adds is against " Tom"."""
    model, text = pl.load(), "Lily and Tom went to the park. Tom gave a ball to"
    movers = pl.heads.name_movers(model, text, " Tom")
    _, ckpts = model.run_with_ckpts(text)
    added = pl.attribution.direct(ckpts, " Tom", by="head").sel(component="blocks.2.attn[1]")
    strongest = movers.attention.argmax(...)
    assert (int(strongest["layer"]), int(strongest["head"])) == (2, 1)
    assert float(movers.negative_copying[2, 1]) == 1
    assert float(added[0, -1]) < -1


# Mutants


def off_by_one(self: head_scores.Keys) -> torch.Tensor:
    return self.duplicate


def later_too(self: head_scores.Keys) -> torch.Tensor:
    return self.back >= 0


def pads_too(self: head_scores.Keys) -> torch.Tensor:
    return self.back >= 1


@pytest.mark.parametrize(
    ("name", "mutant"), [("induction", off_by_one), ("duplicate", later_too), ("previous", pads_too)]
)
def test_mutants_of_keys_are_noticed(name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_scores.Keys, name, property(mutant))
    with pytest.raises(AssertionError):
        test_attention_scores_are_those_of_loops("gpt2", ROWS)


def test_mutants_of_copying_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = detectors.place_of
    monkeypatch.setattr(detectors, "place_of", lambda at, *rest: plain(at.replace("1.attn", "0.attn"), *rest))
    with pytest.raises(AssertionError):
        test_copying_is_its_definition("gpt2")


# Refusals


def broken() -> pl.CkptedTransformer:
    model = support.glass()
    with torch.no_grad():
        model.blocks[2].attn.W_O[2, 0, 0] = torch.nan
    return model


Here = SimpleNamespace
SCORES, MOVERS = pl.heads.scores, pl.heads.name_movers
REMEDIES: dict[str, list[Case]] = {
    "nothing-to-attend": [
        Case(lambda h: SCORES(h.model, [[1], [2]]), "two tokens", lambda h: SCORES(h.model, [[1, 2], [2]])),
    ],
    "token-not-in-the-text": [
        Case(lambda h: MOVERS(h.model, MOVED, 5), "a list", lambda h: MOVERS(h.model, MOVED, [5, 9])),
        Case(lambda h: MOVERS(h.model, [[1, 2, 3]], 3), "holds", lambda h: MOVERS(h.model, [[1, 2, 3]], 2)),
    ],
    "metric-tokens": [
        Case(lambda h: MOVERS(h.model, MOVED, [5]), "for each", lambda h: MOVERS(h.model, MOVED, [5, 9])),
    ],
    "not-a-whole-number": [
        Case(lambda h: SCORES(h.model, MOVED, top=0), "1 or", lambda h: SCORES(h.model, MOVED, top=np.int64(1))),
        Case(lambda h: SCORES(h.model, MOVED, tokens=0), "1 or", lambda h: SCORES(h.model, MOVED, tokens=1)),
    ],
    "not-finite": [Case(lambda h: SCORES(broken(), MOVED), "finite", lambda h: SCORES(h.model, MOVED))],
}  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies_are_followed(code: str, case: Case) -> None:
    follow(code, case, Here(model=support.glass()))
