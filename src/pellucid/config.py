"""Values of configurations, each read as Python's own or refused by its field's name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pellucid.check import as_number, as_whole
from pellucid.errors import ConfigError, shown
from pellucid.schema import Schema


def require_schema(config: object) -> Schema:
    """The schema of a configuration."""
    schema, sizes = getattr(config, "schema", None), getattr(config, "sizes", None)  # a model has a schema alone
    if not isinstance(schema, Schema) or not isinstance(sizes, Mapping):
        raise ConfigError(
            f"config: {type(config).__name__} given, expected the configuration of a model.",
            code="config-wrong-type",
            remedy="Give a pl.TransformerConfig first, such as model.config, and tensors as weights={name: tensor}.",
        )
    return schema


SAVE_ID = "pellucid_save"
"""The field of a `config.json` by which a save is known; see `pellucid.weights.saves`."""
LARGEST = 2**63 - 1
"""What torch counts with."""


def read_size(name: str, value: Any, least: int = 1, null: str = "") -> int:
    """A size, from `least` on; `null` says what null would mean."""
    found = _whole(name, value, "a whole number")
    if not least <= found <= LARGEST:
        raise ConfigError(
            f"config: {name}={shown(found)}, expected a whole number from {least} to {LARGEST}.",
            code="config-out-of-range",
            remedy=f"Give a {name} of {least} or more. {null}".strip(),
        )
    return found


def read_token_id(name: str, value: Any) -> int | None:
    """A token id, which transformers does not compare with the vocabulary, or None."""
    if value is None:
        return None
    found = _whole(name, value, "a token id or null")
    if abs(found) > LARGEST:
        raise ConfigError(
            f"config: {name}={shown(found)}, expected a token id.",
            code="config-out-of-range",
            remedy=f"Give a {name} below vocab_size, or null.",
        )
    return found


def read_tokens(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Several token ids."""
    found = (read_token_id(name, value) for value in values)
    return tuple(token for token in found if token is not None)


def read_number(name: str, value: Any, high: float) -> float:
    """A finite number from 0 on, as a float: transformers refuses whole numbers there."""
    found = as_number(value)
    if found is None:
        raise wrong_type(name, value, "a number")
    if not 0.0 <= found <= high or math.isinf(found):
        raise ConfigError(
            f"config: {name}={found}, expected a finite number from 0.0 to {high}.",
            code="config-out-of-range",
            remedy=f"Give a {name} within that range.",
        )
    return found


def read_flag(name: str, value: Any) -> bool:
    """A truth value, NumPy's and torch's included."""
    if "bool" in str(getattr(value, "dtype", "")) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if not isinstance(value, bool):
        raise wrong_type(name, value, "true or false")
    return value


def as_names(given: object) -> tuple[str, ...]:
    """The names of fields to ignore: none, one alone, or several."""
    if given is None or isinstance(given, str):
        return () if given is None else (given,)
    if not isinstance(given, Iterable) or isinstance(given, (bytes, Mapping)):
        raise ConfigError(
            f"config: {shown(given)} given as the fields to ignore, expected their names.",
            code="config-wrong-type",
            remedy="Give their names in a list, such as ignore_config=['auto_map'].",
        )
    return tuple(map(str, given))


def _whole(name: str, value: Any, expected: str) -> int:
    """A whole number, also where JSON has it with a point, such as 3.0."""
    whole, real = as_whole(value), as_number(value)
    if whole is None and real is not None and real.is_integer():
        return int(real)
    if whole is None:
        raise wrong_type(name, value, expected)
    return whole


def wrong_type(name: str, value: object, expected: str) -> ConfigError:
    """The error for a field that holds another kind of value."""
    return ConfigError(
        f"config: {name}={shown(value)} ({type(value).__name__}), expected {expected}.",
        code="config-wrong-type",
        remedy=f"Give {name} as {expected}.",
    )
