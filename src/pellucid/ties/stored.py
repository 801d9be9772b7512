"""Weights on disk: what their files hold, and what reading them makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.check import as_number
from pellucid.errors import MissingExtraError, PellucidError
from pellucid.extras import need
from pellucid.family.families import FAMILIES, Family, config_of
from pellucid.family.json_config import Config
from pellucid.family.layout import EMBED, Layout
from pellucid.ties.memory import Named
from pellucid.ties.predict import AfterReload, Loss, after_reload, size_of
from pellucid.ties.standins import Refused, Reread, misfits, reread
from pellucid.ties.subject import Declared, Subject
from pellucid.weights.formats import Stored, read, shards_of
from pellucid.weights.layouts import canonical_names, prefixed, their_shapes


@dataclass(frozen=True)
class StoredModel:
    """What weights files hold, what `from_pretrained` would make of them, and their bytes."""

    subject: Subject
    after: AfterReload
    nbytes: int


def open_stored(
    path: Path,
    *,
    tied: bool | None = None,
    config: Mapping[str, Any] | None = None,
    ignored: Collection[str] = (),
) -> StoredModel:
    """Map the names and tensors of a weights file, index or folder, and find what `from_pretrained` makes of them.

    `tied` is what the configuration is to say instead of what it does, `config` one in the place of its own, `ignored`
    the fields that are left out of it. Raise `NotFoundError` or `WeightsError` if there is nothing that can be read.
    """
    stored = read(path, needs_config=False)
    given = stored.config if config is None else config
    config = None if given is None else {name: value for name, value in given.items() if name not in ignored}
    if config is not None and tied is not None:
        config["tie_word_embeddings"] = tied
    weights = shards_of(stored.path)
    recorded = _recorded(weights, stored.tensors) if stored.format == "safetensors" else {}
    says = None if config is None else config.get("tie_word_embeddings", _is_tied_by_default(config))
    declared = Declared(by_config=says if isinstance(says, bool) else None, recorded=recorded or None)
    named = tuple(Named(name, tensor) for name, tensor in stored.tensors.items())
    subject = Subject(f"{stored.path} ({stored.format})", "checkpoint", named, declared)
    after, ties = _predict(stored, config)
    if ties:
        by_class = {target: _in_file(source, stored.tensors) for target, source in ties.items()}
        subject = replace(subject, declared=replace(declared, by_class=by_class))
    return StoredModel(subject, after, sum(file.stat().st_size for file in weights))


def _in_file(name: str, tensors: Collection[str]) -> str:
    """What a file calls one of the class's tensors: it may leave out the first parts of the name."""
    return name if name in tensors else next((one for one in tensors if f".{name}".endswith(f".{one}")), name)


def _recorded(weights: Sequence[Path], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """`safetensors.torch.save_model` notes the names that it left out: left out -> kept."""
    from safetensors import safe_open

    notes: dict[str, str] = {}
    for file in weights:
        with safe_open(file, framework="pt") as opened:
            notes.update(opened.metadata() or {})
    return {name: kept for name, kept in notes.items() if kept in tensors and name not in tensors}


Reading = tuple[AfterReload, Mapping[str, str]]
"""What a file is after a reload, and the ties that reading it makes, target -> source."""


def _unknown(reason: str) -> Reading:
    return AfterReload(None, None, reason), {}


def _predict(stored: Stored, config: Mapping[str, Any] | None) -> Reading:
    if config is None:
        return _unknown("no config.json beside it says what would be built, so nothing can be predicted")
    blocks, count = _most_blocks(config), len(stored.tensors)
    if blocks > count:  # before the names of every block are written out
        return _unknown(f"the configuration promises {blocks:.0f} blocks, and the file has {count} tensors")
    architecture, family = _architecture(config), _family(config)
    if family is None or architecture not in ("", family.in_transformers.model, family.in_transformers.base):
        return _read_other(stored, config)
    canonical = canonical_names(stored.tensors)
    layout = family.layout_of({name: stored.tensors[given[0]] for name, given in canonical.items()})
    if layout is None or layout.name != "hf" or stored.model_args is not None:
        name = layout.name if layout is not None and stored.model_args is None else "nanogpt" if layout else "unknown"
        return _unknown(f"transformers does not read the layout {name!r}; pellucid.load may")
    if "key" in stored.notes:
        return _unknown(f"transformers does not look under the key {stored.notes['key']!r}; pellucid.load does")
    try:
        known = config_of(config)
    except PellucidError as problem:
        name = family.config.about.family
        return _unknown(f"the configuration is not {name}'s: {problem.message}")
    # Names under "module." or "_orig_mod." stay as they are: transformers does not look below these.
    tensors = {prefixed(name, family): tensor for name, tensor in stored.tensors.items()}
    return _read_family(tensors, known, layout, headless=architecture == family.in_transformers.base)


def _family(config: Mapping[str, Any]) -> Family | None:
    """The family that a configuration names; the first one if it names none."""
    named = config.get("model_type", FAMILIES[0].name)
    return next((family for family in FAMILIES if family.name == named), None)


def _is_tied_by_default(config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding if a configuration does not say; transformers' own default if unknown."""
    family = _family(config)
    return True if family is None else family.config.tie_word_embeddings


def _most_blocks(config: Mapping[str, Any], depth: int = 0) -> float:
    """The largest number of blocks that a configuration, or one inside it, promises."""
    inner = [value for value in config.values() if isinstance(value, dict)] if depth < 5 else []
    counts = [as_number(value) or 0.0 for name, value in config.items() if re.search(r"(^n_|_|^)layers?$", str(name))]
    return max([*counts, *(_most_blocks(value, depth + 1) for value in inner)], default=0.0)


def _architecture(config: Mapping[str, Any]) -> str:
    """The class that wrote a checkpoint; "" if the configuration names none."""
    given = config.get("architectures")
    first = given[0] if isinstance(given, list) and given else given
    return first if isinstance(first, str) else ""


def _read_family(tensors: Mapping[str, Tensor], config: Config, hf: Layout, *, headless: bool) -> Reading:
    """A family, by our own table of its names: `pellucid ties` works without transformers, and without its import."""
    shapes = their_shapes(hf, config.schema, headless=headless)
    if wrong := misfits(tensors, shapes):
        return AfterReload(False, None, f"from_pretrained raises: {wrong}", written=size_of(tensors)), {}
    source = {name: name if name in tensors else None for name in shapes}
    head, embedding = hf.head.theirs[0], next(row.theirs[0] for row in hf.rows if row.ours == EMBED)
    ties, tied = {}, frozenset[str]()
    if not headless and config.tie_word_embeddings:
        ties, pair = {head: embedding}, frozenset((head, embedding))
        stored = [name for name in pair if name in tensors]
        if len(stored) == 1:
            source.update(dict.fromkeys(pair, stored[0]))
        tied = pair if len(stored) < 2 or torch.equal(tensors[embedding], tensors[head]) else tied
    # The causal masks and frequencies that old files carry are not read either, but they are no weights.
    unread = tuple(name for name in tensors if name not in shapes and name not in hf.buffers_of(config.schema))
    return _reading(Reread(source, unread, ties, tied, None if headless else head), tensors)


def _read_other(stored: Stored, config: Mapping[str, Any]) -> Reading:
    """Another family, or a class for another task, which transformers reads itself."""
    model_type = config.get("model_type", FAMILIES[0].name)
    kind = f"model_type {model_type!r}"
    try:
        transformers = need("transformers", "what the file is after a reload")
    except MissingExtraError as problem:
        return _unknown(f"{kind}: only transformers can say: {problem.message}")
    cls = getattr(transformers, _architecture(config), None)
    try:
        known = transformers.AutoConfig.for_model(**{"model_type": model_type, **json.loads(json.dumps(dict(config)))})
        return _reading(reread(cls, known, stored.tensors), stored.tensors)
    except Refused as refusal:
        return AfterReload(False, None, str(refusal), written=size_of(stored.tensors)), {}
    except Exception as problem:  # an unknown family, a class of the repository's own, fields that do not fit
        return _unknown(f"{kind}: transformers cannot build it: {type(problem).__name__}: {problem}")


def _reading(again: Reread, file: Mapping[str, Tensor]) -> Reading:
    missing = [name for name, source in again.source.items() if source is None]
    lost = (
        *(Loss(name, "dropped", "is in the file, but the class has no such name") for name in again.unread),
        *(Loss(name, "random", "is not in the file, so that it is drawn at random") for name in missing),
    )
    ties = {target: source for target, source in again.ties.items() if target in again.tied}
    return after_reload(again, file, lost), ties
