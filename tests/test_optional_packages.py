"""Optional packages: what is not installed is told from what is installed and cannot be imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pellucid as pl
from pellucid.extras import need
from support import ROW, glass, reference


def test_need_gives_the_module() -> None:
    import xarray

    assert need("xarray", "a test", "DataArray") is xarray
    with pytest.raises(pl.MissingExtraError, match="a test needs no_such_package, which is not installed") as caught:
        need("no_such_package.part", "a test")
    assert caught.value.code == "missing-extra"


BROKEN = {
    "lacks what it needs": ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
    "wants another version": ("raise ImportError('numpy<2 is required')", "ImportError: numpy<2 is required"),
    "was built for another": ("raise ValueError('numpy.dtype size changed')", "ValueError: numpy.dtype size changed"),
    "has lost a file": ("from broken_here import _core", "ImportError: cannot import name '_core'"),
    "is no Python": ("def", "SyntaxError: "),
}
"""What an installed package does when it is imported -> what the message has to say."""


@pytest.mark.parametrize("how", BROKEN)
def test_a_package_that_cannot_be_imported_is_said_to_be_installed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, cause = BROKEN[how]
    (tmp_path / "broken_here").mkdir()
    (tmp_path / "broken_here" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(pl.MissingExtraError, match="which is installed but cannot be imported: ") as caught:
        need("broken_here", "a test")
    assert cause in caught.value.message
    assert (caught.value.code, caught.value.__cause__ is not None) == ("broken-extra", True)


DOORS: dict[str, Callable[[], Any]] = {
    "to_hf": lambda: pl.to_hf(glass()),
    "from_hf": lambda: pl.from_hf("gpt2"),
    "hf:": lambda: pl.compare(glass(), "hf:.", inputs=ROW),
}


@pytest.mark.parametrize("door", DOORS)
def test_without_transformers_the_remedy_names_its_extra(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(pl.MissingExtraError, match=r"transformers, which is not installed") as caught:
        DOORS[door]()
    assert (caught.value.code, caught.value.remedy) == ("missing-extra", "pip install 'pellucid[hf]'")


@pytest.mark.parametrize("door", DOORS)
def test_a_part_of_transformers_that_cannot_be_imported_gives_its_cause(
    door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers imports its classes at their first use, and says then of each only that it could not."""

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ModuleNotFoundError(f"Could not import module {name!r}.") from RuntimeError(
                "torchvision::nms is gone"
            )

    reference()  # whatever else is imported once
    monkeypatch.setitem(sys.modules, "transformers", Lazy("transformers"))
    with pytest.raises(pl.MissingExtraError, match="cannot be imported: RuntimeError: torchvision::nms is gone"):
        DOORS[door]()


def test_of_another_architecture_a_broken_transformers_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    glass().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2ForSequenceClassification"]}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "transformers, which is not installed" in str(pl.audit_ties(tmp_path).after_reload.reason)
