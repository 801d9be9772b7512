"""Some of the campaign: damaged files of every kind are read, or refused by an error of ours, soon and in bounds.

`make test-all` reads twenty thousand of them.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuzz import kinds
from fuzz.campaign import run
from killed import in_a_child

FILES = 150


class Child:
    """What a campaign asks of its worker, by a child of this process, which has imported already what a worker does."""

    def __init__(self, command: list[str], *, env: Mapping[str, str], **_: Any) -> None:
        reading, writing = os.pipe()
        self._said = Path(command[-1]) / "said"

        def act() -> None:
            os.dup2(writing, 1)
            sys.stdout = os.fdopen(1, "w")
            os.environ.update(env)
            sys.argv = command[1:]
            try:
                runpy.run_path(command[1], run_name="__main__")
            except BaseException:
                self._said.write_text(traceback.format_exc(), encoding="utf-8")
                raise

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
        return b"", self._said.read_bytes() if self._said.exists() else b""


def test_damaged_files_are_read_or_refused() -> None:
    campaign = run(FILES, "suite", start=Child)
    assert campaign.failures == []
    assert campaign.files == FILES
    assert campaign.distinct > 0.9 * FILES
    total = sum(campaign.outcomes.values(), Counter[str]())
    assert set(total) == {"success", "refused"}
    assert len(campaign.codes) > 20
    assert all(found["refused"] for kind, found in campaign.outcomes.items() if kind != "generation_config.json")


def test_a_worker_that_raises_says_why_and_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_: Path) -> None:
        raise ValueError(f"offline: {os.environ['HF_HUB_OFFLINE']}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(kinds, "KINDS", {"broken": SimpleNamespace(make=make)})
    with pytest.raises(RuntimeError, match=r"the worker ended with 1: (?s:.*)ValueError: offline: 1"):
        run(1, "suite", start=Child)
