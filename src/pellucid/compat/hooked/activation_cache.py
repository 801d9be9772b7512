"""HookedTransformer's `ActivationCache`: the values of one run under its names, and what is computed from them: the
stream and what wrote it.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.check import require_one_of
from pellucid.compat.hooked.settings import block_of
from pellucid.compat.hooked.utils import Slice, get_act_name
from pellucid.errors import InputError, UnknownNameError, nearest

if TYPE_CHECKING:
    from pellucid.compat.hooked.transformer import HookedTransformer

Labelled = Any
"""A tensor, or with `return_labels=True` a pair of it and the labels of its first axis."""


class ActivationCache:
    """The values of one run.

    `cache["blocks.0.attn.hook_pattern"]`, `cache["pattern", 0]` and `cache["pattern", 0, "attn"]` are the same value.

    Stacks are [N, ..., D], with the leading axes of the values. Arguments that several methods take: `layer`, the block
    that is entered, None or -1 for the end; `mlp_input`, whether its MLP is, so its attention counts; `apply_ln`,
    whether to divide by the statistics of the norm that reads the stream there; `pos_slice`, the positions to take;
    `incl_remainder`, whether to end with the rest of the stream; `return_labels`, whether to return labels as well. For
    a stack that is given: `pos_slice` and `batch_slice`, the positions and rows that it holds, and `has_batch_dim`,
    whether it has a batch axis.

    Args:
        cache_dict: The values by name, in execution order.
        model: What made them.
        has_batch_dim: Whether the values have a batch axis.
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
        place: tuple[Any, ...] = key if isinstance(key, tuple) else (key,)
        short, layer, *rest = place if len(place) > 1 else (*place, None, None)[:2]
        if isinstance(layer, int) and layer < 0:
            layer += self.model.cfg.n_layers
        name = get_act_name(short, layer, *rest)  # pyright: ignore[reportArgumentType] (it refuses None)
        if name not in self.cache_dict:
            raise UnknownNameError(
                f"cache: {name!r} was not kept.",
                code="not-captured",
                remedy=f"{nearest(name, self.cache_dict)} `cache.keys()` lists what was.".strip(),
            )
        return self.cache_dict[name]

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

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Labelled:
        """The stream at the input of every block up to `layer`, with `incl_mid` also at the input of every MLP.

        At the end `apply_ln` applies the last norm, with each entry's own statistics.
        """
        end, layers = self.end_of(layer), self.model.cfg.n_layers
        found: list[tuple[str, Tensor]] = []
        for i in range(min(end + 1, layers)):
            found.append((f"{i}_pre", self["resid_pre", i]))
            if (incl_mid and i < end) or (mlp_input and i == end):
                found.append((f"{i}_mid", self["resid_mid", i]))
        if end == layers:
            found.append(("final_post", self["resid_post", layers - 1]))
        stack = self._stacked(found, pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(
                stack, layer, mlp_input=mlp_input, pos_slice=pos_slice, recompute_ln=end == layers
            )
        return (stack, [label for label, _ in found]) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Labelled:
        """What each attention layer and MLP before `layer` added to the stream, after the embeddings (`incl_embeds`).

        `mode` is "all", "attn" or "mlp".
        """
        require_one_of("cache.decompose_resid: mode", mode, ("all", "attn", "mlp"), code="decompose-mode")
        end = self.end_of(layer)
        found = self._embeddings() if incl_embeds else []
        for i in range(end):
            found += [(f"{i}_attn_out", self["attn_out", i])] if mode != "mlp" else []
            found += [(f"{i}_mlp_out", self["mlp_out", i])] if mode != "attn" else []
        if mlp_input and mode != "mlp":
            found.append((f"{end}_attn_out", self["attn_out", end]))
        stack = self._stacked(found, pos_slice)
        stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice) if apply_ln else stack
        return (stack, [label for label, _ in found]) if return_labels else stack

    def compute_head_results(self) -> None:
        """Work out what each head wrote, [..., H, D], and keep it under `attn.hook_result`."""
        for i in range(self.model.cfg.n_layers):
            name = f"blocks.{i}.attn.hook_result"
            if name not in self.cache_dict and f"blocks.{i}.attn.hook_z" in self.cache_dict:
                W_O = self.model.blocks[i].attn.W_O  # pyright: ignore[reportIndexIssue, reportUnknownMemberType]
                z = self["z", i].to(W_O.device)
                self.cache_dict[name] = torch.einsum("...hk,hkd->...hd", z, W_O).detach()

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Labelled:
        """What each head before `layer` wrote, labelled "L0H0"."""
        self.compute_head_results()
        chosen = Slice.of(pos_slice)
        end = self.end_of(layer)
        parts = [chosen.apply(self["result", i], dim=-3).movedim(-2, 0) for i in range(end)]
        labels = [f"L{i}H{head}" for i in range(end) for head in range(self.model.cfg.n_heads)]
        return self._finished(parts, labels, layer, chosen, incl_remainder, apply_ln, return_labels)

    def get_neuron_results(self, layer: int, neuron_slice: Any = None, pos_slice: Any = None) -> Tensor:
        """What each neuron of a block wrote, [..., M, D]."""
        acts = Slice.of(pos_slice).apply(self["post", layer], dim=-2)
        W_out = self.model.blocks[layer].mlp.W_out  # pyright: ignore[reportIndexIssue, reportUnknownMemberType]
        chosen = Slice.of(neuron_slice)
        return chosen.apply(acts, dim=-1)[..., None] * chosen.apply(W_out, dim=0).detach()

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Any = None,
        neuron_slice: Any = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
    ) -> Labelled:
        """What each neuron before `layer` wrote, labelled "L0N0"; `neuron_slice` takes some. Large: L times M rows."""
        chosen, end = Slice.of(pos_slice), self.end_of(layer)
        neurons = Slice.unwrap(neuron_slice)
        parts = [self.get_neuron_results(i, neurons, chosen).movedim(-2, 0) for i in range(end)]
        labels = [f"L{i}N{neuron}" for i in range(end) for neuron in neurons.indices(self.model.cfg.d_mlp)]
        return self._finished(parts, labels, layer, chosen, incl_remainder, apply_ln, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
    ) -> Labelled:
        """The stream as a sum over heads, neurons (MLPs unless `expand_neurons`), embeddings and biases."""
        end, chosen = self.end_of(layer), Slice.of(pos_slice)
        stack, labels = self.stack_head_results(end + mlp_input, return_labels=True, pos_slice=chosen)
        parts: list[Tensor] = [stack]
        if end > 0:
            if expand_neurons:
                more = self.stack_neuron_results(end, pos_slice=chosen, return_labels=True)
            else:
                more = self.decompose_resid(
                    end, mlp_input, "mlp", pos_slice=chosen, incl_embeds=False, return_labels=True
                )
            parts.append(more[0])
            labels = [*labels, *more[1]]
        embeddings = self._embeddings()
        parts += [chosen.apply(value, dim=-2)[None] for _, value in embeddings]
        bias = self.model.accumulated_bias(end, mlp_input, include_mlp_biases=expand_neurons).detach()
        parts.append(bias.expand(1, *parts[-1].shape[1:]))
        labels = [*labels, *(label for label, _ in embeddings), "bias"]
        whole = torch.cat(parts)
        whole = self.apply_ln_to_stack(whole, layer, mlp_input, chosen) if apply_ln else whole
        return (whole, labels) if return_labels else whole

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: Any,
        incorrect_tokens: Any = None,
        pos_slice: Any = None,
        batch_slice: Any = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """What each entry of a stack adds to the logit of a token, or to a difference of two, [N, ...].

        A token is a text or an id, or ids for each row [B] or each position [B, P]. The last norm divides by the run's
        own statistics; its gain and bias are left out, as in HookedTransformer, unless they were folded.
        `pellucid.attribution.direct` has them.
        """
        chosen = Slice.of(batch_slice)
        directions = self.model.tokens_to_residual_directions(tokens)
        if incorrect_tokens is not None:
            directions = directions - self.model.tokens_to_residual_directions(incorrect_tokens)
        scaled = self.apply_ln_to_stack(
            residual_stack, -1, pos_slice=pos_slice, batch_slice=chosen, has_batch_dim=has_batch_dim
        )
        directions = directions.detach().to(scaled.device)
        if directions.dim() > 1 and has_batch_dim:
            directions = chosen.apply(directions)
        while 1 < directions.dim() < scaled.dim() - 1:  # one direction for each row, at every position
            directions = directions.unsqueeze(-2)
        return (scaled * directions).sum(-1)

    def apply_ln_to_stack(
        self, residual_stack: Tensor, layer: int | None = None, mlp_input: bool = False, pos_slice: Any = None,
        batch_slice: Any = None, has_batch_dim: bool = True, recompute_ln: bool = False,
    ) -> Tensor:  # fmt: skip
        """Divide a stack by the statistics that a norm had in this run, after centring; gains and biases are left out.

        The norm is the first of a block, or with `mlp_input` its second; the last one if `layer` is None or -1, which
        `recompute_ln` applies itself, with each entry's own statistics.
        """
        rows, end = Slice.of(batch_slice), self.end_of(layer)
        last = end == self.model.cfg.n_layers
        stack = rows.apply(residual_stack, dim=1) if has_batch_dim else residual_stack
        if recompute_ln and last:
            with torch.no_grad():
                return self.model.ln_final(stack)  # pyright: ignore[reportCallIssue]
        if (self.model.cfg.normalization_type or "").startswith("LN"):
            stack = stack - stack.mean(-1, keepdim=True)
        scale = self["ln_final.hook_scale" if last else f"blocks.{end}.ln{2 if mlp_input else 1}.hook_scale"]
        scale = Slice.of(pos_slice).apply(scale, dim=-2)
        return stack / (rows.apply(scale) if self.has_batch_dim else scale)

    def end_of(self, layer: int | None) -> int:
        """The block that is entered; None and -1 are the end."""
        layers = self.model.cfg.n_layers
        return layers if layer is None or layer == -1 else block_of(layer, layers, "cache: layer")

    def _embeddings(self) -> list[tuple[str, Tensor]]:
        kept = [("embed", "hook_embed"), ("pos_embed", "hook_pos_embed")]
        return [(label, self[name]) for label, name in kept if name in self.cache_dict]

    @staticmethod
    def _stacked(found: Iterable[tuple[str, Tensor]], pos_slice: Any) -> Tensor:
        chosen = Slice.of(pos_slice)
        return torch.stack([chosen.apply(value, dim=-2) for _, value in found])

    def _finished(
        self, parts: list[Tensor], labels: list[str], layer: int | None, chosen: Slice, incl_remainder: bool,
        apply_ln: bool, return_labels: bool,
    ) -> Labelled:  # fmt: skip
        """The parts in one stack, an empty one if there are none, and what was asked for beside them."""
        end = self.end_of(layer)
        whole = chosen.apply(self["resid_post", end - 1] if end else self["resid_pre", 0], dim=-2)
        stack = torch.cat(parts) if parts else whole.new_zeros(0, *whole.shape)
        if incl_remainder:
            labels.append("remainder")
            stack = torch.cat([stack, (whole - stack.sum(0))[None]])
        stack = self.apply_ln_to_stack(stack, layer, pos_slice=chosen) if apply_ln else stack
        return (stack, labels) if return_labels else stack
