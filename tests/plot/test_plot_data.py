"""What is drawn is what was measured, and `data` gives it: read back from the figure and computed again by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import plot_pictures as pictures
import pytest
import torch
import xarray as xr
from matplotlib.collections import PathCollection

import pellucid as pl
from pellucid.errors import InputError, PellucidError, ShapeError
from pellucid.plot import inputs, layers, matrix, patterns, residual_stream, summaries

STORIES = ["Once upon a time there was a cat. She had a red ball.", "The end of it"]


@pytest.fixture(scope="module")
def run() -> pl.ActivationCkpts:
    """Two texts of unequal length, padded on the left."""
    names = ["blocks.*.attn.ckpt_attn_out", "blocks.*.attn.ckpt_pattern", "blocks.*.resid_post", "ckpt_embed"]
    return pl.load().run_with_ckpts(STORIES, names=names)[1]


@pytest.fixture(scope="module")
def norms(run: pl.ActivationCkpts) -> xr.DataArray:
    return pl.measure.norms(run, "attn.ckpt_attn_out", log=True)


def by_hand(run: pl.ActivationCkpts, skip: int) -> list[np.ndarray]:
    """Per layer the logarithms of the norms, pads and the first tokens of each text left out."""
    found = []
    for value in run.stack("attn.ckpt_attn_out"):
        rows = [row[mask][skip:] for row, mask in zip(value, run.batch.mask, strict=True)]
        found.append(torch.cat(rows).double().norm(dim=-1).log().numpy())
    return found


# Norms


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_norms_draws_each_real_token_once(run: pl.ActivationCkpts, norms: xr.DataArray, skip: int) -> None:
    ax = pl.plot.norms(norms, skip=skip)
    drawn = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    for layer, (offsets, expected) in enumerate(zip(drawn, by_hand(run, skip), strict=True)):
        assert len(offsets) == len(expected)
        assert np.allclose(np.sort(offsets[:, 1]), np.sort(expected), rtol=1e-6)  # the model's norms are float32
        assert np.abs(offsets[:, 0] - layer).max() <= 0.4
    assert ax.get_ylabel() == "log norm of attn_out"
    data = pl.plot.data(ax)
    assert data.dims == norms.dims
    assert int(data.count()) == sum(map(len, by_hand(run, skip)))
    xr.testing.assert_equal(data, norms.where(data.notnull()))


def test_skip_counts_from_each_text_whatever_side_the_pads_are_on() -> None:
    values = np.arange(1.0, 13).reshape(1, 2, 6)
    left, right = values.copy(), values.copy()
    left[0, 1, :4], right[0, 1, 2:] = np.nan, np.nan
    for padded, kept in ((left, [12.0]), (right, [8.0])):
        array = xr.DataArray(padded, dims=("layer", "batch", "pos"))
        drawn = inputs.by_layer("test", array, 1).values[0].tolist()
        assert drawn == [2.0, 3.0, 4.0, 5.0, 6.0, *kept]
        assert inputs.by_layer("test", array[:, 1], 1).values[0].tolist() == kept


def test_skip_counts_positions_where_columns_were_chosen() -> None:
    model = pl.load()
    _, ckpts = model.run_with_ckpts(STORIES, names="blocks.*.resid_post", pos=slice(2, None))
    norms = pl.measure.norms(ckpts, "resid_post")
    data = pl.plot.data(pl.plot.norms(norms, skip=3))
    assert np.array_equal(data.notnull().values[0], norms.position.values >= 3)
    assert int(data.isel(layer=0, batch=0).count()) == int(ckpts.batch.mask[0].sum()) - 3


def test_points_are_spread_by_density_and_never_into_the_next_layer() -> None:
    values = np.concatenate([np.zeros(50), np.linspace(-3, 3, 20)])
    places = layers.spread(values)
    assert np.abs(places).max() < 0.5
    assert np.ptp(places[:50]) > 0.7
    assert np.ptp(places[50:52]) < 0.2
    assert np.array_equal(places, layers.spread(values))
    assert len(set(places[:50].round(6))) == 50
    assert layers.spread(np.zeros(1)).tolist() == [0.0]


@pytest.mark.parametrize(("layers", "positions", "points_drawn"), [(12, 1000, True), (48, 1000, False), (48, 20, True)])
def test_many_points_become_quantiles(layers: int, positions: int, points_drawn: bool) -> None:
    ax = pl.plot.norms(pictures.measured(layers, positions))
    drawn = sum(len(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection))
    assert (drawn == layers * positions) == points_drawn
    if not points_drawn:
        assert 0 < drawn < 0.05 * layers * positions
        values = pictures.measured(layers, positions).to_numpy()[:, 0]
        whisker, box = [np.array(c.get_segments())[:, :, 1] for c in ax.collections[:2]]
        assert np.allclose(whisker.T, np.quantile(values, [0.01, 0.99], axis=1))
        assert np.allclose(box.T, np.quantile(values, [0.25, 0.75], axis=1))


def test_axes_without_layers_and_with_heads_are_pooled() -> None:
    heads = xr.DataArray(np.random.RandomState(0).rand(3, 2, 5, 4), dims=("layer", "batch", "pos", "head"))
    assert [len(values) for values in inputs.by_layer("test", heads, 1).values] == [32] * 3
    ax = pl.plot.norms(heads[0].drop_vars("layer", errors="ignore"))
    assert ax.get_xlabel() == ""
    assert list(ax.get_xticks()) == []


# Distributions


def test_histograms_are_those_of_numpy(norms: xr.DataArray, run: pl.ActivationCkpts) -> None:
    ax = pl.plot.norm_histograms(norms, skip=1)
    table = pl.plot.data(ax)
    for (layer, rows), values, line in zip(table.groupby("layer"), by_hand(run, 1), ax.patches, strict=True):
        counts, edges = np.histogram(values, bins="fd")
        assert rows["count"].tolist() == counts.tolist(), layer
        assert np.allclose(rows["left"], edges[:-1], rtol=1e-6)
        assert np.allclose(rows["right"], edges[1:], rtol=1e-6)
        drawn = line.get_data()
        assert np.allclose(drawn.edges, edges, rtol=1e-6)
        assert drawn.values.tolist() == counts.tolist()


def test_a_density_sums_to_one_and_one_far_value_makes_no_thousands_of_bins() -> None:
    table = pl.plot.data(pl.plot.norm_histograms(pictures.measured(3, 200), density=True))
    area = (table["density"] * (table["right"] - table["left"])).groupby(table["layer"]).sum()
    assert np.allclose(area, 1)
    far = np.append(np.linspace(0, 1, 1000), 1e9)
    assert len(layers._edges(far)) == layers.BINS_AT_MOST + 1
    assert len(layers._edges(np.ones(5))) == 2
    assert len(layers._edges(np.array([0.0] * 30 + [1e-320] * 60 + [1.0] * 10))) == layers.BINS_AT_MOST + 1


def test_strips_show_each_bin_where_it_is() -> None:
    values = pictures.measured(20, 300)
    strips = pl.plot.norm_histograms(values).collections
    assert len(strips) == 20
    for layer, strip in enumerate(strips):
        counts, edges = np.histogram(values.to_numpy()[layer].ravel(), bins="fd")
        corners = strip.get_coordinates()
        assert np.array_equal(corners[0, :, 0], edges)
        assert corners[:, 0, 1].tolist() == [layer - 0.5, layer + 0.5]
        assert strip.get_array().ravel().tolist() == counts.tolist()
        assert strip.get_clim() == strips[0].get_clim(), "one colour means one count"


def test_ridges_are_the_densities_that_measure_gives(norms: xr.DataArray, run: pl.ActivationCkpts) -> None:
    from scipy.stats import gaussian_kde

    table = pl.plot.data(pl.plot.ridges(norms, skip=1))
    for (_, rows), values in zip(table.groupby("layer"), by_hand(run, 1), strict=True):
        low, high = np.quantile(values, [0.25, 0.75])
        width = 0.9 * min(values.std(ddof=1), (high - low) / 1.34) * len(values) ** -0.2
        kernel = gaussian_kde(values, bw_method=width / values.std(ddof=1))
        assert np.allclose(rows["density"], kernel(rows["value"]), rtol=1e-4, atol=1e-6)  # norms are float32
        assert np.isclose(np.trapezoid(rows["density"], rows["value"]), 1, atol=5e-3)  # 3 bandwidths, 200 places


def test_ridges_of_what_does_not_vary_are_spikes() -> None:
    array = xr.DataArray([[1.0, 1.0], [2.0, 3.0]], dims=("layer", "batch"))
    table = pl.plot.data(pl.plot.ridges(array))
    spike = table[table["layer"] == 0]
    assert spike["value"].iloc[1] == 1.0
    assert np.isclose(np.trapezoid(spike["density"], spike["value"]), 1)


# Growth


def test_growth_shows_medians_of_the_others_and_the_first_token(run: pl.ActivationCkpts) -> None:
    norms = pl.measure.norms(run, "resid_post")
    ax = pl.plot.residual_growth(norms)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    values = run.stack("resid_post").double().norm(dim=-1).numpy()
    first = run.batch.mask.int().argmax(-1).numpy()
    firsts = values[:, [0, 1], first]
    others = np.concatenate([values[:, row, at + 1 :] for row, at in enumerate(first)], axis=1)
    assert np.allclose(lines["first token"], np.median(firsts, 1), rtol=1e-6)
    assert np.allclose(lines["median"], np.median(others, 1), rtol=1e-6)
    assert sum(len(line.get_xdata()) == 4 for line in ax.lines) == others.shape[1] + 2
    xr.testing.assert_equal(pl.plot.data(ax), norms)
    without = pl.plot.residual_growth(norms, skip=1)
    assert "first token" not in without.get_legend_handles_labels()[1]
    assert ax.get_yscale() == "log"
    logs = pl.plot.residual_growth(pl.measure.norms(run, "resid_post", log=True))
    assert logs.get_yscale() == "linear"


def test_growth_where_the_first_tokens_were_not_captured() -> None:
    _, ckpts = pl.load().run_with_ckpts(STORIES, names="blocks.*.resid_post", pos=-1)
    ax = pl.plot.residual_growth(pl.measure.norms(ckpts, "resid_post"))
    assert ax.get_legend_handles_labels()[1] == ["a token", "median"]


def test_growth_of_many_tokens_is_a_band_of_quantiles() -> None:
    norms = pictures.measured(5, 300, log=False)
    ax = pl.plot.residual_growth(norms)
    values = norms.to_numpy()[:, 0, 1:]
    low, high = np.quantile(values[3], [0.05, 0.95])
    band = ax.collections[0].get_paths()[0].vertices
    at_three = band[band[:, 0] == 3][:, 1]
    assert np.isclose(at_three.min(), low)
    assert np.isclose(at_three.max(), high)


# Coefficients


@pytest.fixture(scope="module")
def fit(norms: xr.DataArray) -> Any:
    return pl.measure.autoregression(norms, lags=2, skip=1)


def test_coefficients_are_those_of_the_fit(fit: Any) -> None:
    ax = pl.plot.autoregression(fit)
    table = pl.plot.data(ax)
    assert table["term"].unique().tolist() == ["lag1", "lag2"]
    for term, rows in table.groupby("term"):
        assert np.array_equal(rows["coefficient"], fit.params[term])
        assert np.array_equal(rows[["low", "high"]], fit.conf_int[term])
        assert np.array_equal(rows["significant"], fit.pvalues[term] < 0.05)
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 4]
    for line, term in zip(lines, ("lag1", "lag2"), strict=True):
        assert np.array_equal(line.get_ydata(), fit.params[term])
    filled = [
        point
        for line in ax.lines
        if line.get_marker() in "so" and line.get_markerfacecolor() == line.get_color()
        for point in line.get_ydata()
    ]
    assert sorted(filled) == sorted(table["coefficient"][table["significant"]])


def test_another_alpha_and_other_pvalues(fit: Any) -> None:
    table = pl.plot.data(pl.plot.autoregression(fit, alpha=0.2, pvalues=fit.corrected("holm"), terms="const"))
    assert np.array_equal(table["significant"], fit.corrected("holm")["const"] < 0.2)
    assert np.allclose(table[["low", "high"]], fit.interval(0.8)["const"])
    made_up = pictures.fitted(3)
    assert not pl.plot.data(pl.plot.autoregression(made_up, pvalues=made_up.pvalues * 0 + 1))["significant"].any()


def test_a_layer_that_could_not_be_fitted_is_a_gap(norms: xr.DataArray) -> None:
    constant = norms.copy(data=norms.to_numpy().copy())
    constant[1] = constant[1].where(constant[1].isnull(), 2.0)
    table = pl.plot.data(pl.plot.autoregression(pl.measure.autoregression(constant, skip=1)))
    assert table["coefficient"].isna().tolist() == [False, True, False, False] * 2
    assert not table["significant"][table["coefficient"].isna()].any()


# Attention


@pytest.mark.parametrize(
    "given",
    [
        lambda run: run["blocks.2.attn.ckpt_pattern"][0, 1],
        lambda run: run["blocks.2.attn.ckpt_pattern"][:1, 1:2],
        lambda run: run["blocks.2.attn.ckpt_pattern"][0, 1].tolist(),
        lambda run: run["blocks.2.attn.ckpt_pattern"][0, 1].bfloat16().requires_grad_(),
        lambda run: run.to_xarray()["attn.ckpt_pattern"].sel(layer=2, batch=0, head=1),
        lambda run: pl.measure.values(run, "attn.ckpt_pattern").sel(layer=2, batch=0, head=1),
    ],
)
def test_a_pattern_in_every_form_is_the_same_picture(run: pl.ActivationCkpts, given: Any) -> None:
    expected = run["blocks.2.attn.ckpt_pattern"][0, 1].numpy().copy()
    expected[np.triu_indices(len(expected), 1)] = np.nan
    ax = pl.plot.attention(given(run))
    data = pl.plot.data(ax)
    assert data.dims == ("query", "key")
    assert np.allclose(data, expected, atol=2**-8, equal_nan=True)  # bfloat16 has 8 bits
    assert np.array_equal(np.ma.filled(ax.images[0].get_array(), np.nan), data, equal_nan=True)


@pytest.mark.parametrize(
    "read", [lambda run: run.to_xarray()["attn.ckpt_pattern"], lambda run: pl.measure.values(run, "attn.ckpt_pattern")]
)
def test_labelled_patterns_bring_their_tokens_and_leave_pads_out(run: pl.ActivationCkpts, read: Any) -> None:
    ax = pl.plot.attention(read(run).sel(layer=0, batch=1, head=0))
    expected = ["The", "·end", "·of", "·it"]
    assert [label.get_text() for label in ax.get_xticklabels()] == expected
    assert [label.get_text() for label in ax.get_yticklabels()] == expected
    pattern = run["blocks.0.attn.ckpt_pattern"][1, 0, -4:, -4:].numpy()
    assert np.allclose(np.nan_to_num(pl.plot.data(ax)), pattern)
    grid = pl.plot.data(pl.plot.attention_grid(read(run).sel(batch=1)))
    assert dict(grid.sizes) == {"layer": 4, "head": 4, "query": 4, "key": 4}
    assert np.allclose(np.nan_to_num(grid), run.stack("attn.ckpt_pattern")[:, 1, :, -4:, -4:])


def test_each_head_of_a_grid_stands_in_its_place() -> None:
    weights = pictures.patterns(3, 4, 6)
    ax = pl.plot.attention_grid(weights, tokens=pictures.tokens(6))
    assert len(ax.images) == 12
    for number, image in enumerate(ax.images):
        layer, head = divmod(number, 4)
        left, right, bottom, top = image.get_extent()
        assert np.allclose((left, right), (1.1 * head, 1.1 * head + 1))
        assert np.allclose((top, bottom), (1.1 * layer, 1.1 * layer + 1))
        assert np.allclose(np.nan_to_num(np.ma.filled(image.get_array(), 0)), weights[layer, head])


def test_long_texts_merge_into_the_largest_of_their_blocks() -> None:
    weights = pictures.patterns(1, 1, 500)[0, 0]
    ax = pl.plot.attention(weights)
    cells = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert cells.shape == (250, 250)
    assert cells[100, 7] == weights[200:202, 14:16].max()
    assert ax.get_xlim() == (-0.5, 499.5)
    assert ax.images[0].get_extent() == [-0.5, 499.5, 499.5, -0.5]


@pytest.mark.parametrize(
    ("count", "dots", "block"), [(1, 100, 1), (100, 100, 1), (101, 100, 2), (1024, 1e4, 4), (3, 0, 3)]
)
def test_blocks(count: int, dots: float, block: int) -> None:
    assert patterns.block_size(count, dots) == block


def test_blocks_of_unequal_size_and_of_nothing() -> None:
    matrix = np.array([[1.0, np.nan, 3.0], [4.0, np.nan, 2.0], [np.nan, np.nan, np.nan]])
    assert np.array_equal(patterns.largest_of_blocks(matrix, 2), [[4.0, 3.0], [np.nan, np.nan]], equal_nan=True)
    assert patterns.largest_of_blocks(matrix, 1) is matrix


def test_attention_that_looks_ahead_is_shown_whole() -> None:
    both_ways = np.full((3, 3), 1 / 3)
    assert not np.isnan(pl.plot.data(pl.plot.attention(both_ways))).any()


def test_the_last_queries_alone() -> None:
    weights = pictures.patterns(1, 1, 5)[0, 0]
    data = pl.plot.data(pl.plot.attention(weights[-2:], tokens=list("abcde")))
    assert data.query_token.values.tolist() == ["d", "e"]
    assert np.isnan(data[0, 4])
    assert int(np.isnan(data).sum()) == 1


def test_wide_patterns_are_not_made_wider() -> None:
    """All patterns of gpt2-small on 1,024 tokens are 604 MB in float32."""
    weights = torch.full((2, 2, 3, 3), 1 / 3)
    assert pl.plot.data(pl.plot.attention_grid(weights)).dtype == np.float32
    assert pl.plot.data(pl.plot.attention_grid(weights.double())).dtype == np.float64
    assert inputs.as_numbers("test", torch.tensor([2**24 + 1])).tolist() == [2**24 + 1]


# Heads and parameters


def test_scores_are_drawn_layer_by_head(run: pl.ActivationCkpts) -> None:
    measured = pl.measure.previous_token(run)
    ax = pl.plot.head_scores(measured)
    assert np.array_equal(ax.images[0].get_array(), measured)
    assert np.array_equal(pl.plot.data(ax), measured)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written[2, 3] == f"{measured.sel(layer=3, head=2).item():.2f}"
    assert pl.plot.data(pl.plot.head_scores(torch.rand(2, 3))).sel(layer=1, head=2).ndim == 0


@pytest.mark.parametrize(
    ("scores", "limits"),
    [
        ([[0.1, 0.9]], (0, 1)),
        ([[0.1, 0.2]], (0, 0.2)),
        ([[-3.0, 1.0]], (-3, 3)),
        ([[7.0, np.nan]], (0, 7)),
        ([[0.0]], (0, 1)),
    ],
)
def test_colours_begin_at_zero(scores: list[list[float]], limits: tuple[float, float]) -> None:
    assert pl.plot.head_scores(scores).images[0].get_clim() == limits


def test_what_is_written_as_zero_has_no_sign() -> None:
    ax = pl.plot.head_scores([[-0.001, 1.0]])
    assert [text.get_text() for text in ax.texts] == ["0.00", "1.00"]


def test_effects_are_drawn_about_what_was_without_a_change() -> None:
    array = pictures.effects(3, 6)
    ax = pl.plot.heatmap(array)
    np.testing.assert_array_equal(ax.images[0].get_array(), array)
    np.testing.assert_array_equal(pl.plot.data(ax), array)
    reach = float(np.abs(array + 3.5).max())
    assert ax.images[0].get_clim() == (-3.5 - reach, -3.5 + reach)
    assert ax.get_title(loc="left") == "resid_pre, clean into corrupted\nlogit difference of ' \\$5', ' a' at -1"
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written[4, 2] == f"{float(array[2, 4]):.2f}"
    ax.get_figure().draw_without_rendering()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Once", "·upon", "·a", "·time", ",", "·there"]
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "logits, centre -3.5"


def test_a_centre_and_a_title_are_those_given() -> None:
    ax = pl.plot.heatmap(pictures.effects(3, 6), centre=torch.tensor(1), title="mine")
    low, high = ax.images[0].get_clim()
    assert (low + high) / 2 == 1
    assert ax.get_title(loc="left") == "mine"
    assert pl.plot.heatmap([[1.0, 4.0]]).images[0].get_clim() == (-4, 4)
    for blocks in (3, 1):
        assert pl.plot.heatmap(pictures.effects(blocks, 6).expand_dims("checkpoint")).get_ylabel() == "layer"


def test_bars_are_the_parts_and_end_in_their_sum() -> None:
    parts = pictures.parts(30)
    ax = pl.plot.attribution(parts, most=5)
    table = pl.plot.data(ax)
    largest = np.argsort(-abs(parts.values))[:5]
    assert table.component.tolist() == [*parts.component.values[largest], "25 others", "sum"]
    np.testing.assert_allclose(table.value[:5], parts.values[largest])
    assert table.value[5] == pytest.approx(float(parts.sum()) - float(table.value[:5].sum()))
    assert table.value[6] == pytest.approx(float(parts.sum()))
    (bars,) = ax.containers
    np.testing.assert_allclose([bar.get_width() for bar in bars], table.value)
    assert [text.get_text() for text in ax.texts] == [f"{value:+.2f}" for value in table.value]
    assert ax.get_xlabel() == "added to logit ' \\$5' - logit ' a'"
    assert "others" not in " ".join(pl.plot.data(pl.plot.attribution(parts, most=30)).component)


def test_a_lens_shows_the_likeliest_tokens() -> None:
    top = pictures.said(3, 5)
    ax = pl.plot.lens(top)
    drawn = pl.plot.data(ax)
    np.testing.assert_allclose(drawn, np.exp(top.logprob.values[:, 0, :, 0]))
    np.testing.assert_allclose(ax.images[0].get_array(), drawn)
    assert drawn.text.values.tolist() == top.text.values[:, 0, :, 0].tolist()
    assert ax.images[0].get_clim() == (0, 1)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written[3, 1] == "·\\$5"
    assert len(written) == 15


def test_a_lens_of_a_run(run: pl.ActivationCkpts) -> None:
    """Each text by itself, without pads; a single block, and values before the blocks, are a row."""
    for text in range(2):
        top = pl.lens.logit(run).top(3)
        kept = run.batch.mask[text].numpy()
        ax = pl.plot.lens(pl.lens.logit(run), text=text)
        assert pl.plot.data(ax).text.values.tolist() == top.text.values[:, text, kept, 0].tolist()
        assert pl.plot.data(pl.plot.lens(top, text=text)).equals(pl.plot.data(ax))
    for at, layer in (("blocks.2.attn.ckpt_attn_out", 2), ("ckpt_embed", "")):
        drawn = pl.plot.data(pl.plot.lens(pl.lens.logit(run, at)))
        assert drawn.layer.values.tolist() == [layer]
    _, last = pl.load().run_with_ckpts(STORIES, names="resid_post", pos=[-1])
    assert pl.plot.data(pl.plot.lens(pl.lens.logit(last))).sizes["pos"] == 1
    _, first = pl.load().run_with_ckpts(STORIES, names="resid_post", pos=[0])
    with pytest.raises(InputError, match="no numbers"):
        pl.plot.lens(pl.lens.logit(first), text=1)


def test_parameters_are_those_counted() -> None:
    model = pl.load()
    counted = pl.count_parameters(model)
    for given in (model, counted):
        table = pl.plot.data(pl.plot.parameters(given))
        assert table["unique"].to_dict() == counted.components
        assert table["tied"].sum() == counted.by_name - counted.unique == table.loc["unembed", "tied"]
    ax = pl.plot.parameters(counted)
    assert [bar.get_width() for bar in ax.containers[0]] == list(counted.components.values())


def test_numbers_with_several_names_stand_where_they_are_held_again() -> None:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    second.weight = first.weight
    body = torch.nn.Sequential(first, first)
    table = pl.plot.data(pl.plot.parameters(torch.nn.ModuleDict({"body": body, "other": second})))
    assert table["unique"].to_dict() == {"body": 12, "other": 3}
    assert table["tied"].to_dict() == {"body": 12, "other": 9}


# What cannot be drawn

ARRAY = xr.DataArray(np.ones((2, 1, 3)), dims=("layer", "batch", "pos"), coords={"pos": range(3)})


@pytest.mark.parametrize(
    ("draw", "kind", "code", "says"),
    [
        (lambda: pl.plot.norms(np.ones((2, 3))), ShapeError, "not-labelled", "ndarray given"),
        (lambda: pl.plot.norms(ARRAY, skip=3), InputError, "nothing-to-draw", "skip=3"),
        (lambda: pl.plot.norms(ARRAY * np.nan), InputError, "nothing-to-draw", "layer 0, 1"),
        (lambda: pl.plot.norms(ARRAY[:0]), InputError, "nothing-to-draw", "there is none"),
        (lambda: pl.plot.norms(ARRAY, skip=-1), InputError, "skip", "skip=-1"),
        (lambda: pl.plot.norms(ARRAY, skip=1.0), InputError, "skip", "skip=1.0"),
        (lambda: pl.plot.norms(ARRAY, skip=True), InputError, "skip", "skip=True"),
        (lambda: pl.plot.norms(ARRAY[..., 0], skip=1), ShapeError, "no-such-axis", "layer 2, batch 1"),
        (lambda: pl.plot.norms(ARRAY.where(ARRAY.pos > 0, -np.inf)), InputError, "not-finite", "2 infinite"),
        (lambda: pl.plot.norm_histograms([1.0]), ShapeError, "not-labelled", "list given"),
        (lambda: pl.plot.ridges(None), ShapeError, "not-labelled", "NoneType given"),
        (lambda: pl.plot.residual_growth(ARRAY * 0), InputError, "not-norms", "not above zero"),
        (lambda: pl.plot.autoregression(ARRAY), InputError, "not-a-fit", "DataArray given"),
        (lambda: pl.plot.autoregression(pictures.fitted(3), alpha=5), InputError, "alpha", "alpha=5"),
        (lambda: pl.plot.autoregression(pictures.fitted(3), alpha="5 %"), InputError, "alpha", "alpha='5 %'"),
        (lambda: pl.plot.autoregression(pictures.fitted(3), terms=["lag9"]), InputError, "no-coefficients", "lag9"),
        (lambda: pl.plot.autoregression(pictures.fitted(3), terms=[]), InputError, "no-coefficients", "terms"),
        (lambda: pl.plot.attention(np.ones((2, 2, 2))), ShapeError, "pattern-axes", "[2, 2, 2]"),
        (lambda: pl.plot.attention(np.eye(2), tokens=["a"]), ShapeError, "tokens-length", "1 tokens for 2 keys"),
        (lambda: pl.plot.attention(np.eye(2), tokens="ab"), ShapeError, "tokens-length", "the string 'ab'"),
        (lambda: pl.plot.attention(np.eye(2) * -3), InputError, "not-weights", "from -3 to"),
        (lambda: pl.plot.attention(np.eye(2) * 3), InputError, "not-weights", "to 3 in"),
        (lambda: pl.plot.attention(np.eye(2) * np.nan), InputError, "not-weights", "from none"),
        (lambda: pl.plot.attention("text"), ShapeError, "not-numbers", "str"),
        (lambda: pl.plot.attention([[1.0], [1.0, 2.0]]), ShapeError, "not-numbers", "list"),
        (lambda: pl.plot.attention(ARRAY), ShapeError, "pattern-axes", "(layer 2"),
        (lambda: pl.plot.attention_grid(np.ones((2, 2))), ShapeError, "pattern-axes", "[2, 2]"),
        (lambda: pl.plot.attention_grid(np.ones((1, 2, 1, 2, 2))), ShapeError, "pattern-axes", "[1, 2, 1, 2, 2]"),
        (lambda: pl.plot.head_scores(np.ones(3)), ShapeError, "score-axes", "3"),
        (lambda: pl.plot.head_scores(ARRAY), ShapeError, "score-axes", "pos 3"),
        (lambda: pl.plot.head_scores([[np.nan]]), InputError, "nothing-to-draw", "no numbers"),
        (lambda: pl.plot.head_scores([[np.inf]]), InputError, "not-finite", "infinite"),
        (lambda: pl.plot.heatmap(np.ones(3)), ShapeError, "matrix-axes", "expected two"),
        (lambda: pl.plot.heatmap(np.ones((2, 2, 2))), ShapeError, "matrix-axes", "expected two"),
        (lambda: pl.plot.heatmap([[np.nan]]), InputError, "nothing-to-draw", "no numbers"),
        (lambda: pl.plot.heatmap([[np.inf]]), InputError, "not-finite", "infinite"),
        (lambda: pl.plot.heatmap([[1.0]], centre="high"), InputError, "heatmap-centre", "'high'"),
        (lambda: pl.plot.attribution([1.0]), ShapeError, "not-labelled", "list given"),
        (lambda: pl.plot.attribution(ARRAY), ShapeError, "component-axes", "(layer 2"),
        (lambda: pl.plot.attribution(pictures.parts(3) * np.nan), InputError, "nothing-to-draw", "missing"),
        (lambda: pl.plot.attribution(pictures.parts(3), most=0), InputError, "not-a-whole-number", "most=0"),
        (lambda: pl.plot.lens(3), ShapeError, "not-a-readout", "int given"),
        (lambda: pl.plot.lens(ARRAY), ShapeError, "not-a-readout", "DataArray given"),
        (lambda: pl.plot.lens(pictures.said(2, 2), text=1), InputError, "not-a-whole-number", "text=1"),
        (lambda: pl.plot.circuit(pl.circuits.Circuit(nodes=[])), InputError, "nothing-to-draw", "no parts"),
        (lambda: pl.plot.parameters(3), InputError, "not-counted", "int"),
        (lambda: pl.plot.parameters(torch.nn.ReLU()), InputError, "not-counted", "no parameters"),
        (lambda: pl.plot.norms(ARRAY, ax="here"), InputError, "not-axes", "ax=str"),
        (lambda: pl.plot.data(3), InputError, "nothing-drawn", "int"),
        (lambda: pl.plot.theme("drak").__enter__(), InputError, "unknown-theme", "'drak'"),
    ],
)  # fmt: skip
def test_refused(draw: Any, kind: type[PellucidError], code: str, says: str) -> None:
    with pytest.raises(kind) as caught:
        draw()
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.remedy


# What reads the figures notices what breaks them


def pads_counted(patch: pytest.MonkeyPatch) -> None:
    def by_column(where: str, array: xr.DataArray, skip: int) -> xr.DataArray:
        return array.where(xr.DataArray(np.arange(array.sizes["pos"]), dims="pos") >= skip)

    patch.setattr(inputs, "without_first", by_column)


def first_token_among_the_others(patch: pytest.MonkeyPatch) -> None:
    plain = residual_stream._first_token
    patch.setattr(residual_stream, "_first_token", lambda where, layers: (plain(where, layers)[0], layers))


def everything_spread(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layers, "spread", lambda values: np.linspace(-0.6, 0.6, len(values)))


def test_the_checks_notice(run: pl.ActivationCkpts, norms: xr.DataArray, fit: Any) -> None:
    """Each is a test that passes while nothing is broken."""
    cases: list[tuple[Any, Any]] = [
        (test_skip_counts_from_each_text_whatever_side_the_pads_are_on, pads_counted),
        (lambda: test_norms_draws_each_real_token_once(run, norms, 1), pads_counted),
        (lambda: test_norms_draws_each_real_token_once(run, norms, 1), everything_spread),
        (test_points_are_spread_by_density_and_never_into_the_next_layer, everything_spread),
        (lambda: test_growth_shows_medians_of_the_others_and_the_first_token(run), first_token_among_the_others),
        (lambda: test_coefficients_are_those_of_the_fit(fit),
         lambda patch: patch.setattr(summaries, "INTERCEPT", "lag1")),
        (test_each_head_of_a_grid_stands_in_its_place,
         lambda patch: patch.setattr(patterns.Plan, "down", property(lambda self: 1.2))),
        (test_long_texts_merge_into_the_largest_of_their_blocks,
         lambda patch: patch.setattr(patterns, "largest_of_blocks", lambda m, b: m[::b, ::b])),
        (lambda: test_scores_are_drawn_layer_by_head(run),
         lambda patch: patch.setattr(matrix, "SCORES", ("head", "layer"))),
        (lambda: test_colours_begin_at_zero([[0.1, 0.2]], (0, 0.2)),
         lambda patch: patch.setattr(matrix, "colour_limits", lambda n: (n.min(), n.max()))),
    ]  # fmt: skip
    for check, breaks in cases:
        with pytest.MonkeyPatch.context() as patch:
            breaks(patch)
            with pytest.raises(AssertionError):
                check()


def test_a_circuit_is_drawn_with_its_parts_and_edges() -> None:
    made = pictures.circuit(3, 2)
    ax = pl.plot.circuit(made)
    parts = {text.get_text() for text in ax.texts if text.get_text()}
    assert parts == {"embeddings", "logits", "MLP 0", "MLP 1", "0.0", "0.1", "1.0", "1.1", "2.0", "2.1"}
    place = {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}
    assert place["embeddings"][1] < place["0.0"][1] < place["MLP 0"][1] < place["1.0"][1] < place["logits"][1]
    notes = [note for note in ax.texts if note.get_text() == ""]
    arrows, heads = notes[::2], notes[1::2]
    assert len(arrows) == len(heads) == len(made)
    assert {head.arrow_patch.get_linestyle() for head in heads} == {"solid"}
    assert {arrow.arrow_patch.get_linestyle() for arrow in arrows} == {"-", "--", ":"}
    widths = {
        note.arrow_patch.get_linewidth(): abs(score) for note, score in zip(arrows, made.edges.values(), strict=True)
    }
    assert sorted(widths) == sorted(widths, key=widths.__getitem__), "thicker for larger scores"
    for note, ((sender, receiver), score) in zip(arrows, made.edges.items(), strict=True):
        assert note.xy == place[_written(receiver)]
        assert note.get_position() == place[_written(sender)]
        assert note.arrow_patch.get_edgecolor()[0] == (0.0 if score > 0 else pytest.approx(0xD5 / 255))
    table = pl.plot.data(ax)
    assert table.to_dict("records") == [
        {"sender": sender, "receiver": receiver, "score": score} for (sender, receiver), score in made.edges.items()
    ]
    nodes = pl.plot.data(pl.plot.circuit(pl.circuits.Circuit(nodes=[(1, 3)])))
    assert nodes.to_dict("records") == [{"node": "blocks.1.attn[3]", "score": 1.0}]


def _written(end: str) -> str:
    """What a part is called on the figure."""
    words = end.replace("blocks.", "").replace(".attn", "").strip("]").replace("[", ".")
    return f"MLP {words[0]}" if words.endswith("mlp") else ".".join(p for p in words.split(".") if p not in "qkv")


def test_another_centre_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "UNCHANGED", "clean")
    with pytest.raises(AssertionError):
        test_effects_are_drawn_about_what_was_without_a_change()
