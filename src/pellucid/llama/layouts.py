"""Other people's names for the tensors of a Llama: one table per layout, read both ways.

Source of the names: transformers' modeling_llama.py.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pellucid.errors import ConfigError
from pellucid.family.layout import (
    EMBED,
    HEAD,
    HEAD_ROWS,
    MERGE_HEADS,
    SAME,
    Buffer,
    Laid,
    Layout,
    Row,
    own_layout,
    shown_sizes,
)
from pellucid.llama.config import LlamaConfig
from pellucid.llama.schema import of_sizes

_HEADS, _OUT, _MATRIX = Laid((0, 2, 1), merged=0), Laid((2, 0, 1), merged=1), Laid((1, 0))

_FOLLOWS = "frequencies of older files, which follow from the configuration"


def _block(theirs: str, ours: str, transform: Any = SAME) -> Row:
    return Row((f"model.layers.{{i}}.{theirs}",), f"blocks.{{i}}.{ours}", transform)


HF = Layout(
    "hf",
    (
        Row(("model.embed_tokens.weight",), EMBED),
        _block("input_layernorm.weight", "ln1.w"),
        *(_block(f"self_attn.{x}_proj.weight", f"attn.W_{x.upper()}", _HEADS) for x in "qkv"),
        *(_block(f"self_attn.{x}_proj.bias", f"attn.b_{x.upper()}", MERGE_HEADS) for x in "qkv"),
        _block("self_attn.o_proj.weight", "attn.W_O", _OUT),
        _block("self_attn.o_proj.bias", "attn.b_O"),
        _block("post_attention_layernorm.weight", "ln2.w"),
        _block("mlp.gate_proj.weight", "mlp.W_gate", _MATRIX),
        _block("mlp.gate_proj.bias", "mlp.b_gate"),
        _block("mlp.up_proj.weight", "mlp.W_in", _MATRIX),
        _block("mlp.up_proj.bias", "mlp.b_in"),
        _block("mlp.down_proj.weight", "mlp.W_out", _MATRIX),
        _block("mlp.down_proj.bias", "mlp.b_out"),
        Row(("model.norm.weight",), "ln_final.w"),
    ),
    Row(("lm_head.weight",), HEAD, HEAD_ROWS),
    (
        Buffer("model.layers.{i}.self_attn.rotary_emb.inv_freq", ("rot/2",), _FOLLOWS),
        Buffer("model.rotary_emb.inv_freq", ("rot/2",), _FOLLOWS),
    ),
)


OWN = own_layout(of_sizes({"layer": 1}))
LAYOUTS = (HF, OWN)


def detect(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of tensors under canonical names, or None."""
    if any(name.startswith(("model.layers.", "model.embed_tokens.")) for name in tensors):
        return HF
    if any(re.search(r"\.mlp\.W_gate$", name) for name in tensors):
        return OWN
    return None


def differing(theirs: Mapping[str, Tensor], layout: Layout, config: LlamaConfig) -> dict[str, Any]:
    """The sizes that tensors under canonical names show and the configuration says otherwise; heads are not looked at.

    Raises:
        KeyError: If the embedding or a block is not there, or the embedding is no matrix.
    """
    return {name: value for name, value in _shown(theirs, layout).items() if value != getattr(config, name)}


def configs(theirs: Mapping[str, Tensor], layout: Layout) -> Iterator[LlamaConfig]:
    """The configurations that tensors under canonical names fit, the widest heads first, unless they show their width.

    Raises:
        KeyError: As `differing`.
    """
    shown, names = _shown(theirs, layout), {row.ours: row.theirs[0] for row in layout.rows}
    tied = layout.head.theirs[0] not in theirs
    if not shown["num_hidden_layers"]:
        yield LlamaConfig(**shown, intermediate_size=1, num_attention_heads=1, tie_word_embeddings=tied)
        return
    queries, keys = (theirs[names[f"blocks.{{i}}.attn.W_{letter}"].replace("{i}", "0")] for letter in "QK")
    rows = [matrix.numel() // shown["hidden_size"] for matrix in (queries, keys)]
    widths = (queries.shape[-1],) if queries.dim() == 3 else range(math.gcd(*rows), 1, -1)
    for width in widths:
        if not any(count % width for count in rows):
            heads = {"num_attention_heads": rows[0] // width, "num_key_value_heads": rows[1] // width}
            with contextlib.suppress(ConfigError):  # an odd width, or heads that do not divide
                yield LlamaConfig(**shown, **heads, head_dim=width, tie_word_embeddings=tied)


def _shown(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """What tensors show of a configuration, by its fields."""
    biases = {"attention_bias": "attn.b_Q", "mlp_bias": "mlp.b_gate"}
    return shown_sizes(theirs, layout, "mlp.W_gate", biases)
