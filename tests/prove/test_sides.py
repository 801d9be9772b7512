"""What is compared: how a side is opened, and what is never run."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from course import course

import pellucid as pl
import support
from pellucid.open import BUNDLED


def test_where_scores_differ(tiny: pl.CkptedTransformer):
    unscaled = pl.CkptedTransformer(tiny.config.replace(scale_attn_weights=False), tiny.state_dict()).eval()
    found = pl.compare(tiny, unscaled, inputs=[support.ROW[0, :5].tolist()]).first_divergence
    assert found is not None
    assert found.where == "blocks.0.attn.ckpt_scores"
    assert found.positions == (0, 1, 2, 3, 4)
    assert found.heads == (0, 1, 2, 3)


@pytest.mark.parametrize("damage", ["truncated", "other sizes"])
def test_transformers_failing_to_open_a_folder_is_bad_input(tiny: pl.CkptedTransformer, tmp_path: Path, damage: str):
    tiny.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text(config.read_text().replace('"n_embd": 24', '"n_embd": 32'))
    with pytest.raises(pl.WeightsError) as caught:
        pl.compare(f"hf:{tmp_path}", tiny, inputs=support.ROW)
    assert caught.value.code == "hf-unreadable"


class Foreign(torch.nn.Module):
    """Another program with the same weights."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids)


def test_foreign_modules_are_compared_without_transformers(tiny: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError):
        import transformers  # noqa: F401
    assert pl.compare(tiny, Foreign(copy.deepcopy(tiny)), inputs=support.ROW)


def test_code_beside_weights_is_never_run(tiny: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import transformers

    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *_, **options: seen.update(options) or pl.to_hf(tiny),
    )
    tiny.save_pretrained(tmp_path)
    pl.compare(tiny, f"hf:{tmp_path}", torch.tensor([[1, 2, 3]]))
    assert seen["trust_remote_code"] is False


def test_the_trained_model_that_is_bundled():
    """By name, as transformers' with and without a head, and as the course's, right and wrong."""
    text, bundled = "Once upon a time there was a cat", pl.load()
    hf = pl.to_hf(bundled)
    for sides in ((bundled, hf), (hf.transformer, bundled), (str(BUNDLED), f"hf:{BUNDLED}")):
        assert pl.compare(*sides, text).verdict == "identical"
    assert pl.compare(bundled, course(bundled), text)
    wrong = pl.compare(bundled, course(bundled, "eps 1e-6"), text)
    assert "epsilon 1e-06" in str(wrong.first_divergence), wrong
