"""Every figure is the picture that was looked at and kept, and a picture that could not differ would be noticed.

Drawn by the same matplotlib (which brings its own FreeType) a picture is the same to the last dot. The tolerance is a
root mean square of half a step of 255 grey levels: room for coordinates that another processor rounds otherwise, and
less than a tenth of what the least of the mutants below makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import plot_pictures as pictures
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from test_plot_layout import as_drawn, assert_readable

import pellucid as pl
import support
from pellucid.plot import (
    along_text,
    circuit_graph,
    inputs,
    layers,
    logits,
    matrix,
    patterns,
    residual_stream,
    sampler_stages,
    summaries,
    themes,
    vectors,
)

TOLERANCE = 0.5
DRAWN_BY = "3.11"
"""Another matplotlib spaces text otherwise, which moves everything beside it."""

Patch = pytest.MonkeyPatch

SAME_MATPLOTLIB = mpl.__version__.startswith(f"{DRAWN_BY}.")


def difference(name: str, figure: Figure, folder: Path, tolerance: float = TOLERANCE) -> str | None:
    """What is different, None where nothing is."""
    path = folder / f"{name}.png"
    pictures.draw(figure, path, compress_level=1)
    try:
        return compare_images(str(pictures.KEPT / path.name), str(path), tolerance)
    except mpl.testing.exceptions.ImageComparisonFailure as error:  # another size
        return str(error)


KINDS = ("norms_one_token_dark", "norm_histograms_4_light", "ridges_12_light", "residual_growth_12_light",
         "autoregression_12_light", "attention_20_light", "attention_1024_dark", "attention_grid_1x4_light",
         "head_scores_4_light", "attribution_12_light", "lens_4_light", "heatmap_8_light", "next_tokens_light",
         "neuron_30_light", "normalization_4_light", "scatter_40_dark", "tokens_40_light", "examples_5_light",
         "densities_dark", "densities_one_light", "circuit_4_light", "parameters_dark")  # fmt: skip
"""One of each kind, in every run: the smallest. Other sizes of it are drawn by `make test-all`."""


@pytest.mark.parametrize("name", support.few_of(pictures.FIGURES, *KINDS))
def test_picture(name: str, tmp_path: Path) -> None:
    """It is the one that was kept, and can be read."""
    figure = pictures.made(name)
    changed = difference(name, figure, tmp_path)
    assert_readable(name, as_drawn(figure, pictures.DOTS))
    assert changed is None or not SAME_MATPLOTLIB


def test_every_figure_has_a_picture() -> None:
    assert {path.stem for path in pictures.KEPT.iterdir()} == set(pictures.FIGURES)
    for function in set(pl.plot.__all__) - {"data", "theme"}:
        assert any(name.startswith(f"{function}_") for name in pictures.FIGURES), function


def test_pictures_are_small() -> None:
    assert sum(path.stat().st_size for path in pictures.KEPT.iterdir()) < 720_000


def swapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def first_token_stays(patch: Patch) -> None:
    patch.setattr(inputs, "without_first", lambda where, array, skip: array)


def means_for_medians(patch: Patch) -> None:
    patch.setattr(
        inputs.Layers, "quantiles", lambda self, at: np.array([[values.mean() for values in self.values]] * len(at))
    )


def sums_of_bars(patch: Patch) -> None:
    plain = summaries._bars
    patch.setattr(summaries, "_bars", lambda table: (plain(table)[0].cumsum(), *plain(table)[1:]))


def significance_inverted(patch: Patch) -> None:
    plain = summaries._table

    def table(*given: Any) -> Any:
        made = plain(*given)
        return made.assign(significant=~made["significant"])

    patch.setattr(summaries, "_table", table)


def no_band(patch: Patch) -> None:
    plain = summaries._table

    def table(*given: Any) -> Any:
        made = plain(*given)
        return made.assign(low=made["coefficient"], high=made["coefficient"])

    patch.setattr(summaries, "_table", table)


def first_token_among_the_others(patch: Patch) -> None:
    patch.setattr(residual_stream, "_first_token", lambda where, layers: (None, layers))


def means_for_largest(patch: Patch) -> None:
    def means(matrix: Any, block: int) -> Any:
        *front, rows, columns = matrix.shape
        cut = matrix[..., : rows // block * block, : columns // block * block]
        return cut.reshape(*front, rows // block, block, columns // block, block).mean((-3, -1))

    patch.setattr(patterns, "largest_of_blocks", means)


def read_transposed(owner: Any) -> Callable[[Patch], None]:
    """Queries and keys swapped, with nothing masked."""

    def breaks(patch: Patch) -> None:
        plain = owner.read_patterns

        def read(*given: Any) -> Any:
            array = plain(*given)
            return array.copy(data=np.nan_to_num(array.to_numpy()).swapaxes(-1, -2))

        patch.setattr(owner, "read_patterns", read)

    return breaks


def layers_for_heads(patch: Patch) -> None:
    plain = patterns.read_patterns

    def read(*given: Any) -> Any:
        array = plain(*given)
        return array.copy(data=array.to_numpy().swapaxes(0, 1))

    patch.setattr(patterns, "read_patterns", read)


def linear_scale(patch: Patch) -> None:
    from matplotlib.colors import Normalize

    plain = patterns.weights_style
    patch.setattr(patterns, "weights_style", lambda look: {**plain(look), "norm": Normalize(0, 1)})


def future_is_zero(patch: Patch) -> None:
    patch.setattr(inputs, "_without_future", lambda array, weights: weights)


def tied_numbers_left_out(patch: Patch) -> None:
    plain = summaries._components
    patch.setattr(summaries, "_components", lambda counted: plain(counted).assign(tied=0))


def largest(parts: Any, most: int) -> Any:
    return parts[np.argsort(abs(parts.values))[-most:]]


def moved_on(read: Any) -> Any:
    return read.assign_coords(text=read.text.roll(pos=1))


def altered(change: Any) -> Any:
    """What reads an array, and then changes its numbers."""

    def reads(plain: Any) -> Any:
        def read(*given: Any) -> Any:
            array = plain(*given)
            return array.copy(data=change(array.to_numpy()))

        return read

    return reads


MUTANTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "examples: another token's activation": (
        "examples_5_light", swapped(along_text, "_of_one", lambda plain: lambda *a: plain(*a).roll(offset=1)),
    ),
    "densities: sums of bars": ("densities_dark", sums_of_bars),
    "densities: sums of bars, of one unit": ("densities_one_light", sums_of_bars),
    "norms: the first token is not skipped": ("norms_12_dark", first_token_stays),
    "norms: the mean in place of the median": ("norms_4_light", means_for_medians),
    "norms: points not spread": ("norms_4_light", swapped(layers, "spread", lambda _: np.zeros_like)),
    "norms: quantiles all alike": ("norms_48_light", means_for_medians),
    "norms: points where they merge": ("norms_48_light", lambda patch: patch.setattr(layers, "CROWDED", 1e9)),
    "norms: the values shifted": (
        "norms_one_token_dark", swapped(layers, "by_layer", lambda plain: lambda w, a, s: plain(w, a + 0.2, s)),
    ),
    "norm_histograms: too few bins": (
        "norm_histograms_4_light", swapped(layers, "_edges", lambda plain: lambda v: plain(v)[::2]),
    ),
    "norm_histograms: the first token is not skipped": ("norm_histograms_12_dark", first_token_stays),
    "norm_histograms: strips moved by a bin": (
        "norm_histograms_48_light",
        swapped(np, "histogram", lambda plain: lambda *a, **o: (np.roll(plain(*a, **o)[0], 1), plain(*a, **o)[1])),
    ),
    "ridges: twice the bandwidth": (
        "ridges_12_light",
        swapped(layers, "distribution", lambda plain: lambda a, **o: plain(a, **{**o, "bandwidth": 0.3})),
    ),
    "ridges: layers upside down": (
        "ridges_48_dark", swapped(layers, "_densities", lambda plain: lambda layers: plain(layers)[::-1]),
    ),
    "residual_growth: the first token among the others": ("residual_growth_12_light", first_token_among_the_others),
    "residual_growth: a linear axis": (
        "residual_growth_48_dark", lambda patch: patch.setattr(residual_stream, "logarithmic", lambda axes: None),
    ),
    "autoregression: significance inverted": ("autoregression_12_light", significance_inverted),
    "autoregression: no band": ("autoregression_48_dark", no_band),
    "circuit: signs exchanged": (
        "circuit_4_light", swapped(circuit_graph, "_colour", lambda plain: lambda look, score: plain(look, -score)),
    ),
    "attention: transposed": ("attention_20_light", read_transposed(patterns)),
    "attention: a linear scale": ("attention_20_light", linear_scale),
    "attention: means of blocks": ("attention_1024_dark", means_for_largest),
    "attention: the future drawn as zero": ("attention_20_light", future_is_zero),
    "attention: the future of a long text": ("attention_1024_dark", future_is_zero),
    "attention: another weight": (
        "attention_1_light",
        swapped(patterns, "read_patterns", lambda plain: lambda *given: plain(*given) * 0.5),
    ),
    "attention_grid: transposed": ("attention_grid_1x4_light", read_transposed(patterns)),
    "attention_grid: layers for heads": ("attention_grid_4x4_dark", layers_for_heads),
    "attention_grid: layers for heads, many": ("attention_grid_12x12_light", layers_for_heads),
    "head_scores: layers for heads": (
        "head_scores_4_light", swapped(matrix, "as_array", altered(lambda numbers: numbers.T)),
    ),
    "head_scores: zero is not in the middle": (
        "head_scores_12_dark",
        lambda patch: patch.setattr(matrix, "colour_limits", lambda n: (float(n.min()), float(n.max()) / 2)),
    ),
    "head_scores: upside down": (
        "head_scores_48_light", swapped(matrix, "as_array", altered(lambda numbers: numbers[::-1])),
    ),
    "attribution: the others are left out of the sum": (
        "attribution_150_dark",
        swapped(logits, "_bars", lambda plain: lambda parts, most: plain(largest(parts, most), most)),
    ),
    "attribution: losses as gains": (
        "attribution_12_light", swapped(logits, "_bars", lambda plain: lambda parts, most: plain(abs(parts), most)),
    ),
    "lens: layers upside down": (
        "lens_12_dark", swapped(logits, "_read_lens", lambda plain: lambda read, text: plain(read, text)[::-1]),
    ),
    "lens: tokens of another position": (
        "lens_4_light", swapped(logits, "_read_lens", lambda plain: lambda read, text: moved_on(plain(read, text))),
    ),
    "heatmap: about zero": ("heatmap_8_light", lambda patch: patch.setattr(matrix, "UNCHANGED", "clean")),
    "next_tokens: only the model's own largest": (
        "next_tokens_light",
        swapped(sampler_stages, "_read",
                lambda plain: lambda given: (plain(given)[0], plain(given)[1][:1].repeat(4, 0))),
    ),
    "neuron: the one beside it": (
        "neuron_30_light", swapped(along_text, "_neuron", lambda plain: lambda c, i, n, t: plain(c, i, n + 1, t)),
    ),
    "normalization: before and after exchanged": (
        "normalization_4_light", lambda patch: patch.setattr(residual_stream, "SIDES", ("after", "before")),
    ),
    "scatter: the first two entries": (
        "scatter_40_dark",
        swapped(vectors, "principal_components",
                lambda plain: lambda x: (x[:, :2], plain(x)[1])),
    ),
    "tokens: values of the token before": (
        "tokens_40_light", swapped(along_text, "_one_text", lambda plain: lambda a, t: plain(a.roll(pos=1), t)),
    ),
    "tokens: losses as gains": (
        "tokens_200_dark", swapped(along_text, "_one_text", lambda plain: lambda a, t: plain(-a, t)),
    ),
    "parameters: tied numbers left out": ("parameters_light", tied_numbers_left_out),
    "theme: light for dark": ("parameters_dark", lambda patch: patch.setitem(themes.THEMES, "dark", themes.LIGHT)),
}  # fmt: skip
"""What is broken -> a picture that must differ, and how to break it."""

TRIED = (
    "norms: points not spread", "autoregression: no band", "circuit: signs exchanged", "attention: means of blocks",
    "theme: light for dark",
)  # fmt: skip
"""Those of every run: of points, bands, lines, pixels and colours. `make test-all` tries all."""


@pytest.mark.skipif(not SAME_MATPLOTLIB, reason=f"pictures were drawn by matplotlib {DRAWN_BY}")
@pytest.mark.parametrize("mutant", support.few_of(MUTANTS, *TRIED))
def test_mutant_is_noticed(mutant: str, tmp_path: Path, monkeypatch: Patch) -> None:
    name, breaks = MUTANTS[mutant]
    breaks(monkeypatch)
    assert difference(name, pictures.made(name), tmp_path, 10 * TOLERANCE) is not None


def test_every_picture_has_a_mutant() -> None:
    assert {name for name, _ in MUTANTS.values()} == set(pictures.FIGURES)
