"""What each block says: the logit lens to its definition and to the bit, the tuned lens trained, kept and resumed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import TOKEN, furthest, run
from torch import Tensor

import pellucid as pl
import support
from following import Case, follow, params
from pellucid.lens import readout, tuned
from pellucid.run.origin import weights_fingerprint

LENS, FIT = pl.lens.logit, pl.lens.TunedLens.fit
TEXTS = support.ragged_ids(5, 3, 6, 4, 5, 6, 2, vocab_size=50)
SETTINGS: dict[str, Any] = {"batch_size": 2, "learning_rate": 0.01}


def small(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(**{"vocab_size": 50, "n_positions": 16, "n_embd": 24, "n_layer": 3, **fields})


def by_hand(model: pl.CkptedTransformer, stream: Tensor) -> Tensor:
    """log softmax of W_U LN(h), written without the library."""
    centred = stream - stream.mean(-1, keepdim=True)
    scaled = centred / ((centred**2).mean(-1, keepdim=True) + model.config.layer_norm_epsilon) ** 0.5
    return ((scaled * model.ln_final.w + model.ln_final.b) @ model.unembed.W_U).log_softmax(-1)


# The logit lens


@pytest.mark.parametrize(
    "fields", [{}, {"tie_word_embeddings": False}, {"numerics": "bfloat16"}, {"attention": "eager"}]
)
def test_the_last_block_says_what_the_model_says_to_the_bit(fields: dict[str, Any]) -> None:
    logits, ckpts = run(support.glass(**fields))
    assert torch.equal(LENS(ckpts).logits(-1), logits)
    assert torch.equal(LENS(ckpts, "blocks.2.resid_post").logits(2), logits)


def test_the_bundled_model_to_the_bit(bundled: pl.CkptedTransformer) -> None:
    logits, ckpts = run(bundled, ["Once upon a time", "The cat"], names="resid_post")
    lens = LENS(ckpts)
    assert torch.equal(lens.logits(-1), logits)
    assert float(lens.kl().isel(layer=-1).max()) == 0
    assert lens.top(1).isel(layer=-1, pos=-1, top=0).values.tolist() == logits[:, -1].argmax(-1).tolist()


def test_numbers_are_their_definitions_and_pads_are_missing() -> None:
    model = support.glass(dtype=torch.float64)
    _, ckpts = run(model)
    lens, pads = LENS(ckpts, "resid_mid"), ~ckpts.batch.mask.numpy()
    expected = by_hand(model, ckpts.stack("resid_mid")).detach()
    output = by_hand(model, ckpts["blocks.2.resid_post"]).detach()
    logprobs, ranks, top, kl = lens.logprobs(TOKEN), lens.rank(TOKEN), lens.top(3), lens.kl()
    for layer in range(3):
        here = expected[layer]
        assert furthest(torch.from_numpy(logprobs[layer].values), here[..., TOKEN], ckpts) < 1e-12
        assert furthest(torch.from_numpy(ranks[layer].values), (here > here[..., TOKEN, None]).sum(-1), ckpts) == 0
        divergence = (output.exp() * (output - here)).sum(-1)
        assert furthest(torch.from_numpy(kl[layer].values), divergence, ckpts) < 1e-12
        likeliest = here.topk(3)
        assert np.array_equal(top[layer].values[~pads], likeliest.indices.numpy()[~pads])
        assert np.allclose(top.logprob[layer].values[~pads], likeliest.values.numpy()[~pads], rtol=0, atol=1e-12)
    assert top.dims == ("layer", "batch", "pos", "top")
    assert all(np.array_equal(np.isnan(found.values[0]), pads) for found in (logprobs, ranks, kl))
    assert (top.values[:, pads] == -1).all()
    assert (top.text.values[:, pads] == "").all()
    assert top.text.values[0, 0, -1, 0] == str(top.values[0, 0, -1, 0])


def test_a_token_for_each_text_and_places_without_blocks() -> None:
    _, ckpts = run(support.glass())
    lens = LENS(ckpts)
    own = lens.logprobs([3, 4, 5])
    assert all(np.array_equal(own[:, i], lens.logprobs(3 + i)[:, i], equal_nan=True) for i in range(3))
    assert LENS(ckpts, "ckpt_embed").rank(3).dims == ("batch", "pos")
    assert LENS(ckpts, "blocks.1.attn.ckpt_attn_out").kl().dims == ("batch", "pos")
    last = LENS(run(support.glass(), pos=[-1])[1]).logprobs(3)
    assert abs(last.isel(pos=0) - lens.logprobs(3).isel(pos=-1)).max() < 1e-4  # one row takes another kernel


def test_it_prints_as_a_grid(bundled: pl.CkptedTransformer) -> None:
    _, ckpts = run(bundled, ["Once upon a time", "The cat"], names="resid_post")
    title, head, *rows = repr(LENS(ckpts)).splitlines()
    assert title == "top tokens at resid_post (not shown: further texts)"
    assert head.split() == ["Once", "upon", "a", "time"]
    tops = LENS(ckpts).top(1).text.isel(batch=0, top=0)
    assert [row.split() for row in rows] == [
        [str(layer), *(token.strip() for token in tops[layer].values)] for layer in range(4)
    ]
    long = repr(LENS(run(bundled, "a cat and a dog " * 12, names="resid_post")[1]))
    assert "earlier positions" in long
    assert max(map(len, long.splitlines())) < 110


def test_padded_texts_print_their_own_tokens() -> None:
    _, ckpts = run(small(), TEXTS[:2][::-1])
    head = repr(LENS(ckpts)).splitlines()[1]
    assert head.split() == list(map(str, TEXTS[1]))


# The tuned lens


def test_it_starts_at_the_logit_lens() -> None:
    model = small()
    _, ckpts = run(model, TEXTS)
    identity = pl.lens.TunedLens(
        torch.zeros(2, 24, 24), torch.zeros(2, 24), torch.zeros(0, 2), {"weights": weights_fingerprint(model)}
    )
    read, plain = identity.read(ckpts), LENS(ckpts)
    assert all(torch.equal(read.logits(layer), plain.logits(layer)) for layer in range(3))


def test_it_reads_by_its_formula() -> None:
    model = small(dtype=torch.float64)
    logits, ckpts = run(model, TEXTS)
    matrices, offsets = torch.randn(2, 24, 24, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    lens = pl.lens.TunedLens(matrices, offsets, torch.zeros(0, 2), {"weights": weights_fingerprint(model)}).read(ckpts)
    for layer in range(2):
        stream = ckpts[f"blocks.{layer}.resid_post"]
        moved = stream + torch.einsum("ij,bpj->bpi", matrices[layer], stream) + offsets[layer]
        expected = by_hand(model, moved)[..., TOKEN].detach()
        assert furthest(torch.from_numpy(lens.logprobs(TOKEN)[layer].values), expected, ckpts) < 1e-11
    assert torch.equal(lens.logits(2), logits)


def test_the_first_step_goes_against_the_gradient_of_the_divergence() -> None:
    """Adam's first step moves each number by the rate, against the sign of its gradient."""
    model = small(dtype=torch.float64)
    _, ckpts = run(model, TEXTS)
    lens = FIT(model, TEXTS, batch_size=len(TEXTS), learning_rate=0.01)
    output, mask = by_hand(model, ckpts["blocks.2.resid_post"]).detach(), ckpts.batch.mask
    for layer in range(2):
        stream = ckpts[f"blocks.{layer}.resid_post"]
        matrix, offset = torch.zeros(24, 24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64)
        matrix.requires_grad_(), offset.requires_grad_()
        read = by_hand(model, stream + stream @ matrix.T + offset)
        loss = (output.exp() * (output - read)).sum(-1)[mask].mean()
        grads = torch.autograd.grad(loss, (matrix, offset))
        assert abs(float(lens.losses[0, layer]) - float(loss.detach())) < 1e-5
        for found, grad in zip((lens.matrices[layer], lens.offsets[layer]), grads, strict=True):
            clear = grad.abs() > 1e-6
            assert clear.float().mean() > 0.9
            assert float((found + 0.01 * grad.sign())[clear].abs().max()) < 1e-3


def test_training_lowers_every_divergence_and_leaves_the_model_alone() -> None:
    model = small()
    before = weights_fingerprint(model)
    lens = FIT(model, TEXTS, epochs=30, **SETTINGS)
    _, ckpts = run(model, TEXTS)
    plain, trained = LENS(ckpts).kl().mean(("batch", "pos")), lens.read(ckpts).kl().mean(("batch", "pos"))
    assert (trained[:2] < 0.5 * plain[:2]).all()
    assert float(trained[2]) == 0
    assert weights_fingerprint(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert lens.losses.shape == (30 * 4, 2)


def same(a: pl.lens.TunedLens, b: pl.lens.TunedLens) -> bool:
    pairs = ((a.matrices, b.matrices), (a.offsets, b.offsets), (a.losses, b.losses))
    return all(torch.equal(one, other) for one, other in pairs) and a.about == b.about


def test_one_seed_gives_one_lens() -> None:
    model = small()
    one, again, other = (FIT(model, TEXTS, seed=seed, epochs=3, **SETTINGS) for seed in (-1, -1, 1))
    assert same(one, again)
    assert not torch.equal(one.matrices, other.matrices)
    with pytest.raises(pl.InputError, match="seed=18446744073709551616"):
        FIT(model, TEXTS, seed=2**64, **SETTINGS)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small()
    lens = FIT(model, TEXTS, path=tmp_path / "fitted.safetensors", **SETTINGS)
    lens.save(tmp_path / "saved.safetensors")
    for name in ("fitted", "saved"):
        assert same(pl.lens.TunedLens.load(tmp_path / f"{name}.safetensors"), lens)
    assert same(FIT(model, TEXTS, path=tmp_path / "fitted.safetensors", **SETTINGS), lens)
    assert repr(lens) == "TunedLens of 'CkptedTransformer': 2 maps of 24 dimensions"


def test_an_interrupted_training_goes_on_as_if_it_had_not_been() -> None:
    model, whole = small(), FIT(small(), TEXTS, epochs=4, **SETTINGS)
    with TemporaryDirectory() as folder:
        path, steps = Path(folder) / "lens.safetensors", 0
        captured = type(model).run_with_ckpts

        def interrupted(*arguments: Any, **more: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > 7:
                raise KeyboardInterrupt
            return captured(*arguments, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "run_with_ckpts", interrupted)
            with pytest.raises(KeyboardInterrupt):
                FIT(model, TEXTS, epochs=4, path=path, every=3, **SETTINGS)
        assert repr(pl.lens.TunedLens.load(path)).endswith("step 6 of 16")
        resumed = FIT(model, TEXTS, epochs=4, path=path, every=3, **SETTINGS)
        assert same(resumed, whole)
        assert same(pl.lens.TunedLens.load(path), whole)


def test_a_model_of_one_block_has_nothing_to_fit() -> None:
    model = small(n_layer=1)
    logits, ckpts = run(model, TEXTS)
    assert torch.equal(FIT(model, TEXTS).read(ckpts).logits(0), logits)


# Refusals


def wide(model: pl.CkptedTransformer) -> pl.ActivationCkpts:
    return run(model, edits=[pl.Edit.zero("ln_final.ckpt_normalized")])[1]


def trained(here: Any, **more: Any) -> pl.lens.TunedLens:
    return FIT(here.model, TEXTS, path=here.path, **more)


def not_finite() -> pl.ActivationCkpts:
    model = support.glass()
    with torch.no_grad():
        model.blocks[1].mlp.W_out[0, 0] = torch.nan
    return run(model)[1]


def broken_head() -> pl.CkptedTransformer:
    """A head that is not finite behind a stream that is."""
    model = support.glass(tie_word_embeddings=False)
    with torch.no_grad():
        model.unembed.W_U[0, 5] = torch.nan
    return model


def overflowing() -> pl.CkptedTransformer:
    """A head whose weights are finite in float16, but not what it makes of them."""
    model = support.glass(tie_word_embeddings=False, dtype=torch.float16)
    with torch.no_grad():
        model.unembed.W_U[:24, 5] = 3e4
    return model


def find_broken(model: pl.CkptedTransformer) -> None:
    found = [name for name in model.parameter_names if not model.parameter(name).isfinite().all()]
    assert found == ["unembed.W_U"]


REMEDIES: dict[str, list[Case]] = {
    "not-finite": [
        *(
            Case(
                lambda h, read=read: read(LENS(run(broken_head())[1])),
                "model.parameter(name).isfinite()",
                lambda h: find_broken(broken_head()),
            )
            for read in (lambda lens: lens.rank(9), lambda lens: lens.kl(), repr)
        ),
        Case(
            lambda h: LENS(run(overflowing())[1]).rank(9),
            "in torch.float16: run the model in a wider dtype, model.float()",
            lambda h: LENS(run(overflowing().float())[1]).rank(9),
        ),
        Case(
            lambda h: FIT(broken_head(), TEXTS),
            "smaller learning_rate=",
            lambda h: FIT(h.model, TEXTS, learning_rate=1e-4),
        ),
    ],
    "lens-place": [
        Case(lambda h, at=at: LENS(h.ckpts, at), "at='resid_pre'", lambda h: LENS(h.ckpts, at="resid_pre"))
        for at in ("ln1.ckpt_normalized", "attn.ckpt_q", "ln_final.ckpt_normalized")
    ],
    "lens-layer": [Case(lambda h: LENS(h.ckpts).logits(3), "captured", lambda h: LENS(h.ckpts).logits(2))],
    "edited-behind-the-stream": [
        Case(
            lambda h: LENS(wide(h.model)),
            "resid_post",
            lambda h: LENS(run(h.model, edits=[pl.Edit.zero("blocks.2.resid_post")])[1]),
        )
    ],
    "captures-without-model": [
        Case(
            lambda h: LENS(pickle.loads(pickle.dumps(h.ckpts))),
            "model=model",
            lambda h: LENS(pickle.loads(pickle.dumps(h.ckpts)), model=h.model),
        )
    ],
    "not-captured": [
        Case(
            lambda h: LENS(run(h.model, names="resid_mid")[1], "resid_mid").kl(),
            "names=['blocks.2.resid_post']",
            lambda h: LENS(run(h.model, names=["resid_mid", "blocks.2.resid_post"])[1], "resid_mid").kl(),
        )
    ],
    "lens-of-another-model": [
        Case(
            lambda h: FIT(h.model, TEXTS).read(run(support.glass(seed=1))[1]),
            "pl.lens.TunedLens.fit(model, texts)",
            lambda h: FIT(support.glass(seed=1), TEXTS).read(run(support.glass(seed=1))[1]),
        )
    ],
    "lens-model": [
        Case(
            lambda h: FIT(support.glass().train(), TEXTS), "model.eval()", lambda h: FIT(support.glass().eval(), TEXTS)
        )
    ],
    "lens-texts": [Case(lambda h: FIT(h.model, iter(TEXTS)), "list(texts)", lambda h: FIT(h.model, list(iter(TEXTS))))],
    "lens-setting": [
        Case(lambda h: FIT(h.model, TEXTS, learning_rate=0), "Leave learning_rate= out", lambda h: FIT(h.model, TEXTS))
    ],
    "lens-misfit": [
        Case(lambda h: [trained(h), trained(h, seed=1)], "settings of that file", lambda h: trained(h, seed=0)),
        Case(
            lambda h: [trained(h), FIT(support.glass(seed=1), TEXTS, path=h.path)],
            "a path that is free",
            lambda h: FIT(support.glass(seed=1), TEXTS, path=h.path.with_name("other.safetensors")),
        ),
    ],
    "not-a-lens": [
        Case(
            lambda h: [h.ckpts.save(h.path), pl.lens.TunedLens.load(h.path)],
            "TunedLens.save or fit wrote",
            lambda h: [FIT(h.model, TEXTS).save(h.path), pl.lens.TunedLens.load(h.path)],
        ),
        Case(
            lambda h: [h.ckpts.save(h.path), trained(h)],
            "a path that is free",
            lambda h: FIT(h.model, TEXTS, path=h.path.with_name("other.safetensors")),
        ),
    ],
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies(code: str, case: Case, tmp_path: Path) -> None:
    model = support.glass()
    follow(code, case, SimpleNamespace(model=model, ckpts=run(model)[1], path=tmp_path / "lens.safetensors"))


def test_a_stream_that_is_not_finite_is_said() -> None:
    with pytest.raises(pl.InputError, match=r"blocks\.1\.resid_post"):
        LENS(not_finite())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "lens.safetensors"
    FIT(small(), TEXTS).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(pl.InputError, match="damaged"):
        pl.lens.TunedLens.load(path)


# Mutants


def put(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def reverse(output: Tensor, logits: Tensor) -> Tensor:
    read = logits.to(output.dtype).log_softmax(-1)
    return (read.exp() * (read - output)).sum(-1)


def forgetful(patch: pytest.MonkeyPatch) -> None:
    """Adam's moments are not read again."""
    read = tuned.own_file.load
    patch.setattr(
        tuned.own_file,
        "load",
        lambda path, kind: (
            (found := read(path, kind))[0],
            {name: value * 0 if "." in name else value for name, value in found[1].items()},
        ),
    )


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = {
    "the map is transposed": (
        put(tuned, "translated", lambda stream, matrix, offset: stream + stream @ matrix + offset),
        test_it_reads_by_its_formula,
    ),
    "the map is no residual": (
        put(tuned, "translated", lambda stream, matrix, offset: stream @ matrix.T + offset),
        test_it_starts_at_the_logit_lens,
    ),
    "the divergence is the other one": (
        put(readout, "divergence", reverse), test_numbers_are_their_definitions_and_pads_are_missing,
    ),
    "the other divergence is trained": (
        put(tuned, "divergence", reverse), test_the_first_step_goes_against_the_gradient_of_the_divergence,
    ),
    "the last norm is left out": (
        put(readout, "_readable", lambda model, stream: model.unembed(stream).detach()),
        lambda: test_the_last_block_says_what_the_model_says_to_the_bit({}),
    ),
    "moments are forgotten on resuming": (forgetful, test_an_interrupted_training_goes_on_as_if_it_had_not_been),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    """Each check is a test that passes while nothing is broken."""
    breaks, check = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check()
