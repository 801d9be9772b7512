"""Every way to say which checkpoint is meant, and the one place that reads it.

Beside its full name a checkpoint may be given without its block if every block is meant ("attn.ckpt_pattern"), by
its last part alone ("pattern"), with a block that is counted from the end ("blocks.-1.resid_post"), as a tuple
(("pattern", 0)), or by another library's name: a hook of HookedTransformer (of a model whose weights were not folded)
or the path of a transformers module, which stands for its output. A name of another library is accepted only if it
denotes the same value; one that is close but not the same is refused with the reason.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import cast

from pellucid.check import as_whole
from pellucid.errors import InputError, UnknownNameError, nearest, shown
from pellucid.schema import Schema, select, unknown_name

_OTHER_WORDS = {
    "attn_scores": "scores",
    "attn_logits": "scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
    "attn": "pattern",
}
"""HookedTransformer's further words for the last part of a name."""

_LAYERS = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
"""HookedTransformer's further words for the part before it."""

Name = str | tuple[str | int | None, ...]
"""A checkpoint by its name, an alias of it, or a tuple such as `("pattern", 0)`."""

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


def selected(names: Names, schema: Schema) -> tuple[str, ...]:
    """The checkpoints that names select, in execution order; None selects all, a name without a block every block's."""
    if names is None:
        return schema.names
    wanted = several(names)
    if not all(isinstance(name, str) for name in wanted):
        return _select(wanted, schema)
    return _select_again(tuple(wanted), schema)


def _select(names: Iterable[Name], schema: Schema) -> tuple[str, ...]:
    return select([_in_model(canonical(name, schema), schema, name) for name in names], schema.names)


_select_again = functools.lru_cache(maxsize=64)(_select)
"""Remembers: a hundred names take longer to read than a small model takes to run."""


def resolved(name: Name, schema: Schema) -> str:
    """The one checkpoint of a model that a name or alias denotes."""
    wanted = canonical(name, schema)
    full = _in_model(wanted, schema, name)
    if full in schema:
        return full
    if isinstance(wanted, str) and "*" in wanted:
        kind = wanted.removeprefix("blocks.*.")
        if kind in schema.in_blocks and "*" not in str(name):
            raise UnknownNameError(
                f"{shown(name)} is a value of every block, expected the value of one.",
                code="pattern-for-a-name",
                remedy=f'Say which block, as in "blocks.0.{kind}"; `ckpts.stack({kind!r})` gives all of them.',
            )
        raise UnknownNameError(
            f"{shown(name)} is a pattern, expected one name.",
            code="pattern-for-a-name",
            remedy="`ckpts.stack` takes one value of every block; patterns select in names= of run_with_ckpts.",
        )
    raise unknown_name(name, schema.names, nearest(full, schema.names))


def kind_and_block(name: Name, schema: Schema) -> tuple[str, str | None]:
    """(name in a block, block or "*") of a name, or (name, None) of a checkpoint outside the blocks."""
    wanted = canonical(name, schema)
    if isinstance(wanted, str) and wanted in schema.around:
        return wanted, None
    text = wanted if isinstance(wanted, str) else ""
    _, block, kind = (*text.split(".", 2), "", "")[:3]
    if kind in schema.in_blocks and text.startswith("blocks."):
        return kind, block
    if "*" in text:
        raise InputError(
            f"{shown(name)} may select several kinds of checkpoint, expected one.",
            code="several-kinds",
            remedy="Give one kind, such as 'resid_post' or 'blocks.*.resid_post'.",
        )
    raise unknown_name(name, [*schema.in_blocks, *schema.around])


def canonical(name: Name, schema: Schema) -> str:
    """A name in pellucid's own words; "blocks.*." stands before a name that has no block.

    What no vocabulary holds comes back as it is.
    """
    if isinstance(name, tuple):
        return _from_tuple(name, schema)
    if not isinstance(name, str) or name in schema.around:
        return name
    own = schema.others.prefix
    prefix, block, rest = _split(name, own, schema.others.blocks)
    _refuse(name, rest, schema)
    modules, around = schema.others.modules, schema.others.modules_around
    if own and prefix == own:
        if block is None:
            return around.get(rest, name)
        return f"blocks.{block}.{modules[rest]}" if rest in modules else name
    if block is not None:
        kind = modules.get(rest) or _in_block(rest, schema)  # "blocks.0.attn" is a module, which gives attn_out
        return name if kind is None else f"blocks.{block}.{kind}"
    return _without_block(rest, schema) or _shorthand(rest, schema) or around.get(rest, name)


def _split(name: str, prefix: str, blocks: str) -> tuple[str, str | None, str]:
    """(vocabulary, block or pattern, rest); the prefix stands for transformers, which lists blocks under a name."""
    if match := re.fullmatch(r"blocks\.([^.]+)\.(.+)", name):
        return "blocks.", match[1], match[2]
    if blocks and (match := re.fullmatch(rf"(?:{re.escape(prefix)})?{blocks}\.([^.]+)(?:\.(.+))?", name)):
        return prefix, match[1], match[2] or ""
    bare = name.removeprefix(prefix)
    return ("" if bare == name else prefix), None, bare


def _short(last: str) -> str:
    """The last part of a name without the prefix that libraries give it."""
    bare = last.removeprefix("ckpt_") if last.startswith("ckpt_") else last.removeprefix("hook_")
    return _OTHER_WORDS.get(bare, bare)


@functools.lru_cache(maxsize=256)
def _in_block(given: str, schema: Schema) -> str | None:
    """The checkpoint of a block that "attn.ckpt_z", "attn.hook_z", "hook_z" or "z" means; None if it is not one.

    The part before the last may be left out if only one checkpoint of a block has that last part.
    """
    layer, _, last = given.rpartition(".")
    found = [kind for kind in schema.in_blocks if _short(kind.rpartition(".")[2]) == _short(last)]
    found = [kind for kind in found if layer in ("", kind.rpartition(".")[0])]
    return found[0] if len(found) == 1 else None


def _without_block(given: str, schema: Schema) -> str | None:
    """The checkpoint that is meant by a name without a block, "blocks.*." before it if blocks have it."""
    layer, _, last = given.rpartition(".")
    found = [
        name
        for name in schema.around
        if name.rpartition(".")[0] == layer and _short(name.rpartition(".")[2]) == _short(last)
    ]
    if found:
        return found[0]
    kind = _in_block(given, schema)
    return None if kind is None else f"blocks.*.{kind}"


def _shorthand(given: str, schema: Schema) -> str | None:
    """HookedTransformer's "pattern3" and "normalized0ln1"."""
    match = re.fullmatch(r"([a-z_]*[a-z])(\d+)([a-z]\w*)?", given)
    if match is None or (match[1] not in ("scale", "scaled", "normalized") and _in_block(match[1], schema) is None):
        return None
    return _from_tuple((match[1], int(match[2]), match[3]), schema)


def _refuse(name: str, rest: str, schema: Schema) -> None:
    refused = schema.others.refused
    reason = refused.get(rest) or refused.get(rest.rsplit(".", 1)[-1])
    if reason:
        raise UnknownNameError(
            f"{shown(name)} is not the same value as any checkpoint: {reason}.",
            code="alias-refused",
            remedy="Ask for the checkpoint that the reason names.",
        )


def _from_tuple(name: Sequence[object], schema: Schema) -> str:
    """A checkpoint from (value, block, layer) or (value, layer, block); block and layer may be left out."""
    kind, *places = name or ("",)
    block: int | str | None = None
    layer = ""
    for part in places:
        where = "*" if isinstance(part, str) and part == "*" else as_whole(part)
        if part is None or (isinstance(part, str) and not part):
            continue
        if where is not None and block is None:
            block = where
        elif isinstance(part, str) and not layer:
            layer = part
        else:
            return str(tuple(name))  # no name of any checkpoint
    if not isinstance(kind, str):
        return str(tuple(name))
    last = kind.removeprefix("ckpt_") if kind.startswith("ckpt_") else kind.removeprefix("hook_")
    if last in ("scale", "normalized", "scaled") and block is None:
        layer = layer or "ln_final"  # as in HookedTransformer
    if last == "scale":
        _refuse(str(tuple(name)), "hook_scale", schema)
    layer = _LAYERS.get(layer, layer)
    inner = f"{layer}.{last}" if layer else _OTHER_WORDS.get(last, last)
    if block is None:
        return _without_block(inner, schema) or canonical(inner, schema)
    return f"blocks.{block}.{_in_block(inner, schema) or inner}"


def _in_model(name: str, schema: Schema, given: Name) -> str:
    """A name whose block is counted from the front."""
    match = re.fullmatch(r"blocks\.(-?(?:0|[1-9]\d*))\.(.+)", name) if isinstance(name, str) else None
    if match is None:
        return name
    block, count = int(match[1]), len(schema.blocks)
    if not -count <= block < count:
        there = f"blocks 0 to {count - 1}" if count else "no blocks"
        raise UnknownNameError(
            f"no such checkpoint: {shown(given)}; this model has {there}.",
            code="unknown-checkpoint",
            remedy=f"Give a block from 0 to {count - 1}; negative ones count from the end, so -1 is the last."
            if count
            else "`model.ckpt_names` lists the checkpoints of this model.",
        )
    return f"blocks.{block % count}.{match[2]}"
