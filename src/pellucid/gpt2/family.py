"""GPT-2 as a family."""

from __future__ import annotations

from pellucid.family import Family, InTransformers, Kernels, Recognition, later
from pellucid.gpt2 import kernels, layouts, model, schema
from pellucid.gpt2.config import TransformerConfig

GPT2 = Family(
    name="gpt2",
    config=TransformerConfig,
    architecture=model.ARCHITECTURE,
    schema_of=schema.of_sizes,
    in_transformers=InTransformers(
        config="GPT2Config",
        model="GPT2LMHeadModel",
        base="GPT2Model",
        live="pellucid.gpt2.live",
    ),
    layouts=layouts.LAYOUTS,
    kernels=Kernels(kernels.take, kernels.decoder, kernels.bytes_needed, kernels.forget),
    layout_of=layouts.detect,
    differing=layouts.differing,
    unseen={"attn.b_K": "softmax ignores q · b_K, which is the same for every key"},
    recognition=Recognition(
        later("pellucid.gpt2.recognition", "configs"), later("pellucid.gpt2.recognition", "readings")
    ),
    dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    suspects=later("pellucid.gpt2.suspects", "suspects"),
)
