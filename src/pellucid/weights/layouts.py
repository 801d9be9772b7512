"""Other people's names for the tensors of a GPT-2: one table per layout, read both ways.

A row says which of their tensors, under which transform, is which of ours. Read forwards the table imports,
read backwards it exports. Nothing is guessed: a tensor that no row explains, a row without its tensor and a
tensor of another shape are all listed in one error.

Sources of the names: transformers' modeling_gpt2.py, nanoGPT's model.py, llm.c's train_gpt2.cu,
TransformerLens' components.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.gpt2.config import TransformerConfig
from pellucid.weights.prefixes import canonical_names
from pellucid.weights.transforms import (
    HEAD_COLUMNS,
    HEAD_ROWS,
    MERGE_HEADS,
    PER_HEAD,
    SAME,
    TRANSPOSE,
    TRANSPOSE_MERGE_HEADS,
    ZEROS,
    Place,
    Shape,
    Transform,
)  # fmt: skip

EMBED, HEAD = "embed.W_E", "unembed.W_U"


@dataclass(frozen=True)
class Row:
    """Their names, our name (`{i}` stands for the block in both) and what takes the one to the other."""

    theirs: tuple[str, ...]
    ours: str
    transform: Transform = SAME

    def of_block(self, i: int) -> Row:
        """This row for one block."""
        number = str(i)
        return Row(
            tuple(name.replace("{i}", number) for name in self.theirs),
            self.ours.replace("{i}", number),
            self.transform,
        )


@dataclass(frozen=True)
class Buffer:
    """A tensor of theirs that is no weight; `n` in its shape stands for n_positions, `v` for vocab_size."""

    name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Layout:
    """One way to store a GPT-2.

    Args:
        name: For messages, provenance and `from_ours`.
        rows: Every weight but the output head.
        head: The output head.
        buffers: What is recognised, by exact name and shape, and dropped.
    """

    name: str
    rows: tuple[Row, ...]
    head: Row
    buffers: tuple[Buffer, ...] = ()

    def rows_of(self, config: TransformerConfig) -> Iterator[Row]:
        """The rows for every block of a model."""
        for row in self.rows:
            if "{i}" in row.ours:
                yield from (row.of_block(i) for i in range(config.n_layer))
            else:
                yield row

    def buffers_of(self, config: TransformerConfig) -> dict[str, Shape]:
        """The shapes of the buffers that may be there, by name."""
        sizes = {"n": config.n_positions, "v": config.vocab_size}
        return {
            buffer.name.replace("{i}", str(i)): tuple(sizes.get(str(axis), axis) for axis in buffer.shape)  # type: ignore[misc]
            for buffer in self.buffers
            for i in range(config.n_layer if "{i}" in buffer.name else 1)
        }


def our_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """The stored tensors of our model and their shapes; the head's is listed, although a tied model has none."""
    return {**config.schema.stored, HEAD: (config.n_embd, config.vocab_size)}


def _gpt2(prefix: str, weight: Transform, out: Transform, *, bias: bool = True) -> tuple[Row, ...]:
    """OpenAI's names, which transformers and nanoGPT share; they differ in the order of the matrices' axes."""

    def named(theirs: str, ours: str, transform: Transform = SAME) -> Row:
        if not bias and theirs.endswith(".bias"):
            return Row((), ours, ZEROS)
        return Row((f"{prefix}{theirs}",), ours, transform)

    return (
        named("wte.weight", EMBED),
        named("wpe.weight", "pos_embed.W_pos"),
        named("h.{i}.ln_1.weight", "blocks.{i}.ln1.w"),
        named("h.{i}.ln_1.bias", "blocks.{i}.ln1.b"),
        named("h.{i}.attn.c_attn.weight", "blocks.{i}.attn.W_QKV", weight),
        named("h.{i}.attn.c_attn.bias", "blocks.{i}.attn.b_QKV"),
        named("h.{i}.attn.c_proj.weight", "blocks.{i}.attn.W_O", out),
        named("h.{i}.attn.c_proj.bias", "blocks.{i}.attn.b_O"),
        named("h.{i}.ln_2.weight", "blocks.{i}.ln2.w"),
        named("h.{i}.ln_2.bias", "blocks.{i}.ln2.b"),
        named("h.{i}.mlp.c_fc.weight", "blocks.{i}.mlp.W_in", weight),
        named("h.{i}.mlp.c_fc.bias", "blocks.{i}.mlp.b_in"),
        named("h.{i}.mlp.c_proj.weight", "blocks.{i}.mlp.W_out", weight),
        named("h.{i}.mlp.c_proj.bias", "blocks.{i}.mlp.b_out"),
        named("ln_f.weight", "ln_final.w"),
        named("ln_f.bias", "ln_final.b"),
    )


_LM_HEAD = Row(("lm_head.weight",), HEAD, HEAD_ROWS)
_GPT2_BUFFERS = (
    # Not by the ending: attn.c_attn.bias is a weight.
    Buffer("transformer.h.{i}.attn.bias", (1, 1, "n", "n")),
    Buffer("transformer.h.{i}.attn.masked_bias", ()),
)

HF = Layout("hf", _gpt2("transformer.", SAME, MERGE_HEADS), _LM_HEAD, _GPT2_BUFFERS)
NANOGPT = Layout("nanogpt", _gpt2("transformer.", TRANSPOSE, TRANSPOSE_MERGE_HEADS), _LM_HEAD, _GPT2_BUFFERS)
NANOGPT_WITHOUT_BIAS = Layout(
    "nanogpt-without-bias",
    _gpt2("transformer.", TRANSPOSE, TRANSPOSE_MERGE_HEADS, bias=False),
    _LM_HEAD,
    _GPT2_BUFFERS,
)

LLMC = Layout(
    "llm.c",
    (
        Row(("wte",), EMBED),
        Row(("wpe",), "pos_embed.W_pos"),
        Row(("ln1w.{i}",), "blocks.{i}.ln1.w"),
        Row(("ln1b.{i}",), "blocks.{i}.ln1.b"),
        Row(("qkvw.{i}",), "blocks.{i}.attn.W_QKV", TRANSPOSE),
        Row(("qkvb.{i}",), "blocks.{i}.attn.b_QKV"),
        Row(("attprojw.{i}",), "blocks.{i}.attn.W_O", TRANSPOSE_MERGE_HEADS),
        Row(("attprojb.{i}",), "blocks.{i}.attn.b_O"),
        Row(("ln2w.{i}",), "blocks.{i}.ln2.w"),
        Row(("ln2b.{i}",), "blocks.{i}.ln2.b"),
        Row(("fcw.{i}",), "blocks.{i}.mlp.W_in", TRANSPOSE),
        Row(("fcb.{i}",), "blocks.{i}.mlp.b_in"),
        Row(("fcprojw.{i}",), "blocks.{i}.mlp.W_out", TRANSPOSE),
        Row(("fcprojb.{i}",), "blocks.{i}.mlp.b_out"),
        Row(("lnfw",), "ln_final.w"),
        Row(("lnfb",), "ln_final.b"),
    ),
    Row(("head",), HEAD, HEAD_ROWS),
)

_OURS = our_shapes(TransformerConfig(vocab_size=1, n_positions=1, n_embd=1, n_layer=1, n_head=1))
_OUR_NAMES = [name.replace("blocks.0.", "blocks.{i}.") for name in _OURS if name != HEAD]

OWN = Layout("pellucid", tuple(Row((name,), name) for name in _OUR_NAMES), Row((HEAD,), HEAD, HEAD_COLUMNS))

_FUSED = {
    "blocks.{i}.attn.W_QKV": Row(tuple(f"blocks.{{i}}.attn.W_{x}" for x in "QKV"), "blocks.{i}.attn.W_QKV", PER_HEAD),
    "blocks.{i}.attn.b_QKV": Row(tuple(f"blocks.{{i}}.attn.b_{x}" for x in "QKV"), "blocks.{i}.attn.b_QKV", PER_HEAD),
}
HOOKED = Layout(
    "hooked-transformer",
    tuple(_FUSED.get(name, Row((name,), name)) for name in _OUR_NAMES),
    Row((HEAD,), HEAD, HEAD_COLUMNS),
    (
        Buffer("blocks.{i}.attn.mask", ("n", "n")),
        Buffer("blocks.{i}.attn.IGNORE", ()),
        # A bias of the unembedding exists only in processed weights; `importing` refuses any but zeros.
        Buffer("unembed.b_U", ("v",)),
    ),
)

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (HF, NANOGPT, NANOGPT_WITHOUT_BIAS, LLMC, HOOKED, OWN)
}
"""Every layout by name."""


def detect(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of tensors under canonical names, or None."""
    names = set(tensors)
    if "qkvw.0" in names or {"wte", "wpe", "lnfw"} <= names:
        return LLMC
    if any(name.startswith(("transformer.wpe.", "transformer.h.", "transformer.ln_f.")) for name in names):
        return _detect_gpt2(tensors)
    if any(re.match(r"blocks\.\d+\.attn\.W_Q$", name) for name in names) or "unembed.b_U" in names:
        return HOOKED
    if names & {EMBED, "pos_embed.W_pos"}:
        return OWN
    return None


def sizes_of(theirs: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """The sizes of a model that its tensors, under canonical names, show; the number of heads is 1 where none shows it.

    Raises:
        KeyError: The embedding, the positions or the first block is not there.
    """
    numbers = {int(number) for name in theirs for number in re.findall(r"\.(\d+)(?:\.|$)", name)}
    names = {row.ours: row.theirs[0] for row in (*layout.rows, layout.head) if row.theirs}
    embedding = theirs[names[EMBED]] if names[EMBED] in theirs else theirs[names[HEAD]]
    width = embedding.shape[1]
    per_head = [t for name, t in theirs.items() if name.endswith(("attn.W_Q", "attn.W_O")) and t.dim() == 3]
    sizes = {
        "vocab_size": embedding.shape[0],
        "n_positions": len(theirs[names["pos_embed.W_pos"]]),
        "n_embd": width,
        "n_layer": max(numbers, default=-1) + 1,
        "n_head": len(per_head[0]) if per_head else 1,
    }
    if numbers:
        sizes["n_inner"] = theirs[names["blocks.{i}.mlp.W_in"].replace("{i}", "0")].numel() // width
    return sizes


def buffers_among(tensors: Mapping[str, Tensor], config: TransformerConfig) -> set[str]:
    """The names, as given, of what the layout of these tensors drops; none where it is not known."""
    given = canonical_names(tensors)
    layout = detect({name: tensors[names[0]] for name, names in given.items()})
    shapes = {} if layout is None else layout.buffers_of(config)
    return {names[0] for name, names in given.items() if tuple(tensors[names[0]].shape) == shapes.get(name)}


def _detect_gpt2(tensors: Mapping[str, Tensor]) -> Layout:
    # attn.c_proj is square, so its shape tells nothing; c_attn is D by 3D one way and 3D by D the other, and one
    # file keeps all its matrices the same way round.
    for name, tensor in tensors.items():
        if name.endswith(".attn.c_attn.weight") and tensor.dim() == 2 and tensor.shape[0] == 3 * tensor.shape[1]:
            has_bias = any(re.search(r"\.(ln_1|ln_2|ln_f|c_attn|c_proj|c_fc)\.bias$", other) for other in tensors)
            return NANOGPT if has_bias else NANOGPT_WITHOUT_BIAS
    return HF


def config_of_model_args(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """nanoGPT's `model_args` in transformers' names.

    Its MLP has used `nn.GELU()`, which is the exact (erf) one, since 2023; earlier versions had tanh's.
    """
    dropout = model_args.get("dropout", 0.0)
    renamed = {"block_size": "n_positions"}
    sizes = {
        renamed.get(name, name): model_args[name]
        for name in ("vocab_size", "block_size", "n_embd", "n_layer", "n_head")
        if name in model_args
    }
    return {
        **sizes,
        "activation_function": "gelu",
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "resid_pdrop": dropout,
    }


def place(name: str, config: TransformerConfig, dtype: torch.dtype = torch.float32) -> Place:
    """Where the stored tensor of this name goes in a model of this configuration."""
    return Place(name, our_shapes(config)[name], dtype, config.n_head)


def from_ours(weights: Mapping[str, Tensor], config: TransformerConfig, layout: Layout | str = HF) -> dict[str, Tensor]:
    """Our stored tensors under the names and in the shapes of a layout.

    Args:
        weights: `model.state_dict()`, the head among them only when it is untied.
        config: The model's.
        layout: A layout or its name.

    Returns:
        Their tensors, contiguous; views of ours where nothing had to be rearranged.

    Raises:
        WeightsError: The layout cannot hold these weights.
    """
    layout = LAYOUTS[layout] if isinstance(layout, str) else layout
    shapes = our_shapes(config)
    rows = [*layout.rows_of(config), *([] if config.tie_word_embeddings else [layout.head])]
    exported: dict[str, Tensor] = {}
    for row in rows:
        tensor = weights[row.ours]
        target = Place(row.ours, shapes[row.ours], tensor.dtype, config.n_head)
        exported.update(zip(row.theirs, row.transform.from_ours(tensor, target), strict=True))
    return exported
