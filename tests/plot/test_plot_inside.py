"""Figures of the sampler's stages, a neuron, norms, vectors and tokens show the numbers that they say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import plot_pictures as pictures
import pytest
import torch
import xarray as xr

import pellucid as pl
import samples
import support
from pellucid.errors import InputError, PellucidError, ShapeError, UnknownNameError
from pellucid.plot import along_text, residual_stream, vectors
from pellucid.plot.vectors import principal_components

TEXTS = ["Lily had a red ball. Tom had a", "Once"]


@pytest.fixture(scope="module")
def run() -> pl.ActivationCkpts:
    """Two texts, the second padded."""
    return pl.load().run_with_ckpts(TEXTS)[1]


def every_family() -> list[Any]:
    return [pytest.param(family, id=family) for family in samples.SAMPLES]


# The sampler's stages


def test_bars_are_the_samplers_own_probabilities() -> None:
    model = pl.load()
    ids = model.tokenize(TEXTS[0]).ids[0]
    sampler = pl.Sampler(temperature=0.6, top_k=5, top_p=0.8, repetition_penalty=1.4)
    stages = sampler.explain(model.next_token_logits(TEXTS[0])[0], ids)
    ax = pl.plot.next_tokens(stages, tokenizer=model.tokenizer, most=6)
    table = pl.plot.data(ax)
    assert list(stages) == ["model", "repetition_penalty", "temperature", "top_k", "top_p"]
    assert list(table.columns) == ["id", "token", *stages]
    shown = table[table.id >= 0]
    for name, chances in stages.items():
        np.testing.assert_array_equal(shown[name], chances[shown.id.tolist()].double())
        assert table[name].sum() == pytest.approx(1, abs=1e-6)
    assert shown.token.tolist() == model.tokenizer.pieces(shown.id)
    assert shown.model.is_monotonic_decreasing
    assert table.token.iloc[-1] == "4,090 others"
    assert table.top_k.iloc[-1] == 0, "what was taken out is exactly nothing"
    longest = max(bar.get_width() for bars in ax.containers for bar in bars)
    for bars, name in zip(ax.containers, stages, strict=True):
        widths = np.array([bar.get_width() for bar in bars])[:-1]
        np.testing.assert_allclose(widths / longest, shown[name] / shown.iloc[:, 2:].to_numpy().max())


def test_rows_hold_the_largest_of_any_stage_and_what_was_drawn() -> None:
    first, last = np.array([0.6, 0.3, 0.06, 0.04]), np.array([0.0, 0.0, 0.1, 0.9])
    ids = lambda **given: pl.plot.data(pl.plot.next_tokens({"model": first, "late": last}, **given)).id.tolist()  # noqa: E731
    assert ids(most=2) == [0, 3, -1]
    assert ids(most=2, drawn=2) == [3, 2, -1] or ids(most=2, drawn=2) == [2, 3, -1]
    assert ids(most=9) == [0, 1, 2, 3]
    ax = pl.plot.next_tokens({"model": first}, drawn=1)
    assert ax.get_title("left").endswith("1 drawn")
    colours = [bar.get_facecolor() for bar in ax.containers[0]]
    assert colours[1] != colours[0] == colours[2]


def test_a_stream_brings_its_stages() -> None:
    model = pl.load()
    token = next(iter(model.stream(TEXTS[0], sampler=pl.Sampler(top_k=3), seed=1, explain=True, max_new_tokens=1)))
    ax = pl.plot.next_tokens(token.stages, tokenizer=model.tokenizer, drawn=token.id, most=3)
    assert token.id in pl.plot.data(ax).id.tolist()
    assert "–" in {text.get_text() for text in ax.texts}


# Neurons


@pytest.mark.parametrize("family", every_family())
def test_a_neuron_shows_what_it_is_made_of_and_what_it_gives(family: str) -> None:
    _, ckpts = samples.shared(family).run_with_ckpts([[5, 6, 7, 8], [9]])
    mlp = [name for name in ckpts if name.startswith("blocks.1.mlp.")]
    names = [name for name in mlp if not name.endswith("mlp_out")]
    ax = pl.plot.neuron(ckpts, 1, 3)
    table = pl.plot.data(ax)
    assert [f"blocks.1.{name}" for name in table.columns[2:]] == names
    for name in names:
        np.testing.assert_array_equal(table[name.removeprefix("blocks.1.")], ckpts[name][0, :, 3].double())
    np.testing.assert_array_equal([bar.get_height() for bar in ax.containers[0]], ckpts[names[-1]][0, :, 3].double())
    assert len(pl.plot.data(pl.plot.neuron(ckpts, 1, 3, text=1))) == 1, "pads are left out"
    assert ax.get_title("left").startswith("neuron 3 of layer 1")
    again = pl.plot.neuron(ckpts, 1 - len(ckpts.schema.blocks), 3)
    assert pl.plot.data(again).equals(table)
    assert again.get_title("left") == ax.get_title("left")


# Norms


@pytest.mark.parametrize("family", support.few_of(samples.SAMPLES, "gpt2"))
def test_densities_are_those_before_and_after_a_norm(family: str) -> None:
    model = samples.shared(family)
    _, ckpts = model.run_with_ckpts([list(range(3, 30)), [4, 5]])
    for norm in ("ln1", "ln2", "ln_final"):
        table = pl.plot.data(pl.plot.normalization(ckpts, norm, skip=1))
        last = f"blocks.{len(model.schema.blocks) - 1}"
        after = f"{last}.{norm}.ckpt_normalized" if norm != "ln_final" else "ln_final.ckpt_normalized"
        earlier = model.schema.names[: model.schema.names.index(after)]
        before = [name for name in earlier if "resid_" in name][-1]
        mask = ckpts.batch.mask & (ckpts.batch.positions > 0)
        for side, name in (("before", before), ("after", after)):
            rows = table[(table.side == side) & (table.layer == table.layer.iloc[-1])]
            edges = np.array([*rows.left, rows.right.iloc[-1]])
            numbers = ckpts[name][mask].double().numpy().ravel()
            counts, _ = np.histogram(numbers, edges)
            np.testing.assert_allclose(rows.density * np.diff(edges) * len(numbers), counts, atol=1e-9)
            assert rows.beyond.iloc[0] == pytest.approx(1 - counts.sum() / len(numbers), abs=1e-12)


def test_what_the_axis_does_not_show_is_said_and_dimensions_that_lie_apart_are_named() -> None:
    ax = pl.plot.normalization(pictures.captured(3, 40), "ln2", skip=1)
    table = pl.plot.data(ax)
    assert 0 < table.beyond.max() <= 2 * residual_stream.TAIL
    before = ax.child_axes[0]
    said = [text.get_text() for text in before.texts]
    assert all("dim 5" in words for words in said)
    assert f"at most {table[table.side == 'before'].beyond.max():.1%} beyond the axis" in before.get_xlabel()


# Vectors


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    numbers = pictures.waves(40, 7) * [9, 5, 1, 1, 1, 1, 1] + 3
    for some in (numbers, numbers[:5], numbers[:2], numbers[:1], numbers[:, :1]):
        components, explained = principal_components(some)
        centred = some - some.mean(0)
        variances = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1]
        wanted = np.clip([*variances, 0][:2], 0, None)
        np.testing.assert_allclose((components**2).sum(0), wanted, atol=1e-9)
        np.testing.assert_allclose(explained, wanted / (variances.sum() or 1), atol=1e-12)
        assert abs(components[:, 0] @ components[:, 1]) < 1e-9


def test_points_are_the_vectors_with_their_tokens(run: pl.ActivationCkpts) -> None:
    values = pl.measure.values(run, "resid_post")
    ax = pl.plot.scatter(values, colour="layer")
    table = pl.plot.data(ax)
    real = run.batch.mask
    assert len(table) == 4 * int(real.sum())
    stacked = torch.cat([run["resid_post", i][real] for i in range(4)]).double().numpy()
    wanted, explained = principal_components(stacked)
    order = np.argsort(table.layer.to_numpy(), kind="stable")
    np.testing.assert_allclose(table[["pc1", "pc2"]].to_numpy()[order], wanted, atol=1e-9)
    assert table.token.to_numpy()[order].tolist() == 4 * [token for row in run.batch.strings for token in row]
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), table[["pc1", "pc2"]])
    assert ax.get_xlabel() == f"component 1: {explained[0]:.1%} of the variance"
    assert ax.get_aspect() == 1


def test_colours_are_positions_or_any_measure(run: pl.ActivationCkpts) -> None:
    values, norms = (measure(run, "resid_post") for measure in (pl.measure.values, pl.measure.norms))
    positions = pl.plot.data(pl.plot.scatter(values.sel(layer=1)))
    assert positions.position.tolist() == [*range(len(run.batch.strings[0])), 0]
    table = pl.plot.data(pl.plot.scatter(values, colour=norms))
    np.testing.assert_array_equal(table["norm of resid_post"], norms.stack(point=norms.dims).dropna("point"))
    turned = pl.plot.data(pl.plot.scatter(values, colour=norms.transpose("pos", "layer", "batch")))
    np.testing.assert_array_equal(turned["norm of resid_post"], table["norm of resid_post"])
    embeddings = pl.load().embed.W_E
    pieces = pl.load().tokenizer.pieces(range(len(embeddings)))
    everything = pl.plot.data(pl.plot.scatter(embeddings, tokens=pieces, colour=torch.arange(len(embeddings))))
    assert everything.token.tolist() == pieces
    assert everything.colour.tolist() == list(range(len(embeddings)))


def test_labels_of_points_do_not_cover_each_other() -> None:
    ax = pl.plot.scatter(pictures.vectors(300))
    ax.get_figure().draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert 5 < len(boxes) < 300
    assert f"{len(boxes)} labelled" in ax.get_title("left").replace("\n", " ")
    covered = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.x0 < b.x1 - 2 and b.x0 < a.x1 - 2
               and a.y0 < b.y1 - 4 and b.y0 < a.y1 - 4]  # fmt: skip
    assert covered == []


# Tokens


def test_tokens_stand_on_the_colours_of_their_values() -> None:
    array = pictures.text_of(30, signed=True)
    ax = pl.plot.tokens(array)
    np.testing.assert_array_equal(pl.plot.data(ax), array)
    (bar,) = ax.child_axes
    low, high = bar.get_ylim()
    assert -low == high == float(np.abs(array).max())
    colours = ax.figure.axes[0].texts
    assert [text.get_text().replace("\\$", "$") for text in colours] == [
        pl.plot.canvas.label_of(token) for token in pictures.tokens(30)
    ]
    same = {}
    for text, value in zip(colours, array.values, strict=True):
        ground = tuple(text.get_bbox_patch().get_facecolor())
        assert (ground[3] == 0) == bool(np.isnan(value))
        same.setdefault(round(float(value), 12), set()).add(ground)
    assert all(len(grounds) == 1 for grounds in same.values())
    rows = [text.xyann[1] for text in colours]
    after = [i for i, token in enumerate(pictures.tokens(30)) if token == "\n" and i < 29]
    assert all(rows[i + 1] < rows[i] for i in after), "a line end begins a new line"


def test_tokens_do_not_overlap_and_stay_within_the_figure() -> None:
    ax = pl.plot.tokens(np.arange(90.0), tokens=["WWWWWWWWWWWW", "i", " mmm"] * 30)
    ax.get_figure().draw_without_rendering()
    boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
    for one, two in pairwise(boxes):
        assert two.y1 < one.y0 + 2 or two.x0 > one.x1 - 1
    assert max(box.x1 for box in boxes) < ax.child_axes[0].get_window_extent().x0
    assert min(box.y0 for box in boxes) > 0


def test_hostile_tokens_are_drawn_everywhere(tmp_path: Any) -> None:
    """Lone surrogates, formulas, controls, and what the font lacks; warnings are errors here."""
    hard = ["\ud800", "$x$", "\x00", "中", "\u202eabc", "", " $", "\n"]
    for ax in (pl.plot.tokens(np.arange(8.0), tokens=hard), pl.plot.scatter(pictures.waves(8, 4), tokens=hard)):
        ax.get_figure().savefig(tmp_path / "hard.png")
        shown = {text.get_text().replace("\\$", "$") for text in ax.texts}
        assert shown <= {pl.plot.canvas.label_of(token) for token in hard}


def test_pads_are_no_tokens(run: pl.ActivationCkpts) -> None:
    ax = pl.plot.tokens(pl.measure.norms(run, "resid_post").sel(layer=2, batch=1))
    assert pl.plot.data(ax).token.values.tolist() == ["Once"]
    assert "layer 2 of bundled" in ax.get_title("left")
    one = xr.DataArray([[1.5]], dims=("batch", "pos"))
    assert pl.plot.data(pl.plot.tokens(one, tokens=["a"])).values.tolist() == [1.5]


def test_an_empty_title_is_none() -> None:
    stages = {"model": [0.5, 0.5]}
    for ax in (
        pl.plot.tokens(pictures.text_of(4), title=""), pl.plot.scatter(pictures.vectors(4), title=""),
        pl.plot.examples(pictures.found(2), title=""), pl.plot.densities(pictures.shares(), title=""),
        pl.plot.next_tokens(stages, title=""), pl.plot.neuron(pictures.captured(1, 3), 0, 1, title=""),
    ):  # fmt: skip
        assert ax.get_title("left") == ""


# What cannot be drawn


@pytest.mark.parametrize(
    ("draw", "kind", "code", "says"),
    [
        (lambda run: pl.plot.next_tokens(3), InputError, "not-stages", "int"),
        (lambda run: pl.plot.next_tokens({}), InputError, "not-stages", "{}"),
        (lambda run: pl.plot.next_tokens({"model": [1.0, -3.0]}), InputError, "not-stages", "sum to 1"),
        (lambda run: pl.plot.next_tokens({"a": [1.0], "b": [0.5, 0.5]}), InputError, "not-stages", "'b': [2]"),
        (lambda run: pl.plot.next_tokens({"model": [1.0]}, drawn=1), InputError, "not-a-whole-number", "drawn=1"),
        (lambda run: pl.plot.next_tokens({"model": [1.0]}, most=0), InputError, "not-a-whole-number", "most=0"),
        (lambda run: pl.plot.neuron(3, 0, 0), InputError, "not-ckpts", "int"),
        (lambda run: pl.plot.neuron(run, 9, 0), InputError, "not-a-whole-number", "layer=9"),
        (lambda run: pl.plot.neuron(run, 0, 5000), InputError, "not-a-whole-number", "number=5000"),
        (lambda run: pl.plot.neuron(run, 0, 0, text=2), InputError, "not-a-whole-number", "text=2"),
        (lambda run: pl.plot.neuron(pictures.captured(1, 3), 0, True), InputError, "not-a-whole-number", "True"),
        (lambda run: pl.plot.normalization(run, "ln3"), InputError, "unknown-norm", "'ln3'"),
        (lambda run: pl.plot.normalization(run, skip=99), InputError, "nothing-to-draw", "skip=99"),
        (lambda run: pl.plot.normalization(pictures.captured(1, 3)), UnknownNameError, "not-captured", "resid_pre"),
        (lambda run: pl.plot.scatter([1.0]), ShapeError, "vector-axes", "expected vectors"),
        (lambda run: pl.plot.scatter(torch.ones(3, 2), tokens="abc"), ShapeError, "tokens-length", "a string"),
        (lambda run: pl.plot.scatter(torch.ones(3, 2), colour=[1.0]), ShapeError, "colours-length", "1 values"),
        (lambda run: pl.plot.scatter(torch.ones(3, 2), colour="x"), InputError, "no-such-coordinate", "'x'"),
        (lambda run: pl.plot.scatter(torch.ones(2, 2), colour=xr.DataArray(["a", "b"])), ShapeError, "not-numbers",
         "colour"),
        (lambda run: pl.plot.scatter(torch.full((2, 2), torch.inf)), InputError, "not-finite", "infinite"),
        (lambda run: pl.plot.scatter(torch.full((2, 2), torch.nan)), InputError, "nothing-to-draw", "no vectors"),
        (lambda run: pl.plot.tokens([1.0]), ShapeError, "tokens-length", "without tokens"),
        (lambda run: pl.plot.tokens([1.0], tokens=["a", "b"]), ShapeError, "tokens-length", "2 tokens for 1"),
        (lambda run: pl.plot.tokens([[1.0, 2.0], [3, 4]], tokens=["a"]), ShapeError, "text-axes", "one text"),
        (lambda run: pl.plot.tokens([np.nan], tokens=["a"]), InputError, "nothing-to-draw", "no numbers"),
    ],
)  # fmt: skip
def test_refused(run: pl.ActivationCkpts, draw: Any, kind: type[PellucidError], code: str, says: str) -> None:
    with pytest.raises(kind) as caught:
        draw(run)
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.remedy


# What reads the figures notices what breaks them


def test_the_checks_notice(run: pl.ActivationCkpts) -> None:
    """Each is a test that passes while nothing is broken."""
    cases: list[tuple[Any, Any, str, Any]] = [
        (lambda: test_a_neuron_shows_what_it_is_made_of_and_what_it_gives("llama"), along_text, "require_whole",
         lambda where, value, **bounds: 0 if "number" in where else value),
        (test_tokens_stand_on_the_colours_of_their_values, along_text, "colour_limits", lambda n: (0.0, 1.0)),
        (test_what_the_axis_does_not_show_is_said_and_dimensions_that_lie_apart_are_named, residual_stream, "_apart",
         lambda array: []),
        (test_tokens_do_not_overlap_and_stay_within_the_figure, along_text, "text_width", lambda text, size: 9.0),
        (lambda: test_points_are_the_vectors_with_their_tokens(run), vectors, "principal_components",
         lambda x: (x[:, :2], (0.5, 0.5))),
        (test_labels_of_points_do_not_cover_each_other, vectors, "longest", lambda labels: 1.0),
    ]  # fmt: skip
    for check, owner, name, broken in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(AssertionError):
                check()


def test_a_labelled_array_of_any_axes_is_a_heat_map(run: pl.ActivationCkpts) -> None:
    """A measure by layer and position, and one by layer and head, with their tokens and units."""
    norms = pl.measure.norms(run, "resid_post").sel(batch=0)
    ax = pl.plot.heatmap(norms, centre=float(norms.min()))
    ax.get_figure().draw_without_rendering()
    assert ax.get_xticklabels()[0].get_text().startswith("Lily")
    assert ax.child_axes[0].get_ylabel().startswith("residual-stream units")
    entropy = pl.measure.entropy(run)
    assert isinstance(entropy, xr.DataArray)
    assert pl.plot.heatmap(entropy).get_ylabel() == "layer"
