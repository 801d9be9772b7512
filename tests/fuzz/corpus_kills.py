"""Captures of a corpus killed at random moments: nothing lost, nothing twice, no torn part.

python tests/fuzz/corpus_kills.py --kills 1000

After each kill every part that the store says is there is compared with its SHA-256, and no part that was there before
may be gone, or made again. The next capture goes on with what is left, and a store that is whole has to have the files
of one that was never killed, to the last byte.
"""

# ruff: noqa: T201 (a script that prints)

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


import pellucid as pl
from killed import in_a_child
from pellucid.corpus import plan
from support import glass, ragged_ids

plan.PART_BYTES = plan.TEXTS_IN_A_PART = 1  # parts of a few rows
MODEL = glass()
TEXTS = ragged_ids(*(1 + 5 * number % 17 for number in range(40)))
NAMES = ["blocks.0.resid_post", "blocks.2.attn.ckpt_z"]


def captured(path: Path) -> Any:
    """Make the store, or go on with it."""
    return pl.corpus.capture(MODEL, TEXTS, NAMES, path, batch_tokens=32)


def files(folder: Path) -> dict[str, str]:
    """Every file of a store, by what is in it."""
    there = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in there}


def entries(path: Path) -> dict[str, int]:
    """When each part was made."""
    return {entry.name: entry.stat().st_mtime_ns for entry in (path / "ledger").glob("c.*")}


def killed_once(path: Path, random: Random, latest: float, found: Counter[str]) -> str:
    """When a capture, or two at the same time, were killed; counts what is wrong with what that leaves."""
    before = entries(path)
    children = [in_a_child(lambda: captured(path)) for _ in range(random.choice((1, 1, 2)))]
    time.sleep(random.uniform(0, latest))
    for child in children:
        os.kill(child, signal.SIGKILL)
        found["kills"] += os.WIFSIGNALED(os.waitpid(child, 0)[1])  # not of one that came to its end
    after = entries(path)
    found["LOST"] += len(before.keys() - after.keys())
    found["TWICE"] += sum(after[part] != made for part, made in before.items() if part in after)
    found["in the midst of a file"] += any(path.parent.rglob("*.part"))
    if not path.exists():
        return "while texts were read"
    store = pl.corpus.open(path)
    there = store.parts
    for part, digests in there.items():
        for column in store.plan.columns:
            file = path / column.name / f"c.{part}{'.0' * len(column.shape)}"
            if hashlib.sha256(file.read_bytes()).digest() != digests[column.name]:
                found["TORN"] += 1
    return "whole" if len(there) == store.plan.parts else "with some parts" if there else "with no part"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    given = parser.parse_args()
    random, found = Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        begun = time.monotonic()
        parts = captured(Path(place, "never killed")).plan.parts
        latest = time.monotonic() - begun
        expected, path = files(Path(place, "never killed")), Path(place, "a.zarr")
        while found["kills"] < given.kills:
            state = killed_once(path, random, latest, found)
            found[state] += 1
            latest *= 0.9 if state == "whole" else 1.03  # a machine is not always equally busy
            if state == "whole" or found["kills"] >= given.kills:
                found["finished"] += 1
                captured(path)
                found["OTHER FILES"] += files(path) != expected
                shutil.rmtree(path)
        left = sorted(set(os.listdir(place)) - {"never killed"})
    print(f"a capture of {parts} parts, killed: {dict(found)}, torn: {found['TORN']}; left beside the store: {left}")
    wrong = any(found[what] for what in ("TORN", "LOST", "TWICE", "OTHER FILES"))
    return 1 if wrong or not found["with some parts"] or left else 0


if __name__ == "__main__":
    sys.exit(main())
