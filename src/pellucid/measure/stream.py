"""Statistics over any number of texts, in the memory of one batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pellucid.aliases import selected
from pellucid.check import require_whole
from pellucid.ckpt import all_names
from pellucid.errors import InputError, PellucidError
from pellucid.measure.captured import Runs
from pellucid.measure.gathering import Statistic
from pellucid.measure.resume import Keeper, Progress, Saving
from pellucid.run.activations import ActivationCkpts
from pellucid.run.origin import execution_of, weights_fingerprint


@dataclass(frozen=True, repr=False)
class Streamed(Sequence[Any]):
    """What was gathered: a sequence of results, in the order of the statistics.

    Attributes:
        statistics: With everything that they gathered, which merges further.
        texts: How many texts.
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
        """What both gathered, as if one stream had read this one's texts and then the other's.

        Counts and quantile sketches are exactly those of the one stream; means, variances, covariances and
        regressions equal them to rounding.

        Raises:
            InputError: Other statistics, or another model.
        """
        merged = tuple(statistic.fresh() for statistic in self.statistics)
        if not isinstance(other, Streamed) or len(self) != len(other):
            given = f"{len(other)} statistics" if isinstance(other, Streamed) else f"{type(other).__name__} given"
            raise InputError(
                f"merge: {given}, expected {len(self)} statistics of a stream.",
                code="merge-misfit",
                remedy="Merge streams of the same statistics, in the same order.",
            )
        for part in (self, other):
            for statistic, gathered in zip(merged, part.statistics, strict=True):
                statistic.merge(gathered)
        both = Progress(self.texts + other.texts - 1, self.digest)
        both.add(other.digest)
        return Streamed(merged, both.texts, both.digest)

    def __repr__(self) -> str:
        shown = "".join(f"\n  {s.spec}" for s in self.statistics)
        return f"Streamed: {len(self)} statistics of {self.texts:,} texts{shown}"


def stream(
    model: Runs,
    texts: Iterable[Any],
    statistics: Sequence[Statistic],
    *,
    batch_size: int = 8,
    checkpoint: str | Path | Saving | None = None,
    progress: bool = False,
) -> Streamed:
    """Gather statistics over any number of texts, in the memory of one batch.

    The texts are run in batches of their order, as far as the last checkpoint that is asked for. With `checkpoint`,
    the statistics and how far they got are written to a file now and then, whole or not at all; after a kill the
    same call goes on from there, and its results are those of the run that was never killed, to the last bit.

    Args:
        model: What to run.
        texts: Texts, or rows of ids; any iterable, such as a generator over files. To resume, it must give the same
            texts again; those that were gathered are passed over.
        statistics: What to gather, such as [Moments("resid_post"), Quantiles("resid_post", of="norm")]; they stay
            as they are.
        batch_size: Texts that run together.
        checkpoint: The file; Saving(path, every_texts=..., every_seconds=...) says how often.
        progress: Draw a bar with rate and time left on stderr, if that is a terminal.

    Returns:
        A sequence of results in the order of the statistics; `merge` joins what several machines gathered.

    Raises:
        InputError: No text, an empty one, one longer than the context, a file of another stream, or other texts than
            those that it was made of.
        UnknownNameError: No such checkpoint.

    Example:
        >>> import pellucid as pl
        >>> texts = ["Once upon a time", "The end", "A cat sat on the mat"]
        >>> norms = pl.measure.Moments("resid_post", of="norm")
        >>> gathered = pl.measure.stream(pl.load(), texts, [norms], batch_size=2)
        >>> gathered.texts, gathered[0]["count"].values.tolist()
        (3, [12, 12, 12, 12])
    """
    _check(texts, statistics)
    batch_size = require_whole("stream: batch_size", batch_size, at_least=1, code="batch-size")
    gathering = [statistic.fresh() for statistic in statistics]
    keeper, done = None, Progress()
    if checkpoint is not None:
        saving = checkpoint if isinstance(checkpoint, Saving) else Saving(checkpoint)
        specs = [statistic.spec for statistic in gathering]
        identity = {"batch_size": batch_size, "statistics": specs, "weights": weights_fingerprint(model)}
        keeper = Keeper(saving, {**identity, **execution_of(model)})
        done = keeper.load(gathering)
    known = all_names(model.config.n_layer)
    names = selected([statistic.captures for statistic in gathering], known)
    total = len(texts) if isinstance(texts, Sized) else None
    with _bar(total, progress) as advance:
        rest = _passed_over(texts, done)
        advance(done.texts)
        for batch in _batches(rest, batch_size):
            ckpts = _run(model, batch, names, done.texts)
            for statistic in gathering:
                statistic.update(ckpts)
            for text in batch:
                done.add(text)
            if keeper is not None and keeper.due(done):
                keeper.save(done, gathering)
            advance(len(batch))
    if not done.texts:
        raise InputError(
            "stream: no texts, expected at least one.",
            code="no-texts",
            remedy="Mind that a generator that was read before is empty.",
        )
    if keeper is not None:
        keeper.save(done, gathering)
    return Streamed(tuple(gathering), done.texts, done.digest)


def _check(texts: Any, statistics: Any) -> None:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(
            f"stream: texts={type(texts).__name__}, expected a list or another iterable of texts.",
            code="texts-kind",
            remedy="Put a single text into a list.",
        )
    gathers = isinstance(statistics, Sequence) and all(isinstance(s, Statistic) for s in statistics)
    if not gathers or not statistics:
        raise InputError(
            f"stream: statistics={statistics!r}, expected one or more statistics in a list.",
            code="statistics-kind",
            remedy="Give [pl.measure.Moments('resid_post')], or Covariance, Quantiles or Autoregression.",
        )


def _passed_over(texts: Iterable[Any], done: Progress) -> Iterator[Any]:
    """What is left of the texts, after seeing that those before are the ones that were gathered."""
    left = iter(texts)
    seen = Progress()
    for text in islice(left, done.texts):
        seen.add(text)
    if seen != done:
        raise InputError(
            f"stream: the first {done.texts} texts are not those that the file was made of ({seen.texts} given).",
            code="stream-misfit",
            remedy="Give the same texts in the same order, or another file.",
        )
    return left


def _batches(texts: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(texts, size)):
        yield batch


def _run(model: Runs, batch: list[Any], names: tuple[str, ...], before: int) -> ActivationCkpts:
    """The checkpoints of one batch; errors say which texts of the stream it holds."""
    try:
        return model.run_with_ckpts(batch, names=names, stop_at=names[-1])[1]
    except PellucidError as error:
        where = f"stream, texts {before} to {before + len(batch) - 1}: {error.message}"
        raise type(error)(where, code=error.code, remedy=error.remedy) from error


@contextmanager
def _bar(total: int | None, wanted: bool) -> Generator[Callable[[int], None]]:
    """A function to call with how many texts are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield lambda count: None
        return

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.1f} texts/s")

    columns = (TextColumn("texts"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("texts", total=total)
        yield lambda count: bar.advance(task, count)
