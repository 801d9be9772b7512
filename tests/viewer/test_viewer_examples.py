"""The texts to start from are those of the script, and what each says to look for is so."""

from __future__ import annotations

import base64
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.viewer import Trace, views

sys.path.insert(0, str(Path(__file__).parents[2] / "viewer"))

import make_examples


def decoded(examples: list[dict[str, Any]]) -> dict[str, Trace]:
    return {one["id"]: Trace.from_bytes(base64.b64decode(one["trace"])) for one in examples}


@functools.cache
def shipped() -> dict[str, Trace]:
    return decoded(views.examples())


def test_they_are_those_of_the_script() -> None:
    again = make_examples.made()
    assert [{k: v for k, v in one.items() if k != "trace"} for one in views.examples()] == [
        {k: v for k, v in one.items() if k != "trace"} for one in again
    ]
    changing = ("made", "versions", "left_out")
    for name, run in decoded(again).items():
        kept = shipped()[name]
        for header in (kept.header, run.header):
            assert header["model"]["name"] == "bundled"
        assert {k: v for k, v in kept.header.items() if k not in changing} == {
            k: v for k, v in run.header.items() if k not in changing
        }
        for block in set(kept) & set(run):  # on another processor the last bits may be others
            if kept[block].data.dtype.kind == "f":
                np.testing.assert_allclose(kept[block].data, run[block].data, 2e-3, 2e-3, err_msg=f"{name} {block}")
    assert sum(len(one["trace"]) for one in views.examples()) < 600_000


def likeliest(name: str) -> tuple[str, float]:
    run = shipped()[name]
    token = str(run["prediction.top.ids"].data[-1, 0])
    return run.header["vocabulary"][token], float(np.exp(run["prediction.top.logprobs"].data[-1, 0]))


def ranks(name: str) -> list[int]:
    """Of the target at the last token: at the embeddings, and behind each layer."""
    return shipped()[name]["lens.rank"].data[:, -1].tolist()


def probabilities(name: str) -> list[float]:
    return np.exp(shipped()[name]["lens.target_logprob"].data[:, -1]).tolist()


def writers(name: str) -> list[str]:
    """Components by what they add to the target, the most first."""
    block = shipped()[name]["attribution.components"]
    return [block.about["of"][i] for i in np.argsort(-block.data)]


def share(name: str, layer: int, head: int, token: str) -> float:
    """The share of what a head adds that comes from tokens with this text."""
    run = shipped()[name]
    parts = run["attribution.sources"].data[layer, head]
    return float(sum(p for p, t in zip(parts, run.header["tokens"], strict=True) if t["text"] == token) / parts.sum())


CLAIMS: dict[str, Any] = {
    "name": lambda n: (
        likeliest(n)[0] == " Lily" and writers(n)[0] == "blocks.3.attn[0]" and share(n, 3, 0, "Lily") > 0.5
        and abs(share(n, 3, 0, " Tom")) < share(n, 3, 0, "Lily")
    ),
    "phrase": lambda n: (
        likeliest(n)[0] == " time" and ranks(n)[1] > 0 and ranks(n)[2:] == [0, 0, 0]
        and probabilities(n)[2:] == sorted(probabilities(n)[2:])
        and set(writers(n)[:2]) == {"blocks.2.mlp", "blocks.3.mlp"}
    ),
    "rhyme": lambda n: (
        likeliest(n)[0] == " mat" and min(ranks(n)[:-1]) >= 100 and ranks(n)[-1] == 0
        and writers(n)[0] == "blocks.3.attn[3]" and share(n, 3, 3, " mat") > 0.9
    ),
    "colour": lambda n: (
        likeliest(n)[0] == " ball" and likeliest(n)[1] > 0.95 and ranks(n)[0] > 0 and ranks(n)[1:] == [0, 0, 0, 0]
        and 0.08 < probabilities(n)[1] < 0.12 and writers(n)[:2] == ["blocks.3.attn[0]", "blocks.3.attn[1]"]
        and min(share(n, 3, head, " ball") for head in (0, 1)) > 0.5
    ),
    "feeling": lambda n: (
        likeliest(n)[0] == " sad" and ranks(n) == sorted(set(ranks(n)), reverse=True) and ranks(n)[-1] == 0
        and share(n, 3, 0, " sad") > 0.5 and set(writers(n)[:2]) == {"blocks.2.mlp", "blocks.3.mlp"}
    ),
    "count": lambda n: (
        likeliest(n)[0] == " three" and writers(n)[0] == "blocks.3.attn[3]"
        and int(np.argmax(shipped()[n]["attention.measures"].data[2])) == 15
    ),
    "bytes": lambda n: (
        likeliest(n)[1] < 0.05 and len(shipped()[n].header["tokens"]) == len(shipped()[n].header["text"].encode())
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", make_examples.EXAMPLES)
def test_what_it_says_to_look_for_is_so(name: str) -> None:
    assert CLAIMS[name](name)
