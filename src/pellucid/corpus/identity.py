"""What made a store, and whether a model on this machine would make it again to the bit, tried on some rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid.check import require_whole
from pellucid.corpus.place import chunk_key, unfinished
from pellucid.corpus.plan import CorpusPlan
from pellucid.corpus.ray_workers import machine_of
from pellucid.corpus.sink import CapturingModel
from pellucid.errors import InputError, PellucidError
from pellucid.html.listing import counted
from pellucid.numerics.rounding import bits
from pellucid.open import load
from pellucid.run.origin import execution_of, weights_fingerprint
from pellucid.weights.hub import BUNDLED, BUNDLED_NAME

if TYPE_CHECKING:
    from pellucid.corpus.store import Store


MACHINE = ("torch", "threads", "processor", "device")
"""Facts of where a store was made, on which the last bits of products depend."""

ARGUMENTS = ("names", "dtype", "batch_tokens", "long_texts", "packing")
"""Facts that arguments of `capture` say."""

_WHAT = {
    "weights": "the model's weights differ", "tokenizer": "the tokenizer differs",
    "model_dtype": "the model's dtype differs", "numerics": "the numerics differ", "attention": "the attention differs",
    "texts": "the texts differ", "names": "the checkpoints differ", "dtype": "the dtype of what is stored differs",
    "batch_tokens": "batch_tokens differs", "long_texts": "long_texts differs", "packing": "packing differs",
    "torch": "torch's version differs", "threads": "the number of threads differs",
    "processor": "the processor's features differ",
    "device": "the device differs",
}  # fmt: skip

FUSED = {"_attn_implementation": "sdpa"}
"""What opens a file with attention='auto' although its configuration asks for eager attention."""

_REMEDIES = {
    "model": "Give the model that it was made with, opened in the same way, or another path.",
    **{fact: f"Give {fact}={{stored!r}}, which it was made with, or another path." for fact in ARGUMENTS},
    **dict.fromkeys(MACHINE, "Run it where it was made, or write a new store to another path."),
    "attention": "Open the model with attention={stored!r}{asked}, as it was when this was made, or give another path.",
    "threads": "Call torch.set_num_threads({stored}) first.",
    "texts": "Give the texts as they were, or another path: what is stored is of texts that have changed since.",
}


def facts_of(model: CapturingModel) -> dict[str, Any]:
    """What a store says of the model that made it and of the machine."""
    source = str(getattr(model, "provenance", {}).get("source", ""))
    return {
        "model": BUNDLED_NAME if source == str(BUNDLED) else source,
        "weights": weights_fingerprint(model),
        "tokenizer": _tokenizer_digest(getattr(model, "tokenizer", None)),
        "model_dtype": str(getattr(model, "dtype", torch.float32)).removeprefix("torch."),
        **execution_of(model),
        **machine_of(model),
    }  # fmt: skip


def _tokenizer_digest(tokenizer: Any) -> str:
    if tokenizer is None:
        return ""
    make: Any = getattr(tokenizer, "to_json", None)
    return hashlib.sha256(str(make()).encode()).hexdigest() if callable(make) else type(tokenizer).__name__


def require_equal(stored: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise an error if a store was made of something else, or where products round otherwise."""
    for fact, value in now.items():
        if fact == "model" or stored.get(fact) == value:
            continue
        was = stored.get(fact)
        raise InputError(
            f"corpus: {_WHAT[fact]} from what {where!r} was made with: {_short(was)} there, {_short(value)} here.",
            code="corpus-misfit",
            remedy=_REMEDIES.get(fact, _REMEDIES["model"]).format(
                stored=was, asked=f" and config={FUSED}" if was == "auto" else ""
            ),
        )


def _short(value: Any) -> str:
    said = str(value)
    return repr(said) if len(said) <= 60 else f"{said[:12]}…"


def require_same(stored: Mapping[str, Any], model: Any, where: str) -> None:
    """Raise an error unless a model would make a store's values again to the bit. See `require_equal`."""
    now = {fact: value for fact, value in facts_of(model).items() if fact != "tokenizer"}  # the tokens are stored
    require_equal(stored, now, where)


def reopened(
    stored: Mapping[str, Any], remedy: str = "Give the model that made the store: store.verify(model=model)."
) -> Any:
    """The model that a store was made with, opened from where it came; `remedy` if that cannot be."""
    if not stored["model"]:
        raise InputError(
            "corpus: the model was not opened from a file, so it cannot be opened again.",
            code="corpus-model",
            remedy=remedy,
        )
    try:
        how = {"dtype": stored["model_dtype"], "attention": stored["attention"], "numerics": stored["numerics"]}
        model = load(stored["model"], **how)
        if model.execution.attention != stored["attention"]:  # its configuration asks for another
            model = load(stored["model"], **how, config=FUSED)
        return model
    except (PellucidError, KeyError) as error:
        raise InputError(
            f"corpus: the model cannot be opened as {stored.get('model')!r}, where it came from: {error}",
            code="corpus-model",
            remedy=remedy,
        ) from error


@dataclass(frozen=True)
class Verification:
    """What was found when stored rows were run again; true if nothing is wrong."""

    rows: int  # how many rows were run again
    batches: int  # in how many batches
    parts: int  # how many parts they lie in; the SHA-256 of each of their chunks was compared
    missing: int  # how many parts are not there
    unequal: list[tuple[str, int]] = field(default_factory=list)  # (checkpoint, row) of what is not equal to the bit
    # (checkpoint, part) of chunks that are not as they were written
    damaged: list[tuple[str, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.unequal and not self.damaged

    def __repr__(self) -> str:
        verdict = "equal to the bit" if not self.unequal else f"{counted(len(self.unequal), 'value')} of rows not equal"
        said = f"{counted(self.rows, 'row')} of {counted(self.parts, 'part')}, run again in "
        said += f"{counted(self.batches, 'batch')}: {verdict}"
        if self.damaged:
            said += f"; {counted(len(self.damaged), 'chunk')} not as written, the first {self.damaged[0]}"
        elif self.unequal:
            said += f", the first {self.unequal[0]}"
        return said + (f"; {counted(self.missing, 'part')} not there" if self.missing else "")


def recomputed(store: Store, rows: Any, model: Any, seed: Any) -> Verification:
    """Compare rows of a store with what a model gives now. See `Store.verify`."""
    count = require_whole("rows", rows, at_least=1)
    plan, there = store.plan, store.parts
    if not there:
        raise unfinished(f"nothing is in {store.place} yet, so nothing can be compared")
    model = reopened(store.provenance) if model is None else model
    require_same(store.provenance, model, str(store.place))
    missing = plan.parts - len(there)
    if beside := damaged_beside(store):
        return Verification(0, 0, 0, missing, damaged=beside)
    drawn = _drawn(plan, [*there], count, require_whole("seed", seed))
    found = Verification(len(drawn), 0, 0, missing)
    batches = 0
    parts = np.unique(drawn // plan.part_rows).tolist()
    for part in parts:
        found.damaged.extend((name, part) for name in _damaged(store, part, there[part]))
        chunks = {name: store.chunk(name, part) for name in plan.names}
        mine = drawn[drawn // plan.part_rows == part]
        first = plan.rows_of(part).start
        corpus = store.corpus.holding(part)
        for batch in corpus.batches(part):
            if not any(((mine >= span.start) & (mine < span.stop)).any() for span in batch):
                continue
            batches += 1
            for span, values in corpus.run(model, batch, plan.names):
                wanted = mine[(mine >= max(span.start, first)) & (mine < span.stop)]
                for name, value in values.items() if len(wanted) else ():
                    stored = chunks[name][wanted - first]
                    equal = (bits(value[wanted - span.start].to(stored)) == bits(stored)).flatten(1).all(1)
                    found.unequal.extend((name, int(row)) for row in wanted[~equal.numpy()])
    return Verification(len(drawn), batches, len(parts), found.missing, sorted(found.unequal), found.damaged)


def _drawn(plan: CorpusPlan, parts: list[int], count: int, seed: int) -> NDArray[Any]:
    """Rows of some parts, in their order; only those that are drawn are in memory."""
    total = sum(len(plan.rows_of(part)) for part in parts)
    ranks = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False, shuffle=False))
    return np.asarray(parts)[ranks // plan.part_rows] * plan.part_rows + ranks % plan.part_rows


def damaged_beside(store: Store) -> list[tuple[str, int]]:
    """The chunks of tokens, and of what is known of texts, that are not as they were written."""
    wrong: list[tuple[str, int]] = []
    for key, digest in store.written.items():
        if hashlib.sha256(store.place.get(key) or b"").hexdigest() != digest:
            name, _, number = key.partition("/c.")
            wrong.append((name, int(number.split(".")[0])))
    return wrong


def require_undamaged(store: Store) -> None:
    """Raise an error if what is left to make would be made of other tokens than were written."""
    for name, number in damaged_beside(store):
        raise InputError(
            f"corpus: {store.place}: chunk {number} of {name!r} is not as it was written.",
            code="corpus-damaged",
            remedy="Write a new store to another path; the tokens of this one are lost.",
        )


def _damaged(store: Store, part: int, digests: dict[str, bytes]) -> list[str]:
    """The checkpoints whose chunk of a part is not as it was written."""
    wrong: list[str] = []
    for column in store.plan.columns:
        data = store.place.get(chunk_key(column.name, part, 1 + len(column.shape))) or b""
        if hashlib.sha256(data).digest() != digests[column.name]:
            wrong.append(column.name)
    return wrong
