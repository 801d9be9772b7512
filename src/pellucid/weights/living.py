"""What a live transformers model computes, read off its modules, or an error that names what cannot be read.

A configuration says how a model was built. People change models afterwards: they replace, patch, hook, prune and
quantise them, and set constants. So everything that transformers' class runs is looked at: the class of each module,
its forward, its hooks, its constants and its tensors. A family says what there is to look at (`Kind`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.errors import ConfigError, WeightsError, printable, shown, some
from pellucid.family.config import AT_LOADING
from pellucid.family.json_config import Config
from pellucid.family.part import require_numbers
from pellucid.family.rotary import FREQUENCIES, Rotary
from pellucid.weights import foreign
from pellucid.weights.foreign import AS_IT_IS, HEAD, Anatomy, LiveModule, parts_of


@dataclass(frozen=True)
class Live:
    """What was read off a live model of transformers."""

    # Under transformers' names, as its own classes store them; the model's own memory where nothing had to be turned.
    # The head is among them unless it is the embedding.
    tensors: dict[str, Tensor]
    config: Any  # what the modules are; where it differs from the model's configuration, the modules count
    notes: dict[str, str]  # what the reader may want to know, by topic
    buffers: dict[str, Tensor]  # what it computes with beside its parameters and its configuration, under our names
    attention: str  # how it attends, in our words


class Shown(NamedTuple):
    """Where a module of transformers shows checkpoints of ours."""

    path: str  # the module, below the model without its head
    entering: bool  # True if what enters it is meant, else what leaves it
    names: tuple[str, ...]  # the checkpoints; several if the value holds them side by side along its last axis


@dataclass(frozen=True)
class Kind:
    """How a family's live models are read."""

    config: type[Config]  # the class of its configurations
    anatomy: Callable[[], Anatomy]  # its modules; a function, because it needs transformers
    # the fields of the configuration that the tensors, by their names below the base, show otherwise
    sizes: Callable[[Any, Mapping[str, Tensor]], dict[str, Any]]
    # the attributes of a module, by its path, that the configuration decides -> what they have to be
    constants: Callable[[str, nn.Module, Any], Mapping[str, object]]
    activation: str  # the name in a block of the activation function
    embedding: str  # the name below the base of the token embedding
    norm: str  # the name below the base of the last norm
    before: Sequence[Shown]  # where a model shows our checkpoints before its blocks, in their order
    in_block: Sequence[Shown]  # where a block does
    # the tensors of a module, by its path, as transformers' own classes store them; None if its modules store them so
    stored: Callable[[str, nn.Module], dict[str, Tensor]] | None = None
    # whether a module, by its path, keeps the matrix of a `Conv1D` the other way round, as a `Linear`
    turned: Callable[[str, nn.Module], bool] = field(default=lambda path, module: False)
    # a field of the configuration -> the names of the modules whose rate of dropout it is
    dropouts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # what the model computes with beside its parameters, under our names; refuses what it cannot carry
    buffers: Callable[[Mapping[str, nn.Module], Any], dict[str, Tensor]] = field(default=lambda named, config: {})

    def tensors_of(self, path: str, module: nn.Module) -> dict[str, Tensor]:
        """The module's own tensors, as transformers' own classes store them."""
        if self.stored is not None:
            return self.stored(path, module)
        holding = (nn.Embedding, nn.Linear, self.anatomy().norm)
        return _weight_and_bias(path, module, self.config) if isinstance(module, holding) else {}

    def shown(self, config: Config) -> Iterator[Shown]:
        """Where a model without its head shows our checkpoints, in their order."""
        yield from self.before
        blocks = self.anatomy().blocks
        for i in range(config.sizes["layer"]):
            for path, entering, names in self.in_block:
                place = f"{blocks}.{i}.{path}" if path else f"{blocks}.{i}"
                yield Shown(place, entering, tuple(f"blocks.{i}.{name}" for name in names))
        yield Shown(self.norm, False, ("ln_final.ckpt_normalized",))


def read(hf_model: nn.Module, kind: Kind) -> Live:
    """Read a model of transformers with or without a head; without one, it is the embedding."""
    anatomy = kind.anatomy()
    parts = [*parts_of(hf_model, anatomy)]
    _require_classes(parts, kind)
    foreign.require_own_forwards(hf_model, parts)
    foreign.require_no_hooks(parts)
    attends = anatomy.in_block[anatomy.attention][0]
    attention = foreign.attention_of(parts, anatomy.base, attends, anatomy.eager)
    named = {part.path: part.module for part in parts if part.module is not None}
    _require_apart(named, anatomy)
    tensors = {
        f"{path}.{name}": tensor
        for path, module in named.items()
        for name, tensor in kind.tensors_of(path, module).items()
    }
    require_numbers("from_hf", tensors.values())
    foreign.require_dense(tensors)
    said, passed_over = _config_of(hf_model, kind.config)
    prefix = f"{anatomy.inner}." if anatomy.inner in named else ""
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    shown_sizes = {name: n for name, n in kind.sizes(said, found).items() if n != getattr(said, name)}
    config = said.replace(**shown_sizes)
    require_as_configured(named, config, kind)
    unread = [name for name, _ in hf_model.named_parameters() if foreign.plain(name) not in tensors]
    sizes = (f"{name} {size}, configured {getattr(said, name)}" for name, size in shown_sizes.items())
    notes = {"left_out": unread, "untied": _sharing(tensors), "sizes": sizes, "config_unread": passed_over[:100]}
    head = f"{HEAD}.weight"
    tied = head not in tensors or _is_tied(tensors[head], tensors[f"{prefix}{kind.embedding}.weight"])
    if tied:
        tensors.pop(head, None)
    config = config.replace(tie_word_embeddings=tied, **_rates(kind.dropouts, named))
    notes = {topic: note for topic, items in notes.items() if (note := printable(", ".join(items)))}
    return Live(tensors, config, notes, kind.buffers(named, config), attention)


def _sharing(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Parameters that are one in the model, and will be two in the copy; the head's tie is kept."""
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        first = seen.setdefault(id(tensor), name)
        if first != name and name != f"{HEAD}.weight":
            yield f"{name} from {first}"


def _require_classes(parts: Sequence[LiveModule], kind: Kind) -> None:
    """Refuse what is not of transformers' class, or of a class with another forward."""
    wrong = [
        part
        for part in parts
        if part.module is None or (part.expected and not foreign.runs_as(part.module, part.expected))
    ]
    head = [part for part in wrong if part.path == HEAD]
    if head and len(wrong) == 1:
        raise wrong_head(head[0].module, kind.config)
    if wrong:
        raise WeightsError(
            f"from_hf: {some([*map(_said, wrong)], separator='; ')}.",
            code="hf-part",
            remedy=f"{_remedy(part.module for part in wrong) or _OTHERWISE} {AS_IT_IS}",
        )


_OTHERWISE = "Put a module of the expected class there: nothing else is carried over."


def _said(part: LiveModule) -> str:
    expected = part.expected[0].__name__ if part.expected else "a module"
    if part.module is None:
        return f"{part.path} is missing, expected {expected}"
    if isinstance(part.module, part.expected):
        return f"{part.path or 'the model'} is {type(part.module).__name__}, whose forward is not {expected}'s"
    kind = type(part.module).__name__
    which = f" of {type(part.module).__module__}" * (kind in ("Linear", "Embedding"))  # others have theirs
    return f"{part.path} is {kind}{which}, expected {expected}"


def wrong_head(head: object, config: type[Config]) -> WeightsError:
    """The error for an output head that is not a matrix."""
    said = str(head).partition("(\n")[0]
    changed = _remedy([head]) if isinstance(head, nn.Module) else None
    return WeightsError(
        f"from_hf: the head is {said}, expected a plain Linear without bias.",
        code="hf-head",
        remedy=changed
        or f"Put a torch.nn.Linear({config.about.width}, vocab_size, bias=False) in its place; "
        f"{config.about.family} has no other head.",
    )


def _remedy(modules: Iterable[nn.Module | None]) -> str | None:
    """What to do about modules that adapt or quantise others; None if none of these does."""
    for module in modules:
        where = f"{type(module).__module__}.{type(module).__name__}"
        if module is not None and (hasattr(module, "base_layer") or re.search("peft|lora", where, re.IGNORECASE)):
            return "Merge the adapters into the weights first: hf_model = peft_model.merge_and_unload()."
        if where.startswith("torch.ao."):
            return "Give the model as it was before it was quantized."
        if re.search("bitsandbytes|quant|gptq|awq|hqq|eetq|8bit|4bit", where, re.IGNORECASE):
            return "Load the model without quantisation, or give its weights back: hf_model.dequantize()."
    return None


def _require_apart(named: dict[str, nn.Module], anatomy: Anatomy) -> None:
    """Refuse a module that stands in two places: a copy would have two, and the reference's cache has one."""
    seen: dict[int, str] = {}
    for path, module in named.items():
        first = seen.setdefault(id(module), path)
        if first != path and any(True for _ in module.parameters()):
            raise WeightsError(
                f"from_hf: {path} is the same module as {first}, expected one of its own.",
                code="hf-shared",
                remedy=f"Give it one: {_apart(path, first, anatomy)}. {AS_IT_IS}",
            )


def _apart(path: str, first: str, anatomy: Anatomy) -> str:
    """The statements that put a copy of a module in its second place, where a block's attention has its own number."""
    made = f"hf_model.set_submodule({path!r}, copy.deepcopy(hf_model.get_submodule({first!r})))"
    block = path.removesuffix(f".{anatomy.attention}")
    _, list_, number = block.rpartition(f"{anatomy.blocks}.")
    attends = f"{block}.{anatomy.attention}"
    numbered = f"; hf_model.get_submodule({attends!r}).layer_idx = {number}" if list_ and number.isdigit() else ""
    return made + numbered


def no_weight(path: str, width: str) -> WeightsError:
    """The error for a module without its weight."""
    return WeightsError(
        f"from_hf: {path}.weight is None, expected a tensor.",
        code="hf-tensors",
        remedy=f"hf_model.get_submodule({path!r}).weight = torch.nn.Parameter(torch.ones(hf_model.config.{width})) "
        "computes the same.",
    )


def _config_of(hf_model: Any, cls: type[Config]) -> tuple[Any, list[str]]:
    """The configuration of a live model, and the attributes that its class does not read, which are left out.

    So is what counts only where a file is opened, and the name of the kind: the class is seen. What it says of
    quantisation may be over; whether the weights are quantised is seen in the modules.
    """
    from transformers.configuration_utils import PreTrainedConfig

    if not isinstance(hf_model.config, PreTrainedConfig):
        theirs = f"{cls.about.family.replace('-', '')}Config"
        raise WeightsError(
            f"from_hf: hf_model.config is {shown(hf_model.config)}, expected a {theirs}.",
            code="hf-part",
            remedy=f"hf_model.config = transformers.{theirs}(...), with the model's sizes.",
        )
    given = hf_model.config.to_dict()
    try:
        unread = cls.unread_of(given)
        return cls.from_dict(given, ignore={*unread, *AT_LOADING, "model_type"} & set(given)), sorted(unread)
    except ConfigError as problem:
        if problem.code != "config-not-implemented":
            raise
        unset = "; ".join(f"hf_model.config.{name} = None" for name in cls.unimplemented(given))
        remedy = f"If it does not apply, take it out: {unset}." if unset else problem.remedy
        raise ConfigError(f"from_hf: {problem.message}", code=problem.code, remedy=remedy) from problem


def require_as_configured(named: dict[str, nn.Module], config: Any, kind: Kind) -> None:
    """Refuse constants that are not those of the configuration, which is what the copy is built from."""
    from transformers.activations import ACT2FN

    anatomy, activation = kind.anatomy(), getattr(config, config.about.activation)
    differing: list[str] = []
    layers: dict[object, str] = {}
    for path, module in named.items():
        expected = kind.constants(path, module, config)
        if path.endswith(f".{anatomy.attention}"):
            layer: object = getattr(module, "layer_idx", None)
            if layers.setdefault(layer, path) != path:
                differing.append(
                    f"{path}.layer_idx is {shown(layer)}, as {layers[layer]}'s, which a cache would mix up"
                )
        elif path.endswith(f".{kind.activation}") and not _computes_as(module, ACT2FN[activation]):
            differing.append(f"{path}, {type(module).__name__}, is not {activation}")
        differing += [
            f"{path}.{name} is {shown(getattr(module, name))}, not {shown(value)}"
            for name, value in expected.items()
            if getattr(module, name, value) != value
        ]
    if differing:
        raise differs(differing)


def differs(differing: Sequence[str]) -> WeightsError:
    """The error for constants that are not those of the configuration."""
    return WeightsError(
        f"from_hf: the model is not what its configuration says: {some(differing, separator='; ')}.",
        code="hf-differs-from-config",
        remedy="Set these to what the configuration says, or the field of hf_model.config to what they are.",
    )


PLAIN_EMBEDDING: Mapping[str, object] = {"max_norm": None, "scale_grad_by_freq": False}
"""The constants of an embedding; the row of its pad gets no gradient, and is looked up like any other."""


def _weight_and_bias(path: str, module: nn.Module, config: type[Config]) -> dict[str, Tensor]:
    """The tensors of a module, without a bias that is None or a head's of zeros."""
    foreign.require_plain_tensors(path, module)
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        raise no_weight(path, config.about.width)
    if path == HEAD and bias is not None and bias.count_nonzero():
        raise wrong_head(module, config)
    return {"weight": weight} if bias is None or path == HEAD else {"weight": weight, "bias": bias}


def frequencies(named: Mapping[str, nn.Module], config: Any) -> dict[str, Tensor]:
    """The frequencies of the rotation, which `hf_model.to(dtype)` rounds, if they are those of the configuration."""
    path, rotary = next((path, module) for path, module in named.items() if path.endswith("rotary_emb"))
    given: Any = rotary
    own = Rotary(config.rule, given.inv_freq.device)
    known = [own.inv_freq, *(own.inv_freq.to(dtype) for dtype in (torch.bfloat16, torch.float16))]
    is_known = any(torch.equal(given.inv_freq.float(), one.float()) for one in known)
    constants = (given.attention_scaling, given.rope_type)
    if not is_known or constants != (own.attention_scaling, config.rope_parameters["rope_type"]):
        raise differs([f"{path} turns by other frequencies than those of rope_parameters"])
    return {FREQUENCIES: given.inv_freq}


def _computes_as(activation: nn.Module, other: nn.Module) -> bool:
    """Whether two functions of single numbers are one to the bit, such as torch's GELU and transformers' own."""
    if any(True for _ in activation.parameters()):
        return False
    values = torch.linspace(-12.0, 12.0, 4097, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        return torch.equal(activation(values.clone()), other(values.clone()))


def _rates(dropouts: Mapping[str, tuple[str, ...]], named: dict[str, nn.Module]) -> dict[str, float]:
    """The rates of the dropouts: many set them to zero in the modules alone."""
    trains = named[""].training
    changed: dict[str, float] = {}
    for name, places in dropouts.items():
        rates: dict[float, str] = {}
        for path, module in named.items():
            if path.rpartition(".")[2] in places:
                rates.setdefault(getattr(module, "p", 0.0) if module.training or not trains else 0.0, path)
        if len(rates) > 1:
            two = " and ".join(f"{path} drops {rate:g}" for rate, path in [*rates.items()][:2])
            raise WeightsError(
                f"from_hf: {two}, expected one rate ({name}).",
                code="hf-dropout",
                remedy="Give all of these modules one p and one mode: hf_model.train() or hf_model.eval().",
            )
        changed |= dict.fromkeys([name] * len(rates), next(iter(rates), 0.0))
    return changed


def _is_tied(head: Tensor, embedding: Tensor) -> bool:
    """Whether two tensors are one, or show the same numbers of the same memory."""
    same_place = head.data_ptr() == embedding.data_ptr()
    return head is embedding or (same_place and (head.shape, head.stride()) == (embedding.shape, embedding.stride()))
