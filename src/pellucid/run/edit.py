"""Edits: a checkpoint's value replaced, in whole or in part, while the model runs.

An edit never writes into the model's own tensors: it hands back a new one, which is what the model goes on
with. Each run counts how often each edit fired; one that never fired is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from pellucid.errors import EditError
from pellucid.names.aliases import Names
from pellucid.names.attributes import EDIT, unknown_attribute
from pellucid.names.calls import named_methods
from pellucid.run import changes
from pellucid.run.activations import ActivationCkpts
from pellucid.run.changes import Change, Site
from pellucid.run.region import Index, Region, put, take, warn_of_pads
from pellucid.schema import Axis


class _Ways(type):
    """Answers what other libraries call an edit with what it is called here."""

    def __getattr__(cls, name: str) -> Any:
        raise unknown_attribute(f"type object {cls.__name__!r}", name, EDIT)


@named_methods
@dataclass(frozen=True, eq=False)
class Edit(metaclass=_Ways):
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
    source: ActivationCkpts | None = None
    """The run whose values it puts there."""

    def __post_init__(self) -> None:
        if isinstance(self.names, Iterator):  # they are read at every run
            object.__setattr__(self, "names", tuple(self.names))

    @classmethod
    def zero(
        cls, names: Names, *, pos: Index = None, heads: Index = None, neurons: Index = None, rows: Index = None
    ) -> Edit:
        """Set to zero."""
        return cls("zero", names, changes.zero, Region(pos, heads, neurons, rows))

    @classmethod
    def replace(
        cls, names: Names, value: Tensor | float, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Put `value` there."""
        return cls("replace", names, partial(changes.fitting, value), Region(pos, heads, neurons, rows))

    @classmethod
    def add(
        cls, names: Names, value: Tensor | float, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Add `value`."""
        return cls("add", names, partial(changes.added, value), Region(pos, heads, neurons, rows))

    @classmethod
    def scale(
        cls, names: Names, factor: Tensor | float, *, pos: Index = None, heads: Index = None, neurons: Index = None,
        rows: Index = None,
    ) -> Edit:  # fmt: skip
        """Multiply by `factor`."""
        return cls("scale", names, partial(changes.scaled, factor), Region(pos, heads, neurons, rows))

    @classmethod
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
            changes.require_captured("mean_ablate", reference)
        region = Region(pos, heads, neurons, rows)
        change = partial(changes.averaged, reference, region)
        return cls("mean_ablate", names, change, region, whole_text=reference is None, source=reference)

    @classmethod
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
        changes.require_captured("patch", source)
        region = Region(pos, heads, neurons, rows)
        return cls("patch", names, partial(changes.patched, source, region), region, source=source)

    @classmethod
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
        return cls("apply", names, partial(changes.applied, function), Region(pos, heads, neurons, rows))

    def __repr__(self) -> str:
        limits = {"pos": self.region.pos, "heads": self.region.heads, "neurons": self.region.neurons,
                  "rows": self.region.rows}  # fmt: skip
        shown = "".join(f", {name}={index!r}" for name, index in limits.items() if index is not None)
        return f"Edit.{self.what}({self.names!r}{shown})"

    def at(self, value: Tensor, site: Site) -> Tensor | None:
        """The value that the model goes on with; None if the positions to change are in another piece of the text."""
        region = self.region
        inside = None if site.start is None else region.within(site.start, value.size(site.pos_axis))
        if inside is not None:
            columns, places = inside
            if not columns:
                return None
            region, site = replace(region, pos=columns), replace(site, chosen=places)
        indices = region.indices(site.name, value.shape, site.axes, strict=True)
        if region.pos is not None and site.batch.padded:
            self._warn_of_pads(site, indices[site.pos_axis])
        part = take(value, indices)
        changed = self.change(part, site)
        if not isinstance(changed, Tensor) or changed.dtype != part.dtype:
            given = changed.dtype if isinstance(changed, Tensor) else type(changed).__name__
            raise changes.misfit(f"{self!r} at {site.name}", f"{given} given, expected a tensor of {part.dtype}")
        try:
            fitted = changed.expand(part.shape)
        except RuntimeError as error:
            given = changes.expected(f"shape {list(changed.shape)}", part, site)
            raise changes.misfit(f"{self!r} at {site.name}", given) from error
        return put(value, indices, fitted)

    def _warn_of_pads(self, site: Site, columns: Tensor) -> None:
        """Warn of columns of which one is a pad in a text that is changed."""
        mask, axes = site.batch.mask, (Axis.BATCH, Axis.POS)
        mask = take(mask, Region(rows=self.region.rows).indices(site.name, mask.shape, axes, strict=True))
        columns = columns + (site.start or 0)  # of the prompts, if a text is run piece by piece
        warn_of_pads(repr(self), self.region.pos, columns[columns < mask.size(1)], mask)
