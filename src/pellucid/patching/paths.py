"""Path patching: what one part tells another directly, with everything that stands between them held fixed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from pellucid.check import as_whole, require_one_of
from pellucid.errors import InputError, shown
from pellucid.metrics import Metric
from pellucid.names import aliases
from pellucid.patching.cells import Cells, SweepCell, require_over
from pellucid.patching.measured_runs import Direction, PlainRuns, Texts, results
from pellucid.patching.reruns import Rerun, block_of
from pellucid.patching.roles import Put, Roles
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Region
from pellucid.schema import Axis, Schema
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray

Z, MLP_OUT = "attn.ckpt_z", "mlp.ckpt_mlp_out"

PathEnd = tuple[aliases.Name, Mapping[str, Any]]
"""A checkpoint, and which part of it: {"layer": 9, "head": 9, "pos": -1, "neuron": 3}, each optional."""

PART = re.compile(r"blocks\.(?P<block>\d+)\.(?:attn(?:\.(?P<letter>[qkv]))?\[(?P<head>\d+)\]|mlp)")
"""How circuits and edges call a part of a block."""

_PLURAL = {"heads": "head", "neurons": "neuron"}


def path(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    *,
    senders: PathEnd | tuple[int, int] | str | Sequence[Any],
    receivers: PathEnd | Literal["logits"] | str | Sequence[Any],
    metric: Metric,
    through: Literal["mlps", "none"] = "mlps",
    over: Sequence[str] = (),
    direction: Direction = "denoise",
    per_text: bool = False,
    align: Roles | bool | None = None,
    max_bytes: int | None = None,
    progress: bool = False,
) -> xarray.DataArray:
    """Patch what senders tell receivers directly (Wang et al. 2022, arXiv:2211.00593, section 3.1 and appendix B).

    There are two runs of the base texts. In the first, the senders take the values of the other texts, and every head
    that holds no sender keeps its z of the base run; LayerNorms recompute, with the statistics of that run, and so do
    MLPs unless `through` says otherwise. In the second, the receivers take what they got in the first, and everything
    after them recomputes. The second is measured; the first if the receivers are the logits.

    Args:
        model: What runs.
        clean: Texts whose values the senders take.
        corrupted: As many texts, which are the base.
        senders: A checkpoint and the part of it, such as ("attn.ckpt_z", {"layer": 5, "head": 5}), or a list of these;
            a head also as (layer, head), and any part by its name in circuits, "blocks.5.attn[5]" or "blocks.5.mlp".
        receivers: The same, such as ("attn.ckpt_q", {"layer": 9, "head": 9}) or "blocks.9.attn.q[9]"; "logits" for the
            direct effect.
        metric: What to read off the run.
        through: "mlps" lets the MLPs between recompute; "none" keeps their outputs of the base run.
        over: Axes along which to go over the one sender, such as ("layer", "head") of ("attn.ckpt_z", {}).
        direction: "denoise" changes the corrupted runs; "noise" the clean ones, as the paper does.
        per_text, align, max_bytes, progress: See `sweep`.

    Returns:
        [*over, batch] in the metric's unit; NaN for a sender after every receiver. Attributes: `clean` and
        `corrupted`, the metric of the two plain runs.

    Raises:
        InputError: If a sender does not come before a receiver, a part does not exist, or texts do not fit.
        NumericsError: If the metric is not finite on a plain run.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> direct = pl.patching.path(
        ...     pl.load(), clean, corrupted, senders=("attn.ckpt_z", {}), receivers="logits", over=("layer", "head"),
        ...     metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> direct.sizes
        Frozen({'layer': 4, 'head': 4})
    """
    held = held_names(model.schema, through)
    pair = Texts.of(model, clean, corrupted, direction, align)
    ends = PathEnds.of(model.schema, pair, senders, receivers, over)
    going = ends.going()
    runs = pair.run(model, metric, ends.sent_names, held, max_bytes=max_bytes)
    paths = Paths(ends, runs, held)
    trials = [(cells[0], paths.first(put for cell in cells for put in cell.puts(runs.source))) for cells in going]
    found = results(runs.base, ends.sent[0], trials, paths.measured, progress=progress)
    about = {"senders": shown(senders), "receivers": shown(receivers), "through": through, "direction": direction}
    if ends.over:
        about["checkpoint"] = ", ".join(ends.sent[0].kinds)
    title = f"paths {ends.title}, {pair.taken} into {pair.into}"
    return found.labelled("path", {**about, **runs.about, "title": title}, per_text=per_text)


def held_names(schema: Schema, through: str) -> tuple[str, ...]:
    """What the first run keeps of the base run: every z, and with through="none" what MLPs write."""
    remedy = "Give through='mlps' to let the MLPs between recompute, 'none' to keep their outputs."
    require_one_of("through", through, ("mlps", "none"), code="path-through", remedy=remedy)
    kinds = (Z, MLP_OUT)[: 1 + (through == "none")]
    return tuple(f"blocks.{i}.{kind}" for i in range(len(schema.blocks)) for kind in kinds)


@dataclass(frozen=True)
class PathEnds:
    """What speaks and what listens."""

    schema: Schema
    sent: Sequence[Cells]  # the senders; one if it is gone over
    receivers: Sequence[SweepCell]  # none for the logits
    title: str
    over: bool  # whether each cell of the one sender is a path of its own

    @classmethod
    def of(cls, schema: Schema, pair: Texts, senders: Any, receivers: Any, over: Sequence[str]) -> PathEnds:
        """Read what was given."""
        over = require_over(over)
        spoken = _several(senders, "senders")
        heard = [] if isinstance(receivers, str) and receivers == "logits" else _several(receivers, "receivers")
        sent = [_cells(place, schema, pair, over) for place in spoken]
        if over and len(sent) > 1:
            raise InputError(
                f"over={shown(over)} with {len(sent)} senders, expected one.",
                code="path-place",
                remedy="Give one sender, whose other axes are gone over.",
            )
        own = Texts(pair.base, pair.base, pair.into, None)
        got = [next(iter(_cells(place, schema, own))) for place in heard]
        return cls(schema, sent, got, f"from {_written(spoken)} to {_written(heard) or 'logits'}", bool(over))

    @property
    def sent_names(self) -> tuple[str, ...]:
        """The senders' checkpoints."""
        return tuple(dict.fromkeys(name for cells in self.sent for name in cells.names))

    @property
    def names(self) -> list[str]:
        """The receivers' checkpoints in execution order."""
        order = self.schema.names
        return sorted({name for cell in self.receivers for name in cell.names}, key=order.index)

    def going(self) -> list[list[SweepCell]]:
        """The senders of each path that leads somewhere."""
        if self.over:
            return [[cell] for cell in self.sent[0] if all(map(self.leads, cell.names))]
        senders = [next(iter(cells)) for cells in self.sent]
        self.require_order([name for cell in senders for name in cell.names])
        return [senders]

    def leads(self, name: str) -> bool:
        """Whether a checkpoint comes before a receiver."""
        return not self.receivers or any(self.schema.comes_before(name, other) for other in self.names)

    def require_order(self, sent: Sequence[str]) -> None:
        """Refuse a sender that comes before no receiver, and a receiver that comes after no sender."""
        before = self.schema.comes_before
        late = [name for name in sent if not self.leads(name)]
        early = [name for name in self.names if not any(before(other, name) for other in sent)]
        if late or early:
            words = f"{late[0]} is a sender" if late else f"{early[0]} is a receiver"
            raise InputError(
                f"{words} and comes {'before no receiver' if late else 'after no sender'}.",
                code="path-order",
                remedy="Senders come before receivers in `model.ckpt_names`; exchange them, or leave this one out.",
            )


@dataclass(frozen=True)
class Paths:
    """The two runs of each path."""

    ends: PathEnds
    runs: PlainRuns  # of the base what is held in the first, of the source what senders take
    held: Sequence[str]  # every z and perhaps MLP outputs

    def first(self, sent: Iterable[Put]) -> Rerun:
        """The run in which the senders speak and no other head listens."""
        spoken, schema = tuple(sent), self.ends.schema
        begin = min(block_of(put.name, schema) for put in spoken)
        kept = (self._held(name, spoken) for name in self.held if block_of(name, schema) >= begin)
        return Rerun((*filter(None, kept), *spoken), whole=True)

    def measured(self, trials: Sequence[Rerun]) -> Iterator[tuple[int, Tensor]]:
        """The number and the metric [B] of each path: first runs that share a batch, then their second runs."""
        base = self.runs.base
        if not self.ends.receivers:
            yield from base.differing(trials)
            return
        for numbers in base.sharing.batches(trials):
            captured = dict(base.captured([trials[number] for number in numbers], self.ends.names))
            second = [self.second(captured[place]) for place in range(len(numbers))]
            yield from ((numbers[place], found) for place, found in base.differing(second))

    def second(self, captured: Mapping[str, Tensor]) -> Rerun:
        """The run in which the receivers have what they got; those before the senders have what they had."""
        receivers = self.ends.receivers
        got = (replace(cell, names=tuple(name for name in cell.names if name in captured)) for cell in receivers)
        return Rerun(tuple(put for cell in got for put in cell.puts(captured)))

    def _held(self, name: str, sent: Sequence[Put]) -> Put | None:
        """What is kept of the base run: all but the heads, or the MLP, that hold a sender."""
        value, module = self.runs.base.values[name], name.rpartition(".")[0] + "."
        inside = [put for put in sent if put.name.startswith(module)]
        if name.endswith(MLP_OUT):
            return None if inside else Put(name, value)
        free: set[int] = set()
        for put in inside:
            if Axis.HEAD in self.ends.schema[put.name].axes:
                free |= self._heads_of(put, value.size(2))
        kept = [head for head in range(value.size(2)) if head not in free]
        return Put(name, value, heads=kept) if kept else None

    def _heads_of(self, sent: Put, heads: int) -> set[int]:
        """The heads that a sender is part of: with grouped heads, all of its group."""
        if sent.heads is None:
            return set(range(heads))
        group = heads // sent.source.size(self.ends.schema[sent.name].axes.index(Axis.HEAD))
        return {head * group + i for head in sent.heads for i in range(group)}


def _written(places: Sequence[PathEnd]) -> str:
    """Senders or receivers as people write them: "attn.ckpt_q of layer 9, head 9"."""
    each = [(str(name), ", ".join(f"{axis} {at}" for axis, at in part.items())) for name, part in places]
    return " and ".join(f"{name} of {part}" if part else name for name, part in each)


def _several(places: Any, what: str) -> list[PathEnd]:
    """One place or several, checked."""
    is_pair = isinstance(places, tuple) and len(places) == 2
    one = is_pair and (isinstance(places[1], Mapping) or _head(places) is not None)
    several = isinstance(places, (list, tuple)) and len(places) and not one
    return [_place(place, what) for place in (places if several else [places])]


def _place(given: Any, what: str) -> PathEnd:
    """A checkpoint and the part of it, from whatever stands for them."""
    if isinstance(given, str):
        return _by_name(given, what)
    if (head := _head(given)) is not None and what == "senders":
        return Z, head
    fits = isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)
    part = {_PLURAL.get(str(axis), str(axis)): at for axis, at in given[1].items()} if fits else {}
    if not fits or not set(part) <= {"layer", "head", "pos", "neuron"}:
        kind = "z" if what == "senders" else "q"
        raise InputError(
            f"{what}={shown(given)}, expected a checkpoint and the part of it that is meant.",
            code="path-place",
            remedy=f"Give ('attn.ckpt_{kind}', {{'layer': 5, 'head': 5}}); 'layer', 'head', 'pos' and 'neuron' may be "
            "left out.",
        )
    return given[0], part


def _head(given: Any) -> dict[str, int] | None:
    """What (layer, head) says; None if something else was given."""
    numbers = [as_whole(i) for i in given] if isinstance(given, (tuple, list)) and len(given) == 2 else [None]
    return None if None in numbers else dict(zip(("layer", "head"), numbers, strict=True))  # pyright: ignore[reportReturnType]


def _by_name(name: str, what: str) -> PathEnd:
    """What a name stands for: a part as circuits call it, or a checkpoint."""
    if name == "embeddings":
        return "blocks.0.resid_pre", {}
    if (found := PART.fullmatch(name)) is None:
        return name, {}
    block = {"layer": int(found["block"])}
    if found["head"] is None:
        return MLP_OUT if what == "senders" else "ln2.ckpt_normalized", block
    return f"attn.ckpt_{found['letter'] or 'z'}", {**block, "head": int(found["head"])}


def _cells(place: PathEnd, schema: Schema, pair: Texts, over: Sequence[str] = ()) -> Cells:
    """The cells of one sender or receiver."""
    name, part = place
    if (layer := part.get("layer")) is not None:
        kind, _ = aliases.kind_and_block(name, schema)
        name = aliases.resolved(f"blocks.{layer}.{kind}", schema)
    limits = Region(part.get("pos"), part.get("head"), part.get("neuron"))
    return Cells(schema, name, over, pair.base, pair.source, limits, pair.roles)
