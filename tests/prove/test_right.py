"""Right implementations in other layouts: none is accused, whatever it shows or hides."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from course import course
from rights import RIGHTS
from test_causes import with_attention

import pellucid as pl
import support
from pellucid.prove.sides import recognised

SMALL = {"vocab_size": 53, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3}
ONE_BLOCK = {**SMALL, "n_layer": 1}
IDS = support.some_ids(2, 7, 53)
FRESH = ("course", "nano", "split", "per head", "einsum", "fused")


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


@pytest.fixture(scope="module")
def one() -> pl.CkptedTransformer:
    """Of one block, which is enough where blocks do not matter."""
    return support.glass(**ONE_BLOCK)


@pytest.mark.parametrize("name", support.few_of(RIGHTS, "course"))
def test_right_ones_are_not_accused(name: str, small: pl.CkptedTransformer) -> None:
    """Of a single row; of two, `test_alignment_converts` sees it."""
    is_right(pl.compare(small, RIGHTS[name](small), IDS[:1]))


def is_right(report: pl.ComparisonReport) -> None:
    assert report, report
    assert report.first_divergence is None
    assert report.alignment.complete
    assert all(row.bit_equal for row in report.parameters)
    assert all(row.fp64 is not None and row.fp64 < 1e-6 for row in report.checkpoints), report


@pytest.mark.parametrize("name", support.few_of(RIGHTS, "course", "per head", "fused", "permuted"))
def test_alignment_converts(name: str, small: pl.CkptedTransformer) -> None:
    """The alignment, kept as JSON, turns another model's weights into the foreign layout."""
    made = RIGHTS[name](small)
    report = pl.compare(small, made, IDS)
    is_right(report)
    alignment = report.alignment
    other = support.glass(seed=5, **SMALL)
    made.load_state_dict({**made.state_dict(), **alignment.convert(other)})
    again = pl.compare(other, made, IDS)
    assert again, again
    assert alignment.check(other, made).bit_equal
    assert not alignment.check(small, made).bit_equal


@pytest.mark.parametrize("name", support.few_of(FRESH, "course", "per head"))
def test_fresh_weights_with_many_equal_values(name: str) -> None:
    """Zero biases and unit gains: which is which cannot be told from the values, and nobody is accused."""
    torch.manual_seed(3)
    fresh = pl.CkptedTransformer(pl.TransformerConfig(**(SMALL if name == "course" else ONE_BLOCK))).eval()
    report = pl.compare(fresh, RIGHTS[name](fresh), IDS)
    assert report, report
    assert any(row.ambiguous for row in report.parameters)


@pytest.mark.parametrize(
    ("name", "dtype"),
    support.few_of(
        itertools.product(("course", "permuted", "torch"), (torch.bfloat16, torch.float16, torch.float64)),
        *(("course", dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)), ("permuted", torch.bfloat16),
        ("torch", torch.float16),
    ),
)  # fmt: skip
def test_other_dtypes_meet_on_common_ground(name: str, dtype: torch.dtype, one: pl.CkptedTransformer) -> None:
    report = pl.compare(one, RIGHTS[name](one).to(dtype), IDS)
    assert report.verdict == "equivalent", report
    assert any("both were rounded to" in note for note in report.notes)


class Reordered(torch.nn.Module):
    """A fused projection whose matrix holds q, k and v in another order than its result, such as k|q|v."""

    def __init__(self, fused: torch.nn.Linear, order: str, read: str) -> None:
        super().__init__()
        weights = dict(zip("qkv", fused.weight.chunk(3), strict=True))
        biases = dict(zip("qkv", fused.bias.chunk(3), strict=True))
        self.projection = torch.nn.Linear(fused.in_features, fused.out_features)
        self.projection.weight = torch.nn.Parameter(torch.cat([weights[letter] for letter in order]).detach())
        self.projection.bias = torch.nn.Parameter(torch.cat([biases[letter] for letter in order]).detach())
        self.order = read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(self.order, self.projection(x).chunk(3, -1), strict=True))
        return torch.cat([parts[letter] for letter in "qkv"], -1)


def reordered(model: pl.CkptedTransformer, order: str, read: str) -> torch.nn.Module:
    made = RIGHTS["nano"](model)
    for block in made.transformer["h"]:
        block.c_attn = Reordered(block.c_attn, order, read)
    return made


ORDERS = ["".join(order) for order in itertools.permutations("qkv")]


@pytest.mark.parametrize(
    ("order", "biases"),
    support.few_of(
        itertools.product(ORDERS, [True, False]),
        ("kvq", True), ("vqk", False),
    ),
)  # fmt: skip
def test_parts_of_one_tensor_in_every_order(order: str, biases: bool, small: pl.CkptedTransformer) -> None:
    """Biases of zeros are the same in every order, and stand as their matrix does."""
    model = small if biases else support.glass(vocab_size=53, n_positions=32, n_embd=24, n_layer=2, n_head=3)
    if not biases:
        for block in model.blocks:
            torch.nn.init.zeros_(block.attn.b_QKV)
    report = pl.compare(model, reordered(model, order, order), IDS)
    assert report.verdict == "equivalent", report
    assert all(report.coverage[f"attn.ckpt_{letter}"][0] == 2 for letter in "qkv")
    converted = report.alignment.convert(model)
    own = reordered(model, order, order).state_dict()
    assert all(torch.equal(own[name], value) for name, value in converted.items())
    assert not [note for note in report.notes if "disagree" in note]
    by_value = pl.compare(own, model.state_dict())
    assert by_value.alignment.bit_equal


def test_parts_that_are_read_in_another_order(small: pl.CkptedTransformer) -> None:
    found = pl.compare(small, reordered(small, "kqv", "qkv"), IDS).first_divergence
    assert found is not None
    assert "q, k, v taken in another order: k, q, v" in (found.cause or "")


@pytest.mark.parametrize("name", support.few_of(RIGHTS, "course", "fused"))
def test_one_token_accuses_nobody(name: str, one: pl.CkptedTransformer) -> None:
    """With one key every pattern is 1, so that nothing depends on q and k: a longer probe says what they hold."""
    report = pl.compare(one, RIGHTS[name](one), IDS[:1, :1])
    assert report.verdict == "equivalent", report
    assert not any("try a longer text" in note for note in report.notes)


@pytest.mark.parametrize("name", support.few_of(RIGHTS, "course", "stacked"))
def test_a_vocabulary_as_wide_as_the_model(name: str) -> None:
    square = support.glass(**{**SMALL, "vocab_size": 24})
    assert pl.compare(square, RIGHTS[name](square), IDS % 24), name


def test_edges(one: pl.CkptedTransformer) -> None:
    empty = support.glass(**{**SMALL, "n_layer": 0})
    assert pl.compare(empty, RIGHTS["course"](empty), IDS)
    alone = support.glass(**{**SMALL, "n_layer": 1, "n_head": 1})
    assert pl.compare(alone, RIGHTS["monolith"](alone), IDS)
    for options in ({"numerics": "fast"}, {"attention": "eager"}):
        other = pl.CkptedTransformer(one.config, one.state_dict(), **options).eval()
        assert pl.compare(one, other, IDS).verdict in ("equivalent", "identical")
    other = pl.compare(one, support.glass(seed=3, **ONE_BLOCK), IDS)
    assert other.verdict == "different"
    other.to_json()
    with pytest.raises(pl.InputError) as caught:
        pl.compare(RIGHTS["monolith"](one), RIGHTS["monolith"](one), IDS)
    assert caught.value.code == "compare-unknown-both"


@pytest.mark.parametrize(
    ("name", "tied"),
    support.few_of(
        [("course", True), ("course", False), ("nano", False), ("split", True), ("torch", True)],
        ("course", False), ("torch", True),
    ),
)  # fmt: skip
def test_two_modules_of_which_one_is_recognised(name: str, tied: bool, small: pl.CkptedTransformer) -> None:
    model = small if tied else support.glass(tie_word_embeddings=False, **ONE_BLOCK)
    first, second = RIGHTS[name](model), RIGHTS["permuted"](model)
    for a, b in ((first, second), (second, first)):
        report = pl.compare(a, b, IDS)
        assert report, report
        assert report.alignment.complete
    if name == "course":
        report = pl.compare(
            first,
            RIGHTS["permuted"](support.glass(seed=4, tie_word_embeddings=tied, **(SMALL if tied else ONE_BLOCK))),
            IDS,
        )
        assert report.verdict == "different"


def test_a_recognised_module_with_a_mistake_in_the_other(one: pl.CkptedTransformer) -> None:
    report = pl.compare(RIGHTS["split"](one), course(one, "eps 1e-6"), IDS)
    assert report.first_divergence is not None
    assert "epsilon 1e-06" in (report.first_divergence.cause or "")


def test_nothing_is_recognised_in_a_wrong_one(one: pl.CkptedTransformer) -> None:
    assert recognised(course(one)) is not None
    for wrong in ("no mask", "post-LN", "positions from 1"):
        assert recognised(course(one, wrong)) is None, wrong
    assert recognised(torch.nn.Linear(3, 3)) is None


ROWS = support.ragged_ids(5, 9, 2, vocab_size=53)


@pytest.mark.parametrize(
    ("name", "tokenized"),
    support.few_of(
        itertools.product(("course", "split", "torch"), (False, True)),
        ("course", False), ("split", True), ("torch", False),
    ),
)  # fmt: skip
def test_texts_of_unequal_length(name: str, tokenized: bool, one: pl.CkptedTransformer) -> None:
    report = pl.compare(one, RIGHTS[name](one), one.tokenize(ROWS) if tokenized else ROWS)
    assert report, report
    assert "unequal length" in report.notes[0]


def test_a_mistake_in_texts_of_unequal_length(one: pl.CkptedTransformer) -> None:
    report = pl.compare(one, course(one, "mask sees next"), ROWS)
    assert "mask off by one" in str(report.first_divergence)
    assert 0 in report.first_divergence.positions


def test_progress_is_told(small: pl.CkptedTransformer) -> None:
    for other in (RIGHTS["course"](small), small.state_dict()):
        told: list[tuple[str, float]] = []
        pl.compare(small, other, IDS, progress=lambda what, share, told=told: told.append((what, share)))
        assert [what for what, _ in told] == ["aligning parameters", "running both", "running both in float64",
                                              "looking for the cause", "running both on probes"]  # fmt: skip
        assert told == sorted(told, key=lambda step: step[1])


def test_permuted_heads_are_equivalent_and_explained(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, RIGHTS["permuted"](small), IDS)
    assert report.verdict == "equivalent"
    assert any("another order" in note for note in report.notes)


@pytest.mark.parametrize(
    ("headless", "attention"),
    support.few_of(itertools.product((False, True), ("sdpa", "eager")), (False, "sdpa"), (True, "eager")),
)
def test_transformers(headless: bool, attention: str) -> None:
    hf = support.reference(headless=headless, attention=attention, **SMALL)
    ours = pl.from_hf(hf)
    parallel = [(ours, torch.nn.DataParallel(hf))] if headless else []
    for a, b in (*parallel, (ours, hf), (hf, ours), (hf, copy.deepcopy(hf))):
        report = pl.compare(a, b, IDS)
        assert report.verdict == "identical", report
    assert report.coverage["attn.ckpt_q"] == (2, 2)
    assert sum(covered for covered, _ in report.coverage.values()) == len(report.checkpoints) - 1


def test_untied_and_state_dicts() -> None:
    hf = support.reference(tie_word_embeddings=False, **SMALL)
    ours = pl.from_hf(hf)
    assert pl.compare(ours, hf, IDS).verdict == "identical"
    assert pl.compare(hf.state_dict(), ours.state_dict()).verdict == "identical"
    assert pl.compare(ours, hf.state_dict(), IDS).verdict == "identical"
    changed = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    changed["transformer.h.1.mlp.c_fc.bias"][3] += 1e-6
    report = pl.compare(ours, changed, IDS)
    assert (report.verdict, report.first_divergence.where) == ("different", "blocks.1.mlp.b_in")
    assert pl.compare(hf.state_dict(), changed).first_divergence.where == "blocks.1.mlp.b_in"


@pytest.mark.parametrize("name", ["course", "per head", "permuted", "stacked"])
def test_state_dicts_of_unknown_layouts(name: str, small: pl.CkptedTransformer) -> None:
    theirs = RIGHTS[name](small).state_dict()
    wanted = "equivalent" if name == "permuted" else "identical"
    assert pl.compare(small, theirs, IDS).verdict == wanted
    assert pl.compare(theirs, small.state_dict()).verdict == wanted
    hf = pl.to_hf(small).state_dict()
    assert pl.compare(theirs, hf).verdict == wanted
    assert pl.compare(theirs, dict(theirs)).verdict == "identical"
    other = {n: t.clone() for n, t in theirs.items()}
    next(iter(other.values())).view(-1)[0] += 1.0
    assert pl.compare(theirs, other).verdict == "different"


def test_what_cannot_be_compared_is_never_a_pass(small: pl.CkptedTransformer) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = RIGHTS["course"](small)

        def forward(self, ids: Any) -> Any:
            self.inner(ids)
            raise ValueError("not today")

    report = pl.compare(small, Broken(), IDS)
    assert report.verdict == "inconclusive"
    assert not report
    assert any("ValueError: not today" in note for note in report.notes)


def test_sensitivity_finds_small_errors() -> None:
    model = support.glass(**ONE_BLOCK)
    hf = pl.to_hf(model)
    before = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    found = pl.compare(model, hf, IDS).sensitivity
    assert len(found) == 20
    assert all(size is not None and size <= 1e-7 for size in found.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in hf.state_dict().items())


@pytest.mark.parametrize("tokens", [pytest.param(1, marks=pytest.mark.long), 7])
def test_one_part_of_a_fused_module_that_holds_something_else(tokens: int, one: pl.CkptedTransformer) -> None:
    """The module of q, k and v gives three times q, which the scale of the scores takes back, or does not."""

    def attending(scale: float) -> Any:
        def forward(self: Any, x: torch.Tensor, cache: Any = None) -> torch.Tensor:
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, -1))
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale * q.size(-1) ** -0.5)
            return self.output_proj(z.transpose(1, 2).flatten(2))

        return forward

    for scale, verdict in ((1 / 3, "equivalent"), (1 / 2, "different")):
        made = course(one)
        for block in made.blocks:
            block.attn.qkv_proj.register_forward_hook(
                lambda module, given, out: torch.cat([out[..., :24] * 3, out[..., 24:]], -1)
            )
        report = pl.compare(one, with_attention(made, attending(scale)), IDS[:, :tokens])
        assert report.verdict == verdict, report
