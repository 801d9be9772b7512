"""Each mutant takes a guard of the doors away: dropout's warning, tokenizers, paths, JSON, Ctrl-C. A check notices."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
import support
from pellucid.run import interrupts
from pellucid.text import batching
from pellucid.weights import manifests

Patch = pytest.MonkeyPatch


def refused(act: Callable[[], Any], kind: type[Exception], code: str) -> None:
    """See that an act is refused by its right name."""
    with pytest.raises(Exception, match=r".") as caught:
        act()
    assert isinstance(caught.value, kind)
    assert getattr(caught.value, "code", "") == code


def warned_of_dropout(_: Path) -> None:
    model = support.glass(resid_pdrop=0.1).train()
    for act in (model.run_with_ckpts, lambda ids: model.generate(ids, max_new_tokens=1)):
        with pytest.warns(pl.PellucidWarning) as said:
            act(support.ROW)
        assert "resid_pdrop=0.1" in str(said[0].message)


def tokenizers_are_told_apart(_: Path) -> None:
    model = pl.load()
    model.tokenizer = "bundled"  # pyright: ignore[reportAttributeAccessIssue]
    refused(lambda: model("Once"), pl.InputError, "tokenizer-kind")


def no_path_is_refused(folder: Path) -> None:
    for act in (pl.Tokenizer.from_folder, pl.ActivationCkpts.load, support.glass().save_pretrained):
        refused(lambda act=act: act("a\0b"), pl.WeightsError, "not-a-path")


def keys_stand_once(folder: Path) -> None:
    fields = json.dumps({"model_type": "gpt2", **support.SIZES})
    (folder / "config.json").write_text(fields.replace("}", ', "n_head": 1}'))
    refused(lambda: pl.TransformerConfig.from_pretrained(str(folder)), pl.ConfigError, "config-not-json")


def arguments_are_known(_: Path) -> None:
    for act in (lambda: support.glass().loss(support.ROW, mst=1), lambda: pl.Sampler(temperatur=1)):  # pyright: ignore[reportCallIssue]
        refused(act, pl.UnknownArgumentError, "unknown-argument")


def functions_are_transformers_own(_: Path) -> None:
    from transformers.models.gpt2 import modeling_gpt2

    model, plain = support.glass(), modeling_gpt2.create_causal_mask

    def mine(*given: Any, **more: Any) -> Any:
        return plain(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_gpt2, "create_causal_mask", mine)
        refused(lambda: pl.to_hf(model), pl.WeightsError, "hf-patched-forward")


def a_swallowed_interrupt_is_raised_again(_: Path) -> None:
    """A verb that catches the exception does not go on as if nothing had been."""
    before = signal.signal(signal.SIGINT, interrupts.leave)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            with interrupts.raised(), contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            raise AssertionError("the interrupt was lost")
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def swallowing() -> Any:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def nothing(*_: Any, **__: Any) -> None:
    return None


VERBS, PATHS = ("run.model", "generate.generating"), ("text.tokenizer", "weights.own_file", "run.model")
"""Who uses what is broken."""

MUTANTS: dict[str, tuple[Callable[[Patch], Any], Callable[[Path], None]]] = {
    "dropout without a word": (
        lambda patch: [patch.setattr(f"pellucid.{user}.warn_of_dropout", nothing) for user in VERBS],
        warned_of_dropout,
    ),
    "anything as a tokenizer": (
        lambda patch: patch.setattr(batching.Batcher, "__post_init__", nothing), tokenizers_are_told_apart,
    ),
    "any text as a path": (
        lambda patch: [patch.setattr(f"pellucid.{user}.path_of", Path) for user in PATHS],
        no_path_is_refused,
    ),
    "the last of two keys": (lambda patch: patch.setattr(manifests, "each_once", dict), keys_stand_once),
    "any argument": (
        lambda patch: patch.setattr("pellucid.names.calls.refuse_unknown", nothing),
        arguments_are_known,
    ),
    "functions of others": (
        lambda patch: patch.setattr("pellucid.open.require_own_functions", nothing),
        functions_are_transformers_own,
    ),
    "an interrupt that is lost": (
        lambda patch: patch.setattr(interrupts, "raised", swallowing), a_swallowed_interrupt_is_raised_again,
    ),
}  # fmt: skip
"""What is broken -> how, and the check that passes on the library as it is."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_check_notices(mutant: str, tmp_path: Path) -> None:
    breaks, checked = MUTANTS[mutant]
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            checked(tmp_path)
    checked(tmp_path)
