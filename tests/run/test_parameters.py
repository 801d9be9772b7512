"""Parameters: live views, ties that hold through everything, and counts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pellucid as pl
import support
from pellucid.family.part import LiveView
from pellucid.gpt2 import Embedding

IDS = support.some_ids(2, 9)


def is_tied(model: pl.CkptedTransformer) -> bool:
    """One tensor in memory, under both names, and both uses of it give the model's answer."""
    W_E, W_U = model.embed.W_E, model.unembed.W_U
    with torch.no_grad():
        stream = model.run_with_ckpts(IDS, names="ln_final.ckpt_normalized")[1]["ln_final.ckpt_normalized"]
        uses = torch.equal(model(IDS), nn.functional.linear(stream, W_E))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    same = W_U.data_ptr() == W_E.data_ptr() and torch.equal(W_U, W_E.t())
    return same and uses and names.count("embed.W_E") == 1 and "unembed.W_U" not in names


def test_every_name_gives_a_live_tensor() -> None:
    model = support.glass()
    addresses = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(model.parameter_names) == len(set(model.parameter_names))
    for name in model.parameter_names:
        value = model.parameter(name)
        assert value.untyped_storage().data_ptr() in addresses, f"{name} is a copy"
        before = model(IDS)
        with torch.no_grad():
            kept = value.clone()
            value.add_(torch.randn_like(value))
            changed = not torch.equal(model(IDS), before)
            value.copy_(kept)
        assert changed or name.endswith(("b_K",)), f"writing into {name} changes nothing"
        assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_names_of_the_contract(tied: bool) -> None:
    model = support.glass(tie_word_embeddings=tied)
    shapes = {
        "embed.W_E": (211, 48), "pos_embed.W_pos": (64, 48), "blocks.1.ln1.w": (48,), "blocks.1.ln1.b": (48,),
        "blocks.1.attn.W_Q": (4, 48, 12), "blocks.1.attn.W_K": (4, 48, 12), "blocks.1.attn.W_V": (4, 48, 12),
        "blocks.1.attn.W_O": (4, 12, 48), "blocks.1.attn.b_Q": (4, 12), "blocks.1.attn.b_K": (4, 12),
        "blocks.1.attn.b_V": (4, 12), "blocks.1.attn.b_O": (48,), "blocks.1.ln2.w": (48,), "blocks.1.ln2.b": (48,),
        "blocks.1.mlp.W_in": (48, 192), "blocks.1.mlp.b_in": (192,), "blocks.1.mlp.W_out": (192, 48),
        "blocks.1.mlp.b_out": (48,), "ln_final.w": (48,), "ln_final.b": (48,), "unembed.W_U": (48, 211),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert tuple(model.parameter(name).shape) == shape, name
        module, attribute = name.rsplit(".", 1)
        assert torch.equal(getattr(model.get_submodule(module), attribute), model.parameter(name))
        assert name in model.parameter_names
    assert isinstance(model.embed.W_E, nn.Parameter)
    assert isinstance(model.blocks[0].attn.W_O, nn.Parameter)


def test_zeroing_a_head_as_people_write_it() -> None:
    model = support.glass()
    before = model(IDS)
    with torch.no_grad():
        model.blocks[2].attn.W_Q[3].zero_()
    assert not model.parameter("blocks.2.attn.W_Q")[3].any()
    assert model.parameter("blocks.2.attn.W_Q")[2].any()
    assert not model.blocks[2].attn.W_QKV[:, 36:48].any()
    assert not torch.equal(model(IDS), before)


def test_gradients_by_name() -> None:
    model = support.glass(dtype=torch.float64)
    assert all(model.grad(name) is None for name in model.parameter_names)
    model.loss(IDS).backward()
    for name in model.parameter_names:
        gradient, value = model.grad(name), model.parameter(name)
        assert gradient.shape == value.shape
        step, index = 1e-6, tuple(s // 2 for s in value.shape)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                value[index] += sign * step
                losses.append(float(model.loss(IDS)))
                value[index] -= sign * step
        assert float(gradient[index]) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4, abs=1e-8), name


def test_the_tie_is_one_tensor() -> None:
    model = support.glass()
    assert is_tied(model)
    assert model.grad("unembed.W_U") is None
    model.loss(IDS).backward()
    assert model.grad("unembed.W_U").data_ptr() == model.embed.W_E.grad.data_ptr()
    with torch.no_grad():
        model.unembed.W_U[:, 7].zero_()
    assert not model.embed.W_E[7].any()


def test_is_tied_notices() -> None:
    assert not is_tied(support.glass(tie_word_embeddings=False))


@pytest.mark.parametrize("tied", [True, False])
def test_optimizers_see_each_tensor_once(tied: bool) -> None:
    model = support.glass(tie_word_embeddings=tied)
    parameters = list(model.parameters())
    assert (
        len({p.data_ptr() for p in parameters})
        == len(parameters)
        == len(list(model.named_parameters(remove_duplicate=False)))
    )
    assert len(torch.optim.AdamW(parameters).param_groups[0]["params"]) == 2 + 12 * 3 + 2 + (not tied)
    assert len(model.state_dict()) == len(parameters)


def train(model: Any, original: pl.CkptedTransformer, steps: int = 3) -> None:
    """Three steps, each of which changes both uses of the tied tensor."""
    optimizer = torch.optim.AdamW(original.parameters(), lr=1e-2)
    for _ in range(steps):
        before = original.embed.W_E.detach().clone()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
        optimizer.step()
        assert not torch.equal(original.embed.W_E, before)
        assert is_tied(original)


def test_training_keeps_the_tie_and_learns() -> None:
    model = support.glass(**support.NO_DROPOUT).train()
    start = float(model.loss(IDS).detach())
    train(model, model)
    assert float(model.loss(IDS).detach()) < start


def test_training_equals_transformers() -> None:
    """Both uses of the tied tensor contribute: three steps end at the same weights, to the bit."""
    ours, hf = support.pair(**support.NO_DROPOUT)
    ours.train(), hf.train()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, hf)]
    for _ in range(3):
        for optimizer, run in zip(optimizers, (ours, lambda ids: hf(ids).logits), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
            optimizer.step()
    assert torch.equal(ours.embed.W_E, hf.transformer.wte.weight)
    assert torch.equal(ours.blocks[1].attn.W_QKV, hf.transformer.h[1].attn.c_attn.weight)


def test_training_compiled_keeps_the_tie() -> None:
    model = support.glass(n_layer=1, n_embd=8, n_head=2, vocab_size=211, **support.NO_DROPOUT).train()
    compiled = torch.compile(model, backend="aot_eager")
    train(compiled, model)
    model.eval()
    with torch.no_grad():
        assert support.close(compiled(IDS), model(IDS), 1e-5)


def loaded(assign: bool) -> Callable[[pl.CkptedTransformer], pl.CkptedTransformer]:
    def load(model: pl.CkptedTransformer) -> pl.CkptedTransformer:
        other = support.glass(seed=1)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        result = other.load_state_dict(state, assign=assign)
        assert not result.missing_keys
        assert not result.unexpected_keys
        return other

    return load


MOVES: dict[str, Callable[[pl.CkptedTransformer], pl.CkptedTransformer]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "to itself": lambda model: copy.deepcopy(model).to("cpu"),
    "load_state_dict": loaded(assign=False),
    "load_state_dict(assign=True)": loaded(assign=True),
}


@pytest.mark.parametrize("move", MOVES)
def test_moves_keep_the_tie_and_the_answer(glass: pl.CkptedTransformer, move: str) -> None:
    moved = MOVES[move](glass)
    assert is_tied(moved)
    assert torch.equal(moved(IDS), glass(IDS))
    before = glass(IDS)
    with torch.no_grad():
        moved.embed.W_E.zero_()
    assert torch.equal(glass(IDS), before), "the copy shares memory with the original"
    assert moved.ckpt_names == glass.ckpt_names
    assert list(moved.run_with_ckpts(IDS)[1]) == list(glass.ckpt_names)


@pytest.mark.parametrize("move", [m for m in MOVES if "load" not in m])
def test_moves_keep_an_untied_head_and_its_memory(move: str) -> None:
    model = support.glass(tie_word_embeddings=False)
    moved = MOVES[move](model)
    assert moved.unembed.weight.is_contiguous()
    assert torch.equal(moved(IDS), model(IDS))
    assert moved.to(torch.float64).unembed.weight.is_contiguous()


@pytest.mark.parametrize("assign", [False, True])
def test_an_untied_head_from_a_state_dict_in_any_memory_order(assign: bool) -> None:
    model, other = (support.glass(tie_word_embeddings=False, seed=seed) for seed in (0, 1))
    state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in model.state_dict().items()}
    other.load_state_dict(state, assign=assign)
    assert support.close(other(IDS), model(IDS), 1e-5)
    assert not other.unembed.tied


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["to", "method", "there and back"])
def test_other_dtypes_keep_the_tie(dtype: torch.dtype, how: str) -> None:
    model = support.glass()
    before = model(IDS)
    method = {torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}[dtype]
    model = getattr(model, method)() if how == "method" else model.to(dtype)
    assert model.dtype == dtype
    assert is_tied(model)
    if how == "there and back":
        model = model.float()
        assert is_tied(model)
        assert torch.equal(model(IDS), before) == (dtype == torch.float64)


def test_copies_of_a_copy_point_at_their_own_embedding() -> None:
    first = support.glass()
    second = copy.deepcopy(copy.deepcopy(first))
    with torch.no_grad():
        second.embed.W_E.mul_(2)
    assert torch.equal(second.unembed.W_U, second.embed.W_E.t())
    assert not torch.equal(first.unembed.W_U, second.unembed.W_U)


def test_views_survive_copies() -> None:
    model = copy.deepcopy(support.glass())
    with torch.no_grad():
        model.blocks[0].attn.W_V[1].zero_()
    assert not model.blocks[0].attn.W_QKV[:, 96 + 12 : 96 + 24].any()


def test_a_live_view_on_the_class_is_its_description() -> None:
    from pellucid.gpt2.model import Attention

    assert isinstance(Attention.W_Q, LiveView)
    assert "live view" in Attention.W_Q.__doc__


def test_counts_of_gpt2_small() -> None:
    config = pl.TransformerConfig.from_pretrained("gpt2-small")
    with torch.device("meta"):
        counted = pl.count_parameters(pl.CkptedTransformer(config))
    assert (counted.unique, counted.by_name, counted.bytes) == (124_439_808, 163_037_184, 497_759_232)
    assert counted.components == {
        "embed": 38_597_376, "pos_embed": 786_432, "ln": 38_400, "attn": 28_348_416, "mlp": 56_669_184, "unembed": 0,
    }  # fmt: skip
    assert "124,439,808" in repr(counted)


def test_counts_of_transformers_model() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        hf = GPT2LMHeadModel(GPT2Config())
    hf.tie_weights()
    counted = pl.count_parameters(hf)
    assert (counted.unique, counted.by_name) == (124_439_808, 163_037_184)
    assert sum(counted.components.values()) == counted.unique
    hf.lm_head = nn.Linear(768, 50257, bias=False, device="meta")  # the head that breaks the tie
    counted = pl.count_parameters(hf)
    assert (counted.unique, counted.by_name) == (163_037_184, 163_037_184)


def test_counts_in_memory(glass: pl.CkptedTransformer) -> None:
    ours, hf = pl.count_parameters(glass), pl.count_parameters(support.reference())
    assert (ours.unique, ours.by_name, ours.bytes) == (hf.unique, hf.by_name, hf.bytes)
    assert ours.by_name - ours.unique == 211 * 48
    assert sum(ours.components.values()) == ours.unique
    assert pl.count_parameters(support.glass(dtype=torch.bfloat16)).bytes == ours.bytes // 2
    untied = pl.count_parameters(support.glass(tie_word_embeddings=False))
    assert untied.unique == untied.by_name == ours.by_name
    assert untied.components["unembed"] == 211 * 48


def test_counts_of_any_module() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    counted = pl.count_parameters(module)
    assert (counted.unique, counted.by_name, counted.bytes) == (28, 28, 112)
    assert counted.components == {"0": 16, "2": 12}
    module[2].weight = nn.Parameter(torch.zeros(4, 3).t())
    assert pl.count_parameters(module).unique == 28
    module.again = module[0]
    assert (pl.count_parameters(module).unique, pl.count_parameters(module).by_name) == (28, 44)


def test_views_refuse_assignment(tiny: pl.CkptedTransformer):
    for module, name in (
        (tiny.unembed, "W_U"), (tiny.unembed, "weight"), (tiny.embed, "weight"), (tiny.blocks[0].attn, "W_Q")
    ):  # fmt: skip
        for value in (torch.zeros(2), torch.nn.Parameter(torch.zeros(2))):
            with pytest.raises(AttributeError, match="live view"):
                setattr(module, name, value)


def test_weights_must_fit_the_configuration(tiny: pl.CkptedTransformer):
    weights = tiny.state_dict()
    for wrong in (
        {**weights, "unembed.W_U": torch.zeros(24, 50)},
        {name: tensor[:1] for name, tensor in weights.items()},
        {},
    ):
        with pytest.raises(pl.WeightsError) as caught:
            pl.CkptedTransformer(tiny.config, wrong)
        assert caught.value.code == "weights-misfit"
    with pytest.raises(pl.WeightsError):
        pl.CkptedTransformer(tiny.config.replace(tie_word_embeddings=False), weights)


def test_a_new_embedding_is_the_tied_head_too(tiny: pl.CkptedTransformer):
    tiny.embed = Embedding(tiny.config, {"W_E": torch.zeros(50, 24)})
    assert torch.equal(tiny(support.ROW), torch.zeros(1, 6, 50))
    assert tiny.unembed.W_U.data_ptr() == tiny.embed.W_E.data_ptr()
    assert tiny.state_dict().keys() == copy.deepcopy(tiny).state_dict().keys()
