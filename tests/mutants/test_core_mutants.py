"""Each mutant breaks one thing in the library; the check that conformance uses for it must notice.

A check that cannot fail proves nothing. Every case fails its check broken, then passes it unbroken.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import broken
import checks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pellucid as pl
import support
from pellucid.numerics import nonlinear

Patch = pytest.MonkeyPatch
RAGGED = support.ragged_ids(3, 11, 7)
IDS = support.some_ids(2, 11)


@dataclass(frozen=True)
class Mutant:
    """One thing broken.

    Args:
        what: What is broken.
        breaks: Breaks it, until the patch is undone.
        check: Passes on the library as it is, raises AssertionError on the mutant; builds its own model.
    """

    what: str
    breaks: Callable[[Patch], Any]
    check: Callable[[], None]


@contextmanager
def mutated(breaks: Callable[[Patch], Any]) -> Iterator[None]:
    """The library with one thing broken, and without what `from_hf` itself would notice it by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pellucid.open.require_agreement", lambda *_: None)
        patch.setattr("pellucid.weights.living.require_as_configured", lambda *_: None)
        breaks(patch)
        yield


# The checks, each as conformance calls it.


def exact(inputs: Any = None, **fields: Any) -> Callable[[], None]:
    def check() -> None:
        ours, hf = support.pair(**fields)
        batch = ours.tokenize(IDS if inputs is None else inputs)
        checks.exact(ours, hf, batch.ids, batch if batch.padded else None)

    return check


def laid_out_alike(**fields: Any) -> Callable[[], None]:
    return lambda: checks.laid_out_alike(*support.pair(**fields), IDS[:1])


def on_glass(check: Callable[..., None], *arguments: Any, **fields: Any) -> Callable[[], None]:
    return lambda: check(support.glass(**fields), *arguments)


def by_hand() -> None:
    checks.by_hand(support.glass(dtype=torch.float64), IDS)


def padding(side: str) -> Callable[[], None]:
    return lambda: checks.padding(support.glass(dtype=torch.float64), RAGGED, side, 1e-12)


def looking_while_training() -> None:
    with warnings.catch_warnings(action="ignore", category=pl.PellucidWarning):  # seeded, dropout draws the same again
        checks.looking(support.glass().train(), RAGGED)


def edits_are_pure() -> None:
    checks.edits_are_pure(
        support.glass(), IDS, lambda name: pl.Edit.scale(name, 0.5, pos=3), ["ckpt_embed", "blocks.1.resid_mid"]
    )


def edit_counts(at: str) -> Callable[[], None]:
    name = f"blocks.1.{at}"
    return lambda: checks.edits_fit(
        support.glass(dtype=torch.float64), IDS, name, [pl.Edit.scale(name, 0.5)], lambda value: value * 0.5
    )


def selects_a_heads_entry() -> None:
    name = "blocks.1.attn.ckpt_z"

    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, :, 0] = 0
        return value

    checks.edits_fit(support.glass(dtype=torch.float64), IDS, name, [pl.Edit.zero(name, heads=0)], change)


MUTANTS = [
    Mutant("epsilon 1e-6", broken.other_epsilon(1e-6), exact()),
    Mutant("epsilon 1e-6, by hand", broken.other_epsilon(1e-6), by_hand),
    Mutant("epsilon 0", broken.other_epsilon(0.0), exact()),
    Mutant("unbiased variance of scaled", broken.unbiased_variance, by_hand),
    Mutant("no gain and bias", broken.no_affine, exact()),
    Mutant("no gain and bias, by hand", broken.no_affine, by_hand),
    Mutant("erf-GELU", broken.other_activation(F.gelu), exact()),
    Mutant("erf-GELU, by hand", broken.other_activation(F.gelu), by_hand),
    Mutant("quick GELU", broken.other_activation(nonlinear.quick_gelu), exact()),
    Mutant("the same GELU rounded otherwise", broken.other_activation(nonlinear.gelu_tanh), exact()),
    Mutant("transposed projection", broken.transposed_projection, exact()),
    Mutant("no biases", broken.without_biases, exact()),
    Mutant("q and k swapped", broken.roles((1, 0, 2)), exact()),
    Mutant("q and k swapped, by hand", broken.roles((1, 0, 2)), by_hand),
    Mutant("k and v swapped", broken.roles((0, 2, 1)), exact()),
    Mutant("heads split as (K, H)", broken.heads_split_the_other_way, exact()),
    Mutant("keys between queries", broken.strided_keys, laid_out_alike()),
    Mutant("keys between queries, eager", broken.strided_keys, laid_out_alike(attention="eager")),
    Mutant("head after head", broken.strided_heads, laid_out_alike(attention="eager", n_head=48)),
    Mutant(
        "logits of the first position",
        broken.replaced(pl.Batch, "last_columns", lambda self, values: values[:, :1]),
        lambda: checks.last_position(*support.pair(), IDS),
    ),
    Mutant("no 1/sqrt(d_head)", broken.other_scale(lambda self, block: 1.0), exact()),
    Mutant("1/sqrt(d_model)", broken.other_scale(lambda self, block: self.n_embd**-0.5), exact()),
    Mutant(
        "layer scale ignored",
        broken.other_scale(lambda self, block: self.d_head**-0.5),
        exact(scale_attn_by_inverse_layer_idx=True),
    ),
    Mutant(
        "layer scale from zero",
        broken.other_scale(lambda self, block: self.d_head**-0.5 / max(block, 1)),
        exact(scale_attn_by_inverse_layer_idx=True),
    ),
    Mutant("mask that lets the next position in", broken.causal_off_by(1), exact()),
    Mutant("mask that hides the own position", broken.causal_off_by(-1), exact()),
    Mutant("no mask", broken.causal_off_by(99), exact()),
    Mutant("positions shifted under left padding", broken.positions_shifted, padding("left")),
    Mutant("positions of the rectangle", broken.rectangular_positions, padding("left")),
    Mutant("pads seen, left", broken.pads_seen, padding("left")),
    Mutant("pads seen, against the reference", broken.pads_seen, exact(RAGGED)),
    Mutant("untied head", broken.untied_head, exact()),
    Mutant("no final norm", broken.no_final_norm, exact()),
    Mutant("residual after the norm", broken.residual_after_norm, exact()),
    Mutant("mlp beside attention", broken.mlp_beside_attention, exact()),
    Mutant("pattern before the softmax", broken.pattern_before_the_softmax, by_hand),
    Mutant("pattern before the softmax, eager", broken.pattern_before_the_softmax, exact(attention="eager")),
    *(
        Mutant(
            f"what comes back at {at} is dropped",
            broken.drops_what_comes_back(at),
            on_glass(checks.hooks_go_on, IDS, [f"blocks.1.{at}"], n_layer=2),
        )
        for at in support.schema(1).in_blocks
    ),
    *(
        Mutant(f"edits at {at} are dropped", broken.drops_what_comes_back(at), edit_counts(at))
        for at in (
            "resid_pre",
            "attn.ckpt_q",
            "attn.ckpt_scores",
            "attn.ckpt_pattern",
            "ln2.ckpt_scaled",
            "mlp.ckpt_post",
        )
    ),
    Mutant(
        "captures that are not copies", broken.recorder(broken.keeps_the_live_tensor), on_glass(checks.snapshots, IDS)
    ),
    Mutant(
        "captures that later writes change",
        broken.recorder(broken.keeps_the_live_tensor),
        on_glass(checks.snapshots_of_the_past, IDS),
    ),
    Mutant("capture that draws random numbers", broken.recorder(broken.draws), looking_while_training),
    Mutant(
        "capture that draws random numbers, evaluating",
        broken.recorder(broken.draws),
        on_glass(checks.looking, IDS),
    ),
    Mutant("capture that writes", broken.recorder(broken.nudges), on_glass(checks.looking, IDS)),
    Mutant("capture that goes the explicit way", broken.looking_goes_explicit, on_glass(checks.looking, IDS)),
    Mutant(
        "a softmax in place that is another one",
        broken.another_softmax_in_place,
        on_glass(checks.pattern_alone, IDS),
    ),
    Mutant("patterns computed for nobody", broken.always_watched, on_glass(checks.stays_fused, IDS)),
    Mutant("capture that unfuses", broken.looking_goes_explicit, on_glass(checks.stays_fused, IDS)),
    Mutant("edit that writes in place", broken.writes_in_place, edits_are_pure),
    Mutant("edit of other heads", broken.other_heads, selects_a_heads_entry),
    Mutant("stop that runs on", broken.runs_on, on_glass(checks.stops, IDS)),
    Mutant("taps that are shown what they did not ask for", broken.shows_everything, on_glass(checks.globs)),
    Mutant("star that crosses dots", broken.star_crosses_dots, on_glass(checks.globs)),
    Mutant("attention dropout while evaluating", broken.dropout_while_evaluating, on_glass(checks.training_draws, IDS)),
    Mutant("attention dropout while evaluating, against the reference", broken.dropout_while_evaluating, exact()),
    Mutant("no dropout while training", broken.no_dropout, on_glass(checks.training_draws, IDS)),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_the_check_notices(mutant: Mutant) -> None:
    with mutated(mutant.breaks), pytest.raises(AssertionError):
        mutant.check()
    mutant.check()  # the check passes, and nothing is left of the break


def test_names_are_unique() -> None:
    names = [mutant.what for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 40
