"""What changes nothing is a note: zeros, unused tensors, rows that nobody reaches; what may change something is not."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course, new_gelu
from rights import RIGHTS
from test_outputs import Returning
from torch import Tensor, nn

import pellucid as pl
import support
from pellucid.prove.aligning import align
from pellucid.prove.sides import recognised
from pellucid.prove.units import units_of

SMALL = {"vocab_size": 53, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


class Adapted(nn.Module):
    """A low-rank adapter beside the head, whose second matrix is zeros before it is trained."""

    def __init__(self, inner: nn.Module, second: float = 0.0) -> None:
        super().__init__()
        self.inner = inner
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(4, 53)), nn.Parameter(torch.full((53, 4), second))

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids)
        return out + out @ self.lora_A.T @ self.lora_B.T


class Valued(nn.Module):
    """A head of values beside the logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.values = inner, nn.Linear(53, 1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.inner(ids)
        return out, self.values(out)


def with_bias(model: pl.CkptedTransformer, value: float) -> Any:
    hf = pl.to_hf(model)
    weight = hf.lm_head.weight
    hf.lm_head = nn.Linear(24, 53)
    hf.lm_head.weight = weight
    nn.init.constant_(hf.lm_head.bias, value)
    return hf


EXTRAS: dict[str, tuple[Callable[[pl.CkptedTransformer], nn.Module], str]] = {
    "zeros on the head": (lambda m: with_bias(m, 0.0), "lm_head.bias (zeros, which change nothing)"),
    "an adapter": (lambda m: Adapted(course(m)), "lora_A (without effect on the logits)"),
    "a head of values": (lambda m: Valued(course(m)), "values.weight (without effect on the logits)"),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_changes_nothing_is_a_note(name: str, small: pl.CkptedTransformer) -> None:
    build, says = EXTRAS[name]
    report = pl.compare(small, build(small), IDS)
    assert report, report
    assert says in " ".join(report.notes)
    assert report.alignment.complete


class Averaged(nn.Module):
    """Keeps a copy of the model before the one that runs, as averages and what training began with are kept."""

    def __init__(self, model: pl.CkptedTransformer, wrong: str = "") -> None:
        super().__init__()
        self.average, self.live = course(model), course(model, wrong)

    def forward(self, ids: Tensor) -> Tensor:
        return self.live(ids)


def test_an_equal_copy_that_never_runs_is_a_note(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Averaged(small), IDS)
    assert report.verdict == "equivalent", report
    assert "average.token_embedding.weight (without effect on the logits)" in " ".join(report.notes)
    assert not any("ties" in note for note in report.notes)
    found = pl.compare(small, Averaged(small, "erf gelu"), IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.0.mlp.ckpt_post"


def test_one_block_may_be_all_of_them() -> None:
    """As in ALBERT, against a reference that has a copy for every place."""
    two = {**SMALL, "n_layer": 2}
    state = support.glass(**two).state_dict()
    equal = {name: state[name.replace("blocks.1.", "blocks.0.")] for name in state}
    for tensors, wrong, verdict in (
        (equal, "", "equivalent"),
        (equal, "eps 1e-6", "different"),
        (state, "", "different"),
    ):
        model = pl.load(tensors, config=support.glass(**two).config)
        program = course(model, wrong)
        program.blocks = nn.ModuleList([program.blocks[0]] * 2)
        assert pl.compare(model, program, IDS).verdict == verdict


def test_what_is_next_to_nothing_is_not_identical(small: pl.CkptedTransformer) -> None:
    """Rounding hides it, and the outputs were judged with it. A state dict is not run with it."""
    report = pl.compare(small, with_bias(small, 1e-30), IDS)
    assert report.verdict == "equivalent", report
    assert "lm_head.bias (values up to 1e-30, which rounding hides)" in " ".join(report.notes)
    tensors = pl.to_hf(small).state_dict()
    assert pl.compare(small, {**tensors, "lm_head.bias": torch.full((53,), 1e-30)}, IDS).verdict == "inconclusive"
    tiny = copy.deepcopy(small)
    with torch.no_grad():
        tiny.blocks[0].mlp.b_out.fill_(-1e-12)
    made = course(tiny)
    made.blocks[0].linear2.bias = None
    report = pl.compare(tiny, made, IDS)
    assert report.verdict == "equivalent", report
    assert "missing, which changes nothing (about 0" in " ".join(report.notes)


def test_what_changes_something_is_not(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, with_bias(small, 1e-6), IDS)
    assert report.verdict == "different"
    report = pl.compare(small, with_bias(small, 0.25), IDS)
    assert "a bias on the head: lm_head.bias" in str(report.first_divergence)
    assert pl.compare(small, Adapted(course(small), 0.01), IDS).verdict == "different"
    idle = course(small, "eps 1e-6")
    idle.unused = nn.Parameter(torch.randn(3))
    assert pl.compare(small, idle, IDS).verdict == "different"


def by_hand(program: Any, name: str, row: int) -> float:
    """The smallest power of ten by which the largest weight of a row can grow without the logits staying the same."""
    program = program.double().eval()
    weight = dict(program.named_parameters())[name]
    with torch.no_grad():
        place = weight[row].abs().argmax()
        right, value, found = program(IDS), float(weight[row, place]), 1.0
        for power in range(1, 17):
            weight[row, place] = value * (1 + 10.0**-power)
            if float((program(IDS) - right).abs().max() / right.abs().max()) <= 1e-10:
                return found
            found = 10.0**-power
    return found


@pytest.mark.parametrize(
    ("name", "places"),
    support.few_of(itertools.product(("course", "monolith", "nano", "einsum"), (48, 20)), ("course", 48), ("nano", 20)),
)
def test_longer_and_shorter_tables_of_positions(name: str, places: int, small: pl.CkptedTransformer) -> None:
    """The same model with other positions behind the last, or without its last ones."""
    table = torch.cat([small.pos_embed.W_pos.detach(), torch.randn(16, 24)])[:places]
    config = small.config.replace(n_positions=places)
    other = pl.CkptedTransformer(config, {**small.state_dict(), "pos_embed.W_pos": table}).eval()
    report = pl.compare(small, RIGHTS[name](other), IDS)
    assert report.verdict == "equivalent", report
    assert f"{places} rows" in " ".join(report.notes)
    if name == "course":
        assert report.sensitivity["pos_embed.W_pos"] == by_hand(RIGHTS[name](other), "pos_embedding.weight", 0)
    assert not pl.compare(small, course(other, "eps 1e-6"), IDS)
    with torch.no_grad():
        other.pos_embed.W_pos[3, 3] += 1e-3
    found = pl.compare(small, RIGHTS[name](other), IDS).first_divergence
    assert found is not None
    assert found.where == "pos_embed.W_pos"


@pytest.mark.parametrize("name", support.few_of(["course", "monolith", "einsum", "nano"], "course", "einsum"))
def test_a_padded_vocabulary(name: str) -> None:
    """Padded to as many ids as there are positions, so that both tables have one shape."""
    small = support.glass(**{**SMALL, "n_positions": 64, "n_layer": 2})
    table = torch.cat([small.embed.W_E.detach(), torch.randn(11, 24)])
    other = pl.CkptedTransformer(small.config.replace(vocab_size=64), {**small.state_dict(), "embed.W_E": table}).eval()
    report = pl.compare(small, RIGHTS[name](other), IDS)
    assert report.verdict == "equivalent", report
    assert "the vocabulary's 53 columns are compared" in " ".join(report.notes)
    if name == "course":
        first = int(IDS[0, 0])
        assert report.sensitivity["embed.W_E"] == by_hand(RIGHTS[name](other), "token_embedding.weight", first)
    assert not pl.compare(small, course(other, "no mask"), IDS)


def without_key_bias(model: pl.CkptedTransformer, *, value: bool = False) -> nn.Module:
    """Projections apart, that of k (and perhaps that of v) without its bias."""
    made = RIGHTS["split"](model)
    for layer in made.layers:
        layer.attention.to_k.bias = None
        if value:
            layer.attention.to_v.bias = None
    return made


def test_the_bias_of_k_cannot_be_shown(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, without_key_bias(small), IDS)
    assert report.verdict == "equivalent", report
    assert "no text can show blocks.0.attn.b_K" in " ".join(report.notes)
    other = RIGHTS["split"](small)
    for layer in other.layers:
        layer.attention.to_k.bias = nn.Parameter(1.001 * layer.attention.to_k.bias.detach())
    found = pl.compare(small, other, IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.0.attn.b_K"
    assert "no text can show it: softmax ignores" in found.detail
    wrong = pl.compare(small, without_key_bias(small, value=True), IDS)
    assert wrong.verdict == "different"
    assert "no bias on v (with this in the reference, the logits agree too)" in str(wrong.first_divergence)


def test_what_changes_no_score_is_said(small: pl.CkptedTransformer) -> None:
    """A fused tensor of which one part is equal is known by it, however far the others are."""
    far, turned = course(small), course(small)
    with torch.no_grad():
        for block in far.blocks:
            block.attn.qkv_proj.bias[24:48] += 10
        for block in turned.blocks:
            rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double())[0]
            for tensor in (block.attn.qkv_proj.weight, block.attn.qkv_proj.bias):
                rows = tensor.unflatten(0, (9, 8))[:6]
                rows.copy_(torch.einsum("ij,hj...->hi...", rotation, rows.double()))
    report = pl.compare(small, far, IDS)
    assert (report.verdict, report.first_divergence.where) == ("different", "blocks.0.attn.b_K")
    assert "no text can show it: softmax ignores" in report.first_divergence.detail
    words = "W_Q and W_K and b_Q and b_K: turned alike in each head, so that no q · k changes, in block 0"
    report = pl.compare(small, turned, IDS)
    assert (report.verdict, report.first_divergence.cause) == ("different", words)
    assert "same logits: in float64" in " ".join(report.notes) or "nearly the same logits" in " ".join(report.notes)
    noisy = course(small)
    with torch.no_grad():
        turned.blocks[0].attn.qkv_proj.weight[24:32].neg_()
        noisy.blocks[0].attn.qkv_proj.weight[:24] *= 1 + 1e-6 * torch.randn(24, 24)
    for wrong in (turned, noisy):
        assert "turned" not in str(pl.compare(small, wrong, IDS).first_divergence)


def test_both_tensors_of_a_tied_unit_are_told_of(small: pl.CkptedTransformer) -> None:
    """What is known of one says nothing of the other."""
    untied = pl.to_hf(small)
    with torch.no_grad():
        untied.lm_head.weight = nn.Parameter(1.25 * untied.transformer.wte.weight)
        untied.transformer.wte.weight *= 1 + 0.1 * torch.randn_like(untied.transformer.wte.weight)
    report = pl.compare(small, untied, IDS)
    assert report.alignment.complete
    assert "times the reference's values" not in str(report.first_divergence)


def test_equal_values_here_and_there_make_no_version(small: pl.CkptedTransformer) -> None:
    far = course(small)
    with torch.no_grad():
        for number, row in enumerate(far.pos_embedding.weight):
            row += 10 * row.std() * torch.randn_like(row) * (number % 3 > 0)
    alignment = pl.compare(small, far, IDS).alignment
    assert alignment.unexplained == ("pos_embedding.weight",)


def test_an_order_that_alone_is_near_is_taken() -> None:
    """Queries and keys that are much alike, so that the usual order is not much farther off."""
    drawn, alike = torch.Generator().manual_seed(0), support.glass(**SMALL)
    with torch.no_grad():
        queries = alike.blocks[0].attn.W_Q
        alike.blocks[0].attn.W_K.copy_(queries + 0.485 * queries.std() * torch.randn(queries.shape, generator=drawn))
        fused = course(alike).blocks[0].attn.qkv_proj.weight.detach()
    fused = torch.cat([fused[24:48], fused[:24], fused[48:]])
    noisy = fused + 0.45 * fused.std() * torch.randn(fused.shape, generator=drawn)
    found = align(units_of(alike), {"qkv.weight": noisy}, alike.schema)
    assert [match.group.units[0] for match in found.matches] == ["blocks.0.attn.W_K"]


def test_ties_on_both_sides_are_said(small: pl.CkptedTransformer) -> None:
    hf = pl.to_hf(small)
    assert not any("ties" in note for note in pl.compare(small, hf, IDS).notes)
    hf.lm_head.weight = nn.Parameter(hf.transformer.wte.weight.detach().clone())
    report = pl.compare(small, hf, IDS)
    assert report
    assert any("ties: lm_head.weight is a tensor of its own" in note for note in report.notes)
    config = small.config.replace(tie_word_embeddings=False)
    untied = pl.CkptedTransformer(config, {**small.state_dict(), "unembed.W_U": small.embed.W_E.detach().T}).eval()
    report = pl.compare(untied, pl.to_hf(small), IDS)
    assert report
    assert any("ties: the reference's head is a tensor of its own" in note for note in report.notes)


def test_two_modules_whose_heads_are_equal_and_apart(small: pl.CkptedTransformer) -> None:
    first, second = RIGHTS["permuted"](small), RIGHTS["nano"](small)
    second.lm_head.weight = nn.Parameter(second.transformer["wte"].weight.detach().clone())
    assert recognised(second) is not None
    assert pl.compare(second, RIGHTS["nano"](small), IDS)
    assert pl.compare(first, second, IDS)


class Hooked(nn.Module):
    """HookedTransformer's arrangement: bare tensors per head, and modules that are handed a value each."""

    class Attention(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str) -> None:
            super().__init__()
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
                setattr(self, name, nn.Parameter(p[f"{b}attn.{name}"].clone()))
            self.hook_q, self.hook_k, self.hook_v, self.hook_z = (nn.Identity() for _ in range(4))

        def forward(self, x: Tensor, wrong: bool) -> Tensor:
            q, k, v = (
                hook(torch.einsum("bpd,hdk->bphk", x, W) + b)
                for hook, W, b in (
                    (self.hook_q, self.W_Q, self.b_Q),
                    (self.hook_k, self.W_K, self.b_K),
                    (self.hook_v, self.W_V, self.b_V),
                )
            )
            scores = torch.einsum("bqhk,bphk->bhqp", q, k) / (1.0 if wrong else q.size(-1) ** 0.5)
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            z = self.hook_z(torch.einsum("bhqp,bphk->bqhk", scores.masked_fill(hidden, -1e5).softmax(-1), v))
            return torch.einsum("bqhk,hkd->bqd", z, self.W_O) + self.b_O

    class MLP(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str) -> None:
            super().__init__()
            for name in ("W_in", "b_in", "W_out", "b_out"):
                setattr(self, name, nn.Parameter(p[f"{b}mlp.{name}"].clone()))
            self.hook_pre, self.hook_post = nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.hook_post(new_gelu(self.hook_pre(x @ self.W_in + self.b_in))) @ self.W_out + self.b_out

    def __init__(self, model: pl.CkptedTransformer, *, wrong: bool = False) -> None:
        super().__init__()
        p = {name: model.parameter(name).detach() for name in model.parameter_names}
        p |= {f"blocks.{i}.attn.{n}": model.parameter(f"blocks.{i}.attn.{n}").detach()
              for i in range(model.config.n_layer) for n in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V")}  # fmt: skip
        self.attn = nn.ModuleList(self.Attention(p, f"blocks.{i}.") for i in range(model.config.n_layer))
        self.mlp = nn.ModuleList(self.MLP(p, f"blocks.{i}.") for i in range(model.config.n_layer))
        made = course(model)
        self.norms, self.end = nn.ModuleList(n for b in made.blocks for n in (b.ln1, b.ln2)), made.ln
        self.W_E, self.W_pos = nn.Parameter(p["embed.W_E"]), nn.Parameter(p["pos_embed.W_pos"])
        self.b_U, self.wrong = nn.Parameter(torch.zeros(53)), wrong

    def forward(self, ids: Tensor) -> Tensor:
        x = self.W_E[ids] + self.W_pos[: ids.size(1)]
        for i, (attn, mlp) in enumerate(zip(self.attn, self.mlp, strict=True)):
            x = x + attn(self.norms[2 * i](x), self.wrong)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.end(x) @ self.W_E.T + self.b_U


def test_modules_that_are_handed_a_value_show_it(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Hooked(small), IDS)
    assert report.verdict == "equivalent", report
    for kind in ("attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v", "attn.ckpt_z", "mlp.ckpt_pre", "mlp.ckpt_post"):
        assert report.coverage[kind] == (1, 1), kind
    found = pl.compare(small, Hooked(small, wrong=True), IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.0.attn.ckpt_z"
    assert "no scaling of the scores" in (found.cause or "")


def test_widths_of_outputs_with_padding(small: pl.CkptedTransformer) -> None:
    padded = Returning(with_bias(small, 0.0), lambda out: nn.functional.pad(out.logits, (0, 11), value=-torch.inf))
    assert pl.compare(small, padded, IDS)
