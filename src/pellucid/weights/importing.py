"""Other people's tensors become ours, or an error names every one that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from pellucid.errors import ConfigError, WeightsError
from pellucid.family.families import FAMILIES, family_of
from pellucid.family.json_config import Config
from pellucid.family.layout import EMBED, HEAD, ZEROS, Layout, Place, Row
from pellucid.numerics.rounding import same_numbers
from pellucid.schema import Schema
from pellucid.weights.layouts import (
    beside,
    canonical_names,
    detect,
    endings,
    our_shapes,
    prefixes_of,
    their_shapes,
    unwrapped,
    without_weight,
)
from pellucid.weights.leftovers import harmless, listed, reason_of, refuse_empty, refuse_foreign, refuse_numbers


@dataclass(frozen=True)
class Imported:
    """Weights of ours, and what was found out on the way."""

    weights: dict[str, Tensor]  # under our stored names; the head is among them only when it is untied
    config: Config  # as given, but with `tie_word_embeddings` as the weights have it
    layout: str  # name of the layout that they came in
    remarks: tuple[str, ...] = ()  # what the reader should be warned of
    # what was found beside the language model -> why the model is the same without it
    left_out: Mapping[str, str] = field(default_factory=dict)
    filled: tuple[str, ...] = ()  # biases that the file has not, in any block, and that are zeros


def to_ours(tensors: Mapping[str, Tensor], config: Config, how: str = "model.state_dict()") -> Imported:
    """Import a state dict of any known layout; our tensors are views of theirs if nothing had to be rearranged.

    Tensors that are unexplained, missing or misshapen are all listed in one error; `how` says in remedies how to get
    them in Python.
    """
    refuse_foreign(map(without_weight, tensors))
    copies = _copies(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in copies}
    canonical = _one_model(tensors, how)
    theirs = {name: tensors[given[0]] for name, given in canonical.items()}
    layout = family_of(config).layout_of(theirs)
    if layout is None:
        raise _other_family(theirs, config) if detect(theirs) is not None else _unknown_layout(tensors)
    if config.sizes["layer"] > len(theirs):
        # Before the rows of every block are written out: a configuration may promise a billion of them.
        raise _mismatch(
            layout, [f"most tensors of {config.sizes['layer']} blocks"], [], [], _sizes_remedy(theirs, config, layout)
        )
    schema = config.schema
    if layout.refuse_theirs is not None:
        layout.refuse_theirs(theirs, schema)
    layout, filled = _without_absent_biases(layout, theirs, schema)
    left_out = _check(theirs, canonical, config, layout, how)
    ours = _transform(theirs, schema, layout)
    if layout.refuse_ours is not None:
        layout.refuse_ours(ours)
    config, remark = _settle_head(ours, config, layout)
    remarks = [remark] if remark else []
    if beneath := next((name for name in tensors if ".base_layer." in name), None):
        remarks.append(f"names such as {beneath} are those of a model beneath adapters, which are not here")
    return Imported(ours, config, layout.name, tuple(remarks), {**left_out, **copies}, filled)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Weights that are given again with the same numbers -> what they are.

    A module that holds its model twice, as `self.model` and `self.backbone = self.model.transformer`, saves it twice.
    """
    models = prefixes_of(tensors)
    given = {unwrapped(name) for name in tensors}
    kept = max(models, key=lambda prefix: any(prefix + head in given for head in endings(HEAD)), default="")
    pairs = [(name, models[kept].get(weight)) for p in models if p != kept for weight, name in models[p].items()]
    copies = {name for name, first in pairs if first is not None and _is_copy(tensors[name], tensors[first])}
    for first, *others in canonical_names(name for name in tensors if name not in copies).values():
        copies |= {name for name in others if _is_copy(tensors[name], tensors[first])}
    return dict.fromkeys(sorted(copies), "the same weights once more")


def _is_copy(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and same_numbers(a, b)


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
    layout: Layout, theirs: Mapping[str, Tensor], schema: Schema
) -> tuple[Layout, tuple[str, ...]]:
    """The layout with zeros for a bias that no block of the file has; transformers fills in zeros, too.

    A bias that only some blocks lack is missing.
    """

    def is_absent(row: Row) -> bool:
        rows = [row.of_block(i) for i in range(len(schema.blocks))] if "{i}" in row.ours else [row]
        names = [name for one in rows for name in one.theirs]
        return bool(names) and not any(name in theirs for name in names)

    biases = [row for row in layout.within(schema) if re.search(r"\.b(_\w+)?$", row.ours) and row.theirs]
    absent = {row.ours for row in biases if is_absent(row)}
    if "ln_final.b" in absent and not {"blocks.{i}.ln1.b", "blocks.{i}.ln2.b"} <= absent and schema.blocks:
        absent.discard("ln_final.b")  # one tensor that is lost, and no model without such biases
    if not absent or layout.has_biases:
        return layout, ()
    rows = tuple(Row((), row.ours, ZEROS) if row.ours in absent else row for row in layout.rows)
    return replace(layout, rows=rows), tuple(row.ours for row in rows if row.ours in absent)


def _transform(theirs: Mapping[str, Tensor], schema: Schema, layout: Layout) -> dict[str, Tensor]:
    shapes = our_shapes(schema)
    dtype = next(tensor.dtype for tensor in theirs.values() if tensor.is_floating_point())
    ours: dict[str, Tensor] = {}
    for row in (*layout.rows_of(schema), layout.head):
        if all(name in theirs for name in row.theirs):
            target = Place(row.ours, shapes[row.ours], dtype, schema.sizes["head"])
            ours[row.ours] = row.transform.to_ours([theirs[name] for name in row.theirs], target)
    return ours


def _check(
    theirs: Mapping[str, Tensor], given: Mapping[str, list[str]], config: Config, layout: Layout, how: str
) -> dict[str, str]:
    """Every tensor explained, present, floating and of its shape; else one error with all that is wrong.

    Returns the tensors that are no weights of the language model -> why it is the same without them.
    """
    expected = their_shapes(layout, config.schema)
    missing, wrong = _misfits(theirs, given, config, layout)
    others = {given[n][0]: t for n, t in theirs.items() if n not in expected}
    dropped = {given[name][0]: why for name, why in layout.dropped(config.schema).items() if name in given}
    left_out, unexplained = _beside_weights(others, given, dropped)
    embedding = theirs.get(next(row.theirs[0] for row in layout.rows if row.ours == EMBED))
    for name in unexplained if config.tie_word_embeddings else ():
        if embedding is not None and _is_copy(others[name], embedding):  # the head, under a name of its own
            left_out[name] = "the embedding once more"
    unexplained = [name for name in unexplained if name not in left_out]
    present = {given[name][0]: theirs[name] for name in expected if name in theirs}
    refuse_numbers(present, how)
    refuse_empty(present, {given[name][0]: shape for name, shape in expected.items() if name in theirs})
    if missing or unexplained or wrong:
        only_unexplained = not (missing or wrong or prefixes_of(unexplained))
        remedy = (
            _without(unexplained, how, config) if only_unexplained else _resized_alone(theirs, expected, layout, how)
        )
        remedy = remedy or _sizes_remedy(theirs, config, layout)
        head = layout.head.theirs[0]
        if only_unexplained and not config.tie_word_embeddings and head not in theirs:
            heads = [name for name in unexplained if tuple(others[name].shape) == expected[head]]
            remedy = _renamed(heads[0], head, how) if len(heads) == len(unexplained) == 1 else remedy
        raise _mismatch(layout, missing, unexplained, wrong, remedy)
    buffers = layout.buffers_of(config.schema)
    exact = {
        names[0] for name, names in given.items() if name in theirs and buffers.get(name) == tuple(theirs[name].shape)
    }
    return {name: reason for name, reason in left_out.items() if name not in exact}  # a buffer of its layout is no news


def _misfits(
    theirs: Mapping[str, Tensor], given: Mapping[str, Sequence[str]], config: Config, layout: Layout
) -> tuple[list[str], list[str]]:
    """The weights that are not there, and what is said of those of another shape."""
    expected = their_shapes(layout, config.schema)
    optional = set(layout.head.theirs)
    if config.tie_word_embeddings and optional <= set(theirs):
        # A tied model may name its one matrix by either end.
        optional = {name for row in layout.rows if row.ours == EMBED for name in row.theirs}
    missing = [name for name in expected if name not in theirs and name not in optional]
    wrong = [
        f"{given[name][0]}: given {list(theirs[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in theirs and tuple(theirs[name].shape) != shape
    ]
    return missing, wrong


def _beside_weights(
    others: Mapping[str, Tensor], given: Mapping[str, list[str]], dropped: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """What may be left out -> why, and the names of what may not."""
    outside = beside(name for names in given.values() for name in names)
    left_out: dict[str, str] = {}
    for name, tensor in others.items():
        reason = dropped.get(name) or harmless(name, tensor)
        reason = reason or ("not under the language model's prefix" if name in outside else None)
        if reason is not None:
            left_out[name] = reason
    return left_out, [name for name in others if name not in left_out]


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
    return WeightsError(
        said,
        code="weights-do-not-fit" if len(parts) > 1 else
        "weights-missing" if missing else "weights-unexplained" if unexplained else "weights-misshapen",
        remedy=remedy,
    )  # fmt: skip


def _sizes_remedy(theirs: Mapping[str, Tensor], config: Config, layout: Layout) -> str:
    """The sizes that the weights show, if with these they fit."""
    try:
        differing = family_of(config).differing(theirs, layout, config)
        fits = differing and not any(_misfits(theirs, {n: [n] for n in theirs}, config.replace(**differing), layout))
    except (ConfigError, KeyError, IndexError):
        fits, differing = False, {}
    if fits:
        return f"Pass config={differing}, which these weights fit; or the configuration that they were trained with."
    return (
        "Give the configuration that these weights were trained with (sizes, tie_word_embeddings), or the weights of "
        f"a plain {family_of(config).config.about.family}."
    )


def _resized_alone(
    theirs: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], layout: Layout, how: str
) -> str:
    """What to do if the embedding has other rows than the head, which no size fits; nothing if it has not."""
    names = [*(name for row in layout.rows if row.ours == EMBED for name in row.theirs), *layout.head.theirs]
    alike = [name for name in names if name in theirs and expected[name] == expected[names[0]]]
    rows = {name: len(theirs[name]) for name in alike if theirs[name].dim() == 2}
    if len(set(rows.values())) < 2:
        return ""
    fewest = min(rows.values())
    longer = next(name for name in rows if rows[name] > fewest)
    return (
        f"No vocab_size fits both: {' and '.join(f'{name} has {count} rows' for name, count in rows.items())}. Resize "
        "both where the model was made (model.resize_token_embeddings does) and save it again, or leave out the rows "
        f"that were added: pl.load({{**tensors, {longer!r}: tensors[{longer!r}][:{fewest}]}}, config=...), with "
        f"tensors = {how}."
    )


def _renamed(name: str, head: str, how: str) -> str:
    return (
        f"If it is the head, call it so: pl.load({{{head!r} if name == {name!r} else name: tensor for name, tensor in "
        f"tensors.items()}}, config=...), with tensors = {how}."
    )


_MOST_NAMED = 12
"""Tensors that a remedy names; what holds more of its own is not a plain model's weights."""


def _without(unexplained: list[str], how: str, config: Config) -> str:
    if len(unexplained) > _MOST_NAMED or any(len(name) > 200 for name in unexplained):
        family = family_of(config).config.about.family
        return f"Give the weights of a plain {family}; this one computes with more than these."
    names = ", ".join(map(repr, unexplained))
    return (
        "If nothing is computed with them, leave them out: pl.load({name: tensor for name, tensor in tensors.items() "
        f"if name not in ({names},)}}, config=...), with tensors = {how}."
    )


def _other_family(theirs: Mapping[str, Tensor], config: Config) -> WeightsError:
    """The error for the weights of one family under the configuration of another."""
    theirs_is = next(family for family in FAMILIES if family.layout_of(theirs) is not None).config.about.family
    ours_is = family_of(config).config.about.family
    return WeightsError(
        f"weights: hold the layers of another architecture, {theirs_is}, than the configuration's, {ours_is}: "
        f"{listed(sorted(theirs), 3)}.",
        code="weights-foreign",
        remedy=f"Give the configuration that these weights were trained with, or the weights of a {ours_is}.",
    )


def _unknown_layout(tensors: Mapping[str, Tensor]) -> WeightsError:
    names = sorted(tensors)
    known = dict.fromkeys(layout.name for family in FAMILIES for layout in family.layouts)  # families may share one
    return WeightsError(
        f"weights: their layout is not known; the first of {len(names)} tensors are "
        f"{listed([f'{name}{reason_of(name)}' for name in names[:6]])}.",
        code="layout-unknown",
        remedy=f"Known are {', '.join(known)}. Convert the weights with transformers, or rename its tensors.",
    )


def _settle_head(ours: dict[str, Tensor], config: Config, layout: Layout) -> tuple[Config, str]:
    """Tied, untied, or declared tied and different: what transformers 5.23 does, except that it warns only.

    A head that an untied configuration promises and the file lacks, which it would draw at random, is refused. Two
    different matrices under a tied configuration are both kept. Returns the configuration and a remark, perhaps "".
    """
    head = ours.get(HEAD)
    if head is None and not config.tie_word_embeddings:
        raise WeightsError(
            f"weights in the layout {layout.name!r}: no {_head_name(layout)}, and tie_word_embeddings is false.",
            code="head-missing",
            remedy="Give the weights with their head, or tie_word_embeddings=true if it was trained tied.",
        )
    if head is None or not config.tie_word_embeddings:
        return config, ""
    if EMBED not in ours or same_numbers(ours[EMBED], head.t()):
        ours.setdefault(EMBED, ours.pop(HEAD).t())
        return config, ""
    return config.replace(tie_word_embeddings=False), (
        f"the configuration says that {_head_name(layout)} is the embedding, but the two differ: both are kept, "
        "and the model is untied, as in transformers 5"
    )


def _head_name(layout: Layout) -> str:
    return layout.head_name or layout.head.theirs[0]
