"""Other people's tensors become ours, or an error names every one that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pellucid.errors import ConfigError, WeightsError
from pellucid.gpt2.config import TransformerConfig
from pellucid.weights.layouts import (
    EMBED,
    HEAD,
    HOOKED,
    LAYOUTS,
    LLMC,
    Layout,
    Row,
    detect,
    our_shapes,
    sizes_of,
)
from pellucid.weights.leftovers import harmless, listed, reason_of, refuse_empty, refuse_foreign, refuse_numbers
from pellucid.weights.prefixes import beside, canonical_names, prefixes_of
from pellucid.weights.transforms import ZEROS, Place, Shape


@dataclass(frozen=True)
class Imported:
    """Weights of ours, and what was found out on the way.

    Args:
        weights: Under our stored names; the head is among them only when it is untied.
        config: As given, but with `tie_word_embeddings` as the weights have it.
        layout: Name of the layout that they came in.
        remarks: What the reader should be warned of.
        left_out: What was found beside the language model -> why the model is the same without it.
        filled: Biases that the file has not, in any block, and that are zeros.
    """

    weights: dict[str, Tensor]
    config: TransformerConfig
    layout: str
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    filled: tuple[str, ...] = ()


def to_ours(tensors: Mapping[str, Tensor], config: TransformerConfig, how: str = "model.state_dict()") -> Imported:
    """Import a state dict of any known layout.

    Args:
        tensors: Their tensors, dense, on any device; never written to.
        config: What the tensors are checked against.
        how: How to get these tensors in Python, for remedies.

    Returns:
        Our tensors: views of theirs where nothing had to be rearranged.

    Raises:
        WeightsError: The layout is not known, or tensors are unexplained, missing or misshapen (all are listed), or
            the weights were processed and are no longer GPT-2's.
    """
    refuse_foreign(tensors)
    canonical = _one_model(tensors, how)
    theirs = {name: tensors[given[0]] for name, given in canonical.items()}
    layout = detect(theirs)
    if layout is None:
        raise _unknown_layout(tensors)
    if config.n_layer > len(theirs):
        # Before the rows of every block are written out: a configuration may promise a billion of them.
        raise _mismatch(
            layout, [f"most tensors of {config.n_layer} blocks"], [], [], _sizes_remedy(theirs, config, layout)
        )
    if layout is HOOKED:
        _refuse_folded(theirs, config)
    layout, filled = _without_absent_biases(layout, theirs, config)
    left_out = _check(theirs, canonical, config, layout, how)
    ours = _transform(theirs, config, layout)
    if layout is HOOKED:
        _refuse_processed(ours)
    imported = _settle_head(ours, config, layout)
    beneath = [name for name in tensors if ".base_layer." in name]
    remarks = (
        [f"names such as {beneath[0]} are those of a model beneath adapters, which are not here"] if beneath else []
    )
    return replace(imported, remarks=(*imported.remarks, *remarks), left_out=left_out, filled=filled)


def _one_model(tensors: Mapping[str, Tensor], how: str) -> dict[str, list[str]]:
    """Canonical names -> the names given, of the one model that these tensors are."""
    prefixes = prefixes_of(tensors)
    if len(prefixes) > 1:
        several = sorted(prefixes)
        first = next(prefix for prefix in several if prefix)
        raise WeightsError(
            f"weights: they belong to {len(several)} models, under the prefixes {listed([repr(p) for p in several])}.",
            code="weights-ambiguous",
            remedy=f"Choose one of them, such as pl.load({{name.removeprefix({first!r}): tensor for name, tensor in "
            f"tensors.items() if name.startswith({first!r})}}, config=...), with tensors = {how}.",
        )
    canonical = canonical_names(tensors)
    twice = sorted(name for name, given in canonical.items() if len(given) > 1)
    if twice:
        raise WeightsError(
            f"weights: {listed(twice, 8)} given more than once, under different prefixes.",
            code="weights-ambiguous",
            remedy="Save the state dict of one model only.",
        )
    return canonical


def _without_absent_biases(
    layout: Layout, theirs: Mapping[str, Tensor], config: TransformerConfig
) -> tuple[Layout, tuple[str, ...]]:
    """The layout with zeros for a bias that no block of the file has; transformers fills in zeros, too.

    A bias that only some blocks lack is missing.
    """

    def is_absent(row: Row) -> bool:
        names = (
            row.theirs if "{i}" not in row.ours else [n for i in range(config.n_layer) for n in row.of_block(i).theirs]
        )
        return bool(names) and not any(name in theirs for name in names)

    biases = [row for row in layout.rows if re.search(r"\.b(_\w+)?$", row.ours) and row.theirs]
    absent = {row.ours for row in biases if is_absent(row)}
    if "ln_final.b" in absent and not {"blocks.{i}.ln1.b", "blocks.{i}.ln2.b"} <= absent and config.n_layer:
        absent.discard("ln_final.b")  # one tensor that is lost, and no model without such biases
    if not absent or layout is HOOKED:
        return layout, ()
    rows = tuple(Row((), row.ours, ZEROS) if row.ours in absent else row for row in layout.rows)
    return replace(layout, rows=rows), tuple(row.ours for row in rows if row.ours in absent)


def _transform(theirs: Mapping[str, Tensor], config: TransformerConfig, layout: Layout) -> dict[str, Tensor]:
    shapes = our_shapes(config)
    dtype = next(tensor.dtype for tensor in theirs.values() if tensor.is_floating_point())
    ours: dict[str, Tensor] = {}
    for row in (*layout.rows_of(config), layout.head):
        if all(name in theirs for name in row.theirs):
            target = Place(row.ours, shapes[row.ours], dtype, config.n_head)
            ours[row.ours] = row.transform.to_ours([theirs[name] for name in row.theirs], target)
    return ours


def _check(
    theirs: Mapping[str, Tensor], given: Mapping[str, list[str]], config: TransformerConfig, layout: Layout, how: str
) -> dict[str, str]:
    """Every tensor explained, present, floating and of its shape; else one error with all that is wrong.

    Returns:
        The tensors that are no weights of the language model -> why it is the same without them.
    """
    expected = _their_shapes(_rows(layout, config), config)
    missing, wrong = _misfits(theirs, given, config, layout)
    left_out, unexplained = _beside_weights({given[n][0]: t for n, t in theirs.items() if n not in expected}, given)
    present = {given[name][0]: theirs[name] for name in expected if name in theirs}
    refuse_numbers(present, how)
    refuse_empty(present, {given[name][0]: shape for name, shape in expected.items() if name in theirs})
    if missing or unexplained or wrong:
        only_unexplained = not (missing or wrong or prefixes_of(unexplained))
        remedy = _without(unexplained, how) if only_unexplained else _sizes_remedy(theirs, config, layout)
        raise _mismatch(layout, missing, unexplained, wrong, remedy)
    buffers = layout.buffers_of(config)
    exact = {
        names[0] for name, names in given.items() if name in theirs and buffers.get(name) == tuple(theirs[name].shape)
    }
    return {name: reason for name, reason in left_out.items() if name not in exact}  # a buffer of its layout is no news


def _misfits(
    theirs: Mapping[str, Tensor], given: Mapping[str, Sequence[str]], config: TransformerConfig, layout: Layout
) -> tuple[list[str], list[str]]:
    """The weights that are not there, and what is said of those of another shape."""
    rows = _rows(layout, config)
    expected = _their_shapes(rows, config)
    optional = set(layout.head.theirs)
    if config.tie_word_embeddings and optional <= set(theirs):
        # A tied model may name its one matrix by either end.
        optional = {name for row in rows if row.ours == EMBED for name in row.theirs}
    missing = [name for name in expected if name not in theirs and name not in optional]
    wrong = [
        f"{given[name][0]}: given {list(theirs[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in theirs and tuple(theirs[name].shape) != shape
    ]
    return missing, wrong


def _rows(layout: Layout, config: TransformerConfig) -> list[Row]:
    return [*layout.rows_of(config), layout.head]


def _beside_weights(others: Mapping[str, Tensor], given: Mapping[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """What may be left out -> why, and the names of what may not."""
    outside = beside(name for names in given.values() for name in names)
    left_out: dict[str, str] = {}
    for name, tensor in others.items():
        reason = harmless(name, tensor) or ("not under the language model's prefix" if name in outside else None)
        if reason is not None:
            left_out[name] = reason
    return left_out, [name for name in others if name not in left_out]


def _their_shapes(rows: Sequence[Row], config: TransformerConfig) -> dict[str, Shape]:
    ours = our_shapes(config)
    return {
        name: shape
        for row in rows
        for name, shape in zip(
            row.theirs,
            row.transform.shapes(Place(row.ours, ours[row.ours], torch.float32, config.n_head)),
            strict=True,
        )
    }


def _mismatch(
    layout: Layout, missing: list[str], unexplained: list[str], wrong: list[str], remedy: str
) -> WeightsError:
    parts = [
        f"missing: {listed(missing)}" if missing else "",
        f"unexplained: {listed([f'{name}{reason_of(name)}' for name in unexplained])}" if unexplained else "",
        f"misshapen: {listed(wrong, separator='; ')}" if wrong else "",
    ]
    parts = [part for part in parts if part]
    said = f"weights in the layout {layout.name!r} do not fit the configuration; {'. '.join(parts)}."
    if len(parts) > 1:
        return WeightsError(said, code="weights-do-not-fit", remedy=remedy)
    if missing:
        return WeightsError(said, code="weights-missing", remedy=remedy)
    if unexplained:
        return WeightsError(said, code="weights-unexplained", remedy=remedy)
    return WeightsError(said, code="weights-misshapen", remedy=remedy)


def _sizes_remedy(theirs: Mapping[str, Tensor], config: TransformerConfig, layout: Layout) -> str:
    """The sizes that the weights show, if with these they fit."""
    try:
        sizes = sizes_of(theirs, layout)
        sizes["n_head"] = config.n_head
        differing = {name: size for name, size in sizes.items() if size != _size(config, name)}
        fits = differing and not any(_misfits(theirs, {n: [n] for n in theirs}, config.replace(**differing), layout))
    except (ConfigError, KeyError, IndexError):
        fits, differing = False, {}
    if fits:
        return f"Pass config={differing}, which these weights fit; or the configuration that they were trained with."
    return (
        "Give the configuration that these weights were trained with (sizes, tie_word_embeddings), or the weights of "
        "a plain GPT-2."
    )


def _size(config: TransformerConfig, name: str) -> int:
    return config.d_mlp if name == "n_inner" else getattr(config, name)


_MOST_NAMED = 12
"""Tensors that a remedy names; what holds more of its own is not a plain GPT-2's weights."""


def _without(unexplained: list[str], how: str) -> str:
    if len(unexplained) > _MOST_NAMED or any(len(name) > 200 for name in unexplained):
        return "Give the weights of a plain GPT-2; this one computes with more than these."
    names = ", ".join(map(repr, unexplained))
    return (
        "If nothing is computed with them, leave them out: pl.load({name: tensor for name, tensor in tensors.items() "
        f"if name not in ({names},)}}, config=...), with tensors = {how}."
    )


def _unknown_layout(tensors: Mapping[str, Tensor]) -> WeightsError:
    names = sorted(tensors)
    return WeightsError(
        f"weights: their layout is not known; the first of {len(names)} tensors are "
        f"{listed([f'{name}{reason_of(name)}' for name in names[:6]])}.",
        code="layout-unknown",
        remedy=f"Known are {', '.join(LAYOUTS)}. Convert the weights with transformers, or rename its tensors.",
    )


def _settle_head(ours: dict[str, Tensor], config: TransformerConfig, layout: Layout) -> Imported:
    """Tied, untied, or declared tied and different: what transformers 5.23 does, except that it warns only.

    A head that an untied configuration promises and the file lacks, which it would draw at random, was refused
    before. Of two different matrices under a tied configuration both are kept.
    """
    head = ours.pop(HEAD, None)
    if head is None:
        if not config.tie_word_embeddings:
            raise WeightsError(
                f"weights in the layout {layout.name!r}: no {_head_name(layout)}, and tie_word_embeddings is false.",
                code="head-missing",
                remedy="Give the weights with their head, or tie_word_embeddings=true if it was trained tied.",
            )
        return Imported(ours, config, layout.name)
    embedding = ours.get(EMBED)
    if not config.tie_word_embeddings:
        return Imported({**ours, HEAD: head}, config, layout.name)
    if embedding is None:
        return Imported({EMBED: head.t(), **ours}, config, layout.name)
    if same_numbers(embedding, head.t()):
        return Imported(ours, config, layout.name)
    return Imported(
        {**ours, HEAD: head},
        config.replace(tie_word_embeddings=False),
        layout.name,
        (
            f"the configuration says that {_head_name(layout)} is the embedding, but the two differ: both are kept, "
            "and the model is untied, as in transformers 5",
        ),
    )


def _head_name(layout: Layout) -> str:
    return "lm_head.weight" if layout is LLMC else layout.head.theirs[0]


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers; a NaN equals the same NaN, 0.0 equals -0.0 as ever."""
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    if a.dtype != b.dtype:
        return False
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    if torch.equal(a.view(bits), b.view(bits)):
        return True
    if a.is_floating_point() and a.element_size() == 1:
        a, b = a.float(), b.float()  # exact; torch.equal does not take float8
    return torch.equal(a, b)


def _refuse_folded(theirs: Mapping[str, Tensor], config: TransformerConfig) -> None:
    bias = theirs.get("unembed.b_U")
    if bias is not None and bias.count_nonzero():
        raise _processed("its unembedding has a bias, which GPT-2 has not")
    norms = [f"blocks.{i}.{norm}.{part}" for i in range(config.n_layer) for norm in ("ln1", "ln2") for part in "wb"]
    absent = [name for name in (*norms, "ln_final.w", "ln_final.b") if name not in theirs]
    if len(absent) == len(norms) + 2:
        raise _processed("its LayerNorms have no gain and bias: they were folded into the matrices after them")


def _refuse_processed(ours: Mapping[str, Tensor]) -> None:
    """TransformerLens' processed weights compute the same logits, but they are other weights.

    Folding, centring and the bias of the unembedding leave these traces; trained weights have none of them.
    """
    norms = [(name, tensor) for name, tensor in ours.items() if re.search(r"ln(1|2|_final)\.[wb]$", name)]
    trivial = all(bool((tensor == (1 if name.endswith("w") else 0)).all()) for name, tensor in norms)
    biases = any(tensor.count_nonzero() for name, tensor in ours.items() if name.endswith("b_QKV"))
    if trivial and biases:
        raise _processed("its LayerNorms all have gain 1 and bias 0: they were folded into the matrices after them")
    head = ours.get(HEAD)
    for name, tensor, axis in ((EMBED, ours.get(EMBED), 1), (HEAD, head, 1)):
        if tensor is not None and _is_centred(tensor, axis):
            raise _processed(f"{name} has mean zero along its last axis: it was centred")


def _is_centred(tensor: Tensor, axis: int) -> bool:
    if tensor.shape[axis] < 4:
        return False
    scale = float(tensor.float().abs().mean())
    return scale > 0 and float(tensor.float().mean(axis).abs().max()) < 1e-5 * scale


def _processed(reason: str) -> WeightsError:
    return WeightsError(
        f"weights in the layout {HOOKED.name!r} were processed: {reason}.",
        code="layout-processed",
        remedy="Load the model with TransformerLens' from_pretrained_no_processing and save its state dict.",
    )
