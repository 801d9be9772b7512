"""What a run captured: a mapping from checkpoint names to values, with the tokens that made them."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.check import require_whole
from pellucid.errors import InputError, UnknownNameError, shown
from pellucid.extras import need
from pellucid.family.network import Network
from pellucid.html.listing import Listed, Listing, counted
from pellucid.names import aliases
from pellucid.names.attributes import CKPTS, unknown_attribute
from pellucid.names.calls import PLACES, named_arguments, named_methods
from pellucid.run.origin import Captures, Known, Origin, load_captures, model_of
from pellucid.run.region import Index, Region, take
from pellucid.schema import HEADS, Axis, Schema
from pellucid.text.batch import Batch, nan_at_pads, token_labels

if TYPE_CHECKING:
    import xarray

    from pellucid.run.edit import Edit
    from pellucid.viewer.views import View


@named_methods
class ActivationCkpts(Listed, Mapping[str, Tensor]):
    """Captured values by checkpoint name, in execution order.

    Names of other libraries are accepted where they denote the same value: `ckpts["blocks.0.attn.hook_pattern"]`,
    `ckpts["pattern", 0]`, `ckpts["transformer.h.0.mlp"]`.

    Attributes:
        batch: The ids, mask, positions and strings that made the values.
        schema: The schema of the model that made the values.
        part: The positions and heads that were kept.
        fired: How often each edit of the run fired.
        edited: The checkpoints at which edits fired; None if a file of an earlier version does not say.

    Example:
        >>> import pellucid as pl
        >>> logits, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_pattern")
        >>> ckpts.stack("attn.ckpt_pattern").shape
        torch.Size([4, 1, 4, 4, 4])
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        batch: Batch,
        schema: Schema,
        *,
        part: Region | None = None,
        fired: Mapping[Edit, int] | None = None,
        origin: Origin | Known | None = None,
        edited: Collection[str] | None = (),
    ) -> None:
        self._values = dict(values)
        self.batch = batch
        self.schema = schema
        self.part = part or Region()
        self.fired: Mapping[Edit, int] = dict(fired or {})
        self._origin = origin
        at = (aliases.selected(edit.names, schema) for edit in self.fired)
        self.edited = None if edited is None else frozenset(edited).union(*at)

    def made_by(self, model: Network | None, by: str) -> Network:
        """The model that made the values, which they hold until they are saved or pickled.

        Args:
            model: The model that the caller gave; None for the one that is held.
            by: The function that the user called, for messages.

        Raises:
            InputError: If no model is held or given, it was changed since the run, or another one was given.
        """
        return model_of(self._origin, model, by, self.schema)

    @property
    def provenance(self) -> Mapping[str, str]:
        """`model`: where its weights came from; `weights`: their SHA-256, worked out once; `numerics`; `attention`."""
        return {} if self._origin is None else self._origin.facts

    @property
    def n_layer(self) -> int:
        """Blocks of the model."""
        return len(self.schema.blocks)

    @property
    def pos(self) -> Index:
        """The columns that were kept, None for all."""
        return self.part.pos

    def __getstate__(self) -> dict[str, Any]:
        """Without the edits, which hold functions and cannot be pickled."""
        return {**self.__dict__, "fired": {}, "_origin": Known(dict(self.provenance))}

    def __getitem__(self, name: aliases.Name) -> Tensor:
        if isinstance(name, str) and name in self._values:
            return self._values[name]
        wanted = aliases.resolved(name, self.schema)
        if wanted not in self._values:
            raise _not_captured(wanted)
        return self._values[wanted]

    def __getattr__(self, name: str) -> Any:
        raise unknown_attribute("'ActivationCkpts' object", name, CKPTS)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _listing(self) -> Listing:
        rows = [(name, str(list(value.shape)), str(value.dtype)) for name, value in self._values.items()]
        title = f"ActivationCkpts of {counted(len(self), 'checkpoint')}, {self.nbytes:,} bytes"
        return Listing(title, ("checkpoint", "shape", "dtype"), rows)

    @named_arguments(PLACES)
    def get(  # pyright: ignore[reportIncompatibleMethodOverride] (DoTLMViz's, with a mapping's default)
        self,
        act_name: aliases.Name,
        layer_name: str | None = None,
        block: int | None = None,
        *,
        default: Any = None,
    ) -> Any:
        """The value under a name, or `default` if this run did not capture it.

        Args:
            act_name: Any name of a checkpoint; or its last part alone, with `layer_name` and `block` to say where.
            layer_name: "attn", "mlp", "ln1", "ln2" or "ln_final"; None for the residual stream and embeddings.
            block: Which block; negative ones count from the end.
            default: What to return for a checkpoint that was not captured.

        Raises:
            UnknownNameError: If there is no such checkpoint, whether or not a default is given.

        Example:
            >>> import pellucid as pl
            >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time")
            >>> ckpts.get("pattern", "attn", 0).shape, ckpts.get("embed").shape, ckpts.get("resid_post", block=-1).shape
            (torch.Size([1, 4, 4, 4]), torch.Size([1, 4, 256]), torch.Size([1, 4, 256]))
        """
        if layer_name is not None and not isinstance(layer_name, str):
            raise InputError(
                f"ActivationCkpts.get: layer_name={shown(layer_name)}, expected a text such as 'attn'.",
                code="layer-name",
                remedy="Give a default by its name: ckpts.get(name, default=...).",
            )
        place = layer_name or block is not None
        wanted = aliases.resolved((act_name, layer_name, block) if place else act_name, self.schema)  # pyright: ignore[reportArgumentType]
        return self._values.get(wanted, default)

    @property
    def nbytes(self) -> int:
        """Bytes of all captured values."""
        return sum(value.numel() * value.element_size() for value in self._values.values())

    def stack(self, name: aliases.Name) -> Tensor:
        """One checkpoint of every block that captured it, [L, ...].

        Args:
            name: Which, without its block: "attn.ckpt_pattern", "pattern", "blocks.*.attn.ckpt_pattern" or an alias.

        Raises:
            UnknownNameError: If there is no such checkpoint in every block, or it was not captured.

        Example:
            >>> import pellucid as pl
            >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="pattern")
            >>> ckpts.stack("pattern").shape
            torch.Size([4, 1, 4, 4, 4])
        """
        kind, block = aliases.kind_and_block(name, self.schema)
        if block != "*":
            raise UnknownNameError(
                f"stack: {name!r} is one value, expected a checkpoint that every block has.",
                code="not-of-every-block",
                remedy=f"Leave the block out: ckpts.stack({kind!r})." if block else f"It is ckpts[{kind!r}].",
            )
        return torch.stack([self[full] for full in self._of_blocks(kind)])

    def _of_blocks(self, kind: str) -> list[str]:
        full = [name for i in range(len(self.schema.blocks)) if (name := f"blocks.{i}.{kind}") in self._values]
        if not full:
            raise _not_captured(f"blocks.*.{kind}")
        return full

    def of_text(self, row: int) -> ActivationCkpts:
        """One text of a run as a run of its own, without pads: values [1, P, ...].

        Args:
            row: Which text, counted from 0.

        Raises:
            InputError: If there is no such text, or some positions alone were kept.

        Example:
            >>> import pellucid as pl
            >>> _, ckpts = pl.load().run_with_ckpts(["Once", "Once upon a time"], names="ckpt_embed")
            >>> ckpts["ckpt_embed"].shape, ckpts.of_text(0)["ckpt_embed"].shape
            (torch.Size([2, 4, 256]), torch.Size([1, 1, 256]))
        """
        row = require_whole("of_text: row", row, at_most=len(self.batch) - 1)
        if self.part.pos is not None:
            raise InputError(
                f"of_text: some positions alone were kept (pos={shown(self.part.pos)}), expected all.",
                code="of-text-positions",
                remedy="Capture without pos=, and select from the result.",
            )
        columns = self.batch.mask[row].cpu().nonzero().squeeze(1).tolist()
        where, axes = Region(columns, rows=row), self.schema.axes
        values = {n: take(v, where.indices(n, v.shape, axes[n], strict=False)) for n, v in self.items()}
        for name, value in values.items():
            if Axis.KEY in axes[name]:
                values[name] = value.index_select(-1, torch.tensor(columns, device=value.device))
        ids, positions = (tensor[row : row + 1, columns] for tensor in (self.batch.ids, self.batch.positions))
        labels = None if self.batch.labels is None else [self.batch.labels[row]]
        batch = replace(self.batch, ids=ids, mask=torch.ones_like(ids).bool(), positions=positions, labels=labels)
        about: dict[str, Any] = {"fired": self.fired, "origin": self._origin, "edited": self.edited}
        return ActivationCkpts(values, batch, self.schema, part=self.part, **about)

    def view(self, *, text: int = 0, target: int | str | None = None, model: Network | None = None) -> View:
        """Look at this run: in a notebook, or with `.save("page.html")` in any browser.

        What was not captured is captured by running the texts again, and has to agree with what is here to the bit.

        Args:
            text: Which of its texts.
            target: The token whose logit is explained, an id or a text that is one token; None for the likeliest next.
            model: The model that made the values, if they were saved or pickled since.

        Raises:
            InputError: If there is no such text or token, no model, or the run cannot be repeated to the bit.
            MissingExtraError: xarray is not installed.

        Example:
            >>> import pellucid as pl
            >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="resid_post")
            >>> ckpts.view().save("page.html")
        """
        made = importlib.import_module("pellucid.viewer.views")  # far above: it is there once somebody looks
        return made.view_of(self, text=text, target=target, model=model)

    def to_xarray(self) -> xarray.Dataset:
        """Labelled arrays, one for each kind of checkpoint, blocks along `layer`.

        Pads are NaN, and so is a block in which a kind was not captured though another was. If keys and values have
        fewer heads than queries, their head axis is called `head_kv` here.

        Columns have the coordinates `token` and `position` (of queries and keys `query_token` and so on); a pad's
        position is -1. Attributes say the checkpoint, its `units` and `meaning` (from the schema), and the model.

        Raises:
            MissingExtraError: xarray is not installed.
        """
        xarray = need("xarray", "to_xarray")
        axes = self.schema.axes
        arrays: dict[str, Any] = {}
        for name, value in self._values.items():
            if not name.startswith("blocks."):
                arrays[name] = (self.schema.dims(name), nan_at_pads(value, axes[name], self.batch, self.columns))
                continue
            kind = name.split(".", 2)[2]
            if kind not in arrays:
                full = self._of_blocks(kind)
                stacked = [nan_at_pads(self[n], axes[n], self.batch, self.columns) for n in full]
                layers = [int(n.split(".")[1]) for n in full]
                dims = [str(Axis.LAYER), *self.schema.dims(name)]
                arrays[kind] = xarray.DataArray(torch.stack(stacked), dims=dims, coords={str(Axis.LAYER): layers})
        used = {dim: name for name in self._values for dim in self.schema.dims(name)}
        labels = self.coordinates({str(Axis.BATCH), *used} - set(HEADS))
        for dim in HEADS:
            if dim in used:
                kind = used[dim].split(".", 2)[-1]
                labels[dim] = self.coordinates([str(Axis.HEAD)], of=kind)[str(Axis.HEAD)]
        made = xarray.Dataset(arrays, coords=labels)
        origin = "" if self._origin is None else self._origin.name
        for kind, point in {**self.schema.in_blocks, **self.schema.around}.items():
            if kind in made:
                about = {"checkpoint": kind, "units": point.unit, "meaning": point.meaning, "model": origin}
                made[kind].attrs = about
        return made

    @property
    def columns(self) -> Tensor:
        """The columns of the batch that were kept, pads counted."""
        return self.part.columns(self.batch.ids.size(1))

    def coordinates(self, dims: Collection[str], *, of: str = "") -> dict[str, Any]:
        """Return the labels of these axes, as xarray takes them: rows, heads, columns with their tokens and positions.

        A pad's token is "" and its position -1.

        Args:
            dims: The axes to label, such as ("batch", "pos", "head").
            of: Whose heads, if keys have fewer than queries: a checkpoint's name without its block.

        Example:
            >>> import pellucid as pl
            >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="ckpt_embed")
            >>> ckpts.coordinates(["batch", "pos"])["token"][1].tolist()
            [['Once', ' upon', ' a', ' time']]
        """
        labels: dict[str, Any] = {}
        if Axis.HEAD in dims:
            axes = self.schema.axes
            held = {name: value for name, value in self._values.items() if Axis.HEAD in axes[name]}
            every = next(v.size(axes[n].index(Axis.HEAD)) for n, v in held.items() if n.endswith(of))
            labels[str(Axis.HEAD)] = range(every) if self.part.heads is None else self.part.heads
        if Axis.BATCH not in dims:
            return labels
        return labels | {str(Axis.BATCH): range(len(self.batch))} | token_labels(self.batch, dims, self.columns)

    def save(self, path: str | Path) -> None:
        """Write the values and the tokens into one safetensors file."""
        held = Captures(self._values, self.batch, self.schema, self.part, dict(self.provenance), self.edited)
        held.save(path)

    @classmethod
    def load(cls, path: str | Path) -> ActivationCkpts:
        """Read a file that `save` wrote.

        Raises:
            NotFoundError: If there is no such file.
            WeightsError: If it cannot be opened.
            InputError: If the file holds something else, or is damaged.
        """
        held = load_captures(path)
        origin, edited = Known(held.provenance), held.edited
        return cls(held.values, held.batch, held.schema, part=held.part, origin=origin, edited=edited)


def _not_captured(name: str) -> UnknownNameError:
    return UnknownNameError(
        f"{name!r} was not captured in this run.",
        code="not-captured",
        remedy="Ask for it in names= of run_with_ckpts.",
    )
