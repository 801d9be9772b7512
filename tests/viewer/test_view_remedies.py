"""What the viewer refuses says what to do, and doing it helps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pellucid as pl
import support
from following import Case, follow, params
from pellucid.viewer import Trace, one_text, trace, trace_of, traces

IDS = [[1, 2, 3]]
SEVERAL = [[1, 2, 3], [4, 5]]


def _run(here: Any, inputs: Any = IDS, **more: Any) -> pl.ActivationCkpts:
    return here.model.run_with_ckpts(inputs, **more)[1]


def _elsewhere(here: Any) -> tuple[str, Any]:
    return "blocks.1.resid_pre", _run(here)["resid_pre", 1] * 2


def _saved(here: Any, **more: Any) -> pl.ActivationCkpts:
    _run(here, edits=[pl.Edit.zero("blocks.0.resid_post")], **more).save(here.folder / "run.safetensors")
    return pl.ActivationCkpts.load(here.folder / "run.safetensors")


def _read(here: Any, write: bool) -> Trace:
    path = here.folder / "made.trace"
    path.write_bytes(b"something else")
    if write:
        trace(here.model, IDS).save(path)
    return Trace.load(path)


REMEDIES: dict[str, list[Case]] = {
    "not-a-trace": [Case(lambda h: _read(h, False), "(model, text).save(path)", lambda h: _read(h, True))],
    "view-one-text": [Case(lambda h: trace(h.model, SEVERAL), "one text", lambda h: trace(h.model, SEVERAL[:1]))],
    "view-not-repeatable": [
        Case(
            lambda h: trace_of(_run(h, names="resid_post", start_at=_elsewhere(h))),
            "without names=, pos= and heads=",
            lambda h: trace_of(_run(h)),
        ),
        Case(
            lambda h: trace_of(_saved(h, names="resid_post"), model=h.model),
            "without names=",
            lambda h: trace_of(_saved(h), model=h.model),
        ),
    ],
    "view-too-large": [
        Case(lambda h: trace(h.model, [[1] * 20]), "shorter", lambda h: trace(h.model, [[1] * 3])),
        Case(lambda h: trace(h.model, [[1] * 9]), "shorter", lambda h: trace(h.model, [[1] * 3])),
    ],
    "of-text-positions": [
        Case(lambda h: _run(h, pos=0).of_text(0), "without pos=", lambda h: _run(h).of_text(0)["resid_pre", 0][:, 0])
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_a_remedy_helps(code: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_text, "MOST_MEMORY", 200_000)
    monkeypatch.setattr(traces, "REFUSED", 5_000)
    follow(code, case, SimpleNamespace(model=support.glass(), folder=tmp_path))
