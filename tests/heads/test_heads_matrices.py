"""Factored matrices and composition scores are what dense ones are."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from heads_cases import FAMILIES, model64, weights
from torch import Tensor

import pellucid as pl
import support
from following import Case, follow, params
from pellucid.heads import FactoredMatrix, factored, matrices

TIGHT = 1e-10
families = pytest.mark.parametrize("family", FAMILIES)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() < TIGHT * expected.abs().max())


# Heads


@families
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3), (2, -1), (-1, 1)])
def test_ov_and_qk_are_the_products_of_the_head_s_weights(family: str, layer: int, head: int) -> None:
    model = model64(family)
    own = weights(model, layer % 3, head % model.blocks[0].attn.n_head)
    assert near(pl.heads.ov(model, layer, head).dense(), own["V"] @ own["O"])
    assert near(pl.heads.qk(model, layer, head).dense(), own["Q"] @ own["K"].T)


@families
def test_scores_and_outputs_of_a_run_follow_from_them(family: str) -> None:
    """x W_QK y and x W_OV, with the biases beside them, are the model's own."""
    model = model64(family)
    _, ckpts = model.run_with_ckpts([[5, 6, 7, 8]])
    x, attention = ckpts["blocks.1.ln1.ckpt_normalized"][0], model.blocks[1].attn
    for head in range(attention.n_head):
        group = head * len(attention.b_V) // attention.n_head
        v = ckpts["blocks.1.attn.ckpt_v"][0, :, group] - attention.b_V[group]
        assert near(v @ attention.W_O[head], (x @ pl.heads.ov(model, 1, head)).dense())
        q = ckpts["blocks.1.attn.ckpt_q"][0, :, head] - attention.b_Q[head]
        k = ckpts["blocks.1.attn.ckpt_k"][0, :, group] - attention.b_K[group]
        assert near(q @ k.T, (x @ pl.heads.qk(model, 1, head) @ x.T).dense())


def test_they_stay_when_the_model_is_changed() -> None:
    model = model64("gpt2")
    ov = pl.heads.ov(model, 0, 0)
    before = ov.dense()
    with torch.no_grad():
        model.blocks[0].attn.W_V.zero_()
        model.blocks[0].attn.W_O.zero_()
    assert torch.equal(ov.dense(), before)
    assert not ov.left.requires_grad


# From the weights alone


@families
def test_copying_by_the_eigenvalues_of_the_whole_way(family: str) -> None:
    model = model64(family)
    found = pl.heads.weight_scores(model)
    for layer, head in ((0, 0), (1, 3), (2, 1)):
        own = weights(model, layer, head)
        values = torch.linalg.eigvals(model.embed.W_E @ own["V"] @ own["O"] @ model.unembed.W_U).detach()
        expected = float(values.real.sum() / values.abs().sum())
        assert abs(float(found.copying[layer, head]) - expected) < 1e-8, (layer, head)


def test_the_token_before_by_runs_with_position_embeddings_alone() -> None:
    """What is written before a block is taken out, the tokens' embeddings included."""
    model = model64("gpt2")
    found, ids = pl.heads.weight_scores(model), torch.arange(len(model.pos_embed.W_pos))[None] % len(model.embed.W_E)
    for layer in range(len(model.blocks)):
        silent = [f"blocks.{i}.{name}" for i in range(layer) for name in ("attn.ckpt_attn_out", "mlp.ckpt_mlp_out")]
        name = f"blocks.{layer}.attn.ckpt_pattern"
        edits = [pl.Edit.zero(what) for what in ("ckpt_embed", *silent)]
        pattern = model.run_with_ckpts(ids, names=name, edits=edits)[1][name][0]
        for head in range(len(pattern)):
            before = [float(pattern[head, q, q - 1]) for q in range(1, ids.size(1))]
            assert abs(float(found.previous[layer, head]) - np.mean(before)) < TIGHT


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_rotations_leave_the_token_before_undefined(family: str) -> None:
    found = pl.heads.weight_scores(model64(family))
    assert bool(found.previous.isnull().all())
    assert bool(found.copying.notnull().all())


# Factored matrices

SHAPES = [((48, 12), (12, 48)), ((7, 3), (3, 9)), ((2, 5, 3), (3, 5)), ((3, 8), (8, 3)), ((4, 6, 2), (4, 2, 6))]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_singular_values_and_norm_are_those_of_the_dense_matrix(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    matrix = FactoredMatrix(some(*left), some(*right, seed=1))
    dense = matrix.dense()
    u, s, vh = matrix.svd()
    assert near(u @ torch.diag_embed(s) @ vh, dense)
    assert near(s, torch.linalg.svdvals(dense)[..., : s.size(-1)])
    assert near(u.mT @ u, torch.eye(s.size(-1), dtype=torch.float64).expand_as(u.mT @ u))
    assert near(vh @ vh.mT, torch.eye(s.size(-1), dtype=torch.float64).expand_as(vh @ vh.mT))
    assert near(matrix.norm(), torch.linalg.matrix_norm(dense))
    assert matrix.shape == dense.shape
    assert near(matrix.T.dense(), dense.mT)


@pytest.mark.parametrize(("left", "right"), [shapes for shapes in SHAPES if shapes[0][-2] == shapes[1][-1]])
def test_eigenvalues_are_those_of_the_dense_matrix(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    matrix = FactoredMatrix(some(*left), some(*right, seed=1))
    found, dense = matrix.eigenvalues(), matrix.dense()
    sizes = found.abs()
    assert bool((sizes[..., :-1] >= sizes[..., 1:] - TIGHT).all())
    assert near(sizes, torch.linalg.eigvals(dense).abs().sort(descending=True).values[..., : sizes.size(-1)])
    power = dense
    for exponent in range(1, 5):  # sums of powers say which numbers they are
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1)
        assert near((found**exponent).sum(-1).real, trace)
        power = power @ dense


def test_products() -> None:
    a, b = FactoredMatrix(some(6, 2), some(2, 5, seed=1)), FactoredMatrix(some(5, 3, seed=2), some(3, 4, seed=3))
    x, y, dense = some(6, seed=4), some(5, seed=5), a.dense()
    assert near(a @ y, dense @ y)
    assert near(x @ a, x @ dense)
    assert near((a @ some(5, 7)).dense(), dense @ some(5, 7))
    assert near((some(7, 6) @ a).dense(), some(7, 6) @ dense)
    assert near((some(3, 7, 6) @ a).dense(), some(3, 7, 6) @ dense)
    assert near((a @ b).dense(), dense @ b.dense())
    assert (a @ b).rank == (b.T @ a.T).rank == 2
    assert near(y.numpy() @ a.T, y @ dense.T)
    assert near(a @ y.numpy(), dense @ y)
    assert near(a @ y.float(), dense @ y.float().double())
    several = FactoredMatrix(some(2, 6, 2), some(2, 2, 5, seed=1))
    assert near(several @ y, several.dense() @ y)
    assert near(x @ several, x @ several.dense())


def test_a_matrix_that_would_not_fit_into_memory() -> None:
    """Of 10^12 numbers: nothing here makes it."""
    matrix = FactoredMatrix(some(1_000_000, 2), some(2, 1_000_000, seed=1))
    s, eigenvalues = matrix.svd()[1], matrix.eigenvalues()
    assert near(s.square().sum().sqrt(), matrix.norm())
    assert near(eigenvalues.sum().real, (matrix.left * matrix.right.T).sum())
    assert (matrix @ some(1_000_000)).shape == (1_000_000,)


# Composition


def by_definition(model: pl.CkptedTransformer, kind: str) -> np.ndarray:
    layers, heads = len(model.blocks), model.blocks[0].attn.n_head
    scores = np.full((layers, heads, layers, heads), np.nan)
    for a, h, b, g in np.ndindex(scores.shape):
        if a < b:
            first, second = weights(model, a, h), weights(model, b, g)
            ov = first["V"] @ first["O"]
            read = second["V"] @ second["O"] if kind == "V" else second["Q"] @ second["K"].T
            product = read @ ov.T if kind == "K" else ov @ read
            scores[a, h, b, g] = product.norm() / (ov.norm() * read.norm())
    return scores


@families
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_is_that_of_dense_matrices(family: str, kind: Any) -> None:
    model = model64(family)
    found = pl.heads.composition(model, kind)
    assert found.dims == ("layer", "head", "layer_to", "head_to")
    assert np.allclose(found, by_definition(model, kind), rtol=0, atol=TIGHT, equal_nan=True)
    assert found.sel(layer=0, head=1, layer_to=2, head_to=3) == found.values[0, 1, 2, 3]


def test_a_head_that_reads_another_and_one_that_does_not() -> None:
    model = model64("gpt2")
    with torch.no_grad():
        for layer in (0, 1):
            attention = model.blocks[layer].attn
            attention.W_QKV.zero_()
            attention.W_O.zero_()
        model.blocks[0].attn.W_V[1, :, :12] = torch.eye(48, 12)
        model.blocks[0].attn.W_O[1] = torch.eye(12, 48)  # what the first twelve directions hold stays there
        model.blocks[1].attn.W_Q[2] = model.blocks[1].attn.W_K[2] = torch.eye(48, 12)
        model.blocks[1].attn.W_Q[3] = torch.eye(48, 12).roll(12, 0)
        model.blocks[1].attn.W_K[3] = torch.eye(48, 12)
    assert pl.heads.composition(support.glass(n_layer=0), "K").size == 0, "no pairs of no heads"
    score = pl.heads.composition(model, "K").sel(layer=0, layer_to=1)
    queries = pl.heads.composition(model, "Q").sel(layer=0, layer_to=1)
    assert abs(float(score.sel(head=1, head_to=2)) - 12**-0.5) < TIGHT
    assert float(queries.sel(head=1, head_to=3)) == 0
    assert float(score.sel(head=0, head_to=2)) == 0  # its weights are zero


# Mutants


def outer_left_alone(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix, mode="r")[1].mT


def first_heads(weights: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The heads of keys and values one after another, not each for its queries."""

    def other(model: Any, layer: int, letter: str, by: str) -> Tensor:
        return weights(model, layer, letter, by).roll(1, 0) if letter in "KV" else weights(model, layer, letter, by)

    return other


def exchanged(weights: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Queries and keys."""
    return lambda model, layer, letter, by: weights(model, layer, {"Q": "K", "K": "Q"}.get(letter, letter), by)


@pytest.mark.parametrize("mutant", [first_heads, exchanged])
@pytest.mark.parametrize("kind", ["Q", "K"])
def test_mutants_of_weights_are_noticed(kind: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "_weights", mutant(matrices._weights))
    with pytest.raises(AssertionError):
        test_composition_is_that_of_dense_matrices("llama", kind)
    with pytest.raises(AssertionError):
        test_ov_and_qk_are_the_products_of_the_head_s_weights("llama", 1, 3)


def test_mutants_of_norms_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "triangle", outer_left_alone)
    monkeypatch.setattr(factored, "triangle", outer_left_alone)
    with pytest.raises(AssertionError):
        test_composition_is_that_of_dense_matrices("gpt2", "K")
    with pytest.raises(AssertionError):
        test_singular_values_and_norm_are_those_of_the_dense_matrix((7, 3), (3, 9))


# Refusals


def broken() -> pl.CkptedTransformer:
    model = support.glass()
    with torch.no_grad():
        model.blocks[1].attn.W_K[2, 0, 0] = torch.nan
    return model


Here = SimpleNamespace
REMEDIES: dict[str, list[Case]] = {
    "factors-misfit": [
        *(Case(lambda h, left=left: FactoredMatrix(left, some(2, 3)), "left @ right",
               lambda h: FactoredMatrix(some(3, 2), some(2, 3))) for left in (some(2, 3), some(2))),
        *(Case(lambda h, pair=pair: FactoredMatrix(*pair), "left @ right",
               lambda h: FactoredMatrix(some(3, 2), some(2, 3)))
          for pair in (([[1.0]], some(1, 1)), (some(3, 2).long(), some(2, 3)), (some(2, 3, 2), some(4, 2, 3)))),
        Case(lambda h: h.matrix @ some(3), "[4], [4, N]", lambda h: h.matrix @ some(4)),
        Case(lambda h: h.matrix @ some(3, 4), "[4], [4, N]", lambda h: h.matrix @ some(4, 3)),
        Case(lambda h: h.matrix @ h.matrix, "[4], [4, N]", lambda h: h.matrix @ h.matrix.T),
        Case(lambda h: some(4) @ h.matrix, "[3], [N, 3]", lambda h: some(3) @ h.matrix),
        Case(lambda h: h.matrix @ 2, "[4], [4, N]", lambda h: h.matrix @ some(4)),
    ],
    "not-square": [Case(lambda h: h.matrix.eigenvalues(), ".svd()[1]", lambda h: h.matrix.svd()[1])],
    "composition-kind": [
        Case(lambda h: pl.heads.composition(h.model, "QK"), "'Q'", lambda h: pl.heads.composition(h.model, "Q")),
        Case(lambda h: pl.heads.composition(h.model, ["Q"]), "'Q'", lambda h: pl.heads.composition(h.model, "Q")),
    ],
    "index-out-of-range": [
        Case(lambda h: pl.heads.ov(h.model, 3, 0), "negative ones count", lambda h: pl.heads.ov(h.model, -3, 0)),
        Case(lambda h: pl.heads.qk(h.model, 0, -5), "negative ones count", lambda h: pl.heads.qk(h.model, 0, -4)),
        Case(lambda h: pl.heads.qk(h.model, 0, True), "exists", lambda h: pl.heads.qk(h.model, 0, np.int64(1))),
    ],
    "not-finite": [
        Case(call, "finite", lambda h: pl.heads.composition(h.model, "K"))
        for call in (lambda h: pl.heads.composition(broken(), "V"), lambda h: pl.heads.qk(broken(), 1, 0),
                     lambda h: pl.heads.weight_scores(broken()))
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies_are_followed(code: str, case: Case) -> None:
    follow(code, case, Here(model=support.glass(), matrix=FactoredMatrix(some(3, 2), some(2, 4))))
