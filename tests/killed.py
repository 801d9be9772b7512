"""Kill a saver for good, at a moment of one's choice: a forked child that ends by SIGKILL at its n-th step."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STEPS = ((os, "replace"), (os, "fsync"), (Path, "unlink"), (Path, "touch"))
"""What a saver does to the disk: it is killed before one of these, or after."""

CHANGES = ((os, "replace"), (Path, "unlink"))
"""Of these, the ones that change what a reader finds."""

Steps = tuple[tuple[Any, str], ...]


def in_a_child(act: Callable[[], object]) -> int:
    """Start a child that does something and ends; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which these children can bear
        child = os.fork()
    if child:
        return child
    try:
        act()
    except BaseException:
        os._exit(1)
    os._exit(0)


def at_every_step(act: Callable[[], object], steps: Steps = STEPS, *, after: bool = True) -> Iterator[int]:
    """Do something in a child that is killed at its first step, then at its second, until one comes to its end.

    Where the steps are all that changes what is found, nobody needs to be killed after one: that is before the next.
    """
    for number in range(1, 200):
        child = in_a_child(lambda number=number: _until(number, act, steps, after))
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
        yield number
    raise AssertionError("it has more steps than any saving")


def _until(number: int, act: Callable[[], object], steps: Steps, after: bool) -> None:
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            step()
            done = plain(*args, **kwargs)
            if after:
                step()
            return done

        return stepping

    for owner, name in steps:
        setattr(owner, name, counted(getattr(owner, name)))
    act()
