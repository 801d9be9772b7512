"""What heads do on a text: to which tokens they attend, and whether they copy what they attend to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.attribution.reading import place_of
from pellucid.check import as_python, is_several, require_whole
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.heads.matrices import require_finite
from pellucid.measure.head_scores import PATTERN, Attended, Keys
from pellucid.measure.labelled import text_hash
from pellucid.metrics import Token, token_ids
from pellucid.run.activations import ActivationCkpts
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Batch, Inputs

if TYPE_CHECKING:
    import xarray

AT_ONCE = 8
"""Texts that run together: their patterns of all blocks are in memory."""

READ = "blocks.0.resid_post"
"""What is copied or not: a token behind the first block's MLP (Wang et al. 2022, section 3.1)."""

_ATTENDED = ("previous", "first", "duplicate", "induction")


def scores(model: CkptedTransformer, text: Inputs, *, top: int = 5, tokens: int = 16) -> xarray.Dataset:
    """Score what every head does on one or more texts.

    Each of the first four is a mean of attention weights, over the queries of all texts for which such a key exists:

    - previous: A[q, q - 1];
    - first: A[q, 0], from the second token on;
    - duplicate: to earlier occurrences of the query's own token (Wang et al. 2022, arXiv:2211.00593, section 3);
    - induction: to the tokens right after them (Olsson et al. 2022, arXiv:2209.11895). `pellucid.measure.induction`
      takes the same of random ids that are repeated once.
    - copying: the share of the texts' tokens which are among the `top` likeliest of W_U LN(v W_O), with v the head's
      values of the token's stream behind the first block, by the norm, matrix and bias of the head's own block and
      LN the last norm (the copy score of Wang et al. 2022, section 3.1).

    Args:
        model: What runs.
        text: Whatever a model takes: a text or several, ids, a batch.
        top: How many likeliest tokens count as copied.
        tokens: At how many tokens copying is measured, spread evenly over all of them: each takes a vocabulary of
            logits for every head.

    Returns:
        A dataset [layer, head]. `duplicate` and `induction` are NaN if no token occurs twice.

    Raises:
        InputError: If no text has a second token, or a value of the run is not finite.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> scores = pl.heads.scores(pl.load(), "Lily and Tom went to the park. Lily and Tom")
        >>> list(scores), int(scores.previous.argmax("head")[0])
        (['previous', 'first', 'duplicate', 'induction', 'copying'], 2)
    """
    top = require_whole("heads.scores: top", top, at_least=1)
    tokens = require_whole("heads.scores: tokens", tokens, at_least=1)
    batch = model.tokenize(text)
    if not bool((batch.mask.sum(1) > 1).any()):
        raise InputError(
            "heads.scores: no text has a second token, so no head has a choice.",
            code="nothing-to-attend",
            remedy="Give texts of two tokens or more.",
        )
    attended, read = Attended(), list[Tensor]()
    for _, ckpts in _runs(model, batch):
        keys = Keys(ckpts)
        attended.add(ckpts, {name: getattr(keys, name) for name in _ATTENDED})
        read.append(ckpts[READ][ckpts.batch.mask])
    streams, ids = torch.cat(read), batch.ids[batch.mask]
    found = {name: attended.array(name) for name in _ATTENDED}
    copied = _copied(model, streams, ids, top, tokens)
    return _dataset({**found, "copying": found["first"].copy(data=copied)}, batch, top=top)


def name_movers(
    model: CkptedTransformer, text: Inputs, token: Token | Sequence[Token], *, top: int = 5, tokens: int = 16
) -> xarray.Dataset:
    """Score every head as a name mover: whether it attends from the end of a text to a token, and copies it.

    Wang et al. (2022, arXiv:2211.00593, section 3.1) call the heads so that do both with the name that comes next.

    Args:
        model: What runs.
        text: Whatever a model takes; each text holds the token before its last position.
        token: What is moved: an id or a text that is one token; a list has one for each text.
        top, tokens: As for `scores`.

    Returns:
        A dataset [layer, head]. `attention`: from the last token to all occurrences of the token, the mean over texts.
        `copying`: the share of these occurrences which are copied, as in `scores`. `negative_copying`: the same for
        what the head writes times -1, which is high for heads that move a name and lower its logit.

    Raises:
        InputError: If a text has no such token, or the token is none.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> text = "Lily and Tom went to the park. Tom gave a ball to"
        >>> movers = pl.heads.name_movers(pl.load(), text, " Tom")
        >>> list(movers), float(movers.attention[2, 1]) > 0.9, float(movers.negative_copying[2, 1])
        (['attention', 'copying', 'negative_copying'], True, 1.0)
    """
    top = require_whole("heads.name_movers: top", top, at_least=1)
    tokens = require_whole("heads.name_movers: tokens", tokens, at_least=1)
    batch = model.tokenize(text)
    if is_several(token) and not isinstance(token, tuple):  # arrays become lists; a tuple is refused as a pair
        token = [as_python(one) for one in token]
    answers = token_ids(token, batch, "heads.name_movers").expand(len(batch))
    ends = batch.positions.masked_fill(~batch.mask, -1).argmax(1, keepdim=True)
    occurs = (
        (batch.ids == answers[:, None]) & batch.mask & (torch.arange(batch.ids.size(1), device="cpu").to(ends) < ends)
    )
    without = (~occurs.any(1)).nonzero()
    if len(without):
        text = int(without[0])
        missing = token[text] if isinstance(token, list) else token
        raise InputError(
            f"heads.name_movers: text {text} does not hold {shown(missing)} before its last token.",
            code="token-not-in-the-text",
            remedy="Give a token that each text holds, or a list with one for each text; ' word' and 'word' are two.",
        )
    attended, read = Attended(), list[Tensor]()
    for rows, ckpts in _runs(model, batch):
        at_end = (torch.arange(batch.ids.size(1), device=ends.device) == ends[rows])[..., None]
        attended.add(ckpts, {"attention": (at_end & occurs[rows, None]).cpu()})
        read.append(ckpts[READ][occurs[rows]])
    streams, ids = torch.cat(read), batch.ids[occurs]
    found = attended.array("attention")
    signs = {"copying": 1, "negative_copying": -1}
    copies = {name: found.copy(data=_copied(model, streams, ids, top, tokens, sign)) for name, sign in signs.items()}
    return _dataset({"attention": found, **copies}, batch, top=top, token=shown(token))


def _runs(model: CkptedTransformer, batch: Batch) -> Iterator[tuple[slice, ActivationCkpts]]:
    """Run a batch in parts, as far as the last pattern."""
    names = [f"blocks.*.{PATTERN}", READ]
    last = READ if len(model.schema.blocks) == 1 else f"blocks.{len(model.schema.blocks) - 1}.{PATTERN}"
    for start in range(0, len(batch), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        part = replace(
            batch, ids=batch.ids[rows], mask=batch.mask[rows], positions=batch.positions[rows],
            labels=None if batch.labels is None else batch.labels[rows],
        )  # fmt: skip
        yield rows, model.run_with_ckpts(part, names=names, stop_at=last)[1]


def _copied(model: CkptedTransformer, streams: Tensor, ids: Tensor, top: int, most: int, sign: int = 1) -> Any:
    """The share of tokens [N] which each head copies, [layer, head], given their streams [N, D]."""
    chosen = torch.linspace(0, len(ids) - 1, min(most, len(ids)), device="cpu").round().long().to(ids.device)
    streams, ids = streams[chosen], ids[chosen]
    shares: list[Tensor] = []
    own = torch.arange(len(ids), device=ids.device)
    with torch.no_grad():
        for layer in range(len(model.schema.blocks)):
            place = place_of(f"blocks.{layer}.attn.ckpt_v", model.schema, "heads.scores")
            values = torch.einsum(
                "nd,gdk->gnk", model.get_submodule(place.norm)(streams[None])[0], model.parameter(place.matrix)
            )
            if place.bias in model.parameter_names:
                values = values + model.parameter(place.bias)[:, None]
            W_O = model.parameter(f"blocks.{layer}.attn.W_O")
            for head in range(len(W_O)):
                written = sign * values[head * len(values) // len(W_O)] @ W_O[head]
                logits = model.unembed(model.ln_final(written[None]))[0]
                require_finite(logits, f"what head {layer}.{head} writes", "heads")
                likelier = (logits > logits[own, ids][:, None]).sum(-1)
                shares.append((likelier < top).double().mean())
    return torch.stack(shares).view(len(model.schema.blocks), -1).cpu().numpy()


def _dataset(arrays: Mapping[str, xarray.DataArray], batch: Batch, **settings: Any) -> xarray.Dataset:
    """Arrays of one run as a dataset, with where they come from."""
    own = next(iter(arrays.values())).attrs
    about = {key: value for key, value in own.items() if key not in ("checkpoint", "units")}
    attrs = {**about, "text": text_hash(batch), **settings}
    return need("xarray", "pellucid.heads").Dataset(dict(arrays), attrs=attrs)
