"""HookedTransformer's tree of modules: its hook points, beside live views of the model's own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.compat.hooked.hook_points import HookPoint
from pellucid.errors import ShapeError


class Mirror(nn.Module):
    """A module of the model, with hook points; its parameters are the model's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._inner = (inner,)  # in a tuple, so that its parameters are not registered a second time

    @property
    def inner(self) -> Any:
        """The module of the model."""
        return self._inner[0]

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Hold a module under a name that the model's own module may have, too."""
        self._modules[name] = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own module computes, without hooks."""
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = getattr(self.__dict__["_inner"][0], name, None) if "_inner" in self.__dict__ else None
        if not isinstance(own, Tensor) or not isinstance(value, Tensor):
            super().__setattr__(name, value)
            return
        if value.shape != own.shape:
            raise ShapeError(
                f"{name}: {list(value.shape)} given, expected {list(own.shape)}.",
                code="hooked-weight",
                remedy="Give a tensor of that shape; its numbers are copied into the model's parameter.",
            )
        with torch.no_grad():
            own.copy_(value)


class Head(Mirror):
    """The unembedding, with a bias that no parameter of the model holds."""

    b_U: Tensor  # [V]; zeros, unless the biases of the last norm were folded into it

    def __init__(self, inner: nn.Module, bias: Tensor) -> None:
        super().__init__(inner)
        self.register_buffer("b_U", bias)
        self.has_bias = bool(bias.any()) if not bias.is_meta else False

    def forward(self, normalized: Tensor) -> Tensor:
        """[B, P, D] -> logits [B, P, V]."""
        return self.with_bias(self.inner(normalized))

    def with_bias(self, logits: Tensor) -> Tensor:
        """Logits with the bias."""
        return logits + self.b_U if self.has_bias else logits


def tree(model: nn.Module, names: Mapping[str, HookPoint], bias: Tensor) -> dict[str, nn.Module]:
    """The modules of HookedTransformer's tree by their names at its root."""
    root = nn.Module()
    for name, point in names.items():
        *places, last = name.split(".")
        parent: nn.Module = root
        for depth, place in enumerate(places):
            if place not in dict(parent.named_children()):
                inner = model.get_submodule(".".join(places[: depth + 1]))
                blocks = isinstance(inner, nn.ModuleList)
                made = nn.ModuleList() if blocks else Head(inner, bias) if place == "unembed" else Mirror(inner)
                parent.add_module(place, made)
            parent = dict(parent.named_children())[place]
        parent.add_module(last, point)
    for place in ("embed", "pos_embed"):
        inner = dict(model.named_children()).get(place)
        if inner is not None:
            root.add_module(place, Mirror(inner))
    return dict(root.named_children())
