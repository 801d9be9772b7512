"""Names without what was put around the model: wrappers of trainers and compilers, and one common prefix.

A trainer keeps its model under a name of its own (`model.`, `gpt2.`, `pretrained_model.`, `lm.model.`), and wrappers
add segments in front of names and within them (`h.0._orig_mod.ln_1.weight`). The names of a GPT-2's weights are known,
so its prefix is whatever stands in front of them; nobody has to list the trainers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
    r"|base_layer)\."
)
"""DDP, DataParallel and DeepSpeed; Opacus; torch.compile; Fabric; FSDP; activation checkpointing; PEFT."""

_OLD = {"gamma": "weight", "beta": "bias"}
_OLD_NORM = re.compile(r"((?:^|\.)ln_(?:1|2|f)\.)(gamma|beta)$")
"""TensorFlow's names for a LayerNorm's gain and bias, in weights that were converted long ago."""

_GPT2 = (
    r"(?:wte|wpe)\.weight|ln_f\.(?:weight|bias)"
    r"|h\.\d+\.(?:ln_[12]|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(?:weight|bias)"
)
_BLOCKS = (
    r"embed\.W_E|pos_embed\.W_pos|ln_final\.[wb]"
    r"|blocks\.\d+\.(?:ln[12]\.[wb]|attn\.[Wb]_(?:Q|K|V|O|QKV)|mlp\.[Wb]_(?:in|out))"
)
_WEIGHT = re.compile(rf"((?:[^.]+\.)*?)(?:(?:transformer\.)?(?:{_GPT2})|{_BLOCKS})")
_LONGEST = 400
"""Characters; a longer name is no weight of a GPT-2."""


def unwrapped(name: str) -> str:
    """A name without the segments of wrappers, and with today's names of a LayerNorm's parameters."""
    if len(name) > _LONGEST:
        return name
    return _OLD_NORM.sub(lambda found: found[1] + _OLD[found[2]], _WRAPPERS.sub("", name))


def prefixes_of(names: Iterable[str]) -> dict[str, int]:
    """What stands in front of a GPT-2's weights -> how many of them; several for the weights of several models."""
    found: Counter[str] = Counter()
    for name in names:
        match = _WEIGHT.fullmatch(unwrapped(name)) if len(name) <= _LONGEST else None
        if match is not None:
            found[match[1]] += 1
    return dict(found)


def canonical_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Names as transformers has them, with its prefix and without wrappers and others' prefixes -> the names given.

    Of several models' weights none is chosen: their prefixes stay.
    """
    names = list(names)
    found = prefixes_of(names)
    prefix = next(iter(found)) if len(found) == 1 else ""
    canonical: dict[str, list[str]] = {}
    for name in names:
        canonical.setdefault(prefixed(unwrapped(name).removeprefix(prefix)), []).append(name)
    return canonical


def prefixed(name: str) -> str:
    """A name with transformers' prefix, which a model without a head does not write."""
    return f"transformer.{name}" if re.match(r"(wte|wpe|ln_f|h\.\d+)\.", name) else name


def beside(names: Iterable[str]) -> set[str]:
    """The names that do not lie under the one prefix of the model's weights; none where there is no prefix."""
    names = list(names)
    found = prefixes_of(names)
    prefix = next(iter(found)) if len(found) == 1 else ""
    return {name for name in names if not unwrapped(name).startswith((prefix, "lm_head."))}
