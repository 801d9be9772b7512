"""A bar that shows how far a long piece of work is."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(what: str, total: int | None, *, wanted: bool) -> Generator[Callable[[int], None]]:
    """Draw a bar with rate and time left on stderr, if it is wanted and that is a terminal.

    Args:
        what: What is counted, such as "texts".
        total: How many there are; None if that is not known.
        wanted: Whether to draw it.

    Yields:
        What is called with the number of pieces that were done since the last call.
    """
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield lambda count: None
        return

    class Rate(rich.ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.1f} {what}/s")

    columns = (
        rich.TextColumn(what), rich.BarColumn(), rich.MofNCompleteColumn(), Rate(), rich.TimeRemainingColumn()
    )  # fmt: skip
    with rich.Progress(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task(what, total=total)
        yield lambda count: drawn.advance(task, count)
