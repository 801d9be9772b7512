"""Edges between the parts of a model, scored by gradients: what one writes, times what follows where another reads it.

The residual stream at a reader is the sum of what was written before it, so a change of one writer reaches the reader
as it is. How the metric follows from a change there is the gradient through that reader alone: through the query of one
head, say, with its LayerNorm, and everything behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from pellucid.attribution.gradient import agreement, differentiable, gradient_run
from pellucid.check import require_seed, require_whole
from pellucid.circuits.ablations import EMBEDDED, KINDS, Ablations, Choices, written_in
from pellucid.circuits.circuit import EMBEDDINGS, LOGITS, Edge, Graph
from pellucid.extras import need
from pellucid.metrics import Metric, measured
from pellucid.numerics.dispatch import recorded
from pellucid.patching.measured_runs import Direction, Texts, require_room
from pellucid.patching.paths import MLP_OUT, Z
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.schema import RESIDUAL, Schema
from pellucid.text.batch import Batch, Inputs

if TYPE_CHECKING:
    import xarray

HEARD = ("attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v")
ATTN_NORM, MLP_NORM = "ln1.ckpt_normalized", "ln2.ckpt_normalized"


@told("edges: interrupted, nothing was measured")
@recorded()
def edges(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    *,
    metric: Metric,
    steps: int = 1,
    direction: Direction = "denoise",
    check: int = 0,
    seed: int = 0,
) -> xarray.DataArray:
    """Score every edge between two parts of a model: edge attribution patching (Syed et al. 2023, arXiv:2310.10348).

    The score is (what the sender writes in the source run - what it writes in the base run) . dm/d(what the receiver
    reads), summed over positions. With more steps than one, the gradient is averaged over input embeddings between base
    and source, left ends (EAP-IG; Hanna et al. 2024, arXiv:2403.17806).

    Args:
        model: What runs.
        clean, corrupted: Texts of equal length, as many of the one as of the other.
        metric: What to read off each run; it must be differentiable.
        steps: Points at which the gradient is taken.
        direction: "denoise" puts clean values into corrupted runs, "noise" corrupted ones into clean runs.
        check: How many edges to patch in fact, drawn at random, so that the estimate can state its error.
        seed: Of that draw.

    Returns:
        [sender, receiver] in the metric's unit, the mean over texts: an estimate of the metric with that edge patched
        minus that of the base run. Senders are "embeddings", heads "blocks.5.attn[3]" and "blocks.5.mlp"; receivers the
        queries, keys and values of each head, "blocks.9.attn.q[9]", what each MLP reads, "blocks.9.mlp", and "logits".
        NaN if the sender does not come before the receiver. Attributes: `clean` and `corrupted`, the metric of the two
        plain runs; with `check`, those that `gradient` has.

    Raises:
        ShapeError: If the texts have unequal lengths.
        NumericsError: If no gradient goes through the metric.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> scores = pl.attribution.edges(
        ...     pl.load(), clean, corrupted, metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> scores.sizes, scores.sel(receiver="logits").idxmax("sender").item()
        (Frozen({'sender': 21, 'receiver': 53}), 'blocks.3.attn[0]')
    """
    steps, check = require_whole("edges: steps", steps, at_least=1), require_whole("edges: check", check)
    seed = require_seed("edges: seed", seed)
    pair, schema = Texts.of(model, clean, corrupted, direction, None), model.schema
    pair.require_equal_lengths("edges", "Give texts of equal length; pl.attribution.gradient takes align= for others.")
    kept = ("ckpt_embed", *written_in(schema))
    streams, inner = _streams_and_inner(schema)
    require_room(model, pair.base, pair.source, list(dict.fromkeys((*kept, *streams, *inner))), metric, None)
    theirs, source = model.run_with_ckpts(pair.source, names=kept)
    logits, own = _run(model, pair.base, kept)
    assert theirs is not None, "the run was not stopped"
    plain = measured(metric, logits, pair.base, of=f"the {pair.into} run")
    about = pair.about(model, metric, plain, measured(metric, theirs, pair.source, of=f"the {pair.taken} run"))
    change = {name: source[name] - own[name].detach() for name in kept}
    senders, heard = dict(_senders(model, change)), dict(_readers(model, metric, logits, own))
    for step in range(1, steps):
        moved = Edit.add("ckpt_embed", step / steps * change["ckpt_embed"])
        for name, gradient in _readers(model, metric, *_run(model, pair.base, (), [moved])):
            heard[name] = heard[name] + gradient
    scores = _scores(senders, heard, frozenset(Graph(schema).edges)) / (steps * len(pair.base))
    values, names = scores.double().cpu().numpy(), (list(senders), list(heard))
    about |= {"direction": direction, "steps": steps, "title": "edges by gradients", "unchanged": 0.0}
    if check:
        defined = np.argwhere(~np.isnan(values))
        drawn = defined[
            torch.randperm(len(defined), generator=torch.Generator().manual_seed(seed), device="cpu")[:check].numpy()
        ]
        patched = _patched(model, pair, metric, direction, [(names[0][i], names[1][j]) for i, j in drawn])
        about |= agreement(patched, [float(values[i, j]) for i, j in drawn])
    array = need("xarray", "pellucid.attribution").DataArray
    coords = dict(zip(("sender", "receiver"), names, strict=True))
    return array(values, dims=tuple(coords), name="edges", coords=coords, attrs=about)


def _patched(
    model: CkptedTransformer, pair: Texts, metric: Metric, direction: Direction, edges: Sequence[tuple[str, str]]
) -> list[float]:
    """What each edge does to the metric in a run in which it alone is patched."""
    texts = (pair.source, pair.base) if direction == "denoise" else (pair.base, pair.source)
    runs = Ablations(model, *texts, metric, Choices("edges", KINDS, "resample", None, direction))
    if direction == "denoise":
        return (runs.keeping([{edge} for edge in edges]) - runs.corrupted).mean(-1).tolist()
    every = frozenset(runs.universe)  # what is not kept is patched
    return (runs.keeping([every - {edge} for edge in edges]) - runs.clean).mean(-1).tolist()


def _senders(model: CkptedTransformer, change: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each part that writes, and what it writes in the source run less what it writes in the base run, [B, P, D]."""
    yield EMBEDDINGS, change[EMBEDDED]
    for i in range(len(model.schema.blocks)):
        z = change[f"blocks.{i}.{Z}"]
        W_O = model.parameter(f"blocks.{i}.attn.W_O").detach()
        for head in range(z.size(2)):
            yield f"blocks.{i}.attn[{head}]", z[:, :, head] @ W_O[head]
        if (written := change.get(f"blocks.{i}.{MLP_OUT}")) is not None:
            yield f"blocks.{i}.mlp", written


def _streams_and_inner(schema: Schema) -> tuple[list[str], list[str]]:
    """The points of the stream, and what readers make of them."""
    streams = [point.name for point in schema.points if point.axes == RESIDUAL and "resid" in point.name]
    inner = [
        f"blocks.{i}.{kind}" for i in range(len(schema.blocks)) for kind in (*HEARD, ATTN_NORM, MLP_NORM)
        if f"blocks.{i}.{kind}" in schema
    ]  # fmt: skip
    return streams, inner


def _run(
    model: CkptedTransformer, batch: Batch, kept: Sequence[str], edits: Sequence[Edit] = ()
) -> tuple[Tensor, ActivationCkpts]:
    """A run on the path of its gradient, with what readers need and some other values."""
    streams, inner = _streams_and_inner(model.schema)
    return gradient_run(model, batch, [*streams, *inner, *kept], edits)


def _readers(
    model: CkptedTransformer, metric: Metric, logits: Tensor, ckpts: ActivationCkpts
) -> Iterator[tuple[str, Tensor]]:
    """Each part that reads, and dm/d(the stream where it reads) through this part alone, [B, P, D]."""
    schema = model.schema
    streams, inner = _streams_and_inner(schema)
    total = differentiable(metric, logits, ckpts.batch).sum()
    last = streams[-1]
    wanted = [*inner, last]
    found = torch.autograd.grad(total, [ckpts[name] for name in wanted], retain_graph=True, materialize_grads=True)
    gradients = dict(zip(wanted, found, strict=True))  # 0 for what the metric does not depend on
    for i in range(len(schema.blocks)):
        for kind in HEARD:
            name, letter = f"blocks.{i}.{kind}", kind[-1]
            weight = model.parameter(f"blocks.{i}.attn.W_{letter.upper()}").detach()
            for head in range(weight.size(0)):
                back = gradients[name][:, :, head] @ weight[head].T
                yield f"blocks.{i}.attn.{letter}[{head}]", _through(f"blocks.{i}.{ATTN_NORM}", back, ckpts, streams)
        norm = f"blocks.{i}.{MLP_NORM}"
        if norm in gradients:
            yield f"blocks.{i}.mlp", _through(norm, gradients[norm], ckpts, streams)
    yield LOGITS, gradients[last]


def _through(norm: str, back: Tensor, ckpts: ActivationCkpts, streams: Sequence[str]) -> Tensor:
    """The gradient at the stream that a norm reads, given the gradient behind the norm."""
    order = ckpts.schema.names.index
    for stream in reversed([one for one in streams if order(one) < order(norm)]):
        (found,) = cast(
            "tuple[Tensor | None]",
            torch.autograd.grad(ckpts[norm], [ckpts[stream]], back, retain_graph=True, allow_unused=True),
        )
        if found is not None:
            return found
    raise AssertionError(f"{norm} reads no residual stream")


def _scores(senders: Mapping[str, Tensor], heard: Mapping[str, Tensor], edges: Collection[Edge]) -> Tensor:
    """[sender, receiver], summed over texts; NaN where there is no edge."""
    none = next(iter(senders.values())).new_full((), torch.nan)
    return torch.stack([
        torch.stack([
            (change * gradient).sum() if (sender, receiver) in edges else none for receiver, gradient in heard.items()
        ])
        for sender, change in senders.items()
    ])  # fmt: skip
