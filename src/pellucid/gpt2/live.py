"""What a live transformers model computes, read off its modules, or an error that names what cannot be read.

A configuration says how a model was built. People change models afterwards: they replace, patch, hook, prune and
quantise them, and set constants. So everything that transformers' GPT-2 runs is looked at: the class of each module,
its forward, its hooks, its constants and its tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import ConfigError, WeightsError, shown
from pellucid.family import Live, Shown
from pellucid.gpt2.config import TransformerConfig, unimplemented
from pellucid.gpt2.config_fields import NEUTRAL, REFUSED, SYNONYMS
from pellucid.parameters import require_numbers
from pellucid.weights import foreign

Classes = Mapping[str, tuple[type[nn.Module], ...]]
"""A module's name -> the classes that may stand there; none if any may."""


@dataclass(frozen=True)
class Part:
    """One module that transformers' GPT-2 runs.

    Attributes:
        path: Its name in the model given; "" for the model itself.
        module: What is there, None if nothing is.
        expected: The class that transformers puts there, or others that compute the same; empty if any may be there.
    """

    path: str
    module: nn.Module | None
    expected: tuple[type[nn.Module], ...]


def read(hf_model: nn.Module) -> Live:
    """Read a `GPT2LMHeadModel` or `GPT2Model`; without a head, it is the embedding.

    Raises:
        WeightsError: Something in it computes, or may compute, what GPT-2 with these tensors does not.
        ConfigError: A configuration that is not implemented.
    """
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Model, eager_attention_forward

    parts = [*parts_of(hf_model)]
    _require_classes(parts)
    foreign.require_own_forwards(parts)
    foreign.require_no_hooks(parts)
    foreign.require_own_attention(parts, GPT2Model, GPT2Attention, eager_attention_forward)
    named = {part.path: part.module for part in parts if part.module is not None}
    _require_apart(named)
    tensors = {
        f"{path}.{name}": tensor for path, module in named.items() for name, tensor in stored(path, module).items()
    }
    require_numbers("from_hf", tensors.values())
    foreign.require_dense(tensors)
    said = _config_of(hf_model)
    config = _with_sizes(said, named, tensors)
    require_as_configured(named, config)
    unread = [name for name, _ in hf_model.named_parameters() if foreign.plain(name) not in tensors]
    other = [size for size in _SIZES if getattr(config, size) != getattr(said, size)]
    notes = {
        "left_out": ", ".join(unread),
        "untied": ", ".join(_sharing(tensors)),
        "sizes": ", ".join(f"{size} {getattr(config, size)}, configured {getattr(said, size)}" for size in other),
    }
    if "lm_head.weight" in tensors:
        tied = _is_tied(tensors["lm_head.weight"], tensors["transformer.wte.weight"])
        config = config.replace(tie_word_embeddings=tied)
        if tied:
            del tensors["lm_head.weight"]
    return Live(tensors, _with_dropout(config, named), {topic: note for topic, note in notes.items() if note})


def _sharing(tensors: dict[str, Tensor]) -> Iterator[str]:
    """Parameters that are one in the model, and will be two in the copy; the head's tie is kept."""
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        first = seen.setdefault(id(tensor), name)
        if first != name and name != "lm_head.weight":
            yield f"{name} from {first}"


def parts_of(hf_model: nn.Module) -> Iterator[Part]:
    """Every module that runs, parents first; what stands below something unexpected is left out."""
    from transformers.models.gpt2 import modeling_gpt2 as gpt2
    from transformers.pytorch_utils import Conv1D

    matrix, norm, dropout = (Conv1D, nn.Linear), (nn.LayerNorm,), (nn.Dropout, nn.Identity)
    around: Classes = {
        "wte": (nn.Embedding,),
        "wpe": (nn.Embedding,),
        "drop": dropout,
        "h": (nn.ModuleList,),
        "ln_f": norm,
    }
    in_block: Classes = {
        "ln_1": norm, "attn": (gpt2.GPT2Attention,), "attn.c_attn": matrix, "attn.c_proj": matrix,
        "attn.attn_dropout": dropout, "attn.resid_dropout": dropout, "ln_2": norm, "mlp": (gpt2.GPT2MLP,),
        "mlp.c_fc": matrix, "mlp.c_proj": matrix, "mlp.act": (), "mlp.dropout": dropout,
    }  # fmt: skip
    root = foreign.uncompiled(hf_model)
    headed = isinstance(root, gpt2.GPT2LMHeadModel)
    yield Part("", root, (gpt2.GPT2LMHeadModel if headed else gpt2.GPT2Model,))
    base = root
    if headed:
        base = _child(root, "transformer")
        yield Part("transformer", base, (gpt2.GPT2Model,))
    if isinstance(base, gpt2.GPT2Model):
        prefix = "transformer." if headed else ""
        yield from _below(prefix, base, around)
        blocks = _child(base, "h")
        for i, block in enumerate(blocks if isinstance(blocks, nn.ModuleList) else ()):
            block = foreign.uncompiled(block)  # noqa: PLW2901
            yield Part(f"{prefix}h.{i}", block, (gpt2.GPT2Block,))
            if isinstance(block, gpt2.GPT2Block):
                yield from _below(f"{prefix}h.{i}.", block, in_block)
    if headed:
        yield Part("lm_head", _child(root, "lm_head"), (nn.Linear,))


def _below(prefix: str, parent: nn.Module, expected: Classes) -> Iterator[Part]:
    wrong: list[str] = []
    for path, classes in expected.items():
        if path.rpartition(".")[0] in wrong:
            continue
        module = parent
        for name in path.split("."):
            module = _child(module, name)
        if classes and not isinstance(module, classes):
            wrong.append(path)
        yield Part(prefix + path, module, classes)


def _child(parent: nn.Module | None, name: str) -> nn.Module | None:
    child = getattr(parent, name, None)
    return foreign.uncompiled(child) if isinstance(child, nn.Module) else None


def _require_classes(parts: Sequence[Part]) -> None:
    """Refuse what is not of transformers' class, or of a class with another forward."""
    wrong = [
        part
        for part in parts
        if part.module is None or (part.expected and not foreign.runs_as(part.module, part.expected))
    ]
    head = [part for part in wrong if part.path == "lm_head"]
    if head and len(wrong) == 1:
        raise wrong_head(head[0].module)
    if wrong:
        raise WeightsError(
            f"from_hf: {'; '.join(map(_said, wrong[:3]))}{foreign.more(wrong)}.",
            code="hf-part",
            remedy=f"{foreign.remedy(part.module for part in wrong)} {foreign.AS_IT_IS}",
        )


def _said(part: Part) -> str:
    expected = part.expected[0].__name__ if part.expected else "a module"
    if part.module is None:
        return f"{part.path} is missing, expected {expected}"
    if isinstance(part.module, part.expected):
        return f"{part.path or 'the model'} is {type(part.module).__name__}, whose forward is not {expected}'s"
    return f"{part.path} is {type(part.module).__name__}, expected {expected}"


def wrong_head(head: object) -> WeightsError:
    """The error for an output head that is not a matrix."""
    return WeightsError(
        f"from_hf: the head is {head}, expected a plain Linear without bias.",
        code="hf-head",
        remedy="Put a torch.nn.Linear(n_embd, vocab_size, bias=False) in its place; GPT-2 has no other head.",
    )


def _require_apart(named: dict[str, nn.Module]) -> None:
    """Refuse a module that stands in two places: a copy would have two, and the reference's cache has one."""
    seen: dict[int, str] = {}
    for path, module in named.items():
        first = seen.setdefault(id(module), path)
        if first != path and any(True for _ in module.parameters()):
            raise WeightsError(
                f"from_hf: {path} is the same module as {first}, expected one of its own.",
                code="hf-shared",
                remedy=f"Give it one: {_apart(path, first)}. {foreign.AS_IT_IS}",
            )


def _apart(path: str, first: str) -> str:
    """The statements that put a copy of a module in its second place, where a block's attention has its own number."""
    made = f"hf_model.set_submodule({path!r}, copy.deepcopy(hf_model.get_submodule({first!r})))"
    block = path.removesuffix(".attn")
    _, list_, number = block.rpartition("h.")
    numbered = (
        f"; hf_model.get_submodule({f'{block}.attn'!r}).layer_idx = {number}" if list_ and number.isdigit() else ""
    )
    return made + numbered


def stored(path: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors as transformers' classes store them, matrices [in, out].

    A `Linear` in the place of a `Conv1D` keeps its matrix the other way round. What a module leaves out is what adds
    or changes nothing: a bias of zeros, a gain of ones.

    Raises:
        WeightsError: A tensor that is computed from others, such as by pruning.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, (nn.Embedding, nn.LayerNorm, nn.Linear, Conv1D)):
        return {}
    foreign.require_plain_tensors(path, module)
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        raise WeightsError(
            f"from_hf: {path}.weight is None, expected a tensor.",
            code="hf-tensors",
            remedy=f"hf_model.get_submodule({path!r}).weight = torch.nn.Parameter(torch.ones(hf_model.config.n_embd)) "
            "computes the same.",
        )
    if isinstance(module, nn.Embedding) or path == "lm_head":
        if bias is not None and bias.count_nonzero():
            raise wrong_head(module)
        return {"weight": weight}
    weight = weight.t() if isinstance(module, nn.Linear) else weight
    return {"weight": weight, "bias": weight.new_zeros(weight.shape[-1]) if bias is None else bias}


def _config_of(hf_model: Any) -> TransformerConfig:
    """The configuration of a live model; attributes that its class does not read are left out."""
    from transformers import PreTrainedConfig

    if not isinstance(hf_model.config, PreTrainedConfig):
        raise WeightsError(
            f"from_hf: hf_model.config is {shown(hf_model.config)}, expected a GPT2Config.",
            code="hf-part",
            remedy="hf_model.config = transformers.GPT2Config(...), with the model's sizes.",
        )
    given = hf_model.config.to_dict()
    known = {field.name for field in dataclasses.fields(TransformerConfig)} | {"model_type", "is_causal"}
    unread = set(given) - known - NEUTRAL - set(REFUSED) - set(SYNONYMS)
    try:
        return TransformerConfig.from_dict(given, ignore=unread)
    except ConfigError as problem:
        if problem.code != "config-not-implemented":
            raise
        unset = "; ".join(f"hf_model.config.{name} = None" for name in unimplemented(given))
        raise ConfigError(
            f"from_hf: {problem.message}", code=problem.code, remedy=f"If it does not apply, take it out: {unset}."
        ) from problem


_SIZES = ("vocab_size", "n_positions", "n_layer", "d_mlp")


def _with_sizes(
    config: TransformerConfig, named: dict[str, nn.Module], tensors: dict[str, Tensor]
) -> TransformerConfig:
    """The configuration with the sizes that the modules have: a model without its last blocks is a smaller model."""
    prefix = "transformer." if "transformer" in named else ""
    sizes = {
        "vocab_size": tensors[f"{prefix}wte.weight"].shape[0],
        "n_positions": tensors[f"{prefix}wpe.weight"].shape[0],
        "n_layer": sum(path.rpartition(".")[0] == f"{prefix}h" for path in named),
    }
    first = tensors.get(f"{prefix}h.0.mlp.c_fc.weight")
    if first is not None and first.shape[-1] != config.d_mlp:
        sizes["n_inner"] = first.shape[-1]
    return config.replace(**sizes)


def require_as_configured(named: dict[str, nn.Module], config: TransformerConfig) -> None:
    """Refuse constants that are not those of the configuration, which is what the copy is built from."""
    from transformers.activations import ACT2FN

    activation = config.activation_function
    differing: list[str] = []
    layers: dict[object, str] = {}
    for path, module in named.items():
        expected: dict[str, object] = {}
        if isinstance(module, nn.LayerNorm):
            expected = {"eps": config.layer_norm_epsilon}
        elif isinstance(module, nn.Embedding):
            expected = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False}
        elif path.endswith(".attn"):
            expected = {
                "scaling": config.attention_scale(int(path.split(".")[-2])), "head_dim": config.d_head,
                "split_size": config.n_embd, "is_causal": True, "is_cross_attention": False,
                "reorder_and_upcast_attn": config.reorder_and_upcast_attn,
            }  # fmt: skip
            layer: object = getattr(module, "layer_idx", None)
            if layers.setdefault(layer, path) != path:
                differing.append(
                    f"{path}.layer_idx is {shown(layer)}, as {layers[layer]}'s, which a cache would mix up"
                )
        elif path.endswith(".mlp.act") and not _computes_as(module, ACT2FN[activation]):
            differing.append(f"{path}, {type(module).__name__}, is not {activation}")
        differing += [
            f"{path}.{name} is {shown(getattr(module, name))}, not {shown(value)}"
            for name, value in expected.items()
            if getattr(module, name, value) != value
        ]
    if differing:
        raise WeightsError(
            "from_hf: the model is not what its configuration says: "
            f"{'; '.join(differing[:3])}{foreign.more(differing)}.",
            code="hf-differs-from-config",
            remedy="Set these to what the configuration says, or the field of hf_model.config to what they are.",
        )


def _computes_as(activation: nn.Module, other: nn.Module) -> bool:
    """Whether two functions of single numbers are one to the bit, such as torch's GELU and transformers' own."""
    if any(True for _ in activation.parameters()):
        return False
    values = torch.linspace(-12.0, 12.0, 4097, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        return torch.equal(activation(values.clone()), other(values.clone()))


def _with_dropout(config: TransformerConfig, named: dict[str, nn.Module]) -> TransformerConfig:
    """The configuration with the rates of the dropouts: many set them to zero in the modules alone."""
    places = {"embd_pdrop": ("drop",), "attn_pdrop": ("attn_dropout",), "resid_pdrop": ("resid_dropout", "dropout")}
    trains = named[""].training
    changed: dict[str, float] = {}
    for field, names in places.items():
        rates: dict[float, str] = {}
        for path, module in named.items():
            if path.rpartition(".")[2] in names:
                rates.setdefault(getattr(module, "p", 0.0) if module.training or not trains else 0.0, path)
        if len(rates) > 1:
            two = " and ".join(f"{path} drops {rate:g}" for rate, path in [*rates.items()][:2])
            raise WeightsError(
                f"from_hf: {two}, expected one rate ({field}).",
                code="hf-dropout",
                remedy="Give all of these modules one p and one mode: hf_model.train() or hf_model.eval().",
            )
        changed |= dict.fromkeys([field] * len(rates), next(iter(rates), 0.0))
    return config.replace(**changed)


def _is_tied(head: Tensor, embedding: Tensor) -> bool:
    if head is embedding:
        return True
    same_place = head.data_ptr() == embedding.data_ptr()
    return same_place and (head.shape, head.stride()) == (embedding.shape, embedding.stride())


def turned(path: str, module: nn.Module) -> bool:
    """Whether a module keeps the matrix of a `Conv1D` the other way round."""
    return isinstance(module, nn.Linear) and path != "lm_head"


def shown_by(n_layer: int) -> Iterator[Shown]:
    """Where a `GPT2Model` shows our checkpoints, in their order."""
    yield Shown("wte", False, ("ckpt_embed",))
    yield Shown("wpe", False, ("ckpt_pos_embed",))
    for i in range(n_layer):
        for path, entering, names in _IN_BLOCK:
            yield Shown(f"h.{i}{path}", entering, tuple(f"blocks.{i}.{name}" for name in names))
    yield Shown("ln_f", False, ("ln_final.ckpt_normalized",))


_IN_BLOCK = (
    (".ln_1", True, ("resid_pre",)),
    (".ln_1", False, ("ln1.ckpt_normalized",)),
    (".attn.c_attn", False, ("attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v")),
    (".attn.c_proj", True, ("attn.ckpt_z",)),
    (".attn.c_proj", False, ("attn.ckpt_attn_out",)),
    (".ln_2", True, ("resid_mid",)),
    (".ln_2", False, ("ln2.ckpt_normalized",)),
    (".mlp.c_fc", False, ("mlp.ckpt_pre",)),
    (".mlp.c_proj", True, ("mlp.ckpt_post",)),
    (".mlp", False, ("mlp.ckpt_mlp_out",)),
    ("", False, ("resid_post",)),
)
"""Where a block of transformers' GPT-2 shows our checkpoints, in their order."""
