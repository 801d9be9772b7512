"""How a value is read off the residual stream: a direction behind a norm, taken back before it; its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import InputError, NumericsError, ShapeError, UnknownNameError, shown
from pellucid.extras import need
from pellucid.family.network import Network
from pellucid.measure.labelled import find, first_place
from pellucid.metrics import token_ids
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import Axis, Schema
from pellucid.text.batch import Batch

if TYPE_CHECKING:
    import xarray


LOGITS = "ln_final.ckpt_normalized"
"""What the logits are read from: they are this times W_U."""


@dataclass(frozen=True)
class ReadingPoint:
    """A checkpoint that is linear in the residual stream, once the statistics of the norm between them are given."""

    at: str
    stream: str  # the point of the stream that it reads, such as "blocks.3.resid_pre"
    norm: str = ""  # the norm between the two, such as "blocks.3.ln1"; "" for none
    matrix: str = ""  # the parameter that the norm's output is multiplied by, such as "blocks.3.attn.W_Q"; "" for none
    bias: str = ""  # the parameter that is added to the product; "" for none

    @property
    def between(self) -> frozenset[str]:
        """The checkpoints behind the stream on the way to this one, itself included."""
        normed = {f"{self.norm}.ckpt_scaled", f"{self.norm}.ckpt_normalized"} if self.norm else set[str]()
        return frozenset(normed | {self.at}) - {self.stream}


def opened(ckpts: ActivationCkpts, model: Network | None, at: aliases.Name, by: str) -> tuple[Network, ReadingPoint]:
    """Find the model of a run and the place that is read."""
    if not isinstance(ckpts, ActivationCkpts):
        raise InputError(
            f"{by}: {type(ckpts).__name__} given, expected the captured values of a run.",
            code="not-ckpts",
            remedy="Pass the ActivationCkpts that run_with_ckpts returned.",
        )
    maker = ckpts.made_by(model, by)
    place = place_of(at, maker.schema, by)
    edited = sorted(place.between & (ckpts.edited or frozenset()))
    if edited:
        raise InputError(
            f"{by}: {edited[0]!r} was edited, which lies between the stream and {place.at!r}: no sum over what wrote "
            "the stream can say what it is.",
            code="edited-behind-the-stream",
            remedy="Edit the stream instead (resid_post), or attribute a run without this edit.",
        )
    return maker, place


def require_captured(ckpts: ActivationCkpts, names: list[str], by: str, *, heads: bool = False) -> None:
    """Refuse a run that captured less than is needed, and say all of it at once."""
    missing = [name for name in names if name not in ckpts]
    if missing:
        blocks = re.compile(r"^blocks\.\d+\.")
        kinds = [blocks.sub("blocks.*.", name) for name in names]
        patterns = dict.fromkeys(
            name if kinds.count(kind) == 1 else kind for name, kind in zip(names, kinds, strict=True)
        )
        raise UnknownNameError(
            f"{by} needs {', '.join(map(repr, missing[:3]))}{' and others' * (len(missing) > 3)}, not captured here.",
            code="not-captured",
            remedy=f"Run the text from the embeddings on with names={list(patterns)}.",
        )
    if heads:
        require_all_heads(ckpts, by)


def require_all_heads(ckpts: ActivationCkpts, by: str) -> None:
    """Refuse a run of which some heads alone were kept."""
    if ckpts.part.heads is not None:
        raise InputError(
            f"{by}: some heads alone were kept of this run, expected all.",
            code="attribution-of-some-heads",
            remedy="Capture without heads=, and select heads of the result.",
        )


def place_of(at: aliases.Name, schema: Schema, by: str) -> ReadingPoint:
    """How a checkpoint is read off the stream.

    Args:
        at: A point of the stream, the output of a norm, or a product of that with one matrix: q, k, v, or what enters
            the activation of an MLP.
        schema: The model's schema.
        by: The function that the user called, for messages.
    """
    name = aliases.resolved(at, schema)
    earlier = schema.names[: schema.names.index(name) + 1]
    streams = [n for n in earlier if n.rpartition(".")[2].startswith("resid_")]
    norms = [n.removesuffix(".ckpt_normalized") for n in earlier if n.endswith(".ckpt_normalized")]
    if streams and name == streams[-1]:
        return ReadingPoint(name, name)
    if streams and norms and name == f"{norms[-1]}.ckpt_normalized":
        return ReadingPoint(name, streams[-1], norms[-1])
    block = f"{'.'.join(name.split('.')[:2])}."
    used = [schema.parameter(block + own) for own in schema[name].parameters if name.startswith("blocks.")]
    reads_the_stream = bool(used) and "d_model" in used[0].axes and used[0].axes[-1] != "d_model"
    if not (streams and norms and reads_the_stream):
        raise InputError(
            f"{by}: at={name!r} is not linear in the residual stream.",
            code="not-linear-in-the-stream",
            remedy="Give a point of the stream (resid_post), the output of a norm (ln1.ckpt_normalized), or its "
            "product with one matrix, such as attn.ckpt_q.",
        )
    return ReadingPoint(name, streams[-1], norms[-1], used[0].name, used[1].name if len(used) > 1 else "")


@dataclass(frozen=True)
class Reading:
    """What a direction at a checkpoint reads of the stream."""

    place: ReadingPoint  # the checkpoint and its way from the stream
    weights: Tensor  # [B, P, D] in float64; a part of the stream adds its product with this
    biases: dict[str, Tensor]  # name of each bias behind the stream -> what it adds, [B, P]


def reading(model: Network, ckpts: ActivationCkpts, target: Any, place: ReadingPoint, by: str) -> Reading:
    """Take a token, a pair of tokens or a direction back to the stream of a run."""
    stream = doubles(ckpts[place.stream])
    direction = _direction(model, ckpts.batch, target, place, by)
    biases: dict[str, Tensor] = {}
    if place.matrix:
        matrix = doubles(model.parameter(place.matrix))
        _require_shape(direction, (*stream.shape[:2], *matrix.shape[:-2], matrix.shape[-1]), place, by)
        if place.bias:
            own = direction * doubles(model.parameter(place.bias))
            biases[place.bias] = own.flatten(-(matrix.dim() - 1)).sum(-1)
        through = "...m,dm->...d" if matrix.dim() == 2 else "...hk,hdk->...d"
        direction = torch.einsum(through, direction, matrix)
    _require_shape(direction, tuple(stream.shape), place, by)
    if place.norm:
        norm: Any = model.get_submodule(place.norm)
        if (bias := f"{place.norm}.b") in model.parameter_names:
            biases = {bias: (direction * doubles(model.parameter(bias))).sum(-1), **biases}
        device = norm.w.device
        direction = norm.reads(direction.to(device), stream.to(device)).detach().cpu()
    added = {name: value.expand(stream.shape[:2]) for name, value in biases.items()}
    return Reading(place, direction.expand(stream.shape), added)


def doubles(value: Tensor) -> Tensor:
    """A tensor in float64 on the processor, without its gradient."""
    return value.detach().cpu().double()


def batch_with_tokens(batch: Batch, model: Network) -> Batch:
    """A batch that can read tokens: one from a file knows neither the tokenizer nor the size of the vocabulary."""
    return replace(batch, tokenizer=batch.tokenizer or getattr(model, "tokenizer", None), checked=model.config)


def _direction(model: Network, batch: Batch, target: Any, place: ReadingPoint, by: str) -> Tensor:
    """What is dotted with the value at the place: [..., D] and so on, to be broadcast over [B, P]."""
    if isinstance(target, (Tensor, np.ndarray)) and target.ndim:
        direction = torch.as_tensor(target, device=getattr(target, "device", "cpu"))
        if not direction.is_floating_point():
            raise InputError(
                f"{by}: a direction of {direction.dtype}, expected floating-point numbers.",
                code="attribution-target",
                remedy="Give a token as a whole number or text, a pair of tokens as a tuple, or a direction [D].",
            )
        return doubles(direction)
    if place.at != LOGITS:
        raise InputError(
            f"{by}: {shown(target)} at {place.at!r}, expected a direction: tokens are read off the logits alone.",
            code="attribution-target",
            remedy="Leave at= out, or give a tensor that is dotted with the value at this checkpoint.",
        )
    known = batch_with_tokens(batch, model)
    head = model.parameter("unembed.W_U").detach().t()
    if isinstance(target, list) and target and all(isinstance(one, tuple) for one in target):
        short = next((one for one in target if len(one) != 2), None)
        target = tuple(map(list, zip(*target, strict=True))) if short is None else short
    if not isinstance(target, tuple):
        return _rows(head, target, known, by)
    if len(target) != 2:
        raise InputError(
            f"{by}: {len(target)} tokens in a tuple, expected a pair.",
            code="attribution-target",
            remedy="Give one token, a pair (right, wrong) whose difference is meant, or a list with one of these for "
            "each text.",
        )
    right, wrong = (_rows(head, token, known, by) for token in target)
    return right - wrong


def _rows(head: Tensor, tokens: Any, batch: Batch, by: str) -> Tensor:
    """[D] or [B, 1, D] of one token, or of one for each text."""
    found = doubles(head[token_ids(tokens, batch, by).to(head.device)])  # a whole head of GPT-2 takes 309 MB
    return found[0] if len(found) == 1 else found[:, None]


def _require_shape(direction: Tensor, shape: tuple[int, ...], place: ReadingPoint, by: str) -> None:
    own = shape[2:]
    try:
        fits = direction.dim() >= len(own) and direction.expand(shape).shape[2:] == direction.shape[-len(own) :]
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{by}: a direction {list(direction.shape)} at {place.at!r}, expected {list(own)}, or {list(shape)} for "
            "one at each position.",
            code="attribution-target",
            remedy="Give a direction of the shape of the value at one position.",
        )


COMPONENT = "component"
"""The axis of the parts."""


class Contribution(NamedTuple):
    """Entries of the axis of parts that come from one place."""

    names: list[str]  # one for each entry
    layer: int  # the block; -1 for none
    values: Tensor  # [entries, B, P], perhaps with a further axis of keys


def labelled(
    parts: list[Contribution], ckpts: ActivationCkpts, place: ReadingPoint, real: Tensor, **attrs: str
) -> xarray.DataArray:
    """Return parts as an array [component, batch, pos], or [component, batch, pos, key].

    Parts of one name, such as the halves of a block, become one entry, their sum.
    """
    merged: dict[str, Contribution] = {}
    for part in parts:
        known = merged.get(part.names[0])
        merged[part.names[0]] = part if known is None else part._replace(values=known.values + part.values)
    data = torch.cat([part.values for part in merged.values()])
    names = [name for part in merged.values() for name in part.names]
    wrong = ~data.isfinite() & real
    dims = (COMPONENT, str(Axis.BATCH), str(Axis.POS), str(Axis.KEY))[: data.dim()]
    if bool(wrong.any()):
        at, where = first_place(dims, wrong.numpy())
        raise NumericsError(
            f"attribution: the part of {names[at[0]]} is not finite ({where}).",
            code="attribution-not-finite",
            remedy="Look for weights that are NaN or infinite: model.parameter(name).isfinite().",
        )
    several = [len(part.names) > 1 or part.names[0].endswith("]") for part in merged.values()]
    pairs = [(part, i if many else -1) for part, many in zip(merged.values(), several, strict=True)
             for i in range(len(part.names))]  # fmt: skip
    coords = {
        **ckpts.coordinates(dims[1:]),
        COMPONENT: names,
        "layer": (COMPONENT, [part.layer for part, _ in pairs]),
        "index": (COMPONENT, [index for _, index in pairs]),
    }
    values = data.masked_fill(~real, torch.nan).numpy()
    array = need("xarray", "pellucid.attribution").DataArray(values, dims=dims, coords=coords, name="attribution")
    return array.assign_attrs({**find(ckpts, place.stream).attributes(), "checkpoint": place.at, **attrs})
