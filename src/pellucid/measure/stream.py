"""`stream`: statistics over any number of texts, in the memory of one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.check import require_whole
from pellucid.corpus.ray_workers import Engine, Workers
from pellucid.corpus.sink import Arrays, Batched, CapturingModel, Progress, Saving, Sink, StateFile, captured, feed
from pellucid.errors import InputError, shown
from pellucid.html.listing import counted
from pellucid.measure.statistic import Statistic
from pellucid.names.aliases import selected
from pellucid.run.origin import execution_of, weights_fingerprint

AHEAD = 4
"""Batches for each of Ray's processes that may wait for one before them."""


@dataclass(frozen=True, repr=False)
class Streamed(Sequence[Any]):
    """The results of a stream: a sequence in the order of the statistics.

    Attributes:
        statistics: The statistics with everything that they gathered, which merges further.
        texts: How many texts were gathered.
        digest: SHA-256 over the texts, in order.
    """

    statistics: tuple[Statistic, ...]
    texts: int
    digest: str

    def __len__(self) -> int:
        return len(self.statistics)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        result = self.statistics[index].result()
        result.attrs.update(texts=self.texts, text=self.digest)
        return result

    def merge(self, other: Streamed) -> Streamed:
        """Return what both gathered, as if one stream had read this one's texts and then the other's.

        Counts and quantile sketches are exactly those of the one stream; means, variances, covariances and
        regressions equal them to rounding.

        Raises:
            InputError: If the other is of other statistics, or of another model.
        """
        if not isinstance(other, Streamed) or len(self) != len(other):
            given = f"{len(other)} statistics" if isinstance(other, Streamed) else f"{type(other).__name__} given"
            raise InputError(
                f"merge: {given}, expected {len(self)} statistics of a stream.",
                code="merge-misfit",
                remedy="Merge streams of the same statistics, in the same order.",
            )
        merged = tuple(statistic.fresh() for statistic in self.statistics)
        for part in (self, other):
            for statistic, gathered in zip(merged, part.statistics, strict=True):
                statistic.merge(gathered)
        both = Progress(self.texts + other.texts - 1, self.digest)
        both.add(other.digest)
        return Streamed(merged, both.texts, both.digest)

    def __repr__(self) -> str:
        specs = "".join(f"\n  {s.spec}" for s in self.statistics)
        return f"Streamed: {counted(len(self), 'statistic')} of {counted(self.texts, 'text')}{specs}"


def stream(
    model: CapturingModel,
    texts: Iterable[Any],
    statistics: Sequence[Statistic],
    *,
    batch_size: int = 8,
    checkpoint: str | Path | Saving | None = None,
    engine: str = "local",
    workers: int | None = None,
    progress: bool = False,
) -> Streamed:
    """Gather statistics over any number of texts, in the memory of one batch.

    The texts are run in batches of their order, as far as the last checkpoint that is asked for. With `checkpoint`,
    the statistics and how far they got are written to a file now and then, whole or not at all. After a kill the same
    call continues from there, and its results are those of a run that was never killed, to the last bit.

    Args:
        model: What to run.
        texts: Texts, or rows of ids; any iterable, such as a generator over files. To resume, it must give the same
            texts again; those that were gathered are passed over.
        statistics: What to gather, such as [Moments("resid_post"), Quantiles("resid_post", of="norm")]; they stay
            as they are.
        batch_size: How many texts run together.
        checkpoint: The file; Saving(path, every_texts=..., every_seconds=...) says how often.
        engine: "local" runs the texts in this process; "ray" has batches run by processes of Ray's, as
            `pl.corpus.capture` does. What they gather is merged in the order of the batches, so the result is the same
            to the last bit.
        workers: How many processes Ray starts; None for as many as have processors.
        progress: Whether to draw a bar with rate and time left on stderr, if that is a terminal.

    Returns:
        A sequence of results in the order of the statistics; `merge` joins what several machines gathered.

    Raises:
        InputError: If there is no text, one is empty or longer than the context, or the file is of another stream or
            of other texts.
        UnknownNameError: If there is no such checkpoint.
        KeyboardInterrupt: By Control-C; it says how far the texts were read, and what the file keeps of them.

    Example:
        >>> import pellucid as pl
        >>> texts = ["Once upon a time", "The end", "A cat sat on the mat"]
        >>> norms = pl.measure.Moments("resid_post", of="norm")
        >>> gathered = pl.measure.stream(pl.load(), texts, [norms], batch_size=2)
        >>> gathered.texts, gathered[0]["count"].values.tolist()
        (3, [12, 12, 12, 12])
    """
    gathers = isinstance(statistics, Sequence) and all(isinstance(s, Statistic) for s in statistics)
    if not gathers or not statistics:
        raise InputError(
            f"stream: statistics={shown(statistics)}, expected one or more statistics in a list.",
            code="statistics-kind",
            remedy="Give [pl.measure.Moments('resid_post')], or Covariance, Quantiles or Autoregression.",
        )
    wish = Engine.of("stream", engine, workers)
    batch_size = require_whole("stream: batch_size", batch_size, at_least=1, code="batch-size")
    gathering = tuple(statistic.fresh() for statistic in statistics)
    file = None
    if checkpoint is not None:
        saving = checkpoint if isinstance(checkpoint, Saving) else Saving(checkpoint)
        specs = [statistic.spec for statistic in gathering]
        identity = {"batch_size": batch_size, "statistics": specs, "weights": weights_fingerprint(model)}
        file = StateFile(saving, {**identity, **execution_of(model)})
    if wish.kind == "local":
        done = feed(model, texts, Gathering(gathering, file), batch_size=batch_size, progress=progress)
    else:
        sink = Merging(gathering, file)
        job = BatchJob(tuple(statistic.fresh() for statistic in gathering), selected(sink.captures, model.schema))
        run = lambda batches: Workers(model, job, wish.workers).results(batches, AHEAD)  # noqa: E731
        done = feed(model, texts, sink, batch_size=batch_size, progress=progress, run=run)
    return Streamed(gathering, done.texts, done.digest)


class Gathering(Sink):
    """The sink that gives every batch to statistics."""

    def __init__(self, statistics: Sequence[Statistic], file: StateFile | None) -> None:
        self._statistics, self._file = statistics, file

    @property
    def captures(self) -> list[str]:
        return [statistic.captures for statistic in self._statistics]

    def resume(self) -> Progress:
        return Progress() if self._file is None else self._file.load(self._read)

    def take(self, ckpts: Any, texts: range) -> None:
        for statistic in self._statistics:
            statistic.update(ckpts)

    @property
    def kept(self) -> str:
        return super().kept + ", as checkpoint= would" if self._file is None else self._file.kept

    def keep(self, done: Progress, *, last: bool) -> None:
        if self._file is not None and (last or self._file.due(done)):
            states = [(number, statistic.state()) for number, statistic in enumerate(self._statistics)]
            self._file.save(done, {f"{number}.{key}": a for number, state in states for key, a in state.items()})

    def _read(self, arrays: Arrays) -> None:
        for number, statistic in enumerate(self._statistics):
            prefix = f"{number}."
            statistic.load({key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)})


class Merging(Gathering):
    """The sink that adds to statistics what others gathered of each batch."""

    def take(self, ckpts: Any, texts: range) -> None:
        for statistic, gathered in zip(self._statistics, ckpts, strict=True):
            statistic.merge(gathered)


@dataclass(frozen=True)
class BatchJob:
    """Gathers statistics of one batch in a process of Ray's."""

    statistics: tuple[Statistic, ...]  # what to gather
    names: tuple[str, ...]  # the checkpoints to capture for that

    def begin(self) -> None:
        """Nothing is to be prepared."""

    def __call__(self, model: CapturingModel, batch: Batched) -> tuple[Statistic, ...]:
        """What one batch gives."""
        ckpts = captured(model, batch, self.names, "stream")
        gathered = tuple(statistic.fresh() for statistic in self.statistics)
        for statistic in gathered:
            statistic.update(ckpts)
        return gathered
