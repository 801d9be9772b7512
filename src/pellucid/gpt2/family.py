"""GPT-2 as a family."""

from __future__ import annotations

from pellucid.family import Family
from pellucid.gpt2 import layouts, model, schema
from pellucid.gpt2.config import TransformerConfig, published_fields

GPT2 = Family(
    name="gpt2",
    config=TransformerConfig,
    build=model.build,
    transform=model.transform,
    schema_of=schema.of_sizes,
    published=published_fields,
    layouts=layouts.LAYOUTS,
    layout_of=layouts.detect,
    differing=layouts.differing,
)
