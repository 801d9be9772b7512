"""Runs of a model of which only some parts are left: everything else has another value put in its place.

Either what is outside a circuit is ablated in the runs of the clean texts ("noise"), or what is inside is put into the
runs of the corrupted ones ("denoise"). A node is ablated by the value that it writes. An edge is ablated by what its
receiver alone reads of its sender: the receiver's input is the stream less what the sender wrote, plus what is put in
its place; the LayerNorm and the receiver's own matrices are evaluated on it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pellucid.check import is_several, require_one_of
from pellucid.circuits.circuit import EMBEDDINGS, LOGITS, Circuit, Graph, kind_of
from pellucid.errors import InputError, shown
from pellucid.family.network import Run
from pellucid.metrics import Metric, measured
from pellucid.patching.ablation import Ablation
from pellucid.patching.measured_runs import Direction, Texts
from pellucid.patching.paths import MLP_OUT, PART, Z
from pellucid.patching.reruns import BYTES, TOKENS, Rerun, never_fired
from pellucid.patching.roles import Columns, Put
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region, warn_of_pads
from pellucid.schema import Axis, Schema
from pellucid.text.batch import Inputs

EMBEDDED = "blocks.0.resid_pre"
KINDS = (EMBEDDINGS, "heads", "mlps")


def written_in(schema: Schema) -> tuple[str, ...]:
    """The checkpoints that hold what the nodes of a model write."""
    every = (f"blocks.{i}.{kind}" for i in range(len(schema.blocks)) for kind in (Z, MLP_OUT))
    return (EMBEDDED, *(name for name in every if name in schema))


@dataclass(frozen=True)
class Choices:
    """What an evaluation of a circuit depends on (Miller et al. 2024, arXiv:2407.08734).

    Attributes:
        granularity: "nodes" or "edges": what is ablated.
        components: Which parts are: some of "embeddings", "heads", "mlps"; the others are left as they are.
        value: What is put in their place: "resample", the value of the corrupted run; "mean", over texts and tokens of
            the corrupted runs; "zero".
        pos: At which columns; None for all.
        direction: "noise": what is outside the circuit is ablated in the clean runs; "denoise": what is inside is put
            into the corrupted runs.
    """

    granularity: str
    components: tuple[str, ...]
    value: str
    pos: Index
    direction: Direction

    @classmethod
    def of(cls, granularity: Any, components: Any, value: Any, pos: Index, direction: Any) -> Choices:
        """Read what was given."""
        require_one_of("circuits: granularity", granularity, ("nodes", "edges"), code="circuit-choices")
        given = components if is_several(components) else (components,)
        every = KINDS if granularity == "edges" else KINDS[1:]
        kinds = every if components is None else tuple(given) or (None,)
        wanted = [
            *(("components", kind, KINDS) for kind in kinds),
            ("value", value, ("resample", "mean", "zero")),
            ("direction", direction, ("noise", "denoise")),
        ]
        for what, one, known in wanted:
            require_one_of(f"circuits: {what}", one, known, code="circuit-choices")
        if direction == "denoise" and value != "resample":
            raise InputError(
                f"circuits: direction='denoise' with value={shown(value)}, but only corrupted texts have runs "
                "to put into.",
                code="circuit-choices",
                remedy="Give value='resample', or direction='noise'.",
            )
        return cls(granularity, tuple(kind for kind in KINDS if kind in kinds), value, pos, direction)

    def __str__(self) -> str:
        where = "every position" if self.pos is None else f"pos={shown(self.pos)}"
        return (
            f"{self.value} ablation of {', '.join(self.components)} by {self.granularity} at {where}, {self.direction}"
        )


class Ablations:
    """The metric of runs in which only some parts are left.

    Attributes:
        graph: The model's parts.
        universe: The nodes or edges that can be ablated.
        clean, corrupted: The metric of the plain runs [B].
        interrupted: Whether Control-C ended `reached`, which then makes no more runs.
    """

    def __init__(
        self, model: CkptedTransformer, clean: Inputs, corrupted: Inputs, metric: Metric, choices: Choices
    ) -> None:
        self.model, self.graph = model, Graph(model.schema)
        pair = Texts.of(model, clean, corrupted, choices.direction, None)
        pair.require_equal_lengths("circuits", "Give texts of equal length.")
        self._pair, self._runs = pair, pair.run(model, metric, written_in(model.schema))
        self.clean, self.corrupted = (
            torch.tensor(self._runs.about[f"{side}_by_text"], dtype=torch.float64, device="cpu")
            for side in ("clean", "corrupted")
        )
        self.interrupted = False
        self._choose(choices)

    def under(self, choices: Choices) -> Ablations:
        """The same texts under other choices of the same direction; the plain runs are those that were made."""
        assert choices.direction == self.choices.direction, "its base and its source would change places"
        other = copy.copy(self)
        other._choose(choices)
        return other

    def _choose(self, choices: Choices) -> None:
        self.choices = choices
        self.other = self._instead(self._pair)
        kinds = {node: kind_of(node) in choices.components for node in self.graph.nodes}
        whole: Iterable[Any] = self.graph.edges if choices.granularity == "edges" else self.graph.nodes
        self.universe: tuple[Any, ...] = tuple(p for p in whole if kinds[p[0] if isinstance(p, tuple) else p])
        self._columns = Region(choices.pos).indices("pos", (self._pair.base.shape[1],), (Axis.POS,), strict=True)
        if self._columns:
            warn_of_pads("circuits", choices.pos, self._columns[0], self._pair.base.mask)
        self._known: dict[frozenset[Any], Tensor] = {}

    def keeping(self, kept: Sequence[Collection[Any]]) -> Tensor:
        """The metric [N, B] of the runs in which only these parts are left, each set in a run of its own."""
        sets = [frozenset(one).intersection(self.universe) for one in kept]
        new = [one for one in dict.fromkeys(sets) if one not in self._known]
        run = self._nodes if self.choices.granularity == "nodes" else self._edges
        self._known.update(run(new))
        return torch.stack([self._known[one] for one in sets])

    def reached(self, wanted: Sequence[Sequence[Collection[Any]]]) -> list[bool]:
        """Make the runs of several sets each, until Control-C; return for each whether all of its runs were made."""
        if wanted and not self.interrupted:
            try:
                self.keeping([one for sets in wanted for one in sets])
            except KeyboardInterrupt:
                self.interrupted = True
        return [all(frozenset(one).intersection(self.universe) in self._known for one in sets) for sets in wanted]

    def inside(self, circuit: Circuit) -> frozenset[Any]:
        """The parts of a circuit that can be ablated."""
        made = circuit.as_nodes if self.choices.granularity == "nodes" else circuit.as_edges
        return made(self.graph).intersection(self.universe)

    def _instead(self, pair: Texts) -> Mapping[str, Tensor]:
        """What is put there: the source's values, their mean or zeros."""
        if self.choices.value == "resample":
            return self._runs.source
        put = Ablation("mean" if self.choices.value == "mean" else "zero", pair.source, pair.base, 0)
        axes = self.model.schema.axes
        return {name: put.value(name, value, axes[name]) for name, value in self._runs.source.items()}

    def _replaced(self, kept: frozenset[Any]) -> list[Any]:
        """The parts that take the other value: those left out of clean runs, or those put into corrupted ones."""
        inside = self.choices.direction == "denoise"
        return [part for part in self.universe if (part in kept) == inside]

    def _nodes(self, sets: Sequence[frozenset[Any]]) -> Iterator[tuple[frozenset[Any], Tensor]]:
        puts = {kept: self._puts(self._replaced(kept)) for kept in sets}
        changed = [kept for kept in sets if puts[kept]]
        yield from ((kept, self._runs.base.plain) for kept in sets if not puts[kept])
        for place, value in self._runs.base.differing([Rerun(puts[kept]) for kept in changed]):
            yield changed[place], value

    def _puts(self, nodes: Sequence[str]) -> tuple[Put, ...]:
        """What replaces these nodes, the heads of a block together."""
        heads: dict[str, list[int]] = {}
        for node in nodes:
            part = PART.fullmatch(node)
            name = EMBEDDED if part is None else f"blocks.{part['block']}.{Z if part['head'] else MLP_OUT}"
            heads.setdefault(name, []).extend([] if part is None or part["head"] is None else [int(part["head"])])
        where = self._everywhere()
        return tuple(Put(name, self.other[name], where, several or None) for name, several in heads.items())

    def _everywhere(self) -> Columns | None:
        if not self._columns:
            return None
        rows, columns = torch.arange(len(self._runs.base.batch), device="cpu"), self._columns[0]
        into = columns.repeat(len(rows))
        return Columns(rows.repeat_interleave(len(columns)), into, into)

    def _edges(self, sets: Sequence[frozenset[Any]]) -> Iterator[tuple[frozenset[Any], Tensor]]:
        base, at_once = self._runs.base, self._texts_at_once()
        together = max(1, at_once // len(base.batch))
        blocks = [slice(first, first + at_once) for first in range(0, len(base.batch), at_once)]
        for first in range(0, len(sets), together):
            some = sets[first : first + together]
            weights = self._weights(some)
            left = torch.cat([self._edges_left(weights, rows) for rows in blocks], 1)
            yield from ((kept, measured(base.metric, one, base.batch)) for kept, one in zip(some, left, strict=True))

    def _texts_at_once(self) -> int:
        """How many texts run together; what every sender wrote is in memory, and once more while receivers read it."""
        like = self.model.embed.W_E
        token = 2 * len(self.graph.nodes) * like.size(1) * like.element_size()
        return max(1, min(TOKENS, BYTES // token) // self._runs.base.batch.shape[1])

    def _edges_left(self, weights: Tensor, rows: slice) -> Tensor:
        """The logits [C, b, P, V] of some of the texts, in each of the C runs that `weights` [C, R, S] describe."""
        batch, copies = self._runs.base.batch, len(weights)
        ids, positions, mask = batch.ids[rows], batch.positions[rows], batch.mask[rows]
        other = {name: value[rows] for name, value in self.other.items()}
        tap = EdgeTap(self.model, self.graph, weights, other, self._mask(batch.shape[1]))
        run = Run(
            ids.repeat(copies, 1), positions.repeat(copies, 1), mask.repeat(copies, 1) if batch.padded else None
        )  # fmt: skip
        with torch.no_grad():
            logits = self.model(run, tap=tap)
        if missed := set(filter(tap.wants, self.model.schema.names)) - tap.seen:
            raise never_fired(missed)
        return logits.unflatten(0, (copies, -1))

    def _weights(self, sets: Sequence[frozenset[Any]]) -> Tensor:
        """[C, R, S]: 1 where a receiver reads the other value of a sender."""
        graph, like = self.graph, self.model.embed.W_E
        place = [{name: number for number, name in enumerate(names)} for names in (graph.nodes, graph.receivers)]
        weights = like.new_zeros(len(sets), len(graph.receivers), len(graph.nodes))
        for number, kept in enumerate(sets):
            for sender, receiver in self._replaced(kept):
                weights[number, place[1][receiver], place[0][sender]] = 1
        return weights

    def _mask(self, columns: int) -> Tensor | None:
        """[P, 1]: 1 at the columns that are ablated; None for all."""
        if not self._columns:
            return None
        mask = self.model.embed.W_E.new_zeros(columns, 1)
        mask[self._columns[0]] = 1
        return mask


@dataclass
class EdgeTap:
    """The tap that gives each receiver an input of its own."""

    model: CkptedTransformer
    graph: Graph
    weights: Tensor  # [C, R, S], 1 where a receiver reads the other value of a sender, in each of C copies of the texts
    other: Mapping[str, Tensor]  # the other values of what is written, by checkpoint
    mask: Tensor | None  # [P, 1], 1 where they are read; None for everywhere
    seen: set[str] = field(default_factory=set)  # the checkpoints whose values came by
    _changes: list[Tensor] = field(default_factory=list)
    """[C, B, P, D] of each sender so far: what it wrote less its other value."""

    def __post_init__(self) -> None:
        self._place = {name: number for number, name in enumerate(self.graph.receivers)}
        self._last = f"blocks.{len(self.graph.schema.blocks) - 1}.resid_post"
        self._stream: Tensor | None = None

    def wants(self, name: str) -> bool:
        """Whether this is what somebody writes, reads, or reads from."""
        read = ("attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v", "ln2.ckpt_normalized")
        return name.endswith(("resid_pre", "resid_mid", *read, Z, MLP_OUT)) or name == self._last

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """Note what was written, and give receivers what they read."""
        self.seen.add(name)
        place, _, kind = name.partition(".attn.") if ".attn." in name else name.rpartition(".")
        block = place.removesuffix(".ln2").removesuffix(".mlp")
        if name.endswith((Z, MLP_OUT)) or name == EMBEDDED:
            self._note(name, block, value)
        if kind in ("resid_pre", "resid_mid"):
            self._stream = value
        elif kind in ("ckpt_q", "ckpt_k", "ckpt_v"):
            return self._projected(block, kind[-1], value)
        elif kind == "ckpt_normalized":
            (heard,) = self._heard([f"{block}.mlp"], self._stream)
            return self._module(block).ln2(heard)
        elif name == self._last:
            (heard,) = self._heard([LOGITS], value)
            return heard
        return value

    def _module(self, block: str) -> Any:
        return self.model.blocks[int(block.split(".")[1])]

    def _note(self, name: str, block: str, value: Tensor) -> None:
        """Keep what the senders of a checkpoint wrote, less their other values."""
        copies = self.weights.size(0)
        change = value.unflatten(0, (copies, -1)) - self.other[name]
        if self.mask is not None:
            change = change * (self.mask if change.dim() == 4 else self.mask[..., None])
        if name.endswith(Z):
            W_O = self.model.parameter(f"{block}.attn.W_O")
            self._changes += [change[..., head, :] @ W_O[head] for head in range(change.size(-2))]
        else:
            self._changes.append(change)

    def _heard(self, receivers: Sequence[str], stream: Tensor | None) -> Tensor:
        """[R, C B, P, D]: the input of each receiver."""
        assert stream is not None, "the stream comes by before what reads it"
        weights = self.weights[:, [self._place[name] for name in receivers], : len(self._changes)]
        less = torch.einsum("crs,scbpd->rcbpd", weights, torch.stack(self._changes))
        return stream - less.flatten(1, 2)

    def _projected(self, block: str, letter: str, value: Tensor) -> Tensor:
        """Queries, keys or values [C B, P, H, K], each head's of an input of its own."""
        heads = value.size(2)
        heard = self._heard([f"{block}.attn.{letter}[{head}]" for head in range(heads)], self._stream)
        normalized = self._module(block).ln1(heard.flatten(0, 1)).unflatten(0, (heads, -1))
        made = torch.einsum("hnpd,hdk->nphk", normalized, self.model.parameter(f"{block}.attn.W_{letter.upper()}"))
        bias = f"{block}.attn.b_{letter.upper()}"
        return made + self.model.parameter(bias) if bias in self.model.parameter_names else made
