"""Attention: live views per head, what each head sees, and independence of the paths."""

from __future__ import annotations

import checks
import pytest
import torch
import torch.autograd.forward_ad as forward
from torch.func import functional_call, stack_module_state, vmap

import pellucid as pl
import support
from pellucid.family import attend
from pellucid.family.attend import Visible
from pellucid.numerics.products import affine

IDS = support.some_ids(2, 9)


def test_affine_is_a_matrix_product_with_bias() -> None:
    x, weight, bias = (
        torch.randn(2, 3, 4, dtype=torch.float64),
        torch.randn(4, 5, dtype=torch.float64),
        torch.randn(5, dtype=torch.float64),
    )
    assert torch.allclose(affine(x, weight, bias), torch.einsum("bpi,io->bpo", x, weight) + bias, rtol=0, atol=1e-14)


def test_visible() -> None:
    causal = Visible().among(3, 5, torch.device("cpu"))
    assert causal.shape == (1, 1, 3, 5)
    assert causal[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    padded = Visible(torch.tensor([[False, True, True]])).among(3, 3, torch.device("cpu"))
    assert padded[0, 0].int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_views_are_the_projections_of_each_head(glass64: pl.CkptedTransformer) -> None:
    attn = glass64.blocks[1].attn
    for letter in "QKV":
        assert getattr(attn, f"W_{letter}").shape == (4, 48, 12)
        assert getattr(attn, f"b_{letter}").shape == (4, 12)
    assert attn.W_O.shape == (4, 12, 48)
    assert attn.b_O.shape == (48,)
    _, ckpts = glass64.run_with_ckpts(IDS, names="blocks.1.**")
    normed = ckpts["blocks.1.ln1.ckpt_normalized"]
    for head in range(4):
        for letter in "QKV":
            by_head = normed @ getattr(attn, f"W_{letter}")[head] + getattr(attn, f"b_{letter}")[head]
            assert support.close(by_head, ckpts[f"blocks.1.attn.ckpt_{letter.lower()}"][:, :, head])
    per_head = torch.einsum("bphk,hkd->bphd", ckpts["blocks.1.attn.ckpt_z"], attn.W_O)
    assert support.close(per_head.sum(2) + attn.b_O, ckpts["blocks.1.attn.ckpt_attn_out"])


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V"])
def test_writing_into_a_view_changes_that_head_only(name: str) -> None:
    model = support.glass()
    kind = f"blocks.1.attn.ckpt_{name[-1].lower()}"
    _, before = model.run_with_ckpts(IDS, names=kind)
    with torch.no_grad():
        getattr(model.blocks[1].attn, name)[2].zero_()
    _, after = model.run_with_ckpts(IDS, names=kind)
    changed = [not torch.equal(before[kind][:, :, h], after[kind][:, :, h]) for h in range(4)]
    assert changed == [False, False, True, False]
    assert not model.blocks[1].attn.W_QKV.equal(support.glass().blocks[1].attn.W_QKV) or name.startswith("b")


def test_views_cannot_be_replaced(glass: pl.CkptedTransformer) -> None:
    with pytest.raises(AttributeError, match=r"live view of the stored parameter W_QKV.*copy_"):
        glass.blocks[0].attn.W_Q = torch.zeros(4, 48, 12)


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_no_position_sees_a_later_one(attention: str) -> None:
    model = support.glass(attention=attention)
    changed = IDS.clone()
    changed[:, 5:] = support.some_ids(2, 4, seed=3)
    with torch.no_grad():
        a, b = model(IDS), model(changed)
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.equal(a[:, 5:], b[:, 5:])


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_every_position_sees_all_earlier_ones(attention: str) -> None:
    model = support.glass(attention=attention, n_layer=1, dtype=torch.float64)
    _, ckpts = model.run_with_ckpts(IDS, names="blocks.0.attn.ckpt_pattern")
    pattern = ckpts["blocks.0.attn.ckpt_pattern"]
    assert bool((pattern.tril() == pattern).all())
    assert bool((pattern[..., torch.ones(9, 9).tril().bool()] > 0).all())
    assert pattern.sum(-1).allclose(torch.ones((), dtype=torch.float64))


def test_what_a_pad_holds_changes_nothing() -> None:
    for mode in ("auto", "eager"):
        model = support.glass(attention=mode, dtype=torch.float64)
        for side in ("left", "right"):
            batch = model.tokenize(support.ragged_ids(3, 9), padding_side=side)
            other = pl.Batch(torch.where(batch.mask, batch.ids, 77), batch.mask, batch.positions)
            with torch.no_grad():
                assert torch.equal(model(batch)[batch.mask], model(other)[batch.mask])


def test_upcast_takes_part_in_eager_only() -> None:
    with torch.no_grad():
        for attention, equal in (("auto", True), ("eager", False)):
            plain = support.glass(attention=attention, dtype=torch.bfloat16)
            upcast = support.glass(attention=attention, dtype=torch.bfloat16, reorder_and_upcast_attn=True)
            assert torch.equal(plain(IDS), upcast(IDS)) == equal
    _, ckpts = upcast.run_with_ckpts(IDS, names=["blocks.0.attn.ckpt_scores", "blocks.0.attn.ckpt_pattern"])
    assert ckpts["blocks.0.attn.ckpt_scores"].dtype == torch.float32
    assert ckpts["blocks.0.attn.ckpt_pattern"].dtype == torch.bfloat16


def test_float16_scores_beyond_its_range_stay_finite_where_the_reference_does() -> None:
    model = support.glass(dtype=torch.float16)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_QKV.mul_(40)
        assert torch.isfinite(model(IDS)).all()


def test_eager_is_explicit_in_every_layer() -> None:
    model = support.glass(attention="eager")
    with torch.no_grad():
        found = checks.ops(lambda: model(IDS))
    assert found.count("scaled_dot_product", "_fused_attention") == 0
    assert found.count("softmax") == 3


def several_at_once(mode: str) -> None:
    """Models whose parameters are stacked run as one, by torch.func."""
    models = [support.glass(seed=seed, dtype=torch.float64, attention=mode) for seed in range(3)]
    stacked, _ = stack_module_state(models)

    def run(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(models[0], parameters, (IDS,))

    with torch.no_grad():
        together = vmap(run)(stacked)
        for logits, model in zip(together, models, strict=True):
            assert support.close(logits, model(IDS), 1e-12)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("mode", ["auto", "eager"])
def test_several_models_at_once(mode: str) -> None:
    several_at_once(mode)


@torch.no_grad()
def forward_differentiation() -> None:
    """A tangent through explicit attention is the slope between two near inputs."""
    attn = support.glass(dtype=torch.float64, attention="eager").blocks[0].attn
    x = torch.linspace(-1, 1, 5 * support.SIZES["n_embd"], dtype=torch.float64).view(1, 5, -1)
    with forward.dual_level():
        tangent = forward.unpack_dual(attn(forward.make_dual(x, x.cos()))[0]).tangent
    step = 1e-6 * x.cos()
    assert tangent is not None
    assert support.close(tangent, (attn(x + step)[0] - attn(x - step)[0]) / 2e-6, 1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_differentiation() -> None:
    forward_differentiation()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_writing_into_what_is_transformed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "is_transformed", lambda: False)
    with pytest.raises((AssertionError, RuntimeError)):
        forward_differentiation()
    with pytest.raises(RuntimeError, match="atching rule"):
        several_at_once("eager")


def test_one_compilation_serves_every_length() -> None:
    """From the second length on torch.compile hands over symbols, which the fused kernel does not take for a flag."""
    model = support.glass(n_layer=1)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for columns in (5, 7, 1):
            ids = support.some_ids(2, columns)
            assert torch.equal(compiled(ids), model(ids)), columns


def test_nobody_looking_nothing_is_compared_under_inference_mode(tiny: pl.CkptedTransformer):
    eager = pl.CkptedTransformer(tiny.config, tiny.state_dict(), attention="eager").eval()
    with torch.inference_mode():
        eager(support.ROW)
        assert not checks.ops(lambda: eager(support.ROW)).count("equal", "clone")
