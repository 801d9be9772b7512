"""Other people's tensors become ours, or an error names every one that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.config import TransformerConfig
from pellucid.errors import WeightsError, printable
from pellucid.weights.layouts import (
    EMBED,
    HEAD,
    HOOKED,
    LAYOUTS,
    LLMC,
    Layout,
    Row,
    canonical_names,
    detect,
    our_shapes,
)
from pellucid.weights.transforms import Place, Shape

FOREIGN = (
    (r"cross_?attention|ln_cross_attn|q_attn", "cross-attention is not implemented"),
    (r"lora_|base_layer", "adapters are not implemented; merge them into the weights first"),
    (r"^lm_head\.", "the head is not a plain linear map without bias"),
    (r"^(score|classifier|qa_outputs|multiple_choice_head|v_head|transformer\.score)\b", "a head for another task"),
    (r"qweight|qzeros|absmax|\.scales$|\.SCB$|quant_state", "the weights are quantized"),
    (r"^(token_embd|blk\.)", "GGUF's names are not implemented"),
    (r"^model/", "OpenAI's TensorFlow names are not implemented; transformers 4 converts them"),
    (r"\.attn\.(masked_)?bias$", "a mask buffer of another shape than n_positions by n_positions"),
    (r"\.attn\.(mask|IGNORE)$", "a mask buffer of another shape than n_positions by n_positions"),
)
"""Why tensors of some names cannot be explained: a pattern and the reason."""


@dataclass(frozen=True)
class Imported:
    """Weights of ours, and what was found out on the way.

    Args:
        weights: Under our stored names; the head is among them only when it is untied.
        config: As given, but with `tie_word_embeddings` as the weights have it.
        layout: Name of the layout that they came in.
        remarks: What the reader should be warned of.
    """

    weights: dict[str, Tensor]
    config: TransformerConfig
    layout: str
    remarks: tuple[str, ...] = ()


def to_ours(tensors: Mapping[str, Tensor], config: TransformerConfig) -> Imported:
    """Import a state dict of any known layout.

    Args:
        tensors: Their tensors, dense, on any device; never written to.
        config: What the tensors are checked against.

    Returns:
        Our tensors: views of theirs where nothing had to be rearranged.

    Raises:
        WeightsError: Tensors of no known layout, or unexplained, missing or misshapen ones, all listed; or
            weights that were processed so that they are no longer GPT-2's.
    """
    canonical = canonical_names(tensors)
    twice = sorted(name for name, given in canonical.items() if len(given) > 1)
    if twice:
        raise WeightsError(
            f"weights: {', '.join(twice[:8])} given more than once, under different prefixes.",
            code="weights-ambiguous",
            remedy="Save the state dict of one model only.",
        )
    theirs = {name: tensors[given[0]] for name, given in canonical.items()}
    layout = detect(theirs)
    if layout is None:
        raise _unknown_layout(tensors)
    if config.n_layer > len(theirs):
        # Before the rows of every block are written out: a configuration may promise a billion of them.
        raise _mismatch(layout, [f"most tensors of {config.n_layer} blocks"], [], [])
    if layout is HOOKED:
        _refuse_folded_norms(theirs, config)
    _check(theirs, canonical, config, layout)
    ours = _transform(theirs, config, layout)
    if layout is HOOKED:
        _refuse_processed(theirs, ours)
    return _settle_head(ours, config, layout)


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
    theirs: Mapping[str, Tensor], given: Mapping[str, list[str]], config: TransformerConfig, layout: Layout
) -> None:
    """Every tensor explained, present, floating and of its shape; else one error with all that is wrong."""
    rows = [*layout.rows_of(config), layout.head]
    expected = _their_shapes(rows, config)
    optional = set(layout.head.theirs)
    if config.tie_word_embeddings and optional <= set(theirs):
        # A tied model may name its one matrix by either end.
        optional = {name for row in rows if row.ours == EMBED for name in row.theirs}
    missing = [name for name in expected if name not in theirs and name not in optional]
    buffers = layout.buffers_of(config)
    dropped = {name for name, shape in buffers.items() if name in theirs and tuple(theirs[name].shape) == shape}
    unexplained = [given[name][0] for name in theirs if name not in expected and name not in dropped]
    wrong = [
        f"{given[name][0]}: given {list(theirs[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in theirs and tuple(theirs[name].shape) != shape
    ]
    wrong += [
        f"{given[name][0]}: given {theirs[name].dtype}, expected floating point"
        for name in expected
        if name in theirs and not theirs[name].is_floating_point()
    ]
    if missing or unexplained or wrong:
        raise _mismatch(layout, missing, unexplained, wrong)


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


def _mismatch(layout: Layout, missing: list[str], unexplained: list[str], wrong: list[str]) -> WeightsError:
    parts: list[str] = []
    if missing:
        parts.append(f"missing: {listed(missing)}")
    if unexplained:
        parts.append(f"unexplained: {listed([f'{name}{_reason(name)}' for name in unexplained])}")
    if wrong:
        parts.append(f"misshapen: {listed(wrong, separator='; ')}")
    said = f"weights in the layout {layout.name!r} do not fit the configuration; {'. '.join(parts)}."
    if len(parts) > 1:
        return _misfit(said, "weights-do-not-fit")
    if missing:
        return _misfit(said, "weights-missing")
    if unexplained:
        return _misfit(said, "weights-unexplained")
    return _misfit(said, "weights-misshapen")


def _misfit(said: str, code: str) -> WeightsError:
    return WeightsError(
        said,
        code=code,
        remedy="Give the configuration that these weights were trained with (sizes, tie_word_embeddings), or a "
        "checkpoint of plain GPT-2.",
    )


def listed(items: Sequence[str], most: int = 12, separator: str = ", ") -> str:
    """Names in one line: no more of them and no longer ones than a reader can take in."""
    cut = [item if len(item) <= 200 else f"{item[:120]} ... {item[-60:]}" for item in items[:most]]
    rest = len(items) - most
    return printable(separator.join(cut) + (f"{separator}and {rest} more" if rest > 0 else ""))


def _reason(name: str) -> str:
    return next((f" ({reason})" for pattern, reason in FOREIGN if re.search(pattern, name)), "")


def _unknown_layout(tensors: Mapping[str, Tensor]) -> WeightsError:
    names = sorted(tensors)
    return WeightsError(
        f"weights: of no known layout; the first of {len(names)} tensors are "
        f"{listed([f'{name}{_reason(name)}' for name in names[:6]])}.",
        code="layout-unknown",
        remedy=f"Known are {', '.join(LAYOUTS)}. Convert the checkpoint with transformers, or rename its tensors.",
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
                remedy="Give the checkpoint with its head, or tie_word_embeddings=true if it was trained tied.",
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
    return torch.equal(a.view(bits), b.view(bits)) or torch.equal(a, b)


def _refuse_folded_norms(theirs: Mapping[str, Tensor], config: TransformerConfig) -> None:
    norms = [f"blocks.{i}.{norm}.{part}" for i in range(config.n_layer) for norm in ("ln1", "ln2") for part in "wb"]
    absent = [name for name in (*norms, "ln_final.w", "ln_final.b") if name not in theirs]
    if len(absent) == len(norms) + 2:
        raise _processed("its LayerNorms have no gain and bias: they were folded into the matrices after them")


def _refuse_processed(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """TransformerLens' processed weights compute the same logits, but they are other weights.

    Folding, centring and the bias of the unembedding leave these traces; a checkpoint has none of them.
    """
    bias = theirs.get("unembed.b_U")
    if bias is not None and bias.count_nonzero():
        raise _processed("its unembedding has a bias, which GPT-2 has not")
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
