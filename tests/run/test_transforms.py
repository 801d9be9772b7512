"""Where torch lets a model run without its numbers: per-sample gradients, the meta device, other default devices."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

import pellucid as pl
import support
from pellucid.text import batching

IDS = support.some_ids(3, 6)


def per_sample(model: Any, shape: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The gradient of each row's loss, by parameter."""

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        out = functional_call(model, parameters, (shape(row),))
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits[0, :-1], row[1:])

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return vmap(grad(loss), (None, 0))(parameters, IDS)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # torch's, for attention under vmap
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_of_each_sample_are_those_of_transformers(attention: str) -> None:
    model, hf = support.pair(attention=attention)
    theirs = per_sample(hf, lambda row: row[None])
    for shape in (lambda row: row[None], lambda row: row):
        ours = per_sample(model, shape)
        assert torch.equal(ours["embed.W_E"], theirs["transformer.wte.weight"])
        assert torch.equal(ours["blocks.1.attn.W_QKV"], theirs["transformer.h.1.attn.c_attn.weight"])
        assert torch.equal(ours["ln_final.b"], theirs["transformer.ln_f.bias"])
    assert theirs["transformer.wte.weight"].shape == (3, *model.embed.W_E.shape)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_the_loss_of_each_sample_is_that_of_its_own_run() -> None:
    model = support.glass()
    with torch.no_grad():
        masks = torch.ones_like(IDS)
        masks[0, :2] = 0
        together = vmap(model.loss)(IDS)
        hidden = vmap(lambda row, mask: model({"input_ids": row[None], "attention_mask": mask[None]}))(IDS, masks)
        alone = torch.stack([model.loss(row) for row in IDS])
        assert support.close(together, alone, 1e-6)
        assert support.close(hidden[0, 0, 2:], model([IDS[0, 2:].tolist()])[0], 1e-5)


@pytest.fixture(scope="module")
def on_meta() -> pl.CkptedTransformer:
    return support.glass().to("meta")


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_a_model_on_the_meta_device_gives_shapes(on_meta: pl.CkptedTransformer, where: str) -> None:
    ids, real = IDS.to(where), support.glass()
    for run in (
        lambda model, given: model(given),
        lambda model, given: model.logprobs(given),
        lambda model, given: model.loss(given),
        lambda model, given: model.next_token_logits(given),
        lambda model, given: model({"input_ids": given, "attention_mask": torch.ones_like(given)}),
        lambda model, given: model(given, cache=pl.KeyValueCache(model.config, 3, device=model.device)),
        lambda model, given: model.run_with_ckpts(given)[1]["blocks.2.attn.ckpt_pattern"],
    ):
        shown = run(on_meta, ids)
        assert (shown.shape, shown.is_meta) == (run(real, IDS).shape, True)


def test_what_needs_numbers_refuses_the_meta_device(on_meta: pl.CkptedTransformer, tmp_path: Path) -> None:
    for wants_numbers in (
        lambda: on_meta.save_pretrained(tmp_path / "model"),
        lambda: pl.to_hf(on_meta),
        lambda: on_meta.generate(IDS),
        lambda: on_meta.stream(IDS),
    ):
        with pytest.raises(pl.WeightsError, match="meta device") as caught:
            wants_numbers()
        assert caught.value.code == "meta-device"
    assert not (tmp_path / "model").exists()


@pytest.fixture
def _elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


VERBS: dict[str, Callable[[pl.CkptedTransformer], Tensor]] = {
    "call": lambda m: m(IDS),
    "ragged": lambda m: m([[1, 2], [3]]),
    "mask": lambda m: m({"input_ids": IDS.tolist(), "attention_mask": [[1] * 6, [0] + [1] * 5, [0, 0, 1, 1, 1, 1]]}),
    "loss": lambda m: m.loss([[1, 2], [3, 4, 5]]),
    "captures": lambda m: m.run_with_ckpts(IDS, pos=[0, 2])[1]["resid_post", 1],
    "edits": lambda m: m.run_with_ckpts(IDS, edits=pl.Edit.zero("blocks.0.attn.ckpt_z", heads=0, pos=-1))[0],
    "cache": lambda m: m(IDS, cache=pl.KeyValueCache(m.config, 3)),
    "beams": lambda m: m.generate([[1, 2], [3]], max_new_tokens=3, end_ids=(), num_beams=2).rows[1].new,
    "samples": lambda m: (
        m.generate(IDS, max_new_tokens=3, end_ids=(), seed=1, sampler=pl.Sampler(temperature=1.0, top_p=0.9))
        .rows[0]
        .new
    ),
    "generated captures": lambda m: m.generate(IDS, max_new_tokens=2, end_ids=(), names="**.ckpt_pattern").ckpts[
        "pattern", 0
    ],
}


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("verb", VERBS)
def test_another_default_device_changes_nothing(verb: str, numerics: str, request: pytest.FixtureRequest) -> None:
    model = support.glass(numerics=numerics)
    with torch.no_grad():
        expected = VERBS[verb](model)
        request.getfixturevalue("_elsewhere")
        found = VERBS[verb](model)
    assert found.device.type == "cpu"
    assert torch.equal(found, expected)


def test_studies_make_their_tensors_where_the_model_is(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model, hf = support.pair()
    texts: Any = (model, IDS, IDS.flip(1))

    def found() -> list[Any]:
        swept = pl.patching.sweep(*texts, "attn.ckpt_z", over=("layer", "head"), metric=pl.metrics.logit(7))
        ablated = pl.patching.ablate(
            model, IDS, "resid_post", over=("layer",), how="resample", metric=pl.metrics.kl(model(IDS).detach())
        )
        edges = pl.attribution.edges(*texts, metric=pl.metrics.logit(7), check=2)
        arrays = [swept, ablated, edges, pl.heads.composition(model, "K"), pl.heads.scores(model, IDS)["previous"]]
        lens = pl.lens.TunedLens.fit(model, [[1, 2, 3], [4, 5]], seed=0).losses.tolist()
        verdicts = [pl.audit_ties(hf).after_reload.survives, pl.save_hf(hf, tmp_path / "model").nbytes]
        return [*(each.fillna(7).values.tolist() for each in arrays), lens, verdicts]

    plain = found()
    request.getfixturevalue("_elsewhere")
    assert found() == plain


MAKERS = {
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
}
STUDIES = (
    "attribution", "circuits", "compat", "corpus", "heads", "lens", "measure", "patching", "reproduce", "sae", "viewer",
)  # fmt: skip


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_names_the_device_of_every_tensor_that_it_makes(study: str) -> None:
    """Else it would be made on `torch.get_default_device()`, be it a GPU, beside a model that is elsewhere."""
    for file in sorted((Path(pl.__file__).parent / study).rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).removeprefix("torch.") in MAKERS:
                assert any(word.arg in ("device", None) for word in call.keywords), f"{file.name}:{call.lineno}"


@pytest.mark.usefixtures("_elsewhere")
def test_models_are_opened_where_it_was_said(tmp_path: Path) -> None:
    opened = pl.load()
    assert opened.device.type == "cpu"
    opened.save_pretrained(tmp_path)
    again = pl.load(tmp_path)
    live = pl.to_hf(again)
    assert live.device.type == "cpu"
    assert torch.equal(pl.from_hf(live)(IDS), opened(IDS))


def test_a_model_made_in_inference_mode_can_be_trained() -> None:
    hf = support.reference()
    for made in (
        pl.load,
        lambda: pl.from_hf(hf),
        lambda: pl.CkptedTransformer(pl.TransformerConfig(**support.SIZES)),
    ):
        with torch.inference_mode():
            model = made()
        model.loss([[1, 2, 3]]).backward()
        assert model.grad("blocks.0.attn.W_Q").abs().sum() > 0
    with torch.inference_mode():
        live = pl.to_hf(model)
    live(IDS).logits.sum().backward()
    assert live.transformer.wte.weight.grad.abs().sum() > 0


def test_ids_that_are_read_under_vmap_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "is_batched", lambda ids: False)
    with pytest.raises(RuntimeError, match="vmap"):
        test_the_loss_of_each_sample_is_that_of_its_own_run()


@pytest.mark.parametrize("switched_off", [torch.inference_mode, torch.no_grad])
def test_what_needs_gradients_records_them_whatever_is_switched_off(switched_off: Callable[[], Any]) -> None:
    model, more = support.glass(), {"metric": pl.metrics.logit(7)}

    def found() -> list[Tensor]:
        logits = model.run_with_ckpts(IDS, grads=True)[0]
        assert logits is not None
        (slope,) = torch.autograd.grad(logits, [model.embed.W_E], torch.ones_like(logits))
        by_gradient = pl.attribution.gradient(model, IDS, IDS.flip(1), "attn.ckpt_z", over=("layer",), **more)
        edges = pl.attribution.edges(model, IDS, IDS.flip(1), **more)
        lens = pl.lens.TunedLens.fit(model, [[1, 2, 3], [4, 5]], seed=0)
        return [slope, torch.as_tensor(by_gradient.values), torch.as_tensor(edges.values).nan_to_num(), lens.losses]

    plain = found()
    with switched_off():
        again = found()
    assert all(map(torch.equal, plain, again))


def test_what_was_made_in_inference_mode_is_run_with_gradients_outside(tmp_path: Path) -> None:
    model = support.glass()
    with torch.inference_mode():
        batch = model.tokenize([[1, 2, 3], [4, 5]])
        ckpts = model.run_with_ckpts(batch, names="resid_pre")[1]
        cache = pl.KeyValueCache(model.config, 2)
        model(batch, cache=cache)
        caches = [cache, cache.fork(), cache.fork()]
        caches[0].reorder(torch.tensor([1, 0]))
        caches[2].trim()
        caches[2].save(tmp_path / "cache")
        caches.append(pl.KeyValueCache.load(tmp_path / "cache"))
    model.loss(batch).backward()
    slope = model.grad("blocks.0.attn.W_Q").clone()
    model.zero_grad()
    model.loss([[1, 2, 3], [4, 5]]).backward()
    assert torch.equal(slope, model.grad("blocks.0.attn.W_Q"))
    name, value = "blocks.1.resid_pre", ckpts["blocks.1.resid_pre"]
    for runs in (
        {"start_at": (name, value)},
        {"edits": pl.Edit.scale(name, value)},
        {"edits": pl.Edit.patch(name, ckpts)},
    ):
        logits = model.run_with_ckpts(batch, grads=True, **runs)[0]
        assert logits is not None
        logits.sum().backward()
    for one in caches:
        one.rewind(0)
        assert torch.equal(model(batch, cache=one), model(batch))
