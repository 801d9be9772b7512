"""The tap that edits: applies the edits of one run in the order given, and counts how often each fired."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pellucid.aliases import selected
from pellucid.errors import EditError
from pellucid.run.edit import Edit, Site
from pellucid.schema import Schema
from pellucid.text.batch import Batch


class EditTap:
    """The edits of one run: applies them in the order given and counts.

    Args:
        edits: One or several.
        batch: What runs.
        schema: The model's schema.
        start: The first column of what runs, where a text is run piece by piece; positions are then those of the text.
    """

    def __init__(self, edits: Edit | Sequence[Edit], batch: Batch, schema: Schema, start: int | None = None) -> None:
        self._axes = schema.axes
        self._batch = batch
        self._at: dict[str, list[Edit]] = {}
        self.start = start
        several = [edits] if isinstance(edits, Edit) or not isinstance(edits, Sequence) else list(edits)
        for edit in several:
            if not isinstance(edit, Edit):
                raise EditError(
                    f"edits: {type(edit).__name__} given, expected pl.Edit.",
                    code="edit-kind",
                    remedy="Make edits with pl.Edit.zero, replace, add, scale, mean_ablate, patch or apply.",
                )
        self.fired: dict[Edit, int] = dict.fromkeys(several, 0)
        for edit in several:
            if start is not None and edit.whole_text:
                raise EditError(
                    f"{edit!r}: it averages over a text that is not there yet.",
                    code="edit-needs-the-text",
                    remedy="Give the reference whose mean is meant: Edit.mean_ablate(names, ckpts).",
                )
            for name in _selected(edit, schema):
                self._at.setdefault(name, []).append(edit)

    def wants(self, name: str) -> bool:
        return name in self._at

    def __call__(self, name: str, value: Tensor) -> Tensor:
        for edit in self._at[name]:
            changed = edit.at(value, Site(name, self._axes[name], self._batch, value, self.start))
            if changed is not None:
                value = changed
                self.fired[edit] += 1
        return value

    def check_fired(self) -> None:
        """Raise for the edits that never fired."""
        silent = [edit for edit, times in self.fired.items() if not times]
        if silent:
            raise EditError(
                f"never fired: {', '.join(map(repr, silent))}.",
                code="edit-never-fired",
                remedy="The run stopped before their checkpoints or positions, or started after them; choose others, "
                "or leave them out.",
            )


def _selected(edit: Edit, schema: Schema) -> tuple[str, ...]:
    chosen = selected(edit.names, schema) if edit.names else ()
    if not chosen:
        raise EditError(
            f"{edit!r}: names no checkpoint.", code="edit-kind", remedy="Give the name of a checkpoint, or a pattern."
        )
    return chosen
