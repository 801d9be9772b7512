"""Remedies for those who look at the viewer's page: what can be done in its fields and lists, or at a shell."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pellucid.errors import Words

_BESIDE = "Put the config.json of these weights beside them, or compare at a shell: `pellucid compare` takes --config."


def _ignored(found: re.Match[str]) -> str:
    options = " ".join(f"--ignore-config {name}" for name in re.findall(r"[\w.]+", found[1]))
    return f"compare at a shell: `pellucid compare` takes {options}"


def _room(found: re.Match[str]) -> str:
    full = found[1] == "0"
    return "Go back to an earlier token, or write a shorter text." if full else f"Ask for at most {found[1]}."


_IGNORING = (r"pass ignore_config=\[(.*?)\]", _ignored)

WORDS: Mapping[str, Words] = {
    "attribution-not-finite": "Open a model whose weights are finite.",
    "config-model-type": _IGNORING,
    "config-needed": _BESIDE,
    "config-not-found": _BESIDE,
    "config-not-implemented": _IGNORING,
    "empty-text": "Write some text.",
    "head-missing": (r"or tie_word_embeddings=true", "or set tie_word_embeddings to true in its config.json"),
    "hub-no-weights": (
        r"or allow the network once .*",
        "or complete the cache at a shell: `pellucid run Hello -m NAME` downloads what is missing.",
    ),
    "hub-offline": "Check the spelling, or give a folder or a file on this machine. Nothing is downloaded here: run "
    "`pellucid run Hello -m NAME` at a shell first, and then compare again.",
    "no-tokenizer": "Write token ids in its place, such as 1 2 3; or start the server with a tokenizer: "
    "`pellucid serve` takes --tokenizer tokenizer.json.",
    "no-such-axis": (r"Leave \w+= out, or choose", "Choose"),
    "patch-of-another-length": "Give a second text of as many tokens, or patch at one token alone.",
    "text-kind": "Leave out what is half a character.",
    "text-not-encoded": "Leave these characters out.",
    "too-long": (r"Ask for at most (\d+) .*", _room),
    "unknown-checkpoint": (r"`model\.ckpt_names` lists.*", "The atlas lists them all."),
    "view-too-large": "Give a shorter text.",
}  # fmt: skip
"""Code of an error -> what is said on the page."""
