"""The registered families of models: a line for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pellucid import aliases
from pellucid.errors import UnknownNameError
from pellucid.gpt2 import schema as gpt2
from pellucid.schema import Schema

SCHEMAS: dict[str, Callable[[Mapping[str, int]], Schema]] = {"gpt2": gpt2.of_sizes}
"""Name of a family -> what makes its schema from sizes."""


def schema_of(family: str, sizes: Mapping[str, int]) -> Schema:
    """The schema of a family's model, of which only sizes are known.

    Raises:
        ValueError: No such family.
    """
    if family not in SCHEMAS:
        raise ValueError(f"family {family!r}, expected one of {', '.join(SCHEMAS)}")
    return SCHEMAS[family](sizes)


def kind_and_block(name: aliases.Name) -> tuple[str, str | None]:
    """`aliases.kind_and_block` in the first family that knows the name, for a name that is given before any model is.

    Raises:
        UnknownNameError: No family knows it.
    """
    known = [make({"layer": 1}) for make in SCHEMAS.values()]
    for schema in known[:-1]:
        try:
            return aliases.kind_and_block(name, schema)
        except UnknownNameError:
            continue
    return aliases.kind_and_block(name, known[-1])


def axes_of(kind: str) -> tuple[str, ...]:
    """The axes of a kind of checkpoint, such as "attn.ckpt_z", in the first family that has it."""
    for make in SCHEMAS.values():
        schema = make({"layer": 1})
        if found := schema.in_blocks.get(kind) or schema.around.get(kind):
            return found.axes
    raise KeyError(kind)
