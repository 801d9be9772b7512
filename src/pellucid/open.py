"""Opening models: `load`, and the way to and from transformers, at whose end both models give the same bits.

Inspection knows what people are known to change; one run of both notices the rest. It costs a few tokens, and touches
neither model: both are run as copies that share their memory, evaluate, and have no hooks. Like is compared with like,
so that equal numbers can be expected: both run the same attention with exact numerics, on matrices that lie alike in
memory.
"""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from pellucid.check import require_tree
from pellucid.errors import WeightsError, shown, some
from pellucid.family.families import InTransformers, family_of
from pellucid.family.part import has_native_hooks, is_finite, put_buffers, runs_as_written
from pellucid.names.calls import CONVERTING, OPENING, named_arguments
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Batch
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights import exchange
from pellucid.weights import load as weights
from pellucid.weights.foreign import AS_IT_IS, require_own_functions, uncompiled
from pellucid.weights.hub import BUNDLED

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

Direction = Literal["from_hf", "to_hf"]

ROWS, COLUMNS = 2, 6
"""The shape of the ids that are run: enough for an attention to look back and for rows to be told apart.

There are fewer columns than the context has positions. So a model whose positions run on from row to row, modulo the
context, gives the second row other positions than the first.
"""

_ALIGNED = 64
"""Bytes: where torch's memory begins. Products of one row round otherwise where a matrix lies elsewhere."""


@torch.no_grad()
def require_agreement(direction: Direction, model: CkptedTransformer, hf_model: nn.Module) -> None:
    """Raise an error unless both models compute the same logits, to the bit."""
    require_own_functions(direction, hf_model)  # what they do may begin beyond the few tokens that are run
    attention = _attention_of(model)
    here = family_of(model.config).in_transformers
    ours, theirs = twin(model, attention), bare_copy(hf_model, here, "eager" if attention == "eager" else "sdpa")
    ids = ids_for(model)
    with torch.autocast(model.device.type, enabled=False):  # nothing that evaluates draws random numbers
        try:
            given = theirs(ids)[0]
        except Exception as error:
            raise WeightsError(
                f"{direction}: the transformers model cannot be run: {type(error).__name__}: {error}",
                code="hf-cannot-run",
                remedy="Correct the model first: hf_model(ids) must return logits.",
            ) from error
        head = ours.unembed.weight
        logits = given if _has_head(theirs, here) else nn.functional.linear(given, head)
        batch = ours.tokenize(ids, mask=torch.ones_like(ids))
        if _agree(ours(batch), logits):
            return
        where = _first_difference(ours, theirs, here, batch)
    made, other = ("copy", "transformers model") if direction == "from_hf" else ("transformers model", "model given")
    raise WeightsError(
        f"{direction}: the {made} does not compute what the {other} does: they first differ at {where}.",
        code="hf-computes-otherwise",
        remedy=f"Look for what changes the computation there besides classes, constants and tensors. {AS_IT_IS}",
    )


def require_unchanged(model: CkptedTransformer) -> None:
    """Refuse a model of ours with changes since it was built that a transformers model would not have."""
    built = CkptedTransformer(
        model.config,
        {name: parameter.detach() for name, parameter in model.named_parameters()},
        attention=model.execution.attention,
        numerics=model.execution.numerics,
    )
    named = dict(model.named_modules())
    found = [said for path, module in built.named_modules() if (said := _changed(path, named.get(path), module))]
    if found:
        raise WeightsError(
            f"to_hf: the model was changed since it was built: {some(found, separator='; ')}.",
            code="changed-model",
            remedy="Remove hooks (handle.remove()) and patches (del module.forward), and change the configuration "
            "instead of constants: pl.CkptedTransformer(model.config.replace(...), model.state_dict()).",
        )


def _changed(path: str, module: nn.Module | None, built: nn.Module) -> str:
    """How a module differs from one that was just built; empty if it does not."""
    where = path or "the model"
    if module is None or (path and type(module) is not type(built)):
        there = "missing" if module is None else type(module).__name__
        return f"{where} is {there}, expected {type(built).__name__}"
    if has_native_hooks([module]):
        return f"{where} has a hook"
    if not runs_as_written([module]):
        return f"{where} runs another forward"
    for name, value in vars(built).items():
        if isinstance(value, (bool, int, float)) or (callable(value) and not name.startswith("_")):
            mine = vars(module).get(name)
            if mine != value and name != "training":
                return f"{where}.{name} is {_value(mine)}, expected {_value(value)}"
    return ""


def _value(value: object) -> str:
    return str(getattr(value, "__name__", None) or shown(value))


def ids_for(model: CkptedTransformer) -> Tensor:
    """Ids [B, P] from all over the vocabulary, the same at every call."""
    columns = max(1, min(COLUMNS, model.schema.sizes["n_ctx"] - 1))
    ids = torch.arange(ROWS * columns, device=model.device) * 7919 + 1
    return (ids % model.schema.sizes["d_vocab"]).view(ROWS, columns)


def _attention_of(model: CkptedTransformer) -> str:
    """The attention to run: the model's own, but explicit if the fused kernel could hide a NaN of the weights.

    In float64 transformers cannot run its explicit attention with `reorder_and_upcast_attn`.
    """
    if not all(is_finite(parameter) for parameter in model.parameters()):
        return "eager"
    upcasts = any(point.upcast for point in model.schema.block) and model.dtype == torch.float64
    return "auto" if upcasts else model.execution.attention


def twin(model: CkptedTransformer, attention: str) -> CkptedTransformer:
    """A new model with the same parameters and exact numerics, evaluating, without hooks."""
    weights = {name: _settled(parameter.detach()) for name, parameter in model.named_parameters()}
    made = CkptedTransformer(model.config, weights, attention=attention).eval()
    put_buffers(made, dict(model.named_buffers()))
    return made


def bare_copy(hf_model: nn.Module, here: InTransformers, attention: str) -> Any:
    """A transformers model that shares the memory of another and runs its classes' forwards alone.

    Hooks and compiled code stay behind, matrices that a `Linear` keeps are turned, and the attention is the one asked
    for.
    """
    return _bare(hf_model, "", here, attention, {})


def _bare(module: nn.Module, path: str, here: InTransformers, attention: str, memo: dict[int, Any]) -> Any:
    from transformers.pytorch_utils import Conv1D

    module = uncompiled(module)
    if id(module) in memo:
        return memo[id(module)]
    turned = here.kind.turned(path, module)
    made: Any = object.__new__(Conv1D if turned else type(module))
    memo[id(module)] = made
    nn.Module.__init__(made)
    fresh = {*vars(made), "forward", "_compiled_call_impl"}
    vars(made).update({name: value for name, value in vars(module).items() if name not in fresh})
    if turned:
        made.nf, made.nx = module.out_features, module.in_features
    if "config" in vars(made):
        made.config = _config(module.config, attention, memo)
    tensors = {**module._parameters, **here.kind.tensors_of(path, module)}
    made._parameters = OrderedDict((name, None if t is None else _settled(t)) for name, t in tensors.items())
    made._buffers = OrderedDict(module._buffers)
    made._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        below = f"{path}.{name}" if path else name
        made._modules[name] = None if child is None else _bare(child, below, here, attention, memo)
    return made.train(False) if not path else made


def _config(config: Any, attention: str, memo: dict[int, Any]) -> Any:
    if id(config) not in memo:
        memo[id(config)] = made = copy.copy(config)
        made._attn_implementation = attention
        made.use_cache, made.return_dict = True, True
        made.output_attentions = made.output_hidden_states = False
        made.pad_token_id = None  # transformers warns of ids that may be pads
    return memo[id(config)]


def _settled(tensor: Tensor) -> nn.Parameter:
    """A parameter that begins where torch's own memory begins, which shares it wherever it does."""
    data = tensor.detach()
    return nn.Parameter(data if data.data_ptr() % _ALIGNED == 0 else data.clone(), requires_grad=False)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def _has_head(hf_model: nn.Module, here: InTransformers) -> bool:
    return isinstance(hf_model, getattr(importlib.import_module("transformers"), here.model))


def _first_difference(model: CkptedTransformer, hf_model: Any, here: InTransformers, batch: Batch) -> str:
    """The first checkpoint at which the two differ."""
    base = hf_model.base_model if _has_head(hf_model, here) else hf_model
    theirs: dict[str, Tensor] = {}
    for path, entering, names in here.kind.shown(model.config):
        _keep(base.get_submodule(path), theirs, names, entering=entering)
    hf_model(batch.ids)
    _, ours = model.run_with_ckpts(batch)
    seen = {name: value.flatten(2) for name, value in ours.items() if name in theirs}
    parted = (name for name, value in seen.items() if not _agree(value, theirs[name].expand_as(value)))
    return next(parted, "the logits")


def _keep(module: nn.Module, values: dict[str, Tensor], names: tuple[str, ...], *, entering: bool) -> None:
    """Keep what enters or leaves a module, in as many equal parts as there are names."""

    def look(_: nn.Module, given: Any, out: Any = None) -> None:
        value = given[0] if entering else out
        values.update(zip(names, value.chunk(len(names), -1), strict=True))

    if entering:
        module.register_forward_pre_hook(look)
    else:
        module.register_forward_hook(look)


@named_arguments(OPENING)
def load(
    name: str | Path | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    attention: str = "auto",
    numerics: str = "exact",
    config: weights.Configuration | None = None,
    ignore_config: Collection[str] = (),
    hub: weights.HubOptions | None = None,
) -> CkptedTransformer:
    """Open a model of a registered family (a GPT-2 or another of docs/families.md), evaluating.

    Args:
        name: None or "bundled" for the bundled model, offline; an alias (`gpt2-small`, `gpt2-medium`, `gpt2-large`,
            `gpt2-xl`, `distilgpt2`); any hub id; a folder; a file; or a state dict in memory, whose tensors are copied.
        device: Where to put it.
        dtype: "float32" unless asked; "stored" keeps what the file has; else "float64", "float16", "bfloat16" or the
            torch.dtype.
        attention: "auto" fuses every layer that nobody looks inside, unless the configuration asks for eager
            attention; "eager" makes every layer explicit.
        numerics: "exact" performs transformers' operations, equal to the bit; "fast" may fuse them;
            "packed" also keeps second copies of the weights if they save time; "bfloat16" multiplies by the weights
            in bfloat16.
        config: What the model is, for a file that does not say: a configuration of ours or of transformers', or the
            path of a `config.json`; a mapping replaces single fields of what the file says.
        ignore_config: Fields of the configuration to drop although they are known to change the computation.
        hub: Revision, cache, token and offline switch of the hub.

    Raises:
        NotFoundError: If there is no such file, folder or repository.
        WeightsError: If the weights cannot be read or explained.
        ConfigError: If the configuration cannot be or is not implemented.

    Example:
        >>> import pellucid as pl
        >>> pl.load().config.n_layer
        4
    """
    options = weights.LoadOptions(
        device=device,
        dtype=dtype,
        attention=attention,
        numerics=numerics,
        config=config,
        ignore_config=ignore_config,
        hub=weights.HubOptions() if hub is None else hub,
    )
    return weights.load(CkptedTransformer, BUNDLED if name is None else name, options, Tokenizer.from_folder)


@named_arguments(CONVERTING)
def from_hf(hf_model: PreTrainedModel, *, attention: str = "auto", numerics: str = "exact") -> CkptedTransformer:
    """A copy of a transformers model, which is only read.

    A live model is what it computes: its modules count, whatever its configuration says, and what cannot be carried
    over is refused by name. At the end both are run once on a few ids, and are equal to the bit.

    Args:
        hf_model: A model of a registered family, such as a `GPT2LMHeadModel`; or one without a head, such as a
            `GPT2Model`, whose logits are its last hidden state times the transposed embedding.
        attention: "auto" attends as `hf_model` does, explicitly where that does;
            `hf_model.set_attn_implementation("sdpa")` changes that. "eager" makes every layer explicit.
        numerics: As for `load`.

    Raises:
        WeightsError: If it is of another class, a part, forward, hook, constant or tensor cannot be carried over, or
            the logits differ; the error names the checkpoint at which the two part.
        ConfigError: If the configuration is not implemented.

    Example:
        >>> import pellucid as pl
        >>> hf = pl.to_hf(pl.load())
        >>> pl.from_hf(hf).config.n_layer
        4
    """
    if isinstance(hf_model, torch.nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        require_tree(hf_model, "from_hf")
    model = exchange.from_hf(CkptedTransformer, hf_model, attention=attention, numerics=numerics)
    require_agreement("from_hf", model, hf_model)
    return model


@named_arguments(CONVERTING)
def to_hf(model: CkptedTransformer | torch.nn.Module) -> PreTrainedModel:
    """A transformers model with equal tensors, such as a `GPT2LMHeadModel`, tied if `model` is.

    It attends explicitly (`attn_implementation="eager"`) if `model` does.

    At the end both are run once on a few ids, and are equal to the bit.

    Raises:
        WeightsError: If it is no model of ours, or was changed since it was built (hooks, patches, other modules or
            constants), or logits differ.
        MissingExtraError: transformers is not installed, or cannot be imported.
    """
    model = cast(CkptedTransformer, uncompiled(model) if isinstance(model, torch.nn.Module) else model)
    if not isinstance(model, CkptedTransformer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WeightsError(
            f"to_hf: given {type(model).__name__}, expected a CkptedTransformer.",
            code="hf-wrong-class",
            remedy="Give what pl.load or pl.from_hf returned; a model of transformers' needs no conversion.",
        )
    require_unchanged(model)
    hf_model: PreTrainedModel = exchange.to_hf(model)
    require_agreement("to_hf", model, hf_model)
    return hf_model
