"""The figures that tests keep a picture of, drawn from made-up numbers that no random stream can change.

    python tests/plot/plot_pictures.py [NAME ...]    # draw them again into tests/plot/pictures; then look at each

Names end in the theme. Pictures are as wide as a journal's column, at 80 dots an inch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import pellucid as pl

KEPT = Path(__file__).parent / "pictures"
DOTS = 80

WORDS = ["Once", " upon", " a", " time", ",", " there", " was", "\n", " $5", " red_ball", "!", " Lily", " and", " mom"]


def tokens(count: int) -> list[str]:
    """Tokens with a space, a line end, and what a formula is written with."""
    return [WORDS[i % len(WORDS)] for i in range(count)]


def waves(*shape: int) -> np.ndarray:
    """Numbers between -1 and 1 that look drawn at random: the fractions of multiples of an irrational number."""
    count = int(np.prod(shape))
    return (2 * np.modf(np.arange(1, count + 1) ** 1.5 * 0.618034)[0] - 1).reshape(shape)


def measured(layers: int, positions: int, texts: int = 1, *, log: bool = True) -> xr.DataArray:
    """Norms by layer as `pl.measure.norms` gives them: growing, skewed, the first token apart."""
    middle = np.linspace(1.5, 3.5, layers)[:, None, None] + 0.4 * np.sin(np.arange(layers))[:, None, None]
    width = np.linspace(0.15, 0.5, layers)[:, None, None]
    values = middle + width * np.arctanh(0.95 * waves(layers, texts, positions)) + 0.3 * width * waves(texts, positions)
    values[:, :, 0] += 2
    about = {"checkpoint": "attn.ckpt_attn_out", "units": "log of residual-stream units"}
    if not log:
        values, about = np.exp(values), {"checkpoint": "resid_post", "units": "residual-stream units"}
    coords = {"layer": range(layers), "batch": range(texts), "pos": range(positions)}
    name = "log_norm" if log else "norm"
    return xr.DataArray(values, dims=("layer", "batch", "pos"), coords=coords, name=name, attrs=about)


def fitted(layers: int, lags: int = 2) -> Any:
    """A regression by layer as `pl.measure.autoregression` gives it."""
    index = pd.RangeIndex(layers, name="layer")
    columns = ["const", *(f"lag{i + 1}" for i in range(lags))]
    values = [np.sin(np.arange(layers) / 2.5 + i) / (3 + i) + 0.15 for i in range(lags + 1)]
    params = pd.DataFrame(np.stack(values, 1), index=index, columns=columns)
    error = 0.08 + 0.04 * np.abs(waves(layers, lags + 1))
    band = pd.concat({"lower": params - 2 * error, "upper": params + 2 * error}, axis=1).swaplevel(axis=1)
    pvalues = pd.DataFrame(np.exp(-(np.abs(params / error) ** 2) / 1.3), index=index, columns=columns)
    return SimpleNamespace(params=params, pvalues=pvalues, conf_int=band)


def patterns(layers: int, heads: int, positions: int) -> np.ndarray:
    """Causal attention [layer, head, query, key]: to the token before, to the first, to itself, and to all."""
    scores = 2.5 * waves(layers, heads, positions, positions)
    at = np.arange(positions)
    for head in range(heads):
        if head % 4 == 0:
            scores[:, head, at[1:], at[:-1]] += 7
        elif head % 4 == 1:
            scores[:, head, :, 0] += 5
        elif head % 4 == 2:
            scores[:, head, at, at] += 3
    weights = np.where(np.tri(positions, dtype=bool), np.exp(scores), 0.0)
    return weights / weights.sum(-1, keepdims=True)


def scores(layers: int, heads: int) -> np.ndarray:
    """A score of each head, most near zero."""
    return np.abs(waves(layers, heads)) ** 4


def effects(layers: int, positions: int) -> xr.DataArray:
    """Effects of patches as a sweep gives them, most of them none."""
    about = {"title": "resid_pre, clean into corrupted", "metric": "logit difference of ' $5', ' a' at -1",
             "units": "logits", "unchanged": -3.5}  # fmt: skip
    values = -3.5 + 5 * waves(layers, positions) ** 7
    coords = {"layer": range(layers), "pos": range(positions), "token": ("pos", tokens(positions))}
    return xr.DataArray(values, dims=("layer", "pos"), coords=coords, name="sweep", attrs=about)


def edges(senders: int, receivers: int) -> xr.DataArray:
    """Scores of edges between parts whose names are long, a half of them missing."""
    values = np.where(np.add.outer(-np.arange(senders), np.arange(receivers)) < 0, np.nan, waves(senders, receivers))
    names = {"sender": [f"blocks.{i}.attn[{i}]" for i in range(senders)],
             "receiver": [f"blocks.{i}.attn.q[{i}]" for i in range(receivers)]}  # fmt: skip
    return xr.DataArray(values, dims=tuple(names), coords=names, name="edges")


def parts(count: int) -> xr.DataArray:
    """Parts of a logit, a few of them large."""
    names = ["ckpt_embed", *(f"blocks.{i // 9}.{'mlp' if i % 9 == 8 else f'attn[{i % 9}]'}" for i in range(count - 1))]
    values = 4 * waves(count) ** 5
    return xr.DataArray(values, dims="component", coords={"component": names}, attrs={"target": "(' $5', ' a')"})


def said(layers: int, positions: int) -> xr.DataArray:
    """The likeliest tokens of each block, as a lens gives them: later blocks are surer."""
    shape = (layers, 1, positions, 1)
    chances = np.clip(np.linspace(0.1, 0.9, layers).reshape(-1, 1, 1, 1) + 0.1 * waves(*shape), 0.01, 0.99)
    words = np.array(tokens(layers * positions), dtype=object).reshape(shape)
    dims = ("layer", "batch", "pos", "top")
    coords = {"layer": range(layers), "text": (dims, words), "logprob": (dims, np.log(chances)),
              "token": (dims[1:3], [tokens(positions)]), "position": (dims[1:3], [range(positions)])}  # fmt: skip
    return xr.DataArray(np.zeros(shape, dtype=int), dims=dims, coords=coords, name="top")


def circuit(blocks: int, heads: int) -> pl.circuits.Circuit:
    """Edges from heads to those of later blocks, one of each kind; every other one works against the task."""
    names = [f"blocks.{i}.attn{{}}[{head}]" for i in range(blocks) for head in range(heads)]
    pairs = [("embeddings", names[0].format(".v")), (names[-1].format(""), "logits"), ("blocks.0.mlp", "blocks.1.mlp")]
    pairs += [
        (name.format(""), names[heads + number].format(f".{'qkv'[number % 3]}"))
        for number, name in enumerate(names[:-heads])
    ]
    made = pl.circuits.Circuit(edges=pairs)
    made.edges = {edge: (-1.0) ** number * (number + 1) for number, edge in enumerate(made.edges)}
    return made


def captured(blocks: int, positions: int) -> pl.ActivationCkpts:
    """A run of made-up values: a stream that widens, in which dimension 5 lies apart, and what its norms give."""
    config = pl.TransformerConfig(n_layer=blocks, n_embd=32, n_head=4, n_positions=256, vocab_size=97)
    batch = pl.load().tokenize(("Once upon a time, there was a\nbig $5 ball. " * positions)[: 4 * positions])
    count = batch.ids.shape[1]
    values = {}
    for i in range(blocks):
        stream = torch.from_numpy((1 + i) * np.arctanh(0.95 * waves(1, count, 32) ** 3)).float()
        stream[..., 5] += 25
        pre = torch.from_numpy(3 * waves(1, count, 128)).float()
        kinds = {"resid_mid": stream, "ln2.ckpt_normalized": stream / stream.std(-1)[..., None], "mlp.ckpt_pre": pre,
                 "mlp.ckpt_post": torch.nn.functional.gelu(pre)}  # fmt: skip
        values |= {f"blocks.{i}.{kind}": value for kind, value in kinds.items()}
    return pl.ActivationCkpts(values, batch, config.schema)


def stages(count: int) -> dict[str, np.ndarray]:
    """A distribution and what some stages leave of it."""
    model = np.exp(4 * waves(count))
    sharp = model**2 * (np.arange(count) % 7 > 0)
    found = {"model": model, "no_repeat_ngram_size": model * (np.arange(count) != 3), "temperature": sharp}
    found["top_p"] = np.where(sharp > np.sort(sharp)[-6], sharp, 0)
    return {name: values / values.sum() for name, values in found.items()}


def text_of(count: int, *, signed: bool = False) -> xr.DataArray:
    """A value of each token of a text, the first missing."""
    values = (waves(count) if signed else np.abs(waves(count))) * 8
    values[0] = np.nan
    coords = {"pos": range(count), "token": ("pos", tokens(count)), "layer": 3}
    about = {"units": "nats", "model": "made up"}
    return xr.DataArray(values, dims="pos", coords=coords, name="logprob" if signed else "surprise", attrs=about)


def vectors(count: int, width: int = 16) -> xr.DataArray:
    """Vectors whose first directions are far longer than the others."""
    values = waves(count, width) * 0.5 ** np.arange(width) * 10
    coords = {"token": ("pos", tokens(count)), "position": ("pos", range(count))}
    about = {"checkpoint": "resid_post", "model": "made up"}
    return xr.DataArray(values, dims=("pos", "d_model"), coords=coords, name="resid_post", attrs=about)


COUNTED = pl.ParameterCount(
    unique=124_439_808, by_name=163_037_184, bytes=4 * 124_439_808,
    components={
        "embed": 38_597_376, "pos_embed": 786_432, "ln": 38_400, "attn": 28_348_416, "mlp": 56_669_184, "unembed": 0,
    },
    tied={"embed": 0, "pos_embed": 0, "ln": 0, "attn": 0, "mlp": 0, "unembed": 38_597_376},
)  # fmt: skip
"""Of GPT-2 small."""


def found(count: int) -> xr.Dataset:
    """Examples of one unit, the last of which is near the beginning of its text."""
    passages = np.abs(waves(count, 9))
    passages[:, 4] = 3 - 0.3 * np.arange(count)
    passages[-1, :3] = np.nan
    strings = np.array(tokens(count * 9), object).reshape(count, 9)
    strings[-1, :3] = ""
    return xr.Dataset(
        {"passage": (("rank", "offset"), passages), "token": (("rank", "offset"), strings),
         "row": ("rank", 20 * np.arange(count))},
        coords={"unit": 12, "offset": np.arange(-4, 5)},
        attrs={"checkpoint": "blocks.3.mlp.ckpt_post", "rows": 500},
    )  # fmt: skip


def shares() -> xr.Dataset:
    """Densities of 200 units, some of which are active nowhere."""
    density = np.maximum(10 ** (2 * waves(200) - 2), 0.001) * (np.arange(200) % 9 > 0)
    counts = np.round(100 * np.exp(-(np.linspace(-1, 3, 40) ** 2)) + 2)
    return xr.Dataset(
        {"density": ("unit", density), "histogram": (("unit", "bin"), np.tile(counts, (200, 1))),
         "edges": (("unit", "edge"), np.tile(np.linspace(-0.2, 3, 41), (200, 1)))},
        coords={"unit": np.arange(200)}, attrs={"checkpoint": "blocks.3.mlp.ckpt_post", "rows": 1000},
    )  # fmt: skip


FIGURES: dict[str, Callable[[], Axes]] = {
    "norms_4_light": lambda: pl.plot.norms(measured(4, 40)),
    "norms_12_dark": lambda: pl.plot.norms(measured(12, 1000), skip=1),
    "norms_48_light": lambda: pl.plot.norms(measured(48, 1000), skip=1),
    "norms_one_token_dark": lambda: pl.plot.norms(measured(12, 1)),
    "norm_histograms_4_light": lambda: pl.plot.norm_histograms(measured(4, 200), skip=1),
    "norm_histograms_12_dark": lambda: pl.plot.norm_histograms(measured(12, 1000), skip=1, density=True),
    "norm_histograms_48_light": lambda: pl.plot.norm_histograms(measured(48, 1000), skip=1),
    "ridges_12_light": lambda: pl.plot.ridges(measured(12, 300), skip=1),
    "ridges_48_dark": lambda: pl.plot.ridges(measured(48, 300), skip=1),
    "residual_growth_12_light": lambda: pl.plot.residual_growth(measured(12, 40, log=False)),
    "residual_growth_48_dark": lambda: pl.plot.residual_growth(measured(48, 1000, log=False)),
    "autoregression_12_light": lambda: pl.plot.autoregression(fitted(12)),
    "autoregression_48_dark": lambda: pl.plot.autoregression(fitted(48)),
    "attention_20_light": lambda: pl.plot.attention(patterns(1, 1, 20)[0, 0], tokens=tokens(20)),
    "attention_1024_dark": lambda: pl.plot.attention(patterns(1, 1, 1024)[0, 0], tokens=tokens(1024)),
    "attention_1_light": lambda: pl.plot.attention(patterns(1, 1, 1)[0, 0], tokens=tokens(1)),
    "attention_grid_1x4_light": lambda: pl.plot.attention_grid(patterns(1, 4, 8)[0], tokens=tokens(8)),
    "attention_grid_4x4_dark": lambda: pl.plot.attention_grid(patterns(4, 4, 8), tokens=tokens(8)),
    "attention_grid_12x12_light": lambda: pl.plot.attention_grid(patterns(12, 12, 24), tokens=tokens(24)),
    "head_scores_4_light": lambda: pl.plot.head_scores(scores(4, 4)),
    "head_scores_12_dark": lambda: pl.plot.head_scores(waves(12, 12) ** 3),
    "head_scores_48_light": lambda: pl.plot.head_scores(scores(48, 25)),
    "attribution_12_light": lambda: pl.plot.attribution(parts(12)),
    "attribution_150_dark": lambda: pl.plot.attribution(parts(150), most=8),
    "lens_4_light": lambda: pl.plot.lens(said(4, 9)),
    "lens_12_dark": lambda: pl.plot.lens(said(12, 40)),
    "heatmap_8_light": lambda: pl.plot.heatmap(effects(4, 8)),
    "next_tokens_light": lambda: pl.plot.next_tokens(stages(60), drawn=3),
    "neuron_30_light": lambda: pl.plot.neuron(captured(2, 30), 1, 7),
    "normalization_4_light": lambda: pl.plot.normalization(captured(4, 30), "ln2", skip=1),
    "scatter_40_dark": lambda: pl.plot.scatter(vectors(40)),
    "tokens_40_light": lambda: pl.plot.tokens(text_of(40)),
    "tokens_200_dark": lambda: pl.plot.tokens(text_of(200, signed=True)),
    "examples_5_light": lambda: pl.plot.examples(found(5)),
    "densities_dark": lambda: pl.plot.densities(shares()),
    "densities_one_light": lambda: pl.plot.densities(shares().sel(unit=3)),
    "circuit_4_light": lambda: pl.plot.circuit(circuit(4, 4)),
    "parameters_light": lambda: pl.plot.parameters(COUNTED),
    "parameters_dark": lambda: pl.plot.parameters(COUNTED),
}
"""Name of the picture -> what draws it."""


def made(name: str) -> Figure:
    """A figure in its theme, whatever matplotlib's settings are here."""
    with mpl.rc_context():
        mpl.rcdefaults()
        with pl.plot.theme(name.rsplit("_", 1)[-1]):
            return FIGURES[name]().get_figure()


def draw(figure: Figure, path: Path, **png: Any) -> None:
    """Draw a figure into a file, whatever matplotlib's settings are here."""
    with mpl.rc_context():
        mpl.rcdefaults()
        figure.savefig(path, dpi=DOTS, metadata={"Software": None}, pil_kwargs=png)


if __name__ == "__main__":
    KEPT.mkdir(exist_ok=True)
    for wanted in sys.argv[1:] or FIGURES:
        draw(made(wanted), KEPT / f"{wanted}.png", optimize=True)
