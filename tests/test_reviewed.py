"""Ways to be silently wrong that a hostile reader found; each was once possible."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import pellucid as pl
from pellucid.transformer import Embedding

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
    model.embed = Embedding(torch.zeros(50, 24))
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
    with pytest.raises(pl.EditError):
        model.run_with_ckpts(batch, edits=pl.Edit.mean_ablate("blocks.0.resid_post", pos=0))


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
