"""Captured values know which model made them, and notice when they no longer can."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from weakref import ref

import pytest
import torch

import pellucid as pl
import support
from pellucid.run import origin

NAMES = "blocks.*.resid_post"


def captured(model: pl.CkptedTransformer) -> pl.ActivationCkpts:
    return model.run_with_ckpts([[1, 2, 3]], names=NAMES)[1]


def test_name_and_weights() -> None:
    found = captured(pl.load()).provenance
    assert found["model"].endswith("bundled")
    assert found["weights"] == origin.weights_fingerprint(pl.load())
    assert len(found["weights"]) == 64


def test_equal_weights_have_equal_fingerprints() -> None:
    a, b, c = (captured(support.glass(seed=seed)).provenance["weights"] for seed in (0, 0, 1))
    assert a == b != c


def test_weights_that_changed_are_not_passed_off() -> None:
    model = support.glass()
    ckpts, other = captured(model), captured(model)
    before = other.provenance["weights"]
    with torch.no_grad():
        model.blocks[0].attn.W_O.mul_(2)
    assert ckpts.provenance["weights"] == origin.CHANGED
    assert other.provenance["weights"] == before != captured(model).provenance["weights"]


def test_the_model_is_held_as_long_as_its_captures() -> None:
    model = support.glass()
    expected = origin.weights_fingerprint(model)
    ckpts, alive = captured(model), ref(model)
    del model
    assert ckpts.provenance["weights"] == expected
    gc.collect()
    assert ckpts.made_by(None, "") is alive()
    del ckpts
    gc.collect()
    assert alive() is None


def test_saved_and_pickled(tmp_path: Path) -> None:
    ckpts = captured(support.glass())
    ckpts.save(tmp_path / "run.safetensors")
    for again in (pl.ActivationCkpts.load(tmp_path / "run.safetensors"), pickle.loads(pickle.dumps(ckpts))):
        assert dict(again.provenance) == dict(ckpts.provenance)


def test_generated_captures_know_it_too() -> None:
    model = support.glass()
    out = model.generate([[1, 2]], max_new_tokens=2, names=NAMES)
    assert out.ckpts is not None
    assert out.ckpts.provenance["weights"] == origin.weights_fingerprint(model)


def same_forever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(origin, "state_of", lambda module: ())


def kept_alive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(origin, "_FINGERPRINTS", {})


@pytest.mark.parametrize(("breaks", "check"), [
    (same_forever, test_weights_that_changed_are_not_passed_off),
    (kept_alive, test_the_model_is_held_as_long_as_its_captures),
])  # fmt: skip
def test_mutants_are_noticed(breaks: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check()
