"""What programs return: logits in any container and layout are judged, and what is no logits is named."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from course import course
from torch import Tensor, nn

import pellucid as pl
import samples
import support

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


class Returning(nn.Module):
    """A program that makes something of another's output."""

    def __init__(self, inner: nn.Module, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, ids: Tensor) -> Any:
        return self.change(self.inner(ids))


@dataclass
class Held:
    loss: Tensor
    scores: Tensor


LAYOUTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "positions first": (lambda x: x.transpose(0, 1), "positions before batch rows"),
    "vocabulary first": (lambda x: x.transpose(1, 2), "vocabulary before positions"),
    "flat": (lambda x: x.flatten(0, 1), "batch rows and positions in one axis"),
    "padded": (lambda x: torch.cat([x, torch.full_like(x[..., :11], -torch.inf)], -1), "53 columns are compared"),
    "sparse": (lambda x: x.to_sparse(), ""),
    "a position each": (lambda x: list(x.unbind(1)), ""),
    "a row each": (lambda x: {"logits": x.unbind(0)}, ""),
    "tuple": (lambda x: (x.mean(), x), ""),
    "nested": (lambda x: {"out": [x.mean(), {"scores": x}]}, ""),
    "dataclass": (lambda x: Held(x.mean(), x), ""),
}


@pytest.mark.parametrize(
    ("name", "wrong"),
    support.few_of(
        itertools.product(LAYOUTS, ("", "erf gelu")),
        *((name, "") for name in LAYOUTS), ("positions first", "erf gelu"), ("nested", "erf gelu"),
    ),
)  # fmt: skip
def test_layouts_are_judged(name: str, wrong: str, small: pl.CkptedTransformer) -> None:
    change, says = LAYOUTS[name]
    report = pl.compare(small, Returning(course(small, wrong), change), IDS)
    assert report.verdict == ("different" if wrong else "equivalent"), report
    assert says in " ".join(report.notes)
    assert wrong == "" or "gelu instead of gelu_new" in str(report.first_divergence)


def columns(make: Callable[..., nn.Module], model: pl.CkptedTransformer, *args: Any) -> nn.Module:
    """A program of ids [P, B], as torch's own layers read them by default."""
    made = Returning(make(model, *args), lambda x: x.transpose(0, 1))
    made.register_forward_pre_hook(lambda _, given: (given[0].T,))
    return made


class OverColumns(nn.Module):
    """As torch's own examples are: positions before batch rows, and values that are viewed.

    Mask and positions come from outside. The second norm of each block works on tokens in one axis.
    """

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner, self.mask = course(model), torch.ones(0)
        for block in self.inner.blocks:
            block.attn.forward = functools.partial(self.attend, block.attn)
            block.ln2.register_forward_pre_hook(lambda _, given: (given[0].flatten(0, 1),))
            block.ln2.register_forward_hook(lambda _, given, out: out.unflatten(0, (len(self.mask), -1)))

    def attend(self, attn: Any, x: Tensor, cache: Any = None) -> Tensor:
        projected = attn.qkv_proj(x.view(-1, x.size(-1))).view(*x.shape[:2], -1)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).permute(1, 2, 0, 3) for part in projected.chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=~self.mask)
        return attn.output_proj(z.permute(2, 0, 1, 3).flatten(2))

    def forward(self, src: Tensor, src_mask: Tensor, positions: Tensor) -> Tensor:
        assert (src_mask.shape, positions.shape) == ((len(src), len(src)), src.shape)
        self.mask = src_mask
        x = self.inner.token_embedding(src.view(-1)).view(*src.shape, -1) + self.inner.pos_embedding(positions)
        return self.inner.ln(self.inner.blocks(x)) @ self.inner.token_embedding.weight.T


COLUMNS = [(False, IDS[:1]), (False, IDS[:1, :1]), (False, IDS[:, :2]), (True, IDS), (True, IDS[:, :2])]
"""Whether a program works over columns inside, too, and ids."""


@pytest.mark.parametrize(("inside", "ids"), COLUMNS)
def test_texts_may_be_columns(inside: bool, ids: Tensor, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, OverColumns(small) if inside else columns(course, small), ids)
    assert report.verdict == "equivalent", report
    assert "positions before batch rows, which is how it reads them" in " ".join(report.notes)
    assert ("given one [P, P], true where a key is hidden" in " ".join(report.notes)) == inside


def test_what_is_measured_and_said_of_columns_beside_their_logits(small: pl.CkptedTransformer) -> None:
    made = OverColumns(small).train()
    made.inner.ln.register_forward_hook(lambda ln, _, out: nn.functional.dropout(out, 0.5, ln.training))
    report = pl.compare(small, made, IDS)
    assert "training mode, in which its logits are random" in " ".join(report.notes)
    assert (report.sensitivity["mlp.W_in"] or 1) < 1e-6


def test_a_model_of_ours_is_never_read_by_columns(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, support.glass(**SMALL, seed=1), IDS[:1, :1])
    assert report.verdict == "different"
    assert "positions before batch rows" not in " ".join(report.notes)


def test_texts_of_a_llama_may_be_columns() -> None:
    """One token everywhere shows no positions of its own."""
    model = samples.glass("llama", num_hidden_layers=1)
    made = columns(lambda one: Returning(pl.to_hf(one), lambda out: out.logits), model)
    assert pl.compare(model, made, IDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_may_come_of_columns(dtype: torch.dtype, small: pl.CkptedTransformer) -> None:
    """As many texts as tokens do not show which axis is which."""
    made = Returning(columns(course, small).to(dtype), lambda x: x.transpose(0, 1))
    report = pl.compare(small, made, IDS[:, :2])
    assert report, report
    assert "the logits came with" not in " ".join(report.notes)


def test_a_wrong_one_of_columns_is_told(small: pl.CkptedTransformer) -> None:
    made = Returning(columns(course, small, "erf gelu"), lambda x: x.flatten(0, 1))
    assert "gelu instead of" in str(pl.compare(small, made, IDS).first_divergence)


def test_attention_over_rows_is_no_text_in_a_column(small: pl.CkptedTransformer) -> None:
    """Who forgets `batch_first=True` attends to other texts; positions show which axis is which."""
    made = course(small)
    for block in made.blocks:
        block.attn.register_forward_pre_hook(lambda _, args: (args[0].transpose(0, 1), *args[1:]))
        block.attn.register_forward_hook(lambda _, args, out: out.transpose(0, 1))
    found = pl.compare(small, made, IDS).first_divergence
    assert found is not None
    assert (found.cause or "").startswith("attention over batch rows")


@pytest.mark.parametrize(
    "one",
    [
        lambda x: x[0],
        lambda x: {"logits": x[0]},
        lambda x: (None, x[0]),
        lambda x: x[0, -1],
        lambda x: Held(x.mean(), x[0]),
        lambda x: x[0].detach().numpy(),
    ],
)
def test_one_text_after_another(one: Any, small: pl.CkptedTransformer) -> None:
    def alone(_: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        (ids,) = given
        assert ids.dim() == 1
        return (ids[None],)

    made = Returning(course(small), one)
    made.register_forward_pre_hook(alone)
    report = pl.compare(small, made, IDS)
    assert report.verdict == "equivalent", report
    assert "one text [P]" in " ".join(report.notes)


def test_positions_that_are_all_there_are_no_row_of_coverage(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, pl.to_hf(small), IDS)
    assert report.verdict == "identical"
    assert "logits" not in report.coverage


@pytest.mark.parametrize(
    ("change", "seen", "by"),
    [
        (lambda x: x[:, -1:], 1, 1),
        pytest.param(lambda x: x[:, -1], 1, 1, marks=pytest.mark.long),
        (lambda x: x[:, :-1], 6, 1),
        (lambda x: x[:, 1:], 6, -1),  # by 1, what is left would be the first six
        (lambda x: x[:, -3:], 3, 1),
    ],
)
def test_positions_that_are_left_out_are_said(
    change: Callable[[Tensor], Tensor], seen: int, by: int, small: pl.CkptedTransformer
) -> None:
    """Positions that are off by one, of which some are left out, too, are no such case."""
    hf = pl.to_hf(small)
    report = pl.compare(small, Returning(hf, lambda out: change(out.logits)), IDS)
    assert report.verdict == "equivalent"
    assert report.coverage["logits"] == (seen, 7)
    assert "of 7 positions it shows no more" in " ".join(report.notes)
    assert not pl.compare(small, Returning(hf, lambda out: change(out.logits.roll(by, 1))), IDS)


def test_the_first_position_alone_is_no_proof(small: pl.CkptedTransformer) -> None:
    assert not pl.compare(small, Returning(pl.to_hf(small), lambda out: out.logits[:, :1]), IDS)


NO_HEAD = "no head: the output is the final normalized residual"


@pytest.mark.parametrize(("head", "vocabulary"), [(nn.Identity(), 53), (nn.Dropout(0.0), 24)])
def test_a_model_without_its_head_is_no_gpt2(head: nn.Module, vocabulary: int) -> None:
    model = support.glass(**{**SMALL, "vocab_size": vocabulary})
    hf = pl.to_hf(model).eval()
    assert pl.compare(model, hf.transformer, IDS % vocabulary).verdict == "identical"  # its class has no head
    bare = Returning(hf.transformer, lambda out: out.last_hidden_state)
    hf.lm_head = head
    for made in (hf, bare):
        report = pl.compare(model, made, IDS % vocabulary)
        assert report.verdict == "different"
        assert report.first_divergence is not None
        assert report.first_divergence.where == "logits"
        assert NO_HEAD in (report.first_divergence.cause or ""), report


@pytest.mark.parametrize("dtype", support.few_of([torch.float16, torch.bfloat16], torch.float16))
def test_logits_that_are_handed_out_in_half_precision(dtype: torch.dtype, small: pl.CkptedTransformer) -> None:
    name = str(dtype).removeprefix("torch.")
    report = pl.compare(small, Returning(course(small), lambda x: x.to(dtype)), IDS)
    assert report.verdict == "equivalent", report
    assert f"the logits are rounded to {name}: with this in the reference" in " ".join(report.notes)
    wrong = Returning(course(small, "eps 1e-6"), lambda x: x.to(dtype))
    assert pl.compare(small, wrong, IDS).verdict == "different"
    found = pl.compare(small, Returning(course(small), lambda x: x.to(dtype).to(x.dtype)), IDS).first_divergence
    assert found is not None
    assert f"the logits are rounded to {name} (" in (found.cause or "")


@pytest.mark.parametrize("shown", [1, 2])
def test_some_logits_in_half_precision(shown: int, small: pl.CkptedTransformer) -> None:
    def compared(change: Callable[[Tensor], Tensor]) -> pl.ComparisonReport:
        return pl.compare(small, Returning(course(small), lambda x: change(x)[:, -shown:].bfloat16()), IDS)

    report = compared(lambda x: x)
    assert report.verdict == "equivalent", report
    assert "the logits are rounded to bfloat16: with this in the reference" in " ".join(report.notes)
    assert compared(lambda x: x.roll(1, 1)).verdict == "different"


def test_a_model_without_head_and_last_norm(small: pl.CkptedTransformer) -> None:
    hf = pl.to_hf(small).eval()
    hf.transformer.ln_f, hf.lm_head = nn.Identity(), nn.Identity()
    found = pl.compare(small, hf, IDS).first_divergence
    assert found is not None
    assert "the output is the last residual stream" in (found.cause or "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.argmax(-1), "whole numbers (torch.int64 [2, 7]), not logits"),
        (lambda x: x.mean(), "the output is []"),
        (lambda x: x.to("meta"), "on the meta device, which holds no numbers"),
        (lambda x: x.logsumexp(-1), "the output is [2, 7]"),
        (lambda x: None, "no logits in an output of type NoneType"),
        (lambda x: "words", "no logits in an output of type str"),
        (lambda x: x[None], "[1, 2, 7, 53]"),
    ],
)
def test_what_is_no_logits_is_named(change: Callable[[Tensor], Any], says: str, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Returning(course(small), change), IDS)
    assert report.verdict == "inconclusive"
    assert says in " ".join(report.notes), report
    assert "did not run" not in " ".join(report.notes)


def test_other_widths_are_different(small: pl.CkptedTransformer) -> None:
    for change in (lambda x: x[..., :50], lambda x: x[..., :2]):
        report = pl.compare(small, Returning(course(small), change), IDS)
        assert report.verdict == "different"
        assert "shapes [2, 7, 53] and" in str(report.first_divergence)


# Numbers that are not finite


def sharp(scale: float) -> pl.CkptedTransformer:
    """A model whose scores are large: exp of them leaves float32, and not float64."""
    model = support.glass(**SMALL)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_QKV[:, :24] *= scale
    return model


def unshifted_softmax(model: pl.CkptedTransformer) -> nn.Module:
    made = course(model)

    def attention(self: Any, x: Tensor, cache: Any = None) -> Tensor:
        b, p, width = x.shape
        q, k, v = self.qkv_proj(x).view(b, p, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.size(-1) ** -0.5).exp() * torch.ones(p, p).tril()
        z = weights / weights.sum(-1, keepdim=True) @ v
        return self.output_proj(z.transpose(1, 2).reshape(b, p, width))

    made.blocks[0].attn.__class__ = type("Unshifted", (type(made.blocks[0].attn),), {"forward": attention})
    return made


def test_nan_is_no_rounding() -> None:
    calm, loud = sharp(1.0), sharp(40.0)
    assert pl.compare(calm, unshifted_softmax(calm), IDS).verdict == "equivalent"
    assert not unshifted_softmax(loud)(IDS).isfinite().all()
    report = pl.compare(loud, unshifted_softmax(loud), IDS)
    assert report.verdict == "different", report
    found = report.first_divergence
    assert found is not None
    assert found.where == "blocks.0.attn.ckpt_z"
    assert "NaN where the reference has finite numbers" in found.detail
    assert "in float64 both agree" in found.detail


def overflowing(model: pl.CkptedTransformer, value: float) -> nn.Module:
    """Adds and takes away something that float16 and float32 cannot hold."""
    inner, places = course(model).to(model.dtype), torch.arange(53)
    return Returning(inner, lambda x: x.where(places != 5, x * value * value / value / value))


def test_infinity_is_no_rounding(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, overflowing(small, 1e30), IDS)
    assert report.verdict == "different", report
    assert report.first_divergence is not None
    assert report.first_divergence.where == "logits"
    assert "infinity where the reference has finite numbers" in report.first_divergence.detail
    half = support.glass(**SMALL).half()
    assert pl.compare(half, overflowing(half, 8.0), IDS), "within float16"
    report = pl.compare(half, overflowing(half, 2e4), IDS)
    assert report.verdict == "different", report


def test_values_that_are_not_finite_on_both_sides() -> None:
    model = support.glass(**{**SMALL, "tie_word_embeddings": False})
    with torch.no_grad():
        model.unembed.W_U[:, 7] = torch.nan
    hf = pl.to_hf(model)
    assert pl.compare(model, hf, IDS).verdict == "identical"
    moved = Returning(hf, lambda out: out.logits.roll(1, -1))
    assert pl.compare(model, moved, IDS).verdict == "different"
    with torch.no_grad():
        model.ln_final.w[0] = torch.nan
    report = pl.compare(model, pl.to_hf(model), IDS)
    assert report.verdict == "inconclusive"
    assert "no logit of the reference is finite" in " ".join(report.notes)


def test_masks_of_any_depth_are_no_difference(small: pl.CkptedTransformer) -> None:
    other = pl.CkptedTransformer(small.config, small.state_dict(), attention="eager").eval()
    assert pl.compare(small, other, IDS)
