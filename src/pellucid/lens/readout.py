"""The logit lens: the last norm and the head, applied to values of the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from pellucid.attribution.reading import LOGITS, batch_with_tokens, opened, require_captured
from pellucid.check import as_whole, require_whole
from pellucid.errors import InputError, printable, shown
from pellucid.family.network import Network
from pellucid.family.part import is_finite
from pellucid.measure.labelled import Captured, find
from pellucid.metrics import token_ids
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import STREAM, Axes, Axis
from pellucid.text.batch import pieces_of

if TYPE_CHECKING:
    import xarray

Translate = Callable[[Tensor, int], Tensor]
"""A value of the stream [B, P, D] and the number of its block -> what the last norm is given."""

_WIDTH, _CELL = 100, 12
"""Characters of a printed line and of a token in it."""


def logit(ckpts: ActivationCkpts, at: aliases.Name = "resid_post", *, model: Network | None = None) -> Readout:
    """Read the next token from each block's residual stream: W_U LN(h), with the model's last norm.

    Args:
        ckpts: A run that captured the values.
        at: A value of the stream or one that is added to it: "resid_pre", "resid_mid", "resid_post",
            "attn.ckpt_attn_out", "mlp.ckpt_mlp_out" of every block; or of one, "blocks.3.resid_post".
        model: The model that made the captured values, if they were saved or pickled since.

    Returns:
        What each block says; at "resid_post" the last block's logits are the model's, to the bit.

    Raises:
        UnknownNameError: If there is no such checkpoint, or it was not captured.
        InputError: If it is no value of the stream, the last norm was edited inside, or the model is another one.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> logits, ckpts = model.run_with_ckpts("Once upon a time", names="resid_post")
        >>> lens = pl.lens.logit(ckpts)
        >>> lens.top(5).sizes, bool((lens.logits(3) == logits).all())
        (Frozen({'layer': 4, 'batch': 1, 'pos': 4, 'top': 5}), True)
    """
    return readout(ckpts, at, model, "lens.logit")


def readout(
    ckpts: ActivationCkpts, at: aliases.Name, model: Network | None, by: str, translate: Translate | None = None
) -> Readout:
    """Read the stream of a run; arguments and errors are those of `logit`."""
    maker, _ = opened(ckpts, model, LOGITS, by)
    source = find(ckpts, at)
    point = maker.schema.around.get(source.kind) or maker.schema.in_blocks[source.kind]
    if point.unit != STREAM:
        raise InputError(
            f"{by}: at={source.kind!r} is no value of the residual stream, expected one that the last norm can read.",
            code="lens-place",
            remedy="Give at='resid_pre' or 'resid_post', or what is added: 'attn.ckpt_attn_out'.",
        )
    for number, tensor in enumerate(source.tensors):
        source.require_finite(tensor.detach().cpu(), number)
    return Readout(maker, source, translate)


class Readout:
    """What each block of a run says, as `logit` and `TunedLens.read` return it. It prints as a grid of top tokens.

    Logits of one block are computed when they are needed, so those of all blocks are never in memory together.

    Args:
        model: The model of the run.
        source: The values that are read.
        translate: What is done to them first; None for nothing.
    """

    def __init__(self, model: Network, source: Captured, translate: Translate | None = None) -> None:
        self._model, self._source, self._translate = model, source, translate
        self._batch = batch_with_tokens(source.ckpts.batch, model)
        self._layers = source.layers or (-1,)

    def logits(self, layer: int) -> Tensor:
        """The logits [B, P, V] that are read at a block, in the model's dtype; -1 is the last that was captured."""
        number = as_whole(layer)
        found = self._layers[number] if number is not None and -len(self._layers) <= number < 0 else number
        if found is None or found not in self._layers:
            raise InputError(
                f"lens: layer={shown(layer)}, expected one of {', '.join(map(str, self._layers))}.",
                code="lens-layer",
                remedy="Give a block that was captured.",
            )
        return self._read(self._source.tensors[self._layers.index(found)], found)

    def top(self, n: int = 5) -> xarray.DataArray:
        """Return the ids of the n likeliest tokens, [layer, batch, pos, top]; -1 at pads.

        The coordinates `text` and `logprob` (in nats) are theirs.

        Raises:
            InputError: If it is not from 1 to the number of tokens.
        """
        n = require_whole("top: n", n, at_least=1, at_most=self._model.schema.sizes["d_vocab"])
        logprobs, ids = zip(*(logits.double().log_softmax(-1).topk(n) for logits in self._every()), strict=True)
        axes = cast(Axes, (Axis.BATCH, Axis.POS, "top"))
        hidden = None if self._source.real is None else ~self._source.real
        kept = [found if hidden is None else found.masked_fill(hidden, -1) for found in (i.cpu() for i in ids)]
        array = self._source.array(kept, axes, "top", "token ids")
        texts = np.array([self._text(int(i)) for i in array.values.ravel()], dtype=object).reshape(array.shape)
        of = self._array(logprobs, axes, "logprob", "nats")
        return array.assign_coords(text=(array.dims, texts), logprob=(array.dims, of.values))

    def rank(self, token: Any) -> xarray.DataArray:
        """Return how many tokens are likelier than this one, [layer, batch, pos]: 0 is the top. NaN at pads.

        Args:
            token: Its id, or a text that is one token; a list has one for each text.
        """
        ids = self._ids(token)
        counts = ((logits > self._of(logits, ids)[..., None]).sum(-1).double() for logits in self._every())
        return self._array(counts, (Axis.BATCH, Axis.POS), "rank", "tokens")

    def logprobs(self, token: Any) -> xarray.DataArray:
        """Return the log-probability of a token in nats, [layer, batch, pos]; NaN at pads. Arguments: as for `rank`."""
        ids = self._ids(token)
        found = (self._of(logits.double().log_softmax(-1), ids) for logits in self._every())
        return self._array(found, (Axis.BATCH, Axis.POS), "logprob", "nats")

    def kl(self) -> xarray.DataArray:
        """Return KL(output || lens) in nats, [layer, batch, pos]: how far each block is from what the model says.

        It is sum_t p_t (log p_t - log q_t), p being the model's output and q the lens'. NaN at pads.

        Raises:
            UnknownNameError: If the last block's resid_post was not captured.
        """
        last = len(self._model.schema.blocks) - 1
        name = f"blocks.{last}.resid_post"
        require_captured(self._source.ckpts, [name], "lens.kl")
        output = _readable(self._model, self._source.ckpts[name]).double().log_softmax(-1)
        found = (divergence(output, logits) for logits in self._every())
        return self._array(found, (Axis.BATCH, Axis.POS), "kl", "nats")

    def __repr__(self) -> str:
        """The top token of each block at each position of the first text."""
        columns = self._source.ckpts.columns[self._batch.mask.cpu()[0, self._source.ckpts.columns]].tolist()
        kept = [self._source.ckpts.columns.tolist().index(column) for column in columns]
        first = int(self._batch.mask.cpu()[0].long().argmax())
        rows = [[_cell(self._batch.strings[0][column - first]) for column in columns]]
        for layer, tensor in zip(self._layers, self._source.tensors, strict=True):
            top = self._read(tensor[:1], layer)[0].argmax(-1).cpu()
            rows.append([_cell(self._text(int(top[column]))) for column in kept])
        heads = ["", *("" if layer < 0 else str(layer) for layer in self._layers)]
        widths = [max(len(row[i]) for row in rows) + 1 for i in range(len(columns))]
        shown_from = next((i for i in range(len(widths)) if sum(widths[i:]) <= _WIDTH), len(widths))
        lines = [
            f"{head:>3} "
            + "".join(
                f" {cell:<{width - 1}}" for cell, width in zip(row[shown_from:], widths[shown_from:], strict=True)
            )
            for head, row in zip(heads, rows, strict=True)
        ]
        left_out = [f"{shown_from} earlier positions"] * bool(shown_from)
        left_out += ["further texts"] * (len(self._batch) > 1)
        title = f"top tokens at {self._source.kind}" + f" (not shown: {', '.join(left_out)})" * bool(left_out)
        return "\n".join([title, *(line.rstrip() for line in lines)])

    def _every(self) -> Iterator[Tensor]:
        return (self._read(tensor, i) for i, tensor in zip(self._layers, self._source.tensors, strict=True))

    def _read(self, stream: Tensor, layer: int) -> Tensor:
        stream = stream.detach()
        found = _readable(self._model, stream if self._translate is None else self._translate(stream, layer))
        real = self._batch.mask.cpu()[: len(found), self._source.ckpts.columns]
        if not bool((found.isfinite().all(-1).cpu() | ~real).all()):
            finite, wider = all(map(is_finite, self._model.parameters())), "float" if found.itemsize < 4 else "double"
            raise InputError(
                f"lens: logits at block {layer} are not finite, though the stream there is.",
                code="not-finite",
                remedy=f"They overflow in {found.dtype}: run the model in a wider dtype, model.{wider}()."
                if finite else "Look for weights that are NaN or infinite: model.parameter(name).isfinite().",
            )  # fmt: skip
        return found

    def _ids(self, token: Any) -> Tensor:
        return token_ids(token, self._batch, "lens").cpu()

    @staticmethod
    def _of(values: Tensor, ids: Tensor) -> Tensor:
        """[B, P] of [B, P, V] at one id, or at one for each row."""
        index = ids.to(values.device).reshape(-1, 1, 1).expand(*values.shape[:-1], 1)
        return values.gather(-1, index).squeeze(-1)

    def _text(self, token: int) -> str:
        return "" if token < 0 else pieces_of(self._batch.tokenizer, [token])[0]

    def _array(self, blocks: Any, axes: Axes, name: str, unit: str) -> xarray.DataArray:
        real = self._source.real
        if real is not None:
            real = real.reshape(*real.shape[:2], *[1] * (len(axes) - 2))
        found = (value.cpu() if real is None else value.cpu().masked_fill(~real, torch.nan) for value in blocks)
        return self._source.array(found, axes, name, unit)


def divergence(output: Tensor, logits: Tensor) -> Tensor:
    """KL(output || lens) in nats, [B, P], of log-probabilities and logits [B, P, V]."""
    read = logits.to(output.dtype).log_softmax(-1)
    return (output.exp() * (output - read)).sum(-1)


def _readable(model: Network, stream: Tensor) -> Tensor:
    with torch.no_grad():
        return model.unembed(model.ln_final(stream))


def _cell(token: str) -> str:
    text = printable(token).replace("\n", "\\n").strip() or repr(token)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
