"""The screens say the trace's own numbers, and what they compute is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from watched_page import Watched, rows_of
from written_traces import WORDS, numbers, written

Open = Callable[..., Watched]
SHOWN = [word.replace(" ", "␣").replace("\n", "⏎") for word in WORDS]


def test_the_lens_says_what_each_layer_would_say(opened: Open) -> None:
    watched = opened(state="#lens?row=1&q=2")
    found = numbers(written())
    head, *rows = rows_of(watched, "What each layer would say")
    assert len(rows) == 3 * len(WORDS)
    for name, block in {"entropy": "lens.entropy", "kl": "lens.kl"}.items():
        assert [float(row[head.index(name)]) for row in rows] == pytest.approx(found[block].ravel().tolist())
    next_ranks = [int(row[head.index("next_rank")]) for row in rows]
    assert next_ranks == (found["lens.next_rank"].ravel() + 1).tolist()
    cell = rows_of(watched, f"At the pinned cell: after 0, at ‘{SHOWN[2]}’")[1:]
    assert [int(row[1]) for row in cell] == found["lens.ids"][1, 2].tolist()
    target = int(found["prediction.logits"].argmax())
    rise = rows_of(watched, f"How ‘␣w{target}’ comes up")[1:]
    assert [int(row[1]) for row in rise] == (found["lens.rank"][:, 2] + 1).tolist()
    adds = rows_of(watched, f"What attention and the MLPs add to ‘␣w{target}’")[1:]
    assert [row[0] for row in adds] == ["embeddings", "0 attention", "0 MLP", "1 attention", "1 MLP", "final offset"]
    assert sum(float(row[1]) for row in adds) == pytest.approx(found["attribution.logit"][0], rel=1e-12)


def test_the_answer_stays_from_the_row_on_that_is_said(opened: Open) -> None:
    watched = opened(state="#lens")
    first = numbers(written())["lens.ids"][..., 0]
    said = rows_of(watched, "From where on the answer stays")[1:]
    names = ["embeddings", "after 0", "after 1"]
    for pos, row in enumerate(said):
        start = names.index(row[2])
        assert len(set(first[start:, pos].tolist())) == 1
        assert start == 0 or first[start - 1, pos] != first[start, pos]
