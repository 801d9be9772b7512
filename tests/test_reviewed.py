"""Ways to be silently wrong that a hostile reader found; each was once possible."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import checks
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import pellucid as pl
import support
from pellucid.generate.generation import TextStream
from pellucid.gpt2.model import Embedding
from pellucid.prove import sides

IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])


@pytest.fixture(name="model")
def _model() -> pl.CkptedTransformer:
    torch.manual_seed(0)
    config = pl.TransformerConfig(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4)
    model = pl.CkptedTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def test_a_pre_hook_that_returns_the_value_takes_neither_tap_nor_mask(model: pl.CkptedTransformer):
    padded = model.tokenize([[1, 2, 3], [4]])
    plain, count = model(padded), len(model.ckpt_names)
    for module in model.modules():
        if module is not model and module is not model.blocks:
            module.register_forward_pre_hook(lambda _, args: args[0])
    assert torch.equal(model(padded)[padded.mask], plain[padded.mask])
    assert len(model.run_with_ckpts(padded)[1]) == count
    assert model.run_with_ckpts(IDS, stop_at="blocks.0.resid_mid")[0] is None


def test_a_name_that_never_fires_is_an_error(model: pl.CkptedTransformer):
    model.blocks[0].resid_mid = torch.nn.Identity()
    model.blocks[0].resid_mid.forward = lambda value, tap=None: value
    with pytest.raises(pl.UnknownNameError) as caught:
        model.run_with_ckpts(IDS, names="blocks.0.resid_mid")
    assert caught.value.code == "checkpoint-never-fired"


def test_names_may_be_a_generator(model: pl.CkptedTransformer):
    _, ckpts = model.run_with_ckpts(IDS, names=(n for n in ["ckpt_embed"]), stop_at="blocks.0.resid_mid")
    assert list(ckpts) == ["ckpt_embed"]


def test_a_batch_does_not_follow_the_callers_tensor(model: pl.CkptedTransformer):
    ids, mask = IDS.clone(), torch.ones_like(IDS, dtype=torch.bool)
    batch = model.tokenize(ids, mask=mask)
    ids[0, 0], mask[0, 0] = 7, False
    assert batch.ids[0, 0] == 1
    assert batch.mask.all()


@pytest.mark.parametrize("part", [{"heads": [2, 3]}, {"pos": -1}])
def test_a_part_is_not_patched_into_another_place(model: pl.CkptedTransformer, part: dict[str, object]):
    _, source = model.run_with_ckpts(IDS, names="blocks.0.attn.ckpt_z", **part)
    with pytest.raises(pl.EditError):
        model.run_with_ckpts(IDS, edits=pl.Edit.patch("blocks.0.attn.ckpt_z", source))


def test_another_length_is_not_patched(model: pl.CkptedTransformer):
    _, source = model.run_with_ckpts(IDS[:, :1])
    for name in ("blocks.0.attn.ckpt_pattern", "blocks.0.resid_post"):
        with pytest.raises(pl.EditError):
            model.run_with_ckpts(IDS, edits=pl.Edit.patch(name, source))


def test_a_reference_of_some_heads_is_refused(model: pl.CkptedTransformer):
    _, source = model.run_with_ckpts(IDS, names="blocks.0.attn.ckpt_z", heads=[1, 3])
    with pytest.raises(pl.EditError):
        model.run_with_ckpts(IDS, edits=pl.Edit.mean_ablate("blocks.0.attn.ckpt_z", source, heads=0))


def test_booleans_are_not_positions(model: pl.CkptedTransformer):
    with pytest.raises(pl.InputError):
        model.run_with_ckpts(IDS, edits=pl.Edit.zero("ckpt_embed", pos=torch.tensor([False, True])))
    _, ckpts = model.run_with_ckpts(IDS, edits=pl.Edit.zero("ckpt_embed", pos=torch.tensor(2)))
    assert ckpts["ckpt_embed"][0].abs().amax(-1).eq(0).nonzero().flatten().tolist() == [2]


def test_a_generator_of_positions_serves_every_checkpoint(model: pl.CkptedTransformer):
    _, ckpts = model.run_with_ckpts(IDS, names="blocks.*.resid_post", pos=(i for i in [1, 2]))
    assert {value.shape[1] for value in ckpts.values()} == {2}


@pytest.mark.parametrize("ids", [[[1, 2, 0, 0]], [[0, 0, 1, 2]], [[1, 2, 0], [3, 0, 0]], [[1, 2, 3], [0, 1, 2]]])
def test_pads_that_are_ends_of_text_need_a_mask(ids: list[list[int]]):
    facts = {"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}
    config = pl.TransformerConfig(**facts, eos_token_id=0, bos_token_id=0, pad_token_id=0)
    with pytest.raises(pl.InputError) as caught:
        pl.CkptedTransformer(config).tokenize(torch.tensor(ids))
    assert caught.value.code == "pad-without-mask"
    assert pl.CkptedTransformer(config).tokenize(torch.tensor([[0, 1, 2]])).ids.shape == (1, 3)


def test_views_refuse_assignment(model: pl.CkptedTransformer):
    for module, name in (
        (model.unembed, "W_U"), (model.unembed, "weight"), (model.embed, "weight"), (model.blocks[0].attn, "W_Q")
    ):  # fmt: skip
        for value in (torch.zeros(2), torch.nn.Parameter(torch.zeros(2))):
            with pytest.raises(AttributeError, match="live view"):
                setattr(module, name, value)


def test_weights_must_fit_the_configuration(model: pl.CkptedTransformer):
    weights = model.state_dict()
    for wrong in (
        {**weights, "unembed.W_U": torch.zeros(24, 50)},
        {name: tensor[:1] for name, tensor in weights.items()},
        {},
    ):
        with pytest.raises(pl.WeightsError) as caught:
            pl.CkptedTransformer(model.config, wrong)
        assert caught.value.code == "weights-misfit"
    with pytest.raises(pl.WeightsError):
        pl.CkptedTransformer(model.config.replace(tie_word_embeddings=False), weights)


def test_a_new_embedding_is_the_tied_head_too(model: pl.CkptedTransformer):
    model.embed = Embedding(model.config, {"W_E": torch.zeros(50, 24)})
    assert torch.equal(model(IDS), torch.zeros(1, 6, 50))
    assert model.unembed.W_U.data_ptr() == model.embed.W_E.data_ptr()
    assert model.state_dict().keys() == copy.deepcopy(model).state_dict().keys()


def test_hooks_on_the_model_see_every_run(model: pl.CkptedTransformer):
    model.register_forward_hook(lambda *_: torch.zeros(1, 6, 50))
    assert not model.run_with_ckpts(IDS)[0].any()
    assert torch.allclose(model.logprobs(IDS), -torch.tensor(50.0).log())


def test_a_mask_beside_a_batch_is_refused(model: pl.CkptedTransformer):
    batch = model.tokenize(IDS)
    with pytest.raises(pl.InputError):
        model.tokenize(batch, mask=torch.ones_like(IDS))


def test_what_a_tokenizer_returns_unpadded_is_padded_here(model: pl.CkptedTransformer):
    batch = model.tokenize({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]]})
    assert batch.ids.shape == (2, 2)
    assert batch.mask.tolist() == [[True, True], [False, True]]


def test_a_mean_over_pads_alone_is_refused(model: pl.CkptedTransformer):
    batch = model.tokenize(torch.tensor([[0, 1, 2], [0, 3, 4]]), mask=[[0, 1, 1], [0, 1, 1]])
    _, pads = model.run_with_ckpts(batch, names="blocks.0.resid_post", pos=0)
    with pytest.raises(pl.EditError):
        model.run_with_ckpts(batch, edits=pl.Edit.mean_ablate("blocks.0.resid_post", pads))


def test_captures_with_gradients_can_be_saved_and_those_with_edits_pickled(model: pl.CkptedTransformer, tmp_path):
    _, ckpts = model.run_with_ckpts(IDS, grads=True)
    ckpts.save(tmp_path / "ckpts.safetensors")
    assert pl.ActivationCkpts.load(tmp_path / "ckpts.safetensors").keys() == ckpts.keys()
    _, edited = model.run_with_ckpts(IDS, edits=pl.Edit.zero("ckpt_embed"))
    assert torch.equal(pickle.loads(pickle.dumps(edited))["resid_post", 1], edited["resid_post", 1])


def test_bfloat16_is_labelled(model: pl.CkptedTransformer):
    _, ckpts = model.bfloat16().run_with_ckpts(IDS, names="blocks.*.resid_post")
    assert ckpts.to_xarray().resid_post.dims == ("layer", "batch", "pos", "d_model")


def test_edits_of_nothing_are_refused(model: pl.CkptedTransformer):
    for wrong in (
        lambda: pl.Edit.zero([]),
        lambda: pl.Edit.zero(None),
        lambda: pl.Edit.patch("ckpt_embed", None),
        lambda: pl.Edit.apply("ckpt_embed", 3),
    ):
        with pytest.raises(pl.EditError):
            model.run_with_ckpts(IDS, edits=wrong())


@pytest.mark.parametrize("change", ["act", "eps", "scaling"])
def test_a_copy_is_of_what_runs_not_of_what_the_configuration_says(change: str):
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4))
    block = hf.transformer.h[1]
    if change == "act":
        block.mlp.act = torch.nn.ReLU()
    elif change == "eps":
        block.ln_2.eps = 0.1
    else:
        block.attn.scaling = 1.0
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-differs-from-config"


def test_a_tie_that_the_configuration_denies_is_not_saved(model: pl.CkptedTransformer, tmp_path):
    model.config = model.config.replace(tie_word_embeddings=False)
    with pytest.raises(pl.WeightsError):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_a_character_is_refused():
    tokenizer = pl.load().tokenizer
    for text in ("\ud800", None, 3):
        with pytest.raises(pl.InputError):
            tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("the")[0]) == "the"
    with pytest.raises(pl.InputError):
        tokenizer.decode([-1])


# Runs


def test_a_compiled_model_goes_on_with_a_cache(model: pl.CkptedTransformer):
    with torch.no_grad():
        cache, compiled = pl.KeyValueCache(model.config), torch.compile(model, backend="eager")
        compiled(IDS[:, :4], cache=cache)
        assert cache.length == 4
        assert torch.allclose(compiled(IDS[:, 4:], cache=cache)[:, -1], model(IDS)[:, -1], atol=1e-4)


def test_a_run_with_a_cache_carries_gradients_of_its_own_tokens(model: pl.CkptedTransformer):
    cache = pl.KeyValueCache(model.config)
    model(IDS[:, :4], cache=cache)
    logits = model(IDS[:, 4:], cache=cache)
    logits[0, -1, 7].backward()
    found = model.grad("blocks.0.mlp.W_in")
    assert found is not None
    model.zero_grad()

    def past_is_constant(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[:, :4].detach(), value[:, 4:]], 1)

    class Tap:
        def wants(self, name: str) -> bool:
            return name.endswith(("ckpt_k", "ckpt_v"))

        __call__ = staticmethod(past_is_constant)

    model(IDS, tap=Tap())[0, -1, 7].backward()
    expected = model.grad("blocks.0.mlp.W_in")
    assert expected is not None
    assert found.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_cache_of_another_model_is_refused(model: pl.CkptedTransformer):
    for fields in ({"n_layer": 3}, {"n_head": 2}, {"n_embd": 32}):
        other = pl.KeyValueCache(model.config.replace(**fields))
        with pytest.raises(pl.InputError, match="2 layers, 4 heads of 6") as caught:
            model(IDS, cache=other)
        assert caught.value.code == "cache-misfit"
    with pytest.raises(pl.InputError, match="meta"):
        model(IDS, cache=pl.KeyValueCache(model.config, device="meta"))


def test_nobody_looking_nothing_is_compared_under_inference_mode(model: pl.CkptedTransformer):
    eager = pl.CkptedTransformer(model.config, model.state_dict(), attention="eager").eval()
    with torch.inference_mode():
        eager(IDS)
        assert not checks.ops(lambda: eager(IDS)).count("equal", "clone")


def test_a_backward_hook_on_what_is_computed_for_it(model: pl.CkptedTransformer):
    seen: list[str] = []
    for name in ("attn.ckpt_scores", "attn.ckpt_pattern", "ln1.ckpt_scaled", "attn.ckpt_q"):
        module = model.get_submodule(f"blocks.0.{name}")
        module.register_full_backward_hook(lambda module, grad_in, grad_out, name=name: seen.append(name))
    model.loss(IDS).backward()
    assert sorted(seen) == ["attn.ckpt_pattern", "attn.ckpt_q", "attn.ckpt_scores", "ln1.ckpt_scaled"]


def test_rounded_copies_made_under_inference_mode_serve_a_backward_pass(model: pl.CkptedTransformer):
    rounded = pl.CkptedTransformer(model.config, model.state_dict(), numerics="bfloat16").eval().requires_grad_(False)
    with torch.inference_mode():
        rounded(IDS)
    push = torch.zeros(model.config.n_embd, requires_grad=True)
    logits, _ = rounded.run_with_ckpts(
        IDS, names="ckpt_embed", edits=pl.Edit.add("blocks.0.resid_pre", push), grads=True
    )
    logits.sum().backward()
    assert push.grad is not None
    assert push.grad.abs().max() > 0


# Parts and edits


def test_names_from_an_iterator_are_read_once(model: pl.CkptedTransformer):
    names = [f"blocks.{i}.resid_post" for i in range(2)]
    out = model.generate(IDS, max_new_tokens=2, names=iter(names), end_ids=())
    assert out.ckpts is not None
    assert list(out.ckpts) == names
    edit = pl.Edit.zero(iter(names))
    for _ in range(2):
        assert model.run_with_ckpts(IDS, edits=edit)[1].fired[edit] == 2


@pytest.mark.parametrize("pos", [torch.tensor([False, True]), [1.7], [True], "1"], ids=str)
def test_what_is_no_position_is_none_in_a_generation(model: pl.CkptedTransformer, pos: object):
    edit = pl.Edit.zero("ckpt_embed", pos=pos)
    with pytest.raises(pl.InputError, match="expected whole numbers") as caught:
        model.generate(IDS, max_new_tokens=2, edits=edit)
    assert caught.value.code == "negative-position"


@pytest.mark.parametrize("pos", [torch.tensor(2), np.int64(2), torch.tensor([2]), 2], ids=repr)
def test_a_position_is_one_in_whatever_it_comes(model: pl.CkptedTransformer, pos: object):
    out = model.generate(
        IDS, max_new_tokens=2, names="ckpt_embed", edits=pl.Edit.zero("ckpt_embed", pos=pos), end_ids=()
    )
    assert out.ckpts is not None
    assert (out.ckpts["ckpt_embed"] == 0).all(-1)[0].nonzero().flatten().tolist() == [2]


def test_a_mean_over_many_tokens_in_half_precision():
    config = pl.TransformerConfig(vocab_size=50, n_positions=1024, n_embd=24, n_layer=1, n_head=4)
    model = pl.CkptedTransformer(config).eval().half()
    with torch.no_grad():
        model.embed.W_E.fill_(64.0)
    ids = torch.arange(1024)[None] % 50
    _, ckpts = model.run_with_ckpts(ids, names="ckpt_embed", edits=pl.Edit.mean_ablate("ckpt_embed"))
    assert (ckpts["ckpt_embed"] == 64).all()


@pytest.mark.parametrize("heads", [
    slice(1, None), slice(-2, None), slice(0, -1), slice(0, 100), slice(-3, 2), [-1], range(2),
    torch.tensor([3]), np.int64(2), 0,
], ids=str)  # fmt: skip
def test_kept_heads_are_known_wherever_they_go(model: pl.CkptedTransformer, heads: object, tmp_path: Path):
    _, ckpts = model.run_with_ckpts(IDS, names="blocks.*.attn.ckpt_z", heads=heads)
    chosen = torch.arange(4)[heads] if isinstance(heads, slice) else torch.arange(4)[torch.as_tensor(heads)]
    expected = chosen.reshape(-1).tolist()
    ckpts.save(tmp_path / "some.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "some.safetensors")
    for each in (ckpts, again):
        assert each.part.heads == expected
        assert each.to_xarray().coords["head"].values.tolist() == expected
        assert pl.measure.norms(each, "attn.ckpt_z").coords["head"].values.tolist() == expected


# Generation


def test_pads_that_no_prompt_needs_take_no_room(model: pl.CkptedTransformer):
    ids = torch.cat([torch.zeros(1, 200, dtype=torch.long), IDS], 1)
    padded = model.tokenize(ids[:, -14:], mask=(torch.arange(14) >= 8)[None].long())
    expected = model.generate(IDS, max_new_tokens=8, end_ids=()).new_ids
    for overflow in ("error", "slide"):
        out = model.generate(padded, max_new_tokens=8, end_ids=(), overflow=overflow)
        assert out.ids.shape == (1, 14)
        assert torch.equal(out.new_ids, expected)


def test_a_stream_refuses_a_seed_at_once(model: pl.CkptedTransformer):
    with pytest.raises(pl.InputError, match="seed"):
        model.stream(IDS, max_new_tokens=3, seed="zero")


def test_a_stream_of_bytes_that_are_no_character():
    tokenizer = pl.load().tokenizer
    assert tokenizer is not None
    lead, tail = tokenizer.encode("\u00e9")
    for ids in ([lead] * 3 + [lead, tail], [lead] * 9, [tail] * 5 + [lead, tail], [lead, tail, lead]):
        text = TextStream(tokenizer)
        assert "".join([*map(text.push, ids), text.finish()]) == tokenizer.decode(ids), ids


def test_masked_scores_of_decoded_columns_hold_the_least_number_of_the_dtype():
    model = support.glass(numerics="fast", dtype=torch.bfloat16)
    out = model.generate([[1, 2, 3], [4]], max_new_tokens=3, names="**.ckpt_scores", end_ids=())
    assert out.ckpts is not None
    for scores in out.ckpts.values():
        assert scores.dtype == torch.bfloat16
        assert torch.isfinite(scores).all()


def test_estimates_know_how_many_rows_the_kernels_take():
    model = support.glass(numerics="fast", dtype=torch.bfloat16)
    few, many = (pl.estimate_generation(model, [[1, 2]] * rows, max_new_tokens=4) for rows in (32, 33))
    assert few.prepared
    assert not many.prepared
    assert few.cache > many.cache
    wide = support.glass(attention="eager", reorder_and_upcast_attn=True, dtype=torch.float64)
    captured = wide.run_with_ckpts([[1, 2, 3]])[1]
    assert pl.estimate(wide, [[1, 2, 3]]).nbytes == sum(value.nbytes for value in captured.values())


# Comparing


def test_where_scores_differ(model: pl.CkptedTransformer):
    unscaled = pl.CkptedTransformer(model.config.replace(scale_attn_weights=False), model.state_dict()).eval()
    found = pl.compare(model, unscaled, inputs=[IDS[0, :5].tolist()]).first_divergence
    assert found is not None
    assert found.where == "blocks.0.attn.ckpt_scores"
    assert found.positions == (0, 1, 2, 3, 4)
    assert found.heads == (0, 1, 2, 3)


@pytest.mark.parametrize("damage", ["truncated", "other sizes"])
def test_transformers_failing_to_open_a_folder_is_bad_input(model: pl.CkptedTransformer, tmp_path: Path, damage: str):
    model.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text(config.read_text().replace('"n_embd": 24', '"n_embd": 32'))
    with pytest.raises(pl.WeightsError) as caught:
        pl.compare(f"hf:{tmp_path}", model, inputs=IDS)
    assert caught.value.code == "hf-unreadable"


def test_foreign_modules_are_compared_without_transformers(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: object, **__: object) -> None:
        raise pl.MissingExtraError("no transformers.", code="missing-transformers", remedy="Install it.")

    monkeypatch.setattr("pellucid.prove.sides.from_hf", missing)
    assert sides._glass_of(torch.nn.Linear(2, 2)) is None


def test_a_generation_configuration_that_cannot_be_saved(tmp_path: Path):
    hf = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0))
    hf.generation_config.temperature = 0.7
    with pytest.raises(pl.WeightsError) as caught:
        pl.save_hf(hf, tmp_path / "x")
    assert caught.value.code == "save-would-lose"
    assert "generation_config" in caught.value.remedy
    assert not (tmp_path / "x").exists()
