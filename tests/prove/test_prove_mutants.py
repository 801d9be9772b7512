"""The comparer broken on purpose: each check first passes, then must fail. A proof that cannot fail proves nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_causes
import test_dicts
import test_right
import test_unwatched
import torch
from course import course
from rights import RIGHTS

import pellucid as pl
import support
from pellucid.gpt2.family import GPT2
from pellucid.prove import (
    aligning,
    causes,
    comparison,
    copies,
    dicts,
    divergences,
    influence,
    lending,
    probes,
    program,
    runs,
    sides,
    tensors,
    trial,
    verdict,
)
from pellucid.prove import compare as compare_module

Patch = pytest.MonkeyPatch
SMALL = {"vocab_size": 53, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3}
IDS = support.some_ids(2, 7, 53)
MODEL = support.glass(**SMALL)


def ulp(theirs: str = "blocks.1.linear1.bias") -> Any:
    made = course(MODEL)
    with torch.no_grad():
        flat = made.get_parameter(theirs).view(-1)
        flat[1] = torch.nextafter(flat[1], torch.tensor(torch.inf))
    return made


def mistake_is_found() -> None:
    report = pl.compare(MODEL, course(MODEL, "eps 1e-6"), IDS)
    assert report.verdict == "different"
    assert report.first_divergence is not None
    assert "epsilon 1e-06" in (report.first_divergence.cause or "")


def later_mistake_is_placed() -> None:
    report = pl.compare(MODEL, course(MODEL, "erf gelu", only=0), IDS)
    rows = {row.name: row for row in report.checkpoints}
    inherited = rows["blocks.1.ln1.ckpt_normalized"]
    assert inherited.fp64_local is not None
    assert inherited.fp64 is not None
    assert inherited.fp64_local < 1e-12 < inherited.fp64


def one_ulp_is_found() -> None:
    report = pl.compare(MODEL, ulp(), IDS)
    assert report.verdict == "different"
    assert report.first_divergence is not None
    assert report.first_divergence.where == "blocks.1.mlp.b_in"


def only_what_differs_is_named() -> None:
    for unit in ("blocks.1.attn.W_Q", "blocks.0.attn.b_V"):
        other = copy.deepcopy(MODEL)
        with torch.no_grad():
            other.parameter(unit)[1, ..., 2] += 0.1
        for a, b in ((MODEL, other), (MODEL.state_dict(), other.state_dict()), (MODEL, pl.to_hf(other).state_dict())):
            report = pl.compare(a, b, IDS) if a is MODEL else pl.compare(a, b)
            assert report.first_divergence is not None
            assert report.first_divergence.where == unit


def sign_of_zero_is_found() -> None:
    assert not pl.compare(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])).bit_equal
    assert not runs.same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def rights_pass() -> None:
    for name in ("fused", "split", "permuted"):
        report = pl.compare(MODEL, RIGHTS[name](MODEL), IDS)
        assert report.verdict == "equivalent", report


def inconsistent_heads_are_found() -> None:
    made = course(MODEL)
    with torch.no_grad():
        weight = made.blocks[0].attn.output_proj.weight
        weight.copy_(weight.view(24, 3, 8).flip(1).reshape(24, 24))
    report = pl.compare(MODEL, made, IDS)
    assert report.verdict == "different"
    assert report.alignment.bit_equal


def extra_is_not_passed_over() -> None:
    made = course(MODEL)
    made.extra = torch.nn.Parameter(torch.randn(24, 24))
    made.register_forward_hook(lambda module, given, out: out + module.extra.sum() - module.extra.sum())
    assert pl.compare(MODEL, made, IDS).verdict == "inconclusive"


def no_false_claim() -> None:
    made = course(MODEL)
    made.blocks[0].linear1.register_forward_hook(lambda module, given, out: out * 1.5 + 0.1)
    found = pl.compare(MODEL, made, IDS).first_divergence
    assert found is not None
    assert found.cause is None


def identical_is_said() -> None:
    assert pl.compare(MODEL, pl.to_hf(MODEL), IDS).verdict == "identical"


def mode_is_kept() -> None:
    made = course(MODEL).train()
    before = torch.get_rng_state()
    pl.compare(MODEL, made, IDS)
    assert made.training
    assert all(child.training for child in made.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in made.modules())
    assert torch.equal(before, torch.get_rng_state())


def sensitivity_is_real() -> None:
    found = pl.compare(MODEL, course(MODEL), IDS).sensitivity
    assert all(size is not None and 1e-13 < size < 1e-6 for size in found.values())


def only_right_ones_are_recognised() -> None:
    assert sides.recognised(course(MODEL)) is not None
    assert sides.recognised(course(MODEL, "post-LN")) is None


def float_buffers_are_precise() -> None:
    class Buffered(torch.nn.Module):
        """Keeps what it computes in a buffer on the way."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = course(MODEL)
            self.register_buffer("room", torch.zeros(*IDS.shape, 53))
            self.more = torch.zeros(*IDS.shape, 53)

        def forward(self, ids: torch.Tensor) -> Any:
            self.room[:] = self.inner(ids)
            self.more[:] = self.room
            return self.more.clone()

    assert pl.compare(MODEL, Buffered(), IDS).verdict == "equivalent"


def unknown() -> dict[str, torch.Tensor]:
    """The course's tensors, whose layout is not known by their names."""
    return dict(test_dicts.of_no_layout(course(MODEL).state_dict()))


def exchange_is_found_without_running(block: str = "blocks", norm: str = "ln") -> None:
    theirs = unknown() if block == "blocks" else pl.to_hf(MODEL).state_dict()
    for part in ("weight", "bias"):
        a, b = (f"{block}.{i}.{norm}1.{part}" for i in range(2))
        theirs = {**theirs, a: theirs[b], b: theirs[a]}
    assert not pl.compare(MODEL.state_dict(), theirs)


def exchange_under_known_names_is_found() -> None:
    exchange_is_found_without_running("transformer.h", "ln_")


def exchange_in_every_block_is_found() -> None:
    theirs = unknown()
    for i in range(2):
        a, b = f"blocks.{i}.attn.output_proj.bias", f"blocks.{i}.linear2.bias"
        theirs = {**theirs, a: theirs[b], b: theirs[a]}
    assert not pl.compare(MODEL.state_dict(), theirs)


def a_second_copy_is_one_too_many() -> None:
    theirs = course(MODEL).state_dict()
    assert not pl.compare(MODEL.state_dict(), {**theirs, "gate": theirs["blocks.0.ln1.weight"].clone()})


def a_coarse_buffer_coarsens_nothing() -> None:
    long = support.glass(**{**SMALL, "n_positions": 80})
    hf = pl.to_hf(long)
    hf.register_buffer("scratch", torch.ones(3, dtype=torch.bfloat16))
    with torch.no_grad():
        hf.transformer.wpe.weight[79, 0] *= 1 + 1e-6  # where no run looks
    assert pl.compare(long, hf, IDS).verdict == "different"


def flipped_heads_are_found_without_running() -> None:
    theirs = unknown()
    name = "blocks.0.attn.output_proj.weight"
    assert not pl.compare(MODEL.state_dict(), {**theirs, name: theirs[name].view(24, 3, 8).flip(1).reshape(24, 24)})


def equal_parameters_are_no_program() -> None:
    made = course(MODEL)
    made.register_forward_hook(lambda module, given, out: out.flip(-1))
    assert pl.compare(MODEL.state_dict(), made).verdict == "inconclusive"


def equal_ends_are_no_difference() -> None:
    config = MODEL.config.replace(tie_word_embeddings=False)
    head = MODEL.embed.W_E.detach().clone().T
    untied = pl.CkptedTransformer(config, {**MODEL.state_dict(), "unembed.W_U": head}).eval()
    assert pl.compare(untied, MODEL, IDS).verdict == "identical"


def one_head_is_not_ambiguous() -> None:
    one = support.glass(**{**SMALL, "n_head": 1})
    assert not any(match.ambiguous for match in pl.compare(one, course(one), IDS).alignment.matches)


class Returning(torch.nn.Module):
    """A program that makes something of another's logits."""

    def __init__(self, inner: torch.nn.Module, change: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, ids: torch.Tensor) -> Any:
        out = self.inner(ids)
        return self.change(out if isinstance(out, torch.Tensor) else out.logits)


def infinity_is_noticed() -> None:
    huge = Returning(course(MODEL), lambda x: x.where(torch.arange(53) != 5, x * 1e30 * 1e30 / 1e30 / 1e30))
    assert not pl.compare(MODEL, huge, IDS)


def a_head_is_demanded() -> None:
    bare = pl.to_hf(MODEL).eval()
    bare.lm_head = torch.nn.Identity()
    assert not pl.compare(MODEL, bare, IDS)


def one_position_is_not_all() -> None:
    long = support.some_ids(2, 64, 53)  # as much as a probe shows
    report = pl.compare(MODEL, Returning(pl.to_hf(MODEL), lambda x: x[:, -1:]), long)
    assert report.verdict == "equivalent"


def closures_are_run_right() -> None:
    made = test_unwatched.Closing(MODEL).train()
    assert pl.compare(MODEL, made, IDS)


def the_unwatched_run_is_judged() -> None:
    asking = test_unwatched.Depending(course(MODEL), lambda module: not test_unwatched.hooked(module))
    assert not pl.compare(MODEL, asking, IDS)


def windows_are_seen() -> None:
    assert not pl.compare(MODEL, test_unwatched.windowed(MODEL), IDS)


def all_points_are_asked() -> None:
    made = course(MODEL)
    made.blocks[0].attn = course(MODEL, "no mask").blocks[0].attn
    made.blocks[1].mlp = lambda x: 2 * x
    found = pl.compare(MODEL, Returning(made, lambda x: x), IDS).first_divergence
    assert found is not None
    assert "logits agree" not in (found.cause or "")


def rows_are_seen() -> None:
    assert not pl.compare(MODEL, test_unwatched.OverTheBatch(MODEL), IDS[:1])


def lists_are_kept() -> None:
    made = test_unwatched.Lists(MODEL)
    pl.compare(MODEL, made, IDS)
    assert made.seen == []


def nothing(*_: Any, **__: Any) -> None: ...


def in_order_only(expected: torch.Tensor, given: torch.Tensor) -> tuple[None, float]:
    return None, float((expected - given).norm())


def first_suspicious(self: runs.Runs) -> str | None:
    return next((point for point in self.points() if self.is_wrong(self.forced, point)), None)


def as_it_is(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return func(*args, **(kwargs or {}))


def a_copy_runs(patch: Patch) -> None:
    right = lending.Loan.taken
    patch.setattr(lending.Loan, "taken", lambda self, **how: right(
        lending.Loan(copies.working_copy(self.module, self.dtype)), **how))  # fmt: skip


def any_cause_will_do(patch: Patch) -> None:
    patch.setattr(causes.Trials, "outcome", lambda self, suspect: (causes._extent(suspect, self.evidence), 0.0))
    patch.setattr(causes, "_agree", lambda *_: True)


def no_cause_is_found(self: Any, suspect: Any) -> tuple[None, float]:
    return None, torch.inf


class Everywhere(set[Any]):
    """A set of points in which the head does not count."""

    def __contains__(self, item: Any) -> bool:
        return item[0] in {point for point, _ in self}


def heads_are_one(patch: Patch) -> None:
    right = program._Recorder.__init__

    def made(self: Any, *given: Any) -> None:
        right(self, *given)
        self.placed = Everywhere()

    patch.setattr(program._Recorder, "__init__", made)


def nothing_was_put_there(patch: Patch) -> None:
    patch.setattr(program._Recorder, "placed", property(lambda self: set(), nothing), raising=False)


def one_row_is_drawn(patch: Patch) -> None:
    right, mixed = probes.Probes.batches, probes.Probes.mixed
    patch.setattr(probes.Probes, "batches", lambda self: [ids[:1] for ids in right(self)])
    patch.setattr(probes.Probes, "mixed", lambda self: mixed(self)[:1])
    patch.setattr(probes.Probes, "short", lambda self: [])


no_probe = "batches", lambda self: []


def patched(module: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, value)


def both(one: Callable[[Patch], None], other: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Two guards of one promise, broken together."""

    def breaks(patch: Patch) -> None:
        one(patch)
        other(patch)

    return breaks


def everything_is_rounding(patch: Patch) -> None:
    for module in (runs, causes, verdict, trial):
        patch.setattr(module, "BEYOND_ROUNDING", 1.0)


def everything_aligns(patch: Patch) -> None:
    right = aligning.compare_tensors
    patch.setattr(aligning, "compare_tensors", lambda a, b: replace(right(a, a), shape=tuple(a.shape)))


def never_forced(patch: Patch) -> None:
    right = runs.Runs.forced_at
    patch.setattr(runs.Runs, "forced_at", lambda self, points: right(self, []))


def known_names_are_not_believed(patch: Patch) -> None:
    patch.setattr(dicts, "_by_layout", lambda a, b: dicts._best_of_heads(a[1], a[0], b[0], swapped=False))
    patch.setattr(dicts, "doubts", lambda *_: ())


def in_the_coarsest_dtype(patch: Patch) -> None:
    right = aligning.compare_tensors
    patch.setattr(aligning, "compare_tensors", lambda a, b: right(a.bfloat16(), b.bfloat16()))


def unrecognised_is_compared_alone(patch: Patch) -> None:
    patch.setattr(compare_module, "compare_unrecognised", lambda a, b: dicts.compare_dicts(a, b.state_dict()))


def single_heads_are_tried(patch: Patch) -> None:
    right = aligning.groups_of
    patch.setattr(aligning, "groups_of", lambda units, schema: (*right(units, schema), *(
        aligning.Group((unit,), ("head", "d_head", "d_model"), 0) for unit in units if ".W_O" in unit)))  # fmt: skip


def zeros_are_zeros(patch: Patch) -> None:
    patch.setattr(tensors, "same_bits", torch.equal)
    patch.setattr(runs, "same_bits", torch.equal)


def an_outer_module_hides_nothing() -> None:
    test_causes.test_what_enters_two_modules_at_once_is_its_own_value(MODEL)


def heads_hide_nothing() -> None:
    test_causes.test_heads_in_modules_of_their_own_hide_nothing(MODEL)


def constants_keep_no_probe_away() -> None:
    test_causes.test_a_constant_keeps_no_probe_away(MODEL)


def constants_hide_nothing() -> None:
    test_causes.test_a_constant_does_not_stand_for_a_mistake_behind_it(MODEL)


def parts_stand_in_every_order() -> None:
    test_right.test_parts_of_one_tensor_in_every_order("kvq", True, MODEL)


any_size_is_rounding = patched(trial.Trial, "odd_in_its_dtype", lambda self: "")


MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "rounding threshold huge": (everything_is_rounding, mistake_is_found),
    "rounding threshold zero": (lambda p: p.setattr(runs, "BEYOND_ROUNDING", 0.0), rights_pass),
    "errors are always 0": (patched(runs, "relative_error", lambda given, expected: 0.0), mistake_is_found),
    "the forced run is not forced": (never_forced, later_mistake_is_placed),
    "the alignment accepts anything": (everything_aligns, one_ulp_is_found),
    "nearest is not searched": (patched(aligning._Aligner, "_nearest", nothing), one_ulp_is_found),
    "all that shares a tensor is named": (
        patched(divergences, "same_bits", lambda a, b: False), only_what_differs_is_named
    ),
    "the sign of zero is ignored": (zeros_are_zeros, sign_of_zero_is_found),
    "heads are never found": (patched(aligning, "_match_heads", in_order_only), inconsistent_heads_are_found),
    "the unexplained is ignored": (patched(pl.Alignment, "complete", True), extra_is_not_passed_over),
    "any cause is confirmed": (any_cause_will_do, no_false_claim),
    "one point is enough": (patched(causes, "_agree", lambda *_: True), all_points_are_asked),
    "no cause is confirmed": (patched(causes.Trials, "outcome", no_cause_is_found), mistake_is_found),
    "roles are believed": (patched(runs.Runs, "first_wrong", first_suspicious), rights_pass),
    "float32 stays float32 in float64": (patched(copies._Rewritten, "__torch_function__", as_it_is), rights_pass),
    "the float64 run is in float32": (patched(trial, "DOUBLE", program.Conditions()), rights_pass),
    "no mistakes are known": (
        patched(comparison, "family_of", lambda config: replace(GPT2, suspects=None)), mistake_is_found
    ),
    "checkpoints are not compared to the bit": (patched(runs, "same_bits", lambda a, b: False), identical_is_said),
    "everything is equal to the bit": (
        both(patched(runs, "same_bits", lambda a, b: True), patched(trial, "same_bits", lambda a, b: True)),
        rights_pass,
    ),
    "what was lent is kept": (patched(lending, "_give_back", nothing), mode_is_kept),
    "a deep copy runs": (a_copy_runs, closures_are_run_right),
    "what was put there is a module's own value": (
        nothing_was_put_there, an_outer_module_hides_nothing
    ),
    "all heads are one": (heads_are_one, heads_hide_nothing),
    "a constant keeps the probe away": (patched(probes.Probes, *no_probe), constants_keep_no_probe_away),
    "a constant stands for what is behind it": (
        patched(runs.Runs, "against", lambda self, values: self), constants_hide_nothing
    ),
    "parts of a tensor stand in one order": (
        patched(aligning, "_arrangements", lambda group: iter([group])),
        parts_stand_in_every_order,
    ),
    "nobody runs it unwatched": (
        both(patched(trial.Trial, "_judge_unwatched", nothing), any_size_is_rounding), the_unwatched_run_is_judged
    ),
    "everything extra is idle": (patched(influence, "_stays", lambda *_: True), extra_is_not_passed_over),
    "no probe is run": (patched(probes.Probes, *no_probe), windows_are_seen),
    "the probe is one row": (one_row_is_drawn, rows_are_seen),
    "what is drawn upon a list stays": (patched(lending, "_copied", lambda value, memo: value), lists_are_kept),
    "nothing is injected": (patched(influence._Injection, "inject", lambda self, size: None), sensitivity_is_real),
    "buffers stay float32": (patched(lending, "_in_dtype", lambda value, dtype: value), float_buffers_are_precise),
    "anything is recognised": (
        both(patched(sides, "CLOSE", 1e9), patched(sides, "FAR", 1e9)), only_right_ones_are_recognised
    ),
    "names of known layouts are not believed": (known_names_are_not_believed, exchange_under_known_names_is_found),
    "a unit may be claimed twice": (patched(aligning._Aligner, "_overlaps", lambda *_: False),
                                    a_second_copy_is_one_too_many),
    "all are compared in the coarsest dtype": (in_the_coarsest_dtype, a_coarse_buffer_coarsens_nothing),
    "numbers in names are not read": (patched(verdict, "_of_numbers", lambda *_: ()),
                                     exchange_is_found_without_running),
    "modules are not looked at": (patched(verdict, "_of_modules", lambda _: ()), exchange_in_every_block_is_found),
    "heads may stand in any order": (patched(verdict, "_of_heads", lambda *_: ()),
                                     flipped_heads_are_found_without_running),
    "a program is believed unrun": (unrecognised_is_compared_alone, equal_parameters_are_no_program),
    "ends are always two": (patched(aligning._Aligner, "_is_at_other_end", lambda *_: False),
                            equal_ends_are_no_difference),
    "a single head is another group": (single_heads_are_tried, one_head_is_not_ambiguous),
    "infinities are rounding": (
        both(patched(runs, "not_alike", lambda given, expected: torch.zeros(())), any_size_is_rounding),
        infinity_is_noticed,
    ),
    "hidden states are logits": (patched(program, "is_headless", lambda module: True), a_head_is_demanded),
    "one position is all": (
        both(patched(comparison.Comparison, "seen", property(lambda self: (1, 1), nothing)),
             patched(trial.Trial, "bit_equal", property(lambda self: True))),
        one_position_is_not_all,
    ),
    "hooks read nothing": (patched(program._Recorder, "values", lambda self: {}), later_mistake_is_placed),
}  # fmt: skip


ELSEWHERE = (
    an_outer_module_hides_nothing, heads_hide_nothing, constants_keep_no_probe_away, constants_hide_nothing,
    parts_stand_in_every_order,
)  # fmt: skip
"""Checks that are tests of other files, where they pass."""

UNBROKEN = {check for _, check in MUTANTS.values()} - {*ELSEWHERE}

HERE = (
    all_points_are_asked, float_buffers_are_precise, one_head_is_not_ambiguous, only_what_differs_is_named,
    sign_of_zero_is_found,
)  # fmt: skip
"""Checks that no other file makes; what the others promise is promised there, on other programs."""


@pytest.mark.parametrize("check", support.few_of(sorted(UNBROKEN, key=lambda check: check.__name__), *HERE))
def test_checks_pass_unbroken(check: Callable[[], None]) -> None:
    check()


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    breaks, check = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, KeyError)):
            check()
