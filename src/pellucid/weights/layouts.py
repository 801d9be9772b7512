"""The layouts of all families: which one tensors have, and our tensors in one of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pellucid.config import Config
from pellucid.families import FAMILIES, family_of
from pellucid.layout import HEAD, Layout, Place, Shape
from pellucid.schema import Schema
from pellucid.weights.prefixes import canonical_names


def detect(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of tensors under canonical names, or None."""
    return next((layout for family in FAMILIES if (layout := family.layout_of(tensors)) is not None), None)


def our_shapes(schema: Schema) -> dict[str, Shape]:
    """The stored tensors of our model and their shapes; the head's is listed, although a tied model has none."""
    return {**schema.stored, HEAD: schema.shape_of(schema.parameter(HEAD))}


def buffers_among(tensors: Mapping[str, Tensor], config: Config) -> set[str]:
    """The names, as given, of what the layout of these tensors drops; none where it is not known."""
    given = canonical_names(tensors)
    layout = detect({name: tensors[names[0]] for name, names in given.items()})
    shapes = {} if layout is None else layout.buffers_of(config.schema)
    return {names[0] for name, names in given.items() if tuple(tensors[names[0]].shape) == shapes.get(name)}


def from_ours(weights: Mapping[str, Tensor], config: Config, layout: Layout | str = "hf") -> dict[str, Tensor]:
    """Our stored tensors under the names and in the shapes of a layout.

    Args:
        weights: `model.state_dict()`, the head among them only when it is untied.
        config: The model's.
        layout: A layout of the model's family, or its name.

    Returns:
        Their tensors, contiguous; views of ours where nothing had to be rearranged.

    Raises:
        WeightsError: The layout cannot hold these weights.
    """
    if isinstance(layout, str):
        layout = next(one for one in family_of(config).layouts if one.name == layout)
    schema = config.schema
    shapes = our_shapes(schema)
    rows = [*layout.rows_of(schema), *([] if schema.is_tied else [layout.head])]
    exported: dict[str, Tensor] = {}
    for row in rows:
        tensor = weights[row.ours]
        target = Place(row.ours, shapes[row.ours], tensor.dtype, schema.sizes["head"])
        exported.update(zip(row.theirs, row.transform.from_ours(tensor, target), strict=True))
    return exported
