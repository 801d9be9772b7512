"""Traces: a run of one text made into what the viewer reads, within a budget of bytes."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pellucid._version import __version__
from pellucid.errors import InputError, NumericsError
from pellucid.family.network import Network
from pellucid.metrics import Token, token_ids
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer
from pellucid.run.origin import weights_fingerprint
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.text.batch import Inputs, pieces_of
from pellucid.viewer import logit_blocks, value_blocks
from pellucid.viewer.container import Trace, TraceBlock
from pellucid.viewer.logit_blocks import Target
from pellucid.viewer.one_text import MOST_SQUARE, OneText, of_run, run_text
from pellucid.weights.hub import BUNDLED, BUNDLED_NAME

IN_A_PAGE = 4_200_000
"""Bytes of a deflated trace with which a page stays below 6 MB: base64 adds a third, the viewer itself 0.2 MB."""

REFUSED = 15_000_000
"""Bytes of the blocks that every trace has beyond which no page is made: it would be larger than 20 MB."""

_SERVER = "pellucid serve shows it"


def trace(
    model: CkptedTransformer,
    text: Inputs,
    *,
    edits: Sequence[Edit] = (),
    target: Token | None = None,
    limit: int = IN_A_PAGE,
    sae: SparseAutoencoder | None = None,
) -> Trace:
    """Run a text, and make a trace of it.

    Args:
        model: What runs, of any family.
        text: One text, or the ids of one.
        edits: Changes on the way, in this order.
        target: The token whose logit is explained, an id or a text that is one token; None for the likeliest next one.
        limit: Bytes that the deflated trace may have; blocks that do not fit are left out, and the header says which.
        sae: An autoencoder whose features the page shows in the place of neurons.

    Raises:
        InputError: If it is not one text, is longer than the context or too large for a view, or has no such token.
        EditError: If an edit does not fit.

    Example:
        >>> import pellucid as pl
        >>> from pellucid.viewer import trace
        >>> made = trace(pl.load(), "Once upon a time")
        >>> made.header["target"]["text"], made["prediction.top.ids"].data.shape
        (',', (4, 20))
    """
    return traced(run_text(model, text, edits), target, limit, sae)


def trace_of(
    ckpts: ActivationCkpts,
    *,
    text: int = 0,
    target: Token | None = None,
    model: Network | None = None,
    limit: int = IN_A_PAGE,
) -> Trace:
    """Make a trace of a run that was captured; what it did not capture is captured by running its texts again.

    Args:
        ckpts: The run.
        text: Which of its texts.
        target, limit: As for `trace`.
        model: The model that made the values, if they were saved or pickled since.

    Raises:
        InputError: If there is no such text or token, no model, or the run cannot be repeated to the bit.

    Example:
        >>> import pellucid as pl
        >>> from pellucid.viewer import trace_of
        >>> _, ckpts = pl.load().run_with_ckpts(["Once upon a time", "Lily"], names="resid_post")
        >>> trace_of(ckpts, text=1)["norms"].about["of"]
        ['resid_pre', 'attn_out', 'resid_mid', 'mlp_out', 'resid_post']
    """
    return traced(of_run(ckpts, text=text, model=model), target, limit)


def traced(one: OneText, target: Token | None, limit: int, sae: SparseAutoencoder | None = None) -> Trace:
    """Make a trace of a text that was run; arguments as for `trace`."""
    aim = _target(one, target)
    left_out: list[dict[str, Any]] = []
    blocks = value_blocks.patterns(one)
    if _size(blocks) > limit and one.n_tokens > value_blocks.CELLS:
        blocks = value_blocks.pooled(one)
    if "attention.pooled" in blocks:
        left_out.append(_left_out("attention.pattern", "means over cells stand for the whole patterns"))
    blocks |= {
        **value_blocks.measures(one), **value_blocks.norms(one), **logit_blocks.prediction(one),
        **logit_blocks.read_lens(one, aim),
    }  # fmt: skip
    used = _size(blocks)
    if used > REFUSED:
        raise InputError(
            f"view: what every page holds takes {used / 1e6:.0f} MB for {one.n_tokens} tokens of this model, expected "
            f"at most {REFUSED / 1e6:.0f}.",
            code="view-too-large",
            remedy="Give a shorter text.",
        )
    for optional in (*_OPTIONAL, *(() if sae is None else _of_features(sae))):
        found, why, missing = optional.within(one, aim, limit - used)
        blocks |= found
        used += _size(found)
        if why:
            left_out.append(_left_out(optional.name, why, missing))
    header = _header(one, aim, blocks, left_out)
    return Trace(header if sae is None else {**header, "features": logit_blocks.header(sae, one)}, blocks)


@dataclass(frozen=True)
class _Optional:
    """Blocks that are left out if they do not fit."""

    name: str  # what the header calls them if they are left out
    ways: tuple[Callable[[OneText, Target], Mapping[str, TraceBlock]], ...]  # how they are made, the most exact first
    square: bool = False  # whether they need whole patterns

    def within(self, one: OneText, aim: Target, limit: int) -> tuple[Mapping[str, TraceBlock], str, int]:
        """The blocks, or why there are none, and the bytes that they would take."""
        if not one.ckpts.n_layer:
            return {}, "the model has no blocks", 0
        if self.square and one.n_tokens > MOST_SQUARE:
            return {}, f"it is made of texts of up to {MOST_SQUARE} tokens", 0
        takes = 0
        for way in self.ways:
            try:
                found = way(one, aim)
            except (InputError, NumericsError) as refusal:
                return {}, refusal.message, 0
            raw = sum(block.data.nbytes for block in found.values())
            takes = takes or raw
            if raw < 2 * limit and _size(found) <= limit:
                return found, "", 0
        return {}, f"it does not fit into this page; {_SERVER}", takes


def _of(
    make: Callable[..., Mapping[str, TraceBlock]], **how: bool
) -> Callable[[OneText, Target], Mapping[str, TraceBlock]]:
    return lambda one, _: make(one, **how)


_OPTIONAL = (
    _Optional("attribution", (logit_blocks.components,)),
    _Optional("attribution.sources", (logit_blocks.sources,), square=True),
    _Optional("attention.value_norm", (_of(value_blocks.value_norms),)),
    _Optional("neurons.effect", (logit_blocks.neuron_effects,)),
    _Optional("embeddings.pca", (_of(value_blocks.scatter),)),
    _Optional("distributions", (_of(value_blocks.distributions),)),
    _Optional("attention.q", (_of(value_blocks.queries_and_keys),)),
    _Optional("neurons", tuple(_of(value_blocks.neurons, coarse=coarse) for coarse in (False, True))),
    _Optional("atlas", tuple(_of(value_blocks.atlas, coarse=coarse) for coarse in (False, True)), square=True),
)
"""They get their place in this order: the small ones and those that are used much come first."""


def _of_features(sae: SparseAutoencoder) -> tuple[_Optional, ...]:
    ways = tuple(_of(partial(logit_blocks.features, sae), narrow=narrow) for narrow in (False, True))
    return _Optional("features", ways), _Optional("features.effect", (partial(logit_blocks.effects, sae),))


def _size(blocks: Mapping[str, TraceBlock]) -> int:
    """Bytes of blocks when they are deflated."""
    return sum(len(zlib.compress(block.data.tobytes())) for block in blocks.values())


def _left_out(what: str, why: str, size: int = 0) -> dict[str, Any]:
    return {"what": what, "why": why, "bytes": size}


def _target(one: OneText, given: Token | None) -> Target:
    last = one.n_tokens - 1
    if given is None:
        return Target(int(one.logits[last].argmax()), last, "the most probable next token")
    return Target(int(token_ids(given, one.ckpts.batch, "view: target")[0]), last, "the token that was asked for")


def _header(
    one: OneText, aim: Target, blocks: Mapping[str, TraceBlock], left_out: list[dict[str, Any]]
) -> dict[str, Any]:
    model, schema = one.model, one.ckpts.schema
    tokens = pieces_of(model.tokenizer, one.ids)
    named = {aim.token}.union(*(set(blocks[name].data.ravel().tolist()) for name in ("prediction.top.ids", "lens.ids")))
    listed = sorted(named)
    return {
        "model": {
            "name": _name(model), "family": schema.family, "fingerprint": f"sha256:{weights_fingerprint(model)}",
            "sizes": dict(schema.sizes), "tied": schema.is_tied, "numerics": model.execution.numerics,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "versions": {"pellucid": __version__, "torch": torch.__version__},
        "made": date.today().isoformat(),
        "text": _text(model, one.ids),
        "tokens": [{"id": i, "text": text} for i, text in zip(one.ids, tokens, strict=True)],
        "vocabulary": dict(zip(map(str, listed), pieces_of(model.tokenizer, listed), strict=True)),
        "schema": _schema(one),
        "attention": {"scale": value_blocks.scales(one)},
        "calls": _calls(one),
        "target": {"id": aim.token, "text": pieces_of(model.tokenizer, [aim.token])[0], "pos": aim.pos, "why": aim.why},
        "edits": [entry for edit in one.edits for entry in _edited(edit, one)],
        "run": {"text": one.row, "texts": one.rows},
        "left_out": left_out,
    }  # fmt: skip


def _text(model: CkptedTransformer, ids: Sequence[int]) -> str:
    return " ".join(map(str, ids)) if model.tokenizer is None else model.tokenizer.decode(ids)


def _schema(one: OneText) -> dict[str, Any]:
    points: list[dict[str, Any]] = []
    for point in one.ckpts.schema.points:
        _, block, short = point.name.split(".", 2) if point.name.startswith("blocks.") else ("", None, point.name)
        known = {"batch": 1, "pos": one.n_tokens, "query": one.n_tokens, "key": one.n_tokens}
        points.append({
            "name": point.name, "block": None if block is None else int(block), "short": short,
            "axes": [str(axis) for axis in point.axes],
            "shape": [known.get(axis) or one.ckpts.schema.length_of(axis, point) for axis in point.axes],
            "unit": point.unit, "meaning": point.meaning, "equation": point.equation, "computed": point.computed,
        })  # fmt: skip
    shape = one.ckpts.schema.shape_of
    return {
        "points": points,
        "parameters": [
            {"name": own.name, "axes": list(own.axes), "shape": list(shape(own)), "stored_in": own.stored_in}
            for own in one.ckpts.schema.parameters
        ],
    }


def _edited(edit: Edit, one: OneText) -> list[dict[str, Any]]:
    region, call = edit.region, _python_of(edit)
    return [
        {"name": name, "heads": _listed(region.heads), "pos": _listed(region.pos), "how": edit.what, "python": call}
        for name in aliases.selected(edit.names, one.ckpts.schema)
    ]


def _listed(index: Any) -> list[int] | str | None:
    if index is None:
        return None
    if isinstance(index, slice):
        return str(index)
    read = index.tolist() if hasattr(index, "tolist") else index
    return [int(i) for i in read] if isinstance(read, (list, tuple, range, set)) else [int(read)]


def _python_of(edit: Edit) -> str | None:
    """The call that makes an edit again; None for one that holds values."""
    whole = edit.what == "zero" or (edit.what == "mean_ablate" and edit.whole_text)
    return f"pl.{edit!r}" if whole else None


def _name(model: CkptedTransformer) -> str:
    source = model.provenance.get("source", "")
    return BUNDLED_NAME if source == str(BUNDLED) else source or type(model).__name__


def _opened(model: CkptedTransformer) -> tuple[str, str | None] | None:
    """How a model is opened, in Python and on the command line; None if that cannot be said."""
    from_a_file = "file" in model.provenance and model.provenance.get("format") != "mapping"
    if not from_a_file or "config" in model.provenance:
        return None
    name, dtype = _name(model), str(model.dtype).removeprefix("torch.")
    how = {"dtype": (dtype, "float32"), "numerics": (model.execution.numerics, "exact"),
           "attention": (model.execution.attention, "auto")}  # fmt: skip
    more = [f"{word}={own!r}" for word, (own, usual) in how.items() if own != usual]
    given = [] if name == BUNDLED_NAME else [repr(name)]
    shell = ([] if name == BUNDLED_NAME else ["-m", name]) + (["--dtype", dtype] if dtype != "float32" else [])
    others = any(own != usual for word, (own, usual) in how.items() if word != "dtype")
    return f"pl.load({', '.join(given + more)})", None if others else shlex.join(shell)


_NO_ARGUMENT = re.compile(r"^-|\0|^\S+\.\w+$")
"""Texts that a command would take for an option, for standard input or for a file, or that no shell can pass on."""


def _has_tokenizer(source: Path) -> bool:
    """Whether opening a model brings a tokenizer; else it was given to it, and ids say what was run."""
    folder = source if source.is_dir() else source.parent
    return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "meta.pkl"))


def _calls(one: OneText) -> dict[str, str | None]:
    """How this run is made again, in Python and on the command line; None for what cannot be said in a line."""
    opened = _opened(one.model)
    if opened is None:
        return {"python": None, "shell": None, "values": None}
    edits = [_python_of(edit) for edit in one.edits]
    text, ids = _text(one.model, one.ids), one.ids
    tokenizer = one.model.tokenizer if _has_tokenizer(Path(one.model.provenance["source"])) else None
    again = tokenizer is not None and tokenizer.encode(text) == ids
    given = repr(text) if again else f"[{ids}]"
    python = values = shell = None
    if all(edits):
        begun = f"import pellucid as pl\n\nmodel = {opened[0]}\n"
        more = f", edits=[{', '.join(map(str, edits))}]" if edits else ""
        python = f"{begun}pl.view(model, {given}{more})"
        values = f"{begun}logits, ckpts = model.run_with_ckpts({given}{more})"
    if opened[1] is not None and not edits:
        typed = again and not _NO_ARGUMENT.search(text)
        words = shlex.quote(text) if typed else "--ids " + ",".join(map(str, ids))
        shell = " ".join(part for part in ("pellucid view", words, opened[1], "--html page.html") if part)
    return {"python": python, "shell": shell, "values": values}
