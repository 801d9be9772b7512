"""Edits: a checkpoint's value replaced, in whole or in part, while the model runs.

An edit never writes into the model's own tensors: it hands back a new one, which is what the model goes on
with. Each run counts how often each edit fired; one that never fired is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pellucid.aliases import Names
from pellucid.axes import POSITIONS, Axes, Axis
from pellucid.dialects import named_arguments
from pellucid.errors import EditError
from pellucid.run.activations import ActivationCkpts
from pellucid.run.region import Index, Region, put, take
from pellucid.text.batch import Batch


@dataclass(frozen=True)
class Site:
    """Where an edit fires.

    Attributes:
        name: The checkpoint.
        axes: The axes of its value.
        batch: What runs.
        whole: The whole value, as it was.
        start: The column of the text at which the value begins, where a text is run piece by piece; else None.
        chosen: Which of the positions that the edit names are in this piece; None for all.
    """

    name: str
    axes: Axes
    batch: Batch
    whole: Tensor
    start: int | None = None
    chosen: list[int] | None = None

    @property
    def pos_axis(self) -> int:
        """The axis of positions, of queries for scores and patterns."""
        return next(i for i, axis in enumerate(self.axes) if axis in POSITIONS)


Change = Callable[[Tensor, Site], Tensor]
"""What becomes of the chosen part of a value; the result must broadcast to the part's shape."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change at the checkpoints that a pattern of names selects; made by one of the class methods.

    Every class method takes `pos=`, `heads=`, `neurons=` and `rows=` (an index, a slice or several), which limit the
    change; values that are given have the shape of the limited part, every axis kept, or broadcast to it. `rows=` are
    rows of the batch, so many edits can share one batch, each with a row of its own.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> edit = pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[3])
        >>> logits, ckpts = model.run_with_ckpts("Once upon a time", names="blocks.1.attn.ckpt_z", edits=[edit])
        >>> ckpts.fired[edit], float(ckpts["blocks.1.attn.ckpt_z"][:, :, 3].abs().max())
        (1, 0.0)
    """

    what: str
    names: Names
    change: Change
    region: Region
    whole_text: bool = False
    """Whether the change depends on positions beside those that it changes."""

    def __post_init__(self) -> None:
        if isinstance(self.names, Iterator):  # they are read at every run
            object.__setattr__(self, "names", tuple(self.names))

    @classmethod
    @named_arguments()
    def zero(
        cls, names: Names, *, pos: Index = None, heads: Index = None, neurons: Index = None, rows: Index = None
    ) -> Edit:
        """Set to zero."""
        return cls("zero", names, _zero, Region(pos, heads, neurons, rows))

    @classmethod
    @named_arguments()
    def replace(
        cls, names: Names, value: Tensor | float, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Put `value` there."""
        return cls("replace", names, partial(_fitting, value), Region(pos, heads, neurons, rows))

    @classmethod
    @named_arguments()
    def add(
        cls, names: Names, value: Tensor | float, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Add `value`."""
        return cls("add", names, partial(_added, value), Region(pos, heads, neurons, rows))

    @classmethod
    @named_arguments()
    def scale(
        cls, names: Names, factor: Tensor | float, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Multiply by `factor`."""
        return cls("scale", names, partial(_scaled, factor), Region(pos, heads, neurons, rows))

    @classmethod
    @named_arguments()
    def mean_ablate(
        cls, names: Names, reference: ActivationCkpts | None = None, *, pos: Index = None, heads: Index = None,
        neurons: Index = None, rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Replace by the mean over batch and all real positions.

        Args:
            names: A checkpoint or pattern; not scores or patterns, which have no mean over positions.
            reference: The run whose values are averaged; this very run if None.
            pos, heads, neurons, rows: The part to replace.
        """
        if reference is not None:
            _require_captured("mean_ablate", reference)
        region = Region(pos, heads, neurons, rows)
        change = partial(_averaged, reference, region)
        return cls("mean_ablate", names, change, region, whole_text=reference is None)

    @classmethod
    @named_arguments()
    def patch(
        cls, names: Names, source: ActivationCkpts, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Put the value of the same checkpoint of another run there.

        Args:
            names: A checkpoint or pattern.
            source: The other run, whole values. Its texts may have another length if `pos` is given: positions are then
                chosen in each run by themselves, so -1 is the last of both. With `rows`, it holds a text for each row
                of the batch that runs, for each chosen row in their order, or one for all.
            pos, heads, neurons, rows: The part to replace.
        """
        _require_captured("patch", source)
        region = Region(pos, heads, neurons, rows)
        return cls("patch", names, partial(_patched, source, region), region)

    @classmethod
    @named_arguments()
    def apply(
        cls, names: Names, function: Callable[[Tensor], Tensor], *, pos: Index = None, heads: Index = None,
        neurons: Index = None, rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Put `function(part)` there."""
        if not callable(function):
            raise EditError(
                f"apply: {type(function).__name__} given, expected a function of the part.",
                code="edit-kind",
                remedy="Pass a function; Edit.replace takes a value.",
            )
        return cls("apply", names, partial(_applied, function), Region(pos, heads, neurons, rows))

    def __repr__(self) -> str:
        limits = {"pos": self.region.pos, "heads": self.region.heads, "neurons": self.region.neurons,
                  "rows": self.region.rows}  # fmt: skip
        shown = "".join(f", {name}={index!r}" for name, index in limits.items() if index is not None)
        return f"Edit.{self.what}({self.names!r}{shown})"

    def at(self, value: Tensor, site: Site) -> Tensor | None:
        """The value that the model goes on with; None if the positions to change are in another piece of the text.

        Raises:
            EditError: What the change gives does not fit the part it goes to.
        """
        region = self.region
        inside = None if site.start is None else region.within(site.start, value.size(site.pos_axis))
        if inside is not None:
            columns, places = inside
            if not columns:
                return None
            region, site = replace(region, pos=columns), replace(site, chosen=places)
        indices = region.indices(site.name, value.shape, site.axes, strict=True)
        part = take(value, indices)
        changed = self.change(part, site)
        if not isinstance(changed, Tensor) or changed.dtype != part.dtype:
            given = changed.dtype if isinstance(changed, Tensor) else type(changed).__name__
            raise self._misfit(site, f"{given} given, expected a tensor of {part.dtype}")
        try:
            fitted = changed.expand(part.shape)
        except RuntimeError as error:
            shown = f"{list(part.shape)} ({', '.join(site.axes)})"
            raise self._misfit(
                site, f"shape {list(changed.shape)} given, expected {shown} or what broadcasts to it"
            ) from error
        return put(value, indices, fitted)

    def _misfit(self, site: Site, what: str) -> EditError:
        return EditError(
            f"{self!r} at {site.name}: {what}.",
            code="edit-misfit",
            remedy="Give a value of the shape of the part that is edited, every axis kept.",
        )


# What the edits do; functions of the module, so that an edit can be pickled and sent to another process.


def _zero(part: Tensor, site: Site) -> Tensor:
    return torch.zeros_like(part)


def _added(value: Tensor | float, part: Tensor, site: Site) -> Tensor:
    return part + _fitting(value, part, site)


def _scaled(factor: Tensor | float, part: Tensor, site: Site) -> Tensor:
    return part * _fitting(factor, part, site)


def _applied(function: Callable[[Tensor], Tensor], part: Tensor, site: Site) -> Tensor:
    return function(part.clone())


def _averaged(reference: ActivationCkpts | None, within: Region, part: Tensor, site: Site) -> Tensor:
    if Axis.QUERY in site.axes:
        raise EditError(
            f"mean_ablate at {site.name}: scores and patterns have no mean over positions.",
            code="edit-mean-of-pattern",
            remedy="Ablate ckpt_z instead, or replace the pattern by one of your own.",
        )
    if reference is not None and reference.part.heads is not None:
        raise EditError(
            f"mean_ablate at {site.name}: the reference holds some heads only.",
            code="edit-misfit",
            remedy="Capture all heads in the reference; limit the edit by heads= instead.",
        )
    source = site.whole if reference is None else reference[site.name]
    source = take(source, replace(within, pos=None, rows=None).indices(site.name, source.shape, site.axes, strict=True))
    mask = site.batch.mask if reference is None else _kept(reference)
    return _mean(source, mask).to(part)


def _patched(source: ActivationCkpts, region: Region, part: Tensor, site: Site) -> Tensor:
    value, here = source[site.name], region
    if site.start is not None:
        columns = site.whole.size(site.pos_axis)
        inside = region.within(site.start, columns)
        here = replace(region, pos=[site.start + i for i in (range(columns) if inside is None else inside[0])])
    here = _of_the_source(here, value, site, region)
    _require_source(source, value, site, region)
    if site.start is None and (source.batch.padded or site.batch.padded):
        _require_tokens(source.batch, site, here.rows, region)
    chosen = take(value, here.indices(site.name, value.shape, site.axes, strict=True))
    return _fitting(chosen, part, site)


def _require_captured(what: str, given: object) -> None:
    if not isinstance(given, ActivationCkpts):
        raise EditError(
            f"{what}: {type(given).__name__} given, expected the captured values of a run.",
            code="edit-kind",
            remedy="Pass the ActivationCkpts that run_with_ckpts returned.",
        )


def _fitting(value: Tensor | float, part: Tensor, site: Site) -> Tensor:
    """A given value with the part's shape, dtype and device."""
    if isinstance(value, Tensor) and site.chosen is not None:
        from_right = len(site.axes) - site.pos_axis
        if value.dim() >= from_right and value.size(-from_right) > part.size(site.pos_axis):
            value = value.index_select(-from_right, torch.tensor(site.chosen, device=value.device))
    try:
        return torch.as_tensor(value, dtype=part.dtype, device=part.device).expand(part.shape)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise EditError(
            f"edit at {site.name}: {given} given, expected {list(part.shape)} ({', '.join(site.axes)}) "
            "or what broadcasts to it.",
            code="edit-misfit",
            remedy="Give a value of the shape of the part that is edited, every axis kept.",
        ) from error


def _require_source(source: ActivationCkpts, value: Tensor, site: Site, region: Region) -> None:
    """Refuse a source whose values do not fit, but for its number of positions where some of them are chosen."""
    if source.part != Region():
        raise EditError(
            f"patch at {site.name}: the source holds a part of each value, expected whole values.",
            code="patch-of-a-part",
            remedy="Capture the source without pos= and heads=; give them to the patch instead.",
        )
    if site.start is not None or value.shape[1:] == site.whole.shape[1:]:
        return
    lengths = (Axis.BATCH, Axis.KEY, *POSITIONS)
    pairs = zip(site.axes, value.shape, site.whole.shape, strict=True)
    same_model = all(given == wanted for axis, given, wanted in pairs if axis not in lengths)
    keeps_keys = Axis.KEY not in site.axes
    if same_model and keeps_keys and region.pos is not None:
        return
    remedy = "Take the source from a run of the same model."
    if same_model and keeps_keys:
        remedy = "Give pos=, such as pos=-1, which is the last position of each run."
    elif same_model:
        remedy = "Texts of unequal length have other keys: patch attn.ckpt_z instead, with pos=-1."
    raise EditError(
        f"patch at {site.name}: the source holds {list(value.shape)}, expected {list(site.whole.shape)} "
        f"({', '.join(site.axes)}).",
        code="patch-of-another-length" if same_model else "edit-misfit",
        remedy=remedy,
    )


def _of_the_source(here: Region, value: Tensor, site: Site, region: Region) -> Region:
    """The part to take of a source that may hold a text for each chosen row instead of each row of the batch."""
    if region.rows is None or value.size(0) == site.whole.size(0):
        return here
    chosen = len(Region(rows=region.rows).indices(site.name, site.whole.shape, site.axes, strict=True)[0])
    if value.size(0) not in (1, chosen):
        raise EditError(
            f"patch at {site.name}: the source holds {value.size(0)} texts for {chosen} chosen rows of "
            f"{site.whole.size(0)}.",
            code="edit-misfit",
            remedy="Take the source from a run of the same batch, of a text for each chosen row, or of one text.",
        )
    return replace(here, rows=None)


def _require_tokens(source: Batch, site: Site, rows: Index, region: Region) -> None:
    """Refuse to put what stands at a pad of one run where another has a token.

    Args:
        source: Texts of the other run.
        site: Where the edit fires.
        rows: The rows taken of the source.
        region: What is edited.
    """
    given = _columns(source.mask.to(site.whole.device), region.pos, rows)
    wanted = _columns(site.batch.mask.to(site.whole.device), region.pos, region.rows)
    if len(given) in (1, len(wanted)) and bool((wanted & ~given).any()):
        text, column = (int(i) for i in (wanted & ~given).nonzero()[0])
        raise EditError(
            f"patch at {site.name}: text {text} has a token at the chosen column {column} where the source has a pad.",
            code="edit-misfit",
            remedy="Pad both runs alike, or choose positions where both have tokens.",
        )


def _kept(reference: ActivationCkpts) -> Tensor:
    """[B, P], true where a column that was kept holds a token."""
    return _columns(reference.batch.mask, reference.part.pos)


def _columns(mask: Tensor, pos: Index, rows: Index = None) -> Tensor:
    return take(mask, Region(pos, rows=rows).indices("mask", mask.shape, (Axis.BATCH, Axis.POS), strict=True))


def _mean(value: Tensor, mask: Tensor) -> Tensor:
    """[1, 1, ...]: mean of a value [B, P, ...] over batch and the positions that `mask` [B, P] holds for real."""
    wide = torch.promote_types(value.dtype, torch.float32)  # a sum over many tokens is beyond half precision
    weight = mask.to(wide).reshape(*mask.shape, *[1] * (value.dim() - 2))
    if not bool(mask.any()):
        raise EditError(
            "mean_ablate: the reference holds only pads, which have no mean.",
            code="edit-mean-of-pads",
            remedy="Capture positions where some text has a token.",
        )
    return ((value * weight).sum((0, 1), keepdim=True) / weight.sum()).to(value.dtype)
