"""`HookedRootModule`: hooks by the names of values, as HookedTransformer has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from pellucid.check import is_several
from pellucid.compat.hooked.hook_tap import Hook, HookPoint
from pellucid.compat.hooked.utils import Slice
from pellucid.errors import UnknownNameError, nearest, shown
from pellucid.names.calls import refuse_unknown

Where = str | Callable[[str], bool]
"""One hook point by its name, or all those for whose names a function is true."""


class HookedRootModule(nn.Module):
    """A module whose `HookPoint`s are known by their names; one's own calls `setup` at the end of its `__init__`.

    Attributes:
        hook_dict: Every hook point by its name, in execution order.
        mod_dict: Every module by its name.
        context_level: How many `with model.hooks(...)` are open.
        is_caching: Whether caching hooks were added since the last `reset_hooks`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hook_dict: dict[str, HookPoint] = {}
        self.context_level = 0
        self.is_caching = False

    def setup(self) -> None:
        """Find the hook points among the submodules, and tell them their names."""
        found = {name: module for name, module in self.named_modules() if isinstance(module, HookPoint)}
        for name, point in found.items():
            point.name = name
        self.hook_dict = found

    @property
    def mod_dict(self) -> dict[str, nn.Module]:
        """Every module by its name."""
        return {name: module for name, module in self.named_modules() if name}

    def hook_points(self) -> Sequence[HookPoint]:
        """Every hook point, in execution order."""
        return list(self.hook_dict.values())

    def add_hook(
        self,
        name: Where,
        hook: Hook,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook at one point or at several; it stays until `reset_hooks`.

        Args:
            name: The point, or a function of names that says which points.
            hook: Called as `hook(value, hook=point)`.
            dir: "fwd" for the value, "bwd" for its gradient.
            is_permanent: Whether `reset_hooks` leaves it.
            level: See `HookPoint.add_hook`.
            prepend: Whether it comes before the hooks that are there.

        Raises:
            UnknownNameError: If there is no such point.
            InputError: If the point's value is not computed as the model is set.
        """
        for point in self._chosen(name):
            if isinstance(name, str):
                self.require_computed(name)
            point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: Where, hook: Hook, dir: str = "fwd") -> None:
        """Add a hook that `reset_hooks` leaves in place."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def is_computed(self, name: str) -> bool:
        """Whether the value of a point is computed as the model is set."""
        return True

    def require_computed(self, name: str) -> None:
        """Refuse a hook that could never fire, because the value is not computed as the model is set."""

    def remove_all_hook_fns(
        self, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Remove the hooks of every point."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Forget what hooks kept at every point."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: str = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the hooks of every point, and what they kept."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[Where, Hook]] = (),
        bwd_hooks: Sequence[tuple[Where, Hook]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Generator[Self]:
        """Hooks for the runs inside a `with`, each a pair of a point's name and a function."""
        self.context_level += 1
        try:
            for where, hook in fwd_hooks:
                self.add_hook(where, hook, "fwd", level=self.context_level)
            for where, hook in bwd_hooks:
                self.add_hook(where, hook, "bwd", level=self.context_level)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=self.context_level)
            self.context_level -= 1

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[tuple[Where, Hook]] = (),
        bwd_hooks: Sequence[tuple[Where, Hook]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the model with hooks, which are removed afterwards.

        A hook on a gradient is removed before any gradient comes by; use `with model.hooks(bwd_hooks=...)` for those,
        or `reset_hooks_end=False`.
        """
        self._require_known(HookedRootModule.run_with_hooks, model_kwargs)
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts) as hooked:
            return hooked(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: Where | Sequence[str] | None = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the module and keep its values.

        Args:
            *model_args: As for a run.
            names_filter: A name, names or a function of names; None for every value.
            device: Where the values go; None leaves them where they are.
            remove_batch_dim: Whether to take the only row of each value.
            incl_bwd: Whether to run backwards too, from what the run returned, and to keep gradients under names that
                end in _grad.
            reset_hooks_end: Whether the hooks that keep values are removed afterwards.
            clear_contexts: Whether what hooks kept is forgotten afterwards.
            pos_slice: The positions to keep.
            **model_kwargs: As for a run.

        Returns:
            What the run returned, and the values by name.
        """
        self._require_known(HookedRootModule.run_with_cache, model_kwargs)
        kept, forwards, backwards = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(forwards, backwards, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.backward()
        return out, kept

    def get_caching_hooks(
        self,
        names_filter: Where | Sequence[str] | None = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[tuple[Where, Hook]], list[tuple[Where, Hook]]]:
        """A dictionary, and the pairs of name and hook that fill it when the model runs."""
        kept: dict[str, Tensor] = {} if cache is None else cache
        save = _Saving(kept, device, remove_batch_dim, Slice.unwrap(pos_slice))
        given: Any = self.is_computed if names_filter is None else names_filter
        chosen = list(given) if is_several(given) else [given]
        wanted = {point.name for one in chosen for point in self._chosen(one)}
        names = [n for n in self.hook_dict if n in wanted and (isinstance(given, str) or self.is_computed(n))]
        self.is_caching = True
        forwards: list[tuple[Where, Hook]] = [(name, save.value) for name in names]
        backwards: list[tuple[Where, Hook]] = [(name, save.gradient) for name in names] if incl_bwd else []
        return kept, forwards, backwards

    def add_caching_hooks(
        self,
        names_filter: Where | Sequence[str] | None = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Add hooks that keep values in a dictionary until `reset_hooks`, and return the dictionary."""
        found = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, pairs in zip(("fwd", "bwd"), found[1:], strict=True):
            for name, hook in pairs:
                self.add_hook(name, hook, dir)
        return found[0]

    def cache_all(
        self, cache: dict[str, Tensor], incl_bwd: bool = False, device: Any = None, remove_batch_dim: bool = False
    ) -> None:
        """`add_caching_hooks` for every point."""
        self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self,
        cache: dict[str, Tensor],
        names: Callable[[str], bool],
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
    ) -> None:
        """`add_caching_hooks` for the points whose names a function chooses."""
        self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)

    def _require_known(self, verb: Callable[..., Any], given: dict[str, Any]) -> None:
        """Refuse keywords that neither a verb nor a run takes."""
        run = inspect.signature(self.forward).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in run.values()):
            own = [name for name, one in inspect.signature(verb).parameters.items() if one.kind is one.KEYWORD_ONLY]
            refuse_unknown(verb.__name__, given, [*own, *run], {})

    def _chosen(self, where: Where) -> list[HookPoint]:
        if callable(where):
            return [point for name, point in self.hook_dict.items() if where(name)]
        if not isinstance(where, str) or where not in self.hook_dict:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnknownNameError(
                f"no such hook point: {shown(where)}.",
                code="unknown-hook-point",
                remedy=f"{nearest(str(where), self.hook_dict)} `model.hook_dict` lists them all.".strip(),
            )
        return [self.hook_dict[where]]


@dataclass(frozen=True)
class _Saving:
    """The two hooks that keep values and gradients."""

    cache: dict[str, Tensor]
    device: Any
    remove_batch_dim: bool
    pos_slice: Slice

    def value(self, tensor: Tensor, hook: HookPoint) -> None:
        self._keep(hook.name, tensor)

    def gradient(self, tensor: Tensor, hook: HookPoint) -> None:
        self._keep(f"{hook.name}_grad", tensor.clone())  # autograd may add to it; a value is a copy already

    def _keep(self, name: str, tensor: Tensor) -> None:
        kept = tensor.detach()
        kept = kept if self.device is None else kept.to(self.device)
        kept = kept[0] if self.remove_batch_dim else kept
        per_head = name.removesuffix("_grad").endswith(("hook_q", "hook_k", "hook_v", "hook_z", "hook_result"))
        axis = -3 if per_head else -2
        if self.pos_slice.mode != "identity" and tensor.dim() >= -axis:
            kept = self.pos_slice.apply(kept, dim=axis).clone()  # without the memory of what is left out
        self.cache[name] = kept
