"""`Network`: what the models of all families have in common. A family says which modules there are and how they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.errors import InputError, ShapeError, UnknownAttributeError, UnknownNameError, nearest, shown
from pellucid.family.json_config import Config
from pellucid.family.part import MISREAD, LiveView, Part, Weights, require_vectors
from pellucid.names import attributes
from pellucid.names.calls import named_methods
from pellucid.numerics.products import EXACT, Execution, Products, products_of
from pellucid.schema import Schema
from pellucid.tap import Tap

if TYPE_CHECKING:
    from pellucid.family.blocks import Architecture

Columns = Callable[[Tensor], Tensor]
"""[B, P, D] -> some of its columns, [B, C, D]."""

Memory = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""New keys and values [B, H, P, K] -> those of all columns so far."""


def last_column(values: Tensor) -> Tensor:
    """[B, P, D] -> [B, 1, D]."""
    return values[:, -1:]


class Remembers(Protocol):
    """Where keys and values of earlier columns are, such as a `KeyValueCache`."""

    def writer(self, block: int) -> Memory:
        """What one block calls with its new keys and values."""
        ...


@dataclass(frozen=True)
class Run:
    """What goes through the model."""

    ids: Tensor  # [B, P]
    positions: Tensor  # [B, P]
    # [B, columns], true at real positions, those in the cache included; None if there are no pads
    padding: Tensor | None = None
    cache: Remembers | None = None  # where keys and values of earlier columns are, and where those of these go
    columns: Columns | None = None  # chooses the columns whose logits are wanted; None for all
    # the first block that runs and what enters it [B, P, D]; None begins with the embeddings
    start: tuple[int, Tensor] | None = None
    # the block before which the run ends, with what would enter it in the place of logits; None for no such
    end: int | None = None
    # [B, P], the text of each column, where several share a row, none of which sees another; None if a row is one text.
    # Pads are a text, too. No cache knows it.
    texts: Tensor | None = None

    def through(self, blocks: Iterable[nn.Module]) -> list[tuple[int, nn.Module]]:
        """The blocks that run, each after its number."""
        return list(enumerate(blocks))[0 if self.start is None else self.start[0] : self.end]


_WHOLE = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64
)  # fmt: skip
"""Dtypes of whole numbers, of which torch looks up the first two."""


def looked_up(rows: Tensor, table: Tensor, by: str, remedy: str) -> Tensor:
    """Rows of a table; `by` and `remedy` say who asks and what to do if there is no such row."""
    try:
        return F.embedding(rows, table)
    except (RuntimeError, TypeError) as error:
        if isinstance(rows, Tensor) and rows.dtype in _WHOLE:  # pyright: ignore[reportUnnecessaryIsInstance]
            if rows.dtype not in (torch.int32, torch.int64):
                return looked_up(rows.long(), table, by, remedy)
            raise
        given = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ShapeError(
            f"{by}: {given} given, expected a tensor of whole numbers.",
            code="ids-dtype",
            remedy="Pass a tensor of ids as the tokenizer makes them, torch.as_tensor(ids).long().",
        ) from error
    except IndexError as error:
        raise InputError(
            f"{by}: {int(rows.min())} to {int(rows.max())} given, expected 0 to {len(table) - 1}.",
            code="id-out-of-range",
            remedy=remedy,
        ) from error


class Embedding(Part):
    """Token ids -> rows of `W_E` [V, D], which is fresh if no weights are given."""

    weight = LiveView("W_E", lambda _, stored: stored, "`W_E`, under the name that other libraries expect.")

    def __init__(self, config: Config, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "embed", weights)

    def forward(self, ids: Tensor) -> Tensor:
        return looked_up(ids, self.W_E, "embed", "Give ids of this model's own tokenizer.")


class Unembedding(Part):
    """Normalized residual stream -> logits, by `W_U` [D, V].

    Tied, it owns no parameter and `W_U` is the transposed live view of `W_E`; untied, `W_U` is a parameter whose
    memory is that of a [V, D] head.
    """

    elsewhere = attributes.UNEMBED

    def __init__(self, embed: Embedding, W_U: Tensor | None, products: Products) -> None:
        super().__init__()
        self._products = products
        self._embed = (embed,)  # in a tuple, so that the embedding is not registered a second time
        self.tied = W_U is None
        if W_U is not None:
            self.W_U = nn.Parameter(W_U)

    @property
    def weight(self) -> Tensor:
        """The head as [V, D], under the name that other libraries expect."""
        return self._embed[0].W_E if self.tied else self.W_U.t()

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight" or (name == "W_U" and self.__dict__.get("tied")):
            raise AttributeError(
                f"unembed.{name} is a live view of the stored parameter "
                f"{'embed.W_E' if self.__dict__.get('tied') else 'unembed.W_U'}; write into it: "
                "`with torch.no_grad(): model.unembed.W_U.copy_(value)`"
            )
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)

    def __getattr__(self, name: str) -> Any:
        if name == "W_U" and self.__dict__.get("tied"):
            return self._embed[0].W_E.t()
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        try:
            if self.tied:
                return self._products.linear(x, self._embed[0].W_E)
            return self._products.linear(x, self.W_U, rows=Tensor.t)
        except MISREAD:
            require_vectors(self, x, self.weight, self.weight.size(1))
            raise


@named_methods
class Network(Part):
    """Ids [B, P] -> logits [B, P, V]; a family gives it its modules and the run through them."""

    config: Any
    """A `Config`, and whatever else its family's has."""
    architecture: Architecture  # its family's modules, and the way through them
    embed: Embedding  # token embeddings
    blocks: nn.ModuleList  # the blocks
    unembed: Unembedding  # the head

    def __init__(self, config: Config, execution: Execution = EXACT) -> None:
        super().__init__()
        self.config = config
        self.execution = execution
        self.products = products_of(execution)  # the matrix products that its modules share

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, (nn.Module, Tensor)) and name in self.elsewhere:
            there = {**self.elsewhere, "lm_head": "pl.replace_head(model, head, tie=False)"}
            raise UnknownAttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}, so nothing would use what is put there.",
                code="unknown-attribute",
                remedy=f"Use {there[name]}.",
            )
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)
        if name == "embed" and "unembed" in self._modules:  # a new embedding is the tied head, too
            self.unembed._embed = (cast(Embedding, value),)

    def transform(self, run: Run, tap: Tap | None = None) -> Tensor:
        """Tokens -> logits [B, P, V], those of some columns alone, or what would enter the block where the run ends."""
        return self.architecture.transform(self, run, tap)

    @property
    def schema(self) -> Schema:
        """Every checkpoint and parameter with its axes and meaning; it prints as a table."""
        return self.config.schema

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.embed.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.embed.W_E.dtype

    @property
    def ckpt_names(self) -> tuple[str, ...]:
        """Every checkpoint, in execution order."""
        return self.schema.names

    def get_input_embeddings(self) -> nn.Module:
        """The module that owns `W_E`."""
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        """The module that gives the logits; tied, its `W_U` is `W_E` transposed."""
        return self.unembed

    def parameter(self, name: str) -> Tensor:
        """A parameter, or a live view of one, by its dotted name, such as "blocks.0.attn.W_Q"."""
        module, attribute = self._locate(name)
        return getattr(module, attribute)

    def grad(self, name: str) -> Tensor | None:
        """The gradient of a parameter or of a live view of one; None before a backward pass.

        The gradient of a tied `unembed.W_U` is that of the shared tensor, from both of its uses.
        """
        module, attribute = self._locate(name)
        if attribute == "W_U" and self.unembed.tied:
            return None if self.embed.W_E.grad is None else self.embed.W_E.grad.t()
        view = getattr(type(module), attribute, None)
        if not isinstance(view, LiveView):
            return getattr(module, attribute).grad
        stored = getattr(module, view.stored).grad
        return None if stored is None else view.view(module, stored)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Every name that `parameter` takes: stored ones and live views."""
        names = [name for name, _ in self.named_parameters()]
        for path, module in self.named_modules():
            names += [f"{path}.{name}" for name in vars(type(module)) if _shows_a_part(module, name)]
        return (*names, "unembed.W_U") if self.unembed.tied else tuple(names)

    def _locate(self, name: str) -> tuple[nn.Module, str]:
        path, _, attribute = (name if isinstance(name, str) else shown(name)).rpartition(".")
        with suppress(AttributeError):  # no such module
            module = self.get_submodule(path)
            tied = module is self.unembed and self.unembed.tied and attribute == "W_U"
            if tied or module._parameters.get(attribute) is not None or _shows_a_part(module, attribute):
                return module, attribute
        raise UnknownNameError(
            f"no such parameter: {shown(name)}.",
            code="unknown-parameter",
            remedy=f"{nearest(name, self.parameter_names)} `model.parameter_names` lists them all.".strip(),
        )


def _shows_a_part(module: nn.Module, name: str) -> bool:
    """Whether a live view shows a parameter; a class may have views of biases that this configuration has not."""
    view = vars(type(module)).get(name)
    return isinstance(view, LiveView) and name != "weight" and hasattr(module, view.stored)
