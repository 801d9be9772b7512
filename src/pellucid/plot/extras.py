"""The optional packages that figures need, each imported at its first use."""

from __future__ import annotations

from typing import Any

from pellucid.extras import need


def matplotlib() -> Any:
    """The matplotlib module."""
    return need("matplotlib", "pellucid.plot")


def pandas() -> Any:
    """The pandas module, which xarray brings."""
    return need("pandas", "pellucid.plot")


def xarray() -> Any:
    """The xarray module."""
    return need("xarray", "pellucid.plot")
