"""Writes the viewer's texts to start from, each with the trace of its run: `python viewer/make_examples.py`.

tests/viewer/test_viewer_examples.py runs it again and compares, and checks by its numbers what each sentence says.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pellucid as pl
from pellucid.viewer import trace, views

LIMIT = 50_000
"""Bytes of a trace: without every checkpoint, which the page gets from the server or by running the text again."""

EXAMPLES = {
    "name": (
        "Lily and Tom went to the park. Tom gave a ball to",
        "“ Lily” is the likeliest next token. Head 0 of layer 3 adds most to it, and most of that comes "
        "from the first token, “Lily”, not from “ Tom”.",
    ),
    "phrase": (
        "Once upon a",
        "“ time” is in the first place from layer 1 on, and its probability still grows from layer to "
        "layer. The MLPs of layers 2 and 3 add most to it.",
    ),
    "rhyme": (
        "The cat sat on the mat. The cat sat on the",
        "“ mat” is not among the first hundred tokens until the last layer. There head 3 adds most to it,"
        " nearly all of it from the earlier “ mat”.",
    ),
    "colour": (
        "Lily had a red ball. One day, the red",
        "“ ball” is in the first place from layer 0 on, at about a tenth. In layer 3, heads 0 and 1 bring"
        " it from the first sentence, and it is nearly certain.",
    ),
    "feeling": (
        'Tom was sad. Mom said, "Do not be',
        "“ sad” comes nearer to the first place with every layer and reaches it at the last one. Head 0 "
        "of layer 3 reads it from the first sentence, and the MLPs of layers 2 and 3 add more.",
    ),
    "count": (
        "One, two, three. One, two,",
        "Head 3 of layer 3 has the highest induction score: it looks at what followed the same token "
        "before. It adds most to “ three”.",
    ),
    "bytes": (
        "नमस्ते",
        "Each token is one byte of a character: the vocabulary has none of them whole. No next token gets"
        " as much as a twentieth of the probability.",
    ),
}
"""Name -> the text, and what to look for in its run."""


def made() -> list[dict[str, Any]]:
    """The examples as they are shipped."""
    model = pl.load()
    found = ((name, text, look_for, trace(model, text, limit=LIMIT)) for name, (text, look_for) in EXAMPLES.items())
    return [
        {"id": name, "text": text, "look_for": look_for, "trace": base64.b64encode(run.to_bytes()).decode()}
        for name, text, look_for, run in found
    ]


if __name__ == "__main__":
    Path(views.STATIC / "examples.json").write_text(json.dumps(made(), ensure_ascii=False), encoding="utf-8")
