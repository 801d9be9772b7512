"""HookedTransformer's `ActivationCache`: the values of one run under its names, and what is computed from them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.compat.hooked.hooked_names import Slice, get_act_name
from pellucid.compat.hooked.residual_stacks import ResidualStacks
from pellucid.errors import InputError, UnknownNameError, nearest

if TYPE_CHECKING:
    from pellucid.compat.hooked.transformer import HookedTransformer


class ActivationCache(ResidualStacks):
    """The values of one run.

    `cache["blocks.0.attn.hook_pattern"]`, `cache["pattern", 0]` and `cache["pattern", 0, "attn"]` are the same value.

    Args:
        cache_dict: The values by name, in execution order.
        model: What made them.
        has_batch_dim: Whether the values have a batch axis.

    Attributes:
        cache_dict: As given.
        model: As given.
        has_batch_dim: As given.
    """

    def __init__(self, cache_dict: dict[str, Tensor], model: HookedTransformer, has_batch_dim: bool = True) -> None:
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim

    @property
    def has_embed(self) -> bool:
        """Whether the token embeddings were kept."""
        return "hook_embed" in self.cache_dict

    @property
    def has_pos_embed(self) -> bool:
        """Whether the position embeddings were kept."""
        return "hook_pos_embed" in self.cache_dict

    def __getitem__(self, key: str | tuple[Any, ...]) -> Tensor:
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        name = get_act_name(key) if isinstance(key, str) else self._from_tuple(key)
        if name not in self.cache_dict:
            raise UnknownNameError(
                f"cache: {name!r} was not kept.",
                code="not-captured",
                remedy=f"{nearest(name, self.cache_dict)} `cache.keys()` lists what was.".strip(),
            )
        return self.cache_dict[name]

    def _from_tuple(self, key: tuple[Any, ...]) -> str:
        name, layer, *rest = (*key, None) if len(key) < 2 else key
        if isinstance(layer, int) and layer < 0:
            layer += self.model.cfg.n_layers
        return get_act_name(name, layer, *rest)

    def __contains__(self, key: object) -> bool:
        return key in self.cache_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def keys(self) -> KeysView[str]:
        """The names."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[Tensor]:
        """The values."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and values."""
        return self.cache_dict.items()

    def to(self, device: Any, move_model: bool = False) -> ActivationCache:
        """Move the values to a device, and the model with them if asked."""
        self.cache_dict = {name: value.to(device) for name, value in self.cache_dict.items()}
        if move_model:
            self.model.to(device)
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients on or off everywhere, as `torch.set_grad_enabled` does."""
        torch.set_grad_enabled(mode)

    def remove_batch_dim(self) -> ActivationCache:
        """Take the only row of each value."""
        if self.has_batch_dim:
            rows = {len(value) for value in self.cache_dict.values()}
            if rows - {1}:
                raise InputError(
                    f"cache.remove_batch_dim: {max(rows)} rows, expected one.",
                    code="several-rows",
                    remedy="Take the row that you want: cache.apply_slice_to_batch_dim(0).",
                )
            self.cache_dict = {name: value[0] for name, value in self.cache_dict.items()}
            self.has_batch_dim = False
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> ActivationCache:
        """Some rows of every value; one number drops the axis."""
        chosen = Slice.of(batch_slice)
        if not self.has_batch_dim and chosen.mode != "identity":
            raise InputError(
                "cache.apply_slice_to_batch_dim: the values have no batch axis.",
                code="no-batch-axis",
                remedy="Run without remove_batch_dim.",
            )
        kept = {name: chosen.apply(value) for name, value in self.cache_dict.items()}
        return ActivationCache(kept, self.model, has_batch_dim=self.has_batch_dim and chosen.mode != "int")

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Tensor:
        """One value of every block before `layer`, [L, ...]."""
        return torch.stack([self[activation_name, i, sublayer_type] for i in range(self.end_of(layer))])
