"""How the tests of the command line run it: in this process, as one who types at a pipe."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pellucid.cli import app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither width nor colour comes from whoever runs the tests."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli() -> Run:
    """`cli("run", "a text", stdin=b"")` -> exit code, stdout and stderr; an exception that escapes is raised."""

    def run(*args: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, args, input=stdin, prog_name="pellucid", catch_exceptions=False)

    return run


@pytest.fixture
def cli_json(cli: Run) -> Callable[..., dict[str, Any]]:
    """The same with `--json`, and the object that was written."""

    def run(*args: str, expect: int = 0) -> dict[str, Any]:
        result = cli(*args, "--json")
        assert (result.exit_code, result.stderr) == (expect, "")
        return json.loads(result.stdout)

    return run
