"""How the tests of the command line run it: in this process, as one who types at a pipe."""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer.testing
from typer.testing import CliRunner, Result

import pellucid as pl
from pellucid.cli import app
from pellucid.prove.copies import working_copy

Run = Callable[..., Result]

# A process declares the verbs once; each call of a `CliRunner` would declare them anew.
typer.testing._get_command = functools.cache(typer.testing._get_command)


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither width nor colour comes from whoever runs the tests."""
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


AS_IT_IS: dict[str, Any] = {"dtype": "float32", "numerics": "exact", "config": None, "ignore_config": ()}
"""How a verb opens a model of which nothing else was said."""


@functools.cache
def _read() -> tuple[pl.CkptedTransformer, list[int]]:
    """The bundled model, and how often each tensor was written to."""
    model = pl.load()
    assert not model.training, "a copy evaluates in any case"
    return model, [one._version for one in model.parameters()]


@pytest.fixture(autouse=True)
def _the_bundled_model_is_read_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A verb gets a model of its own around the same tensors: to read it takes longer than most of what verbs do."""
    plain = pl.load
    model, written = _read()

    def load(name: Any = None, **options: Any) -> pl.CkptedTransformer:
        if name not in (None, "bundled") or options not in ({}, AS_IT_IS):
            return plain(name, **options)
        return working_copy(model)  # a deep copy takes ten times as long

    monkeypatch.setattr(pl, "load", load)
    yield
    assert [one._version for one in model.parameters()] == written, "a verb has changed the model"


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
