"""Estimates by gradients: what they are, and how near the true effects they come."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from following import Case, follow, params

gradient: Any = pl.attribution.gradient

METRIC = pl.metrics.logit_difference(7, 11)
NAMES = [
    ("resid_pre", ("layer", "pos")),
    ("attn.ckpt_z", ("layer", "head")),
    ("attn.ckpt_q", ("layer", "head", "pos")),
    ("attn.ckpt_v", ("head",)),
    ("attn.ckpt_pattern", ("layer", "pos")),
    ("mlp.ckpt_mlp_out", ("layer",)),
    ("ckpt_embed", ("pos",)),
]


def exact(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(dtype=torch.float64, **fields)


def two(texts: int = 2, columns: int = 6) -> tuple[Tensor, Tensor]:
    return support.some_ids(texts, columns), support.some_ids(texts, columns, seed=5)


def some(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def embedded_near(model: pl.CkptedTransformer, share: float) -> None:
    """Make all embeddings nearly alike: runs of two texts differ so little that the metric is linear between them."""
    with torch.no_grad():
        model.embed.W_E.mul_(share).add_(0.3)


def the_same_shape_and_sign(name: str, over: tuple[str, ...], **more: Any) -> None:
    model, (clean, corrupted) = exact(), two()
    embedded_near(model, 1e-5)
    about: dict[str, Any] = {"over": over, "metric": METRIC, "per_text": True}
    swept = pl.patching.sweep(model, clean, corrupted, name, **about)
    effect = swept.values - np.asarray(swept.attrs["corrupted_by_text"])
    estimate = pl.attribution.gradient(model, clean, corrupted, name, **about, **more)
    assert estimate.dims == swept.dims
    np.testing.assert_allclose(estimate.values, effect, rtol=0, atol=1e-3 * np.abs(effect).max())


@pytest.mark.parametrize(("name", "over"), NAMES, ids=str)
def test_where_the_metric_is_linear_it_is_the_sweep(name: str, over: tuple[str, ...]) -> None:
    the_same_shape_and_sign(name, over)


@pytest.mark.parametrize("along", ["node", "inputs"])
def test_steps_where_the_metric_is_linear(along: str) -> None:
    the_same_shape_and_sign("attn.ckpt_z", ("layer", "head"), steps=3, along=along)


def test_atp_where_the_metric_is_linear() -> None:
    for name in ("attn.ckpt_q", "attn.ckpt_k"):
        the_same_shape_and_sign(name, ("layer", "head", "pos"), rules="atp")


def test_one_step_is_the_gradient_at_the_base_times_the_difference() -> None:
    model, (clean, corrupted) = exact(), two()
    direction: Any
    for direction, base, source in (("denoise", corrupted, clean), ("noise", clean, corrupted)):
        found = pl.attribution.gradient(model, clean, corrupted, "mlp.ckpt_post", over=("layer", "neuron"),
                                        metric=METRIC, direction=direction)  # fmt: skip
        logits, ckpts = model.run_with_ckpts(base, names="mlp.ckpt_post", grads=True)
        METRIC(some(logits), ckpts.batch).sum().backward()
        _, theirs = model.run_with_ckpts(source, names="mlp.ckpt_post")
        for layer in range(3):
            value = ckpts[f"blocks.{layer}.mlp.ckpt_post"]
            assert value.grad is not None
            expected = (value.grad * (theirs[f"blocks.{layer}.mlp.ckpt_post"] - value)).sum(1).mean(0)
            np.testing.assert_allclose(found.values[layer], expected.detach().numpy(), rtol=0, atol=1e-10)
        model.zero_grad()


@pytest.mark.parametrize("verb", [partial(gradient, names="attn.ckpt_z", over=("layer", "head")), pl.attribution.edges])
def test_two_runs_forward_and_one_back_are_all(verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source's run, and the base's with its gradient; a further step is a run and a gradient more."""
    model, (clean, corrupted) = exact(), two()
    runs: list[Any] = []
    backs: list[Any] = []
    model.register_forward_hook(lambda *given: runs.append(given))
    plain = torch.autograd.grad

    def grad(outputs: Tensor, *given: Any, **more: Any) -> Any:
        backs.extend([outputs] if outputs.dim() == 0 else [])  # of the metric; norms have others
        return plain(outputs, *given, **more)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    verb(model, clean, corrupted, metric=METRIC)
    assert (len(runs), len(backs)) == (2, 1)
    verb(
        model, clean, corrupted, metric=METRIC, steps=3, **({} if verb is pl.attribution.edges else {"along": "inputs"})
    )
    assert (len(runs), len(backs)) == (2 + 4, 1 + 3)


@pytest.mark.parametrize("rules", ["plain", "atp"])
@pytest.mark.parametrize("name", ["attn.ckpt_scores", "attn.ckpt_pattern", "attn.ckpt_q", "attn.ckpt_k"])
def test_where_texts_are_alike_nothing_differs_not_even_by_rounding(name: str, rules: str) -> None:
    """Asked for scores and patterns, layers attend explicitly: both runs must, and those in which a pattern changes."""
    model, clean = support.glass(), support.some_ids(2, 6)
    corrupted = torch.cat([clean[:, :3], support.some_ids(2, 3, seed=5)], 1)
    found = gradient(model, clean, corrupted, name, over=("layer", "pos"), metric=METRIC, rules=rules).values
    assert not found[:, :3].any()
    assert found[:, 3:].any()


def test_steps_along_the_node_are_left_ends() -> None:
    """A metric that is quadratic in the last stream: the mean of its gradients at 0/n ... (n-1)/n."""
    model, (clean, corrupted) = exact(), two(1)

    class Square:
        def __call__(self, logits: Tensor, batch: pl.Batch) -> Tensor:
            return METRIC(logits, batch) ** 2

    name, steps = "ln_final.ckpt_normalized", 4
    found = pl.attribution.gradient(model, clean, corrupted, name, over=(), metric=Square(), steps=steps)
    ends = [float(METRIC(model(ids).detach(), model.tokenize(ids))) for ids in (corrupted, clean)]
    each = [2 * (ends[0] + k / steps * (ends[1] - ends[0])) for k in range(steps)]
    assert float(found) == pytest.approx(np.mean(each) * (ends[1] - ends[0]), abs=1e-9)


def test_many_steps_come_to_the_effect() -> None:
    """The integral of the gradient along the way is the difference of the ends; left ends come to it with 1/steps."""
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"over": ("layer",), "metric": METRIC}
    swept = pl.patching.sweep(model, clean, corrupted, "resid_mid", **about)
    effect = swept.values - swept.attrs["corrupted"]
    off = [np.abs(gradient(model, clean, corrupted, "resid_mid", steps=n, **about).values - effect).max()
           for n in (2, 8, 32)]  # fmt: skip
    assert off[1] < 0.5 * off[0]
    assert off[2] < 0.5 * off[1]


def test_steps_along_the_inputs_sum_to_the_difference_of_the_runs() -> None:
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"over": (), "metric": METRIC, "along": "inputs"}
    off: list[float] = []
    for steps in (8, 32):
        found = pl.attribution.gradient(model, clean, corrupted, "ckpt_embed", steps=steps, **about)
        off.append(abs(float(found) - (found.attrs["clean"] - found.attrs["corrupted"])))
    assert off[1] < 0.5 * off[0]


def test_room_is_taken_for_all_that_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """By "atp" keys and patterns, too, though queries alone are asked for."""
    gradients: Any = importlib.import_module("pellucid.attribution.gradient")
    asked: dict[str, set[str]] = {}
    for rules in ("plain", "atp"):
        told = asked.setdefault(rules, set())
        monkeypatch.setattr(gradients, "require_room", lambda *given, told=told: told.update(given[3]) or 10**9)
        _call(exact(), rules=rules)
    edges: Any = importlib.import_module("pellucid.attribution.edges")
    monkeypatch.setattr(edges, "require_room", lambda *given: asked.setdefault("edges", set()).update(given[3]))
    _, kept = edges._run(exact(), exact().tokenize(two()[0]), ("ckpt_embed", *edges.written_in(exact().schema)))
    pl.attribution.edges(exact(), *two(), metric=METRIC)
    assert asked["edges"] == {*kept}
    assert asked["plain"] == {f"blocks.{layer}.attn.ckpt_q" for layer in range(3)}
    assert asked["atp"] == {f"blocks.{layer}.attn.ckpt_{one}" for layer in range(3) for one in ("q", "k", "pattern")}


def test_softmax_is_gone_through_for_queries_and_keys() -> None:
    """(A(q') - A) . dm/dA, A(q') from a run in which the cell is patched."""
    model, (clean, corrupted) = exact(), two()
    for letter, part in (("q", {"pos": 4}), ("k", {"pos": 2}), ("k", {})):
        found = gradient(
            model, clean, corrupted, f"attn.ckpt_{letter}", over=("layer", "head"), metric=METRIC, rules="atp",
            per_text=True, **part,
        )  # fmt: skip
        logits, ckpts = model.run_with_ckpts(corrupted, names="pattern", grads=True)
        METRIC(some(logits), ckpts.batch).sum().backward()
        _, theirs = model.run_with_ckpts(clean)
        for layer in range(3):
            pattern = ckpts[f"blocks.{layer}.attn.ckpt_pattern"]
            assert pattern.grad is not None
            for head in range(4):
                edit = pl.Edit.patch(f"blocks.{layer}.attn.ckpt_{letter}", theirs, heads=head, **part)
                _, changed = model.run_with_ckpts(corrupted, names=f"blocks.{layer}.attn.ckpt_pattern", edits=edit)
                change = changed[f"blocks.{layer}.attn.ckpt_pattern"] - pattern.detach()
                expected = (change * pattern.grad).flatten(1).sum(1)
                np.testing.assert_allclose(found.values[layer, head], expected.numpy(), rtol=0, atol=1e-10)
        model.zero_grad()


def test_a_check_states_the_error() -> None:
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"over": ("layer", "head"), "metric": METRIC}
    found = pl.attribution.gradient(model, clean, corrupted, "attn.ckpt_z", check=12, **about)
    swept = pl.patching.sweep(model, clean, corrupted, "attn.ckpt_z", **about)
    effects = (swept.values - swept.attrs["corrupted"]).ravel()
    true, estimate = np.array(found.attrs["check_true"]), np.array(found.attrs["check_estimate"])
    np.testing.assert_allclose(sorted(true), sorted(effects), rtol=0, atol=1e-10)
    np.testing.assert_allclose(sorted(estimate), sorted(found.values.ravel()), rtol=0, atol=1e-10)
    assert found.attrs["check_correlation"] == pytest.approx(np.corrcoef(effects, found.values.ravel())[0, 1])
    assert found.attrs["check_error"] == pytest.approx(np.sqrt(((effects - found.values.ravel()) ** 2).mean()))
    some = pl.attribution.gradient(model, clean, corrupted, "attn.ckpt_z", check=3, **about)
    assert len(some.attrs["check_true"]) == 3
    assert set(np.round(some.attrs["check_true"], 9)) <= set(np.round(true, 9))


def test_no_gradient_is_left_on_the_model() -> None:
    model, (clean, corrupted) = exact(), two()
    pl.attribution.gradient(model, clean, corrupted, "resid_pre", over=("layer",), metric=METRIC, steps=2)
    pl.attribution.edges(model, clean, corrupted, metric=METRIC)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_models_have_gradients_at_their_values() -> None:
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"over": ("layer", "pos"), "metric": METRIC}
    plain = pl.attribution.gradient(model, clean, corrupted, "resid_pre", **about)
    frozen = pl.attribution.gradient(model.requires_grad_(False), clean, corrupted, "resid_pre", **about)
    np.testing.assert_allclose(frozen.values, plain.values, rtol=0, atol=1e-10)


def test_texts_without_the_position_count_as_no_change() -> None:
    model, rows = exact(), [support.ragged_ids(3, 6, seed=seed) for seed in (0, 50)]
    about: dict[str, Any] = {"over": ("pos",), "metric": METRIC}
    each = pl.attribution.gradient(model, *rows, "resid_mid", per_text=True, **about)
    mean = pl.attribution.gradient(model, *rows, "resid_mid", **about)
    assert np.isnan(each.values).any()
    np.testing.assert_allclose(mean.values, np.nan_to_num(each.values).mean(-1), rtol=0, atol=1e-10)


def test_texts_of_unequal_length_by_their_parts() -> None:
    model = exact()
    clean, corrupted = support.ragged_ids(7, 6, seed=1), support.ragged_ids(5, 6, seed=9)
    roles = pl.patching.align(model, clean, corrupted, {"third": ([2, 3], [1, 2]), "end": (-1, -1)})
    found = pl.attribution.gradient(model, clean, corrupted, "resid_mid", over=("layer", "pos"), metric=METRIC,
                                    align=roles, per_text=True)  # fmt: skip
    assert found["pos"].values.tolist() == ["third", "end"]
    for text in range(2):
        logits, ckpts = model.run_with_ckpts([corrupted[text]], names="resid_mid", grads=True)
        METRIC(some(logits), ckpts.batch).sum().backward()
        _, theirs = model.run_with_ckpts([clean[text]], names="resid_mid")
        for layer in range(3):
            value = ckpts[f"blocks.{layer}.resid_mid"]
            for number, (taken, into) in enumerate((((2, 3)[text], (1, 2)[text]), (-1, -1))):
                change = theirs[f"blocks.{layer}.resid_mid"][0, taken] - value[0, into]
                expected = float((change * some(value.grad)[0, into]).sum().detach())
                assert found.values[layer, number, text] == pytest.approx(expected, abs=1e-10)


def at_the_source(plain: Any) -> Any:
    return lambda self, name: -plain(self, name)


def test_a_wrong_sign_is_noticed() -> None:
    owner: Any = importlib.import_module("pellucid.attribution.gradient").Gradients
    the_same_shape_and_sign("resid_pre", ("layer", "pos"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "_difference", at_the_source(owner._difference))
        with pytest.raises(AssertionError):
            the_same_shape_and_sign("resid_pre", ("layer", "pos"))


CLEAN, CORRUPTED = two(1)


def _call(here: Any, **more: Any) -> Any:
    return gradient(here, CLEAN, CORRUPTED, "attn.ckpt_q", **{"over": ("layer",), "metric": METRIC, **more})


def _number(logits: Tensor, batch: pl.Batch) -> Tensor:
    return logits[:, -1].argmax(-1).double()


def _smooth(logits: Tensor, batch: pl.Batch) -> Tensor:
    return logits[:, -1].softmax(-1).amax(-1)


def _edges(here: Any, clean: Tensor) -> Any:
    return pl.attribution.edges(here, clean, CORRUPTED, metric=METRIC)


REMEDIES: dict[str, list[Case]] = {
    "gradient-along": [Case(lambda h: _call(h, along="input"), "along='node'", lambda h: _call(h, along="inputs"))],
    "gradient-rules": [
        Case(lambda h: _call(h, rules="lrp"), "rules='plain'", lambda h: _call(h, rules="plain")),
        Case(lambda h: _call(h, rules="atp", steps=2), "Leave steps out", lambda h: _call(h, rules="atp")),
    ],
    "metric-without-gradient": [
        Case(lambda h: _call(h, metric=_number), "without .detach(), argmax", lambda h: _call(h, metric=_smooth)),
    ],
    "texts-of-unequal-length": [
        Case(lambda h: _edges(h, torch.cat([CLEAN, CLEAN], 1)), "equal length", lambda h: _edges(h, CLEAN)),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_the_remedy_says_works(code: str, case: Case) -> None:
    follow(code, case, exact())


def finite_difference(f: Callable[[float], float]) -> float:
    return (f(1e-4) - f(-1e-4)) / 2e-4


def test_an_edge_is_the_derivative_through_one_reader_alone() -> None:
    """Of the metric when only that reader gets a little of what the sender writes otherwise."""
    model, (clean, corrupted) = exact(), two(1)
    scores = pl.attribution.edges(model, clean, corrupted, metric=METRIC)
    (_, theirs), (_, own) = model.run_with_ckpts(clean), model.run_with_ckpts(corrupted)
    head = (theirs["blocks.0.attn.ckpt_z"] - own["blocks.0.attn.ckpt_z"])[:, :, 2]
    told = {
        "embeddings": theirs["blocks.0.resid_pre"] - own["blocks.0.resid_pre"],
        "blocks.0.attn[2]": head @ model.parameter("blocks.0.attn.W_O")[2],
        "blocks.1.mlp": theirs["blocks.1.mlp.ckpt_mlp_out"] - own["blocks.1.mlp.ckpt_mlp_out"],
    }

    def measured(edit: pl.Edit) -> float:
        return float(METRIC(model.run(corrupted, edits=edit).detach(), model.tokenize(corrupted)))

    def reader(letter: str, number: int, said: Tensor) -> Callable[[float], float]:
        block = model.get_submodule("blocks.2")
        weight, bias = (model.parameter(f"blocks.2.attn.{kind}_{letter.upper()}")[number] for kind in "Wb")

        def f(share: float) -> float:
            value = block.ln1(own["blocks.2.resid_pre"] + share * said) @ weight + bias  # pyright: ignore[reportCallIssue]
            return measured(pl.Edit.replace(f"blocks.2.attn.ckpt_{letter}", value[:, :, None].detach(), heads=number))

        return f

    def mlp(said: Tensor) -> Callable[[float], float]:
        block = model.get_submodule("blocks.2")
        return lambda share: measured(pl.Edit.replace(
            "blocks.2.mlp.ckpt_mlp_out",
            block.mlp(block.ln2(own["blocks.2.resid_mid"] + share * said)).detach(),  # pyright: ignore[reportCallIssue]
        ))  # fmt: skip

    for sender, said in told.items():
        for receiver, f in {
            "blocks.2.attn.q[1]": reader("q", 1, said), "blocks.2.attn.k[3]": reader("k", 3, said),
            "blocks.2.attn.v[0]": reader("v", 0, said), "blocks.2.mlp": mlp(said),
            "logits": lambda share, said=said: measured(pl.Edit.add("blocks.2.resid_post", share * said)),
        }.items():  # fmt: skip
            score = float(scores.sel(sender=sender, receiver=receiver))
            assert score == pytest.approx(finite_difference(f), rel=1e-5, abs=1e-7), (sender, receiver)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_edges_of_a_sender_sum_to_the_gradient_at_what_it_writes(steps: int) -> None:
    """The chain rule: all that a part does, it does through those that read it."""
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"metric": METRIC, "steps": steps}
    sums = pl.attribution.edges(model, clean, corrupted, **about).sum("receiver")
    more: dict[str, Any] = {**about, "along": "inputs"}
    heads = pl.attribution.gradient(model, clean, corrupted, "attn.ckpt_z", over=("layer", "head"), **more)
    mlps = pl.attribution.gradient(model, clean, corrupted, "mlp.ckpt_mlp_out", over=("layer",), **more)
    first = pl.attribution.gradient(model, clean, corrupted, "blocks.0.resid_pre", over=(), **more)
    for layer in range(3):
        assert float(sums.sel(sender=f"blocks.{layer}.mlp")) == pytest.approx(float(mlps[layer]), abs=1e-9)
        for head in range(4):
            found = float(sums.sel(sender=f"blocks.{layer}.attn[{head}]"))
            assert found == pytest.approx(float(heads[layer, head]), abs=1e-9)
    assert float(sums.sel(sender="embeddings")) == pytest.approx(float(first), abs=1e-9)


def test_what_does_not_come_before_is_missing() -> None:
    model, (clean, corrupted) = exact(), two()
    scores = pl.attribution.edges(model, clean, corrupted, metric=METRIC)
    missing = scores.isnull()
    assert not bool(missing.sel(receiver="logits").any())
    assert not bool(missing.sel(sender="embeddings").any())
    assert bool(missing.sel(sender="blocks.1.attn[0]", receiver="blocks.1.attn.q[2]"))
    assert not bool(missing.sel(sender="blocks.1.attn[0]", receiver="blocks.1.mlp"))
    assert bool(missing.sel(sender="blocks.1.mlp", receiver="blocks.1.mlp"))
    assert not bool(missing.sel(sender="blocks.1.mlp", receiver="blocks.2.attn.v[3]"))
    assert int(missing.sum()) == sum((4 * (3 * 4 * (i + 1) + i)) + (3 * 4 * (i + 1) + i + 1) for i in range(3))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_check_of_edges_patches_them(direction: Any) -> None:
    """Where the metric is linear, the true effect of every edge is its score."""
    model, (clean, corrupted) = exact(n_layer=2, n_head=2), two()
    embedded_near(model, 1e-5)
    found = pl.attribution.edges(model, clean, corrupted, metric=METRIC, direction=direction, check=1000)
    true, estimate = np.array(found.attrs["check_true"]), np.array(found.attrs["check_estimate"])
    assert sorted(estimate) == sorted(found.values[~np.isnan(found.values)])
    np.testing.assert_allclose(estimate, true, rtol=0, atol=1e-3 * np.abs(true).max())
    some = pl.attribution.edges(model, clean, corrupted, metric=METRIC, direction=direction, check=5, seed=1)
    assert len(some.attrs["check_true"]) == 5
