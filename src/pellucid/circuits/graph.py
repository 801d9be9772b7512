"""The parts of a model, and the edges between them: who writes into the residual stream, and who reads it after that.

Names are those of `pellucid.attribution.edges`: "embeddings", the heads "blocks.5.attn[3]" and "blocks.5.mlp" write;
the queries, keys and values of each head, "blocks.9.attn.q[9]", what each MLP reads, "blocks.9.mlp", and "logits" read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pellucid.errors import InputError, UnknownNameError, nearest, shown
from pellucid.schema import Schema

Edge = tuple[str, str]
"""Sender and receiver."""

EMBEDDINGS, LOGITS = "embeddings", "logits"
Z, MLP_OUT = "attn.ckpt_z", "mlp.ckpt_mlp_out"

PART = re.compile(r"blocks\.(?P<block>\d+)\.(?:attn(?:\.(?P<letter>[qkv]))?\[(?P<head>\d+)\]|mlp)")
"""How a part of a block is called."""


def kind_of(node: str) -> str:
    """What a node is: "embeddings", "heads" or "mlps"."""
    return EMBEDDINGS if node == EMBEDDINGS else "mlps" if node.endswith("mlp") else "heads"


@dataclass(frozen=True)
class Graph:
    """The parts of a model."""

    schema: Schema

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """What writes, in the order in which it does."""
        found = [EMBEDDINGS]
        for i in range(len(self.schema.blocks)):
            found += [f"blocks.{i}.attn[{head}]" for head in range(self._heads(i, "z"))]
            found += [f"blocks.{i}.mlp"] * (f"blocks.{i}.{MLP_OUT}" in self.schema)
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """What reads, in the order of `pellucid.attribution.edges`."""
        found: list[str] = []
        for i in range(len(self.schema.blocks)):
            found += [f"blocks.{i}.attn.{letter}[{head}]" for letter in "qkv" for head in range(self._heads(i, letter))]
            found += [f"blocks.{i}.mlp"] * (f"blocks.{i}.{MLP_OUT}" in self.schema)
        return (*found, LOGITS)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge: its sender writes before its receiver reads."""
        return tuple((s, r) for r in self.receivers for s in self.nodes if self.comes_before(s, r))

    def comes_before(self, sender: str, receiver: str) -> bool:
        """Whether a receiver reads what a sender wrote."""
        at_once = receiver.endswith("mlp") and self.schema.is_parallel(int(receiver.split(".")[1]))
        return _order(sender) < _order(receiver) - at_once  # an MLP beside its heads reads what they read

    def holders(self, receiver: str) -> tuple[str, ...]:
        """The nodes that a receiver belongs to: of a shared key, every head that uses it; none for "logits"."""
        found = PART.fullmatch(receiver)
        if found is None or found["head"] is None:
            return () if receiver == LOGITS else (receiver,)
        block, head = int(found["block"]), int(found["head"])
        group = self._heads(block, "z") // self._heads(block, found["letter"] or "z")
        return tuple(f"blocks.{block}.attn[{head * group + i}]" for i in range(group))

    def require(self, nodes: Mapping[str, object], edges: Mapping[Edge, object]) -> None:
        """See that the model has these parts."""
        given = [(node, self.nodes, "part that writes") for node in nodes]
        given += [(sender, self.nodes, "part that writes") for sender, _ in edges]
        given += [(receiver, self.receivers, "part that reads") for _, receiver in edges]
        for name, known, what in given:
            if name not in known:
                raise UnknownNameError(
                    f"circuit: {shown(name)} is no {what} of this model.",
                    code="circuit-part",
                    remedy=f"{nearest(name, known)} Nodes are called 'blocks.5.attn[3]' and 'blocks.5.mlp'; queries "
                    "'blocks.9.attn.q[9]'.".strip(),
                )
        for sender, receiver in edges:
            if not self.comes_before(sender, receiver):
                raise InputError(
                    f"circuit: {receiver} reads before {sender} writes.",
                    code="circuit-order",
                    remedy="Give edges (sender, receiver) from earlier parts to later ones.",
                )

    def _heads(self, block: int, letter: str) -> int:
        return self.schema.sizes[self.schema[f"blocks.{block}.attn.ckpt_{letter}"].heads]


def _order(part: str) -> float:
    """When a part writes, or reads: an MLP after the heads of its block, of which none reads another."""
    if part in (EMBEDDINGS, LOGITS):
        return -1.0 if part == EMBEDDINGS else float("inf")
    found = PART.fullmatch(part)
    assert found is not None, "checked before"
    return 2.0 * int(found["block"]) + (found["head"] is None)
