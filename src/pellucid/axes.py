"""The one vocabulary of axis names; every shape in code, documentation and labelled arrays uses these."""

from __future__ import annotations

from enum import StrEnum


class Axis(StrEnum):
    """An axis of a captured value, with the letter that docstrings use for it."""

    LAYER = "layer"  # L
    BATCH = "batch"  # B
    POS = "pos"  # P, a column of the padded batch
    HEAD = "head"  # H
    QUERY = "query"  # Pq
    KEY = "key"  # Pk
    D_MODEL = "d_model"  # D
    D_HEAD = "d_head"  # K
    D_MLP = "d_mlp"  # M
    D_VOCAB = "d_vocab"  # V
    FEATURE = "feature"  # F, of a sparse autoencoder


Axes = tuple[Axis, ...]

LETTERS: dict[str, str] = {
    Axis.LAYER: "L", Axis.BATCH: "B", Axis.POS: "P", Axis.HEAD: "H", Axis.QUERY: "Pq", Axis.KEY: "Pk",
    Axis.D_MODEL: "D", Axis.D_HEAD: "K", Axis.D_MLP: "M", Axis.D_VOCAB: "V",
    Axis.FEATURE: "F",
}  # fmt: skip
"""Axis -> the letter that docstrings and tables use for it."""

RESIDUAL: Axes = (Axis.BATCH, Axis.POS, Axis.D_MODEL)
PER_HEAD: Axes = (Axis.BATCH, Axis.POS, Axis.HEAD, Axis.D_HEAD)
ATTENTION: Axes = (Axis.BATCH, Axis.HEAD, Axis.QUERY, Axis.KEY)
HIDDEN: Axes = (Axis.BATCH, Axis.POS, Axis.D_MLP)

POSITIONS = (Axis.POS, Axis.QUERY)
"""The axis that `pos=` selects along."""


def coordinate(axis: str, what: str) -> str:
    """The name of what labelled arrays say of an axis's columns: "token", "position"; "query_token", "key_token" …"""
    return what if axis == Axis.POS else f"{axis}_{what}"


NEURONS = (Axis.D_MODEL, Axis.D_MLP, Axis.D_HEAD, Axis.FEATURE)
"""The axis that `neurons=` selects along."""

MOST_PLACES = 16
"""Up to how many places an order is written out."""


def in_another_order(taken: tuple[int, ...], word: str) -> str:
    """Say that parts along an axis stand in another order."""
    moved = [place for place, part in enumerate(taken) if part != place]
    if len(moved) == 2:
        return f"{word}s {moved[0]} and {moved[1]} exchanged"
    return f"{word}s in another order" + (f" ({', '.join(map(str, taken))})" if len(taken) <= MOST_PLACES else "")
