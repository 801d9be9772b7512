"""Wrong implementations: each is caught and named by what is wrong with it; nothing unconfirmed is claimed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course, monolith

import pellucid as pl
import support

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
IDS = support.some_ids(2, 7, 53)
WIDTH = 24


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


MISTAKES = {
    "erf gelu": ("activation function gelu instead of gelu_new", "blocks.0.mlp.ckpt_post"),
    "relu": ("activation function relu instead", "blocks.0.mlp.ckpt_post"),
    "quick gelu": ("activation function quick_gelu instead", "blocks.0.mlp.ckpt_post"),
    "eps 1e-6": ("LayerNorm epsilon 1e-06 instead of 1e-05", "blocks.0.ln1.ckpt_normalized"),
    "eps 1e-12": ("LayerNorm epsilon 1e-12 instead of 1e-05", "blocks.0.ln1.ckpt_normalized"),
    "unbiased variance": ("unbiased variance", "blocks.0.ln1.ckpt_normalized"),
    "eps outside": ("epsilon outside the square root", "blocks.0.ln1.ckpt_normalized"),
    "rms": ("RMSNorm", "blocks.0.ln1.ckpt_normalized"),
    "norm without affine": ("without its gain and bias", "blocks.0.ln1.ckpt_normalized"),
    "norm without bias": ("LayerNorm without its bias", "blocks.0.ln1.ckpt_normalized"),
    "no scale": ("no scaling of the scores", "blocks.0.attn.ckpt_z"),
    "scale by width": ("1/sqrt(d_model)", "blocks.0.attn.ckpt_z"),
    "scale 1/d": ("1/d_head", "blocks.0.attn.ckpt_z"),
    "no mask": ("no causal mask", "blocks.0.attn.ckpt_z"),
    "mask sees next": ("off by one: sees the next token", "blocks.0.attn.ckpt_z"),
    "mask blind to itself": ("off by one: does not see itself", "blocks.0.attn.ckpt_z"),
    "mask 0": ("masked scores set to 0", "blocks.0.attn.ckpt_z"),
    "softmax over queries": ("softmax over the queries", "blocks.0.attn.ckpt_z"),
    "interleaved": ("read as (head, part, d_head)", "blocks.0.attn.ckpt_z"),
    "heads (d, h)": ("(d_head, head)", "blocks.0.attn.ckpt_z"),
    "heads not moved": ("heads split without moving them", "blocks.0.attn.ckpt_z"),
    "heads merged (d, h)": ("heads merged as (d_head, head)", "blocks.0.attn.ckpt_z"),
    "heads not moved back": ("heads merged without moving them", "blocks.0.attn.ckpt_z"),
    "order kqv": ("another order: k, q, v", "blocks.0.attn.ckpt_z"),
    "order qvk": ("another order: q, v, k", "blocks.0.attn.ckpt_z"),
    "output transposed": ("output projection transposed", "blocks.0.attn.ckpt_attn_out"),
    "post-LN": ("post-LayerNorm", "blocks.0.resid_pre"),
    "parallel": ("in parallel with attention", "blocks.0.resid_mid"),
    "no residual at attention": ("residual connection around attention is missing", "blocks.0.resid_mid"),
    "no residual at mlp": ("residual connection around the MLP is missing", "blocks.0.resid_post"),
    "normalized residual": ("around attention carries the normalized values", "blocks.0.resid_mid"),
    "norms swapped": ("ln1 and ln2 are swapped", "blocks.0.resid_pre"),
    "positions from 1": ("positions shifted by 1", "ckpt_pos_embed"),
    "position 0": ("position 0 everywhere", "ckpt_pos_embed"),
    "no positions": ("no position embeddings", "blocks.0.resid_pre"),
    "embedding scaled": ("multiplied by sqrt(d_model)", "blocks.0.resid_pre"),
    "blocks reversed": ("from the last to the first", "blocks.0.resid_pre"),
    "last block left out": ("block 1 is left out", "blocks.1.resid_post"),
    "no final norm": ("no LayerNorm (ln_final only)", "logits"),
    "log-probabilities": ("log-probabilities instead of logits", "logits"),
}  # fmt: skip
"""The course's mistakes: what the cause says, and where a program that shows its values first differs."""


@pytest.fixture(scope="module")
def one_block() -> pl.CkptedTransformer:
    return support.glass(**{**SMALL, "n_layer": 1})


SHOWN, UNSHOWN = ([(build, wrong) for wrong in MISTAKES] for build in (course, monolith))
"""Of programs that show only their logits, more are in test_bare.py."""

ONE_OF_EACH = ("erf gelu", "relu", "eps 1e-6", "rms", "no scale", "no mask", "softmax over queries", "interleaved",
               "output transposed", "post-LN", "parallel", "no residual at mlp", "positions from 1", "no positions",
               "last block left out", "no final norm", "log-probabilities", "mask sees next", "order kqv",
               "norms swapped", "unbiased variance", "eps outside", "position 0", "embedding scaled",
               "blocks reversed")  # fmt: skip
"""At least one of each part and place, and of those that are taken for one another; heads that are not moved are among
the programs that show only their logits. The others are spellings of these: `make test-all` compares them, too, and the
exercises go through the table (tests/exercises/test_exercise_mistakes.py)."""


@pytest.mark.parametrize(
    ("build", "wrong"), support.few_of([*SHOWN, *UNSHOWN], *((course, wrong) for wrong in ONE_OF_EACH), *UNSHOWN[::20])
)
def test_mistakes_are_named(
    build: Callable[..., Any], wrong: str, small: pl.CkptedTransformer, one_block: pl.CkptedTransformer
) -> None:
    """In one block, unless several are what the mistake is about."""
    model = small if "block" in wrong else one_block
    report = pl.compare(model, build(model, wrong), IDS)
    assert report.verdict == "different", report
    assert not report
    assert all(row.bit_equal for row in report.parameters)
    found = report.first_divergence
    assert found is not None
    assert found.cause is not None, report
    cause, where = MISTAKES[wrong]
    assert cause in found.cause, report
    assert "the logits agree too" in found.cause, report
    if build is course:
        assert where in found.where, report


SOME = ("erf gelu", "eps 1e-6", "no mask", "unbiased variance", "output transposed")


@pytest.mark.parametrize(
    ("build", "wrong"),
    support.few_of(
        itertools.product((course, monolith), SOME),
        (course, "erf gelu"), (monolith, "no mask"),
    ),
)  # fmt: skip
def test_a_mistake_in_one_block_is_named_there(
    build: Callable[..., Any], wrong: str, small: pl.CkptedTransformer
) -> None:
    report = pl.compare(small, build(small, wrong, only=1), IDS)
    found = report.first_divergence
    assert report.verdict == "different"
    assert found is not None
    assert found.cause is not None
    assert MISTAKES[wrong][0] in found.cause
    if build is course:
        assert found.where.startswith("blocks.1.")
        assert "in block 1 only" in found.cause or "logits agree too" in found.cause


def test_dropout_that_evaluation_does_not_switch_off(one_block: pl.CkptedTransformer) -> None:
    report = pl.compare(one_block, course(one_block, "dropout on"), IDS)
    assert report.verdict == "different"
    assert "dropout is active" in str(report.first_divergence)


def test_no_confirmed_cause_no_claim(small: pl.CkptedTransformer) -> None:
    made = course(small)
    made.blocks[1].attn.register_forward_hook(lambda module, given, out: out * 1.5 + 0.1)
    report = pl.compare(small, made, IDS)
    assert report.verdict == "different"
    assert report.first_divergence is not None
    assert report.first_divergence.where == "blocks.1.attn.ckpt_attn_out"
    assert report.first_divergence.cause is None


def test_local_and_inherited_errors_are_told_apart(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, course(small, "erf gelu", only=0), IDS)
    rows = {row.name: row for row in report.checkpoints}
    wrong = rows["blocks.0.mlp.ckpt_post"]
    later = rows["blocks.1.ln1.ckpt_normalized"]
    assert wrong.fp64 == pytest.approx(wrong.fp64_local)
    assert wrong.fp64 is not None
    assert wrong.fp64 > 1e-6
    assert later.fp64 is not None
    assert later.fp64 > 1e-6
    assert later.fp64_local is not None
    assert later.fp64_local < 1e-13


def test_heads_and_positions_are_named(one_block: pl.CkptedTransformer) -> None:
    made = course(one_block)

    def spoil(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, 3, 8:16] += 1.0  # q of head 1
        return out

    made.blocks[0].attn.qkv_proj.register_forward_hook(spoil)
    found = pl.compare(one_block, made, IDS).first_divergence
    assert found is not None
    assert (found.where, found.heads, found.positions) == ("blocks.0.attn.ckpt_q", (1,), (3,))


# Parameters


def one_ulp(parameter: torch.Tensor, place: tuple[int, ...]) -> None:
    with torch.no_grad():
        parameter[place] = torch.nextafter(parameter[place], torch.tensor(torch.inf))


@pytest.mark.parametrize(
    ("theirs", "place", "ours"),
    support.few_of(
        [
        ("token_embedding.weight", (3, 4), "embed.W_E"),
        ("blocks.1.attn.qkv_proj.weight", (WIDTH - 1, 2), "blocks.1.attn.W_Q"),
        ("blocks.1.attn.qkv_proj.weight", (WIDTH, 2), "blocks.1.attn.W_K"),
        ("blocks.1.attn.qkv_proj.bias", (2 * WIDTH,), "blocks.1.attn.b_V"),
        ("blocks.0.attn.output_proj.weight", (1, 2), "blocks.0.attn.W_O"),
        ("blocks.0.linear2.bias", (5,), "blocks.0.mlp.b_out"),
        ("ln.weight", (0,), "ln_final.w"),
        ],
        "token_embedding.weight", "blocks.1.attn.qkv_proj.bias", "blocks.0.attn.output_proj.weight",
    ),
)  # fmt: skip
def test_one_ulp_is_different_and_named(
    theirs: str, place: tuple[int, ...], ours: str, small: pl.CkptedTransformer
) -> None:
    made = course(small)
    one_ulp(made.get_parameter(theirs), place)
    report = pl.compare(small, made, IDS)
    found = report.first_divergence
    assert report.verdict == "different"
    assert found is not None
    assert (found.where, found.what) == (ours, "parameter")
    assert f"{theirs} differs" in found.detail
    assert "(1 ulp in float32)" in found.detail
    assert [row.b for row in report.parameters if not row.bit_equal] == [theirs]
    assert any("everything agrees" in note for note in report.notes)


def test_a_parameter_and_a_mistake_are_both_told(small: pl.CkptedTransformer) -> None:
    made = course(small, "erf gelu")
    one_ulp(made.blocks[1].linear1.bias, (2,))
    report = pl.compare(small, made, IDS)
    assert report.first_divergence is not None
    assert report.first_divergence.where == "blocks.1.mlp.b_in"
    assert any("activation function gelu instead" in note for note in report.notes)


def test_a_head_that_is_not_tied(one_block: pl.CkptedTransformer) -> None:
    class Untied(torch.nn.Module):
        def __init__(self, head: torch.Tensor) -> None:
            super().__init__()
            self.body, self.out = course(one_block), torch.nn.Linear(24, 53, bias=False)
            self.out.weight = torch.nn.Parameter(head)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            body = self.body
            x = body.token_embedding(ids) + body.pos_embedding(torch.arange(ids.size(1)))
            return self.out(body.ln(body.blocks(x)))

    W_E = one_block.embed.W_E.detach()
    equal = pl.compare(one_block, Untied(W_E.clone()), IDS)
    assert equal, equal
    near = pl.compare(one_block, Untied(W_E + 0.01 * torch.randn_like(W_E)), IDS)
    other = pl.compare(one_block, Untied(torch.randn_like(W_E)), IDS)
    for report in (near, other):
        assert report.verdict == "different"
        assert report.first_divergence is not None
        assert "head not tied: out.weight" in (report.first_divergence.cause or ""), report
    assert near.first_divergence.what == "parameter"
    assert other.alignment.unexplained == ("out.weight",)


@pytest.mark.parametrize("which", support.few_of(["q", "v", "O"], "q", "O"))
def test_heads_permuted_in_one_place_only(which: str, one_block: pl.CkptedTransformer) -> None:
    made = course(one_block)
    for block in made.blocks:
        with torch.no_grad():
            if which == "O":
                block.attn.output_proj.weight.copy_(
                    block.attn.output_proj.weight.view(24, 3, 8).flip(1).reshape(24, 24)
                )
            else:
                for parameter in (block.attn.qkv_proj.weight, block.attn.qkv_proj.bias):
                    part = parameter["qkv".index(which) * 24 :][:24]
                    part.copy_(part.clone().view(3, 8, -1).flip(0).reshape(part.shape))
    report = pl.compare(one_block, made, IDS)
    assert report.verdict == "different", report


def test_extra_parameters_are_not_passed_over(one_block: pl.CkptedTransformer) -> None:
    made = course(one_block)
    made.temperature = torch.nn.Parameter(torch.tensor(1.7))
    made.register_forward_hook(lambda module, given, out: out * module.temperature / module.temperature)
    report = pl.compare(one_block, made, IDS)
    assert report.verdict == "inconclusive"
    assert report.alignment.unexplained == ("temperature",)
    made.out_bias = torch.nn.Parameter(torch.randn(53))
    made.register_forward_hook(lambda module, given, out: out + module.out_bias)
    report = pl.compare(one_block, made, IDS)
    assert report.verdict == "different"
    assert "a bias on the head: out_bias" in str(report.first_divergence)


def test_a_missing_parameter_is_never_a_pass(one_block: pl.CkptedTransformer) -> None:
    made = course(one_block)
    made.ln.bias = None
    made.ln.forward = lambda x: torch.nn.functional.layer_norm(x, (24,), made.ln.weight, None, 1e-5)
    report = pl.compare(one_block, made, IDS)
    assert not report
    assert "ln_final.b" in str(report)
