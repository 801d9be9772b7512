"""Other people's names for the tensors of a GPT-NeoX: one table, read both ways.

Source of the names: transformers' modeling_gpt_neox.py; in its files the head keeps the name of earlier versions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from pellucid.family.layout import (
    EMBED,
    HEAD,
    HEAD_ROWS,
    SAME,
    Buffer,
    Laid,
    Layout,
    Row,
    own_layout,
    shown_sizes,
)
from pellucid.neox.config import GPTNeoXConfig
from pellucid.neox.schema import of_sizes

_OUT, _MATRIX = Laid((2, 0, 1), merged=1), Laid((1, 0))

_FOLLOWS = "frequencies of older files, which follow from the configuration"


def _block(theirs: str, ours: str, transform: Any = SAME) -> tuple[Row, Row]:
    """A matrix or a gain, and its bias."""
    bias = ours.replace("W_", "b_") if "W_" in ours else ours[:-1] + "b"
    of_layer = f"gpt_neox.layers.{{i}}.{theirs}"
    return (
        Row((f"{of_layer}.weight",), f"blocks.{{i}}.{ours}", transform),
        Row((f"{of_layer}.bias",), f"blocks.{{i}}.{bias}"),
    )


HF = Layout(
    "hf",
    (
        Row(("gpt_neox.embed_in.weight",), EMBED),
        *_block("input_layernorm", "ln1.w"),
        *_block("attention.query_key_value", "attn.W_QKV", _MATRIX),
        *_block("attention.dense", "attn.W_O", _OUT),
        *_block("post_attention_layernorm", "ln2.w"),
        *_block("mlp.dense_h_to_4h", "mlp.W_in", _MATRIX),
        *_block("mlp.dense_4h_to_h", "mlp.W_out", _MATRIX),
        Row(("gpt_neox.final_layer_norm.weight",), "ln_final.w"),
        Row(("gpt_neox.final_layer_norm.bias",), "ln_final.b"),
    ),
    Row(("lm_head.weight",), HEAD, HEAD_ROWS),
    (
        Buffer("gpt_neox.layers.{i}.attention.bias", (1, 1, "n", "n")),
        Buffer("gpt_neox.layers.{i}.attention.masked_bias", ()),
        Buffer("gpt_neox.layers.{i}.attention.rotary_emb.inv_freq", ("rot/2",), _FOLLOWS),
        Buffer("gpt_neox.rotary_emb.inv_freq", ("rot/2",), _FOLLOWS),
    ),
)
FILES = replace(HF, head=Row(("embed_out.weight",), HEAD, HEAD_ROWS))
"""The names in files that transformers writes and reads."""

OWN = own_layout(of_sizes({"layer": 1}))
LAYOUTS = (HF, FILES, OWN)


def detect(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of tensors under canonical names, or None."""
    if any(name.startswith(("gpt_neox.layers.", "gpt_neox.embed_in.")) for name in tensors):
        return FILES if FILES.head.theirs[0] in tensors else HF
    if any(name.endswith(".attn.W_QKV") and tensor.dim() == 2 for name, tensor in tensors.items()):
        return OWN if not any(name.startswith("pos_embed.") for name in tensors) else None
    return None


def differing(theirs: Mapping[str, Tensor], layout: Layout, config: GPTNeoXConfig) -> dict[str, Any]:
    """The sizes that tensors under canonical names show and the configuration says otherwise; heads are not looked at.

    Raises:
        KeyError: If the embedding or the first block is not there.
    """
    return {name: value for name, value in _shown(theirs, layout).items() if value != getattr(config, name)}


def configs(theirs: Mapping[str, Tensor], layout: Layout) -> Iterator[GPTNeoXConfig]:
    """The configurations that tensors under canonical names fit, the widest heads first, parallel blocks first.

    Raises:
        KeyError: As `differing`.
    """
    shown: dict[str, Any] = {"intermediate_size": 1, **_shown(theirs, layout)}
    tied = layout.head.theirs[0] not in theirs
    for heads in (count for count in range(1, shown["hidden_size"] + 1) if shown["hidden_size"] % count == 0):
        for parallel in (True, False):
            yield GPTNeoXConfig(
                **shown, num_attention_heads=heads, tie_word_embeddings=tied, use_parallel_residual=parallel
            )


def _shown(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """What tensors show of a configuration, by its fields."""
    return shown_sizes(theirs, layout, "mlp.W_in", {"attention_bias": "attn.b_QKV"})
