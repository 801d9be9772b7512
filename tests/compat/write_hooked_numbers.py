"""Writes `tests/data/hooked_numbers.json` from TransformerLens' own HookedTransformer (versions 2 and 3 have it).

python tests/compat/write_hooked_numbers.py
"""

from __future__ import annotations

import json
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hooked_calls import CALLS, Library, numbers_of

from pellucid.compat.hooked import HookedTransformer

PAGE = Path(__file__).parents[1] / "data" / "hooked_numbers.json"


def theirs() -> Library:
    """TransformerLens' model with the bundled weights in float64, and its modules."""
    import transformer_lens
    import transformers

    ours = HookedTransformer.from_pretrained_no_processing("bundled", dtype="float64")
    folder = tempfile.mkdtemp()  # it stays: TransformerLens opens the tokenizer again
    ours.model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cfg = ours.cfg
    settings: dict[str, Any] = {
        name: getattr(cfg, name)
        for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn", "eps", "dtype")
    }
    config = transformer_lens.HookedTransformerConfig(**settings, normalization_type="LN", device="cpu")
    model = transformer_lens.HookedTransformer(config, tokenizer=tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            module: Any = ours
            *places, last = name.split(".")
            for place in places:
                module = module[int(place)] if place.isdigit() else getattr(module, place)
            parameter.copy_(getattr(module, last))
    return Library(model, transformer_lens.utils, transformer_lens.patching)


if __name__ == "__main__":
    library = theirs()
    found = {name: numbers_of(call(library)) for name, call in CALLS.items()}
    about = {"source": f"transformer_lens {metadata.version('transformer_lens')}", "torch": torch.__version__}
    PAGE.write_text(json.dumps({"about": about, "numbers": found}, indent=0) + "\n", encoding="utf-8")
    print(f"{len(found)} calls -> {PAGE}")
