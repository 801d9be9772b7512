"""The sampler: from logits to the next token, by penalties, filters and a draw.

Its stages (`pellucid.generate.stages`) come in the order of transformers' `generate`, so equal logits and an equal seed
give equal tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from pellucid.check import as_number, as_python, as_whole, is_several, require_whole
from pellucid.errors import InputError, ShapeError, shown
from pellucid.generate import stages
from pellucid.generate.stages import Stage
from pellucid.names.calls import SAMPLING, named_arguments
from pellucid.text.ids import listed


@dataclass(frozen=True)
class Context:
    """What penalties look at beside the logits."""

    ids: Tensor  # [B, n], the text so far, prompt included
    mask: Tensor  # [B, n], true at real tokens
    new: int = 0  # how many of the tokens are generated
    end_ids: tuple[int, ...] = ()  # tokens that end a text
    keep: int = 1  # how many tokens no filter may go below
    active: Tensor | None = None  # [B], true where the text goes on; None for all
    prompt: int | None = None  # columns of the prompt; None for those of `ids` that are not new
    last: bool = False  # whether no token comes after this one


@named_arguments(SAMPLING)
@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the likeliest token (the first of equals), after penalties and without filters.
        top_k: Keep so many; 0 keeps all.
        top_p: Keep the nucleus of this probability; 1 keeps all, 0 the likeliest.
        min_p: Keep what is at least so many times as likely as the likeliest; 0 keeps all.
        typical_p: Keep the typical set of this probability; 1 keeps all.
        repetition_penalty: Divides the logits of tokens that occurred; 1 does nothing.
        frequency_penalty: Subtracted for every occurrence; 0 does nothing.
        presence_penalty: Subtracted from tokens that occurred; 0 does nothing.
        no_repeat_ngram_size: No sequence of so many tokens comes twice; 0 allows it.
        suppress_tokens: Tokens that never come.
        min_new_tokens: Tokens before one that ends the text may come.
        begin_suppress_tokens: Tokens that do not come first.
        forced_bos_token_id: What comes after a prompt of one token.
        forced_eos_token_id: What comes last, if the text has not ended before `max_new_tokens`.

    Penalties count the whole text, prompt included, pads left out.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> import pellucid as pl
        >>> pl.Sampler(temperature=0.8, top_k=50)
        Sampler(temperature=0.8, top_k=50)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    suppress_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: tuple[int, ...] = ()
    forced_eos_token_id: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, as_python(getattr(self, f.name)))
        for name in _TOKENS:
            given = getattr(self, name)
            object.__setattr__(self, name, given if isinstance(given, tuple) else (given,))
            whole = all((token := as_whole(one)) is not None and token >= 0 for one in getattr(self, name))
            _require(name, given, whole, "token ids")
        numbers: dict[str, float] = {}
        for name in (f.name for f in fields(self) if f.name not in _TOKENS):
            found = as_number(getattr(self, name))
            _require(name, getattr(self, name), found is not None and not math.isnan(found), "a number")
            numbers[name] = cast(float, found)  # a whole number beyond all floats is infinite
            if abs(numbers[name]) >= 2**63 and name not in _WHOLE:
                object.__setattr__(self, name, numbers[name])  # torch divides by no whole number as large
        warmth, penalty = numbers["temperature"], numbers["repetition_penalty"]
        fits = warmth == 0 or _LEAST <= warmth < math.inf
        _require("temperature", self.temperature, fits, f"0, or a finite number from {_LEAST:g} on")
        for name in ("top_p", "min_p"):
            _require(name, getattr(self, name), 0 <= numbers[name] <= 1, "from 0 to 1")
        _require("typical_p", self.typical_p, 0 < self.typical_p <= 1, "above 0, up to 1")
        fits = _LEAST <= penalty <= _LARGEST
        _require("repetition_penalty", self.repetition_penalty, fits, f"from {_LEAST:g} to {_LARGEST:g}")
        for name in ("frequency_penalty", "presence_penalty"):
            fits = abs(numbers[name]) <= _LARGEST
            _require(name, getattr(self, name), fits, f"a number from {-_LARGEST:g} to {_LARGEST:g}")
        for name in _WHOLE:
            value = getattr(self, name)
            _require(name, value, as_whole(value) is not None and value >= 0, "a whole number, 0 or more")

    def __repr__(self) -> str:
        changed = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Sampler({', '.join(changed)})"

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def stages(self, context: Context) -> list[tuple[str, Stage]]:
        """The stages that do something, by name, in order."""
        return [*self._penalties(context), *([] if self.is_greedy else self._filters(context.keep))]

    def _penalties(self, context: Context) -> list[tuple[str, Stage]]:
        def counts(logits: Tensor) -> Tensor:
            return stages.counts_of(context.ids, context.mask, logits.size(-1))

        size, banned, banned_first = self.no_repeat_ngram_size, self.suppress_tokens, self.begin_suppress_tokens
        first, last = self.forced_bos_token_id, self.forced_eos_token_id
        prompt = context.ids.size(1) - context.new if context.prompt is None else context.prompt
        begins = 1 if prompt == 1 and first else 0  # how many tokens are new where the text begins, as in transformers
        unfinished = context.new < self.min_new_tokens and bool(context.end_ids)
        candidates: list[tuple[str, bool, Stage]] = [
            ("repetition_penalty", self.repetition_penalty != 1,
             lambda logits: stages.repetition(logits, counts(logits), self.repetition_penalty)),
            ("frequency_penalty", self.frequency_penalty != 0,
             lambda logits: stages.frequency(logits, counts(logits), self.frequency_penalty)),
            ("presence_penalty", self.presence_penalty != 0,
             lambda logits: stages.presence(logits, counts(logits), self.presence_penalty)),
            ("no_repeat_ngram_size", size > 0,
             lambda logits: stages.no_repeat_ngrams(logits, context.ids, context.mask, size)),
            ("min_new_tokens", unfinished,
             lambda logits: stages.suppress(logits, [i for i in context.end_ids if 0 <= i < logits.size(-1)])),
            ("forced_bos_token_id", bool(first) and prompt + context.new == 1,
             lambda logits: stages.force(logits, _within("forced_bos_token_id", first, logits.size(-1)))),
            ("forced_eos_token_id", bool(last) and context.last,
             lambda logits: stages.force(logits, _within("forced_eos_token_id", last, logits.size(-1)))),
            ("suppress_tokens", bool(banned),
             lambda logits: stages.suppress(logits, _within("suppress_tokens", banned, logits.size(-1)))),
            ("begin_suppress_tokens", bool(banned_first) and context.new == begins,
             lambda logits: stages.suppress(logits, _within("begin_suppress_tokens", banned_first, logits.size(-1)))),
        ]  # fmt: skip
        return [(name, stage) for name, applies, stage in candidates if applies]

    def _filters(self, keep: int) -> list[tuple[str, Stage]]:
        candidates: list[tuple[str, bool, Stage]] = [
            ("temperature", self.temperature != 1, lambda logits: stages.temperature(logits, self.temperature)),
            ("top_k", self.top_k > 0, lambda logits: stages.top_k(logits, self.top_k, keep)),
            ("top_p", self.top_p < 1, lambda logits: stages.top_p(logits, self.top_p, keep)),
            ("min_p", self.min_p > 0, lambda logits: stages.min_p(logits, self.min_p, keep)),
            ("typical_p", self.typical_p < 1, lambda logits: stages.typical_p(logits, self.typical_p, keep)),
        ]
        return [(name, stage) for name, applies, stage in candidates if applies]

    def process(self, logits: Tensor, context: Context) -> Tensor:
        """Logits [B, V] in float32 after every stage; an error if one leaves a text without any token."""
        for name, stage in self.stages(context):
            logits = stage(logits)
            if name not in _KEEPING and _is_empty(logits, context.active):
                raise InputError(
                    f"Sampler: after {name} no token is left.",
                    code="nothing-left",
                    remedy="Suppress fewer tokens, allow repetitions, or ask for fewer new tokens.",
                )
        return logits

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B]: the likeliest token of processed logits, or one drawn from them."""
        if self.is_greedy:
            return logits.max(-1).indices  # the first of equals, as argmax, in a third of its time
        return draw(logits, 1, generator).squeeze(1)

    def explain(
        self, logits: Tensor, ids: Tensor | Sequence[int] = (), *, end_ids: Sequence[int] = (), new: int = 0
    ) -> dict[str, Tensor]:
        """The distribution after each stage.

        Args:
            logits: [V], of one position.
            ids: The text so far, for penalties; one row of ids, in a list of its own or not.
            end_ids: Tokens that end a text, for `min_new_tokens`.
            new: How many tokens of the text are generated, for `min_new_tokens`.

        Returns:
            "model" and then the name of each stage that does something -> probabilities [V]. With temperature 0 a last
            one, "temperature", holds the choice.

        Raises:
            InputError: If the logits are those of several positions, or an id is outside the vocabulary.

        Example:
            >>> import torch
            >>> import pellucid as pl
            >>> found = pl.Sampler(temperature=0.5, top_k=2).explain(torch.tensor([2.0, 1.0, 0.0]))
            >>> {name: [round(p, 2) for p in probabilities.tolist()] for name, probabilities in found.items()}
            {'model': [0.67, 0.24, 0.09], 'temperature': [0.87, 0.12, 0.02], 'top_k': [0.88, 0.12, 0.0]}
        """
        shape = list(getattr(logits, "shape", ()))
        if not isinstance(logits, Tensor) or not shape or logits.numel() != shape[-1]:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShapeError(
                f"Sampler.explain: {type(logits).__name__} {shape} given, expected the logits [V] of one position.",
                code="logits-shape",
                remedy="Give those of what comes next, model.next_token_logits(text)[0], or of a position of a run, "
                "logits[0, -1].",
            )
        row = ids[0] if isinstance(ids, (list, tuple)) and len(ids) == 1 and is_several(ids[0]) else ids
        before = _within("ids", listed(cast("Sequence[int]", row), "Sampler.explain"), shape[-1])
        text = torch.tensor(before, dtype=torch.long, device=logits.device)[None]
        count = require_whole("Sampler.explain: new", new)
        return self.explain_in(Context(text, torch.ones_like(text, dtype=torch.bool), count, tuple(end_ids)), logits)

    def explain_in(self, context: Context, logits: Tensor) -> dict[str, Tensor]:
        """`explain` for logits [V] of one text in the middle of a generation, whose context has that row alone."""
        current = logits.detach().float().reshape(1, -1)
        found = {"model": current.softmax(-1)[0]}
        for name, stage in self.stages(context):
            current = stage(current)
            found[name] = current.softmax(-1)[0]
        if self.is_greedy:
            found["temperature"] = torch.zeros_like(found["model"]).index_fill_(0, current.argmax(-1), 1.0)
        return found


def draw(logits: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """[B, count]: tokens drawn by the probabilities that processed logits [B, V] give them, none twice."""
    probabilities = logits.softmax(-1)
    try:
        return torch.multinomial(probabilities, count, generator=generator)
    except RuntimeError as problem:
        if bool(probabilities.isfinite().all()):
            raise
        raise InputError(
            "Sampler: the processed logits are infinite, so nothing can be drawn from them.",
            code="sampler-setting",
            remedy="Give a temperature and penalties nearer to 1; if the model's own logits are infinite, load it in "
            "float32.",
        ) from problem


_LEAST, _LARGEST = 1e-30, 1e30
"""A logit over the one, and the length of a text times the other, are below 3e38, which float32 can hold."""

_TOKENS = ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")

_WHOLE = ("top_k", "no_repeat_ngram_size", "min_new_tokens")

_KEEPING = ("repetition_penalty", "frequency_penalty", "presence_penalty", "temperature", "top_k", "top_p", "min_p",
            "typical_p")  # fmt: skip
"""Stages that cannot take out everything."""


def _is_empty(logits: Tensor, active: Tensor | None) -> bool:
    empty = (logits == -math.inf).all(-1)
    return bool(empty.any() if active is None else (empty & active).any())


def _within(name: str, tokens: Sequence[int], vocabulary: int) -> list[int]:
    if outside := [token for token in tokens if token >= vocabulary]:
        raise InputError(
            f"Sampler: {name} holds {outside[0]}, expected ids up to {vocabulary - 1}.",
            code="id-out-of-range",
            remedy="Give ids of this model's vocabulary.",
        )
    return list(tokens)


def _require(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds or isinstance(value, bool):
        raise InputError(
            f"Sampler: {name}={shown(value)}, expected {expected}.",
            code="sampler-setting",
            remedy=f"Give a {name} that is {expected}.",
        )


GREEDY = Sampler(temperature=0)
"""The likeliest token, always."""
