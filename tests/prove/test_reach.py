"""What a verdict covers: every id and position if that is affordable, ids that a program names, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course, monolith
from test_causes import Placed, seeing, with_attention
from torch import Tensor, nn

import pellucid as pl
import support
from pellucid.prove import comparison, probes

IDS = support.some_ids(1, 5, 13)
SIZES = {"vocab_size": 53, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
ODD_ONES = [612, 613]


class Around(nn.Module):
    """The course's program, or its logits alone, in something that treats some ids otherwise."""

    def __init__(self, model: pl.CkptedTransformer, forward: Callable[[nn.Module, Tensor], Tensor], build: Any) -> None:
        super().__init__()
        self.inner, self.function = build(model), forward

    def forward(self, ids: Tensor) -> Tensor:
        return self.function(self.inner, ids)


def shifted(inner: nn.Module, ids: Tensor) -> Tensor:
    """Other logits behind one id, 17, that nothing in this code names."""
    return inner(ids) + (ids * 100 == 1700)[..., None]


def exchanged(inner: nn.Module, ids: Tensor) -> Tensor:
    """The id 617 taken for its neighbour."""
    return inner(ids - (ids * 1000 == 617000).long())


def hidden(inner: nn.Module, ids: Tensor) -> Tensor:
    """The ids of a list have other logits."""
    return inner(ids) + torch.isin(ids, torch.tensor(ODD_ONES))[..., None]


def constant(inner: nn.Module, ids: Tensor) -> Tensor:
    return inner(ids) + (ids == 620)[..., None]


def different(model: pl.CkptedTransformer, made: nn.Module) -> Any:
    report = pl.compare(model, made, IDS)
    assert report.verdict == "different", report
    assert report.first_divergence is not None
    assert "not on the inputs given" in report.first_divergence.detail
    return report


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SIZES)


@pytest.fixture(scope="module")
def many() -> pl.CkptedTransformer:
    return support.glass(**{**SIZES, "vocab_size": 701, "n_layer": 1})


@pytest.fixture
def wide(many: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> pl.CkptedTransformer:
    """A model with more ids than can be run, since nothing may be spent on them."""
    monkeypatch.setattr(probes, "PRODUCTS", 0)
    return many


@pytest.fixture(scope="module")
def long() -> pl.CkptedTransformer:
    return support.glass(**{**SIZES, "n_positions": 160, "n_layer": 1})


def test_everything_is_run_if_that_is_affordable(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, course(small), IDS)
    assert report.verdict == "equivalent"
    assert (report.reach.ids, report.reach.positions) == ((53, 53), (16, 16))
    assert not {"ids", "positions"} & report.coverage.keys()


@pytest.mark.parametrize("build", support.few_of([course, monolith], monolith))
def test_one_id_that_the_inputs_do_not_hold(build: Any, many: pl.CkptedTransformer) -> None:
    different(many, Around(many, shifted, build))


def test_one_embedding_of_many(wide: pl.CkptedTransformer) -> None:
    report = different(wide, Around(wide, exchanged, course))
    assert report.first_divergence.where == "ckpt_embed"


@pytest.mark.parametrize(("function", "build"), [(hidden, course), (constant, monolith)])
def test_ids_that_the_program_names(function: Any, build: Any, wide: pl.CkptedTransformer) -> None:
    different(wide, Around(wide, function, build))


def test_ids_in_attributes_are_named(wide: pl.CkptedTransformer) -> None:
    made = Around(wide, lambda inner, ids: inner(ids), monolith)
    made.pad, made.ends = 630, (631, [632])
    made.register_buffer("suppressed", torch.tensor([633, 9999]))
    assert {630, 631, 632, 633} <= set(probes.named_ids(made, 701))
    assert 9999 not in probes.named_ids(made, 701)


def closing() -> Callable[[Tensor], Tensor]:
    helper = 635

    def function(ids: Tensor) -> Tensor:
        return ids + helper  # noqa: F821 (its cell is empty)

    del helper
    return function


def test_attributes_that_cannot_be_read_name_no_ids(wide: pl.CkptedTransformer) -> None:
    made = Around(wide, lambda inner, ids: inner(ids), monolith)
    made.held, made.closing = [634], closing()
    made.held.append(made.held)
    made.register_buffer("sparse", torch.eye(3).long().to_sparse(), persistent=False)
    assert 634 in probes.named_ids(made, 701)


def test_positions_that_run_on_modulo_the_context(small: pl.CkptedTransformer) -> None:
    made = Placed(small, lambda ids: torch.arange(ids.numel()).view(ids.shape) % 16)
    assert "positions run on over the batch" in (different(small, made).first_divergence.cause or "")


def test_positions_beyond_a_probe_of_usual_length(long: pl.CkptedTransformer) -> None:
    made = with_attention(course(long), seeing(lambda q, k: q - k < 100), (0,))
    assert "attention to the last 100 tokens only" in (different(long, made).first_divergence.cause or "")
    different(long, Placed(long, lambda ids: torch.arange(ids.size(1)).clamp(max=150)))


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> pl.CkptedTransformer:
    """A model whose context is too long to be run whole, but for its blocks."""
    monkeypatch.setattr(probes, "PRODUCTS", 0)
    return support.glass(**{**SIZES, "n_positions": 160})


@pytest.mark.parametrize("blocks", [(0, 1), pytest.param((1,), marks=pytest.mark.long)])
def test_windows_that_begin_behind_a_probe(blocks: tuple[int, ...], deep: pl.CkptedTransformer) -> None:
    made = with_attention(course(deep), seeing(lambda q, k: q - k < 100), blocks)
    report = different(deep, made)
    assert (report.first_divergence.cause or "").startswith("attention to the last 100 tokens only")
    assert "a probe of 1 x 101 ids" in report.first_divergence.detail


def test_as_many_blocks_as_are_quick(deep: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    late = with_attention(course(deep), seeing(lambda q, k: q - k < 100), (1,))
    words = "at 160 positions what leaves the first {} of 2 blocks"
    report = pl.compare(deep, pl.to_hf(deep), IDS)
    assert report.verdict == "identical"
    assert words.format(2) in str(report.reach)
    of_one = sum(parameter.numel() for parameter in deep.blocks[0].parameters()) + 2 * 160 * 16
    monkeypatch.setattr(probes, "DEEP", 160 * of_one)
    report = pl.compare(deep, late, IDS)
    assert report.verdict == "equivalent"
    assert words.format(1) in repr(report)
    monkeypatch.setattr(probes, "DEEP", 80 * of_one)  # half of the context is quick, and more than a probe has
    assert words.format(1).replace("160", "80") in str(pl.compare(deep, late, IDS).reach)
    monkeypatch.setattr(probes, "DEEP", 0)
    assert "of 2 blocks" not in str(pl.compare(deep, late, IDS).reach)


@pytest.mark.parametrize("dtype", support.few_of([torch.float16, torch.bfloat16], torch.bfloat16))
def test_half_precision_runs_less_and_finds_a_window_all_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its products can take 70 times as long, so long texts run in float64 alone, through the blocks."""
    single, half = (support.glass(**{**SIZES, "n_positions": 160}, dtype=each) for each in (torch.float32, dtype))
    weights = sum(parameter.numel() for parameter in half.parameters())
    monkeypatch.setattr(probes, "PRODUCTS", 160 * (weights + 2 * 2 * 160 * 16))
    assert "at 160 of 160 positions" in str(pl.compare(single, pl.to_hf(single), IDS).reach)
    report = pl.compare(half, pl.to_hf(half), IDS)
    assert report.verdict == "identical"
    assert "at 64 of 160 positions" in str(report.reach)
    assert "at 160 positions what leaves the first 2 of 2 blocks" in str(report.reach)
    made = with_attention(course(half), seeing(lambda q, k: q - k < 100), (0, 1))
    assert pl.compare(half, made, IDS).verdict == "different"


def test_what_was_not_run_is_said(wide: pl.CkptedTransformer) -> None:
    report = pl.compare(wide, course(wide), IDS)
    assert report.verdict == "equivalent"
    seen = report.coverage["ids"][0]
    assert report.coverage["ids"] == (seen, 701)
    assert seen < 40
    assert report.coverage["positions"] == (15, 16)
    words = f"the logits for {seen} of 701 ids and at 15 of 16 positions; "
    words += "for all ids and positions what enters the first block"
    for shown in (repr(report), report.to_markdown(), report.page().render()):
        assert words in shown
    alone = pl.compare(wide, monolith(wide), IDS)
    assert "of 701 ids and at 15 of 16 positions\n" in repr(alone)


MUTANTS: dict[str, tuple[Any, str, Any, Callable[..., Any], str]] = {
    "nothing whole is run": (probes.Probes, "_whole", lambda self: [],
                             lambda many: test_one_id_that_the_inputs_do_not_hold(monolith, many), "many"),
    "no embedding is looked at": (probes.Probing, "_first_wrong", lambda *_: None, test_one_embedding_of_many,
                                  "wide"),
    "no text is long": (probes.Probes, "deep", lambda self: (0, 0),
                        lambda deep: test_windows_that_begin_behind_a_probe((0, 1), deep), "deep"),
    "no id is named": (comparison, "named_ids", lambda *_, **__: [],
                       lambda wide: test_ids_that_the_program_names(hidden, course, wide), "wide"),
    "probes are one row, as long as the context": (probes.Probes, "mixed", lambda self: self.every(1, 16),
                                                   test_positions_that_run_on_modulo_the_context, "small"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, request: pytest.FixtureRequest) -> None:
    where, attribute, broken, check, model = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes.Probes, "short", lambda self: [])  # rows of few tokens show some of it, too
        patch.setattr(where, attribute, broken)
        with pytest.raises(AssertionError):
            check(request.getfixturevalue(model))
