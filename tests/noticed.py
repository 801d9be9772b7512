"""Mutants that are one attribute broken: what their check must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def must_be_noticed(mutant: tuple[Any, str, Any, Callable[..., None]], *given: Any, by: Any = ()) -> None:
    """Break something, and see its check fail.

    Args:
        mutant: Module or class, attribute, what stands there instead, and the check.
        given: To the check.
        by: Errors, beside a failed check, by which it may show.
    """
    module, attribute, broken, check = mutant
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, attribute, broken)
        with pytest.raises((AssertionError, pytest.fail.Exception, *by)):
            check(*given)
