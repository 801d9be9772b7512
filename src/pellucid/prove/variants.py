"""A reference with something changed: fewer positions, units that are zeros, another program's values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pellucid.parameters import LiveView
from pellucid.prove.alignment import Match
from pellucid.prove.copies import own_parameters, working_copy
from pellucid.run.model import CkptedTransformer


def with_positions(model: CkptedTransformer, positions: int) -> CkptedTransformer:
    """A model with the first positions of another."""
    table = model.pos_embed.W_pos.detach()[:positions]
    config = model.config.replace(n_positions=positions)
    weights = {**model.state_dict(), "pos_embed.W_pos": table}
    how = model.execution
    return CkptedTransformer(config, weights, attention=how.attention, numerics=how.numerics).eval()


def without_units(model: CkptedTransformer, units: list[str]) -> CkptedTransformer:
    """A working copy, in which these units become zeros."""
    own_parameters(model, [_stored_name(model, unit) for unit in units])
    with torch.no_grad():
        for unit in units:
            model.parameter(unit).zero_()
    return model


def with_their_values(
    model: CkptedTransformer, matches: list[Match], others: Mapping[str, Tensor]
) -> CkptedTransformer:
    """A working copy of a model in which the units of these matches have the other program's values."""
    made = working_copy(model)
    own_parameters(made, [_stored_name(model, unit) for match in matches for unit in match.group.units])
    for match in matches:
        undone = match.transform.undo(others[match.name].detach(), match.group, match.comparison.shape)
        for unit, part in match.group.split(undone).items():
            with torch.no_grad():
                target = made.parameter(unit)
                (target if match.group.head is None else target[match.group.head]).copy_(part)
    return made


def _stored_name(model: CkptedTransformer, unit: str) -> str:
    """The name under which a unit is stored, which for a live view is that of a larger parameter."""
    path, attribute = unit.rsplit(".", 1)
    view = getattr(type(model.get_submodule(path)), attribute, None)
    return f"{path}.{view.stored}" if isinstance(view, LiveView) else unit
