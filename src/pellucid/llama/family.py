"""Llama as a family."""

from __future__ import annotations

from pellucid import rotary
from pellucid.family import Family, InTransformers, Recognition, later
from pellucid.llama import layouts, model, schema
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
        live="pellucid.llama.live",
        buffers={rotary.FREQUENCIES: "model.rotary_emb.inv_freq"},
    ),
    layouts=layouts.LAYOUTS,
    kernels=None,
    layout_of=layouts.detect,
    differing=layouts.differing,
    adopt=rotary.adopt,
    recognition=Recognition(layouts.configs),
    dropouts=("attention_dropout",),
    mistakes=later("pellucid.llama.mistakes", "mistakes"),
)
