"""Each mutant breaks one thing that makes sweeps quick; the comparison with the loop must notice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_ablate as ablation
import test_align as aligning
import test_paths as paths_
import test_sweep as sweeping
import torch

import pellucid as pl
import support
from pellucid.patching import ablation as ablating
from pellucid.patching import baselines, measured_runs, paths, reruns, roles

Patch = pytest.MonkeyPatch


def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def prefix_of_one_more(plain: Any) -> Any:
    """The keys and values of the columns before are those of one column further on."""

    def writer(self: Any, block: int) -> Any:
        keys, values = (part.roll(1, 2) for part in self.kept.content[block])
        moved = type("Kept", (), {"content": {block: (keys, values)}})()
        return plain(replace(self, kept=moved), block)

    return writer


def one_later(plain: Any) -> Any:
    return property(lambda self: min(plain.fget(self) + 1, 5))


def a_block_later(plain: Any) -> Any:
    return lambda self, schema: min(plain(self, schema) + 1, len(schema.blocks))


def other_rows(plain: Any) -> Any:
    """Each text gets the values of the text beside it."""

    def write(self: Any, value: Any, axes: Any, begin: int) -> None:
        plain(replace(self, source=self.source.roll(1, 0)), value, axes, begin)

    return write


def exchanged(plain: Any) -> Any:
    """Clean and corrupted."""
    return classmethod(lambda cls, model, clean, corrupted, *rest: plain.__func__(cls, model, corrupted, clean, *rest))


def column_before(plain: Any) -> Any:
    """The head reads one column before the one that the metric reads."""
    return lambda self, copies, begin: lambda values: plain(self, copies, begin)(values.roll(1, 1))


def stale(plain: Any) -> Any:
    """Logits of the base run stand where the patched ones belong."""
    return lambda self, given, begin: plain(self, self.logits[:, -given.size(1) :].expand_as(given), begin)


def no_head_is_held(plain: Any) -> Any:
    return lambda self, name, sent: None


def all_heads_are_held(plain: Any) -> Any:
    return lambda self, name, sent: roles.Put(name, self.runs.base.values[name])


def one_alone(plain: Any) -> Any:
    return lambda self, puts, random: list(plain(self, puts, random))[:1]


def half_as_far(plain: Any) -> Any:
    def put(self: Any, given: roles.Put, random: Any) -> roles.Put:
        found = plain(self, given, random)
        return replace(found, source=(found.source + self.base.values[given.name]) / 2)

    return put


def over_pads_too(plain: Any) -> Any:
    def value(self: Any, name: str, given: torch.Tensor, axes: Any) -> torch.Tensor:
        everything = replace(self.reference, mask=torch.ones_like(self.reference.mask))
        self.reference = everything
        return plain(self, name, given, axes)

    return value


def unaligned(plain: Any) -> Any:
    return lambda batch, tokens: plain(batch, [(0,) * len(numbers) for numbers in tokens])


def loop(metric: Any = sweeping.METRIC, name: str = "attn.ckpt_z", over: Any = ("layer", "head", "pos")) -> None:
    sweeping.test_a_sweep_is_the_loop(name, over, metric)


def one_run_a_batch() -> None:
    with pytest.MonkeyPatch.context() as patch:
        sweeping.test_however_many_runs_share_a_batch(1, patch)


MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "keys of other columns": (wrapped(reruns.Prefix, "writer", prefix_of_one_more), one_run_a_batch),
    "begins a column too late": (wrapped(reruns.Rerun, "begin", one_later), loop),
    "starts a block too late": (
        wrapped(reruns.Rerun, "start", a_block_later), lambda: loop(name="resid_pre", over=("layer", "pos")),
    ),
    "values of another text": (wrapped(roles.Put, "write", other_rows), loop),
    "clean and corrupted exchanged": (wrapped(measured_runs.Texts, "of", exchanged), loop),
    "the head reads a column before": (wrapped(reruns.Base, "_reader", column_before), loop),
    "stale logits": (wrapped(reruns.Base, "_whole", stale), lambda: loop(sweeping.everywhere)),
    "no head is held": (
        wrapped(paths.Paths, "_held", no_head_is_held),
        lambda: paths_.test_every_head_by_its_definition([("q", 1)], "mlps"),
    ),
    "MLPs are held, too": (
        wrapped(paths, "MLP_OUT", lambda _: "attn.ckpt_attn_out"),
        lambda: paths_.test_every_head_by_its_definition([], "none"),
    ),
    "the head of the sender is held": (
        wrapped(paths.Paths, "_held", all_heads_are_held), paths_.test_a_head_that_holds_a_sender_goes_on,
    ),
    "only one head speaks": (
        wrapped(baselines._Random, "_drawn", one_alone), paths_.test_as_many_others_speak_in_the_baseline,
    ),
    "a direction that is no longer as long": (
        wrapped(baselines._Random, "_in_a_random_direction", half_as_far),
        paths_.test_the_baseline_of_a_path_speaks_in_other_directions,
    ),
    "the mean of pads": (
        wrapped(ablating.Ablation, "value", over_pads_too),
        lambda: ablation.test_mean_is_the_loop(ablation.REFERENCE),
    ),
    "positions of the first token": (
        wrapped(roles, "_in_batch", unaligned), aligning.test_a_part_is_patched_where_it_is_in_each_text,
    ),
}  # fmt: skip


passes = functools.cache(lambda check: check())
"""Each check passes while nothing is broken: that is tried once."""

SLOW = ("keys of other columns", "clean and corrupted exchanged", "the head reads a column before",
        "begins a column too late", "values of another text")  # fmt: skip


@pytest.mark.parametrize("what", support.few_of(MUTANTS, *({*MUTANTS} - {*SLOW})))
def test_it_is_noticed(what: str) -> None:
    breaks, check = MUTANTS[what]
    passes(check)
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, RuntimeError, IndexError, pl.PellucidError)):
            check()
