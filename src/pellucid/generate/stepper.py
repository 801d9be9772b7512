"""A text that grows, run piece by piece: the prompt, then each token that was chosen.

With a cache only the new tokens run; what several texts begin with runs once. Without one the whole text runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import NumericsError
from pellucid.family.families import StepDecoder
from pellucid.family.network import Network
from pellucid.family.part import has_native_hooks, submodules
from pellucid.fast.decoder import decoder
from pellucid.run.cache import KeyValueCache
from pellucid.run.region import Region
from pellucid.run.taps import EditTap, Recorder
from pellucid.schema import POSITIONS, Axes, Axis, Point, Schema
from pellucid.tap import Chain, Tap
from pellucid.text.batch import Batch
from pellucid.text.batching import positions_of

WORTH_SHARING = 8
"""Tokens that several prompts must begin with before these run once for all."""


@dataclass(frozen=True)
class RunPlan:
    """How the text is run."""

    columns: int  # the most columns that there will be
    cached: bool = True  # whether keys and values are kept
    repeats: int = 1  # copies of each prompt, next to each other


@dataclass
class Look:
    """What is captured and changed on the way."""

    names: frozenset[str]  # checkpoints to capture
    edits: EditTap  # changes, which count columns of the whole text
    schema: Schema  # the model's schema
    pieces: dict[str, list[Tensor]] = field(default_factory=dict)  # captured values of each run, by checkpoint

    @property
    def is_blind(self) -> bool:
        """Whether nothing is captured or changed."""
        return not self.names and not self.edits.fired

    def tap(self, start: int) -> tuple[Tap | None, Recorder | None]:
        """The tap of one run whose first column is `start`, and what it records."""
        self.edits.start = start
        recorder = Recorder(self.names, self.schema, Region(), grads=False) if self.names else None
        taps: list[Tap] = [*([self.edits] if self.edits.fired else []), *([recorder] if recorder is not None else [])]
        return (Chain(taps) if taps else None), recorder

    def keep(self, recorder: Recorder | None, columns: int) -> None:
        """Keep the last `columns` columns of what was recorded."""
        for name, value in recorder.values.items() if recorder is not None else ():
            axis = pos_axis(self.schema.axes[name])
            self.pieces.setdefault(name, []).append(value.narrow(axis, value.size(axis) - columns, columns))

    def joined(self, columns: int) -> dict[str, Tensor]:
        """Each captured value for the whole text of so many columns, the pieces joined along positions."""
        return {
            name: torch.cat([_with_all_keys(piece, point, columns) for piece in self.pieces[name]],
                            dim=pos_axis(point.axes))
            for name, point in self.schema.by_name.items() if name in self.pieces
        }  # fmt: skip


class Stepper:
    """Runs a growing batch."""

    def __init__(self, model: Network, batch: Batch, plan: RunPlan, look: Look) -> None:
        self.model, self.plan, self.look = model, plan, look
        self.prompts = batch
        self.ids = batch.ids.repeat_interleave(plan.repeats, 0)  # [B, n], the text so far
        self.mask = batch.mask.repeat_interleave(plan.repeats, 0)  # [B, n], true at tokens
        self.cache: KeyValueCache | None = None
        fast = model.execution.is_fast and plan.cached and not look.edits.fired
        self.decoder = decoder(model, len(self.ids), look.names) if fast else None
        self._modules = submodules(model)

    def start(self) -> Tensor:
        """Run the prompts: logits [B, V] of what follows."""
        if not self.plan.cached:
            return self._whole(self.ids.size(1))
        if self.look.is_blind and not has_native_hooks(self._modules):
            self.cache, logits = self._prefilled()
            return logits.repeat_interleave(self.plan.repeats, 0)
        self.cache = self._empty(len(self.ids))  # all rows and columns at once, as a hook in transformers sees them
        return self._piece(self.cache, self.ids, self.mask)

    def step(self, ids: Tensor) -> Tensor:
        """Run one more token [B] of each text: logits [B, V] of what follows."""
        more = torch.ones_like(self.mask[:, :1])
        self.ids, self.mask = torch.cat([self.ids, ids[:, None]], 1), torch.cat([self.mask, more], 1)
        if self.cache is None or self.ids.size(1) > self.model.schema.sizes["n_ctx"]:
            return self._whole(1)
        if self.decoder is not None and not has_native_hooks(self._modules):  # one may have come since the last step
            return self._decoded(self.decoder, self.cache, ids)
        return self._piece(self.cache, ids[:, None], more)

    def _decoded(self, decoder: StepDecoder, cache: KeyValueCache, ids: Tensor) -> Tensor:
        positions = cache.counts
        cache.open(torch.ones_like(self.mask[:, :1]))
        logits, values = decoder.step(ids, positions, cache, self.look.names)
        for name, value in values.items():
            self.look.pieces[name].append(_in_dtype(value, self.model.embed.W_E.dtype, self.look.schema[name]))
        return logits

    def reorder(self, rows: Tensor) -> None:
        """Reorder rows in place: new row i is old row `rows[i]`; rows may repeat."""
        self.ids, self.mask = self.ids[rows], self.mask[rows]
        if self.cache is not None:
            self.cache.reorder(rows)

    def _prefilled(self) -> tuple[KeyValueCache, Tensor]:
        """Run each different prompt once, and what all begin with once: the cache, and logits [prompts, V]."""
        batch = self.prompts
        shared = _common_beginning(batch) if len(batch) > 1 else 0
        if shared < WORTH_SHARING:
            cache = self._empty(len(batch))
            logits = self._run(cache, batch.ids, batch.mask, None)
        else:
            alone = self._empty(1)
            beginning = next(iter(batch.rows()))[None, :shared]
            self._run(alone, beginning, torch.ones_like(beginning, dtype=torch.bool), None)
            cache = alone.fork(len(batch))
            logits = self._run(cache, *left_padded([row[shared:] for row in batch.rows()]), None)
        return (cache.fork(self.plan.repeats) if self.plan.repeats > 1 else cache), logits

    def _empty(self, rows: int) -> KeyValueCache:
        weight = self.model.embed.W_E
        dtype = weight.dtype if self.decoder is None else self.decoder.dtype
        columns = max(1, min(self.plan.columns, self.model.schema.sizes["n_ctx"]))
        return KeyValueCache(self.model.config, rows, columns, dtype=dtype, device=weight.device)

    def _piece(self, cache: KeyValueCache, ids: Tensor, mask: Tensor) -> Tensor:
        tap, recorder = self.look.tap(cache.length)
        logits = self._run(cache, ids, mask, tap)
        self.look.keep(recorder, ids.size(1))
        return logits

    def _run(self, cache: KeyValueCache, ids: Tensor, mask: Tensor, tap: Tap | None) -> Tensor:
        """Run columns that follow those in the cache: logits [B, V] of the last one."""
        return self._called(self._batch(ids, mask), tap=tap, cache=cache, last_only=True)[:, 0]

    def _called(self, batch: Batch, **how: Any) -> Tensor:
        """Run the model with its own hooks.

        Without any it runs uncompiled, even if `model.compile()` was called: each step has another length, which
        torch would compile again.
        """
        run = self.model if has_native_hooks(self._modules) else self.model.forward
        return run(batch, **how)

    def _batch(self, ids: Tensor, mask: Tensor) -> Batch:
        """Columns that the model takes as they are: they were checked when the prompts were."""
        return Batch(ids, mask, positions_of(mask), self.prompts.tokenizer, checked=self.model.config)

    def _whole(self, new: int) -> Tensor:
        """Run the whole text, of which `new` columns are new: logits [B, V] of the last one."""
        tap, recorder = self.look.tap(0)
        logits = self._called(self._window(), tap=tap, last_only=True)
        self.look.keep(recorder, new)
        return logits[:, 0]

    def _window(self) -> Batch:
        """The whole text, or its last tokens if it is longer than the context."""
        context = self.model.schema.sizes["n_ctx"]
        return self._batch(self.ids[:, -context:], self.mask[:, -context:])

    def nan_error(self, step: int) -> NumericsError:
        """What to raise for logits that hold NaN: where the first one comes from, found by running once more."""
        window = self._window()
        finder = _NanFinder(self.mask[:, -window.ids.size(1) :], self.look.schema)
        self.look.edits.start = 0
        self._called(window, tap=Chain([self.look.edits, finder]) if self.look.edits.fired else finder)
        where = finder.found or "the logits alone"
        return NumericsError(
            f"generate: the logits of step {step} hold NaN, which comes first at {where}.",
            code="nan-logits",
            remedy="Look at the weights and edits there; half precision overflows where float32 does not.",
        )


def _in_dtype(value: Tensor, dtype: torch.dtype, point: Point) -> Tensor:
    """A captured value in the model's dtype; what is masked is the least number of that one."""
    if point.masked:
        value = value.clamp(min=torch.finfo(dtype).min)
    return value.to(dtype)


class _NanFinder:
    """A tap that remembers the first checkpoint that holds a NaN at a token."""

    def __init__(self, mask: Tensor, schema: Schema) -> None:
        self.mask = mask
        self.schema = schema
        self.found = ""

    def wants(self, name: str) -> bool:
        return not self.found and self.schema[name].computed == "always"

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if bool(value[self.mask].isnan().any()):
            self.found = name
        return value


def checked(stepper: Stepper, run: Callable[[], Tensor], active: Tensor, step: int) -> Tensor:
    """The logits [B, V] of a run, without NaN where a text goes on."""
    with torch.no_grad():
        logits = run()
        suspicious = bool(logits.sum().isnan())  # one pass; infinities of both signs look like this too
        if suspicious and bool((logits.isnan().any(-1) & active).any()):
            raise stepper.nan_error(step)
    return logits


def chosen_logprobs(logits: Tensor, chosen: Tensor) -> Tensor:
    """[..., V] and [...] -> [...]: log-probabilities, in float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(-1, chosen[..., None]).squeeze(-1)


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one rectangle that ends with their last tokens: ids and mask [B, P]."""
    width = max(map(len, rows))
    ids, mask = rows[0].new_zeros(len(rows), width), rows[0].new_zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = row, True
    return ids, mask


def _common_beginning(batch: Batch) -> int:
    """How many tokens all texts begin with, one of each left out, so that each has something to run."""
    rows = list(batch.rows())
    shortest = min(map(len, rows)) - 1
    heads = torch.stack([row[:shortest] for row in rows])
    same = (heads == heads[:1]).all(0)
    return int(same.long().cumprod(0).sum()) if shortest else 0


def pos_axis(axes: Axes) -> int:
    return next(i for i, axis in enumerate(axes) if axis in POSITIONS)


def _with_all_keys(piece: Tensor, point: Point, columns: int) -> Tensor:
    """Scores and patterns of an earlier step, with the keys that came later as what no query attends to."""
    if Axis.KEY not in point.axes:
        return piece
    fill = torch.finfo(piece.dtype).min if point.masked else 0.0
    return torch.nn.functional.pad(piece, (0, columns - piece.size(-1)), value=fill)
