"""A circuit: some parts of a model, or some edges between them, that are said to do a task.

Names are those of `pellucid.attribution.edges`: "embeddings", the heads "blocks.5.attn[3]" and "blocks.5.mlp" write;
the queries, keys and values of each head, "blocks.9.attn.q[9]", what each MLP reads, "blocks.9.mlp", and "logits" read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pellucid.check import as_number, as_whole, is_several, require_seed, require_whole
from pellucid.circuits.scored_parts import EMBEDDINGS, Edge, arrays_of, scored_edges, scored_nodes
from pellucid.errors import InputError, UnknownNameError, nearest, shown
from pellucid.patching.paths import MLP_OUT, PART
from pellucid.run.model import CkptedTransformer
from pellucid.schema import Schema

LOGITS = "logits"


def kind_of(node: str) -> str:
    """What a node is: "embeddings", "heads" or "mlps"."""
    return EMBEDDINGS if node == EMBEDDINGS else "mlps" if node.endswith("mlp") else "heads"


def drawn_for(parts: Iterable[Any], pool: Sequence[Any], draws: torch.Generator) -> dict[Any, Any]:
    """For each part one that is drawn from a pool, no two the same; for a node one of its kind."""
    kinds = {part: kind_of(part) if isinstance(part, str) else "edges" for part in (*pool, *parts)}
    found: dict[Any, Any] = {}
    for kind in dict.fromkeys(kinds[part] for part in pool):
        given, there = ([part for part in some if kinds[part] == kind] for some in (parts, pool))
        order = torch.randperm(len(there), generator=draws, device="cpu")[: len(given)].tolist()
        found |= {part: there[i] for part, i in zip(given, order, strict=True)}
    return found


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


class Circuit:
    """Nodes or edges of a model.

    Args:
        nodes: Parts: names, heads also as (layer, head); or their scores, as a sweep of "attn.ckpt_z" over ("layer",
            "head") or of "mlp.ckpt_mlp_out" over ("layer",) gives them, or `pl.attribution.direct` with by="head" at
            one position, or a list of such arrays.
        edges: Pairs (sender, receiver) of names, such as ("blocks.5.attn[3]", "blocks.9.attn.q[9]"); or their scores,
            as `pellucid.attribution.edges` gives them. With edges it is a circuit of these; nodes may be given, too.

    Attributes:
        nodes: The parts, and what each is scored (1 without scores).
        edges: The edges, the same way.
        granularity: What it is made of, "nodes" or "edges".

    Raises:
        InputError: If there are neither nodes nor edges, or something else, or the parts of the scores are not known.

    Example:
        >>> import pellucid as pl
        >>> circuit = pl.circuits.Circuit(nodes=[(0, 2), (3, 0), "blocks.0.mlp"])
        >>> circuit
        circuit of 3 nodes: blocks.0.attn[2], blocks.0.mlp, blocks.3.attn[0]
        >>> scores = pl.attribution.edges(
        ...     pl.load(), "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the",
        ...     metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> pl.circuits.Circuit(edges=scores).top(2)
        circuit of 2 edges: blocks.0.mlp -> blocks.3.attn.v[0], blocks.3.attn[0] -> logits
    """

    def __init__(self, nodes: Any = None, edges: Any = None) -> None:
        if nodes is None and edges is None:
            raise InputError(
                "circuit: nothing given, expected nodes or edges.",
                code="circuit-kind",
                remedy="Give nodes=[(5, 3), 'blocks.5.mlp'], or edges=[('blocks.5.attn[3]', 'logits')]; the empty "
                "circuit is nodes=[].",
            )
        self.nodes: dict[str, float] = {} if nodes is None else _in_order(_nodes(nodes))
        self.edges: dict[Edge, float] = {} if edges is None else _in_order(_edges(edges))
        self.granularity = "nodes" if edges is None else "edges"

    @classmethod
    def of_scores(cls, scores: Any) -> Circuit:
        """The circuit of everything that was scored: edges, if the axes are sender and receiver, else nodes."""
        arrays = arrays_of(scores)
        return cls(edges=scores) if any("sender" in array.dims for array in arrays) else cls(nodes=scores)

    @property
    def parts(self) -> Mapping[Any, float]:
        """The nodes, or the edges, with their scores."""
        return self.nodes if self.granularity == "nodes" else self.edges

    def __len__(self) -> int:
        return len(self.parts)

    def top(self, n: int) -> Circuit:
        """Return the `n` parts whose scores are farthest from zero; of equal ones those that come first."""
        count = require_whole("circuit.top: n", n)
        strongest = sorted(self.parts, key=lambda part: -abs(self.parts[part]))[:count]
        return self._of({part: self.parts[part] for part in strongest}, self.nodes)

    def above(self, x: float) -> Circuit:
        """Return the parts whose scores are farther from zero than `x`."""
        least = as_number(x)
        if least is None or not least >= 0:
            raise InputError(
                f"circuit.above: x={shown(x)}, expected a number of 0 or more.",
                code="circuit-above",
                remedy="Give the magnitude of a score in the metric's unit, such as 0.1.",
            )
        return self._of({part: score for part, score in self.parts.items() if abs(score) > least}, self.nodes)

    def drawn(self, model: CkptedTransformer, seed: int = 0) -> Circuit:
        """Return a random circuit of the same size: parts drawn from the whole model get the scores of these.

        Some of its own parts may be among them. Of nodes, heads stand for heads and MLPs for MLPs. What `evaluate`,
        `across` and `curve` say of random circuits is what they say of no circuit in particular.
        """
        graph = Graph(model.schema)
        Circuit.checked(self, graph)
        draws = torch.Generator().manual_seed(require_seed("circuit.drawn: seed", seed))
        pool = graph.nodes if self.granularity == "nodes" else graph.edges
        found = drawn_for(self.parts, pool, draws)
        return self._of({found[part]: score for part, score in self.parts.items()}, {})

    def as_nodes(self, graph: Graph) -> frozenset[str]:
        """Its nodes; of a circuit of edges, those that an edge begins or ends at."""
        ends = {node for sender, receiver in self.edges for node in (sender, *graph.holders(receiver))}
        return frozenset({*self.nodes, *ends})

    def as_edges(self, graph: Graph) -> frozenset[Edge]:
        """Its edges; of a circuit of nodes, all between two of them, the embeddings and the logits."""
        if self.granularity == "edges":
            return frozenset(self.edges)
        inside = {*self.nodes, EMBEDDINGS}
        return frozenset(
            (sender, receiver) for sender, receiver in graph.edges
            if sender in inside and (not (held := graph.holders(receiver)) or not inside.isdisjoint(held))
        )  # fmt: skip

    @staticmethod
    def checked(given: Any, graph: Graph) -> Circuit:
        """A circuit that was given, of whose parts a model has every one, each sender before its receiver."""
        if not isinstance(given, Circuit):
            raise InputError(
                f"circuit: {shown(given)} given, expected a circuit.",
                code="circuit-kind",
                remedy="Give pl.circuits.Circuit(nodes=[(5, 3), 'blocks.5.mlp']), for example.",
            )
        graph.require(given.nodes, given.edges)
        return given

    def __repr__(self) -> str:
        words = [part if isinstance(part, str) else " -> ".join(part) for part in self.parts]
        listed = ", ".join(words[:8]) + f" and {len(words) - 8} more" * (len(words) > 8)
        what = self.granularity if len(words) != 1 else self.granularity[:-1]
        return f"circuit of {len(words)} {what}{': ' * bool(words)}{listed}"

    def _of(self, parts: Mapping[Any, float], nodes: dict[str, float]) -> Circuit:
        made = object.__new__(Circuit)
        kept = _in_order(parts)
        made.granularity = self.granularity
        made.nodes, made.edges = (kept, {}) if self.granularity == "nodes" else (nodes, kept)
        return made


def _in_order(parts: Mapping[Any, float]) -> dict[Any, float]:
    return dict(sorted(parts.items(), key=lambda pair: _place(pair[0])))


def _place(part: str | Edge) -> tuple[Any, ...]:
    """Where a part stands in a list: by block, heads by their numbers, MLPs after them."""
    if isinstance(part, tuple):
        return (_place(part[0]), _place(part[1]))
    found = PART.fullmatch(part)
    if found is None:
        return (-1 if part == EMBEDDINGS else 10**9, 0, 0)
    head = found["head"]
    return (int(found["block"]), 10**9 if head is None else int(head), found["letter"] or "")


def _nodes(given: Any) -> dict[str, float]:
    arrays = arrays_of(given)
    if arrays:
        return dict(pair for array in arrays for pair in scored_nodes(array))
    return {_node(one): 1.0 for one in _several(given, "nodes")}


def _node(given: Any) -> str:
    if isinstance(given, str) and (given == EMBEDDINGS or ((found := PART.fullmatch(given)) and not found["letter"])):
        return given
    numbers = [as_whole(i) for i in given] if is_several(given) else []
    if len(numbers) != 2 or any(i is None or i < 0 for i in numbers):
        raise InputError(
            f"circuit: node {shown(given)}, expected a name or (layer, head).",
            code="circuit-kind",
            remedy="Give 'blocks.5.attn[3]' or (5, 3) for a head, 'blocks.5.mlp' for an MLP.",
        )
    return f"blocks.{numbers[0]}.attn[{numbers[1]}]"


def _edges(given: Any) -> dict[Edge, float]:
    arrays = arrays_of(given)
    if arrays:
        return dict(pair for array in arrays for pair in scored_edges(array))
    found: dict[Edge, float] = {}
    for one in _several(given, "edges"):
        ends = list(one) if isinstance(one, (tuple, list)) else []
        if len(ends) != 2 or not all(isinstance(end, str) and _is_part(end) for end in ends):
            raise InputError(
                f"circuit: edge {shown(one)}, expected a pair of names.",
                code="circuit-kind",
                remedy="Give edges=[('blocks.5.attn[3]', 'blocks.9.attn.q[9]')].",
            )
        found[(one[0], one[1])] = 1.0
    return found


def _is_part(name: str) -> bool:
    return name in (EMBEDDINGS, LOGITS) or PART.fullmatch(name) is not None


def _several(given: Any, what: str) -> list[Any]:
    if not is_several(given):
        raise InputError(
            f"circuit: {what}={shown(given)}, expected several of them.",
            code="circuit-kind",
            remedy="Give nodes=[(5, 3), 'blocks.5.mlp'], or edges=[('blocks.5.attn[3]', 'logits')].",
        )
    return list(given)
