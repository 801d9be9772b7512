"""A path is its definition: two whole runs, written here with edits alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from loops import METRIC, everywhere, exact, two

import pellucid as pl
import support

Z = "attn.ckpt_z"


def by_definition(
    model: pl.CkptedTransformer, base: Any, source: Any, sender: tuple[int, int], receivers: list[tuple[str, int]],
    *, through: str = "mlps", metric: Any = METRIC,
) -> torch.Tensor:  # fmt: skip
    """[B]: a head speaks to heads (letter, head) of the last block, or to the logits if there are none."""
    layer, head = sender
    (_, theirs), (_, own) = model.run_with_ckpts(source), model.run_with_ckpts(base)
    held = [
        pl.Edit.replace(f"blocks.{i}.{Z}", own[f"blocks.{i}.{Z}"][:, :, h : h + 1], heads=h)
        for i in range(layer, 3) for h in range(4) if (i, h) != sender
    ]  # fmt: skip
    if through == "none":
        held += [pl.Edit.replace(f"blocks.{i}.mlp.ckpt_mlp_out", own[f"blocks.{i}.mlp.ckpt_mlp_out"]) for i in range(3)]
    held.append(pl.Edit.patch(f"blocks.{layer}.{Z}", theirs, heads=head))
    batch = model.tokenize(base)
    logits, first = model.run_with_ckpts(batch, edits=held)
    assert logits is not None
    if receivers:
        got = [pl.Edit.patch(f"blocks.2.attn.ckpt_{letter}", first, heads=h) for letter, h in receivers]
        logits = model.run(batch, edits=got)
    return metric(logits.detach(), batch)


RECEIVERS: list[list[tuple[str, int]]] = [[], [("q", 1)], [("k", 0), ("v", 3)]]


@pytest.mark.parametrize(
    ("receivers", "through"),
    support.few_of(
        itertools.product(RECEIVERS, ("mlps", "none")),
        ([], "none"),
        *((receivers, "mlps") for receivers in RECEIVERS[1:]),
    ),
)
def test_every_head_by_its_definition(receivers: list[tuple[str, int]], through: Any) -> None:
    model, (clean, corrupted) = exact(), two()
    places: Any = [(f"attn.ckpt_{letter}", {"layer": 2, "head": h}) for letter, h in receivers] or "logits"
    found = pl.patching.path(
        model, clean, corrupted, senders=(Z, {}), receivers=places, over=("layer", "head"), metric=METRIC,
        through=through, per_text=True,
    )  # fmt: skip
    for layer in range(3):
        for head in range(4):
            given = found.values[layer, head]
            if receivers and layer == 2:
                assert np.isnan(given).all(), "it comes after the receivers"
                continue
            expected = by_definition(model, corrupted, clean, (layer, head), receivers, through=through)
            np.testing.assert_allclose(given, expected.numpy(), rtol=0, atol=1e-10)
    assert float(np.nanstd(found.values)) > 1e-4


def test_texts_without_the_position_count_as_they_are() -> None:
    """In the mean over texts of unequal length, a text that has no token at a column keeps its metric."""
    model = exact()
    clean, corrupted = (model.tokenize(support.ragged_ids(3, 6, 5, seed=seed)) for seed in (0, 50))
    about: dict[str, Any] = {"senders": ("attn.ckpt_z", {"layer": 0, "head": 1}), "over": ("pos",), "metric": METRIC}
    receivers: list[Any] = [("attn.ckpt_q", {"layer": 2, "head": 0}), "logits"]
    for receiver in receivers:
        mean, each = (
            pl.patching.path(model, clean, corrupted, receivers=receiver, per_text=kept, **about)
            for kept in (False, True)
        )
        assert np.array_equal(np.isnan(each.values), ~corrupted.mask.T.numpy())
        kept = np.where(np.isnan(each.values), each.attrs["corrupted_by_text"], each.values)
        np.testing.assert_allclose(mean.values, kept.mean(-1), rtol=0, atol=1e-10)
        assert abs(float(mean[0]) - float(np.nanmean(each.values[0]))) > 1e-6


def test_parts_are_named_as_in_circuits() -> None:
    model, (clean, corrupted) = exact(), two()
    names: dict[str, tuple[Any, Any]] = {
        "a pair": ((0, 1), ("attn.ckpt_z", {"layer": 0, "head": 1})),
        "a head": ("blocks.0.attn[1]", ("attn.ckpt_z", {"layer": 0, "heads": 1})),
        "an MLP": (["blocks.0.mlp"], ("mlp.ckpt_mlp_out", {"layer": 0})),
        "embeddings": ("embeddings", ("blocks.0.resid_pre", {})),
        "several": ([(0, 1), (1, 2)], [("attn.ckpt_z", {"layer": i, "head": i + 1}) for i in (0, 1)]),
    }
    receivers: list[tuple[Any, Any]] = [
        ("blocks.2.attn.q[1]", ("attn.ckpt_q", {"layer": 2, "head": 1})),
        ("blocks.2.mlp", ("ln2.ckpt_normalized", {"layer": 2})),
    ]
    for short, long in names.values():
        for name, place in receivers:
            given = (
                pl.patching.path(model, clean, corrupted, senders=sender, receivers=receiver, metric=METRIC)
                for sender, receiver in ((short, name), (long, place))
            )
            np.testing.assert_array_equal(*(found.values for found in given))


def test_the_direct_effect_is_the_difference_through_the_final_norm() -> None:
    """W_U LN(r + (z' - z) W_O), with nothing between: no run is needed for it."""
    model, (clean, corrupted) = exact(), two()
    found = pl.patching.path(model, clean, corrupted, senders=(Z, {}), receivers="logits", over=("layer", "head"),
                             metric=METRIC, through="none")  # fmt: skip
    (_, theirs), (_, own) = model.run_with_ckpts(clean), model.run_with_ckpts(corrupted)
    for layer in range(3):
        for head in range(4):
            name = f"blocks.{layer}.{Z}"
            told = (theirs[name] - own[name])[:, :, head] @ model.parameter(f"blocks.{layer}.attn.W_O")[head]
            logits = model.unembed(model.ln_final(own["blocks.2.resid_post"] + told)).detach()
            expected = METRIC(logits, model.tokenize(corrupted)).mean()
            assert float(found[layer, head]) == pytest.approx(float(expected), abs=1e-10)


def test_noise_begins_from_the_clean_run() -> None:
    model, (clean, corrupted) = exact(), two()
    found = pl.patching.path(
        model, clean, corrupted, senders=(Z, {"layer": 0, "head": 1}),
        receivers=("attn.ckpt_q", {"layer": 2, "head": 1}), metric=everywhere, direction="noise", per_text=True,
    )  # fmt: skip
    expected = by_definition(model, clean, corrupted, (0, 1), [("q", 1)], metric=everywhere)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=0, atol=1e-10)


def test_all_that_can_speak_is_the_whole_change() -> None:
    """If everything before the last block is patched, the receivers get what they get in the other run."""
    model, (clean, corrupted) = exact(), two()
    found = pl.patching.path(
        model, clean, corrupted, senders=[("blocks.1.resid_post", {})],
        receivers=[(f"attn.ckpt_{letter}", {"layer": 2}) for letter in "qkv"], metric=METRIC,
    )  # fmt: skip
    _, theirs = model.run_with_ckpts(clean)
    edits = [pl.Edit.patch(f"blocks.2.attn.ckpt_{letter}", theirs) for letter in "qkv"]
    expected = METRIC(model.run(corrupted, edits=edits).detach(), model.tokenize(corrupted)).mean()
    assert float(found) == pytest.approx(float(expected), abs=1e-10)


def test_a_head_that_holds_a_sender_goes_on() -> None:
    """A patched query of one head changes that head's z; the other heads of the block keep theirs."""
    model, (clean, corrupted) = exact(), two()
    found = pl.patching.path(model, clean, corrupted, senders=("attn.ckpt_q", {"layer": 1, "head": 2}),
                             receivers="logits", metric=METRIC, per_text=True)  # fmt: skip
    (_, theirs), (_, own) = model.run_with_ckpts(clean), model.run_with_ckpts(corrupted)
    _, changed = model.run_with_ckpts(corrupted, edits=pl.Edit.patch("blocks.1.attn.ckpt_q", theirs, heads=2))
    held = [pl.Edit.replace(f"blocks.2.{Z}", own[f"blocks.2.{Z}"]),
            pl.Edit.patch(f"blocks.1.{Z}", changed, heads=2)]  # fmt: skip
    expected = METRIC(model.run(corrupted, edits=held).detach(), model.tokenize(corrupted))
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=0, atol=1e-10)


def test_an_mlp_that_speaks_is_not_kept() -> None:
    model, (clean, corrupted) = exact(), two()
    for through in ("mlps", "none"):
        found = pl.patching.path(model, clean, corrupted, senders=("mlp.ckpt_post", {"layer": 0, "neuron": [3, 7]}),
                                 receivers="logits", metric=METRIC, through=through, per_text=True)  # fmt: skip
        (_, theirs), (_, own) = model.run_with_ckpts(clean), model.run_with_ckpts(corrupted)
        held = [pl.Edit.replace(f"blocks.{i}.{Z}", own[f"blocks.{i}.{Z}"]) for i in range(3)]
        held.append(pl.Edit.patch("blocks.0.mlp.ckpt_post", theirs, neurons=[3, 7]))
        if through == "none":
            held += [
                pl.Edit.replace(f"blocks.{i}.mlp.ckpt_mlp_out", own[f"blocks.{i}.mlp.ckpt_mlp_out"]) for i in (1, 2)
            ]
        expected = METRIC(model.run(corrupted, edits=held).detach(), model.tokenize(corrupted))
        np.testing.assert_allclose(found.values, expected.numpy(), rtol=0, atol=1e-10)


def test_receivers_before_a_sender_keep_what_they_had() -> None:
    """Of receivers in two blocks, the earlier one hears nothing of a head that stands between them."""
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"senders": (Z, {}), "over": ("layer", "head"), "metric": METRIC, "per_text": True}
    first, middle, last = (("attn.ckpt_q", {"layer": layer, "head": 1}) for layer in range(3))
    alone = pl.patching.path(model, clean, corrupted, receivers=last, **about)
    with_the_first = pl.patching.path(model, clean, corrupted, receivers=[first, last], **about)
    np.testing.assert_allclose(with_the_first.values, alone.values, rtol=0, atol=1e-10)
    with_the_middle = pl.patching.path(model, clean, corrupted, receivers=[middle, last], **about)
    np.testing.assert_allclose(with_the_middle.values[1], alone.values[1], rtol=0, atol=1e-10)
    assert np.abs(with_the_middle.values[0] - alone.values[0]).max() > 1e-6


def test_as_many_others_speak_in_the_baseline() -> None:
    """Two heads before the receiver, whichever they are."""
    model, (clean, corrupted) = exact(n_head=2), two(1)
    about: dict[str, Any] = {"receivers": ("attn.ckpt_q", {"layer": 2, "head": 1}), "metric": METRIC}
    pairs = itertools.combinations([(0, 0), (0, 1), (1, 0), (1, 1)], 2)
    possible = [float(pl.patching.path(model, clean, corrupted, senders=list(pair), **about)) for pair in pairs]
    drawn = pl.patching.path_baseline(model, clean, corrupted, senders=[(0, 1), (1, 0)], of="heads", draws=16, **about)
    nearest = np.abs(np.subtract.outer(drawn.values, possible))
    assert nearest.min(1).max() < 1e-10
    assert len(set(nearest.argmin(1))) > 3


def test_the_baseline_of_a_path_speaks_in_other_directions() -> None:
    """Each is as long as what the head would say, and the other heads of its block are held."""
    model, (clean, corrupted) = exact(), two(1)
    name = f"blocks.0.{Z}"
    (_, theirs), (_, own) = (model.run_with_ckpts(ids, names=name) for ids in (clean, corrupted))
    seen: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, given, out: seen.append(out))
    pl.patching.path_baseline(
        model, clean, corrupted, senders=(0, 1), receivers="logits", metric=METRIC, through="none", draws=4
    )
    handle.remove()
    change = torch.cat(seen[2:]) - own[name]  # after the two plain runs
    said = (theirs[name] - own[name])[:, :, 1]
    assert change.shape[0] == 4
    assert not change[:, :, [0, 2, 3]].any()
    torch.testing.assert_close(change[:, :, 1].norm(dim=-1), said.norm(dim=-1).expand(4, -1))
    assert float(torch.cosine_similarity(change[:, 1:, 1], said[:, 1:], dim=-1).abs().max()) < 0.99
