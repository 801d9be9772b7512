"""A process that damages files and reads them, one after another, and says what came of each in a line of JSON.

python tests/fuzz/worker.py FIRST LAST SEED FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
import warnings
from pathlib import Path
from random import Random
from shutil import copytree, rmtree

sys.path.insert(0, str(Path(__file__).parent.parent))

import pellucid as pl
from fuzz.kinds import KINDS, Kind, Read

ROOM = 2 << 30
"""Bytes of address space that reading a small file may take beside the program itself."""

PACKAGE = str(Path(pl.__file__).parent)


def main(first: int, last: int, seed: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    sound: dict[str, bytes] = {}
    for name, kind in KINDS.items():
        home = folder / "sound" / name
        home.mkdir(parents=True)
        kind.make(home)
        sound[name] = (home / kind.name).read_bytes()
        for read in kind.reads:
            if first == 0 and name != "pickle":
                read(_fresh(home, folder, kind, sound[name]))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    names = list(KINDS)
    for number in range(first, last):
        name = names[number % len(names)]
        kind, random = KINDS[name], Random(f"{seed}-{number}")
        say(number=number, kind=name)
        content = random.choice(kind.mutations)(sound[name], random)
        (folder / "current").write_bytes(content)
        outcomes = [outcome(read, _fresh(folder / "sound" / name, folder, kind, content)) for read in kind.reads]
        say(outcomes=outcomes, distinct=content != sound[name])


def _fresh(home: Path, folder: Path, kind: Kind, content: bytes) -> Path:
    place = folder / "read"
    rmtree(place, ignore_errors=True)
    copytree(home, place)
    (place / kind.name).write_bytes(content)
    return place


def outcome(read: Read, place: Path) -> list[str]:
    """What reading came to: "success", the code of an error of ours, or a foreign one and where it is from."""
    try:
        read(place)
    except pl.PellucidError as error:
        if len(str(error)) > 10_000:
            return ["foreign", "an endless message", error.code]
        return ["refused", error.code]
    except BaseException as error:  # a panic of Rust is no Exception
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        return ["foreign", type(error).__name__, f"{where}: {str(error)[:150]}"]
    return ["success"]


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
