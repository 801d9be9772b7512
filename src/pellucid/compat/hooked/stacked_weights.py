"""HookedTransformer's parameters and hook points: its tree of modules, the parameters of every block in one tensor, and
what it computes from parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.check import require_one_of
from pellucid.compat.hooked.hook_tap import HookPoint
from pellucid.compat.hooked.hooked_factored import FactoredMatrix, composition_scores
from pellucid.compat.hooked.settings import HookedTransformerConfig
from pellucid.errors import ShapeError
from pellucid.run.model import CkptedTransformer


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


class Attention(Mirror):
    """A block's attention, which is called as there: with what queries, keys and values are made of."""

    def forward(
        self, query_input: Tensor, key_input: Tensor | None = None, value_input: Tensor | None = None
    ) -> Tensor:
        """[B, P, D] each, the first for those that are None -> what attention adds [B, P, D], without hooks."""
        inputs = {"ckpt_k": key_input, "ckpt_v": value_input}
        given = {
            name: self.inner.projected(value)[place]
            for place, (name, value) in enumerate(inputs.items(), 1)
            if value is not None and value is not query_input
        }
        return self.inner(query_input, tap=_Replaced(given) if given else None)[0]


class _Replaced:
    """The tap that puts other values there."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values

    def wants(self, name: str) -> bool:
        return name.rpartition(".")[2] in self._values

    def __call__(self, name: str, value: Tensor) -> Tensor:
        return self._values[name.rpartition(".")[2]]


class Positions(Mirror):
    """Position embeddings, which are called as there: with ids."""

    def forward(self, tokens: Tensor, past_kv_pos_offset: int = 0) -> Tensor:
        """Ids [B, P] -> the rows of `W_pos` for P positions [B, P, D]."""
        first = past_kv_pos_offset
        return self.inner(torch.arange(first, first + tokens.size(-1), device=tokens.device).expand_as(tokens))


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
                mirror = Attention if place == "attn" else Mirror
                made = nn.ModuleList() if blocks else Head(inner, bias) if place == "unembed" else mirror(inner)
                parent.add_module(place, made)
            parent = dict(parent.named_children())[place]
        parent.add_module(last, point)
    for place, mirror in (("embed", Mirror), ("pos_embed", Positions)):
        inner = dict(model.named_children()).get(place)
        if inner is not None:
            root.add_module(place, mirror(inner))
    return dict(root.named_children())


_STACKED = {
    **{name: ("attn", name) for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")},
    **{name: ("mlp", name) for name in ("W_in", "W_gate", "W_out", "b_in", "b_out")},
}
"""Parameters of every block -> the module that has them and their name there."""


class StackedWeights(nn.Module):
    """The parameters of a model, those of the blocks stacked, [L, ...]."""

    model: CkptedTransformer
    cfg: HookedTransformerConfig
    unembed: nn.Module

    def __getattr__(self, name: str) -> Any:
        if name in _STACKED:
            return self._stacked(*_STACKED[name])
        return super().__getattr__(name)

    def _stacked(self, part: str, weight: str) -> Tensor:
        """A parameter of every block, [L, ...]."""
        found = [getattr(getattr(block, part), weight) for block in self.model.blocks]
        return torch.stack(found)

    @property
    def W_E(self) -> Tensor:
        """[V, D]."""
        return self.model.embed.W_E

    @property
    def W_pos(self) -> Tensor:
        """[n_ctx, D]."""
        return self.model.parameter("pos_embed.W_pos")

    @property
    def W_E_pos(self) -> Tensor:
        """[V + n_ctx, D]: token and position embeddings."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def W_U(self) -> Tensor:
        """[D, V]."""
        return self.model.unembed.W_U

    @property
    def b_U(self) -> Tensor:
        """[V]; zeros, unless biases were folded into it."""
        return cast(Head, self.unembed).b_U

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head, [L, H, D, D]."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, [L, H, D, D]."""
        return FactoredMatrix(self.W_V, self.W_O)

    def all_head_labels(self) -> list[str]:
        """ "L0H0" and so on, of every head."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def all_composition_scores(self, mode: str) -> Tensor:
        """[L, H, L, H]: how much the later head reads by its "Q", "K" or "V" of what the earlier one writes, or 0."""
        readers = {"Q": self.QK, "K": self.QK.T, "V": self.OV}
        require_one_of("all_composition_scores: mode", mode, readers, code="composition-mode")
        scores = composition_scores(self.OV, readers[mode], broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        earlier = (layers[:, None] < layers)[:, None, :, None]
        return torch.where(earlier, scores, torch.zeros_like(scores))

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """[D]: the biases that attention and MLPs wrote before a block, or before its MLP with `mlp_input`."""
        attn, mlp = range(layer + mlp_input), range(layer if include_mlp_biases else 0)
        names = [*(f"blocks.{i}.attn.b_O" for i in attn), *(f"blocks.{i}.mlp.b_out" for i in mlp)]
        total = self.W_E.new_zeros(self.cfg.d_model)
        for name in names:
            total = total + self.model.parameter(name) if name in self.model.parameter_names else total
        return total
