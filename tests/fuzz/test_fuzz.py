"""Some of the campaign: damaged files of every kind are read, or refused by an error of ours, soon and in bounds.

`make test-all` reads twenty thousand of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz.campaign import run
from killed import in_a_child

FILES = 150


class Child:
    """What a campaign asks of its worker, by a child of this process, which has imported already what a worker does."""

    def __init__(self, command: list[str], **_: Any) -> None:
        reading, writing = os.pipe()
        first, last, seed, folder = command[2:]

        def act() -> None:
            from fuzz import worker

            os.dup2(writing, 1)
            sys.stdout = os.fdopen(1, "w")
            worker.main(int(first), int(last), seed, Path(folder))

        self.pid, self.stdout = in_a_child(act), os.fdopen(reading, "rb")
        os.close(writing)
        self.returncode: int | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stdout.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def poll(self, how: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def communicate(self) -> tuple[bytes, bytes]:
        self.poll(0)
        return b"", b""


def test_damaged_files_are_read_or_refused() -> None:
    campaign = run(FILES, "suite", start=Child)
    assert campaign.failures == []
    assert campaign.files == FILES
    assert campaign.distinct > 0.9 * FILES
    total = sum(campaign.outcomes.values(), Counter[str]())
    assert set(total) == {"success", "refused"}
    assert len(campaign.codes) > 20
    assert all(found["refused"] for kind, found in campaign.outcomes.items() if kind != "generation_config.json")
