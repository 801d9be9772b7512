"""pellucid: GPT-2 made of glass. Every intermediate value has a name, and looking never changes the answer.

Public names are listed in `__init__.pyi`, which type checkers and editors read too. They are imported at their
first use, so that what needs no torch (`pellucid --help`) does not wait for it.
"""

import ast as _ast
import importlib as _importlib
from pathlib import Path as _Path
from typing import Any as _Any

from pellucid._version import __version__  # noqa: F401

_HOMES = {
    name.name: statement.module
    for statement in _ast.parse((_Path(__file__).with_suffix(".pyi")).read_text(encoding="utf-8")).body
    if isinstance(statement, _ast.ImportFrom) and statement.module
    for name in statement.names
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]  (the stub lists them)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        attributes = _importlib.import_module(f"{__name__}.names.attributes")
        raise attributes.unknown_attribute(f"module {__name__!r}", name, attributes.PACKAGE)
    home = _importlib.import_module(_HOMES[name])
    value = _importlib.import_module(f"{__name__}.{name}") if home.__name__ == __name__ else getattr(home, name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
