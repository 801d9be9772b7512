"""Scores of heads: how spread their attention is, how far it reaches, and to which token it goes.

Every score is a mean over texts and over the queries from each text's second token on: the first has only itself to
attend to, which says nothing about a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.check import as_python, require_whole
from pellucid.corpus.sink import CapturingModel
from pellucid.errors import InputError
from pellucid.family.json_config import Config
from pellucid.measure.labelled import Captured, find
from pellucid.run.activations import ActivationCkpts
from pellucid.run.interrupts import told
from pellucid.schema import Axis

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
    keys = Keys(ckpts)
    return _mean_attention(ckpts, "previous_token", keys, keys.previous)


def first_token(ckpts: ActivationCkpts) -> xarray.DataArray:
    """Compute how much of each head's attention goes to the text's first token: A[q, 0].

    Arguments, result and errors are those of `entropy`.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> bool((pl.measure.first_token(ckpts) <= 1).all())
        True
    """
    keys = Keys(ckpts)
    return _mean_attention(ckpts, "first_token", keys, keys.first)


@told("induction: interrupted, nothing was measured")
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
    columns = torch.arange(ids.size(1), device="cpu")
    second = (columns >= offset + length)[:, None] & (columns == columns[:, None] - length + 1)  # [Pq, Pk]
    last = f"blocks.{len(model.config.schema.blocks) - 1}.{PATTERN}"
    attended = Attended()
    for rows in ids.split(_AT_ONCE):
        # An end-of-text id that is the pad id too is text here.
        batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
        _, ckpts = model.run_with_ckpts(batch, names=f"blocks.*.{PATTERN}", stop_at=last)
        attended.add(ckpts, {"induction": second.expand(len(rows), -1, -1)})
    result = attended.array("induction")
    del result.attrs["text"]  # it is the last run's only; seed, texts and length say which texts they were
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


class Keys:
    """Which key is what to which query of a run, [B, Pq, Pk] each, whatever the pads and the kept positions."""

    def __init__(self, ckpts: ActivationCkpts) -> None:
        self.position = find(ckpts, PATTERN).position  # that of each query in its text, [B, Pq]; -1 for pads
        batch, columns = ckpts.batch, ckpts.columns
        mask, positions = batch.mask.cpu(), batch.positions.cpu()
        ids = batch.ids.cpu()
        keys = positions.masked_fill(~mask, positions.size(1))
        # how many tokens a key lies before its query; negative for keys that the query does not see, and pads
        self.back = self.position[:, :, None] - keys[:, None, :]
        self._is_first = ((positions == 0) & mask)[:, None]
        self._is_same = ids[:, columns, None] == ids[:, None, :]

    @property
    def previous(self) -> Tensor:
        """Whether a key is the token before the query."""
        return self.back == 1

    @property
    def first(self) -> Tensor:
        """Whether a key is the text's first token and another than the query."""
        return self._is_first & (self.back >= 1)

    @property
    def duplicate(self) -> Tensor:
        """Whether a key is an earlier occurrence of the query's token."""
        return self._is_same & (self.back >= 1)

    @property
    def induction(self) -> Tensor:
        """Whether a key comes right after an earlier occurrence of the query's token; it may be the query itself."""
        return F.pad(self.duplicate, (1, 0))[..., :-1] & (self.back >= 0)


class Attended:
    """The attention of each head to some keys, summed over every query that has one of them, run by run."""

    def __init__(self) -> None:
        self._sums: dict[str, list[Tensor]] = {}
        self._queries: dict[str, int] = {}
        self._source: Captured | None = None

    def add(self, ckpts: ActivationCkpts, targets: Mapping[str, Tensor]) -> None:
        """Add the queries of a run that captured the patterns; `targets` are the keys that count, [B, Pq, Pk]."""
        source = self._source = find(ckpts, PATTERN)
        patterns = [pattern.nan_to_num(0.0) for pattern in source.float64()]
        for name, keys in targets.items():
            each = [(pattern * keys[:, None]).sum((0, 2, 3)) for pattern in patterns]
            before = self._sums.get(name, [torch.zeros((), device="cpu").double()] * len(each))
            self._sums[name] = [a + b for a, b in zip(before, each, strict=True)]
            self._queries[name] = self._queries.get(name, 0) + int(keys.any(-1).sum())

    def array(self, name: str) -> xarray.DataArray:
        """The mean over the queries, [layer, head]; NaN if there was none. Its text is that of the last run."""
        assert self._source is not None, "a run was added"
        count = self._queries[name] or torch.nan
        return self._source.array((total / count for total in self._sums[name]), (Axis.HEAD,), name, "probability")


def _mean_attention(ckpts: ActivationCkpts, name: str, keys: Keys, targets: Tensor) -> xarray.DataArray:
    _require_choice(keys, name)
    attended = Attended()
    attended.add(ckpts, {name: targets})
    return attended.array(name)


_Rule = Callable[[Tensor, Tensor], Tensor]
"""Scores [B, H, Pq] of a pattern [B, H, Pq, Pk], given how far back each key is, [B, 1, Pq, Pk]."""


def _score(ckpts: ActivationCkpts, name: str, units: str, rule: _Rule) -> xarray.DataArray:
    """Return the mean of a rule over texts and queries, [layer, head]."""
    source, keys = find(ckpts, PATTERN), Keys(ckpts)
    counts = _require_choice(keys, name)[:, None]
    back = keys.back[:, None].clamp(min=0).double()
    each = (rule(pattern.nan_to_num(0.0), back) for pattern in source.float64())
    means = ((score * counts).sum((0, 2)) / counts.sum() for score in each)
    return source.array(means, (Axis.HEAD,), name, units)


def _require_choice(keys: Keys, name: str) -> Tensor:
    """Which queries [B, Pq] have another token than themselves to attend to."""
    counts = keys.position >= 1
    if not bool(counts.any()):
        raise InputError(
            f"{name}: no text has a second token among the queries, so no head has a choice.",
            code="nothing-to-attend",
            remedy="Give texts of two tokens or more.",
        )
    return counts
