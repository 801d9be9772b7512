"""How a program wants to be called, and what it returns, read as logits in whatever container, layout and width."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pellucid.check import attribute
from pellucid.family.families import FAMILIES
from pellucid.prove.points import LOGITS
from pellucid.text.batch import without_pads
from pellucid.weights.foreign import unwrapped

Call = Callable[[nn.Module, Tensor], Any]

IDS = ("input_ids", "ids", "idx", "tokens", "input_tokens", "token_ids", "input", "inputs", "x")
"""What programs call ids, the likeliest first."""


TARGETS = ("targets", "target", "labels", "label", "y")
"""What programs call the ids of which they also give the loss."""

Mask = Callable[[Tensor], Tensor]
"""From ids [B, P] to what a program that demands a mask is given."""

MASKS: dict[str, Mask] = {
    "of ones": torch.ones_like,
    "[P, P], true where a query sees a key": lambda ids: _square(ids).tril(),
    "[P, P], true where a key is hidden": lambda ids: _square(ids).triu(1),
    "[P, P], -inf where a key is hidden": lambda ids: torch.full(_square(ids).shape, -torch.inf).triu(1).to(ids.device),
}
"""Masks that a forward may demand, by what they are; padding is more usual than a causal mask from outside."""


def _square(ids: Tensor) -> Tensor:
    return torch.ones(ids.size(1), ids.size(1), dtype=torch.bool, device=ids.device)


def calls(module: nn.Module, *, turned: bool = False) -> Iterator[tuple[Call, str]]:
    """The ways in which a module may want to be called, the one that its signature suggests first.

    Each with what its reader should know of it, in words. If it is `turned`, columns of its ids are texts.
    """
    name, by_name = _taker(module)
    masked = any("mask" in parameter.name.lower() for parameter in _demanded(module, name))
    for kind, mask in MASKS.items() if masked else (("", torch.ones_like),):
        words = f"its forward demands a mask, and was given one {kind}" if masked else ""
        if by_name:
            yield lambda one, ids, mask=mask: one(**{name: ids, **_beside(one, ids, name, mask, turned)}), words
        else:
            yield lambda one, ids, mask=mask: one(ids, **_beside(one, ids, name, mask, turned)), words
    yield lambda module, ids: module(input_ids=ids), ""
    yield lambda module, ids: module({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), ""
    yield _one_by_one, "it takes one text [P], and was given one after another"


def _one_by_one(module: nn.Module, ids: Tensor) -> Any:
    """What a module that takes one text gives for each row, put together in whatever containers it gives it."""
    rows = [module(without_pads(row)) for row in ids]
    held = hasattr(rows[0], "__dict__") and not isinstance(rows[0], (Tensor, Mapping, tuple, list))
    return tree_map(_stacked, *(map(vars, rows) if held else rows))


def _stacked(*parts: Any) -> Any:
    """Tensors or arrays of batch rows as one tensor; of anything else the first."""
    return torch.stack([*map(torch.as_tensor, parts)]) if isinstance(parts[0], (Tensor, np.ndarray)) else parts[0]


def reads_columns(plain: Callable[[Tensor], Tensor], vocabulary: int) -> tuple[bool, bool]:
    """Whether a program that is given ids [P, B] takes columns for texts, and whether positions run along them.

    `plain` gives its logits [B, P, V] of ids [B, P].
    """
    ids = torch.arange(6).view(3, 2) % vocabulary
    try:
        changed = (plain(ids) != plain((ids + 1).where(ids == 0, ids))).any(-1)
        same = plain(ids * 0)  # one token everywhere
        apart, within, size = (float(x.abs().max()) for x in (same[:, 0] - same[:, 1], same - same[:1], same))
        placed = 1e-3 * apart > max(within, 1e-6 * size)
        return bool(changed[0, 1]) and not bool(changed[1:].any()), placed
    except Exception:  # whatever a foreign forward raises
        return False, False


def working_call(module: nn.Module, ids: Tensor, *, turned: bool = False) -> tuple[Call, str, Any]:
    """The first way to call a module that does not raise, what to know of it, and what it returned.

    Of a module that demands a mask, the first in which it does not see later tokens, if there is one.
    """
    first: Exception | None = None
    found: tuple[Call, str, Any] | None = None
    masked = any("mask" in parameter.name.lower() for parameter in _demanded(module, _taker(module)[0]))
    for call, words in calls(module, turned=turned):
        try:
            made = call, words, call(module, own(ids))
            if not masked or not _looks_ahead(module, ids, call, made[2], int(not turned)):
                return made
            found = found or made
        except Exception as error:  # whatever a foreign forward raises
            first = first or error
    if found is not None:
        return found
    assert first is not None
    raise first


def own(ids: Tensor) -> Tensor:
    """Ids to give to a program, which may write into them; none of them is a pad to a model of ours."""
    return without_pads(ids.clone())


def _looks_ahead(module: nn.Module, ids: Tensor, call: Call, output: Any, axis: int) -> bool:
    """Whether another last token changes what a module gives for the tokens before it, or what it gives is no number.

    `axis` is that of positions. Of outputs that are not [B, P, N], nothing is known.
    """
    other = own(ids)
    last = other.select(axis, -1)
    last.copy_(torch.where(last > 0, last - 1, 1))
    pairs = zip(_tensors(output, DEEPEST), _tensors(call(module, other), DEEPEST), strict=True)
    before = ids.size(axis) - 1
    rows = [(a.narrow(axis, 0, before), b.narrow(axis, 0, before)) for a, b in pairs if a.shape[:-1] == ids.shape]
    return any(not torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in rows)


def _taker(module: nn.Module) -> tuple[str, bool]:
    """The argument that takes ids, "" if a signature does not say, and whether it has to be named."""
    parameters = _parameters(module)
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if takes or not named:
        return next(iter(takes), ""), False
    return next((name for name in IDS if name in named), named[0]), True


def _beside(
    module: nn.Module, ids: Tensor, given: str, mask: Mask = torch.ones_like, turned: bool = False
) -> dict[str, Any]:
    """What else a forward demands, by name."""
    return {parameter.name: _value(parameter, ids, mask, turned) for parameter in _demanded(module, given)}


def _demanded(module: nn.Module, given: str) -> list[inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p for p in _parameters(module) if p.default is p.empty and p.name != given and p.kind in named]


def _value(parameter: inspect.Parameter, ids: Tensor, mask: Mask, turned: bool) -> Any:
    """What an argument is given: a mask, where the text begins, positions, targets; None if nothing is known of it."""
    name, kind = parameter.name.lower(), str(getattr(parameter.annotation, "__name__", parameter.annotation))
    rows = ids.T if turned else ids
    if "mask" in name:
        return mask(ids if mask is torch.ones_like else rows)
    if kind in ("int", "bool") or any(word in name for word in ("start", "offset")):
        return rows.size(1) if "len" in name and "past" not in name else kind != "bool" and 0
    if "pos" in name:
        places = torch.arange(rows.size(1), device=ids.device).expand_as(rows)
        return places.T if turned else places
    return ids.clone() if name in TARGETS else None


def guesses(module: nn.Module) -> str:
    """What to say of arguments that a forward demands and that nothing is known of; nothing if there are none."""
    beside = _beside(module, torch.zeros(1, 1, dtype=torch.long), _taker(module)[0])
    unknown = [name for name, value in beside.items() if value is None]
    if not unknown:
        return ""
    return f" (its forward demands {', '.join(unknown)}, and was given None: compare a module that takes ids alone)"


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """What a forward takes; of a wrapper that hands on whatever it is given, what the one inside takes."""
    try:
        found = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # what is not Python has no signature
        return []
    inside = list(module.children())
    anything = all(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in found)
    return _parameters(inside[0]) if anything and len(inside) == 1 else found


DEEPEST = 3
"""How deep containers may hold each other: a tuple of mappings of tensors, and no more."""


class NoLogitsError(Exception):
    """What a program returned cannot be read as logits; the message says what it is."""


@dataclass(frozen=True)
class FoundLogits:
    """Logits that a program returned."""

    # [B, P, V]; [B, 1, V] of the last position alone; another width if the output has no logits' width
    values: Tensor
    remarks: tuple[str, ...] = ()  # how they came, in words, if that is not [B, P, V]


def is_headless(module: nn.Module) -> bool:
    """Whether a module is of a class of transformers' that gives hidden states, and leaves the head to its caller."""
    bases, kinds = {family.in_transformers.base for family in FAMILIES}, type(unwrapped(module)).__mro__
    return any(kind.__name__ in bases and kind.__module__.startswith("transformers.") for kind in kinds)


COLUMNS = "it was given ids with positions before batch rows, which is how it reads them"
"""What is remarked of a program whose texts are the columns of its ids."""

TURNED = "the logits came with positions before batch rows"
"""What is remarked of a program that gives [P, B, V]; of as many rows as positions, it cannot be seen."""


def read_answer(
    output: Any, rows: tuple[int, int], head: Tensor, *, headless: bool = False, turned: bool = False
) -> FoundLogits:
    """Read a program's output, a tensor or something that holds one, as logits for so many rows and positions.

    A hidden state is multiplied with `head` [V, D]; `headless` says that the program's class is known to give one, and
    `turned` that it is known to give positions before rows.
    """
    vocabulary, width = head.shape
    if headless:
        hidden = attribute(output, "last_hidden_state")
        hidden = hidden if isinstance(hidden, Tensor) else _chosen(output, (width,))
        return FoundLogits(nn.functional.linear(hidden, head.to(hidden)))
    found = _chosen(output, (vocabulary, width), rows)
    if found.is_meta:
        raise NoLogitsError("the output is on the meta device, which holds no numbers")
    found = found if found.layout == torch.strided else found.to_dense()
    if not found.is_floating_point():
        kind = "complex numbers" if found.is_complex() else "whole numbers"
        raise NoLogitsError(f"the output is {kind} ({found.dtype} {list(found.shape)}), not logits")
    if found.dim() < 3 and (found.dim() == 0 or (found.shape[-1] < vocabulary and found.shape[-1] != width)):
        expected = f"logits of ids {list(rows)} are {[*rows, vocabulary]}"
        raise NoLogitsError(f"the output is {list(found.shape)}, and {expected}")
    remarks: list[str] = []
    if found.dim() == 3 and found.shape[1:] == (vocabulary, rows[1]) and vocabulary != rows[1]:
        found, turned = found.transpose(1, 2), False
        remarks.append("the logits came with the vocabulary before positions")
    values, remark = _in_rows(found, rows, turned=turned)
    remarks += [remark] if remark else []
    if values.shape[-1] > vocabulary and values.shape[-1] != width:
        remarks.append(f"the logits are {values.shape[-1]} wide: the vocabulary's {vocabulary} columns are compared, "
                       "the others are padding")  # fmt: skip
        values = values[..., :vocabulary]
    return FoundLogits(values, tuple(remarks))


def _in_rows(found: Tensor, rows: tuple[int, int], *, turned: bool) -> tuple[Tensor, str]:
    """A tensor as [B, P, N], and a word on the layout that it had."""
    b, p = rows
    outer = tuple(found.shape[:-1])
    if (outer == (b, p) and not (turned and b == p)) or (len(outer) == 2 and outer[0] == b and outer != (p, b)):
        return found, ""
    if outer == (p, b):
        return found.transpose(0, 1), TURNED
    if outer == (b * p,):
        if turned:
            return found.unflatten(0, (p, b)).transpose(0, 1), TURNED
        return found.unflatten(0, (b, p)), "the logits came with batch rows and positions in one axis"
    if outer == (b,):
        return found[:, None], "the logits came without an axis of positions"
    if outer == () and b == 1:
        return found[None, None], "the logits came as a vector"
    raise NoLogitsError(f"an output {list(found.shape)} for ids {[b, p]} is not logits of positions")


def _chosen(output: Any, widths: tuple[int, ...], rows: tuple[int, int] = (0, 0)) -> Tensor:
    """The tensor that holds the logits: one of that name, else the first of one of these widths, else the widest."""
    output = _joined(torch.as_tensor(output) if isinstance(output, np.ndarray) else output, widths, rows)
    if isinstance(output, Tensor):
        return output
    named = output.get(LOGITS) if isinstance(output, Mapping) else attribute(output, LOGITS)
    named = _joined(named, widths, rows)
    if isinstance(named, Tensor):
        return named
    tensors = [tensor for tensor in _tensors(output, DEEPEST) if tensor.dim() >= 1]
    for width in widths:
        for tensor in tensors:
            if tensor.shape[-1] == width and tensor.is_floating_point():
                return tensor
    if not tensors:
        raise NoLogitsError(f"no logits in an output of type {type(output).__name__}")
    return max(tensors, key=lambda tensor: (tensor.is_floating_point(), tensor.dim() in (2, 3), tensor.shape[-1]))


def _joined(output: Any, widths: tuple[int, ...], rows: tuple[int, int]) -> Any:
    """A list of the logits of each batch row [P, V], or of each position [B, V], as one tensor; others as they are."""
    parts = cast("list[Any]", output) if isinstance(output, (list, tuple)) else []
    shapes = {part.shape if isinstance(part, Tensor) and part.dim() == 2 else None for part in parts}
    shape = shapes.pop() if len(shapes) == 1 else None
    if shape is None or shape[1] not in widths:
        return output
    for axis, outer in enumerate([(len(parts), shape[0]), (shape[0], len(parts))]):
        if outer == rows:
            return torch.stack(parts, axis)
    return output


def _tensors(output: Any, deep: int) -> Iterator[Tensor]:
    if isinstance(output, (Tensor, np.ndarray)):
        yield torch.as_tensor(output)
    elif deep:
        yield from (tensor for item in _items(output) for tensor in _tensors(item, deep - 1))


def _items(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(cast(Mapping[Any, Any], output).values())
    if isinstance(output, (tuple, list)):
        return list(cast("list[Any]", output))
    if dataclasses.is_dataclass(output):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    return list(vars(output).values()) if hasattr(output, "__dict__") else []
