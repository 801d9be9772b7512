"""Llama as a family."""

from __future__ import annotations

from pellucid import rotary
from pellucid.family import Family, InTransformers, Recognition
from pellucid.llama import layouts, live, model, schema
from pellucid.llama.config import LlamaConfig

LLAMA = Family(
    name="llama",
    config=LlamaConfig,
    architecture=model.ARCHITECTURE,
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
    kernels=None,
    layout_of=layouts.detect,
    differing=layouts.differing,
    adopt=rotary.adopt,
    recognition=Recognition(layouts.configs),
    dropouts=("attention_dropout",),
)
