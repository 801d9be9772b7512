"""Whether a module of transformers still runs transformers' own code: class, forward, hooks and tensors."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.check import attribute
from pellucid.errors import WeightsError
from pellucid.extras import need
from pellucid.family.families import InTransformers
from pellucid.numerics.products import DTYPES

AS_IT_IS = "pl.compare(reference, hf_model) runs the model as it is and says where it differs."


class _Part(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def module(self) -> nn.Module | None: ...


_AROUND = {"OptimizedModule": "_orig_mod", "CheckpointWrapper": "_checkpoint_wrapped_module"}
"""Classes that compute what the module within them does -> its name there."""


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` or activation checkpointing was given, which computes the same."""
    while (inside := module._modules.get(_AROUND.get(type(module).__name__, ""))) is not None:
        module = inside
    return module


def plain(name: str) -> str:
    """A parameter's name without what `torch.compile` and activation checkpointing put into it."""
    return re.sub(rf"({'|'.join(_AROUND.values())})\.", "", name)


def require_gathered(hf_model: nn.Module) -> None:
    """Refuse a model whose tensors lie in parts, with all of several processes, as FSDP's do."""
    parts = [path for path, module in hf_model.named_modules() if re.match("FSDP|FullyShard", type(module).__name__)]
    if parts:
        raise WeightsError(
            f"from_hf: {parts[0] or 'the model'} is sharded (FSDP), so its tensors lie in parts.",
            code="hf-tensors",
            remedy="Gather them with torch.distributed.checkpoint.state_dict: pl.load(get_model_state_dict(hf_model, "
            "options=StateDictOptions(full_state_dict=True)), config=hf_model.config).",
        )


def more(items: Sequence[object]) -> str:
    """How many there are beside the three that a message names."""
    return f" and {len(items) - 3} more" if len(items) > 3 else ""


def wrong_class(given: object, families: Sequence[InTransformers]) -> WeightsError:
    """The error for what is no model of a known family of transformers: where it holds one, or what opens it."""
    names = [name for family in families for name in (family.model, family.base)]
    transformers = need("transformers", "from_hf", *names)
    models = tuple(getattr(transformers, name) for name in names)
    name, inner = type(given).__name__, attribute(given, "model")
    modules = given.named_modules() if isinstance(given, nn.Module) else [("model", inner)]
    held = next((path for path, module in modules if isinstance(module, models)), None)
    if isinstance(given, type):
        name, remedy = f"the class {given.__name__}", f"Make a model of it: {given.__name__}.from_pretrained(name)."
    elif held is not None:
        place = held if all(map(str.isidentifier, held.split("."))) else f"get_submodule({held!r})"
        remedy = f"Give the one that it holds: pl.from_hf(hf_model.{place}). What stands around it is not carried over."
    elif isinstance(given, (str, Path, Mapping)):
        remedy = "pl.load opens names, folders, files and state dicts."
    elif isinstance(given, nn.Module) and type(given).__module__.startswith("pellucid."):
        remedy = "It is one of pellucid's already; copy.deepcopy(model) makes another."
    else:
        remedy = "pellucid reads these of transformers only; pl.compare takes other programs that compute the same."
    return WeightsError(f"from_hf: given {name}, expected {' or '.join(names)}.", code="hf-wrong-class", remedy=remedy)


def runs_as(module: nn.Module | None, classes: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module is of one of these classes and is called as that class is; a subclass may add to it."""
    called = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
    return any(
        isinstance(module, cls) and all(getattr(type(module), name) is getattr(cls, name) for name in called)
        for cls in classes
    )


def require_own_forwards(parts: Sequence[_Part]) -> None:
    """Refuse a forward that was put in the place of transformers', in one module or in its class."""
    patched = [part.path or "the model" for part in parts if part.module is not None and _is_patched(part.module)]
    if patched:
        raise WeightsError(
            f"from_hf: {', '.join(patched[:3])}{more(patched)} runs another forward than transformers'.",
            code="hf-patched-forward",
            remedy="Undo the patch: `del module.forward` if a module was patched; accelerate.hooks."
            "remove_hook_from_module(hf_model, recurse=True) or accelerator.unwrap_model(hf_model) if accelerate "
            "did it; a new process if a class was patched.",
        )


def require_own_functions(direction: str, hf_model: nn.Module) -> None:
    """Refuse functions that were put in the place of those that transformers' classes call, such as their masks."""
    classes = {cls for module in hf_model.modules() for cls in type(module).__mro__}
    homes = {sys.modules[cls.__module__] for cls in classes if cls.__module__.startswith("transformers.models.")}
    found = sorted(name for home in homes for name in _replaced(home))
    if found:
        raise WeightsError(
            f"{direction}: {', '.join(found[:3])}{more(found)} is not transformers' own, and its classes call it.",
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


def require_no_hooks(parts: Sequence[_Part]) -> None:
    """Refuse hooks of the forward pass, which may change what it computes and would not be copied.

    Those by which transformers looks on are no obstacle. Hooks of the backward pass stay behind.
    """
    found = [
        f"{part.path or 'the model'} has the hook {_name(hook)}"
        for part in parts
        if part.module is not None
        for hook in (*part.module._forward_hooks.values(), *part.module._forward_pre_hooks.values())
        # those of torch compute a tensor, see `require_plain_tensors`
        if not _only_looks(hook) and not type(hook).__module__.startswith("torch.nn.utils.")
    ]
    everywhere = (*torch_module._global_forward_hooks.values(), *torch_module._global_forward_pre_hooks.values())
    found += [f"every module has the hook {_name(hook)}" for hook in everywhere if not _only_looks(hook)]
    if found:
        raise WeightsError(
            f"from_hf: {'; '.join(found[:3])}{more(found)}, which may change what the model computes.",
            code="hf-hooks",
            remedy="Remove hooks first: handle.remove(), or module._forward_hooks.clear() and "
            "module._forward_pre_hooks.clear(). They work on the copy as well: "
            "model.blocks[0].register_forward_hook(...).",
        )


def attention_of(
    parts: Sequence[_Part], base: type[nn.Module], attention: type[nn.Module], eager: Callable[..., Any]
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
            f"from_hf: {'; '.join(wrong[:3])}{more(wrong)}, expected dense tensors of {', '.join(DTYPES)}.",
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
    computed = [name for name in ("weight", "bias") if name in _computed(module)]
    if not computed:
        return
    name = computed[0]
    own = {*module._parameters, *module._buffers}
    if "parametrizations" in module._modules:
        call = f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})"
    elif f"{name}_mask" in own:
        call = f"torch.nn.utils.prune.remove(module, {name!r})"
    elif f"{name}_g" in own:
        call = f"torch.nn.utils.remove_weight_norm(module, {name!r})"
    elif f"{name}_u" in own:
        call = f"torch.nn.utils.remove_spectral_norm(module, {name!r})"
    else:
        call = f"value = module.{name}; del module.{name}; module.{name} = torch.nn.Parameter(value)"
    others = ", ".join(sorted(own - {"weight", "bias"}))
    raise WeightsError(
        f"from_hf: {path}.{name} is {f'computed from {others}' if others else 'no parameter'}, expected one.",
        code="hf-computed-weight",
        remedy=f"Make it permanent first, with module = hf_model.get_submodule({path!r}): {call}.",
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


def _computed(module: nn.Module) -> set[str]:
    """Names of tensors that the module has, and that are not its own parameters."""
    return {
        name
        for name in ("weight", "bias")
        if name not in module._parameters and getattr(module, name, None) is not None
    }


def _only_looks(hook: object) -> bool:
    """Whether transformers made this hook, and not to add noise (NEFTune) or to divide the work."""
    return _is_of(hook, "transformers") and not _module(hook).startswith("transformers.integrations.")


def _module(function: object) -> str:
    return getattr(function, "__module__", None) or type(function).__module__


def remedy(modules: Iterable[nn.Module | None]) -> str | None:
    """What to do about modules that adapt or quantise others; None if none of these does."""
    for module in modules:
        where = f"{type(module).__module__}.{type(module).__name__}"
        if module is not None and (hasattr(module, "base_layer") or re.search("peft|lora", where, re.IGNORECASE)):
            return "Merge the adapters into the weights first: hf_model = peft_model.merge_and_unload()."
        if re.search("bitsandbytes|quant|gptq|awq|hqq|eetq|8bit|4bit", where, re.IGNORECASE):
            return "Load the model without quantisation, or give its weights back: hf_model.dequantize()."
    return None


def _is_of(function: object, *packages: str) -> bool:
    """Whether a function, and each that it wraps, was written in one of these packages."""
    folders = tuple(f"{folder}/" for package in packages for folder in _folders(package))
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


@functools.cache
def _folders(package: str) -> tuple[str, ...]:
    return tuple(str(Path(folder)) for folder in sys.modules[package].__path__)


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
