"""Scores of heads against loops over the pattern, and against heads whose score is known."""

from __future__ import annotations

from typing import Any

import measure_cases as cases
import numpy as np
import pytest
import torch

import pellucid as pl
import support
from pellucid.measure.head_scores import repeated_ids

TEXTS = cases.texts_of([3, 7, 1, 5])
SCORES = ["entropy", "distance", "previous_token", "first_token"]


def by_loops(layer: int) -> dict[str, np.ndarray]:
    """Each score, [head], from the patterns of the texts alone."""
    total = {name: np.zeros(cases.SIZES["head"]) for name in SCORES}
    count = 0
    for text in TEXTS:
        pattern = cases.made_up(f"blocks.{layer}.attn.ckpt_pattern", text).double().numpy()
        for q in range(1, len(text)):
            count += 1
            for head in range(len(pattern)):
                row = pattern[head, q, : q + 1]
                total["entropy"][head] -= sum(p * np.log(p) for p in row if p > 0)
                total["distance"][head] += sum(p * (q - k) for k, p in enumerate(row))
                total["previous_token"][head] += row[q - 1]
                total["first_token"][head] += row[0]
    return {name: numbers / count for name, numbers in total.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_loops(name: str, side: str) -> None:
    """To 1e-12, rounding of sums of a few dozen terms."""
    found = getattr(pl.measure, name)(cases.run_of(TEXTS, "blocks.*.attn.ckpt_pattern", side=side))
    assert found.dims == ("layer", "head")
    assert found.name == name
    for layer in range(cases.LAYERS):
        assert np.allclose(found.sel(layer=layer), by_loops(layer)[name], rtol=1e-12)


def planted(pattern: Any) -> pl.ActivationCkpts:
    """A run in which all heads have this pattern [P, P]."""
    size = len(pattern)
    run = cases.run_of([list(range(size))], "blocks.*.attn.ckpt_pattern")
    for name in run:
        run[name][:] = torch.as_tensor(np.asarray(pattern), dtype=torch.float32)
    return run


def test_heads_of_known_scores() -> None:
    size = 6
    previous = np.eye(size, k=-1)
    previous[0, 0] = 1
    first = np.zeros((size, size))
    first[:, 0] = 1
    even = np.tril(np.ones((size, size))) / np.arange(1, size + 1)[:, None]
    expected = {
        "entropy": (0, 0, np.log(np.arange(2, size + 1)).mean()),
        "distance": (1, np.arange(1, size).mean(), (np.arange(1, size) / 2).mean()),
        "previous_token": (1, 1 / (size - 1), (1 / np.arange(2, size + 1)).mean()),
        "first_token": (1 / (size - 1), 1, (1 / np.arange(2, size + 1)).mean()),
    }
    for name, numbers in expected.items():
        for pattern, number in zip((previous, first, even), numbers, strict=True):
            assert np.allclose(getattr(pl.measure, name)(planted(pattern)), number, rtol=1e-6, atol=1e-12)


def test_units_and_provenance() -> None:
    run = cases.run_of(TEXTS, "blocks.*.attn.ckpt_pattern")
    found = pl.measure.entropy(run)
    assert (found.units, found.checkpoint) == ("nats", "attn.ckpt_pattern")
    assert pl.measure.distance(run).units == "tokens"
    assert list(pl.measure.previous_token(run).to_dataframe().columns) == ["previous_token"]


def test_a_part_of_the_queries(glass: pl.CkptedTransformer) -> None:
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    _, part = glass.run_with_ckpts(texts, names="**.ckpt_pattern", pos=[-1], heads=[1, 3])
    found = pl.measure.previous_token(part)
    _, whole = glass.run_with_ckpts(texts, names="**.ckpt_pattern")
    raw = whole.stack("attn.ckpt_pattern").double()[:, :, [1, 3], -1, -2].mean(1)
    assert found["head"].values.tolist() == [1, 3]
    assert np.allclose(found, raw, rtol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_what_cannot_be_scored(name: str) -> None:
    score = getattr(pl.measure, name)
    with pytest.raises(pl.InputError) as caught:
        score(cases.run_of([[5], [6]], "blocks.*.attn.ckpt_pattern"))
    assert caught.value.code == "nothing-to-attend"
    with pytest.raises(pl.UnknownNameError) as unknown:
        score(cases.run_of(TEXTS, "blocks.*.resid_post"))
    assert unknown.value.code == "not-captured"


def test_induction_is_that_of_the_raw_patterns() -> None:
    """The definition once more, with the ids and the loop of the training's own evaluation."""
    model = pl.load()
    length, texts, end = 20, 12, model.config.vocab_size - 1
    once = np.random.default_rng(3).integers(0, end, (texts, length))
    ids = torch.from_numpy(np.concatenate([np.full((texts, 1), end), once, once], axis=1))
    _, ckpts = model.run_with_ckpts(ids, names="**.ckpt_pattern")
    found = pl.measure.induction(model, length=length, texts=texts, seed=3)
    for layer in range(model.config.n_layer):
        pattern = ckpts[f"blocks.{layer}.attn.ckpt_pattern"].double()
        scores = [pattern[:, :, q, q - length + 1].mean(0) for q in range(1 + length, 1 + 2 * length)]
        # The two run other batches in float32, whose last bits differ.
        assert np.allclose(found.sel(layer=layer), torch.stack(scores).mean(0), rtol=1e-4, atol=1e-6)
    assert found.attrs["seed"] == 3
    assert "text" not in found.attrs


class Inducing(cases.Model):
    """Every head attends to the token behind the last occurrence of the present one, else to the first token."""

    def run_with_ckpts(self, inputs: Any, *, names: Any = None, stop_at: Any = None) -> tuple[Any, pl.ActivationCkpts]:
        ids = inputs["input_ids"]
        assert bool(inputs["attention_mask"].all())
        patterns = torch.zeros(len(ids), 2, ids.size(1), ids.size(1))
        for row, text in enumerate(ids.tolist()):
            for q, token in enumerate(text):
                earlier = [k for k in range(q) if text[k] == token]
                patterns[row, :, q, earlier[-1] + 1 if earlier else 0] = 1
        batch = cases.batch_of(ids.tolist())
        return None, pl.ActivationCkpts(
            {f"blocks.{i}.attn.ckpt_pattern": patterns.clone() for i in range(cases.LAYERS)},
            batch,
            support.schema(cases.LAYERS),
        )


def test_a_perfect_induction_head_scores_nearly_one() -> None:
    """Not quite: a token that was drawn twice within a copy was last followed by another one."""
    found = pl.measure.induction(Inducing(), length=12, texts=9)
    assert (found > 0.85).all()
    config = pl.TransformerConfig(
        vocab_size=50_000, n_positions=64, n_embd=4, n_layer=1, n_head=1, bos_token_id=9, eos_token_id=9
    )
    ids, offset = repeated_ids(config, 12, 9, 0)
    assert offset == 1
    assert bool((ids[:, 0] == config.bos_token_id).all())
    assert torch.equal(ids[:, 1:13], ids[:, 13:])
    assert not bool((ids[:, 1:] == config.bos_token_id).any())


@pytest.mark.parametrize("options", [{"length": 1}, {"length": 300}, {"texts": 0}])
def test_what_cannot_be_repeated(options: dict[str, int]) -> None:
    with pytest.raises(pl.InputError) as caught:
        pl.measure.induction(cases.Model(), **options)
    assert caught.value.code == "induction-length"
