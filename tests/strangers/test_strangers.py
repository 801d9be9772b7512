"""Every door is tried with every stranger: nothing that is right is turned away, nothing that is wrong slips through.

In the suite each habit and each mistake meets some of the programs, in turn; `make test-all` tries every pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from habits import RIGHT, WRONG, Change, logits_of
from torch import Tensor, nn
from zoo import ZOO, Stranger

import pellucid as pl
import support

PASSES = ("identical", "equivalent")
TOKENS = 9


def in_turn(changes: dict[str, Change], each: int) -> Iterator[Any]:
    """Every pair of a change and a stranger; all but some of each change are marked as long."""
    for row, name in enumerate(changes):
        for column, stranger in enumerate(ZOO):
            kept = (column - row * each) % len(ZOO) < each
            marks = [] if kept else [pytest.mark.long]
            yield pytest.param(changes[name], stranger, id=f"{name}: {stranger.name}", marks=marks)


@pytest.fixture(scope="module")
def glass() -> pl.CkptedTransformer:
    """Smaller than other tests' model: each program here is compared with it."""
    return support.glass(vocab_size=67, n_positions=32, n_embd=24, n_layer=2, n_head=3)


@pytest.fixture(scope="module")
def alone() -> pl.CkptedTransformer:
    """The same of one block, in which every mistake shows."""
    return support.glass(vocab_size=67, n_positions=32, n_embd=24, n_layer=1, n_head=3)


@pytest.fixture(scope="module")
def ids(glass: pl.CkptedTransformer) -> Tensor:
    """One row of few tokens, as people give."""
    return torch.randint(glass.config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def parameters_of(program: nn.Module) -> dict[str, Any]:
    """What must be as it was: values, modes and hooks."""
    state = {name: value.clone() for name, value in program.state_dict().items()}
    modes = [module.training for module in program.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in program.modules()]
    return {"state": state, "modes": modes, "hooks": hooks}


@pytest.mark.parametrize(("change", "stranger"), list(in_turn(RIGHT, 1)))
def test_a_right_program_passes(change: Change, stranger: Stranger, glass: pl.CkptedTransformer, ids: Tensor) -> None:
    program = change(stranger.filled(glass), glass)
    before = parameters_of(program)
    report = pl.compare(glass, program, inputs=ids)
    assert report.verdict in PASSES, f"{report.first_divergence}\n{report.notes}"
    after = parameters_of(program)
    assert after["modes"] == before["modes"]
    assert after["hooks"] == before["hooks"]
    assert all(torch.equal(after["state"][name], value) for name, value in before["state"].items())


@pytest.mark.parametrize(("change", "stranger"), list(in_turn(WRONG, 1)))
def test_a_wrong_program_does_not(change: Change, stranger: Stranger, alone: pl.CkptedTransformer, ids: Tensor) -> None:
    """Whole numbers are no logits, so there is nothing to judge; everything else is a difference with a place."""
    report = pl.compare(alone, change(stranger.filled(alone), alone), inputs=ids)
    assert not report
    if change is WRONG["ids of the likeliest"]:
        assert report.verdict == "inconclusive"
        assert any("whole numbers" in note for note in report.notes)
    else:
        assert report.verdict == "different", f"{report.verdict}: {report.notes}"
        assert report.first_divergence is not None


@pytest.mark.parametrize("stranger", ZOO, ids=lambda s: s.name)
def test_the_program_itself_is_right(stranger: Stranger, glass: pl.CkptedTransformer, ids: Tensor) -> None:
    """So that a verdict above means something: its logits are ours, to within rounding in float64."""
    program, ours = stranger.filled(glass).double(), pl.load(glass.state_dict(), config=glass.config, dtype="float64")
    with torch.no_grad():
        given, expected = logits_of(program, ids), ours(ids)
    expected = expected[:, -given.size(1) :]
    assert (given[..., : expected.size(-1)] - expected).abs().max() < 1e-11 * expected.abs().max()


KEYS = (None, "model", "state_dict", "model_state_dict", "module", "ema")
PREFIXES = ("", "module.", "_orig_mod.", "model.")
OPENING = [stranger for stranger in ZOO if stranger.opens]


def saved() -> Iterator[Any]:
    """Every way to save, of every stranger; long are a key with a prefix, and either but for one stranger."""
    for stranger, key, prefix in itertools.product(OPENING, KEYS, PREFIXES):
        plain = not key and not prefix
        marks = [] if plain or (stranger is OPENING[0] and not (key and prefix)) else [pytest.mark.long]
        yield pytest.param(stranger, key, prefix, marks=marks, id=f"{stranger.name}-{key}-{prefix}")


@pytest.mark.parametrize(("stranger", "key", "prefix"), [*saved()])
def test_its_weights_open(
    stranger: Stranger, key: str | None, prefix: str, glass: pl.CkptedTransformer, ids: Tensor, tmp_path: Path
) -> None:
    saved: Any = {f"{prefix}{name}": value for name, value in stranger.filled(glass).state_dict().items()}
    torch.save(saved if key is None else {key: saved, "step": 7}, tmp_path / "strangers.pt")
    opened = pl.load(tmp_path / "strangers.pt", config=glass.config)
    assert torch.equal(opened(ids), glass(ids))


@pytest.mark.parametrize("stranger", [s for s in ZOO if not s.opens], ids=lambda s: s.name)
def test_weights_of_an_unknown_layout_are_refused_by_what_they_are(
    stranger: Stranger, glass: pl.CkptedTransformer, tmp_path: Path
) -> None:
    torch.save(stranger.filled(glass).state_dict(), tmp_path / "strangers.pt")
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(tmp_path / "strangers.pt", config=glass.config)
    assert caught.value.code in ("layout-unknown", "weights-misshapen"), str(caught.value)


@pytest.mark.parametrize("stranger", ZOO, ids=lambda s: s.name)
def test_other_doors(stranger: Stranger, glass: pl.CkptedTransformer, ids: Tensor) -> None:
    program = stranger.filled(glass)
    counted = pl.count_parameters(program)
    assert counted.unique == sum(parameter.numel() for parameter in program.parameters())
    audit = pl.audit_ties(program)
    assert audit.unique == counted.unique
    with pytest.raises(pl.WeightsError, match=type(program).__name__):
        pl.from_hf(program)
    swapped = pl.compare(program, glass, inputs=ids)
    assert swapped.verdict in PASSES, swapped.notes


def test_two_strangers_are_the_same(glass: pl.CkptedTransformer, ids: Tensor) -> None:
    one, other = (next(s for s in ZOO if s.name == name).filled(glass) for name in ("minGPT", "a dict of arrays"))
    assert pl.compare(one, other, inputs=ids).verdict in PASSES
