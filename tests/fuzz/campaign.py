"""Damaged files by the thousand: every read ends in success or in an error of ours, soon, and in little memory.

    python tests/fuzz/campaign.py --files 20000

Prints what came of the reads, by kind of file, and exits with 1 if any raised a foreign exception, took too long or too
much memory, or killed the process. Those files are kept in the folder given by --keep.
"""

# ruff: noqa: T201 (a script that prints)

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
STARTS, PATIENCE = 180.0, 60.0
"""Seconds to make the sound files, and to read one damaged file on a busy machine."""


@dataclass
class Campaign:
    """What came of it.

    Attributes:
        files: Damaged files, and how many of them differ from the sound one.
        outcomes: Kind of file -> what its reads came to -> how often.
        codes: Of the errors of ours.
        failures: What must not be: number of the file, kind, and what happened.
    """

    files: int = 0
    distinct: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def count(self, number: int, kind: str, outcome: list[str]) -> None:
        """Take down one read."""
        self.outcomes.setdefault(kind, Counter())[outcome[0]] += 1
        if outcome[0] == "refused":
            self.codes[outcome[1]] += 1
        elif outcome[0] != "success":
            self.failures.append((number, kind, " ".join(outcome)))
            print(f"file {number}, {kind}: {' '.join(outcome)}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        total = sum(self.outcomes.values(), Counter())
        rows = [f"{'kind':28}" + "".join(f"{what:>9}" for what in total)]
        rows += [f"{kind:28}" + "".join(f"{found[what]:>9}" for what in total) for kind, found in self.outcomes.items()]
        rows.append(f"{'all':28}" + "".join(f"{total[what]:>9}" for what in total))
        rows.append(f"{self.files} files of {len(self.outcomes)} kinds, {self.distinct} of them not the sound one; "
                    f"{total.total()} reads; {len(self.codes)} codes of errors")  # fmt: skip
        return "\n".join([*rows, *(f"FAILED: file {n}, {kind}: {what}" for n, kind, what in self.failures)])


def run(
    files: int, seed: str, *, first: int = 0, keep: Path | None = None, start: Callable[..., Any] = subprocess.Popen
) -> Campaign:
    """Read damaged files in a process of its own, which is started again where one kills it or never ends."""
    campaign = Campaign()
    with suppress(KeyboardInterrupt):  # what came of it so far is shown
        _run(campaign, files, seed, first, keep, start)
    return campaign


def _run(campaign: Campaign, files: int, seed: str, first: int, keep: Path | None, start: Callable[..., Any]) -> None:
    while first < files:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(WORKER), str(first), str(files), seed, folder]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as worker:
                first = _follow(worker, campaign, first, Path(folder), keep)


def _follow(worker: Any, campaign: Campaign, first: int, folder: Path, keep: Path | None) -> int:
    """Read a worker's lines until it ends; the number of the file to go on with."""
    lines, began = _lines(worker), None
    for line in lines:
        if line is None:
            worker.kill()
            break
        facts = json.loads(line)
        if "number" in facts:
            began = facts
            continue
        for outcome in facts["outcomes"]:
            campaign.count(began["number"], began["kind"], outcome)
            if outcome[0] not in ("success", "refused"):
                _keep(folder, keep, began)
        campaign.files += 1
        campaign.distinct += facts["distinct"]
        first, began = began["number"] + 1, None
    hung = worker.returncode is None and worker.poll() is None
    _, said = worker.communicate()
    if began is None:
        if worker.returncode:
            raise RuntimeError(f"the worker ended with {worker.returncode}: {said.decode(errors='replace')[-2000:]}")
        return sys.maxsize if not worker.returncode else first
    what = "hang" if hung or worker.returncode == -9 else "crash"
    last = said.decode(errors="replace").splitlines()[-1:]
    campaign.count(began["number"], began["kind"], [what, f"return code {worker.returncode}", *last])
    campaign.files += 1
    _keep(folder, keep, began)
    return began["number"] + 1


def _lines(worker: Any) -> Any:
    """Complete lines of a process; None when one does not come in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        patience, held = STARTS, b""
        while True:
            if not selector.select(patience):
                yield None
                return
            chunk = os.read(worker.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            patience, held = PATIENCE, held + chunk
            *whole, held = held.split(b"\n")
            yield from whole


def _keep(folder: Path, keep: Path | None, began: dict[str, Any]) -> None:
    if keep is not None and (folder / "current").exists():
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "current", keep / f"{began['number']}-{began['kind'].replace(' ', '_')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", default="campaign")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    campaign = run(given.files, given.seed, first=given.first, keep=given.keep)
    print(campaign)
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
