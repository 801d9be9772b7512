"""Savers killed at random moments: the folder they save into holds one model, or says that it does not.

python tests/fuzz/kills.py --kills 500
"""

# ruff: noqa: T201 (a script that prints)

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))


import pellucid as pl
from killed import in_a_child
from support import glass

MODELS = [glass(seed=number, n_embd=128, vocab_size=2000, layer_norm_epsilon=10.0**-number) for number in (3, 4, 5)]


def killed_once(folder: Path, random: Random) -> str:
    """What a reader finds after one or two savers were killed."""
    chosen = random.sample(MODELS, random.choice((1, 2)))
    children = [in_a_child(lambda model=model: _save_for_ever(model, folder)) for model in chosen]
    time.sleep(random.uniform(0.001, 0.15))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return read(folder)


def _save_for_ever(model: pl.CkptedTransformer, folder: Path) -> None:
    while True:
        model.save_pretrained(folder)


def read(folder: Path) -> str:
    """Whether it is one of the models, whole."""
    try:
        found = pl.load(folder)
    except pl.PellucidError as error:
        return error.code
    model = next(model for model in MODELS if model.config.layer_norm_epsilon == found.config.layer_norm_epsilon)
    return (
        "one model" if all(bool((found.state_dict()[n] == t).all()) for n, t in model.state_dict().items()) else "MIXED"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    given = parser.parse_args()
    random, found = Random(0), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        MODELS[0].save_pretrained(folder)
        for _ in range(given.kills):
            found[killed_once(folder, random)] += 1
        MODELS[0].save_pretrained(folder)
        left = sorted(path.name for path in folder.iterdir())
        found["read after the last save"] += read(folder) == "one model"
    print(f"{given.kills} kills of one saver or two: {dict(found)}; in the folder after the next save: {left}")
    return 1 if set(found) - {"one model", "saves-mixed", "read after the last save"} or len(left) != 2 else 0


if __name__ == "__main__":
    sys.exit(main())
