"""Weights that a program computes from others count as what comes out; what has no values is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pellucid as pl
import support

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


class Times(nn.Module):
    """A weight that is kept divided by a factor."""

    def __init__(self, factor: float, *, inverse: bool = True) -> None:
        super().__init__()
        self.factor, self.inverse = factor, inverse

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / self.factor if self.inverse else x


def old_weight_norm(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer)


def registered(factor: float, *, inverse: bool = True) -> Callable[[nn.Module], None]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", Times(factor, inverse=inverse))


WAYS: dict[str, Callable[[Any], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "the older weight_norm": old_weight_norm,
    "a factor of 2": registered(2.0),
    "a factor of 3": registered(3.0),
    "pruned by nothing": lambda layer: prune.identity(layer, "weight"),
}


@pytest.mark.parametrize("way", support.few_of(WAYS, *set(WAYS) - {"a factor of 2"}))
def test_a_weight_that_is_computed(way: str, small: pl.CkptedTransformer) -> None:
    made = course(small)
    for block in made.blocks:
        for layer in (block.linear1, block.attn.qkv_proj, block.linear2):
            WAYS[way](layer)
    report = pl.compare(small, made, IDS)
    assert report, report
    assert report.alignment.complete
    assert "computed (" in " ".join(report.notes)
    assert not any("parametrizations" in row.b or "weight_v" in row.b for row in report.parameters)


def test_a_program_that_computes_weights_is_recognised(small: pl.CkptedTransformer) -> None:
    made = course(small)
    parametrizations.weight_norm(made.blocks[0].attn.qkv_proj)
    assert pl.compare(made, course(small), IDS)
    assert not pl.compare(made, course(small, "no scale"), IDS)


@pytest.mark.parametrize("way", ["weight_norm", "the older weight_norm"])
def test_one_step_of_what_it_is_computed_from(way: str, small: pl.CkptedTransformer) -> None:
    made = course(small)
    WAYS[way](made.blocks[0].linear1)
    size = next(p for name, p in made.blocks[0].linear1.named_parameters() if name.endswith(("original0", "_g")))
    with torch.no_grad():
        size[3, 0] = torch.nextafter(size[3, 0], torch.tensor(torch.inf))
    found = pl.compare(small, made, IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.0.mlp.W_in"


def test_a_weight_that_is_computed_wrong(small: pl.CkptedTransformer) -> None:
    made = course(small)
    registered(1.01, inverse=False)(made.blocks[0].linear2)
    found = pl.compare(small, made, IDS).first_divergence
    assert found is not None
    assert (found.where, found.what) == ("blocks.0.mlp.W_out", "parameter")
    assert "W_out: 1.01 times the reference's values, in block 0" in (found.cause or "")


def test_what_comes_out_counts(small: pl.CkptedTransformer) -> None:
    """The same program beside a model of the weights that come out, and beside one of those that it began with."""
    made = course(small)
    parametrizations.spectral_norm(made.blocks[0].linear1)
    prune.l1_unstructured(made.blocks[0].linear2, "weight", amount=0.25)
    made.eval()
    assert pl.compare(small, made, IDS).verdict == "different"
    exported = copy.deepcopy(small)
    with torch.no_grad():
        exported.blocks[0].mlp.W_in.copy_(made.blocks[0].linear1.weight.T)
        exported.blocks[0].mlp.W_out.copy_((made.blocks[0].linear2.weight).T)
    assert pl.compare(exported, made, IDS), pl.compare(exported, made, IDS)


def test_a_parametrized_program_is_left_as_it_was(small: pl.CkptedTransformer) -> None:
    made = course(small)
    parametrizations.weight_norm(made.blocks[0].linear1)
    old_weight_norm(made.blocks[0].linear2)
    before, logits = copy.deepcopy(made.state_dict()), made(IDS)
    report = pl.compare(small, made, IDS)
    assert all(size is not None and size < 1e-6 for size in report.sensitivity.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert torch.equal(made(IDS), logits)
    with torch.no_grad():
        made.blocks[0].linear2.weight_g.mul_(2)  # it still computes
    assert not torch.equal(made(IDS), logits)


# What has no values


def on_meta(model: pl.CkptedTransformer) -> nn.Module:
    return pl.to_hf(model).to("meta")


def partly_on_meta(model: pl.CkptedTransformer) -> nn.Module:
    made = course(model)
    made.blocks[0].to("meta")
    return made


@pytest.mark.parametrize("build", [on_meta, partly_on_meta])
def test_a_model_without_values(build: Callable[[Any], nn.Module], small: pl.CkptedTransformer) -> None:
    weights = (pl.to_hf(small) if build is on_meta else course(small)).state_dict()
    model = build(small)
    for sides in ((small, model), (model, small), (model, model)):
        with pytest.raises(pl.errors.InputError, match="is on the meta device and has no values") as caught:
            pl.compare(*sides, IDS)
    assert caught.value.remedy == (
        "Give it values first: model.to_empty(device='cpu'), then model.load_state_dict(weights)."
    )
    model.to_empty(device="cpu")
    model.load_state_dict(weights)
    assert pl.compare(small, model, IDS)


def test_what_no_run_reads_needs_no_values(small: pl.CkptedTransformer) -> None:
    for build in (course, pl.to_hf):
        made = build(small)
        made.register_buffer("unused", torch.empty(3, device="meta"))
        made.register_parameter("early", nn.Parameter(torch.empty(2, 2, device="meta")))
        plain = pl.compare(small, build(small), IDS)
        for sides in ((small, made), (made, small), (made, build(small)))[: 1 if build is course else 3]:
            report = pl.compare(*sides, IDS)
            assert report.verdict == plain.verdict
            assert [note for note in report.notes if "not read in a run of two ids: ['early', 'unused']" in note], (
                report.notes
            )
    assert plain.verdict == "identical"


def test_tensors_without_values(small: pl.CkptedTransformer) -> None:
    theirs = {name: tensor.to("meta") for name, tensor in small.state_dict().items()}
    for a, b in ((small, theirs), (small.state_dict(), theirs), (torch.ones(2), torch.ones(2, device="meta"))):
        with pytest.raises(pl.errors.InputError, match="has no values") as caught:
            pl.compare(a, b)
        assert "map_location='cpu'" in (caught.value.remedy or "")


def test_memory_that_begins_elsewhere_says_nothing_else() -> None:
    """A run has copies of what a file is mapped to at an odd address; what is changed on trial has to reach them."""
    model = support.glass(**SMALL)
    made = pl.to_hf(model)
    made.lm_head.weight = nn.Parameter(made.lm_head.weight.detach() + 0.1)
    aligned = copy.deepcopy(made)
    for parameter in made.parameters():
        parameter.data = torch.cat([torch.zeros(1), parameter.data.flatten()])[1:].view(parameter.shape)
    reports = [pl.compare(model, other, IDS) for other in (made, aligned)]
    notes, sensitivities = ([getattr(report, name) for report in reports] for name in ("notes", "sensitivity"))
    assert notes[0] == notes[1]
    assert not any("without effect" in note for note in notes[0])
    assert sensitivities[0] == sensitivities[1]
    assert any(sensitivities[0].values())


def test_names_of_strangers_print_no_control_characters(small: pl.CkptedTransformer) -> None:
    stranger = {**small.state_dict(), "\x1b]0;title\x07": torch.ones(2)}
    for said in (repr(pl.compare(small.state_dict(), stranger)), repr(pl.audit_ties(stranger))):
        assert all(character.isprintable() or character == "\n" for character in said)


def test_a_lazy_module(small: pl.CkptedTransformer) -> None:
    made = course(small)
    made.blocks[0].linear1 = nn.LazyLinear(96)
    with pytest.raises(pl.errors.InputError, match=r"'blocks.0.linear1.weight' of Course has no shape yet") as caught:
        pl.compare(small, made, IDS)
    assert "Run the model once on a batch of ids" in (caught.value.remedy or "")
    made(IDS)
    made.load_state_dict(course(small).state_dict())
    assert pl.compare(small, made, IDS)
