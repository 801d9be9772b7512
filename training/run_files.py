"""The files of a run: its checkpoint, written whole or not at all, and its log."""

import argparse
import csv
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from train import Trainer


@dataclass(frozen=True)
class Progress:
    """How far the training had come when this round began; nowhere, for the first."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    shares: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of_export(cls, folder: Path) -> "Progress":
        """What the card of an exported folder says of its training."""
        said = json.loads((folder / "card.json").read_text(encoding="utf-8"))["training"]
        return cls(said["steps"], said["tokens"], said["seconds"], tuple(said["shares"].items()))

    def batches(self, context: int) -> dict[str, dict[str, int]]:
        """The state in which the batches were left; every row of a source was its next window."""
        rows = {name: round(share * self.tokens / context) for name, share in self.shares}
        return {"rows": rows, "taken": {name: n for name, n in rows.items() if name not in ("repeats", "sentences")}}


COLUMNS = ("step", "tokens", "loss", "tokens_per_second", "seconds", "ts_valid", "mix_valid")


def save_checkpoint(path: Path, trainer: "Trainer", options: argparse.Namespace) -> None:
    """Everything needed to go on; a kill while writing leaves the earlier file."""
    state = {
        "model": trainer.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "batches": trainer.batches.state(),
        "progress": {
            "step": trainer.step,
            "tokens": trainer.tokens,
            "seconds": trainer.seconds,
            "planned_tokens": options.tokens,
            "begun_tokens": trainer.begun.tokens,
            "seed": options.seed,
        },
        "random": torch.get_rng_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path, trainer: "Trainer") -> None:
    """Put the trainer where the checkpoint left off."""
    state = torch.load(path, map_location=trainer.device, weights_only=True)
    trainer.model.load_state_dict(state["model"])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    trainer.batches.restore(state["batches"])
    progress = state["progress"]
    trainer.step, trainer.tokens = progress["step"], progress["tokens"]
    trainer.seconds = progress["seconds"]
    torch.set_rng_state(state["random"].cpu())


class Log:
    """A CSV of the run, and one line of progress with the time left on standard error.

    Args:
        path: The CSV file; an earlier part of the run in it is kept.
        total: The tokens at which the run will end.
    """

    def __init__(self, path: Path, total: int) -> None:
        self._path = path
        self._total = total
        self._last: tuple[int, float] | None = None

    def forget_after(self, step: int) -> None:
        """Drop rows a killed run wrote after its last checkpoint; they will be written again."""
        rows = []
        if self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def write(self, trainer: "Trainer", loss: float, checks: dict[str, float]) -> None:
        """Append a row and show it."""
        now = (trainer.tokens, trainer.seconds)
        tokens, seconds = (b - a for a, b in zip(self._last or (0, 0.0), now, strict=True))
        rate = tokens / seconds if self._last else float("nan")
        self._last = now
        row = {
            "step": trainer.step,
            "tokens": trainer.tokens,
            "loss": f"{loss:.4f}",
            "tokens_per_second": f"{rate:.0f}",
            "seconds": f"{trainer.seconds:.0f}",
        } | {name: f"{value:.4f}" for name, value in checks.items()}
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        left = (self._total - trainer.tokens) / rate / 60 if self._last and rate == rate else 0.0
        shown = "  ".join(f"{name} {value}" for name, value in row.items())
        print(f"{shown}  {left:.0f} min left", file=sys.stderr, flush=True)
