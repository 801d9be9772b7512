"""HookedTransformer's activation patching: one run for each patch, as there. `pellucid.patching.sweep` shares runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.compat.hooked.activation_cache import ActivationCache
from pellucid.compat.hooked.hook_tap import HookPoint
from pellucid.compat.hooked.transformer import HookedTransformer
from pellucid.compat.hooked.utils import get_act_name
from pellucid.errors import InputError, ShapeError, shown

if TYPE_CHECKING:
    import pandas as pd

Setter = Callable[[Tensor, Sequence[int], Tensor], Tensor]
"""`(corrupted value, index, clean value)` -> the value with the patch; it may write into the corrupted one."""

Metric = Callable[[Tensor], Tensor]
"""Logits [B, P, V] -> one number."""


def generic_activation_patch(
    model: HookedTransformer,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
) -> Any:
    """Put parts of a clean run's value into a corrupted run, one after the other, and measure each.

    Args:
        model: What runs.
        corrupted_tokens: [B, P].
        clean_cache: The values of the clean run.
        patching_metric: Logits -> one number.
        patch_setter: Puts one part there; see `Setter`.
        activation_name: The value, in short, such as "z".
        index_axis_names: What an index is made of: "layer" first, then of "pos", "head", "head_index", "dest_pos" and
            "src_pos". Every index is tried.
        index_df: A table with the indices to try instead, one a row.
        return_index_df: Whether to return the table of indices, too.

    Returns:
        The metric after each patch: an axis for each name, or [rows of the table].

    Raises:
        InputError: If both or neither of `index_axis_names` and `index_df` are given.
    """
    _require_given(model, corrupted_tokens, clean_cache, patching_metric)
    if (index_axis_names is None) == (index_df is None):
        raise InputError(
            "generic_activation_patch: give either index_axis_names or index_df.",
            code="patch-indices",
            remedy="index_axis_names=('layer', 'pos') tries every index; index_df says which.",
        )
    sizes: list[int] = []
    if index_df is None:
        lengths = _lengths(model, corrupted_tokens, activation_name)
        sizes = [lengths[name] for name in index_axis_names or ()]
        indices = list(itertools.product(*map(range, sizes)))
    else:
        indices = [tuple(int(number) for number in row) for row in index_df.itertuples(index=False)]
    numbers: list[float] = []
    for index in indices:
        name = get_act_name(activation_name, index[0])
        hook = _Patch(patch_setter, index, clean_cache[name])
        measured = patching_metric(model.run_with_hooks(corrupted_tokens, fwd_hooks=[(name, hook)]))
        numbers.append(_one_number(measured))
    result = torch.tensor(numbers, device=model.model.device)
    result = result if index_df is not None else result.reshape(sizes)
    if not return_index_df:
        return result
    return result, index_df if index_df is not None else make_df_from_ranges(sizes, index_axis_names or ())


def _require_given(model: Any, tokens: Any, cache: Any, metric: Any) -> None:
    """Refuse arguments of another kind, such as two in the wrong order."""
    for what, given, fits, remedy in (
        ("model", model, isinstance(model, HookedTransformer), "Give the HookedTransformer first."),
        ("corrupted_tokens", tokens, isinstance(tokens, Tensor), "Give ids [B, P]: model.to_tokens(texts)."),
        ("clean_cache", cache, isinstance(cache, (ActivationCache, dict)),
         "Give the cache of model.run_with_cache(clean_tokens)."),
        ("patching_metric", metric, callable(metric), "Give a function of the logits that returns one number."),
    ):  # fmt: skip
        if not fits:
            raise InputError(f"patching: {what}={shown(given)}.", code="patch-arguments", remedy=remedy)


def _one_number(measured: Any) -> float:
    """What a metric returned."""
    value = measured.detach() if isinstance(measured, Tensor) else torch.as_tensor(measured, device="cpu")
    if value.numel() != 1:
        raise ShapeError(
            f"patching_metric: a tensor {list(value.shape)} returned, expected one number.",
            code="metric-shape",
            remedy="Return the mean over texts: metric(logits).mean().",
        )
    return value.item()


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> pd.DataFrame:
    """Every index below these numbers, one a row."""
    import pandas as pd

    return pd.DataFrame(list(itertools.product(*map(range, column_max_ranges))), columns=list(column_names))


def _setter(*places: int | None) -> Setter:
    """Puts one part of a clean value there: of each axis the index's entry at a place, or all of it."""

    def put(corrupted_activation: Tensor, index: Sequence[int], clean_activation: Tensor) -> Tensor:
        part = tuple(slice(None) if place is None else index[place] for place in places)
        corrupted_activation[part] = clean_activation[part]
        return corrupted_activation

    return put


# The first entry of an index is the layer. Values are [B, P, H, K], scores and patterns [B, H, Pq, Pk].
layer_pos_patch_setter = _setter(None, 1)
layer_pos_head_vector_patch_setter = _setter(None, 1, 2)
layer_head_vector_patch_setter = _setter(None, None, 1)
layer_head_pattern_patch_setter = _setter(None, 1)
layer_head_pos_pattern_patch_setter = _setter(None, 1, 2)
layer_head_dest_src_pos_pattern_patch_setter = _setter(None, 1, 2, 3)

OWN = (
    layer_pos_patch_setter, layer_pos_head_vector_patch_setter, layer_head_vector_patch_setter,
    layer_head_pattern_patch_setter, layer_head_pos_pattern_patch_setter, layer_head_dest_src_pos_pattern_patch_setter,
)  # fmt: skip
"""The setters that put a position into the same one, so values of unequal lengths do not belong together."""


def _sweep(activation_name: str, setter: Setter, *axes: str) -> Callable[..., Any]:
    return partial(
        generic_activation_patch, patch_setter=setter, activation_name=activation_name, index_axis_names=axes
    )


get_act_patch_resid_pre = _sweep("resid_pre", layer_pos_patch_setter, "layer", "pos")
get_act_patch_resid_mid = _sweep("resid_mid", layer_pos_patch_setter, "layer", "pos")
get_act_patch_attn_out = _sweep("attn_out", layer_pos_patch_setter, "layer", "pos")
get_act_patch_mlp_out = _sweep("mlp_out", layer_pos_patch_setter, "layer", "pos")
get_act_patch_attn_head_out_by_pos = _sweep("z", layer_pos_head_vector_patch_setter, "layer", "pos", "head")
get_act_patch_attn_head_q_by_pos = _sweep("q", layer_pos_head_vector_patch_setter, "layer", "pos", "head")
get_act_patch_attn_head_k_by_pos = _sweep("k", layer_pos_head_vector_patch_setter, "layer", "pos", "head")
get_act_patch_attn_head_v_by_pos = _sweep("v", layer_pos_head_vector_patch_setter, "layer", "pos", "head")
get_act_patch_attn_head_out_all_pos = _sweep("z", layer_head_vector_patch_setter, "layer", "head")
get_act_patch_attn_head_q_all_pos = _sweep("q", layer_head_vector_patch_setter, "layer", "head")
get_act_patch_attn_head_k_all_pos = _sweep("k", layer_head_vector_patch_setter, "layer", "head")
get_act_patch_attn_head_v_all_pos = _sweep("v", layer_head_vector_patch_setter, "layer", "head")
get_act_patch_attn_head_pattern_all_pos = _sweep("pattern", layer_head_pattern_patch_setter, "layer", "head_index")
get_act_patch_attn_head_pattern_by_pos = _sweep(
    "pattern", layer_head_pos_pattern_patch_setter, "layer", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _sweep(
    "pattern", layer_head_dest_src_pos_pattern_patch_setter, "layer", "head_index", "dest_pos", "src_pos"
)


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Tensor:
    """[5, layer, head]: z, queries, keys, values and patterns of each head, patched at every position at once."""
    sweeps = (
        get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos, get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos, get_act_patch_attn_head_pattern_all_pos,
    )  # fmt: skip
    return _together([sweep(model, corrupted_tokens, clean_cache, metric) for sweep in sweeps])


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Tensor:
    """[5, layer, pos, head]: z, queries, keys, values and patterns of each head at each position."""
    sweeps = (
        get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos, get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos, get_act_patch_attn_head_pattern_by_pos,
    )  # fmt: skip
    found = [sweep(model, corrupted_tokens, clean_cache, metric) for sweep in sweeps]
    return _together([*found[:-1], found[-1].transpose(1, 2)])


def get_act_patch_block_every(
    model: HookedTransformer, corrupted_tokens: Tensor, clean_cache: ActivationCache, metric: Metric
) -> Tensor:
    """[3, layer, pos]: the stream before each block, what attention adds and what the MLP adds."""
    sweeps = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([sweep(model, corrupted_tokens, clean_cache, metric) for sweep in sweeps])


def _together(sweeps: list[Tensor]) -> Tensor:
    """Sweeps in one tensor; zeros if keys and values have fewer heads."""
    heads = max(sweep.shape[-1] for sweep in sweeps)
    return torch.stack([F.pad(sweep, (0, heads - sweep.shape[-1])) for sweep in sweeps])


def _lengths(model: HookedTransformer, tokens: Tensor, activation_name: str) -> dict[str, int]:
    """How many indices each axis has."""
    heads, positions = model.cfg.n_heads, tokens.shape[-1]
    if activation_name in ("k", "v") and model.cfg.n_key_value_heads is not None:
        heads = model.cfg.n_key_value_heads
    return {"layer": model.cfg.n_layers, **dict.fromkeys(("pos", "dest_pos", "src_pos"), positions),
            **dict.fromkeys(("head", "head_index"), heads)}  # fmt: skip


@dataclass(frozen=True)
class _Patch:
    """The hook that puts one part of a clean value there."""

    setter: Setter
    index: Sequence[int]
    clean: Tensor

    def __call__(self, value: Tensor, hook: HookPoint) -> Tensor:
        try:
            if self.setter in OWN and self.clean.shape != value.shape:
                raise IndexError("their positions do not belong together")
            return self.setter(value.clone() if value.requires_grad else value, self.index, self.clean)
        except (IndexError, RuntimeError) as problem:
            raise ShapeError(
                f"patching at {hook.name}, {self.index}: clean values {list(self.clean.shape)} into corrupted ones "
                f"{list(value.shape)}: {problem}.",
                code="patch-arguments",
                remedy="Give a cache of as many texts, of the same lengths; pl.patching.sweep takes align= for others.",
            ) from problem
