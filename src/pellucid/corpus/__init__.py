"""Any number of texts in order: run batch by batch into a sink, or kept on disk, a row for each token.

The public names are imported at their first use: what only gathers statistics needs no store.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pellucid.names.calls import named_arguments

if TYPE_CHECKING:
    from pellucid.corpus.activity import densities as densities
    from pellucid.corpus.activity import examples as examples
    from pellucid.corpus.plan import simulate as simulate
    from pellucid.corpus.store import Store as Store
    from pellucid.corpus.store import open as open  # noqa: A004 (the contract's name)
    from pellucid.corpus.text_files import read as read
    from pellucid.corpus.writing import capture as capture
    from pellucid.corpus.writing import estimate as estimate

_HOMES = {
    "capture": "writing", "densities": "activity", "estimate": "writing", "examples": "activity", "open": "store",
    "read": "text_files", "simulate": "plan", "Store": "store",
}  # fmt: skip

__all__ = ["Store", "capture", "densities", "estimate", "examples", "open", "read", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return globals().setdefault(name, found if isinstance(found, type) else named_arguments()(found))


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
