"""Every Python block of docs/ties.md runs, top to bottom, in one namespace; warnings are errors."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

import pellucid as pl
from pellucid import ties

PAGE = Path(__file__).parents[2] / "docs" / "ties.md"


def test_the_page_runs_and_prints_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    messages = pytest.importorskip("transformers").logging
    request.addfinalizer(partial(messages.set_verbosity, messages.get_verbosity()))
    messages.set_verbosity(50)
    monkeypatch.chdir(tmp_path)
    for name in ties.__all__:
        monkeypatch.setattr(pl, name, getattr(ties, name), raising=False)
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) > 15
    namespace: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(PAGE), "exec", dont_inherit=True), namespace)
    said = re.sub(r"\s+", " ", re.sub(r"(?m)^# ", "", text))
    printed = capsys.readouterr().out.replace(str(namespace["tmp"]), "…")
    for one in re.sub(r"[\d,]+ bytes", "… bytes", printed).splitlines():
        assert one.strip().replace("  ", " ") in said


def test_the_table_of_the_page_is_the_measured_one() -> None:
    from ties.test_table import EXPECTED

    rows = re.findall(r"^\| .+ \| (True|False|None) \| (True|False|None) \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    measured = [(str(survives), str(tied)) for survives, tied in EXPECTED.values()]
    del measured[3]  # tie_weights() and resizing share a row
    assert rows == measured
