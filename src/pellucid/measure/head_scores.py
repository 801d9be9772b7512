"""Scores of heads: how spread their attention is, how far it reaches, and to which token it goes.

Every score is a mean over texts and over the queries from each text's second token on: the first has only itself to
attend to, which says nothing about a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pellucid.axes import Axis
from pellucid.check import as_python, require_whole
from pellucid.config import Config
from pellucid.corpus.sink import CapturingModel
from pellucid.errors import InputError
from pellucid.measure.labelled import find
from pellucid.run.activations import ActivationCkpts

if TYPE_CHECKING:
    import xarray

PATTERN = "attn.ckpt_pattern"
_AT_ONCE = 8


def entropy(ckpts: ActivationCkpts) -> xarray.DataArray:
    """Compute how spread each head's attention is: -sum_k A[q, k] log A[q, k], in nats.

    It is 0 if all attention goes to one token, and log n if it is even over n.

    Args:
        ckpts: A run that captured "blocks.*.attn.ckpt_pattern".

    Returns:
        [layer, head].

    Raises:
        UnknownNameError: If the patterns were not captured.
        InputError: If no text has a second token.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> pl.measure.entropy(ckpts).sizes
        Frozen({'layer': 4, 'head': 4})
    """
    return _score(ckpts, "entropy", "nats", lambda pattern, _: -torch.xlogy(pattern, pattern).sum(-1))


def distance(ckpts: ActivationCkpts) -> xarray.DataArray:
    """Compute how far back each head looks: sum_k A[q, k] (q - k), in tokens.

    Arguments, result and errors are those of `entropy`.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> bool((pl.measure.distance(ckpts) >= 0).all())
        True
    """
    return _score(ckpts, "distance", "tokens", lambda pattern, back: (pattern * back).sum(-1))


def previous_token(ckpts: ActivationCkpts) -> xarray.DataArray:
    """Compute how much of each head's attention goes to the token before: A[q, q - 1].

    Arguments, result and errors are those of `entropy`.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> bool((pl.measure.previous_token(ckpts) <= 1).all())
        True
    """
    return _score(ckpts, "previous_token", "probability", lambda pattern, back: (pattern * (back == 1)).sum(-1))


def first_token(ckpts: ActivationCkpts) -> xarray.DataArray:
    """Compute how much of each head's attention goes to the text's first token: A[q, 0].

    Arguments, result and errors are those of `entropy`.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> bool((pl.measure.first_token(ckpts) <= 1).all())
        True
    """

    def to_first(pattern: Tensor, back: Tensor) -> Tensor:
        return (pattern * (back == back.amax(-1, keepdim=True))).sum(-1)

    return _score(ckpts, "first_token", "probability", to_first)


def induction(model: CapturingModel, *, length: int = 50, texts: int = 64, seed: int = 0) -> xarray.DataArray:
    """Compute how much each head attends to the token that came after an earlier occurrence of the present one.

    It is measured as in Olsson et al. (2022, arXiv:2209.11895), on random ids that are repeated once, so nothing but
    the repetition can be learned from the text: the mean over the second copy of the attention from a token to the
    one behind its first occurrence. The end-of-text id stands before the two copies if the model has one.

    Args:
        model: The model whose heads are scored.
        length: How many ids one copy has.
        texts: How many random sequences to average over.
        seed: The seed of the random ids; special ids are not drawn.

    Returns:
        [layer, head].

    Raises:
        InputError: If a copy has fewer than two ids, or two are more than the model's context holds.

    Example:
        >>> import pellucid as pl
        >>> scores = pl.measure.induction(pl.load(), length=20, texts=4)
        >>> scores.sizes, bool(scores.max() > 0.5)
        (Frozen({'layer': 4, 'head': 4}), True)
    """
    length, texts, seed = as_python(length), as_python(texts), as_python(seed)
    ids, offset = repeated_ids(model.config, length, texts, seed)
    queries = torch.arange(offset + length, offset + 2 * length)
    last = f"blocks.{len(model.config.schema.blocks) - 1}.{PATTERN}"

    def followed(rows: Tensor) -> xarray.DataArray:
        # An end-of-text id that is the pad id too is text here.
        batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        source = find(model.run_with_ckpts(batch, names=f"blocks.*.{PATTERN}", stop_at=last)[1], PATTERN)
        sums = (pattern[:, :, queries, queries - length + 1].sum((0, 2)) for pattern in source.float64())
        return source.array(sums, (Axis.HEAD,), "induction", "probability")

    parts = [followed(rows) for rows in ids.split(_AT_ONCE)]
    result = parts[0].copy(data=sum(part.values for part in parts) / (texts * length))
    del result.attrs["text"]  # it is the first batch's only; seed, texts and length say which texts they were
    return result.assign_attrs(length=length, texts=texts, seed=seed)


def repeated_ids(config: Config, length: int, texts: int, seed: int) -> tuple[Tensor, int]:
    """Return ids [texts, offset + 2 length], an end-of-text id if there is one and random ids twice, and the offset."""
    special = {config.bos_token_id, config.pad_token_id, *config.end_ids} - {None}
    start = next((i for i in (config.bos_token_id, *config.end_ids) if i is not None), None)
    offset = 0 if start is None else 1
    longest = (config.sizes["n_ctx"] - offset) // 2
    require_whole("induction: length", length, at_least=2, at_most=longest, code="induction-length")
    require_whole("induction: texts", texts, at_least=1, code="induction-length")
    require_whole("induction: seed", seed, code="induction-length")
    drawn = np.array([i for i in range(config.sizes["d_vocab"]) if i not in special])
    once = drawn[np.random.default_rng(seed).integers(0, len(drawn), (texts, length))]
    head = np.full((texts, offset), start if start is not None else 0)
    return torch.from_numpy(np.concatenate([head, once, once], axis=1)), offset


_Rule = Callable[[Tensor, Tensor], Tensor]
"""Scores [B, H, Pq] of a pattern [B, H, Pq, Pk], given how far back each key is, [B, 1, Pq, Pk]."""


def _score(ckpts: ActivationCkpts, name: str, units: str, rule: _Rule) -> xarray.DataArray:
    """Return the mean of a rule over texts and queries, [layer, head]."""
    source = find(ckpts, PATTERN)
    batch = ckpts.batch
    keys = batch.positions.cpu().masked_fill(~batch.mask.cpu(), batch.positions.size(1))
    back = (source.position[:, :, None] - keys[:, None, :])[:, None]
    counts = (source.position >= 1)[:, None]
    if not bool(counts.any()):
        raise InputError(
            f"{name}: no text has a second token among the queries, so no head has a choice.",
            code="nothing-to-attend",
            remedy="Give texts of two tokens or more.",
        )
    back = torch.where(back >= 0, back, 0).double()
    each = (rule(pattern.nan_to_num(0.0), back) for pattern in source.float64())
    means = ((score * counts).sum((0, 2)) / counts.sum() for score in each)
    return source.array(means, (Axis.HEAD,), name, units)
