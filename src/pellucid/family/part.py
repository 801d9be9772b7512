"""A module of a family, whose parameters and checkpoints are those that the schema names below its place.

Parameters have the field's names: what is stored fused has live views.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.errors import ConfigError, ShapeError, WeightsError
from pellucid.family.config import require_schema
from pellucid.family.json_config import Config
from pellucid.names.attributes import unknown_attribute
from pellucid.schema import Parameter, Schema
from pellucid.tap import Ckpt


def submodules(root: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once; a tenth of the time of `modules()`, which every captured run would feel."""
    found, seen = [root], {root}
    for module in found:
        if module._modules:
            for child in module._modules.values():
                if child is not None and child not in seen:
                    seen.add(child)
                    found.append(child)
    return found


def state_of(modules: Iterable[nn.Module]) -> tuple[tuple[int, int], ...]:
    """Where their own parameters are, and how often each was written to: changes with every change of a weight.

    A write that goes around torch's counting, such as one into `parameter.data`, is not seen; nor is one into a
    parameter that was made under `torch.inference_mode`.
    """
    parameters = [p for module in modules if module._parameters for p in module._parameters.values() if p is not None]
    try:
        return tuple([(parameter.data_ptr(), parameter._version) for parameter in parameters])
    except RuntimeError:  # raised if torch does not count
        return tuple([(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters])


def has_native_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether torch's forward hooks would run in one of these modules, or in all that there are."""
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return bool(everywhere) or any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A sum is one pass without temporaries, and any NaN or infinity spoils it. Only a sum that overflowed or was
    spoiled needs the closer look.
    """
    flat = tensor.detach()
    wide = torch.float32 if flat.element_size() < 4 else flat.dtype
    if bool(flat.sum(dtype=wide).isfinite()):
        return True
    rows = flat if flat.dim() > 1 else flat[None]
    return all(bool(row.isfinite().all()) for row in rows)


def require_numbers(verb: str, tensors: Iterable[Tensor]) -> None:
    """Refuse a model on the meta device, where tensors have shapes and no numbers."""
    if any(tensor.is_meta for tensor in tensors):
        raise WeightsError(
            f"{verb}: the model is on the meta device, which holds no numbers.",
            code="meta-device",
            remedy="Load its weights first, such as with pl.load(name) or transformers' from_pretrained(name).",
        )


def put_buffers(root: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of buffers, by their dotted names."""
    for name, tensor in buffers.items():
        place, _, own = name.rpartition(".")
        root.get_submodule(place)._buffers[own] = tensor


def runs_as_written(modules: Iterable[nn.Module]) -> bool:
    """Whether each of these modules runs the forward that this package wrote, neither patched nor replaced."""
    return all(
        "forward" not in vars(module)
        and (isinstance(module, nn.ModuleList) or type(module).forward.__module__.startswith("pellucid."))
        for module in modules
    )


class LiveView:
    """An attribute that shows part of a stored parameter under the field's name.

    Reading gives a view: writing into it (under `torch.no_grad()`, as for any parameter) changes the model.
    `stored` names the parameter that it is a view of, `view` takes the module and that parameter, or its
    gradient, to the part.
    """

    def __init__(self, stored: str, view: Callable[[Any, Tensor], Tensor], doc: str) -> None:
        self.stored = stored
        self.view = view
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        return self if module is None else self.view(module, getattr(module, self.stored))

    def __set__(self, module: nn.Module, value: object) -> None:
        raise AttributeError(
            f"{self._name} is a live view of the stored parameter {self.stored}; write into it: "
            f"`with torch.no_grad(): module.{self._name}.copy_(value)`"
        )


Weights = Mapping[str, Tensor]
"""Stored parameter -> tensor; `config.schema.stored` lists the names and shapes."""


class Part(nn.Module):
    """A module built around given tensors, never around fresh ones, so a file that is mapped stays mapped.

    Its live views cannot be assigned to; writing into them changes the model. Parts are made of `config`, what the
    model is, and `weights`, what the schema has below their place, fresh ones if None; `block` is the number of theirs,
    `execution` says how the model is run, and `products` are shared by its modules, a part's own if None.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Other libraries' words for what it holds -> what to use here, as in `pellucid.names.attributes`."""

    def __getattr__(self, name: str) -> Any:
        """What `nn.Module` holds under a name; not by `super()`, whose further call a small model would feel."""
        held = self.__dict__
        for kind in ("_modules", "_parameters", "_buffers"):
            if kind in held and name in held[kind]:
                return held[kind][name]
        raise unknown_attribute(f"{type(self).__name__!r} object", name, self.elsewhere, self._here())

    def words(self, elsewhere: Mapping[str, str]) -> None:
        """Answer to these words of other libraries instead of its class's."""
        self.__dict__["elsewhere"] = elsewhere

    def _place(self) -> str:
        """Where this part is in a model, by what its first checkpoint is called; "" for parts without any."""
        name = next((one.name for one in self._modules.values() if isinstance(one, Ckpt)), "")
        return name.rpartition(".")[0]

    def _here(self) -> str:
        """How to write this part in Python."""
        return re.sub(r"\.(\d+)", r"[\1]", f"model.{self._place()}")

    def take(self, config: Config, place: str, weights: Weights | None) -> None:
        """Register the parameters and checkpoints that the schema has directly below a place, "" for the model itself.

        Weights by their names below the place are used as they are, not copied; None makes fresh ones.
        """
        weights, schema = given(config, place, weights), config.schema
        if place.startswith("blocks.") and not schema.blocks:
            raise ConfigError(
                f"config: no blocks ({config.blocks_field}=0), expected a block for {type(self).__name__}.",
                code="config-no-blocks",
                remedy=f"Give a configuration with {config.blocks_field}=1 or more: "
                f"config.override({config.blocks_field}=1).",
            )
        require_weights(schema, place, weights)
        for name in schema.stored_below(place):
            if "." not in name:
                self._parameters[name] = nn.Parameter(weights[name])  # not registered, which asks for what is not there
        for name in schema.names_below(place):
            if "." not in name:
                self._modules[name] = Ckpt(f"{place}.{name}" if place else name)

    def look_again(self) -> None:
        """Forget what is known of the parameters' numbers."""

    def order(self, schema: Schema, place: str) -> None:
        """Put the submodules into execution order, in which `print` shows them."""
        names = list(dict.fromkeys(name.partition(".")[0] for name in schema.names_below(place)))
        self._modules = dict(sorted(self._modules.items(), key=lambda item: names.index(item[0])))

    def __setattr__(self, name: str, value: object) -> None:
        view = getattr(type(self), name, None)
        if isinstance(view, LiveView):
            view.__set__(self, value)
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)


MISREAD = (RuntimeError, TypeError, ValueError, AttributeError)
"""What torch raises of values that do not fit a module; `require_vectors` then says what does not, if that is why."""


def _is_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def require_vectors(part: Part, x: object, weight: Tensor, width: int, axes: tuple[str, ...] = ("...",)) -> None:
    """Refuse what is no tensor of vectors [..., width], in the dtype and on the device of a part's weight.

    Called where torch raised, or would have computed something else, so nothing is spent on values that fit.
    """
    expected = f"[{', '.join(axes)}, {width}]"
    if not isinstance(x, Tensor):
        found, remedy = type(x).__name__, "Pass a tensor: torch.as_tensor(x)."
    elif not x.is_floating_point():
        found, remedy = f"{x.dtype}", "Pass values of the residual stream; ids go to embed first: model.embed(ids)."
    elif x.dim() < 1 or x.size(-1) != width:
        found, remedy = (
            f"{list(x.shape)}",
            f"Pass values whose last axis has {width} entries, such as model.embed(ids).",
        )
    elif axes != ("...",) and x.dim() != len(axes) + 1:
        found, remedy = f"{list(x.shape)}", "Pass a batch of texts; of one text [P, D], x[None]."
    elif x.device != weight.device:
        found, remedy = f"a tensor on {x.device}", f"Bring it to the weights' device: x.to({str(weight.device)!r})."
    elif x.dtype != weight.dtype and not _is_autocast(x.device.type):
        found, remedy = f"{x.dtype}", f"Convert it to the dtype of the weights: x.to({weight.dtype})."
        expected += f" of {weight.dtype}"
    else:
        return
    raise ShapeError(
        f"{part._place() or type(part).__name__}: {found} given, expected {expected}.",
        code="module-input",
        remedy=remedy,
    )


def under(place: str, weights: Weights) -> dict[str, Tensor]:
    """The tensors below a place, by their names there."""
    prefix = f"{place}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def given(config: Config, place: str, weights: Weights | None) -> Weights:
    """The weights of a place in a model, fresh ones if none are given."""
    schema = require_schema(config)
    if weights is None:
        return fresh_weights(schema, config.initializer_range, place)
    said = cast(object, weights)
    values = cast("Mapping[str, object]", said).values() if isinstance(said, Mapping) else [said]
    others = [one for one in values if not isinstance(said, Mapping) or not isinstance(one, Tensor)]
    if others:
        raise WeightsError(
            f"weights: {type(others[0]).__name__} given, expected tensors by name.",
            code="weights-misfit",
            remedy="Give a mapping of tensors, such as model.state_dict(). pl.load(weights, config=...) takes arrays "
            "and the names of other libraries, too.",
        )
    return weights


def fresh_weights(schema: Schema, std: float, place: str = "") -> dict[str, Tensor]:
    """Fresh values of the stored parameters below a place, as `Parameter.initial` says, in the schema's order."""
    prefix = f"{place}." if place else ""
    shapes = schema.stored_below(place)
    try:
        with torch.inference_mode(False), torch.no_grad():  # or the model could never be trained
            return {
                name: _fresh(schema.parameter(prefix + name), shape, std, len(schema.blocks))
                for name, shape in shapes.items()
            }
    except RuntimeError as problem:  # torch's allocator has no class of its own on the processor
        numbers = sum(map(math.prod, shapes.values()))
        raise ConfigError(
            f"config: {numbers:,} fresh weights cannot be had on this device: {str(problem).splitlines()[0]:.200}.",
            code="config-out-of-range",
            remedy="Give smaller sizes, or make the model without numbers: on torch's meta device.",
        ) from problem


def _fresh(parameter: Parameter, shape: tuple[int, ...], std: float, n_layer: int) -> Tensor:
    if parameter.initial in ("ones", "zeros"):
        return torch.full(shape, float(parameter.initial == "ones"))
    if parameter.initial == "residual":
        std *= (2 * n_layer) ** -0.5
    order = [parameter.axes.index(axis) for axis in parameter.in_memory or parameter.axes]
    places = [order.index(axis) for axis in range(len(order))]
    return torch.empty([shape[axis] for axis in order]).normal_(std=std).permute(places)


def require_weights(schema: Schema, place: str, weights: Weights) -> None:
    """See that these are the stored parameters of a place in a model, in their shapes."""
    expected = schema.stored_below(place)
    wrong = [
        f"{name}: {list(weights[name].shape) if name in weights else 'missing'}, expected {list(shape)}"
        for name, shape in expected.items()
        if name not in weights or tuple(weights[name].shape) != shape
    ]
    wrong += [f"{name}: not a parameter of this configuration" for name in weights if name not in expected]
    if wrong:
        raise WeightsError(
            f"weights do not fit the configuration: {'; '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}.",
            code="weights-misfit",
            remedy="Give each parameter that config.schema.stored lists"
            f"{f' below {place!r}' if place else ''}, in that shape.",
        )
