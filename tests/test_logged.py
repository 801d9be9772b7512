"""The fixture `logged` hears what is logged, so that a test that found nothing in it has said something."""

from __future__ import annotations

import logging

import pytest


def test_loggers_are_heard_whether_they_pass_on_or_not(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = logging.getLogger("alone")
    monkeypatch.setattr(alone, "propagate", False)
    records = request.getfixturevalue("logged")  # which asks the loggers that there are
    for one in (logging.getLogger(), logging.getLogger("matplotlib"), alone):
        one.error("heard")
    assert [record.name for record in records] == ["root", "matplotlib", "alone"]
    records.clear()
