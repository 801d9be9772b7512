"""Optional packages, imported where they are used, or the error that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from pellucid.errors import MissingExtraError


def need(module: str, by: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Its dotted name, such as "xarray" or "scipy.special".
        by: What needs it, as the reader calls it.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{by} needs {module.partition('.')[0]}, which is not installed.",
            code="missing-extra",
            remedy="pip install 'pellucid[stats]'",
        ) from error
