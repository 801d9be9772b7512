"""What `compare` is given, opened: which side is the reference, what is compared with it, and on which ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pellucid.check import attribute
from pellucid.errors import ConfigError, InputError, MissingExtraError, PellucidError, WeightsError, shown
from pellucid.extras import need
from pellucid.family.families import FAMILIES, family_of
from pellucid.family.json_config import Config
from pellucid.family.layout import EMBED
from pellucid.family.part import Weights
from pellucid.numerics.dense import filled, not_dense
from pellucid.numerics.rounding import BEYOND_ROUNDING, relative_error
from pellucid.open import from_hf, load, to_hf
from pellucid.prove.about import SEED, RunInputs, name_of
from pellucid.prove.held import computed_in, computes, with_computed
from pellucid.prove.lending import Loan
from pellucid.prove.points import LOGITS
from pellucid.prove.program import DOUBLE, Glass, Program
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Inputs
from pellucid.text.batching import Batcher
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights import hub
from pellucid.weights.foreign import unwrapped
from pellucid.weights.importing import to_ours
from pellucid.weights.layouts import canonical_names
from pellucid.weights.load import LoadOptions, parse_dtype, whole_config

Side = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A reference and what is compared with it."""

    reference: CkptedTransformer  # made of glass
    other: Side  # a module or a state dict
    swapped: bool = False  # whether the reference is the second side that the caller gave


@dataclass(frozen=True)
class Opened:
    """A side, the tokenizer that it came with, if it did, and what a report calls it."""

    side: Side
    tokenizer: Tokenizer | None = None
    name: str = ""


STORED = LoadOptions(dtype="stored")
"""How a side that is named is opened: in the dtype of its file, since another would be another model."""


_INSTEAD_OF_A_FUNCTION = (
    "Pass an nn.Module, whose parameters are compared, too: an instance of a class; of a function, module = "
    "torch.nn.Module(); module.forward = function; module.inside = what holds its parameters."
)


def opened(side: Any, options: LoadOptions = STORED) -> Opened:
    """A module or a state dict, from whatever `compare` takes."""
    if isinstance(side, Opened):
        return side
    if isinstance(side, nn.Module):
        return Opened(side, side.tokenizer if isinstance(side, CkptedTransformer) else None, name_of(side))
    if isinstance(side, (str, Path)):
        text = str(side)
        if text.startswith("hf:"):
            return replace(_from_transformers(text[3:], options), name=name_of(side))
        return replace(opened(_load(side, options)), name=name_of(side))
    if isinstance(side, Mapping) and side and all(isinstance(value, Tensor) for value in side.values()):
        return Opened({str(name): with_values(value, str(name)) for name, value in side.items()}, name=name_of(side))
    raise InputError(
        f"compare: {type(side).__name__} given, expected two tensors, or two models, state dicts, paths or names.",
        code="compare-kind",
        remedy=_INSTEAD_OF_A_FUNCTION
        if callable(side)
        else "Pass tensors on both sides, or models or state dicts on both sides.",
    )


def with_values(tensor: Tensor, name: str) -> Tensor:
    """A tensor with every value in memory, a sparse or quantized one multiplied out."""
    if tensor.is_meta or nn.parameter.is_lazy(tensor):  # refused by `require_values`, which says more
        return tensor
    made, kind = filled(tensor), not_dense(tensor)
    if made is None and kind is not None:
        raise InputError(
            f"compare: {shown(name)} is {kind.said}, and its values cannot be read one by one.",
            code="compare-no-values",
            remedy=kind.remedy(),
        )
    return tensor if made is None else made


def _load(name: str | Path, options: LoadOptions) -> CkptedTransformer:
    return load(name, dtype=options.dtype, config=options.config, ignore_config=options.ignore_config)


def _from_transformers(name: str, options: LoadOptions) -> Opened:
    """A model run through transformers, from where `load` would open it.

    transformers reads folders: of a single file pellucid reads the weights, and they are put into a model of theirs.
    """
    found = hub.locate(name)
    if not found.is_dir():
        model = _load(found, options)
        return Opened(to_hf(model), model.tokenizer)
    config, dtype = whole_config(options), parse_dtype(options.dtype)
    transformers = need("transformers", "compare: hf:", "AutoModelForCausalLM")
    messages = transformers.utils.logging
    showing = messages.is_progress_bar_enabled()
    try:
        messages.disable_progress_bar()  # progress is the caller's to show
        fields = config if config is None or isinstance(config, Mapping) else config.to_dict()
        kind = transformers.CONFIG_MAPPING[(fields or {}).get("model_type", FAMILIES[0].name)]
        theirs = None if fields is None else kind.from_dict(dict(fields))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            found, config=theirs, dtype="auto" if dtype is None else dtype, trust_remote_code=False
        )
        return Opened(model, Tokenizer.from_folder(found))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"compare: transformers cannot open {str(found)!r}: {error}",
            code="hf-unreadable",
            remedy="Give a folder or a hub id with config.json and weights that transformers reads.",
        ) from error
    finally:
        if showing:
            messages.enable_progress_bar()


def pairs(a: Side, b: Side) -> list[Pair]:
    """The comparisons that answer whether a and b are the same; two if the reference has to be built.

    None at all if no side is a program of a known family.
    """
    if isinstance(a, CkptedTransformer):
        return [Pair(a, b)]
    if isinstance(b, CkptedTransformer):
        return [Pair(b, a, swapped=True)]
    orders = [(a, b, False), (b, a, True)]
    orders.sort(key=lambda order: isinstance(order[0], nn.Module) and computes(order[0]))  # such weights are rounded
    for make in (_glass_of, recognised):
        for side, other, swapped in orders:
            if isinstance(side, nn.Module) and (reference := make(side)) is not None:
                return [Pair(reference, other, swapped), Pair(reference, side)]
    return []


def unknown(a: Side, b: Side) -> InputError:
    """What is raised if neither side is known to be of a family."""
    known = " or ".join(family.name for family in FAMILIES)
    return InputError(
        f"compare: {type(a).__name__} and {type(b).__name__}, and neither could be recognised as a model of {known}.",
        code="compare-unknown-both",
        remedy="Compare each with a CkptedTransformer or a model of transformers, such as pl.load('folder').",
    )


def _glass_of(module: nn.Module) -> CkptedTransformer | None:
    inside = unwrapped(module)
    if not any(kind.__module__.startswith("transformers.") for kind in type(inside).__mro__):
        return None
    try:
        return from_hf(inside)
    except (WeightsError, ConfigError, MissingExtraError):  # it may still be recognised by what it computes
        return None


def ids_of(
    reference: CkptedTransformer, inputs: Inputs, tokenizer: Tokenizer | None, sides: Sequence[Opened]
) -> tuple[Tensor, RunInputs, tuple[str, ...]]:
    """The ids [B, P] to run, what they are, and what the reader should know of them.

    Not every program takes a mask, so that none is given: shorter texts go on with an id to the length of the longest.
    What stands before it does not see it, in a right program. Text is read by the tokenizer given, else by the first
    side's; without any, ids are drawn in the place of the default.
    """
    tokenizers = (tokenizer, *(side.tokenizer for side in sides))
    found = next((tokenizer for tokenizer in tokenizers if tokenizer is not None), None)
    if found is None and isinstance(inputs, str) and inputs == DEFAULT_TEXT:
        ids = _drawn(reference, sides)
        return ids, RunInputs(tuple(map(tuple, ids.tolist())), drawn=True), ()
    texts = (inputs,) if isinstance(inputs, str) else inputs if isinstance(inputs, (list, tuple)) else ()
    texts = tuple(text for text in texts if isinstance(text, str))
    batcher = Batcher(reference.config, found, reference.device, reference.generation)
    batch = batcher(inputs)
    rows = list(batch.rows())
    ran = RunInputs(tuple(tuple(row.tolist()) for row in rows), texts if len(texts) == len(rows) else ())
    if not batch.padded:
        return batch.ids, ran, ()
    fill = batcher.pad_id
    filled = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    if len({len(row) for row in rows}) == 1:  # every text had as many pads
        return filled, ran, ()
    return filled, ran, (f"texts of unequal length: the shorter ones go on with id {fill}, on both sides",)


DEFAULT_TEXT = "alpha beta gamma delta epsilon"
"""What both sides run if nothing else is given."""

DRAWN = 32
"""How many ids are drawn at most."""


def _drawn(reference: CkptedTransformer, sides: Sequence[Opened]) -> Tensor:
    """Ids [1, P] that both sides take, none of them a pad's."""
    config, own = reference.config, reference.config.sizes
    sizes = [attribute(attribute(side.side, "config"), "vocab_size") for side in sides]
    count = min([own["d_vocab"], *(size for size in sizes if isinstance(size, int))])
    known = [i for i in range(count) if i != config.pad_token_id] or [0]
    places = torch.randint(len(known), (min(own["n_ctx"], DRAWN),), generator=torch.Generator().manual_seed(SEED))
    return torch.tensor(known)[places][None].to(reference.device)


def references_of(tensors: Mapping[str, Tensor], config: Config | None = None) -> Iterator[CkptedTransformer]:
    """Models of a state dict's weights, the plainest first; none if its layout or its configuration is not known.

    The number of heads cannot be read off most layouts: without `config` it is 1 in the first model, which is right for
    comparing parameters and wrong for running.
    """
    theirs = {name: tensors[given[0]] for name, given in canonical_names(tensors).items()}
    for family in FAMILIES:
        layout = family.layout_of(theirs)
        if layout is None or (config is not None and family is not family_of(config)):
            continue
        with contextlib.suppress(PellucidError, KeyError, IndexError):
            if config is not None:
                configs: Iterable[Config] = (config,)
            else:
                configs = () if family.recognition is None else family.recognition.configs(theirs, layout)
            for one in configs:
                imported = to_ours(tensors, one)
                yield CkptedTransformer(imported.config, imported.weights).eval()


def reference_of(tensors: Mapping[str, Tensor], config: Config | None = None) -> CkptedTransformer | None:
    """The plainest model of a state dict's weights, if there is one."""
    return next(references_of(tensors, config), None)


PROBE = 12
"""Tokens that a proposal is tried on."""

CLOSE = 1e-6
"""Relative error of the logits below which a proposal is taken; such as a constant kept in float32 leaves 1e-8."""

FAR = 0.1
"""The same in the module's own dtype, above which a proposal is not worth a run in float64."""


def recognised(module: nn.Module) -> CkptedTransformer | None:
    """The model that a module is which nobody has described; None if no proposal computes what it computes.

    Shapes and names suggest proposals. None of them is believed: the one that computes the module's own logits, in
    float64, becomes a reference, and the module is then compared with it like any other.
    """
    with Loan(module).taken() as lent:
        held, computed = dict(lent.named_parameters()), computed_in(lent)
    valued = {name: tensor for name, tensor in held.items() if not tensor.is_meta}
    readable = {name: made for name, tensor in valued.items() if (made := filled(tensor)) is not None}
    tensors = {name: tensor.detach() for name, tensor in with_computed(readable, computed).items()}
    recognitions = (family.recognition for family in FAMILIES if family.recognition is not None)
    readings = (reading for recognition in recognitions for reading in recognition.readings(module, tensors))
    return next((model for reading in readings if (model := _tried(module, reading)) is not None), None)


def _tried(module: nn.Module, reading: Iterator[tuple[Any, Weights]]) -> CkptedTransformer | None:
    observed, best, distance = None, None, CLOSE
    built: list[CkptedTransformer] = []  # one of each configuration: many proposals differ in their weights alone
    for config, weights in reading:
        fewest = min(config.sizes["d_vocab"], config.sizes["n_ctx"])
        ids = (torch.arange(min(PROBE, fewest))[None] * 7 + 3) % fewest
        if observed is None:
            try:
                observed = Program(Loan(module), (), weights[EMBED]).run(ids, None, DOUBLE)[LOGITS]
            except Exception:  # whatever a foreign forward raises
                return None
        model = next((model for model in built if model.config == config), None)
        if model is None:
            model = CkptedTransformer(config, weights).eval()
            built.append(model)
        else:
            _put(model, weights)
        with torch.no_grad():
            if relative_error(observed, model(ids).double()) > FAR:
                continue
        error = relative_error(observed, Glass(model).logits(ids, double=True))
        if error < BEYOND_ROUNDING:
            return model
        if error < distance:
            best, distance = (config, weights), error
    return None if best is None else CkptedTransformer(*best).eval()


def _put(model: CkptedTransformer, weights: Weights) -> None:
    """Give a model these tensors as its parameters."""
    for name, tensor in weights.items():
        place, _, own = name.rpartition(".")
        model.get_submodule(place)._parameters[own] = nn.Parameter(tensor)
