"""The complete solution of the examples, and variants of it made by changing its text."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from types import SimpleNamespace
from typing import Any

from exercise_notebook import SCRIPT, cells


@cache
def classes() -> str:
    """The solution's classes and functions, without what is printed and without the real weights."""
    code = [text for kind, text in cells(SCRIPT.read_text(encoding="utf-8")) if kind == "code"]
    defining = [text for text in code if re.search(r"^(import|class|def) ", text, flags=re.MULTILINE)]
    return "\n\n".join(re.sub(r"^print\(.*\Z", "", text, flags=re.MULTILINE | re.DOTALL) for text in defining)


@cache
def variant(*changes: tuple[str, str]) -> SimpleNamespace:
    """The solution with pieces of its text replaced, each of which must be there once; nobody writes into it."""
    text = classes()
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in the solution"
        text = text.replace(old, new)
    names: dict[str, Any] = {"__name__": "solution"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, "solution.py", "exec", dont_inherit=True), names)
    return SimpleNamespace(**names)
