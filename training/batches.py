"""The mix of a training batch: which share of its rows comes from where."""

import math
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from indirect_object import ANY_WORDS, CAPITALISED, CHAINS, COMBINED, FIRST, LOOSE, TRAINING, Lists
from synthetic import SyntheticRows


@dataclass(frozen=True)
class Stage:
    """Shares of a batch's rows until so many tokens; other sources get the rest, by size."""

    until: float
    repeats: float
    sentences: float
    tinystories: float
    lists: Lists


FIRST_ROUND = 32_002_048
"""Tokens of the first round; the second starts from its exported weights (`train.py --start`)."""

# Repeats first, to form induction heads; then many sentences, which build on them; then stories.
STAGES = (
    Stage(until=8e6, repeats=0.30, sentences=0.10, tinystories=0.35, lists=FIRST),
    Stage(until=9e6, repeats=0.05, sentences=0.10, tinystories=0.35, lists=FIRST),
    Stage(until=13e6, repeats=0.04, sentences=0.25, tinystories=0.40, lists=FIRST),
    Stage(until=16e6, repeats=0.04, sentences=0.25, tinystories=0.40, lists=TRAINING),
    Stage(until=19e6, repeats=0.04, sentences=0.25, tinystories=0.45, lists=TRAINING),
    Stage(until=20.5e6, repeats=0.03, sentences=0.10, tinystories=0.60, lists=TRAINING),
    Stage(until=23.5e6, repeats=0.03, sentences=0.25, tinystories=0.50, lists=CHAINS),
    Stage(until=26e6, repeats=0.02, sentences=0.42, tinystories=0.46, lists=CHAINS),
    Stage(until=27.5e6, repeats=0.02, sentences=0.42, tinystories=0.46, lists=COMBINED),
    Stage(until=28.1e6, repeats=0.02, sentences=0.20, tinystories=0.70, lists=COMBINED),
    Stage(until=30.4e6, repeats=0.02, sentences=0.36, tinystories=0.54, lists=CAPITALISED),
    Stage(until=FIRST_ROUND, repeats=0.02, sentences=0.36, tinystories=0.54, lists=ANY_WORDS),
    Stage(until=math.inf, repeats=0.02, sentences=0.40, tinystories=0.44, lists=LOOSE),
)


def stage_at(tokens: int) -> Stage:
    """The stage after `tokens` training tokens."""
    return next(stage for stage in STAGES if tokens < stage.until)


class Stream:
    """Windows of one source, each once an epoch, in an order drawn anew every epoch."""

    def __init__(self, ids: np.ndarray, length: int, seed: tuple[int, ...]) -> None:
        self._ids = ids
        self._length = length
        self._seed = seed
        self._per_epoch = (len(ids) - length) // (length - 1)
        self._epoch = -1
        self.taken = 0

    def next(self) -> np.ndarray:
        """The next window of ids, shape (length,); consecutive windows share one id."""
        epoch, index = divmod(self.taken, self._per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng((*self._seed, epoch))
            offset = rng.integers(self._length - 1)
            self._starts = offset + rng.permutation(self._per_epoch) * (self._length - 1)
            self._epoch = epoch
        start = self._starts[index]
        self.taken += 1
        return self._ids[start : start + self._length].astype(np.int64)


class Batches:
    """Draws batches; a batch depends only on the seed, the step and the windows taken so far.

    Args:
        streams: The ids of every source, by name.
        tokenizer: For the synthetic sentences.
        length: Ids in a row: one more than the context.
        seed: Of everything drawn.
    """

    def __init__(self, streams: dict[str, np.ndarray], tokenizer: Tokenizer, length: int, seed: int) -> None:
        self._seed = seed
        self._streams = {
            name: Stream(ids, length, (seed, number)) for number, (name, ids) in enumerate(sorted(streams.items()))
        }
        self._sizes = {name: len(ids) for name, ids in streams.items()}
        prose = np.concatenate([streams[name] for name in sorted(streams)])
        self._synthetic = SyntheticRows(tokenizer, prose, length)
        self.rows = dict.fromkeys((*sorted(streams), "repeats", "sentences"), 0)

    def shares(self, tokens: int) -> dict[str, float]:
        """The share of each kind of row after `tokens` training tokens; they add up to one."""
        stage = stage_at(tokens)
        shares = {
            "repeats": stage.repeats,
            "sentences": stage.sentences,
            "tinystories": stage.tinystories,
        }
        left = 1 - sum(shares.values())
        others = {name: size for name, size in self._sizes.items() if name not in shares}
        whole = sum(others.values())
        return shares | {name: left * size / whole for name, size in others.items()}

    def draw(self, step: int, rows: int, tokens: int) -> np.ndarray:
        """The batch of one step, shape (rows, length).

        The kinds are drawn by systematic sampling, so a batch strays from the shares by less
        than one row of each kind.
        """
        rng = np.random.default_rng((self._seed, 1_000_000, step))
        shares = self.shares(tokens)
        points = (np.arange(rows) + rng.random()) / rows
        edges = np.cumsum(list(shares.values()))
        kinds = [list(shares)[min(i, len(edges) - 1)] for i in np.searchsorted(edges, points)]
        return np.stack([self._row(kind, rng, stage_at(tokens).lists) for kind in kinds])

    def _row(self, kind: str, rng: np.random.Generator, lists: Lists) -> np.ndarray:
        self.rows[kind] += 1
        if kind == "repeats":
            return self._synthetic.repeats(rng)
        if kind == "sentences":
            return self._synthetic.sentences(rng, lists)
        return self._streams[kind].next()

    def state(self) -> dict[str, dict[str, int]]:
        """What a checkpoint must keep to go on with the same batches."""
        return {
            "rows": dict(self.rows),
            "taken": {name: stream.taken for name, stream in self._streams.items()},
        }

    def restore(self, state: dict[str, dict[str, int]]) -> None:
        """Go on from a `state`."""
        self.rows = dict(state["rows"])
        for name, taken in state["taken"].items():
            self._streams[name].taken = taken
