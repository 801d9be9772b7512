"""Checkpoints: the named points that every intermediate value of a forward pass goes through.

A `Ckpt` is a module, so it shows in `print(model)`, native hooks work on it, and what it returns is what the
model goes on with. `BLOCK` and `AROUND` are the one table of names and shapes; every consumer reads it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.axes import ATTENTION, HIDDEN, PER_HEAD, RESIDUAL, Axes
from pellucid.dialects import unknown_attribute
from pellucid.errors import UnknownNameError, nearest
from pellucid.tap import Tap

BLOCK: dict[str, Axes] = {
    "resid_pre": RESIDUAL,  # what enters the block
    "ln1.ckpt_scaled": RESIDUAL,  # (x - mean) / sqrt(var + eps)
    "ln1.ckpt_normalized": RESIDUAL,  # scaled * w + b
    "attn.ckpt_q": PER_HEAD,
    "attn.ckpt_k": PER_HEAD,
    "attn.ckpt_v": PER_HEAD,
    "attn.ckpt_scores": ATTENTION,  # q k^T * scale; masked entries hold the dtype's minimum
    "attn.ckpt_pattern": ATTENTION,  # softmax(scores), before dropout
    "attn.ckpt_z": PER_HEAD,  # pattern v
    "attn.ckpt_attn_out": RESIDUAL,  # z W_O + b_O, what is added to the residual stream
    "resid_mid": RESIDUAL,  # resid_pre + attn_out
    "ln2.ckpt_scaled": RESIDUAL,
    "ln2.ckpt_normalized": RESIDUAL,
    "mlp.ckpt_pre": HIDDEN,  # before the activation function
    "mlp.ckpt_post": HIDDEN,  # after it
    "mlp.ckpt_mlp_out": RESIDUAL,  # what is added to the residual stream
    "resid_post": RESIDUAL,  # resid_mid + mlp_out
}
"""The 17 checkpoints of a block, in execution order, with their axes."""

BEFORE: dict[str, Axes] = {"ckpt_embed": RESIDUAL, "ckpt_pos_embed": RESIDUAL}
AFTER: dict[str, Axes] = {"ln_final.ckpt_scaled": RESIDUAL, "ln_final.ckpt_normalized": RESIDUAL}


class Ckpt(nn.Module):
    """The identity, with a name: the value passes through, and what comes out is what the model goes on with.

    The tap is always passed as a keyword: a native pre-hook that returns the value alone replaces all positional
    arguments, and must not take the tap with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = ""

    def __call__(self, value: Tensor, tap: Tap | None = None) -> Tensor:
        if self._is_hooked():
            return super().__call__(value, tap=tap)
        # without what torch does around it, which a small model would feel
        return value if tap is None else self.forward(value, tap)

    def forward(self, value: Tensor, tap: Tap | None = None) -> Tensor:
        return value if tap is None or not tap.wants(self.name) else tap(self.name, value)

    def is_watched(self, tap: Tap | None) -> bool:
        """Whether a tap or a native hook would see a value here; if not, it need not be computed."""
        return (tap is not None and tap.wants(self.name)) or self._is_hooked()

    def _is_hooked(self) -> bool:
        return bool(
            self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
            or torch_module._has_any_global_hook()
        )  # fmt: skip

    def replacement(self, value: Tensor, tap: Tap | None) -> Tensor | None:
        """Pass on a value that was computed only to be seen.

        Returns:
            What someone put in its place, or None where it was only looked at: the same tensor came back and
            nothing was written into it.
        """
        if not self.is_watched(tap):
            return None
        if value.is_inference():  # inference tensors have no version counter
            before = value.clone()
            seen = self(value, tap=tap)
            unwritten = _same_bytes(before, value)
        else:
            version = value._version
            seen = self(value, tap=tap)
            unwritten = value._version == version
        return None if seen is value and unwritten else seen


class Layer(nn.Module):
    """A part of the model, which answers other libraries' words for what it holds with what to use here."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Words of others -> what to use here, as in `pellucid.dialects`."""

    def __getattr__(self, name: str) -> Any:
        """What `nn.Module` holds under a name; not by `super()`, whose further call a small model would feel."""
        held = self.__dict__
        for kind in ("_modules", "_parameters", "_buffers"):
            if kind in held and name in held[kind]:
                return held[kind][name]
        raise unknown_attribute(f"{type(self).__name__!r} object", name, self.elsewhere, self._here())

    def _here(self) -> str:
        """How to write this part in Python, by what its first checkpoint is called."""
        name = next((one.name for one in self._modules.values() if isinstance(one, Ckpt)), "")
        return re.sub(r"\.(\d+)", r"[\1]", f"model.{name.rpartition('.')[0]}")


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def name_checkpoints(root: nn.Module) -> None:
    """Tell every checkpoint below `root` its dotted name."""
    for name, module in root.named_modules():
        if isinstance(module, Ckpt):
            module.name = name


@functools.lru_cache(maxsize=64)
def all_axes(n_layer: int) -> dict[str, Axes]:
    """Every checkpoint of a model with this many blocks -> its axes, in execution order."""
    blocks = {f"blocks.{i}.{name}": axes for i in range(n_layer) for name, axes in BLOCK.items()}
    return {**BEFORE, **blocks, **AFTER}


@functools.lru_cache(maxsize=64)
def all_names(n_layer: int) -> tuple[str, ...]:
    """Every checkpoint of a model with this many blocks, in execution order: 17 a block and 4 around them."""
    return tuple(all_axes(n_layer))


def select(patterns: str | Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The known names that match any of the patterns, in the order of `known`.

    In a pattern `*` stays within one dotted part and `**` crosses parts. None selects everything.

    Raises:
        UnknownNameError: A name that does not exist, or a pattern that matches nothing; with suggestions.
    """
    if patterns is None:
        return tuple(known)
    names, chosen = frozenset(known), set[str]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [pattern] if isinstance(pattern, str) and pattern in names else _glob(pattern, known)
        if not matched:
            raise unknown_name(pattern, known, _pattern_for(pattern, known))
        chosen.update(matched)
    return tuple(name for name in known if name in chosen)


def unknown_name(name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a checkpoint name or pattern that does not exist among `known`; `hint` instead of near names."""
    what = "pattern matches no checkpoint" if "*" in str(name) else "no such checkpoint"
    known = list(known)
    last_parts = sorted({full.rsplit(".", 1)[-1].removeprefix("ckpt_") for full in known})
    hint = hint or nearest(str(name), known) or nearest(str(name), last_parts)
    return UnknownNameError(
        f"{what}: {name!r}.",
        code="unknown-checkpoint",
        remedy=f"{hint} `model.ckpt_names` lists them all.".strip(),
    )


def _pattern_for(end: object, known: Sequence[str]) -> str:
    """A sentence that suggests the pattern of all names that end so, or an empty string."""
    for pattern in (f"**.{end}", f"**.ckpt_{end}"):
        if _glob(pattern, known):
            return f"Did you mean {pattern!r}?"
    return ""


def _glob(pattern: str, known: Sequence[str]) -> list[str]:
    if not isinstance(pattern, str) or "*" not in pattern:
        return []
    parts = re.split(r"(\*\*|\*)", pattern)
    expression = "".join({"**": ".*", "*": "[^.]*"}.get(part, re.escape(part)) for part in parts)
    return [name for name in known if re.fullmatch(expression, name)]
