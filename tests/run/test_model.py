"""The verbs: logits, log-probabilities, loss, stopping, and models made in one way or another."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import pellucid as pl
import support

IDS = support.some_ids(3, 11)
RAGGED = support.ragged_ids(3, 11, 1, 7)


def test_logprobs_are_those_of_the_logits(glass64: pl.CkptedTransformer) -> None:
    with torch.no_grad():
        logprobs, logits = glass64.logprobs(IDS), glass64(IDS)
    assert logprobs.shape == (3, 10)
    for row in range(3):
        for column in range(10):
            expected = logits[row, column].softmax(-1)[IDS[row, column + 1]].log()
            assert float(logprobs[row, column]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logprobs_under_padding(glass64: pl.CkptedTransformer, side: str) -> None:
    batch = glass64.tokenize(RAGGED, padding_side=side)
    with torch.no_grad():
        logprobs = glass64.logprobs(batch)
        for row, ids in enumerate(RAGGED):
            own = logprobs[row][~logprobs[row].isnan()]
            assert len(own) == len(ids) - 1
            assert support.close(own, glass64.logprobs([ids])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_loss_is_transformers_own(dtype: torch.dtype) -> None:
    ours, hf = support.pair(dtype=dtype)
    with torch.no_grad():
        expected = hf(IDS, labels=IDS).loss
        loss = ours.loss(IDS)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)  # transformers computes it in float32
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_leaves_pads_out(side: str) -> None:
    ours, hf = support.pair()
    batch = ours.tokenize(RAGGED, padding_side=side)
    labels = batch.ids.masked_fill(~batch.mask, -100)
    if side == "left":  # their loss counts the first real token, predicted from a pad; ours does not
        labels = labels.masked_fill(batch.positions == 0, -100)
    with torch.no_grad():
        expected = hf(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, labels=labels).loss
        assert float(ours.loss(batch)) == pytest.approx(float(expected), rel=1e-6)


def test_loss_has_a_gradient_and_none_from_pads() -> None:
    model = support.glass(dtype=torch.float64)
    model.loss(support.ragged_ids(3, 11)).backward()
    together = model.grad("embed.W_E").clone()
    model.zero_grad()
    rows = support.ragged_ids(3, 11)
    (sum(model.loss([row]) * (len(row) - 1) for row in rows) / 12).backward()
    assert torch.isfinite(together).all()
    assert support.close(together, model.grad("embed.W_E"), 1e-12)


def test_runs_leave_no_trace(glass: pl.CkptedTransformer) -> None:
    attributes = {path: set(vars(module)) for path, module in glass.named_modules()}
    glass.run_with_ckpts(IDS)
    glass.run_with_ckpts(IDS, edits=[pl.Edit.zero("**.ckpt_z")], stop_at="blocks.1.resid_mid")
    assert attributes == {path: set(vars(module)) for path, module in glass.named_modules()}
    assert not any(p.grad is not None for p in glass.parameters())


def test_stop_at_is_inclusive_and_gives_no_logits(glass: pl.CkptedTransformer) -> None:
    logits, ckpts = glass.run_with_ckpts(IDS, stop_at="blocks.1.resid_post")
    assert logits is None
    assert list(ckpts)[-1] == "blocks.1.resid_post"
    assert len(ckpts) == 2 + 2 * 17


def test_stop_at_what_is_computed_beside(glass: pl.CkptedTransformer) -> None:
    _, whole = glass.run_with_ckpts(IDS)
    for name in ("blocks.1.attn.ckpt_pattern", "blocks.1.ln2.ckpt_scaled", "ln_final.ckpt_normalized"):
        logits, ckpts = glass.run_with_ckpts(IDS, names=name, stop_at=name)
        assert logits is None
        assert list(ckpts) == [name]
        assert torch.equal(ckpts[name], whole[name])


@pytest.mark.parametrize(
    "names", ["blocks.1.resid_mid", ["blocks.1.resid_mid"], ("blocks.*.resid_mid", "ckpt_embed"), {"ckpt_embed"}]
)
def test_only_what_was_asked_for_is_captured(glass: pl.CkptedTransformer, names: object) -> None:
    if isinstance(names, tuple):
        names = list(names)
    _, ckpts = glass.run_with_ckpts(IDS, names=names)
    wanted = {"blocks.1.resid_mid"} if "blocks.1.resid_mid" in names else {"ckpt_embed"}
    if isinstance(names, list) and "ckpt_embed" in names:
        wanted = {"ckpt_embed", *(f"blocks.{i}.resid_mid" for i in range(3))}
    assert set(ckpts) == wanted


def test_no_names_capture_nothing(glass: pl.CkptedTransformer) -> None:
    logits, ckpts = glass.run_with_ckpts(IDS, names=[])
    assert len(ckpts) == 0
    assert ckpts.nbytes == 0
    assert torch.equal(logits, glass(IDS))


def test_logits_of_a_plain_call_carry_a_gradient(glass: pl.CkptedTransformer) -> None:
    assert glass(IDS).requires_grad
    with torch.no_grad():
        assert not glass(IDS).requires_grad


def test_gpt2_small_from_its_name_is_fresh() -> None:
    """A configuration alone gives random weights, never a download."""
    config = pl.TransformerConfig.from_pretrained("gpt2-small", n_layer=1, n_embd=12, vocab_size=7, n_positions=5)
    model = pl.CkptedTransformer(config)
    assert model.training
    assert model.tokenizer is None
    assert model.config is config
    assert model([[1, 2]]).shape == (1, 2, 7)


def test_one_seed_gives_one_model() -> None:
    config = pl.TransformerConfig(**support.SIZES)
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(pl.CkptedTransformer(config).eval())
    a, b, c = (m(IDS) for m in models)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("tied", [True, False])
def test_through_a_folder_and_through_transformers(tmp_path: Path, tied: bool) -> None:
    from transformers import GPT2LMHeadModel

    model = support.glass(tie_word_embeddings=tied)
    with torch.no_grad():
        expected = model(IDS)
        model.save_pretrained(tmp_path)
        assert torch.equal(pl.load(tmp_path)(IDS), expected)
        assert torch.equal(pl.CkptedTransformer.from_pretrained(tmp_path)(IDS), expected)
        assert torch.equal(GPT2LMHeadModel.from_pretrained(tmp_path)(IDS).logits, expected)
        assert torch.equal(pl.to_hf(model)(IDS).logits, expected)
        assert torch.equal(pl.from_hf(pl.to_hf(model))(IDS), expected)


def test_from_hf_does_not_touch_the_model_given() -> None:
    hf = support.reference()
    before = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    tree, implementation, classes = str(hf), hf.config._attn_implementation, [type(m) for m in hf.modules()]
    ours = pl.from_hf(hf, attention="eager")
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in hf.state_dict().items())
    assert (str(hf), hf.config._attn_implementation, [type(m) for m in hf.modules()]) == (tree, implementation, classes)
    assert hf.lm_head.weight is hf.transformer.wte.weight


def test_pickled_with_its_tokenizer(gpt2_tokenizer: pl.Tokenizer) -> None:
    model = support.glass(vocab_size=50257, n_embd=8, n_head=1, n_layer=1)
    model.tokenizer = gpt2_tokenizer
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again("Hello world"), model("Hello world"))


def test_estimate_runs_nothing(glass: pl.CkptedTransformer) -> None:
    handle = glass.embed.register_forward_hook(lambda *_: pytest.fail("it ran"))
    try:
        assert "bytes in 55 checkpoints" in repr(pl.estimate(glass, IDS))
    finally:
        handle.remove()


def test_device_and_dtype(glass: pl.CkptedTransformer) -> None:
    assert glass.device == torch.device("cpu")
    assert glass.dtype == torch.float32


def test_from_pretrained_takes_the_word_of_other_libraries() -> None:
    model = pl.CkptedTransformer.from_pretrained(model_name="bundled", device="cpu")
    assert torch.equal(model.embed.W_E, pl.load().embed.W_E)


def test_a_run_with_a_cache_carries_gradients_of_its_own_tokens(tiny: pl.CkptedTransformer):
    cache = pl.KeyValueCache(tiny.config)
    tiny(support.ROW[:, :4], cache=cache)
    logits = tiny(support.ROW[:, 4:], cache=cache)
    logits[0, -1, 7].backward()
    found = tiny.grad("blocks.0.mlp.W_in")
    assert found is not None
    tiny.zero_grad()

    def past_is_constant(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[:, :4].detach(), value[:, 4:]], 1)

    class Tap:
        def wants(self, name: str) -> bool:
            return name.endswith(("ckpt_k", "ckpt_v"))

        __call__ = staticmethod(past_is_constant)

    tiny(support.ROW, tap=Tap())[0, -1, 7].backward()
    expected = tiny.grad("blocks.0.mlp.W_in")
    assert expected is not None
    assert found.abs().max() > 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
