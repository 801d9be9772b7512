"""`__all__` is what imports, sorted, and nothing else is public."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import pellucid as pl

STUB = Path(pl.__file__).with_suffix(".pyi")


def names_in_the_stub() -> set[str]:
    """What the stub beside `__init__.py` imports."""
    statements = ast.parse(STUB.read_text(encoding="utf-8")).body
    return {alias.asname or alias.name for s in statements if isinstance(s, ast.ImportFrom) for alias in s.names}


def test_all_is_sorted_and_unique() -> None:
    assert pl.__all__ == sorted(set(pl.__all__))


def test_all_is_exactly_what_imports() -> None:
    for name in pl.__all__:
        assert getattr(pl, name) is not None
    submodules = {name for name, value in vars(pl).items() if inspect.ismodule(value)}
    public = {name for name in vars(pl) if not name.startswith("_")} - submodules
    assert public - set(pl.__all__) == set()
    assert set(pl.__all__) - public - submodules == {"__version__"}


def test_all_is_the_stub() -> None:
    assert names_in_the_stub() | {"__version__"} == set(pl.__all__)


def test_names_are_the_same_objects_every_time() -> None:
    assert all(getattr(pl, name) is getattr(pl, name) for name in pl.__all__)


def test_dir_lists_them() -> None:
    assert set(pl.__all__) <= set(dir(pl))


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = pl.nothing_of_this_name


def test_star_import_gives_all() -> None:
    namespace: dict[str, object] = {}
    exec("from pellucid import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(pl.__all__)


def test_public_names_are_documented() -> None:
    undocumented = [name for name in pl.__all__ if name != "__version__" and not inspect.getdoc(getattr(pl, name))]
    assert not undocumented


def test_every_error_is_exported() -> None:
    from pellucid import errors

    classes = {
        n
        for n, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
    }
    assert classes <= set(pl.__all__)
