"""What edits do to the part of a value that they change: functions of a module, so that an edit can be pickled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.errors import EditError
from pellucid.numerics.products import recordable
from pellucid.run.activations import ActivationCkpts
from pellucid.run.region import Index, Region, take
from pellucid.schema import POSITIONS, Axes, Axis
from pellucid.text.batch import Batch


@dataclass(frozen=True)
class Site:
    """Where an edit fires."""

    name: str
    axes: Axes  # the axes of its value
    batch: Batch
    whole: Tensor  # the whole value, as it was
    # the column of the text at which the value begins, if a text is run piece by piece; else None
    start: int | None = None
    chosen: list[int] | None = None  # which of the positions that the edit names are in this piece; None for all

    @property
    def pos_axis(self) -> int:
        """The axis of positions, of queries for scores and patterns."""
        return next(i for i, axis in enumerate(self.axes) if axis in POSITIONS)


Change = Callable[[Tensor, Site], Tensor]
"""What becomes of the chosen part of a value; the result must broadcast to the part's shape."""


def misfit(
    where: str, what: str, remedy: str = "Give a value of the shape of the part that is edited, every axis kept."
) -> EditError:
    """The error for a value that does not fit the part that it is put into."""
    return EditError(f"{where}: {what}.", code="edit-misfit", remedy=remedy)


def expected(given: str, part: Tensor, site: Site) -> str:
    """What a misfit says of shapes."""
    return f"{given} given, expected {list(part.shape)} ({', '.join(site.axes)}) or what broadcasts to it"


def zero(part: Tensor, site: Site) -> Tensor:
    return torch.zeros_like(part)


def added(value: Tensor | float, part: Tensor, site: Site) -> Tensor:
    return part + fitting(value, part, site)


def scaled(factor: Tensor | float, part: Tensor, site: Site) -> Tensor:
    return part * fitting(factor, part, site)


def applied(function: Callable[[Tensor], Tensor], part: Tensor, site: Site) -> Tensor:
    return function(part.clone())


def averaged(reference: ActivationCkpts | None, within: Region, part: Tensor, site: Site) -> Tensor:
    if Axis.QUERY in site.axes:
        raise EditError(
            f"mean_ablate at {site.name}: scores and patterns have no mean over positions.",
            code="edit-mean-of-pattern",
            remedy="Ablate ckpt_z instead, or replace the pattern by one of your own.",
        )
    if reference is not None and reference.part.heads is not None:
        remedy = "Capture all heads in the reference; limit the edit by heads= instead."
        raise misfit(f"mean_ablate at {site.name}", "the reference holds some heads only", remedy)
    source = site.whole if reference is None else reference[site.name]
    source = take(source, replace(within, pos=None, rows=None).indices(site.name, source.shape, site.axes, strict=True))
    mask = site.batch.mask if reference is None else _columns(reference.batch.mask, reference.part.pos)
    return _mean(source, mask).to(part)


def patched(source: ActivationCkpts, region: Region, part: Tensor, site: Site) -> Tensor:
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
    return fitting(chosen, part, site)


def require_captured(what: str, given: object) -> None:
    if not isinstance(given, ActivationCkpts):
        raise EditError(
            f"{what}: {type(given).__name__} given, expected the captured values of a run.",
            code="edit-kind",
            remedy="Pass the ActivationCkpts that run_with_ckpts returned.",
        )


def fitting(value: Tensor | float, part: Tensor, site: Site) -> Tensor:
    """A given value with the part's shape, dtype and device."""
    if isinstance(value, Tensor) and site.chosen is not None:
        from_right = len(site.axes) - site.pos_axis
        if value.dim() >= from_right and value.size(-from_right) > part.size(site.pos_axis):
            value = value.index_select(-from_right, torch.tensor(site.chosen, device=value.device))
    try:
        return recordable(torch.as_tensor(value, dtype=part.dtype, device=part.device)).expand(part.shape)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        given = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise misfit(f"edit at {site.name}", expected(given, part, site)) from error


def _require_source(source: ActivationCkpts, value: Tensor, site: Site, region: Region) -> None:
    """Refuse a source whose values do not fit, but for its number of positions if some of them are chosen."""
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
        raise misfit(
            f"patch at {site.name}",
            f"the source holds {value.size(0)} texts for {chosen} chosen rows of {site.whole.size(0)}",
            "Take the source from a run of the same batch, of a text for each chosen row, or of one text.",
        )
    return replace(here, rows=None)


def _require_tokens(source: Batch, site: Site, rows: Index, region: Region) -> None:
    """Refuse to put what stands at a pad of one run where another has a token."""
    given = _columns(source.mask.to(site.whole.device), region.pos, rows)
    wanted = _columns(site.batch.mask.to(site.whole.device), region.pos, region.rows)
    if len(given) in (1, len(wanted)) and bool((wanted & ~given).any()):
        text, column = (int(i) for i in (wanted & ~given).nonzero()[0])
        raise misfit(
            f"patch at {site.name}",
            f"text {text} has a token at the chosen column {column} where the source has a pad",
            "Pad both runs alike, or choose positions where both have tokens.",
        )


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
