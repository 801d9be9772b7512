"""The tap that calls hooks: HookedTransformer's names, attached to the checkpoints at which their values come by.

Most hook points are a checkpoint under another name. The others are computed beside it when someone looks: a norm's
divisor, what each head writes, inputs that are split by head. If a hook changes one of them, the checkpoint gets the
value that follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, ShapeError, shown
from pellucid.run.model import CkptedTransformer
from pellucid.schema import Schema

Hook = Callable[..., Any]
"""`hook(value, hook=point)` -> None, or the value to go on with; the value may also be written into."""

_DIRECTIONS = {"fwd": ("fwd_hooks",), "bwd": ("bwd_hooks",), "both": ("fwd_hooks", "bwd_hooks")}


@dataclass(frozen=True, eq=False)
class Handle:
    """A hook that was added."""

    call: Hook
    is_permanent: bool  # whether `reset_hooks` leaves it in place
    # how many `with model.hooks(...)` were open when one of them added it; None outside of them
    context_level: int | None


class HookPoint(nn.Module):
    """A named value of a run, to which hooks can be added.

    Attributes:
        name: Such as "blocks.0.attn.hook_pattern".
        ctx: For hooks to keep things in.
        fwd_hooks: Called with the value, in this order.
        bwd_hooks: Called with its gradient.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[Handle] = []
        self.bwd_hooks: list[Handle] = []

    def forward(self, value: Tensor) -> Tensor:
        """The value after its hooks; the very tensor that was given if none of them changed it.

        Each hook gets a copy of its own, which it may keep, and may write into as in HookedTransformer.
        """
        own = value
        for handle in [*self.fwd_hooks]:
            given = own.clone()
            before = None if given.is_inference() else given._version
            returned = handle.call(given, hook=self)
            if returned is not None and returned is not given:
                own = self._fitting(returned, value)
            elif given._version != before if before is not None else not torch.equal(given, own):
                own = given
        if self.bwd_hooks and own.requires_grad:
            own = own.view_as(own)  # another tensor, so that a value computed beside the fused kernel counts
            for handle in [*self.bwd_hooks]:
                own.register_hook(self._backward(handle.call))
        return own

    def add_hook(
        self,
        hook: Hook,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook on the value ("fwd") or on its gradient ("bwd"); `prepend` puts it before the others."""
        lists = _lists(dir)
        if len(lists) != 1:
            raise _wrong_direction(dir)
        handles: list[Handle] = getattr(self, lists[0])
        handles.insert(0 if prepend else len(handles), Handle(hook, is_permanent, level))

    def add_perma_hook(self, hook: Hook, dir: str = "fwd") -> None:
        """Add a hook that `reset_hooks` leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Remove hooks: all of a level, or of every level; permanent ones only if asked for."""
        for name in _lists(dir):
            kept = [
                handle
                for handle in getattr(self, name)
                if not including_permanent
                and (handle.is_permanent or (level is not None and handle.context_level != level))
            ]
            setattr(self, name, kept)

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether any hook is there."""
        return any(
            (including_permanent or not handle.is_permanent) and level in (None, handle.context_level)
            for name in _lists(dir)
            for handle in getattr(self, name)
        )

    def clear_context(self) -> None:
        """Forget what hooks kept in `ctx`."""
        self.ctx = {}

    def layer(self) -> int:
        """The block that the value belongs to; an error if it belongs to none."""
        parts = self.name.split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise InputError(
                f"hook.layer: {self.name!r} is a value of no block.",
                code="hook-without-layer",
                remedy="Ask points whose name begins with 'blocks.'.",
            )
        return int(parts[1])

    def extra_repr(self) -> str:
        return self.name

    def _fitting(self, returned: Any, value: Tensor) -> Tensor:
        if isinstance(returned, Tensor) and returned.shape == value.shape and returned.dtype == value.dtype:
            return returned
        given = (
            f"{list(returned.shape)} of {returned.dtype}" if isinstance(returned, Tensor) else type(returned).__name__
        )
        raise ShapeError(
            f"a hook at {self.name!r} returned {given}, expected {list(value.shape)} of {value.dtype}.",
            code="hook-value",
            remedy="Return None to leave the value as it is, or a tensor of the shape and dtype that the hook got.",
        )

    def _backward(self, call: Hook) -> Callable[[Tensor], Tensor | None]:
        def called(gradient: Tensor) -> Tensor | None:
            returned = call(gradient, hook=self)
            return returned[0] if isinstance(returned, tuple) else returned

        return called


def _lists(direction: str) -> tuple[str, ...]:
    if not isinstance(direction, str) or direction not in _DIRECTIONS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _wrong_direction(direction)
    return _DIRECTIONS[direction]


def _wrong_direction(direction: str) -> InputError:
    return InputError(
        f"hook: dir={shown(direction)}, expected 'fwd' or 'bwd'.",
        code="hook-direction",
        remedy="Give dir='fwd' for the value, or dir='bwd' for its gradient.",
    )


_WORDS = {
    "attn.ckpt_attn_out": "hook_attn_out", "mlp.ckpt_mlp_out": "hook_mlp_out",
    "attn.ckpt_scores": "attn.hook_attn_scores", "mlp.ckpt_gate": "mlp.hook_pre", "mlp.ckpt_up": "mlp.hook_pre_linear",
}  # fmt: skip
"""Checkpoints of a block that HookedTransformer calls otherwise."""

_INPUTS = {
    "attn.ckpt_q": ("hook_attn_in", "hook_q_input"), "attn.ckpt_k": ("hook_k_input",), "attn.ckpt_v": ("hook_v_input",),
}  # fmt: skip
"""Queries, keys and values -> the points of their inputs, split by head."""

_BESIDE = {
    **_INPUTS,
    "attn.ckpt_attn_out": ("attn.hook_result",),
    "ln2.ckpt_scaled": ("hook_mlp_in",),
}
"""Checkpoints of a block -> the points whose values are computed beside them."""

SWITCHES = {
    "hook_result": "use_attn_result", "hook_attn_in": "use_attn_in", "hook_mlp_in": "use_hook_mlp_in",
    **{f"hook_{part}_input": "use_split_qkv_input" for part in "qkv"},
}  # fmt: skip
"""Points that are computed only if the configuration says so."""


_STREAM = ("resid_pre", "resid_mid", "resid_post")
"""The last parts of the names of the stream's checkpoints."""


def divided(name: str) -> tuple[str, str]:
    """("blocks.3", "attn.ckpt_z") of a checkpoint of a block, ("", name) of another."""
    parts = name.split(".", 2)
    return (".".join(parts[:2]), parts[2]) if len(parts) == 3 else ("", name)


def hook_name(kind: str) -> str:
    """HookedTransformer's name of a checkpoint, without its block."""
    if kind in _WORDS:
        return _WORDS[kind]
    place, _, last = kind.rpartition(".")
    own = "scale" if last == "ckpt_scaled" else last.removeprefix("ckpt_")
    return f"{place}.hook_{own}" if place else f"hook_{own}"


def points_of(schema: Schema) -> dict[str, tuple[str, ...]]:
    """Checkpoint -> the hook points at it, in the order in which they fire; in execution order."""
    found: dict[str, tuple[str, ...]] = {}
    for name in schema.names:
        block, kind = divided(name)
        own = (*_BESIDE.get(kind, ()), hook_name(kind))
        found[name] = tuple(f"{block}.{one}" if block else one for one in own)
    found[schema.names[-1]] += ("unembed.hook_in",)
    return found


class HookTap:
    """Calls the hooks of one run."""

    def __init__(self, model: CkptedTransformer, points: Mapping[str, HookPoint]) -> None:
        self._model = model
        self._points = points
        self._at = {
            checkpoint: [name for name in names if name in points]
            for checkpoint, names in points_of(model.schema).items()
        }
        self._stream: Tensor = torch.empty(0, device="cpu")  # what the next norm reads
        self._z: Tensor = torch.empty(0, device="cpu")
        self._attn_in: Tensor | None = None  # if a hook changed it
        self._wanted = {name for name, hooks in self._at.items() if hooks}
        if any(name.rpartition(".")[2] in {"hook_scale", *SWITCHES} for name in points):
            self._wanted.update(name for name in self._at if name.rpartition(".")[2] in (*_STREAM, "ckpt_z"))
        for name in [name for name in points if name.endswith("hook_attn_in")]:
            self._wanted.update(name.removesuffix("hook_attn_in") + kind for kind in _INPUTS)

    def wants(self, name: str) -> bool:
        return name in self._wanted

    def __call__(self, name: str, value: Tensor) -> Tensor:
        block, kind = divided(name)
        if kind in _INPUTS:
            value = self._from_inputs(block, kind, value)
        for hook in self._at[name]:
            value = self._fired(hook, block, value)
        last = name.rpartition(".")[2]
        if last in _STREAM:
            self._stream = value
        elif last == "ckpt_z":
            self._z = value
        return value

    def _fired(self, hook: str, block: str, value: Tensor) -> Tensor:
        last, point = hook.rpartition(".")[2], self._points[hook]
        if last == "hook_scale":
            return self._scaled(point, hook.removesuffix(".hook_scale"), value)
        if last == "hook_attn_scores":
            return _masked(point, value)
        if last == "hook_result":
            return self._results(point, block, value)
        if last == "hook_mlp_in":
            return self._mlp_in(point, f"{block}.ln2", value)
        return value if last in SWITCHES else point(value)  # the inputs of heads were seen to already

    def _scaled(self, point: HookPoint, norm: str, value: Tensor) -> Tensor:
        """A norm's quotient, whose divisor a hook may change."""
        centred, scale = self._divided(norm)
        seen = point(scale)
        return value if seen is scale else centred / seen

    def _divided(self, norm: str) -> tuple[Tensor, Tensor]:
        """What a norm divides, and by what, [B, P, D] and [B, P, 1]."""
        stream, module = self._stream, self._module(norm)
        if module.centres:
            stream = stream - stream.mean(-1, keepdim=True)
        return stream, (stream.pow(2).mean(-1, keepdim=True) + module.eps).sqrt()

    def _results(self, point: HookPoint, block: str, value: Tensor) -> Tensor:
        """What attention adds, as a sum over what each head writes, [B, P, H, D]."""
        attn = self._module(f"{block}.attn")
        results = torch.einsum("bphk,hkd->bphd", self._z, attn.W_O)
        seen = point(results)
        if seen is results:
            return value
        total = seen.sum(-2)
        return total + attn.b_O if f"{block}.attn.b_O" in self._model.parameter_names else total

    def _mlp_in(self, point: HookPoint, norm: str, value: Tensor) -> Tensor:
        """A copy of the stream that the MLP alone reads."""
        seen = point(self._stream)
        if seen is self._stream:
            return value
        self._stream = seen  # for ln2.hook_scale, which comes next
        centred, scale = self._divided(norm)
        return centred / scale

    def _from_inputs(self, block: str, kind: str, value: Tensor) -> Tensor:
        """Queries, keys or values from inputs of their own for each head, [B, P, H, D], as they are before the norm."""
        repeated = self._stream.unsqueeze(-2).expand(*self._stream.shape[:-1], value.size(-2), -1)
        if kind == "attn.ckpt_q":
            self._attn_in = None
        inputs = repeated if self._attn_in is None else self._attn_in
        for hook in self._at[f"{block}.{kind}"]:
            if hook.rpartition(".")[2] in SWITCHES:
                inputs = self._points[hook](inputs)
            if hook.endswith("hook_attn_in") and inputs is not repeated:
                self._attn_in = inputs
        return value if inputs is repeated else self._projected(block, kind, inputs)

    def _projected(self, block: str, kind: str, inputs: Tensor) -> Tensor:
        attn, letter = self._module(f"{block}.attn"), kind[-1].upper()
        normalized = self._module(f"{block}.ln1")(inputs)
        product = torch.einsum("bphd,hdk->bphk", normalized, getattr(attn, f"W_{letter}"))
        bias = f"b_{letter}"
        return product + getattr(attn, bias) if f"{block}.attn.{bias}" in self._model.parameter_names else product

    def _module(self, name: str) -> Any:
        return self._model.get_submodule(name)


def _masked(point: HookPoint, scores: Tensor) -> Tensor:
    """Scores as HookedTransformer shows them: -inf where masked, which is the dtype's minimum in GPT-2."""
    least = torch.finfo(scores.dtype).min
    shown = scores.masked_fill(scores == least, -torch.inf)
    seen = point(shown)
    return scores if seen is shown else seen.clamp(min=least)
