"""Where a program shows its values: what enters and what leaves the modules that own known parameters.

A point is a place in the program, such as "blocks.0.ln1<" (what enters the module that owns ln1's gain) or
"blocks.0.q>" (what leaves the one that owns W_Q). In a right program every point holds the value of one checkpoint;
several may hold the same one. Which module is which follows from the parameters that it owns, found by value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pellucid.families import schema_of
from pellucid.gpt2.parts import LOGITS
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.units import HEAD, PART

IN_BLOCK: dict[str, str] = {
    "block<": "resid_pre", "ln1<": "resid_pre", "ln1>": "ln1.ckpt_normalized",
    "attn<": "ln1.ckpt_normalized", "qkv<": "ln1.ckpt_normalized",
    "q<": "ln1.ckpt_normalized", "k<": "ln1.ckpt_normalized", "v<": "ln1.ckpt_normalized",
    "q>": "attn.ckpt_q", "k>": "attn.ckpt_k", "v>": "attn.ckpt_v",
    "O<": "attn.ckpt_z", "O>": "attn.ckpt_attn_out", "attn>": "attn.ckpt_attn_out",
    "ln2<": "resid_mid", "ln2>": "ln2.ckpt_normalized", "mlp<": "ln2.ckpt_normalized", "in<": "ln2.ckpt_normalized",
    "in>": "mlp.ckpt_pre", "out<": "mlp.ckpt_post", "out>": "mlp.ckpt_mlp_out", "mlp>": "mlp.ckpt_mlp_out",
    "block>": "resid_post",
}  # fmt: skip
"""The points of a block, in order, and the checkpoint that each holds in a right program."""

AROUND: dict[str, str] = {"embed>": "ckpt_embed", "pos>": "ckpt_pos_embed", "ln_final>": "ln_final.ckpt_normalized"}

CHECKPOINT_AT = {
    "ln1<": "resid_pre", "ln1>": "ln1.ckpt_normalized", "q>": "attn.ckpt_q", "k>": "attn.ckpt_k", "v>": "attn.ckpt_v",
    "O<": "attn.ckpt_z", "O>": "attn.ckpt_attn_out", "ln2<": "resid_mid", "ln2>": "ln2.ckpt_normalized",
    "in>": "mlp.ckpt_pre", "out<": "mlp.ckpt_post", "out>": "mlp.ckpt_mlp_out", "block>": "resid_post",
}  # fmt: skip
"""The point that stands for a checkpoint where a program of ours shows checkpoints themselves."""

_ROLES: dict[frozenset[str], tuple[str, str]] = {
    frozenset({"ln1.w"}): ("ln1<", "ln1>"),
    frozenset({"ln2.w"}): ("ln2<", "ln2>"),
    frozenset({"attn.W_O"}): ("O<", "O>"),
    frozenset({"mlp.W_in"}): ("in<", "in>"),
    frozenset({"mlp.W_out"}): ("out<", "out>"),
}
_ATTENTION = frozenset({"attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O"})
_MLP = frozenset({"mlp.W_in", "mlp.W_out"})
_WHOLES: dict[frozenset[str], tuple[str, ...]] = {
    _ATTENTION: ("attn<", "attn>"),
    _ATTENTION - {"attn.W_O"}: ("attn<",),
    _MLP: ("mlp<", "mlp>"),
    _ATTENTION | {"ln1.w"}: ("block<",),
    _ATTENTION | _MLP | {"ln1.w", "ln2.w"}: ("block<", "block>"),
}


def ckpt_of(point: str, n_layer: int) -> str:
    """The checkpoint whose value a point holds in a right program; "logits" for the logits."""
    if point == "ln_final<":
        return f"blocks.{n_layer - 1}.resid_post"
    if point.startswith("blocks."):
        _, block, kind = point.split(".", 2)
        return f"blocks.{block}.{IN_BLOCK.get(kind, kind)}"
    return AROUND.get(point, point)


def with_checkpoints(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by point, and by the checkpoints that they stand for."""
    found = dict(values)
    for point, value in values.items():
        prefix, _, kind = point.rpartition(".") if point.startswith("blocks.") else ("", "", point)
        if kind in AROUND:
            found[AROUND[kind]] = value
        elif kind in CHECKPOINT_AT:
            found[f"{prefix}.{CHECKPOINT_AT[kind]}"] = value
    return found


def in_order(points: Iterator[str] | Mapping[str, object], n_layer: int) -> list[str]:
    """Points in the order in which a right program passes them, the logits last."""
    ranks = {name: rank for rank, name in enumerate((*schema_of("gpt2", {"layer": n_layer}).names, LOGITS))}
    kinds = {kind: rank for rank, kind in enumerate(("", *IN_BLOCK, "ln_final<", *AROUND))}
    place = {point: (ranks[ckpt_of(point, n_layer)], kinds.get(point.rpartition(".")[2], 0)) for point in points}
    return sorted(place, key=place.__getitem__)


@dataclass(frozen=True)
class ModuleSite:
    """Where a program shows one or more points.

    Attributes:
        module: Name of the module.
        entering: Whether it is the module's first argument or its result.
        points: What is shown; several where one tensor holds q, k and v.
        axes: Axes of the last dimension of the program's tensor, such as ("part", "head", "d_head").
        sizes: Their sizes.
        heads: Which of the reference's heads comes at each place; None if they are in order.
        head: Which head this is, where the program keeps heads apart.
        width: Size of the last dimension; another one is refused.
    """

    module: str
    entering: bool
    points: tuple[str, ...]
    axes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    heads: tuple[int, ...] | None = None
    head: int | None = None
    width: int = 0

    def read(self, value: Tensor) -> dict[str, Tensor]:
        """The program's tensor [B, P, N] -> the points' values in the checkpoints' shapes; nothing where N is another.

        A module that gives another width does more than its parameters say.
        """
        if value.shape[-1] != self.width:
            return {}
        if not self.axes:
            return {self.points[0]: value}
        parts = value.unflatten(-1, self.sizes)
        wanted = self._wanted()
        parts = parts.permute(0, 1, *(2 + self.axes.index(axis) for axis in wanted))
        if self.heads is not None:
            places = torch.tensor([self.heads.index(h) for h in range(len(self.heads))], device=value.device)
            parts = parts.index_select(2 + wanted.index(HEAD), places)
        return dict(zip(self.points, parts.unbind(2), strict=True)) if PART in self.axes else {self.points[0]: parts}

    def write(self, values: Mapping[str, Tensor]) -> Tensor:
        """The reference's values, by point, in the program's layout [B, P, N]."""
        if not self.axes:
            return values[self.points[0]]
        wanted = self._wanted()
        parts = torch.stack([values[point] for point in self.points], dim=2)
        parts = parts if PART in self.axes else parts.squeeze(2)
        if self.head is not None:
            parts = parts.select(3 if PART in self.axes else 2, self.head)
        if self.heads is not None:
            parts = parts.index_select(2 + wanted.index(HEAD), torch.tensor(self.heads, device=parts.device))
        return parts.permute(0, 1, *(2 + wanted.index(axis) for axis in self.axes)).flatten(2)

    def _wanted(self) -> list[str]:
        return [axis for axis in (PART, HEAD, "d_head") if axis in self.axes]


def sites_of(alignment: Alignment, module: nn.Module) -> list[ModuleSite]:
    """Where a module shows which points; the innermost module comes first where several show the same."""
    owned: dict[str, list[Match]] = {}
    direct: dict[str, list[Match]] = {}
    for match in alignment.matches:
        for name in (match.name, *match.copies):
            owner = name.rpartition(".")[0]
            direct.setdefault(owner, []).append(match)
            while True:
                owned.setdefault(owner, []).append(match)
                if not owner:
                    break
                owner = owner.rpartition(".")[0]
    sizes = {axis: size for m in alignment.matches for axis, size in zip(m.group.axes, m.comparison.shape, strict=True)}
    sites: list[ModuleSite] = []
    for path in sorted(dict(module.named_modules()), key=lambda path: -path.count(".") - bool(path)):
        sites += _leaf_sites(path, direct.get(path, []))
        sites += _whole_sites(path, owned.get(path, []), alignment)
        sites += _named_sites(path, module, owned, sizes)
    return [replace(site, width=_width(site, sizes)) for site in sites]


_HANDED = {"q": "q>", "k": "k>", "v": "v>", "z": "O<", "pre": "in>", "post": "out<"}
"""Names of modules that are handed one value and compute nothing, and the point at which that value stands."""


def _named_sites(
    path: str, module: nn.Module, owned: Mapping[str, list[Match]], sizes: Mapping[str, int]
) -> Iterator[ModuleSite]:
    """What a module shows that owns nothing and is named after a value, such as `hook_q` or `ckpt_post`.

    Only its name says what it is handed, so a site that turns out to hold something else is dropped as any other is.
    """
    around, _, last = path.rpartition(".")
    kind = _HANDED.get(last.removeprefix("hook_").removeprefix("ckpt_"))
    here = dict(module.named_modules())[path]
    if kind is None or any(True for _ in here.children()) or any(True for _ in here.parameters()):
        return
    units = {unit for match in owned.get(around, []) if not match.group.layers for unit in match.group.units}
    prefixes = {unit[: unit.index(".", len("blocks.")) + 1] for unit in units if unit.startswith("blocks.")}
    if len(prefixes) == 1:
        axes = () if kind in ("in>", "out<") else (HEAD, "d_head")
        yield ModuleSite(path, False, (prefixes.pop() + kind,), axes, tuple(sizes[axis] for axis in axes))


def _width(site: ModuleSite, sizes: Mapping[str, int]) -> int:
    if site.axes:
        return math.prod(site.sizes)
    return sizes.get("d_mlp" if site.points[0].endswith(("in>", "out<")) else "d_model", 0)


def _leaf_sites(path: str, matches: list[Match]) -> Iterator[ModuleSite]:
    """What a module shows that owns one matrix or gain, and perhaps its bias."""
    weights = [match for match in matches if not _is_bias(match)]
    if len(weights) != 1 or weights[0].group.layers:
        return
    match, units = weights[0], weights[0].group.units
    if units == ("embed.W_E",):
        yield ModuleSite(path, False, ("embed>",))
    elif units == ("pos_embed.W_pos",):
        yield ModuleSite(path, False, ("pos>",))
    elif units == ("ln_final.w",):
        yield ModuleSite(path, True, ("ln_final<",))
        yield ModuleSite(path, False, ("ln_final>",))
    elif units[0].startswith("blocks."):
        prefix = units[0][: units[0].index(".", len("blocks.")) + 1]
        kinds = [unit.removeprefix(prefix) for unit in units]
        if kinds[0] in ("attn.W_Q", "attn.W_K", "attn.W_V"):
            letters = [kind[-1].lower() for kind in kinds]
            entering = "qkv" if len(letters) > 1 else letters[0]
            yield ModuleSite(path, True, (f"{prefix}{entering}<",))
            yield _per_head(path, match, tuple(f"{prefix}{letter}>" for letter in letters), entering=False)
        elif role := _ROLES.get(frozenset(kinds)):
            into = (prefix + role[0],)
            yield _per_head(path, match, into, entering=True) if role[0] == "O<" else ModuleSite(path, True, into)
            if match.group.head is None:
                yield ModuleSite(path, False, (prefix + role[1],))


def _whole_sites(path: str, matches: list[Match], alignment: Alignment) -> Iterator[ModuleSite]:
    """What a module shows that owns a whole attention, MLP or block, in however many tensors."""
    units = {unit for match in matches if not _is_bias(match) for unit in match.group.units}
    inside = {match.name for match in matches}
    if any(match.name not in inside and units & set(match.group.units) for match in alignment.matches):
        return  # other heads are kept elsewhere
    prefixes = {unit[: unit.index(".", len("blocks.")) + 1] for unit in units if unit.startswith("blocks.")}
    if len(prefixes) != 1 or any(match.group.layers for match in matches):
        return
    prefix = prefixes.pop()
    kinds = frozenset(unit.removeprefix(prefix) for unit in units)
    for kind in _WHOLES.get(kinds, ()):
        yield ModuleSite(path, kind.endswith("<"), (prefix + kind,))


def _is_bias(match: Match) -> bool:
    return match.group.units[0].rpartition(".")[2].startswith("b")


def _per_head(path: str, match: Match, points: tuple[str, ...], *, entering: bool) -> ModuleSite:
    group, transform = match.group, match.transform
    axes = tuple(axis for axis in transform.axes if axis in (PART, HEAD, "d_head"))
    shape = dict(zip(group.axes, match.comparison.shape, strict=True))
    return ModuleSite(path, entering, points, axes, tuple(shape[a] for a in axes), transform.heads, group.head)
