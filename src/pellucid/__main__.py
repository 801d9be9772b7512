"""The process `pellucid`, and `python -m pellucid`: decides about Ctrl-C first, and imports the rest then."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

from pellucid.run import interrupts

interrupts.end_at_once()

from pellucid.cli import main  # noqa: E402  (it takes a while)


def process() -> NoReturn:
    """Run one command, and end the process with its exit code.

    The interpreter's own way out takes torch down module by module for half a second, in which Ctrl-C would kill.
    """
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0"):
            del os.environ[name]  # a screen of no columns, as containers without a terminal say, shows nothing
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; the backend that a notebook hands on need not be here
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    process()
