"""Other libraries' names for the same values, accepted on the way in.

An alias is accepted only where it denotes the same value; a name that is close but not the same is refused
with the reason. Two vocabularies are known: HookedTransformer's hooks (of a model whose weights were not
folded) and transformers' module paths (their outputs).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import cast

from pellucid.ckpt import BLOCK, select
from pellucid.errors import UnknownNameError

_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "ln1.hook_normalized": "ln1.ckpt_normalized",
    "attn.hook_q": "attn.ckpt_q",
    "attn.hook_k": "attn.ckpt_k",
    "attn.hook_v": "attn.ckpt_v",
    "attn.hook_attn_scores": "attn.ckpt_scores",
    "attn.hook_pattern": "attn.ckpt_pattern",
    "attn.hook_z": "attn.ckpt_z",
    "hook_attn_out": "attn.ckpt_attn_out",
    "hook_resid_mid": "resid_mid",
    "ln2.hook_normalized": "ln2.ckpt_normalized",
    "mlp.hook_pre": "mlp.ckpt_pre",
    "mlp.hook_post": "mlp.ckpt_post",
    "hook_mlp_out": "mlp.ckpt_mlp_out",
    "hook_resid_post": "resid_post",
}
_HOOKS_AROUND = {
    "hook_embed": "ckpt_embed",
    "hook_pos_embed": "ckpt_pos_embed",
    "ln_final.hook_normalized": "ln_final.ckpt_normalized",
}
_MODULES = {
    "ln_1": "ln1.ckpt_normalized",
    "attn": "attn.ckpt_attn_out",
    "attn.resid_dropout": "attn.ckpt_attn_out",
    "ln_2": "ln2.ckpt_normalized",
    "mlp.c_fc": "mlp.ckpt_pre",
    "mlp.act": "mlp.ckpt_post",
    "mlp": "mlp.ckpt_mlp_out",
    "mlp.dropout": "mlp.ckpt_mlp_out",
    "": "resid_post",
}
_MODULES_AROUND = {
    "wte": "ckpt_embed",
    "wpe": "ckpt_pos_embed",
    "drop": "blocks.0.resid_pre",
    "ln_f": "ln_final.ckpt_normalized",
}
_SHORT = {
    "embed": "ckpt_embed",
    "pos_embed": "ckpt_pos_embed",
    "attn_scores": "attn.ckpt_scores",
    **{name.rsplit(".", 1)[-1].removeprefix("ckpt_"): name for name in BLOCK if not name.startswith("ln")},
}
"""The short names of `("pattern", 0)`; layer norms need their third part, `("normalized", 0, "ln1")`."""

_REFUSED = {
    "hook_scale": "it is the divisor sqrt(var + eps); here `ckpt_scaled` holds the quotient",
    "attn.hook_result": "per-head outputs are not computed; each is ckpt_z[:, :, h] @ W_O[h]",
    "hook_q_input": "the input is not split by head; it is ln1.ckpt_normalized",
    "hook_k_input": "the input is not split by head; it is ln1.ckpt_normalized",
    "hook_v_input": "the input is not split by head; it is ln1.ckpt_normalized",
    "hook_attn_in": "the input is not split by head; it is resid_pre",
    "hook_mlp_in": "it is a copy of resid_mid; ask for resid_mid",
    "attn.c_attn": "its output is q, k and v side by side; ask for attn.ckpt_q, attn.ckpt_k, attn.ckpt_v",
    "attn.c_proj": "its output is taken before dropout; attn.ckpt_attn_out is what is added to the residual stream",
    "mlp.c_proj": "its output is taken before dropout; mlp.ckpt_mlp_out is what is added to the residual stream",
    "attn.attn_dropout": "its output is taken after dropout; attn.ckpt_pattern is the pattern before it",
    "lm_head": "its output are the logits, which every run returns",
    "unembed": "its output are the logits, which every run returns",
}

Name = str | tuple[str | int | None, ...]
"""A checkpoint by its name, an alias of it, or HookedTransformer's tuple form."""

Names = Name | Iterable[Name] | None
"""One or several names or patterns; None for all."""


def several(names: Names) -> list[Name]:
    """One name or several as a list. A tuple of texts is several; `("pattern", 0)` is one."""
    if names is None:
        return []
    if isinstance(names, str) or not isinstance(names, Iterable):
        return [names]
    one = isinstance(names, tuple) and not all(isinstance(part, str) for part in names)
    return [cast(Name, names)] if one else list(cast(Iterable[Name], names))


def selected(names: Names, known: Sequence[str]) -> tuple[str, ...]:
    """The known checkpoints that names, patterns and aliases select, in execution order; None selects all.

    Raises:
        UnknownNameError: A name that does not exist, or a pattern that matches nothing.
    """
    wanted = None if names is None else several(names)
    if wanted is None or not all(isinstance(name, str) for name in wanted):
        return _select(wanted, known)
    return _select_again(tuple(wanted), tuple(known))


def _select(names: Iterable[Name] | None, known: Sequence[str]) -> tuple[str, ...]:
    return select(None if names is None else map(canonical, names), known)


_select_again = functools.lru_cache(maxsize=64)(_select)
"""Remembers: a hundred names take longer to read than a small model takes to run."""


def canonical(name: Name) -> str:
    """The checkpoint that a name or alias denotes; names that are not aliases come back as they are.

    Raises:
        UnknownNameError: A name of another library whose value is not the same as any checkpoint's.
    """
    if isinstance(name, tuple):
        return _from_tuple(name)
    if not isinstance(name, str):
        return name
    if name in _HOOKS_AROUND:
        return _HOOKS_AROUND[name]
    prefix, block, rest = _split(name)
    _refuse(name, rest)
    if block is None:
        bare = rest in _MODULES_AROUND
        return _MODULES_AROUND[rest] if bare and prefix in ("", "transformer.") else name
    table = _HOOKS if prefix == "blocks." else _MODULES
    return f"blocks.{block}.{table[rest]}" if rest in table else name


def _split(name: str) -> tuple[str, str | None, str]:
    """(vocabulary, block index or pattern, rest)."""
    if match := re.fullmatch(r"blocks\.([^.]+)\.(.+)", name):
        return "blocks.", match[1], match[2]
    if match := re.fullmatch(r"(?:transformer\.)?h\.([^.]+)(?:\.(.+))?", name):
        return "transformer.", match[1], match[2] or ""
    bare = name.removeprefix("transformer.")
    return ("" if bare == name else "transformer."), None, bare


def _refuse(name: str, rest: str) -> None:
    reason = _REFUSED.get(rest) or _REFUSED.get(rest.rsplit(".", 1)[-1])
    if reason:
        raise UnknownNameError(
            f"{name!r} is not the same value as any checkpoint: {reason}.",
            code="alias-refused",
            remedy="Ask for the checkpoint that the reason names.",
        )


def _from_tuple(name: Sequence[str | int | None]) -> str:
    if not 1 <= len(name) <= 3:
        return str(tuple(name))  # no name of any checkpoint
    kind, block, layer = (*name, None, None)[:3]
    if kind in ("scale", "normalized", "scaled") and block is None:
        layer = layer or "ln_final"
    if kind == "scale":
        _refuse(str(tuple(name)), "hook_scale")
    inner = f"{layer}.ckpt_{kind}" if layer else _SHORT.get(str(kind), str(kind))
    return inner if block is None else f"blocks.{block}.{inner}"
