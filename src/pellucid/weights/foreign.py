"""The modules that a family's class in transformers runs, and whether each of them still runs transformers' own code.

They are found in a live model; what is looked at is their class, forward, hooks and tensors.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.errors import WeightsError, some
from pellucid.numerics.dense import bring_back
from pellucid.numerics.products import DTYPES

Classes = Mapping[str, tuple[type[nn.Module], ...]]
"""A module's name -> the classes that may stand there; none if any may."""

HEAD = "lm_head"

AS_IT_IS = "pl.compare(reference, hf_model) runs the model as it is and says where it differs."

_AROUND = {"OptimizedModule": "_orig_mod", "CheckpointWrapper": "_checkpoint_wrapped_module"}
"""Classes that compute what the module within them does -> its name there."""


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` or activation checkpointing was given, which computes the same."""
    while name := _AROUND.get(type(module).__name__):
        inside = getattr(module, name, None)
        if not isinstance(inside, nn.Module):  # a class of somebody else's that is called so
            break
        module = inside
    return module


def unwrapped(model: Any) -> Any:
    """The module inside DataParallel, DistributedDataParallel and what `uncompiled` takes off."""
    while isinstance(model, nn.Module):
        model = uncompiled(model)
        if not isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            break
        model = model.module
    return model


def plain(name: str) -> str:
    """A parameter's name without what `torch.compile` and activation checkpointing put into it."""
    return re.sub(rf"({'|'.join(_AROUND.values())})\.", "", name)


@dataclass(frozen=True)
class LiveModule:
    """One module that transformers' class runs."""

    path: str  # its name in the model given; "" for the model itself
    module: nn.Module | None  # what is there, None if nothing is
    # the class that transformers puts there, or others that compute the same; empty if any may be there
    expected: tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class Anatomy:
    """The modules of a family in transformers."""

    headed: type[nn.Module]  # the class with a head, under `lm_head`
    base: type[nn.Module]  # the class without
    norm: type[nn.Module]  # the class of its norms
    inner: str  # where the one holds the other
    block: type[nn.Module]  # the class of a block
    blocks: str  # where they are listed
    around: Classes  # what stands around them
    in_block: Classes  # what is in each, parents first
    attention: str  # the name in a block of what attends, whose class is in `in_block`
    eager: Callable[..., Any]  # what it attends by if it is told to be eager
    limit: str = ""  # the field of the model's configuration that says how many blocks run; "" if all do


def parts_of(hf_model: nn.Module, anatomy: Anatomy) -> Iterator[LiveModule]:
    """Every module that runs, parents first; what stands below something unexpected is left out."""
    root = uncompiled(hf_model)
    headed = isinstance(root, anatomy.headed)
    yield LiveModule("", root, (anatomy.headed if headed else anatomy.base,))
    base = root
    if headed:
        base = _child(root, anatomy.inner)
        yield LiveModule(anatomy.inner, base, (anatomy.base,))
    if base is not None and isinstance(base, anatomy.base):
        prefix = f"{anatomy.inner}." if headed else ""
        yield from _below(prefix, base, anatomy.around)
        listed, config = _child(base, anatomy.blocks), vars(base).get("config")
        blocks = list(listed) if isinstance(listed, nn.ModuleList) else []
        for i, block in enumerate(blocks[: getattr(config, anatomy.limit, None) if anatomy.limit else None]):
            block = uncompiled(block)  # noqa: PLW2901
            yield LiveModule(f"{prefix}{anatomy.blocks}.{i}", block, (anatomy.block,))
            if isinstance(block, anatomy.block):
                yield from _below(f"{prefix}{anatomy.blocks}.{i}.", block, anatomy.in_block)
    if headed:
        yield LiveModule(HEAD, _child(root, HEAD), (nn.Linear,))


def _below(prefix: str, parent: nn.Module, expected: Classes) -> Iterator[LiveModule]:
    wrong: list[str] = []
    for path, classes in expected.items():
        if path.rpartition(".")[0] in wrong:
            continue
        module = parent
        for name in path.split("."):
            module = _child(module, name)
        if classes and not isinstance(module, classes):
            wrong.append(path)
        yield LiveModule(prefix + path, module, classes)


def _child(parent: nn.Module | None, name: str) -> nn.Module | None:
    child = getattr(parent, name, None)
    return uncompiled(child) if isinstance(child, nn.Module) else None


def runs_as(module: nn.Module | None, classes: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of one of these classes and is called as that class is; a subclass may add to it."""
    called = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
    return any(
        isinstance(module, cls) and all(getattr(type(module), name) is getattr(cls, name) for name in called)
        for cls in classes
    )


def require_own_forwards(hf_model: nn.Module, parts: Sequence[LiveModule]) -> None:
    """Refuse a forward that was put in the place of transformers', in one module or in its class."""
    patched = [part.path or "the model" for part in parts if part.module is not None and _is_patched(part.module)]
    if patched:
        raise WeightsError(
            f"from_hf: {some(patched)} runs another forward than transformers'.",
            code="hf-patched-forward",
            remedy=bring_back(hf_model)
            or "Undo the patch: `del module.forward` if a module was patched; "
            "accelerate.hooks.remove_hook_from_module(hf_model, recurse=True) or accelerator.unwrap_model(hf_model) if "
            "accelerate did it; a new process if a class was patched.",
        )


def require_own_functions(direction: str, hf_model: nn.Module) -> None:
    """Refuse functions that were put in the place of those that transformers' classes call, such as their masks."""
    classes = {cls for module in hf_model.modules() for cls in type(module).__mro__}
    homes = {sys.modules[cls.__module__] for cls in classes if cls.__module__.startswith("transformers.models.")}
    found = sorted(name for home in homes for name in _replaced(home))
    if found:
        raise WeightsError(
            f"{direction}: {some(found)} is not transformers' own, and its classes call it.",
            code="hf-patched-forward",
            remedy=f"Open the model in a new process, before anything puts a function there. {AS_IT_IS}",
        )


def _replaced(home: ModuleType) -> Iterator[str]:
    """The functions in a module of transformers', and methods but forward of its models, that somebody else wrote."""
    models = [one for one in vars(home).values() if isinstance(one, type) and issubclass(one, nn.Module)]
    for owner in (home, *(model for model in models if model.__module__ == home.__name__)):
        for name, value in vars(owner).items():
            looked_at = isinstance(value, FunctionType) and name != "forward"
            if looked_at and value.__module__ != "dataclasses" and not _is_of(value, "transformers", "torch"):
                yield f"{owner.__name__}.{name}"


def _is_patched(module: nn.Module) -> bool:
    own: Any = module.forward
    own = getattr(own, "_torchdynamo_orig_callable", own)  # hf_model.forward = torch.compile(hf_model.forward)
    written = type(module).forward
    is_own = getattr(own, "__self__", None) is module and own.__func__ is written
    return not (is_own and _is_of(written, "transformers", "torch"))


def require_no_hooks(parts: Sequence[LiveModule]) -> None:
    """Refuse hooks of the forward pass, which may change what it computes and would not be copied.

    Those by which transformers looks on are no obstacle. Hooks of the backward pass stay behind.
    """
    found = [
        f"{part.path or 'the model'} has the hook {_name(hook)}"
        for part in parts
        if part.module is not None
        for hook in (*part.module._forward_hooks.values(), *part.module._forward_pre_hooks.values())
        # those of torch compute a tensor, see `require_plain_tensors`
        if not only_looks(hook) and not type(hook).__module__.startswith("torch.nn.utils.")
    ]
    everywhere = (*torch_module._global_forward_hooks.values(), *torch_module._global_forward_pre_hooks.values())
    found += [f"every module has the hook {_name(hook)}" for hook in everywhere if not only_looks(hook)]
    if found:
        raise WeightsError(
            f"from_hf: {some(found, separator='; ')}, which may change what the model computes.",
            code="hf-hooks",
            remedy="Remove hooks first: handle.remove(), or module._forward_hooks.clear() and "
            "module._forward_pre_hooks.clear(). They work on the copy as well: "
            "model.blocks[0].register_forward_hook(...).",
        )


def attention_of(
    parts: Sequence[LiveModule], base: type[nn.Module], attention: type[nn.Module], eager: Callable[..., Any]
) -> str:
    """How a model attends, in our words: "eager" if each of its blocks does so explicitly, else "auto".

    Refuses an attention function that is not transformers' own, or that gets the masks of another one.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    named: dict[str, Any] = {part.path: part.module for part in parts if isinstance(part.module, (base, attention))}
    used = {path: str(module.config._attn_implementation) for path, module in named.items()}
    for name in sorted(set(used.values())):
        known = eager if name == "eager" else None
        attends, masks = ALL_ATTENTION_FUNCTIONS.get(name, known), ALL_MASK_ATTENTION_FUNCTIONS.get(name)
        if not (_is_of(attends, "transformers") and (masks is None or _is_of(masks, "transformers"))):
            raise WeightsError(
                f"from_hf: the attention {name!r} is {_name(attends)}, expected transformers' own.",
                code="hf-attention",
                remedy="Choose one of transformers' own in a new process: hf_model.set_attn_implementation('sdpa').",
            )
    # Eager attention of a block without the masks that the model makes for it sees later tokens.
    masked = used[next(path for path in used if isinstance(named[path], base))]
    other = [path for path in used if used[path] not in (masked, "sdpa" if masked == "eager" else masked)]
    if other:
        raise WeightsError(
            f"from_hf: {other[0]} attends by {used[other[0]]!r}, but the model makes masks for {masked!r}.",
            code="hf-attention",
            remedy=f"Give the block the model's configuration: hf_model.get_submodule({other[0]!r}).config = "
            "hf_model.config.",
        )
    attends = {used[path] for path in used if isinstance(named[path], attention)}
    return "eager" if (attends or {masked}) == {"eager"} else "auto"


def require_dense(tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are no plain matrices of a float dtype on one device."""
    wrong = [
        f"{name} is a {type(tensor).__name__} of {tensor.dtype}, {tensor.layout}"
        for name, tensor in tensors.items()
        if tensor.dtype not in DTYPES.values()
        or tensor.layout is not torch.strided
        or tensor.is_nested
        or type(tensor) not in (Tensor, nn.Parameter)
    ]
    if wrong:
        raise WeightsError(
            f"from_hf: {some(wrong, separator='; ')}, expected dense tensors of {', '.join(DTYPES)}.",
            code="hf-tensors",
            remedy="Load the model without quantisation or sharding, or bring its tensors back: hf_model.dequantize() "
            "of a quantised one, hf_model.float() of another dtype.",
        )
    devices = sorted({str(tensor.device) for tensor in tensors.values()})
    if len(devices) > 1:
        raise WeightsError(
            f"from_hf: the model lies on {' and '.join(devices)}, expected one device.",
            code="hf-tensors",
            remedy="Bring it together: hf_model.to('cpu').",
        )


def require_plain_tensors(path: str, module: nn.Module) -> None:
    """Refuse a weight or a bias that is no parameter: computed from others, by pruning or a norm, or taken out."""
    _require_bias(path, module)
    names = (name for name in ("weight", "bias") if name not in module._parameters)
    name = next((name for name in names if getattr(module, name, None) is not None), None)
    if name is None:
        return
    own = {*module._parameters, *module._buffers}
    held = {*own, *module._modules}
    undone_by = {
        "parametrizations": "parametrize.remove_parametrizations",
        f"{name}_mask": "prune.remove",
        f"{name}_g": "remove_weight_norm",
        f"{name}_u": "remove_spectral_norm",
    }
    undo = next((f"torch.nn.utils.{undone_by[key]}(module, {name!r})" for key in undone_by if key in held), None)
    undo = undo or f"value = module.{name}; del module.{name}; module.{name} = torch.nn.Parameter(value)"
    others = ", ".join(sorted(own - {"weight", "bias"}))
    raise WeightsError(
        f"from_hf: {path}.{name} is {f'computed from {others}' if others else 'no parameter'}, expected one.",
        code="hf-computed-weight",
        remedy=f"Make it permanent first, with module = hf_model.get_submodule({path!r}): {undo}.",
    )


def _require_bias(path: str, module: nn.Module) -> None:
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, (nn.LayerNorm, nn.Linear, Conv1D)):
        return
    there = "bias" in module._parameters or getattr(module, "bias", None) is not None
    if there and not (isinstance(module, Conv1D) and module._parameters.get("bias", module) is None):
        return
    if isinstance(module, Conv1D):
        size = module.nf
    else:
        size = module.out_features if isinstance(module, nn.Linear) else module.normalized_shape[-1]
    what = "None" if there else "not there"
    raise WeightsError(
        f"from_hf: {path}.bias is {what}, and {type(module).__name__} does not run without.",
        code="hf-tensors",
        remedy=f"hf_model.get_submodule({path!r}).bias = torch.nn.Parameter(torch.zeros({size})) adds nothing.",
    )


def only_looks(hook: object) -> bool:
    """Whether transformers made this hook, and not to add noise (NEFTune) or to divide the work."""
    made = "transformers" in sys.modules and _is_of(hook, "transformers")
    return made and not _module(hook).startswith("transformers.integrations.")


def _module(function: object) -> str:
    return getattr(function, "__module__", None) or type(function).__module__


def _is_of(function: object, *packages: str) -> bool:
    """Whether a function, and each that it wraps, was written in one of these packages."""
    folders = tuple(f"{folder}/" for package in packages for folder in sys.modules[package].__path__)
    chain = [*_wrapped(function)]
    return bool(chain) and all(file.startswith(folders) for file in chain)


def _wrapped(function: Any) -> Iterator[str]:
    """The files of a function and of those below it."""
    seen: set[int] = set()
    while function is not None and id(function) not in seen:
        seen.add(id(function))
        if isinstance(function, functools.partial):
            function = function.func  # pyright: ignore[reportUnknownMemberType]
            continue
        code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
        yield "" if code is None else code.co_filename
        function = getattr(function, "__wrapped__", None)


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
