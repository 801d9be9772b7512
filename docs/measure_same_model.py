"""Measure whether pellucid and transformers compute the same numbers, and write the answer into `same_model.md`.

    python docs/measure_same_model.py            # measure and rewrite the tables, under two minutes
    python docs/measure_same_model.py --quick    # fewer lengths, print the tables, change nothing

Every model is run by both libraries from the same tensors. A cell says `equal` only if `torch.equal` holds for the
logits and for the residual stream before every block, at every length, for a full batch and for rows of unequal
length padded on either side. Anything else is printed as the largest difference.
"""

# ruff: noqa: T201 (a script that prints)

from __future__ import annotations

import argparse
import copy
import platform
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import pellucid as pl

PAGE = Path(__file__).parent / "same_model.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ATTENTION = {"sdpa": "auto", "eager": "eager"}
"""transformers' name of each way to run attention -> ours."""

SIZES: dict[str, Any] = {
    "vocab_size": 1009, "n_positions": 1024, "n_embd": 96, "n_layer": 4, "n_head": 6,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any] | None] = {
    "bundled model": None,
    "random, 4 layers": {},
    "random, untied head": {"tie_word_embeddings": False},
    "random, erf GELU, odd MLP width": {"activation_function": "gelu", "n_inner": 301},
    "random, scores divided by layer": {"scale_attn_by_inverse_layer_idx": True},
    "random, `reorder_and_upcast_attn`": {"reorder_and_upcast_attn": True},
}
"""What the tables call a model -> its configuration; None is the one that ships."""

SMALL = "random, sizes of GPT-2 small"


@dataclass
class Comparison:
    """Values of ours and of transformers, counted."""

    values: int = 0
    unequal: int = 0
    largest: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Compare two tensors, bit for bit."""
        self.values += theirs.numel()
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            self.unequal += int((ours != theirs).sum())
            self.largest = max(self.largest, float((ours.double() - theirs.double()).abs().max()))

    def __str__(self) -> str:
        if not self.values:
            return "not run"
        return "equal" if not self.unequal else f"{self.largest:.0e}"


@dataclass
class Measured:
    """What goes into the page.

    Attributes:
        cells: (model, attention) -> a cell for each dtype.
        distances: What is run differently -> (float32, float64), each "equal" or the largest difference.
        values: How many numbers were compared for `cells`.
    """

    cells: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    distances: dict[str, tuple[str, str]] = field(default_factory=dict)
    values: int = 0

    def to_markdown(self) -> str:
        """The part of the page between the markers."""
        dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        return "\n".join(
            [
                f"Measured with {environment()}. {self.values:,} numbers were compared.",
                "",
                *_table(["model", "attention", *dtypes], ([*key, *cells] for key, cells in self.cells.items())),
                "",
                "Largest distance between two logits of the bundled model, against its plain exact run:",
                "",
                *_table(["run", "float32", "float64"], ([run, *cells] for run, cells in self.distances.items())),
            ]
        )


def environment() -> str:
    """Where the numbers hold."""
    return (
        f"{platform.system()} {platform.machine()}, CPU ({torch.backends.cpu.get_cpu_capability()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def spread(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Weights under which no error hides: GPT-2's own initialisation has zero biases and unit gains."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "ln_" in name:
            mean, std = float(name.endswith("weight")), 0.3
        else:
            mean, std = 0.0, 0.2 if name.endswith("bias") or "wte" in name else 1.5 * parameter.shape[0] ** -0.5
        parameter.data.normal_(mean, std, generator=generator)
    return model


@lru_cache(maxsize=1)
def reference(name: str) -> GPT2LMHeadModel:
    """The float32 transformers model of this name."""
    if name == SMALL:
        return spread(GPT2LMHeadModel(GPT2Config())).eval()
    fields = MODELS[name]
    if fields is None:
        return pl.to_hf(pl.load()).eval()
    return spread(GPT2LMHeadModel(GPT2Config(**{**SIZES, **fields}))).eval()


def lengths(name: str, dtype: torch.dtype, quick: bool) -> tuple[int, ...]:
    """Tokens in a row; long rows in float32 only, because a CPU takes long over them in the other dtypes."""
    if quick:
        return (1, 7)
    if name == SMALL:
        return (16, 128) if dtype == torch.float32 else ()
    if dtype != torch.float32:
        return (1, 2, 7, 64)
    return (1, 2, 7, 64, 256, 1024) if name == "random, 4 layers" else (1, 2, 7, 64, 256)


def inputs(model: pl.CkptedTransformer, length: int) -> Iterable[pl.Batch]:
    """Two full rows of random ids, and three rows of unequal length padded on the left and on the right."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    yield model.tokenize(ids)
    if length > 1:
        rows = [ids[0].tolist(), ids[1, : (length + 1) // 2].tolist(), ids[1, :1].tolist()]
        yield model.tokenize(rows, padding_side="left")
        yield model.tokenize(rows, padding_side="right")


def compare(ours: pl.CkptedTransformer, hf: GPT2LMHeadModel, batch: pl.Batch, into: Comparison) -> None:
    """Logits and residual stream at real positions."""
    mask = {"attention_mask": batch.mask.long(), "position_ids": batch.positions} if batch.padded else {}
    with torch.no_grad():
        theirs = hf(batch.ids, output_hidden_states=True, **mask)
        logits, ckpts = ours.run_with_ckpts(batch, names=["blocks.*.resid_pre", "ln_final.ckpt_normalized"])
        into.add(ours(batch)[batch.mask], theirs.logits[batch.mask])
    assert logits is not None
    into.add(logits[batch.mask], theirs.logits[batch.mask])
    for value, hidden in zip(ckpts.values(), theirs.hidden_states, strict=True):
        into.add(value[batch.mask], hidden[batch.mask])


def measure_cell(name: str, attention: str, dtype: torch.dtype, tokens: Sequence[int]) -> Comparison:
    """One model, one way to run attention, one dtype, every length."""
    if not tokens:
        return Comparison()
    if (attention, dtype) == ("eager", torch.float64) and "reorder_and_upcast_attn" in name:
        return Comparison()  # transformers raises: it upcasts to float32 and nothing else
    hf = copy.deepcopy(reference(name)).to(dtype)
    hf.set_attn_implementation(attention)
    ours = pl.from_hf(hf, attention=ATTENTION[attention])
    found = Comparison()
    for length in tokens:
        if length <= ours.config.n_positions:
            for batch in inputs(ours, length):
                compare(ours, hf, batch, found)
    return found


def measure_distances(length: int = 256) -> dict[str, tuple[str, str]]:
    """Runs that are not claimed to be equal, and those that are, against the plain run of the bundled model."""
    found: dict[str, list[str]] = {}
    for dtype in (torch.float32, torch.float64):
        plain, eager, fast, rounded = (
            pl.load(dtype=dtype, **options)
            for options in ({}, {"attention": "eager"}, {"numerics": "fast"}, {"numerics": "bfloat16"})  # type: ignore[arg-type]
        )
        ids = torch.randint(plain.config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = plain(ids)
            runs = {
                "capturing every checkpoint": plain.run_with_ckpts(ids)[0],
                "`grads=True`, residual stream only": plain.run_with_ckpts(ids, names="**.resid_*", grads=True)[0],
                "`grads=True`, every checkpoint": plain.run_with_ckpts(ids, grads=True)[0],
                '`attention="eager"`': eager(ids),
                '`numerics="fast"`': fast(ids),
                '`numerics="bfloat16"`': rounded(ids),
            }
        for run, logits in runs.items():
            comparison = Comparison()
            comparison.add(logits.detach(), expected)
            found.setdefault(run, []).append(str(comparison))
    return {run: (cells[0], cells[1]) for run, cells in found.items()}


def measure(*, quick: bool = False) -> Measured:
    """Everything that the page states; `quick` leaves out most lengths and the model of GPT-2 small's size."""
    measured = Measured()
    for name in (*MODELS, SMALL):
        if quick and name == SMALL:
            continue
        for attention in ATTENTION:
            cells = [measure_cell(name, attention, dtype, lengths(name, dtype, quick)) for dtype in DTYPES]
            measured.cells[name, attention] = [str(cell) for cell in cells]
            measured.values += sum(cell.values for cell in cells)
            print(f"{time.process_time():5.0f} s  {name}, {attention}", file=sys.stderr)
    measured.distances = measure_distances(32 if quick else 256)
    return measured


def rows(markdown: str) -> list[list[str]]:
    """The cells of every table row in a text."""
    lines = re.findall(r"^\|(.+)\|$", markdown, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def between_markers(page: str) -> str:
    """What the page states now."""
    return page.partition(BEGIN)[2].partition(END)[0]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare pellucid with transformers, bit for bit.")
    parser.add_argument("--quick", action="store_true", help="few lengths; print, change nothing")
    quick = parser.parse_args(arguments).quick
    markdown = measure(quick=quick).to_markdown()
    if not quick:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{markdown}\n{END}{after}", encoding="utf-8")
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
