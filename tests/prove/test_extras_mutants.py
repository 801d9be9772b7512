"""Checks of layouts, tables, ties, computed weights and amplified rounding: each passes, then must fail when broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_causes
import torch
from course import course, monolith
from rights import RIGHTS
from test_extras import Hooked
from test_outputs import Returning
from torch import nn
from torch.nn.utils import parametrizations

import pellucid as pl
import support
from pellucid.prove import (
    calling,
    causes,
    comparison,
    divergences,
    held,
    influence,
    points,
    program,
    runs,
    trial,
)
from pellucid.prove import compare as compare_module

Patch = pytest.MonkeyPatch
SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
IDS = support.some_ids(2, 7, 53)
MODEL = support.glass(**SMALL)


def positions_first_are_read() -> None:
    assert pl.compare(MODEL, Returning(course(MODEL), lambda x: x.transpose(0, 1)), IDS)


def flat_rows_are_read() -> None:
    assert pl.compare(MODEL, Returning(course(MODEL), lambda x: x.flatten(0, 1)), IDS)


def columns_of_padding_are_left_out() -> None:
    assert pl.compare(MODEL, Returning(course(MODEL), lambda x: nn.functional.pad(x, (0, 11), value=3.0)), IDS)


def with_table(places: int) -> nn.Module:
    table = torch.cat([MODEL.pos_embed.W_pos.detach(), torch.randn(8, 24)])[:places]
    weights = {**MODEL.state_dict(), "pos_embed.W_pos": table}
    return course(pl.CkptedTransformer(MODEL.config.replace(n_positions=places), weights).eval())


def longer_tables_are_matched() -> None:
    assert pl.compare(MODEL, with_table(24), IDS)


def shorter_tables_are_matched() -> None:
    assert pl.compare(MODEL, with_table(10), IDS)


def longer_tables_are_changed_in_their_rows() -> None:
    assert pl.compare(MODEL, with_table(24), IDS).sensitivity["pos_embed.W_pos"] is not None


def half_a_model_in_half() -> nn.Module:
    hf = pl.to_hf(MODEL)
    hf.transformer.h[1].half()
    return hf


def what_does_not_run_is_no_pass() -> None:
    assert not pl.compare(MODEL, half_a_model_in_half(), IDS)


class Loud(nn.Module):
    """Wrong in float32 alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.inner(ids)
        return logits * 1.001 if logits.dtype == torch.float32 else logits


def what_only_its_own_dtype_shows_is_no_pass() -> None:
    assert not pl.compare(MODEL, Loud(course(MODEL)), IDS)


class Listing(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = [inner]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner[0](ids)


def hidden_weights_are_read() -> None:
    assert pl.compare(MODEL, Listing(course(MODEL)), IDS)


def ties_are_said() -> None:
    hf = pl.to_hf(MODEL)
    hf.lm_head.weight = nn.Parameter(hf.transformer.wte.weight.detach().clone())
    assert any("lm_head.weight is a tensor of its own" in note for note in pl.compare(MODEL, hf, IDS).notes)


def handed_values_are_shown() -> None:
    coverage = pl.compare(MODEL, Hooked(MODEL), IDS).coverage
    assert all(coverage[kind] == (2, 2) for kind in ("attn.ckpt_q", "attn.ckpt_z", "mlp.ckpt_post"))


def a_computed_weight_counts() -> None:
    made = course(MODEL)
    parametrizations.weight_norm(made.blocks[1].linear1)
    assert pl.compare(MODEL, made, IDS)


def a_step_of_its_size_is_found() -> None:
    made = course(MODEL)
    parametrizations.weight_norm(made.blocks[1].linear1)
    with torch.no_grad():
        size = made.blocks[1].linear1.parametrizations.weight.original0
        size[3, 0] = torch.nextafter(size[3, 0], torch.tensor(torch.inf))
    assert not pl.compare(MODEL, made, IDS)


def amplified_rounding_passes() -> None:
    deep = test_causes.amplifying()
    assert pl.compare(deep, monolith(deep), support.some_ids(2, 64, 53))


def a_mistake_is_named() -> None:
    found = pl.compare(MODEL, monolith(MODEL, "eps 1e-6"), IDS).first_divergence
    assert found is not None
    assert "epsilon 1e-06" in (found.cause or "")


def one_token_is_enough() -> None:
    assert pl.compare(MODEL, RIGHTS["fused"](MODEL), IDS[:1, :1]).verdict == "equivalent"


def what_has_no_values_is_refused() -> None:
    with pytest.raises(Exception, match=r"values|meta|Meta|device") as caught:
        pl.compare(MODEL, pl.to_hf(MODEL).to("meta"), IDS)
    assert isinstance(caught.value, pl.errors.InputError)


def a_multiple_is_named() -> None:
    made = course(MODEL)
    with torch.no_grad():
        made.blocks[1].linear2.weight.mul_(0.125)
    found = pl.compare(MODEL, made, IDS).first_divergence
    assert found is not None
    assert "0.125 times" in (found.cause or "")


def nothing(*_: Any, **__: Any) -> None: ...


def patched(module: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, value)


def a_wider_head(patch: Patch) -> None:
    right = program.read_answer
    patch.setattr(
        program, "read_answer", lambda given, rows, head, **how: right(given, rows, torch.cat([head, head]), **how)
    )


def the_reference_is_not_cropped(patch: Patch) -> None:
    right = influence.cropped
    patch.setattr(influence, "cropped", lambda units, *given, **how: (units, *right(units, *given, **how)[1:]))


def the_whole_table_is_taken_for_its_rows(patch: Patch) -> None:
    right = influence._Injection
    patch.setattr(influence, "_Injection", lambda match, unit, rows, ids: right(match, unit, rows.clone(), ids))


def everything_is_amplified(patch: Patch) -> None:
    patch.setattr(runs.Runs, "limit", lambda self, point="": 1e9)
    patch.setattr(runs.Runs, "_on_the_whole_way", lambda self: torch.inf)


def converted_before_it_runs(patch: Patch) -> None:
    right = comparison.common_ground
    patch.setattr(comparison, "common_ground", lambda a, b: replace(right(a, b), note="", dtype=torch.float16))


MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "positions before rows are viewed, not turned": (
        patched(calling, "_in_rows", lambda found, rows: (found.reshape(*rows, -1), "")), positions_first_are_read
    ),
    "flat rows are positions first": (
        patched(calling, "_in_rows", lambda found, rows: (found.reshape(*rows[::-1], -1).transpose(0, 1), "")),
        flat_rows_are_read,
    ),
    "padding is vocabulary": (a_wider_head, columns_of_padding_are_left_out),
    "longer tables stay long": (
        patched(influence, "cropped", lambda units, others, schema, padded: (units, dict(others), [])),
        longer_tables_are_matched,
    ),
    "a copy of a longer table's rows is changed": (
        the_whole_table_is_taken_for_its_rows, longer_tables_are_changed_in_their_rows
    ),
    "what runs is a copy in one dtype": (converted_before_it_runs, what_does_not_run_is_no_pass),
    "rounding has no limit": (
        patched(trial.Trial, "odd_in_its_dtype", lambda self: ""), what_only_its_own_dtype_shows_is_no_pass
    ),
    "torch knows of every weight": (patched(influence, "hidden_in", lambda module: {}), hidden_weights_are_read),
    "shorter tables stay short": (the_reference_is_not_cropped, shorter_tables_are_matched),
    "nothing is said of ties": (patched(comparison, "notes_on", lambda *_: []), ties_are_said),
    "names of modules say nothing": (patched(points._Finder, "named", lambda *_: iter(())), handed_values_are_shown),
    "computed weights are parameters": (patched(influence, "computed_in", lambda module: {}),
                                        a_computed_weight_counts),
    "computed weights are computed again in float64": (patched(held.Computed, "comes_from", lambda *_: False),
                                                       a_computed_weight_counts),
    "any stored tensor will do": (patched(held.Computed, "comes_from", lambda *_: True),
                                  a_step_of_its_size_is_found),
    "rounding is never amplified": (patched(runs.Runs, "limit", lambda self, point="": 0.0), amplified_rounding_passes),
    "everything is amplified rounding": (everything_is_amplified, a_mistake_is_named),
    "float32 refuses everything": (patched(causes.Trials, "may_reproduce", lambda *_: False), a_mistake_is_named),
    "what a probe shows is forgotten": (patched(runs.Runs, "learn", nothing), one_token_is_enough),
    "anything has values": (patched(compare_module, "require_values", lambda *_: ()), what_has_no_values_is_refused),
    "multiples are not looked for": (patched(divergences, "relations", nothing), a_multiple_is_named),
}  # fmt: skip


UNBROKEN = {check for _, check in MUTANTS.values()} - {amplified_rounding_passes}
"""That one is a part of a test in test_causes; the others are made by other files, too, where they are quick."""


@pytest.mark.long
@pytest.mark.parametrize("check", sorted(UNBROKEN, key=lambda check: check.__name__))
def test_checks_pass_unbroken(check: Callable[[], None]) -> None:
    check()


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    breaks, check = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check()
