"""Which remedies are followed by a test: any test says so with `@pytest.mark.remedy("code", ...)`.

A remedy is followed if a test provokes the error, does literally what the remedy says, and sees the error gone. The
marker is believed only as far as it can be: a test that never meets the code that it names fails. Where many remedies
are followed alike, a table of type
`dict[str, list[Case]]` does it, or at a shell `list[Typed]`, and `params` or `typed` makes marked parameters of it.
`tests/test_remedies.py` compares what is declared with every code of the source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
from pellucid.errors import PellucidError
from pellucid.ties.problems import Problem

SOURCE, TESTS = Path(pl.__file__).parent, Path(__file__).parent
Act = Callable[[Any], Any]
KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)+")
LEAVES = {int, str, type(None), ast.Name, ast.Load, ast.Store}
"""What stands in a node and holds no other."""


@dataclass(frozen=True)
class Case:
    """An error and the way out of it; both acts take what the test file prepared.

    Args:
        wrong: Raises the error.
        said: What the remedy has to say.
        right: Does it.
    """

    wrong: Act
    said: str
    right: Act


Typed = tuple[str, list[str], list[str]]
"""The code of an error, a command that meets it, and the same as its remedy says."""


def typed(table: Sequence[Typed]) -> list[Any]:
    """The commands as parameters of one test, each marked with the code that it follows.

    What follows a code with a verb again is left to `make test-all`.
    """
    verbs = [(code, wrong[0]) for code, wrong, _ in table]
    return [
        pytest.param(*row, marks=_marks(row[0], verbs[number] in verbs[:number]), id=f"{row[0]}-{number}")
        for number, row in enumerate(table)
    ]


def params(table: Mapping[str, list[Case]]) -> list[Any]:
    """The cases as parameters of one test, each marked with the code that it follows.

    Every run tries the first case of each remedy of a code; the other places that say it are left to `make test-all`.
    """
    return [
        pytest.param(
            code, case, marks=_marks(code, any(case.said == one.said for one in cases[:number])), id=f"{code}-{number}"
        )
        for code, cases in table.items()
        for number, case in enumerate(cases)
    ]


def _marks(code: str, is_long: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.remedy(code), *([pytest.mark.long] if is_long else [])]


def follow(code: str, case: Case, here: Any) -> None:
    """Provoke the error, read its remedy, do it."""
    with pytest.raises(PellucidError) as caught:
        case.wrong(here)
    assert caught.value.code == code
    assert case.said in caught.value.remedy
    case.right(here)


@contextmanager
def codes_met(patch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The codes of every error and every problem that is made meanwhile."""
    met: set[str] = set()
    of_error, of_problem = PellucidError.__init__, Problem.__init__

    def error(self: PellucidError, message: str, *, code: str, remedy: str) -> None:
        met.add(code)
        of_error(self, message, code=code, remedy=remedy)

    def problem(self: Problem, code: str, *rest: Any, **named: Any) -> None:
        met.add(code)
        of_problem(self, code, *rest, **named)

    with patch.context() as patched:
        patched.setattr(PellucidError, "__init__", error)
        patched.setattr(Problem, "__init__", problem)
        yield met


def nodes_of(source: str) -> list[ast.AST]:
    """Every node of a program but for most names; `ast.walk` takes four times as long."""
    found: list[ast.AST] = [ast.parse(source)]
    for node in found:
        for value in vars(node).values():
            kind = type(value)
            if kind is list:
                found += [one for one in value if isinstance(one, ast.AST)]
            elif kind not in LEAVES and isinstance(value, ast.AST):
                found.append(value)
    return found


def codes_of_the_source(source: Path = SOURCE) -> dict[str, str]:
    """Every code, and a place where it stands.

    A code is whatever a `code=` takes, and any text with hyphens in it that looks like one: some are passed on by
    variables, defaults and tables. What looks like one and is none is listed in `tests/test_remedies.py`.
    """
    found: dict[str, str] = {}
    for path in sorted(source.rglob("*.py")):
        for node in nodes_of(path.read_text(encoding="utf-8")):
            values: list[ast.AST] = []
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEBAB.fullmatch(node.value):
                values = [node]
            elif isinstance(node, ast.keyword) and node.arg == "code":
                values = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
            for value in values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found.setdefault(value.value, f"{path.relative_to(source)}:{value.lineno}")
    return found


def codes_followed(tests: Path = TESTS) -> dict[str, str]:
    """Every code that a test declares to follow, and the file."""
    found: dict[str, str] = {}
    for path in sorted(tests.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not re.search(r"\bremedy\(|list\[Case\]|list\[Typed\]", text):
            continue
        for node in nodes_of(text):
            names: Sequence[ast.expr | None] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "remedy":
                names = node.args
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "dict[str, list[Case]]":
                names = node.value.keys if isinstance(node.value, ast.Dict) else []
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "list[Typed]":
                names = [row.elts[0] for row in getattr(node.value, "elts", []) if isinstance(row, ast.Tuple)]
            for name in names:
                if isinstance(name, ast.Constant):
                    found.setdefault(str(name.value), str(path.relative_to(tests)))
    return found
