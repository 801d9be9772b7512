"""Ctrl-C in a process that is `pellucid`: exit code 130, at any moment, without a traceback.

Python raises an exception wherever the program happens to be, which is not reliable while modules are imported: what
torch's initialisation runs swallows the exception, or aborts the process. Nothing is open then that an exception
would have to close, so the process simply ends. Only while a verb works is Ctrl-C an exception, which removes what
is half written. A process that ignores interrupts, such as a shell's background job, and a program that has a handler
of its own and calls `pellucid.cli.main`, keep what they have.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""The exit code: 128 and the number of the signal, as shells have it."""


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """End the process at once."""
    if os.isatty(2):
        os.write(2, b"\r\x1b[K\x1b[?25h")  # a spinner hid the cursor and stands on this line
    os._exit(INTERRUPTED)


def end_at_once() -> None:
    """From now on Ctrl-C ends the process, unless somebody else decided what it does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


@contextmanager
def raised() -> Generator[None, None, None]:
    """While the body runs, Ctrl-C raises `KeyboardInterrupt` in it, and once more after it in case it was swallowed."""
    if signal.getsignal(signal.SIGINT) is not leave:
        yield
        return
    interrupted = False

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        interrupted = False  # it was not swallowed, and may say what is left of the work
        raise
    finally:
        signal.signal(signal.SIGINT, leave)
        if interrupted:
            raise KeyboardInterrupt


@contextmanager
def told(words: str | Callable[[], str]) -> Generator[None, None, None]:
    """While the body runs, Ctrl-C raises `KeyboardInterrupt` with these words, which say what is left of the work."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(words if isinstance(words, str) else words()) from None


def is_watched(console: Console) -> bool:
    """Whether what moves is seen: FORCE_COLOR makes a console of rich's a terminal in logs, too."""
    with suppress(ValueError, AttributeError):  # closed
        return console.is_terminal and console.file.isatty()
    return False


@contextmanager
def bar(what: str, total: int | None, *, wanted: bool) -> Generator[Callable[[int], None]]:
    """Draw a bar with rate and time left on stderr, if it is wanted and that is a terminal.

    Yields what is called with the number of pieces that were done since the last call.
    """
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not wanted or not is_watched(console):
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
