"""Other people's names for the tensors of a GPT-2: one table per layout, read both ways.

Nothing is guessed: a tensor that no row explains, a row without its tensor and a tensor of another shape are all
listed in one error.

Sources of the names: transformers' modeling_gpt2.py, nanoGPT's model.py, llm.c's train_gpt2.cu, TransformerLens'
components, and the course in which one's own GPT-2 is built (`pellucid.exercises`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pellucid.errors import WeightsError
from pellucid.family.layout import (
    EMBED,
    HEAD,
    HEAD_COLUMNS,
    HEAD_ROWS,
    MERGE_HEADS,
    PER_HEAD,
    SAME,
    TRANSPOSE,
    TRANSPOSE_MERGE_HEADS,
    ZEROS,
    Buffer,
    Layout,
    Row,
    blocks_in,
    embedded,
    matrix,
    own_layout,
)
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.schema import of_sizes
from pellucid.schema import Schema

_NAMES = (
    (EMBED, "wte.weight", "wte", "token_embedding.weight"),
    ("pos_embed.W_pos", "wpe.weight", "wpe", "pos_embedding.weight"),
    ("blocks.{i}.ln1.w", "h.{i}.ln_1.weight", "ln1w.{i}", "blocks.{i}.ln1.weight"),
    ("blocks.{i}.ln1.b", "h.{i}.ln_1.bias", "ln1b.{i}", "blocks.{i}.ln1.bias"),
    ("blocks.{i}.attn.W_QKV", "h.{i}.attn.c_attn.weight", "qkvw.{i}", "blocks.{i}.attn.qkv_proj.weight"),
    ("blocks.{i}.attn.b_QKV", "h.{i}.attn.c_attn.bias", "qkvb.{i}", "blocks.{i}.attn.qkv_proj.bias"),
    ("blocks.{i}.attn.W_O", "h.{i}.attn.c_proj.weight", "attprojw.{i}", "blocks.{i}.attn.output_proj.weight"),
    ("blocks.{i}.attn.b_O", "h.{i}.attn.c_proj.bias", "attprojb.{i}", "blocks.{i}.attn.output_proj.bias"),
    ("blocks.{i}.ln2.w", "h.{i}.ln_2.weight", "ln2w.{i}", "blocks.{i}.ln2.weight"),
    ("blocks.{i}.ln2.b", "h.{i}.ln_2.bias", "ln2b.{i}", "blocks.{i}.ln2.bias"),
    ("blocks.{i}.mlp.W_in", "h.{i}.mlp.c_fc.weight", "fcw.{i}", "blocks.{i}.linear1.weight"),
    ("blocks.{i}.mlp.b_in", "h.{i}.mlp.c_fc.bias", "fcb.{i}", "blocks.{i}.linear1.bias"),
    ("blocks.{i}.mlp.W_out", "h.{i}.mlp.c_proj.weight", "fcprojw.{i}", "blocks.{i}.linear2.weight"),
    ("blocks.{i}.mlp.b_out", "h.{i}.mlp.c_proj.bias", "fcprojb.{i}", "blocks.{i}.linear2.bias"),
    ("ln_final.w", "ln_f.weight", "lnfw", "ln.weight"),
    ("ln_final.b", "ln_f.bias", "lnfb", "ln.bias"),
)
"""Our names; OpenAI's, which transformers and nanoGPT share; llm.c's; the course's."""


def _rows(column: int, prefix: str = "", *, linear: bool = True, bias: bool = True) -> tuple[Row, ...]:
    """A column of `_NAMES`; `linear` if its matrices are kept as torch's `Linear` keeps them, [out, in]."""
    matrices = (TRANSPOSE, TRANSPOSE_MERGE_HEADS) if linear else (SAME, MERGE_HEADS)

    def row(ours: str, theirs: str) -> Row:
        if not bias and theirs.endswith(".bias"):
            return Row((), ours, ZEROS)
        is_matrix = re.search(r"\.W_(QKV|O|in|out)$", ours) is not None
        return Row((f"{prefix}{theirs}",), ours, matrices[ours.endswith("W_O")] if is_matrix else SAME)

    return tuple(row(names[0], names[column]) for names in _NAMES)


_LM_HEAD = Row(("lm_head.weight",), HEAD, HEAD_ROWS)
_BUFFERS = (
    # Not by the ending: attn.c_attn.bias is a weight.
    Buffer("transformer.h.{i}.attn.bias", (1, 1, "n", "n")),
    Buffer("transformer.h.{i}.attn.masked_bias", ()),
)

HF = Layout("hf", _rows(1, "transformer.", linear=False), _LM_HEAD, _BUFFERS)
NANOGPT = Layout("nanogpt", _rows(1, "transformer."), _LM_HEAD, _BUFFERS)
NANOGPT_WITHOUT_BIAS = Layout("nanogpt-without-bias", _rows(1, "transformer.", bias=False), _LM_HEAD, _BUFFERS)
LLMC = Layout("llm.c", _rows(2), Row(("head",), HEAD, HEAD_ROWS), head_name="lm_head.weight")
COURSE = Layout("course", _rows(3), Row(("unembed.weight",), HEAD, HEAD_ROWS))

OWN = own_layout(of_sizes({"layer": 1}))


def _refuse_folded(theirs: Mapping[str, Tensor], schema: Schema) -> None:
    bias = theirs.get("unembed.b_U")
    if bias is not None and bias.count_nonzero():
        raise _processed("its unembedding has a bias, which GPT-2 has not")
    norms = [f"blocks.{i}.{norm}.{part}" for i in range(len(schema.blocks)) for norm in ("ln1", "ln2") for part in "wb"]
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
    for name in (EMBED, HEAD):
        if name in ours and _is_centred(ours[name]):
            raise _processed(f"{name} has mean zero along its last axis: it was centred")


def _is_centred(tensor: Tensor) -> bool:
    if tensor.shape[1] < 4:
        return False
    scale = float(tensor.float().abs().mean())
    return scale > 0 and float(tensor.float().mean(1).abs().max()) < 1e-5 * scale


def _processed(reason: str) -> WeightsError:
    return WeightsError(
        f"weights in the layout 'hooked-transformer' were processed: {reason}.",
        code="layout-processed",
        remedy="Load the model with TransformerLens' from_pretrained_no_processing and save its state dict.",
    )


_FUSED = {
    "blocks.{i}.attn.W_QKV": Row(tuple(f"blocks.{{i}}.attn.W_{x}" for x in "QKV"), "blocks.{i}.attn.W_QKV", PER_HEAD),
    "blocks.{i}.attn.b_QKV": Row(tuple(f"blocks.{{i}}.attn.b_{x}" for x in "QKV"), "blocks.{i}.attn.b_QKV", PER_HEAD),
}
HOOKED = Layout(
    "hooked-transformer",
    tuple(_FUSED.get(row.ours, row) for row in OWN.rows),
    Row((HEAD,), HEAD, HEAD_COLUMNS),
    (
        Buffer("blocks.{i}.attn.mask", ("n", "n")),
        Buffer("blocks.{i}.attn.IGNORE", ()),
        # A bias of the unembedding exists only in processed weights; any but zeros is refused above.
        Buffer("unembed.b_U", ("v",)),
    ),
    has_biases=True,
    refuse_theirs=_refuse_folded,
    refuse_ours=_refuse_processed,
)

LAYOUTS = (HF, NANOGPT, NANOGPT_WITHOUT_BIAS, LLMC, COURSE, HOOKED, OWN)


def detect(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of tensors under canonical names, or None."""
    names = set(tensors)
    if "qkvw.0" in names or {"wte", "wpe", "lnfw"} <= names:
        return LLMC
    if any(name.startswith(("transformer.wpe.", "transformer.h.", "transformer.ln_f.")) for name in names):
        return _detect_gpt2(tensors)
    if any(re.match(r"blocks\.\d+\.attn\.W_Q$", name) for name in names) or "unembed.b_U" in names:
        return HOOKED
    if {"token_embedding.weight", "pos_embedding.weight", "ln.weight"} <= names:
        return COURSE
    if names & {EMBED, "pos_embed.W_pos"}:
        return OWN
    return None


def _detect_gpt2(tensors: Mapping[str, Tensor]) -> Layout:
    # attn.c_proj is square, so its shape tells nothing; c_attn is D by 3D one way and 3D by D the other, and one
    # file keeps all its matrices the same way round.
    for name, tensor in tensors.items():
        if name.endswith(".attn.c_attn.weight") and tensor.dim() == 2 and tensor.shape[0] == 3 * tensor.shape[1]:
            has_bias = any(re.search(r"\.(ln_1|ln_2|ln_f|c_attn|c_proj|c_fc)\.bias$", other) for other in tensors)
            return NANOGPT if has_bias else NANOGPT_WITHOUT_BIAS
    return HF


def sizes_of(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """The sizes of a model that its tensors, under canonical names, show; the number of heads is 1 if none shows it.

    Raises:
        KeyError: If the embedding, the positions or a block is not there, or is no matrix.
    """
    names = {row.ours: row.theirs[0] for row in (*layout.rows, layout.head) if row.theirs}
    embedding, n_layer = embedded(theirs, names), blocks_in(theirs)
    width = embedding.shape[1]
    per_head = [t for name, t in theirs.items() if name.endswith(("attn.W_Q", "attn.W_O")) and t.dim() == 3]
    sizes = {
        "vocab_size": embedding.shape[0],
        "n_positions": len(matrix(theirs, names["pos_embed.W_pos"])),
        "n_embd": width,
        "n_layer": n_layer,
        "n_head": len(per_head[0]) if per_head else 1,
    }
    if n_layer:
        sizes["n_inner"] = theirs[names["blocks.{i}.mlp.W_in"].replace("{i}", "0")].numel() // width
    return sizes


def differing(theirs: Mapping[str, Tensor], layout: Layout, config: TransformerConfig) -> dict[str, Any]:
    """The sizes that the tensors show and the configuration says otherwise; the number of heads is not looked at.

    Raises:
        KeyError: As `sizes_of`.
    """
    said = {**config.to_dict(), "n_inner": config.d_mlp}
    return {name: n for name, n in sizes_of(theirs, layout).items() if name != "n_head" and n != said[name]}
