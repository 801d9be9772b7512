"""What is audited: names and tensors, what is declared about them, and what it came from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.check import require_tree
from pellucid.errors import InputError, WeightsError
from pellucid.family.rotary import Rotary
from pellucid.numerics.dense import bring_back, has_memory, not_dense
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import Named

OUR_EMBED, OUR_HEAD = "embed.W_E", "unembed.W_U"


@dataclass(frozen=True)
class Declared:
    """What others say about ties, each of which may be wrong."""

    # `_tied_weights_keys`, target -> source; None if a class declares nothing
    by_class: Mapping[str, str] | None = None
    by_config: bool | None = None  # `tie_word_embeddings`; None if there is no configuration, or it does not say
    # `all_tied_weights_keys`, what transformers noted when the model was made; None elsewhere
    by_cache: Mapping[str, str] | None = None
    # modules whose `_tied_weights_keys` is a list, as in transformers 4; version 5 crashes on them
    malformed: tuple[str, ...] = ()
    recorded: Mapping[str, str] | None = None  # names that a safetensors file says it left out -> the name that it kept

    def __str__(self) -> str:
        said = {"class": _pairs(self.by_class)} if self.by_class is not None else {}
        said |= {"class": f"a list in {', '.join(self.malformed)}"} if self.malformed else {}
        said |= {"configuration": "tied" if self.by_config else "untied"} if self.by_config is not None else {}
        said |= {"cache": _pairs(self.by_cache)} if self.by_cache is not None else {}
        said |= {"file": _pairs(self.recorded)} if self.recorded else {}
        return "; ".join(f"{who}: {what}" for who, what in said.items()) or "nothing"


def _pairs(ties: Mapping[str, str]) -> str:
    return ", ".join(f"{target} = {source}" for target, source in ties.items()) or "none"


@dataclass(frozen=True)
class Subject:
    """What is audited."""

    what: str  # for people
    kind: str  # "ours", "hf", "module", "state dict" or "checkpoint"
    named: tuple[Named, ...]  # every tensor under every name
    declared: Declared  # what is said about them
    trainable: tuple[Tensor, ...] = ()  # the parameters themselves; empty if there are none


def is_hf(x: object) -> bool:
    """Whether it is a transformers model; asking does not import transformers."""
    module = sys.modules.get("transformers.modeling_utils")
    return module is not None and isinstance(x, module.PreTrainedModel)


def runs_another(module: nn.Module) -> bool:
    """Whether a forward of somebody else's stands in a module; accelerate's, which only moves tensors, is none."""
    hook = vars(module).get("_hf_hook")
    moves = {type(one).__name__ for one in getattr(hook, "hooks", (hook,))} == {"AlignDevicesHook"}
    # accelerate leaves the class's own forward in a module whose hook it removes
    forward = vars(module).get("_old_forward" if moves else "forward")
    own = getattr(forward, "__func__", None) is type(module).forward
    return "forward" in vars(module) and not (own and (moves or getattr(forward, "__self__", None) is module))


def plain_linear(module: nn.Module | None) -> nn.Linear | None:
    """The `Linear` that a module computes and nothing else, through any number of `Sequential`s around it."""
    while type(module) is nn.Sequential:
        inner = [child for child in module if type(child) is not nn.Identity]
        module = inner[0] if len(inner) == 1 else None
    if not isinstance(module, nn.Linear) or runs_another(module):
        return None
    return module if type(module).forward is nn.Linear.forward else None


def built(model: CkptedTransformer) -> CkptedTransformer:
    """What the configuration of a model builds, without numbers but for those that no file holds."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        fresh = CkptedTransformer(model.config)
    if isinstance(fresh._modules.get("rotary"), Rotary):
        fresh.rotary = Rotary(model.config.rule)
    return fresh


def remember(boxes: Iterable[dict[Any, Any]]) -> Callable[[], None]:
    """Note what dicts hold, such as the attributes of modules, and return what puts it back."""
    noted = [(box, dict(box)) for box in boxes]

    def put_back() -> None:
        for box, content in noted:
            box.clear()
            box.update(content)

    return put_back


def live_subject(model: nn.Module) -> Subject:
    """Describe a model in memory, which is only read; raise `InputError` if a module holds itself."""
    require_tree(model, "audit_ties")
    require_here("audit_ties", model)
    named = tuple(_named(model))
    _require_memory(named, "Give the model as it was before it was quantized or sharded.")
    trainable = tuple(model.parameters())
    what = type(model).__name__
    if isinstance(model, CkptedTransformer):
        declared = Declared(by_config=model.config.tie_word_embeddings)
        return Subject(f"{what} (pellucid)", "ours", named, declared, trainable)
    if is_hf(model):
        return Subject(f"{what} (transformers)", "hf", named, declared_by(model), trainable)
    return Subject(what, "module", named, Declared(), trainable)


def require_here(verb: str, model: nn.Module) -> None:
    """Refuse a model whose tensors accelerate keeps elsewhere: what stands in their place shares no memory."""
    if remedy := bring_back(model):
        raise WeightsError(
            f"{verb}: tensors of {type(model).__name__} are on the meta device, which holds no numbers.",
            code="meta-device",
            remedy=remedy,
        )


def _require_memory(named: Iterable[Named], remedy: str = "") -> None:
    """Refuse tensors whose numbers lie in others, unless by a layout: what these share is not seen."""
    for one in named:
        by_layout = one.tensor.layout != torch.strided and not one.tensor.is_nested
        kind = None if by_layout or has_memory(one.tensor) else not_dense(one.tensor)
        if kind is not None:
            raise WeightsError(
                f"audit_ties: {one.name} is {kind.said}, expected a tensor with memory of its own.",
                code="tensor-not-dense",
                remedy=remedy or kind.remedy(),
            )


def _named(model: nn.Module) -> Iterator[Named]:
    """Parameters under all of their names, then the buffers that a state dict has."""
    ours = isinstance(model, CkptedTransformer)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # Our head's memory is that of a [V, D] matrix, like the embedding that it is compared with.
        yield Named(name, parameter.t() if ours and name == OUR_HEAD else parameter)
    if isinstance(model, CkptedTransformer) and getattr(model.unembed, "tied", False):
        yield Named(OUR_HEAD, model.embed.W_E)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield Named(f"{path}.{name}" if path else name, buffer, counted=False)


def declared_by(model: Any) -> Declared:
    """What a transformers model's classes, configuration and cache say."""
    by_class: dict[str, str] = {}
    malformed: list[str] = []
    for path, module in model.named_modules():
        keys = getattr(module, "_tied_weights_keys", None)
        if not keys:
            continue
        if isinstance(keys, Mapping):
            prefix = f"{path}." if path else ""
            by_class.update({f"{prefix}{target}": f"{prefix}{source}" for target, source in keys.items()})
        else:
            malformed.append(path or type(module).__name__)
    tied = getattr(model.config, "tie_word_embeddings", None)
    cache = getattr(model, "all_tied_weights_keys", None)
    return Declared(
        by_class or None,
        tied if isinstance(tied, bool) else None,
        dict(cache) if isinstance(cache, Mapping) else None,
        tuple(malformed),
    )


def weight_names(model: Any) -> tuple[str | None, str | None]:
    """The names of a transformers model's output and input embedding weights; None if there is none."""
    return (_weight_name(model, "get_output_embeddings"), _weight_name(model, "get_input_embeddings"))


def _weight_name(model: Any, getter: str) -> str | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return next((f"{path}.weight" for path, other in model.named_modules() if other is module and path), None)


def state_dict_subject(tensors: Mapping[Any, Any]) -> Subject:
    """Describe a state dict; raise `InputError` if something in it is no named tensor."""
    wrong = [repr(n) for n, t in tensors.items() if not (isinstance(n, str) and isinstance(t, Tensor))]
    if wrong or not tensors:
        raise InputError(
            f"audit_ties: a dict with {', '.join(wrong[:8]) or 'no entries'}, expected names and tensors.",
            code="not-a-state-dict",
            remedy="Give model.state_dict(), or the part of the file that holds it.",
        )
    named = tuple(Named(n, t) for n, t in tensors.items())
    _require_memory(named)
    return Subject("state dict", "state dict", named, Declared())
