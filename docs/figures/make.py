"""Draw the figure of the README: one head's attention, and how the residual stream grows, on a short story.

    python docs/figures/make.py                              # the bundled model, into docs/figures/glass.png
    python docs/figures/make.py --model FOLDER --out FILE

Left: of all heads the one that attends most to the previous token, on average over the story. Right: the length of
the residual stream's vector at each of its checkpoints; a thin line for each token, a thick one for their median.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

import pellucid as pl

OUT = Path(__file__).parent / "glass.png"
STORY = "Lily had a red ball. One day, the red ball was lost. Lily was sad, but her mom found the red ball."
INK, ACCENT, FIRST = "#333333", "#0072B2", "#D55E00"  # of Okabe and Ito's colour-blind-safe palette


def previous_token_scores(patterns: Tensor) -> Tensor:
    """[L, H]: mean attention to the token before, of patterns [L, 1, H, P, P]."""
    return patterns[:, 0].diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)


def draw_pattern(axes: Axes, pattern: Tensor, tokens: list[str], title: str) -> None:
    """One head's attention [P, P]: a row for each query."""
    image = axes.imshow(pattern.numpy(), cmap="Blues", vmin=0, vmax=1)
    places = range(len(tokens))
    names = [token.strip() for token in tokens]
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.set(xlabel="attended token (key)", ylabel="attending token (query)")
    axes.set_title(title, loc="left")
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01, ticks=[0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.set_label("attention")


def draw_norms(axes: Axes, norms: Tensor, names: list[str], first: str) -> None:
    """Norms [stages, P] by stage."""
    stages = range(len(names))
    axes.plot(stages, norms[:, 1:].numpy(), color=ACCENT, alpha=0.25, linewidth=0.9)
    axes.plot(stages, norms[:, 1:].median(-1).values.numpy(), color=ACCENT, linewidth=2.5, label="median of the others")
    axes.plot(stages, norms[:, 0].numpy(), color=FIRST, linewidth=2, linestyle="--", label=f"first token, {first!r}")
    axes.set_xticks(stages, names, rotation=90)
    axes.set_ylim(0, 1.2 * float(norms.max()))
    axes.set(xlabel="resid_pre, resid_mid, resid_post of each block", ylabel="Euclidean norm")
    axes.set_title("blocks.*.resid_*\nthe residual stream of each token", loc="left")
    axes.grid(axis="y", color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")


def draw(model: pl.CkptedTransformer, out: Path) -> None:
    """Run the story once and draw both panels."""
    _, ckpts = model.run_with_ckpts(STORY, names=["blocks.*.resid_*", "blocks.*.attn.ckpt_pattern"])
    tokens = ckpts.batch.strings[0]
    patterns = ckpts.stack("attn.ckpt_pattern")
    scores = previous_token_scores(patterns)
    layer, head = divmod(int(scores.argmax()), scores.size(1))

    stages = {"blocks.0.resid_pre": "pre 0"}
    for i in range(model.config.n_layer):
        stages |= {f"blocks.{i}.resid_mid": f"mid {i}", f"blocks.{i}.resid_post": f"post {i}"}
    norms = torch.stack([ckpts[name][0].norm(dim=-1) for name in stages])

    with mpl.rc_context({
        "font.size": 10.5, "axes.titlesize": 11, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "figure.facecolor": "white",
    }):  # fmt: skip
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 5), width_ratios=(1.2, 1), layout="constrained")
        title = f"blocks.{layer}.attn.ckpt_pattern, head {head}\n{scores[layer, head]:.0%} on the previous token"
        draw_pattern(left, patterns[layer, 0, head], tokens, title)
        draw_norms(right, norms, list(stages.values()), tokens[0])
        figure.savefig(out, dpi=150, metadata={"Software": None})
        plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw the figure of the README.")
    parser.add_argument("--model", default=None, help="a folder; the bundled model by default")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    mpl.use("Agg")
    draw(pl.load(given.model), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
