"""Optional packages, imported where they are used, or the error that says how to get them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from pellucid.errors import MissingExtraError, printable

_EXTRAS = {
    "transformers": "hf", "starlette": "view", "uvicorn": "view", "sklearn": "view",
    "zarr": "corpus", "fsspec": "corpus", "pyarrow": "corpus", "ray": "ray",
}  # fmt: skip
"""Package -> what installs it, if that is not `stats`."""


def need(module: str, by: str, *names: str) -> Any:
    """Import a module of an optional package that `by` needs, and of it names that it imports at their first use."""
    package = module.partition(".")[0]
    try:
        found = importlib.import_module(module)
        for name in names:
            getattr(found, name)
    except Exception as error:  # an import runs the package's code, which may raise anything
        raise _missing(package, by, error) from error
    return found


def _missing(package: str, by: str, error: BaseException) -> MissingExtraError:
    extra = f"'pellucid[{_EXTRAS.get(package, 'stats')}]'"
    if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
        return MissingExtraError(
            f"{by} needs {package}, which is not installed.", code="missing-extra", remedy=f"pip install {extra}"
        )
    cause = error
    while cause.__cause__ is not None:  # transformers says of its parts only that they could not be imported
        cause = cause.__cause__
    said = f"{type(cause).__name__}: {printable(str(cause)):.400}"
    return MissingExtraError(
        f"{by} needs {package}, which is installed but cannot be imported: {said}",
        code="broken-extra",
        remedy="Mend or upgrade what this names; pip install --upgrade --force-reinstall "
        f"{extra} installs {package} again with all that it needs.",
    )
