"""HookedTransformer's short names of values."""

from __future__ import annotations

import re

_LAYER_TYPES = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}
_VALUES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v", "mlp_pre": "pre",
    "mlp_post": "post",
}  # fmt: skip
_PLACES = {
    **dict.fromkeys(("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"), "attn"),
    **dict.fromkeys(("pre", "post", "pre_linear"), "mlp"),
}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of a hook point.

    Args:
        name: A full name, which is returned, or a short one, such as "k", "pattern6" or "scale4ln1".
        layer: The block.
        layer_type: "attn" ("a"), "mlp" ("m"), "ln1" or "ln2", where a block has several values of that name.

    Example:
        >>> from pellucid.compat.hooked import utils
        >>> utils.get_act_name("k", 6, "a"), utils.get_act_name("pre5"), utils.get_act_name("scale4ln1")
        ('blocks.6.attn.hook_k', 'blocks.5.mlp.hook_pre', 'blocks.4.ln1.hook_scale')
        >>> utils.get_act_name("embed"), utils.get_act_name("normalized")
        ('hook_embed', 'ln_final.hook_normalized')
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if match := re.fullmatch(r"([a-z_]+)(\d+)([a-z]?.*)", name):
        name, layer, layer_type = match[1], match[2], match[3] or layer_type
    name = _VALUES.get(name, name)
    place = _PLACES.get(name) or _LAYER_TYPES.get(layer_type or "", layer_type or "")
    if name in ("scale", "normalized") and layer is None:
        place = place or "ln_final"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{place}{'.' if place else ''}hook_{name}"
