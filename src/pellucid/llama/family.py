"""Llama as a family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor

from pellucid.family import Family, InTransformers, Recognition
from pellucid.llama import layouts, live, model, rotary, schema
from pellucid.llama.config import LlamaConfig
from pellucid.llama.model import TransformerBlock
from pellucid.network import Network


def _matrices(network: Network) -> Iterator[Tensor]:
    """Each matrix as [in, out], in the order in which a step reads them."""
    for block in cast("Iterable[TransformerBlock]", network.blocks):
        for name in ("W_Q", "W_K", "W_V"):
            yield getattr(block.attn, name).transpose(0, 1).flatten(1)
        yield block.attn.W_O.flatten(0, 1)
        yield from (block.mlp.W_gate, block.mlp.W_in, block.mlp.W_out)
    yield network.unembed.weight.T


LLAMA = Family(
    name="llama",
    config=LlamaConfig,
    build=model.build,
    transform=model.transform,
    schema_of=schema.of_sizes,
    in_transformers=InTransformers(
        config="LlamaConfig",
        model="LlamaForCausalLM",
        base="LlamaModel",
        read=live.read,
        stored=live.stored,
        turned=live.turned,
        shown=live.shown_by,
        buffers={live.FREQUENCIES: "model.rotary_emb.inv_freq"},
    ),
    layouts=layouts.LAYOUTS,
    matrices=_matrices,
    kernels=None,
    layout_of=layouts.detect,
    differing=layouts.differing,
    adopt=rotary.adopt,
    recognition=Recognition(layouts.configs),
    dropouts=("attention_dropout",),
)
