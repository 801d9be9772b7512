"""GPT-NeoX as a family."""

from __future__ import annotations

from pellucid import rotary
from pellucid.family import Family, InTransformers, Recognition, later
from pellucid.neox import layouts, model, schema
from pellucid.neox.config import GPTNeoXConfig

NEOX = Family(
    name="gpt_neox",
    config=GPTNeoXConfig,
    architecture=model.ARCHITECTURE,
    schema_of=schema.of_sizes,
    in_transformers=InTransformers(
        config="GPTNeoXConfig",
        model="GPTNeoXForCausalLM",
        base="GPTNeoXModel",
        live="pellucid.neox.live",
        buffers={rotary.FREQUENCIES: "gpt_neox.rotary_emb.inv_freq"},
        files=layouts.FILES,
    ),
    layouts=layouts.LAYOUTS,
    kernels=None,
    layout_of=layouts.detect,
    differing=layouts.differing,
    adopt=rotary.adopt,
    recognition=Recognition(layouts.configs),
    dropouts=("attention_dropout", "hidden_dropout"),
    mistakes=later("pellucid.neox.mistakes", "mistakes"),
)
