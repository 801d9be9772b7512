"""Direct attribution: a logit, or another value that is read off the residual stream, as a sum over what wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pellucid.attribution.reading import (
    LOGITS,
    Contribution,
    Reading,
    doubles,
    labelled,
    opened,
    reading,
    require_captured,
)
from pellucid.check import require_one_of
from pellucid.errors import InputError, NumericsError, shown
from pellucid.family.network import Network
from pellucid.measure.labelled import find
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import Schema

if TYPE_CHECKING:
    import xarray


By = Literal["component", "head", "neuron", "block"]

_CAPTURED = {
    "component": ("attn.ckpt_attn_out", "mlp.ckpt_mlp_out"),
    "head": ("attn.ckpt_z", "mlp.ckpt_mlp_out"),
    "neuron": ("attn.ckpt_attn_out", "mlp.ckpt_post"),
    "block": ("attn.ckpt_attn_out", "mlp.ckpt_mlp_out"),
}
"""What attention and the MLP of each block are attributed from."""


def direct(
    ckpts: ActivationCkpts,
    target: Any,
    *,
    by: By = "component",
    at: aliases.Name = LOGITS,
    model: Network | None = None,
) -> xarray.DataArray:
    """Compute what each component adds to a logit, a difference of logits, or any direction.

    A part c of the stream r adds <g (c - mean c) / s, W_U[:, t]> to the logit of token t, with s the standard deviation
    of r in this run and g the gain of the last norm; a root-mean-square norm does not subtract the mean. The bias of
    the norm adds <b, W_U[:, t]>. Everything is computed in float64. A part is the value that the run went on with:
    an edited head's part is what it wrote after the edit.

    Args:
        ckpts: A run that captured what `by` needs; the error says what is missing.
        target: A token (its id, or a text that is one token), a pair of them as a tuple (their difference), a list with
            one of either for each text, or a direction [D] that is dotted with the output of the last norm.
        by: "component": the embeddings, each attention layer, each MLP. "head": each head, with its share of the value
            bias, and b_O of each layer, in place of the attention layers. "neuron": each neuron, and b_out of each
            layer, in place of the MLPs. "block": the embeddings, and what each block adds.
        at: Where the target is read. Another place than the last norm's output takes a direction of the shape of the
            value there at one position (or at each, [B, P, ...]): a point of the stream, the output of another norm,
            queries, keys or values, or what enters the activation of an MLP.
        model: The model that made the captured values, if they were saved or pickled since.

    Returns:
        [component, batch, pos]; the sum over `component` is the logit, or the dot product of the target with the value
        at `at`. The coordinate `component` names each part ("ckpt_embed", "blocks.1.attn", "blocks.1.attn[3]",
        "blocks.1.mlp[70]", "blocks.1.attn.b_O", "ln_final.b"); `layer` and `index` (the head or neuron) are -1 where
        there is none. An edited run has the entry "edits", what edits added between the parts. Pads are NaN.

    Raises:
        UnknownNameError: If a checkpoint that is needed was not captured.
        InputError: If the target does not fit, edits are behind the stream, or the model is not the run's.
        NumericsError: If a part is not finite, or the parts do not sum to the whole although no edit was made.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> logits, ckpts = model.run_with_ckpts("Once upon a time")
        >>> parts = pl.attribution.direct(ckpts, 300, by="head")
        >>> parts.sizes["component"], abs(float(parts.sum("component")[0, -1]) - float(logits[0, -1, 300])) < 1e-4
        (27, True)
    """
    what = f"attribution.direct by={by!r}"
    require_one_of("attribution.direct: by", by, _CAPTURED, code="attribution-by")
    maker, place = opened(ckpts, model, at, "attribution.direct")
    writers = list(_writers(maker.schema, place.stream))
    require_captured(ckpts, [place.stream, *(_captured_of(w, by) for w in writers)], what, heads=by == "head")
    read = reading(maker, ckpts, target, place, "attribution.direct")
    parts = [part for writer in writers for part in _parts(writer, by, read, maker, ckpts)]
    parts += _biases(read)
    rest = _unexplained(parts, read, ckpts, maker)
    if rest is not None:
        parts.append(rest)
    real = ckpts.batch.mask.cpu()[:, ckpts.columns]
    units = {} if getattr(target, "ndim", 0) else {"units": "logits"}  # of a direction, they are the caller's
    title = f"direct attribution by {by}"
    return labelled(parts, ckpts, place, real, by=by, target=shown(target), title=title, **units)


@dataclass(frozen=True)
class _Writer:
    """Something that adds to the stream: an embedding, or the attention or MLP of a block."""

    layer: int
    half: str
    """ "attn" or "mlp"; of embeddings the checkpoint."""


def _writers(schema: Schema, stream: str) -> Iterator[_Writer]:
    """What has written into the stream at one of its points."""
    yield from (_Writer(-1, point.name) for point in schema.before)
    order = schema.names.index
    streams = [order(point.name) for point in schema.points if point.name.rpartition(".")[2].startswith("resid_")]
    for layer in range(len(schema.blocks)):
        for half in ("attn", "mlp"):
            out = order(f"blocks.{layer}.{half}.ckpt_{half}_out")
            if next(place for place in streams if place > out) <= order(stream):
                yield _Writer(layer, half)


def _captured_of(writer: _Writer, by: str) -> str:
    if writer.layer < 0:
        return writer.half
    return f"blocks.{writer.layer}.{_CAPTURED[by][writer.half == 'mlp']}"


def _parts(writer: _Writer, by: str, read: Reading, model: Network, ckpts: ActivationCkpts) -> Iterator[Contribution]:
    """What one writer adds, entry by entry."""
    captured = _captured_of(writer, by)
    value, weights = doubles(ckpts[captured]), read.weights
    place = captured.rpartition(".")[0]
    if captured.endswith("ckpt_z"):
        through = torch.einsum("bpd,hkd->bphk", weights, doubles(model.parameter(f"{place}.W_O")))
        added, bias = (value * through).sum(-1), f"{place}.b_O"
    elif captured.endswith("ckpt_post"):
        added = value * (weights @ doubles(model.parameter(f"{place}.W_out")).t())
        bias = f"{place}.b_out"
    else:
        name = writer.half if writer.layer < 0 else f"blocks.{writer.layer}" + f".{writer.half}" * (by != "block")
        yield Contribution([name], writer.layer, (value * weights).sum(-1)[None])
        return
    names = [f"{place}[{i}]" for i in range(added.size(-1))]
    yield Contribution(names, writer.layer, added.movedim(-1, 0))
    if bias in model.parameter_names:
        number = doubles(model.parameter(bias))
        yield Contribution([bias], writer.layer, (number * weights).sum(-1)[None])


def _biases(read: Reading) -> list[Contribution]:
    """What is added behind the stream."""
    layer = int(read.place.at.split(".")[1]) if read.place.at.startswith("blocks.") else -1
    return [Contribution([name], layer, value[None]) for name, value in read.biases.items()]


def _unexplained(
    parts: list[Contribution], read: Reading, ckpts: ActivationCkpts, model: Network
) -> Contribution | None:
    """What edits added between the parts; None in a run without edits, where the parts are the whole."""
    stream = doubles(ckpts[read.place.stream])
    whole = (stream * read.weights).sum(-1) + sum(read.biases.values())
    rest = whole - torch.stack([part.values.sum(0) for part in parts]).sum(0)
    if ckpts.edited != frozenset():
        return Contribution(["edits"], -1, rest[None])
    # rounding is far below the root of the precision, and what a hook or dropout changes is seldom
    precision = torch.finfo(model.execution.rounds_to or ckpts[read.place.stream].dtype).eps ** 0.5
    size = stream.norm(dim=-1) * read.weights.norm(dim=-1)
    size = size + torch.stack([part.values.abs().sum(0) for part in parts]).sum(0)
    real = ckpts.batch.mask.cpu()[:, ckpts.columns]
    if bool(((rest.abs() > precision * size) & real).any()):
        raise NumericsError(
            f"attribution: the parts do not add up to {read.place.at!r}, though no pl.Edit was made: a native hook or "
            "dropout changed values on the way.",
            code="parts-do-not-sum",
            remedy="Run the text with model.eval() and without hooks that replace values; pl.Edit changes values in a "
            "way that is known.",
        )
    return None


_PATTERN, _V, _Z = "attn.ckpt_pattern", "attn.ckpt_v", "attn.ckpt_z"


def sources(
    ckpts: ActivationCkpts, target: Any, *, at: aliases.Name = LOGITS, model: Network | None = None
) -> xarray.DataArray:
    """Compute what each head adds to a logit or direction by way of each token that it attends to.

    A head's output at query q is the sum over keys k of pattern[q, k] v[k] W_O, and each term is attributed as
    `direct` attributes the whole.

    Args:
        ckpts: A run that captured whole patterns, values and the last point of the stream; the error says what is
            missing.
        target, at, model: As for `direct`.

    Returns:
        [component, batch, pos, key]; `pos` is where the head writes, `key` the token that it reads. The sum over `key`
        is the head's entry in `direct(..., by="head")`. Coordinates are those of `direct`. Pads are NaN, and so are
        keys that the query cannot see.

    Raises:
        UnknownNameError: If a checkpoint that is needed was not captured.
        InputError: As for `direct`; or if some positions or heads alone were kept, or `attn.ckpt_z` was edited.
        NumericsError: If a number is not finite.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time")
        >>> pl.attribution.sources(ckpts, 300).sizes
        Frozen({'component': 16, 'batch': 1, 'pos': 4, 'key': 4})
    """
    by = "attribution.sources"
    maker, place = opened(ckpts, model, at, by)
    layers = _layers_before(place.stream, len(maker.schema.blocks))
    if not layers:
        raise InputError(
            f"{by}: no head writes into {place.at!r}, which comes before the first of them.",
            code="no-head-before",
            remedy="Give a later place: at='blocks.0.resid_post' or one behind it.",
        )
    names = [f"blocks.{layer}.{kind}" for layer in layers for kind in (_PATTERN, _V)]
    require_captured(ckpts, [place.stream, *names], by)
    if ckpts.part.pos is not None or ckpts.part.heads is not None:
        raise InputError(
            f"{by}: some positions or heads alone were kept of this run, expected all.",
            code="attribution-of-some-heads",
            remedy="Capture without pos= and heads=, and select from the result.",
        )
    edited = sorted({f"blocks.{layer}.{_Z}" for layer in layers} & (ckpts.edited or frozenset()))
    if edited:
        raise InputError(
            f"{by}: {edited[0]!r} was edited, so it is no longer the sum over the keys of pattern and values.",
            code="edited-behind-the-stream",
            remedy="Edit attn.ckpt_pattern or attn.ckpt_v instead, or attribute a run without this edit.",
        )
    read = reading(maker, ckpts, target, place, by)
    parts = [_by_key(maker, ckpts, read.weights, layer) for layer in layers]
    seen = find(ckpts, f"blocks.{layers[0]}.{_PATTERN}").real
    assert seen is not None
    return labelled(parts, ckpts, place, seen[:, 0], by="source", target=shown(target))


def _layers_before(stream: str, n_layer: int) -> list[int]:
    """The blocks whose heads have written into the stream at one of its points."""
    _, block, kind = stream.split(".")
    return list(range(min(int(block) + (kind != "resid_pre"), n_layer)))


def _by_key(model: Network, ckpts: ActivationCkpts, weights: Tensor, layer: int) -> Contribution:
    """What the heads of one block add, [head, B, Pq, Pk]."""
    pattern = doubles(ckpts[f"blocks.{layer}.{_PATTERN}"])
    values = doubles(ckpts[f"blocks.{layer}.{_V}"])
    values = values.repeat_interleave(pattern.size(1) // values.size(2), 2)  # heads of values that queries share
    through = torch.einsum("bpd,hkd->bphk", weights, doubles(model.parameter(f"blocks.{layer}.attn.W_O")))
    added = (pattern * torch.einsum("bqhk,bphk->bhqp", through, values)).transpose(0, 1)
    return Contribution([f"blocks.{layer}.attn[{head}]" for head in range(len(added))], layer, added)
