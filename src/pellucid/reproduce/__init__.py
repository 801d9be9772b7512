"""Published figures of GPT-2 small, computed again on the user's own machine and weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from pellucid.check import require_whole
from pellucid.errors import PellucidError, PellucidWarning
from pellucid.names.calls import name_arguments
from pellucid.patching.reruns import BYTES
from pellucid.reproduce.published import EXPERIMENTS, Experiment
from pellucid.reproduce.published import Published as Published
from pellucid.reproduce.published import Reproduced as Reproduced
from pellucid.reproduce.published import Reproduction as Reproduction
from pellucid.reproduce.study import Study
from pellucid.run.cost import count_parameters
from pellucid.run.cost import estimate as capture_cost
from pellucid.run.interrupts import bar
from pellucid.run.model import CkptedTransformer

__all__ = ["Cost", "Published", "Reproduced", "Reproduction", "estimate", "gpt2"]


@dataclass(frozen=True)
class Cost:
    """What a comparison takes, about."""

    seconds: float  # at the speed of one plain run on this machine
    nbytes: int  # of the weights, of captured values and their gradients, and of runs that share a batch

    def __repr__(self) -> str:
        minutes = "less than a minute" if self.seconds < 60 else f"about {self.seconds / 60:.0f} minutes"
        return f"{minutes}, about {self.nbytes / 1e9:.1f} GB"


def gpt2(
    model: CkptedTransformer, *, quick: bool = False, seed: int = 0, name: str = "model", progress: bool = False
) -> Reproduction:
    """Compare a model with what was published about GPT-2 small.

    Most figures were published of texts that are not in this package; they are computed of sentences of our own, with a
    tolerance that says so. The others are of the very text, to the digits that were published.

    Args:
        model: GPT-2 small, evaluating: `pl.load("gpt2-small")`.
        quick: Whether to leave out what takes longest, and to take fewer sentences.
        seed: Of every draw: the words of the sentences, and random ids.
        name: What the report calls the model.
        progress: Whether to draw a bar on stderr, if that is a terminal.

    Returns:
        Every figure with what was computed and a verdict. What cannot be computed, because the model has no such head
        or its tokenizer splits the words, says why. Control-C ends it and returns what was done.

    Example:
        >>> import pellucid as pl
        >>> found = pl.reproduce.gpt2(pl.load(), quick=True)
        >>> bool(found), found.checks[3].verdict, found.checks[3].detail
        (False, 'not computed', 'reproduce: no head 9.9 in 4 layers of 4 heads and 1024 neurons.')
    """
    study, chosen = _study(model, quick, seed), _chosen(quick)
    begin, done, interrupted = time.perf_counter(), list[Reproduced](), False
    try:
        with bar("experiments", len(chosen), wanted=progress) as advance, warnings.catch_warnings():
            warnings.filterwarnings("error", "interrupted", PellucidWarning)  # a sweep that was cut off is no result
            for experiment in chosen:
                done += _compared(experiment, study)
                advance(1)
    except (KeyboardInterrupt, PellucidWarning):
        interrupted = True
    left = list(chain.from_iterable(experiment.published for experiment in chosen))[len(done) :]
    done += [Reproduced(published, None, "interrupted before") for published in left]
    settings = {"quick": quick, "seed": seed, "templates": study.templates, "sentences": study.count}
    return Reproduction(name, tuple(done), settings, time.perf_counter() - begin, interrupted)


def estimate(model: CkptedTransformer, *, quick: bool = False) -> Cost:
    """Say what `gpt2` takes, from the number of its runs and the time that one of them takes.

    Example:
        >>> import pellucid as pl
        >>> pl.reproduce.estimate(pl.load(), quick=True).nbytes > 500_000_000
        True
    """
    study = _study(model, quick, 0)
    ids = torch.zeros(4, min(16, model.schema.sizes["n_ctx"]), dtype=torch.long, device="cpu")
    batch = model.tokenize({"input_ids": ids, "attention_mask": torch.ones_like(ids)})  # such ids may be pads
    times = list[float]()
    for _ in range(4):  # the first is slower than all that follow
        begin = time.perf_counter()
        model.run(batch)
        times.append(time.perf_counter() - begin)
    each = min(times) / len(batch)
    runs = sum(experiment.runs(study) for experiment in _chosen(quick))
    captured = 2 * capture_cost(model, batch).nbytes // len(batch) * 2 * study.count
    return Cost(runs * each, count_parameters(model).bytes + captured + BYTES)


def _study(model: CkptedTransformer, quick: bool, seed: int) -> Study:
    seed = require_whole("reproduce: seed", seed)
    templates, count, each = (2, 4, 1) if quick else (6, 16, 2)
    return Study(model, templates, count, each, seed)


def _chosen(quick: bool) -> Sequence[Experiment]:
    return [experiment for experiment in EXPERIMENTS if not (quick and experiment.slow)]


def _compared(experiment: Experiment, study: Study) -> Iterator[Reproduced]:
    """Each published number beside the computed one, or why there is none."""
    try:
        values = experiment.compute(study)
    except PellucidWarning:
        raise
    except PellucidError as error:
        yield from (Reproduced(published, None, error.message) for published in experiment.published)
        return
    for published, value in zip(experiment.published, values, strict=True):
        number, detail = value if isinstance(value, tuple) else (value, "")
        yield Reproduced(published, number, detail)


name_arguments(globals())
