"""Metrics: what is read off the logits of a run, one number for each text.

A metric is any callable `(logits [B, P, V], batch) -> [B]`. Those made here read the last token of each text unless
`pos=` says otherwise; a token is given by its id, or as a string that is exactly one token; a list has one for each
text, and a tuple is a pair. A metric may have an
attribute `positions`, counted from the end of each text (-1 is its last token), and promises by it to read no others.
Whoever runs the model for it may then leave the other logits out; they are NaN. An attribute `units` says what it is
measured in, for figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pellucid.check import as_whole, require_whole, takes
from pellucid.errors import InputError, NumericsError, ShapeError, shown
from pellucid.names.attributes import said_of
from pellucid.names.calls import METRICS, name_arguments
from pellucid.text.batch import Batch

Metric = Callable[[Tensor, Batch], Tensor]
"""Logits [B, P, V] and the batch that gave them -> one number for each text [B]."""

Token = int | str
"""A token id, or a text that is exactly one token."""


@dataclass(frozen=True)
class _AtPosition:
    """A metric that reads one position of each text."""

    pos: int  # the token whose logits are read: negative from the end of each text, else from its first token
    read: Callable[[Tensor, Batch], Tensor]  # logits [B, V] at that position, and the batch -> [B]
    name: str  # what a result is called
    units: str  # what it is measured in

    @property
    def positions(self) -> tuple[int, ...] | None:
        """The positions that are read, from the end of each text; None if they are counted from the beginning."""
        return (self.pos,) if self.pos < 0 else None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        columns = column_of(batch, self.pos).to(logits.device)
        return self.read(logits[torch.arange(len(batch), device=logits.device), columns], batch)

    def __repr__(self) -> str:
        return f"{self.name} at {self.pos}"


def logit(token: Token | Sequence[Token], *, pos: int = -1) -> Metric:
    """Return the logit of a token, as a metric.

    Args:
        token: Which, or a list with one for each text.
        pos: Where: negative from the end of each text, else from its first token.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> batch = model.tokenize("Once upon a")
        >>> pl.metrics.logit(" time")(model(batch), batch).shape
        torch.Size([1])
    """

    def read(logits: Tensor, batch: Batch) -> Tensor:
        return _of(token, logits, batch)

    return _AtPosition(_position(pos), read, f"logit of {_words(token)}", "logits")


def logprob(token: Token | Sequence[Token], *, pos: int = -1) -> Metric:
    """Return the log-probability of a token in nats, as a metric; arguments are those of `logit`.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> batch = model.tokenize("Once upon a")
        >>> bool(pl.metrics.logprob(" time")(model(batch), batch) <= 0)
        True
    """

    def read(logits: Tensor, batch: Batch) -> Tensor:
        return _of(token, _wide(logits).log_softmax(-1), batch)

    return _AtPosition(_position(pos), read, f"log-probability of {_words(token)}", "nats")


def logit_difference(
    right: Token | Sequence[tuple[Token, Token]], wrong: Token | None = None, *, pos: int = -1
) -> Metric:
    """Return the logit of one token less that of another, as a metric (Wang et al. 2022, arXiv:2211.00593, section 2).

    Args:
        right: The first token; or a list of pairs (right, wrong), one for each text.
        wrong: The second token; left out if pairs are given.
        pos: Where: negative from the end of each text, else from its first token.

    Raises:
        InputError: If it is neither two tokens nor a list of pairs; when called, if a string is several tokens.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> batch = model.tokenize(["Tom gave Sue a", "Sue gave Tom a"])
        >>> pl.metrics.logit_difference([(" ball", " cat"), (" cat", " ball")])(model(batch), batch).shape
        torch.Size([2])
    """
    if wrong is not None:
        rights: Any = right
        wrongs: Any = wrong
    else:
        pairs = list(right) if isinstance(right, Sequence) and not isinstance(right, str) else []
        if not pairs or any(
            isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs
        ):
            raise InputError(
                f"logit_difference: {shown(right)} given, expected two tokens or a list of pairs.",
                code="metric-tokens",
                remedy="Give logit_difference(' Mary', ' John'), or [(' Mary', ' John'), ...] with a pair for each "
                "text.",
            )
        rights, wrongs = (list(side) for side in zip(*pairs, strict=True))

    def read(logits: Tensor, batch: Batch) -> Tensor:
        return _of(rights, logits, batch) - _of(wrongs, logits, batch)

    words = _words(right, "pairs") if wrong is None else f"{_words(right)}, {_words(wrong)}"
    return _AtPosition(_position(pos), read, f"logit difference of {words}", "logits")


def kl(reference: Tensor, *, pos: int = -1) -> Metric:
    """Return the divergence KL(reference || run) of the next-token distributions in nats, as a metric.

    It is sum_t p_t (log p_t - log q_t), p of the reference and q of the run (Kullback and Leibler 1951).

    Args:
        reference: Logits [B, P, V] of the run that is the measure.
        pos: Where: negative from the end of each text, else from its first token.

    Raises:
        ShapeError: When it is called, logits of another shape.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> batch = model.tokenize("Once upon a")
        >>> logits = model(batch).detach()
        >>> float(pl.metrics.kl(logits)(logits, batch))
        0.0
    """
    if not isinstance(reference, Tensor) or reference.dim() != 3:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError(
            f"kl: {shown(reference)} given, expected logits [B, P, V].",
            code="metric-shape",
            remedy="Give the logits of a plain run of the same texts: pl.metrics.kl(model(batch)).",
        )
    reference = reference.detach()

    def read(logits: Tensor, batch: Batch) -> Tensor:
        if reference.shape != (*batch.shape, logits.size(-1)):
            raise ShapeError(
                f"kl: reference logits {list(reference.shape)}, expected {[*batch.shape, logits.size(-1)]} "
                "(batch, pos, d_vocab).",
                code="metric-shape",
                remedy="Take the reference from a run of the texts that are edited.",
            )
        rows, columns = torch.arange(len(batch), device="cpu"), column_of(batch, at).cpu()
        known = _wide(reference[rows.to(reference.device), columns.to(reference.device)].to(logits.device))
        p, q = known.log_softmax(-1), _wide(logits).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    at = _position(pos)
    return _AtPosition(at, read, "KL from the reference", "nats")


@dataclass(frozen=True)
class _Loss:
    """The mean negative log-likelihood of each text's next tokens."""

    units = "nats"

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        both = batch.mask[:, 1:] & batch.mask[:, :-1]
        if not bool(both.any(1).all()):
            raise InputError(
                "loss: a text has no second token, so there is nothing to predict.",
                code="nothing-to-predict",
                remedy="Give texts of two tokens or more.",
            )
        chosen = _wide(logits[:, :-1]).log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
        return -chosen.masked_fill(~both, 0.0).sum(1) / both.sum(1)

    def __repr__(self) -> str:
        return "loss"


def loss() -> Metric:
    """Return each text's mean negative log-likelihood of its next tokens in nats, as a metric; pads are left out.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> batch = model.tokenize("Once upon a time")
        >>> bool(pl.metrics.loss()(model(batch), batch).allclose(model.loss(batch)))
        True
    """
    return _Loss()


def positions_of(metric: Metric) -> tuple[int, ...] | None:
    """Return the positions, from the end of each text, that a metric promises to be all that it reads; None for all."""
    if not takes(metric, 2):
        raise InputError(
            f"metric: {shown(metric)} given, expected a callable (logits [B, P, V], batch) -> [B].",
            code="metric-kind",
            remedy="Give pl.metrics.logit_difference(' Mary', ' John'), or a function of your own that takes both: "
            "lambda logits, batch: ...",
        )
    given = getattr(metric, "positions", None)
    if given is None:
        return None
    found = [as_whole(i) for i in (given if isinstance(given, Sequence) else [given])]
    if not found or any(i is None or i >= 0 for i in found):
        raise InputError(
            f"metric.positions: {shown(given)}, expected negative whole numbers, counted from the end of each text.",
            code="metric-positions",
            remedy="Give the metric positions = (-1,) if it reads the last token alone, or no attribute `positions`.",
        )
    return tuple(sorted(cast("set[int]", set(found))))


def units_of(metric: Metric) -> str:
    """What a metric is measured in, such as "nats"; "1" if it does not say."""
    return str(getattr(metric, "units", "1"))


def measured(metric: Metric, logits: Tensor, batch: Batch, *, of: str = "") -> Tensor:
    """Call a metric and check what it returns, [B], here in float64; `of` names a run that has to be finite."""
    given = metric(logits, batch)
    fits = isinstance(given, Tensor) and given.shape == (len(batch),) and not given.is_complex()  # pyright: ignore[reportUnnecessaryIsInstance]
    if not fits:
        what = f"a tensor {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError(
            f"metric: {what} returned for {len(batch)} texts, expected [{len(batch)}], one number for each.",
            code="metric-shape",
            remedy="Return a tensor [B]: no mean over texts, and no further axis.",
        )
    values = given.detach().double().cpu()
    if of and not bool(values.isfinite().all()):
        text, finite = int((~values.isfinite()).nonzero()[0]), bool(logits[batch.mask].isfinite().all())
        raise NumericsError(
            f"metric: {float(values[text])} for text {text} of {of}, expected finite numbers.",
            code="metric-not-finite",
            remedy="Choose a metric that is finite on the plain runs; one with `positions` gets NaN at all others."
            if finite else "Look for weights that are NaN or infinite: model.parameter(name).isfinite().",
        )  # fmt: skip
    return values


def column_of(batch: Batch, pos: int) -> Tensor:
    """The column [B] of one position of each text: negative from the end of the text, else from its first token."""
    lengths = batch.mask.sum(1)
    index = torch.as_tensor(pos if pos >= 0 else lengths + pos, device=lengths.device).expand_as(lengths)
    short = (index < 0) | (index >= lengths)
    if bool(short.any()):
        text = int(short.nonzero()[0])
        raise InputError(
            f"metric: position {pos} of text {text}, which has {int(lengths[text])} tokens.",
            code="metric-positions",
            remedy="Choose a position that every text has.",
        )
    return ((batch.mask.cumsum(1) == (index + 1)[:, None]) & batch.mask).int().argmax(1)


def token_ids(tokens: Token | Sequence[Token], batch: Batch, what: str = "metric") -> Tensor:
    """Ids of tokens: [1] for one, else [B]."""
    if isinstance(tokens, tuple):
        raise InputError(
            f"{what}: {shown(tokens)} is a pair, expected a token, or a list with one for each text.",
            code="metric-tokens",
            remedy="Give a list; the difference of a pair is pl.metrics.logit_difference(right, wrong).",
        )
    several = isinstance(tokens, Iterable) and not isinstance(tokens, str) and getattr(tokens, "ndim", 1) > 0
    given: list[Any] = list(cast(Any, tokens)) if several else [tokens]
    if several and len(given) != len(batch):
        raise InputError(
            f"{what}: {len(given)} tokens for {len(batch)} texts.",
            code="metric-tokens",
            remedy="Give one token, or one for each text.",
        )
    return torch.tensor([_id(token, batch, what) for token in given], device=batch.ids.device)


def _id(token: Any, batch: Batch, what: str) -> int:
    if not isinstance(token, str):
        most = None if batch.checked is None else batch.checked.sizes["d_vocab"] - 1
        return require_whole(f"{what}: token", token, at_most=most, code="metric-tokens")
    if batch.tokenizer is None:
        raise InputError(
            f"{what}: {shown(token)} is text, but the model has no tokenizer.",
            code="no-tokenizer",
            remedy="Give the token's id, or set model.tokenizer = pl.Tokenizer.from_file('tokenizer.json').",
        )
    found = batch.tokenizer.encode(token)
    if len(found) != 1:
        raise InputError(
            f"{what}: {shown(token)} is {len(found)} tokens ({shown(batch.tokenizer.pieces(found))}), expected one.",
            code="not-one-token",
            remedy="Give one of the pieces; with its leading space, ' word', a word is often one token.",
        )
    return found[0]


def _words(tokens: Any, what: str = "tokens") -> str:
    """Tokens as a figure's title has room for them: more than two are counted."""
    several = isinstance(tokens, Sequence) and not isinstance(tokens, str)
    return f"{len(tokens)} {what}" if several and len(tokens) > 2 else shown(tokens)


def _of(tokens: Token | Sequence[Token], values: Tensor, batch: Batch) -> Tensor:
    """What values [B, V] hold of one token of each text, [B]."""
    ids = token_ids(tokens, batch).expand(len(batch)).to(values.device)
    return values.gather(-1, ids[:, None]).squeeze(-1)


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 or better, because half precision cannot hold a sum over the vocabulary."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _position(pos: object) -> int:
    found = as_whole(pos)
    if found is None:
        raise InputError(
            f"metric: pos={shown(pos)}, expected one whole number.",
            code="metric-positions",
            remedy="Give pos=-1 for the last token of each text, or another position.",
        )
    return found


name_arguments(globals())
if not TYPE_CHECKING:
    __getattr__ = said_of(__name__, METRICS)
