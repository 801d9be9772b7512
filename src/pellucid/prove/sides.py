"""What `compare` is given, opened: which side is the reference, what is compared with it, and on which ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pellucid.errors import ConfigError, InputError, MissingExtraError, PellucidError, WeightsError, shown
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.layouts import sizes_of
from pellucid.open import from_hf, load, to_hf
from pellucid.prove.about import SEED, RunInputs, name_of
from pellucid.prove.computed import computes
from pellucid.prove.recognise import recognised
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Inputs
from pellucid.text.batching import Batcher
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights import hub
from pellucid.weights.importing import to_ours
from pellucid.weights.layouts import detect
from pellucid.weights.load import LoadOptions, parse_dtype, whole_config
from pellucid.weights.prefixes import canonical_names

Side = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A reference and what is compared with it.

    Attributes:
        reference: Made of glass.
        other: A module or a state dict.
        swapped: Whether the reference is the second side that the caller gave.
    """

    reference: CkptedTransformer
    other: Side
    swapped: bool = False


@dataclass(frozen=True)
class Opened:
    """A side, the tokenizer that it came with, if it did, and what a report calls it."""

    side: Side
    tokenizer: Tokenizer | None = None
    name: str = ""


STORED = LoadOptions(dtype="stored")
"""How a side that is named is opened: in the dtype of its file, since another would be another model."""


def opened(side: Any, options: LoadOptions = STORED) -> Opened:
    """A module or a state dict, from whatever `compare` takes.

    Args:
        side: A module, a state dict, a path or a name; what is opened already stays as it is.
        options: How to open a path or a name.

    Raises:
        InputError: Something else.
    """
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
        return Opened({str(name): value for name, value in side.items()}, name=name_of(side))
    raise InputError(
        f"compare: {type(side).__name__} given, expected two tensors, or two models, state dicts, paths or names.",
        code="compare-kind",
        remedy="Pass tensors on both sides, or models or state dicts on both sides.",
    )


def require_values(side: Tensor | Side) -> None:
    """Raise `InputError` if a tensor of a side has no values: it lies on the meta device, or waits for a first run."""
    if isinstance(side, nn.Module):
        held = {**dict(side.named_parameters()), **dict(side.named_buffers())}
    else:
        held = {"the tensor": side} if isinstance(side, Tensor) else dict(side)
    waiting = [name for name, tensor in held.items() if nn.parameter.is_lazy(tensor)]
    if waiting:
        raise InputError(
            f"compare: {shown(waiting[0])} of {type(side).__name__} has no shape yet: a lazy module makes its "
            "parameters at its first run.",
            code="compare-no-values",
            remedy="Run the model once on a batch of ids, and remove lazy modules that do not run.",
        )
    empty = [name for name, tensor in held.items() if tensor.is_meta]
    if empty:
        raise InputError(
            f"compare: {shown(empty[0])} of {type(side).__name__} is on the meta device and has no values"
            f" ({len(empty)} of {len(held)} tensors are).",
            code="compare-no-values",
            remedy="Give it values first: model.to_empty(device='cpu'), then model.load_state_dict(weights)."
            if isinstance(side, nn.Module)
            else "Give tensors with values, such as torch.load(file, map_location='cpu') returns.",
        )


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
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "compare: hf: needs transformers, which is not installed.",
            code="missing-extra",
            remedy="pip install 'pellucid[hf]'",
        ) from error
    messages = transformers.utils.logging
    shown = messages.is_progress_bar_enabled()
    try:
        messages.disable_progress_bar()  # progress is the caller's to show
        fields = config if config is None or isinstance(config, Mapping) else config.to_dict()
        theirs = None if fields is None else transformers.GPT2Config.from_dict(dict(fields))
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
        if shown:
            messages.enable_progress_bar()


def pairs(a: Side, b: Side) -> list[Pair]:
    """The comparisons that answer whether a and b are the same; two where the reference has to be built.

    None at all where no side is a program that is known to be a GPT-2's.
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
    """What is raised where neither side is known to be a GPT-2."""
    return InputError(
        f"compare: {type(a).__name__} and {type(b).__name__}, and neither could be recognised as a GPT-2.",
        code="compare-unknown-both",
        remedy="Compare each with a CkptedTransformer or a transformers GPT-2, such as pl.load('folder').",
    )


def _glass_of(module: nn.Module) -> CkptedTransformer | None:
    eager = getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
    try:
        return from_hf(module, attention="eager" if eager else "auto")  # pyright: ignore[reportArgumentType]
    except (WeightsError, ConfigError, MissingExtraError):  # it may still be recognised by what it computes
        return None


def ids_of(
    reference: CkptedTransformer, inputs: Inputs, tokenizer: Tokenizer | None, sides: Sequence[Opened]
) -> tuple[Tensor, RunInputs, tuple[str, ...]]:
    """The ids [B, P] to run, what they are, and what the reader should know of them.

    Not every program takes a mask, so that none is given: shorter texts go on with an id to the length of the longest.
    What stands before it does not see it, in a right program.

    Args:
        reference: What has to take the ids.
        inputs: Whatever a model takes.
        tokenizer: For text; else the first side's that has one. Without any, ids are drawn in the place of the default.
        sides: Both.

    Raises:
        InputError: Whatever `CkptedTransformer.tokenize` refuses.
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
"""What both sides run where nothing else is given."""

DRAWN = 32
"""How many ids are drawn at most."""


def _drawn(reference: CkptedTransformer, sides: Sequence[Opened]) -> Tensor:
    """Ids [1, P] that both sides take, none of them a pad's."""
    config = reference.config
    sizes = [getattr(getattr(side.side, "config", None), "vocab_size", None) for side in sides]
    count = min([config.vocab_size, *(size for size in sizes if isinstance(size, int))])
    known = [i for i in range(count) if i != config.pad_token_id] or [0]
    places = torch.randint(len(known), (min(config.n_positions, DRAWN),), generator=torch.Generator().manual_seed(SEED))
    return torch.tensor(known)[places][None].to(reference.device)


def reference_of(tensors: Mapping[str, Tensor], config: TransformerConfig | None = None) -> CkptedTransformer | None:
    """A model of a state dict's weights, where its layout is known.

    The number of heads cannot be read off most layouts; without `config` it is 1 there, which is right for
    comparing parameters and wrong for running.
    """
    theirs = {name: tensors[given[0]] for name, given in canonical_names(tensors).items()}
    layout = detect(theirs)
    if layout is None:
        return None
    try:
        imported = to_ours(tensors, config or TransformerConfig(**sizes_of(theirs, layout)))
        return CkptedTransformer(imported.config, imported.weights).eval()
    except (PellucidError, KeyError, IndexError):
        return None
