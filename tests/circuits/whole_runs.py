"""Circuits by their definition: whole runs with edits, one receiver after another."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

import pellucid as pl
import support
from pellucid.circuits.circuit import Graph

METRIC = pl.metrics.logit_difference(7, 11)
Z, MLP_OUT = "attn.ckpt_z", "mlp.ckpt_mlp_out"


def model(**fields: Any) -> pl.CkptedTransformer:
    """Two blocks of two heads, in float64."""
    return support.glass(dtype=torch.float64, **{"n_layer": 2, "n_head": 2, "n_embd": 16, **fields})


def two(texts: int = 2, columns: int = 5) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids."""
    return support.some_ids(texts, columns), support.some_ids(texts, columns, seed=5)


def instead(model: pl.CkptedTransformer, corrupted: Any, value: str) -> dict[str, Tensor]:
    """What stands for each written value."""
    _, theirs = model.run_with_ckpts(corrupted)
    mask = model.tokenize(corrupted).mask
    make = {
        "resample": lambda x: x, "zero": torch.zeros_like, "mean": lambda x: x[mask].mean(0).expand_as(x).clone(),
    }  # fmt: skip
    written = [n for n in theirs if n.endswith((Z, MLP_OUT)) or n == "blocks.0.resid_pre"]
    return {name: make[value](theirs[name]) for name in written}


def nodes_left(
    model: pl.CkptedTransformer, base: Any, other: dict[str, Tensor], replaced: Collection[str], pos: Any = None
) -> Tensor:
    """The metric [B] of the base texts with these nodes replaced."""
    edits = []
    for node in replaced:
        block, _, part = node.removeprefix("blocks.").partition(".")
        head = int(part[5:-1]) if part.startswith("attn") else None
        name = "blocks.0.resid_pre" if node == "embeddings" else f"blocks.{block}.{MLP_OUT if head is None else Z}"
        value = other[name] if head is None else other[name][:, :, head : head + 1]
        edits.append(pl.Edit.replace(name, value if pos is None else value[:, pos], heads=head, pos=pos))
    return METRIC(model.run(base, edits=edits).detach(), model.tokenize(base))


def edges_left(
    model: pl.CkptedTransformer, base: Any, other: dict[str, Tensor], replaced: Collection[tuple[str, str]],
    pos: Any = None,
) -> Tensor:  # fmt: skip
    """The metric [B] of the base texts with what these edges carry replaced."""
    graph, pins, batch = Graph(model.schema), list[Any](), model.tokenize(base)
    last = len(model.schema.blocks) - 1
    for receiver in graph.receivers:
        lost = [sender for sender, read_by in replaced if read_by == receiver]
        if not lost:
            continue
        _, now = model.run_with_ckpts(batch, edits=pins)
        wrong = sum(_written(model, now, sender) - _written(model, other, sender) for sender in lost)
        assert isinstance(wrong, Tensor)
        if pos is not None:
            kept = torch.zeros(batch.shape[1], 1, dtype=wrong.dtype)
            kept[pos] = 1
            wrong = wrong * kept
        pins.append(_heard(model, batch, now, receiver, wrong, pins, last))
    return METRIC(model.run(batch, edits=pins).detach(), batch)


def _written(model: pl.CkptedTransformer, values: Any, sender: str) -> Tensor:
    """[B, P, D], what a node adds to the stream."""
    if sender == "embeddings":
        return values["blocks.0.resid_pre"]
    place, _, head = sender.partition(".attn[")
    if not head:
        return values[f"{sender}.ckpt_mlp_out"]
    return values[f"{place}.{Z}"][:, :, int(head[:-1])] @ model.parameter(f"{place}.attn.W_O")[int(head[:-1])]


def _heard(
    model: pl.CkptedTransformer, batch: Any, now: Any, receiver: str, wrong: Tensor, pins: list[Any], last: int
) -> Any:
    """The edit that gives a receiver what it reads without `wrong`, from a run in which all of the stream is so."""
    if receiver == "logits":
        name = f"blocks.{last}.resid_post"
        return pl.Edit.replace(name, now[name] - wrong)
    place = ".".join(receiver.split(".")[:2])
    is_mlp = receiver.endswith("mlp")
    after = is_mlp and f"{place}.resid_mid" in model.schema
    stream = f"{place}.{'resid_mid' if after else 'resid_pre'}"
    _, heard = model.run_with_ckpts(batch, edits=[*pins, pl.Edit.replace(stream, now[stream] - wrong)])
    if is_mlp:
        name = f"{place}.ln2.ckpt_normalized"
        return pl.Edit.replace(name, heard[name])
    letter, head = receiver[-4], int(receiver[-2])
    name = f"{place}.attn.ckpt_{letter}"
    return pl.Edit.replace(name, heard[name][:, :, head : head + 1], heads=head)
