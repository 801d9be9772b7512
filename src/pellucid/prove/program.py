"""Any `nn.Module` as named values: the one place in the project that uses torch's own hooks.

Which module gives the value of a checkpoint follows from the parameters that it owns, found by value: the module
that owns W_in gives `mlp.ckpt_pre`, whatever it is called. A free run records what the program computes. A forced
run records each value and then replaces it by the reference's, so that every later value shows the program's own
error there and nothing inherited.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.units import HEAD, PART

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Site:
    """Where a program shows the value of one or more checkpoints.

    Attributes:
        module: Name of the module.
        entering: Whether it is the module's first argument or its result.
        names: The checkpoints, several where one tensor holds q, k and v.
        axes: Axes of the last dimension of the program's tensor, such as ("part", "head", "d_head").
        sizes: Their sizes.
        heads: Which of the reference's heads comes at each place; None where they are in order.
    """

    module: str
    entering: bool
    names: tuple[str, ...]
    axes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    heads: tuple[int, ...] | None = None

    def read(self, value: Tensor) -> dict[str, Tensor]:
        """The program's tensor -> the checkpoints' values in their own shapes."""
        if not self.axes:
            return {self.names[0]: value}
        parts = value.unflatten(-1, self.sizes)
        wanted = [axis for axis in (PART, HEAD, "d_head") if axis in self.axes]
        offset = value.dim() - 1
        order = [offset + self.axes.index(axis) for axis in wanted]
        parts = parts.permute(*range(offset), *order)
        if self.heads is not None:
            places = torch.tensor([self.heads.index(h) for h in range(len(self.heads))], device=value.device)
            parts = parts.index_select(offset + wanted.index(HEAD), places)
        if PART not in self.axes:
            return {self.names[0]: parts}
        return dict(zip(self.names, parts.unbind(offset), strict=True))

    def write(self, like: Tensor, values: Values) -> Tensor:
        """The reference's values in the program's layout."""
        if not self.axes:
            return values[self.names[0]].to(like).expand(like.shape)
        parts = torch.stack([values[name] for name in self.names], dim=like.dim() - 1)
        if PART not in self.axes:
            parts = parts.squeeze(like.dim() - 1)
        wanted = [axis for axis in (PART, HEAD, "d_head") if axis in self.axes]
        offset = like.dim() - 1
        if self.heads is not None:
            parts = parts.index_select(offset + wanted.index(HEAD), torch.tensor(self.heads, device=parts.device))
        order = [offset + wanted.index(axis) for axis in self.axes]
        return parts.permute(*range(offset), *order).reshape(like.shape).to(like)


def sites_of(alignment: Alignment, module: nn.Module, n_layer: int) -> list[Site]:
    """Where a program shows the checkpoints' values, by the modules that own the parameters."""
    owners = {unit: match for match in alignment.matches for unit in match.group.units if match.group.layers == 0}
    known = dict(module.named_modules())
    sites: list[Site] = []

    def owner(unit: str) -> str | None:
        match = owners.get(unit)
        path = match.name.rpartition(".")[0] if match and match.group.head is None else None
        return path if path is not None and path in known and not list(known[path].children()) else None

    def plain(unit: str, name: str, *, entering: bool = False) -> None:
        if (path := owner(unit)) is not None:
            sites.append(Site(path, entering, (name,)))

    plain("embed.W_E", "ckpt_embed")
    plain("pos_embed.W_pos", "ckpt_pos_embed")
    for i in range(n_layer):
        block = f"blocks.{i}."
        plain(block + "ln1.w", block + "resid_pre", entering=True)
        plain(block + "ln1.w", block + "ln1.ckpt_normalized")
        sites += _attention_sites(block, owners, owner)
        plain(block + "ln2.w", block + "resid_mid", entering=True)
        plain(block + "ln2.w", block + "ln2.ckpt_normalized")
        plain(block + "mlp.W_in", block + "mlp.ckpt_pre")
        plain(block + "mlp.W_out", block + "mlp.ckpt_post", entering=True)
        plain(block + "mlp.W_out", block + "mlp.ckpt_mlp_out")
    if n_layer:
        plain("ln_final.w", f"blocks.{n_layer - 1}.resid_post", entering=True)
    plain("ln_final.w", "ln_final.ckpt_normalized")
    return sites


def _attention_sites(block: str, owners: Mapping[str, Match], owner: Callable[[str], str | None]) -> Iterator[Site]:
    seen: set[str] = set()
    for letter in "QKV":
        unit = f"{block}attn.W_{letter}"
        if (path := owner(unit)) is not None and path not in seen:
            seen.add(path)
            match = owners[unit]
            names = tuple(f"{block}attn.ckpt_{u[-1].lower()}" for u in match.group.units)
            yield _per_head(path, match, names, entering=False)
    unit = f"{block}attn.W_O"
    if (path := owner(unit)) is not None:
        yield _per_head(path, owners[unit], (f"{block}attn.ckpt_z",), entering=True)
        yield Site(path, False, (f"{block}attn.ckpt_attn_out",))


def _per_head(path: str, match: Match, names: tuple[str, ...], *, entering: bool) -> Site:
    group = match.group
    counts = {PART: len(group.units), HEAD: 0, "d_head": 0}
    axes = tuple(axis for axis in match.transform.axes if axis in counts)
    shape = dict(zip(group.axes, _natural_shape(match), strict=True))
    return Site(path, entering, names, axes, tuple(shape[axis] for axis in axes), match.transform.heads)


def _natural_shape(match: Match) -> tuple[int, ...]:
    return match.comparison.shape


class Program:
    """A module that can be run freely or forced, and that is left as it was found.

    Args:
        module: Anything that maps ids [B, P] to logits, or to a hidden state, as a tensor, tuple or named output.
        sites: Where it shows what.
        head: [V, D], what a program without a head is multiplied with.
    """

    def __init__(self, module: nn.Module, sites: list[Site], head: Tensor) -> None:
        self.module = module
        self.sites = sites
        self.head = head

    def run(self, ids: Tensor, replace_by: Values | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, P, V] and the values of the checkpoints; forced where the reference's values are given."""
        values: dict[str, Tensor] = {}
        named = dict(self.module.named_modules())
        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for site in self.sites:
                hook = _recorder(site, values, replace_by)
                if site.entering:
                    handles.append(named[site.module].register_forward_pre_hook(hook))
                else:
                    handles.append(named[site.module].register_forward_hook(lambda m, a, out, hook=hook: hook(m, out)))
            with torch.no_grad(), evaluating(self.module), torch.random.fork_rng(devices=[]):
                output = self.module(ids)
        finally:
            for handle in handles:
                handle.remove()
        return self._logits(output), values

    def _logits(self, output: Any) -> Tensor:
        found = getattr(output, "logits", None)
        if found is None:
            found = output if isinstance(output, Tensor) else output[0]
        vocabulary, width = self.head.shape
        if found.shape[-1] == width != vocabulary:
            return nn.functional.linear(found, self.head.to(found))
        return found


def _recorder(site: Site, values: dict[str, Tensor], replace_by: Values | None) -> Callable[[nn.Module, Any], Any]:
    def hook(_: nn.Module, given: Any) -> Any:
        value = given[0] if isinstance(given, tuple) else given
        values.update((name, part.detach().clone()) for name, part in site.read(value).items())
        if replace_by is None or not all(name in replace_by for name in site.names):
            return None
        forced = site.write(value, replace_by)
        return (forced, *given[1:]) if isinstance(given, tuple) else forced

    return hook


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Every module in evaluation for the time being, each put back to its own mode."""
    modes = {child: child.training for child in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
