"""The one catalogue of mistakes that people make when they write a GPT-2.

A row says how a mistake is made (which of `Parts` are replaced), what a report says of it and what a learner is told.
A comparison of models tries the rows that have a report, the exercises those that have words for a learner; each names
a mistake only if a GPT-2 that makes it computes what was observed. The rows of attention and of blocks have files of
their own; those of the embeddings, the order of the blocks, the head and dropout are here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.gpt2 import attention_mistakes as attention
from pellucid.gpt2 import block_mistakes as block
from pellucid.gpt2 import head_mistakes as head
from pellucid.gpt2.formulas import PlainWeights
from pellucid.gpt2.mistake import AXIS, BLOCKS, DROPPED, NORMALISED, NUMBER, OTHER_TENSOR, TWICE, Mistake
from pellucid.gpt2.parts import PlainBlock, pre_norm

# Embeddings, the order of the blocks, the head


def _positions(rows: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {"positions": lambda ids, sizes: rows(ids) % sizes.positions}


def _places(ids: Tensor) -> Tensor:
    return torch.arange(ids.size(1))


def _rows(ids: Tensor) -> Tensor:
    return torch.arange(len(ids))[:, None]


EMBEDDINGS = tuple(replace(row, step="the embeddings" if row.learner else "") for row in (
    Mistake(_positions(lambda ids: _places(ids) + 1), "positions shifted by 1", "positions start at 1, not at 0",
            kind=NUMBER),
    Mistake(_positions(lambda ids: _places(ids) + 2), "positions shifted by 2"),
    Mistake(_positions(lambda ids: _places(ids) - 1), "positions shifted by -1, the first from the end of the table"),
    Mistake(_positions(lambda ids: (_places(ids) - 1).clamp(min=0)), "positions shifted by -1"),
    Mistake(_positions(lambda ids: _places(ids) * 0), "position 0 everywhere",
            "every token gets position 0", kind=OTHER_TENSOR),
    Mistake(_positions(lambda ids: _places(ids).flip(0)), "positions counted from the end",
            "positions run backwards", kind=OTHER_TENSOR),
    Mistake(_positions(lambda ids: torch.arange(ids.numel()).view(ids.shape)), "positions run on over the batch"),
    Mistake(_positions(lambda ids: _places(ids) + _rows(ids)), "positions shifted by the number of the batch row"),
    Mistake(_positions(lambda ids: _rows(ids).expand(ids.shape)), "the number of the batch row for the position",
            "positions count the rows of the batch, not the tokens: shape[0] is taken for shape[1]", kind=AXIS),
    Mistake(_positions(lambda ids: ids), "token ids taken for positions",
            "pos_embedding is given the token ids, not the positions", kind=OTHER_TENSOR),
    Mistake({"table": "embed.W_E"}, "", "the positions are embedded with token_embedding, not with pos_embedding",
            kind=OTHER_TENSOR),
    Mistake({"combine": lambda tokens, positions: tokens}, "no position embeddings", "the positions are not embedded",
            kind=OTHER_TENSOR),
    Mistake({"combine": lambda tokens, positions: tokens, "ending": torch.add}, "",
            "the positions are added after the blocks, not before them", kind=OTHER_TENSOR),
    Mistake({"combine": torch.mul}, "", "token and position embedding are multiplied, not added", kind=OTHER_TENSOR),
    Mistake({"combine": lambda tokens, positions: (tokens + positions) * tokens.size(-1) ** 0.5}, "",
            "the sum of the embeddings is multiplied by sqrt(hidden_size)", kind=NUMBER),
    Mistake({"combine": lambda tokens, positions: tokens + positions * tokens.size(-1) ** 0.5}, "",
            "the position embedding is multiplied by sqrt(hidden_size)", kind=NUMBER),
    Mistake({"tokens": lambda x, s: x * s.hidden**0.5}, "token embeddings multiplied by sqrt(d_model)",
            "the token embedding is multiplied by sqrt(hidden_size)", kind=NUMBER),
    Mistake({"tokens": lambda x, s: torch.zeros_like(x)}, "no token embeddings"),
))  # fmt: skip


def orders(n_layer: int) -> Iterator[Mistake]:
    """Blocks in another order, left out or applied twice, of so many."""
    blocks = tuple(range(n_layer))

    def applied(order: Sequence[int], report: str) -> Mistake:
        return Mistake({"order": lambda _: order}, report)

    if n_layer > 1:
        yield applied(blocks[::-1], "blocks applied from the last to the first")
    for i in blocks:
        yield applied(blocks[:i] + blocks[i + 1 :], f"block {i} is left out")
        yield applied((*blocks[:i], i, *blocks[i:]), f"block {i} is applied twice")
        yield applied((i,) * n_layer, f"block {i} is applied in every place")
    for i in blocks[:-1]:
        yield applied((*blocks[:i], i + 1, i, *blocks[i + 2 :]), f"blocks {i} and {i + 1} are swapped")


LOOPS = tuple(Mistake({"order": order}, "", words, "the blocks", BLOCKS) for words, order in {
    "the blocks are not applied": lambda n: range(0),
    "the last block is not applied": lambda n: range(n - 1),
    "the blocks are applied in reverse": lambda n: range(n)[::-1],
    "the first block is applied again and again": lambda n: (0,) * n,
    "only the last block is applied, to the embeddings: the loop over the blocks does not hand on its result":
        lambda n: range(n)[-1:],
    "only the first block is applied: the loop over the blocks ends, or returns, after one": lambda n: range(n)[:1],
    "the first block is not applied": lambda n: range(n)[1:],
    "all blocks are applied twice": lambda n: (*range(n), *range(n)),
}.items())  # fmt: skip
"""What goes wrong in a learner's loop over the blocks, whatever their number."""

REPEATED = Mistake(
    {"wiring": lambda block, x: pre_norm(block, x) + x},
    learner="each block's input is added to its output, which holds it already", step="the blocks", kind=TWICE,
)  # fmt: skip


def _ln_final_in_the_loop(block: PlainBlock, x: Tensor) -> Tensor:
    return replace(block, weights=block.weights.of_block(-1)).norm(("ln_final",), pre_norm(block, x))


FINAL_NORM = (
    block.default_epsilon("ln_final", "the final LayerNorm", "the final layer norm"),
    Mistake({"wiring": _ln_final_in_the_loop, "norm_before_head": ()}, "",
            "the final LayerNorm is applied after every block: it stands inside the loop", "the final layer norm",
            NORMALISED),
    Mistake({"wiring": _ln_final_in_the_loop}, "",
            "the final LayerNorm is applied after every block, and once more behind the last", "the final layer norm",
            NORMALISED),
    Mistake({"norm_before_head": ()}, "", "the final LayerNorm is not applied", "the final layer norm", NORMALISED),
    Mistake({"norm_before_head": ("ln_final", "ln_final")}, "", "the final LayerNorm is applied twice",
            "the final layer norm", NORMALISED),
    Mistake({"norm_before_blocks": ("ln_final",)}, "", "the final LayerNorm is also applied before the blocks",
            "the final layer norm", NORMALISED),
)  # fmt: skip

HEAD = tuple(replace(row, step="the unembedding", kind=OTHER_TENSOR) if row.learner else row for row in (
    Mistake({"logits": lambda x, W: x}, "no head: the output is the final normalized residual"),
    Mistake({"logits": lambda x, W: x, "norm_before_head": ()},
            "no head and no final LayerNorm: the output is the last residual stream"),
    Mistake({"logits": lambda x, W: x @ W.T * x.size(-1) ** 0.5}, "logits multiplied by sqrt(d_model)"),
    Mistake({"logits": lambda x, W: x @ W.T / x.size(-1) ** 0.5}, "logits divided by sqrt(d_model)",
            "the logits are divided by sqrt(hidden_size)"),
    Mistake({"logits": lambda x, W: F.log_softmax(x @ W.T, -1)}, "log-probabilities instead of logits",
            "log_softmax is applied: the output should be logits"),
    Mistake({"logits": lambda x, W: F.softmax(x @ W.T, -1)}, "probabilities instead of logits",
            "softmax is applied: the output should be logits"),
))  # fmt: skip


def heads(weights: PlainWeights) -> Iterator[Mistake]:
    """Other heads than the model's."""
    if not weights.tied:
        yield Mistake({"head": weights.tensors["embed.W_E"]}, "head tied to the embedding")
    yield from HEAD


def known_mistakes(weights: PlainWeights, *, several_rows: bool = True) -> Iterator[Mistake]:
    """Every mistake that a comparison tries, for a reference's sizes; the likely ones first."""
    sizes = weights.sizes
    sections: Iterable[Iterable[Mistake]] = (
        attention.rounded_scales(sizes), block.activations(sizes), attention.SCALES, attention.MASKS, head.TAKEN,
        head.ROWS if several_rows else (), head.HEAD_AXES, block.norms(sizes), head.PROJECTIONS,
        head.OUTPUTS, block.MLP, EMBEDDINGS, block.WIRING, heads(weights), orders(sizes.layers),
    )  # fmt: skip
    return (row for row in itertools.chain(*sections) if row.report)


def _for_learners(*sections: Iterable[Mistake]) -> tuple[Mistake, ...]:
    return tuple(row for row in itertools.chain(*sections) if row.learner)


def _drops(*rows: tuple[str, dict[str, Any]]) -> tuple[Mistake, ...]:
    return tuple(Mistake(changes, "", learner, "dropout", DROPPED) for learner, changes in rows)


# What the exercises try.
ATTENTION = _for_learners(
    attention.SCALES, attention.MASKS, head.TAKEN, head.HEAD_AXES, head.PROJECTIONS, head.MIXING,
    head.OUTPUTS,
)  # fmt: skip
BLOCK = _for_learners(block.norms(None), head.HEADS, block.WIRING, block.activations(None), block.MLP)
GPT2 = _for_learners(EMBEDDINGS, LOOPS, (REPEATED, head.AS_MANY_AS_BLOCKS), FINAL_NORM, HEAD)

ATTENTION_DROPOUT = _drops(
    ("attn_dropout is applied to v; the course drops the pattern", {"attention_drops": ("v",)}),
    ("attn_dropout is applied to z, the weighted sum; the course drops the pattern", {"attention_drops": ("z",)}),
    ("attn_dropout is applied to the scores, before softmax; the course drops the pattern",
     {"attention_drops": ("scores",)}),
    ("attn_dropout is applied to the scores, before they are scaled; the course drops the pattern",
     {"attention_drops": ("unscaled scores",)}),
    ("attn_dropout is applied to q; the course drops the pattern", {"attention_drops": ("q",)}),
    ("attn_dropout is applied to k; the course drops the pattern", {"attention_drops": ("k",)}),
    ("the pattern is dropped twice", {"attention_drops": ("pattern", "pattern")}),
    ("the pattern is not dropped", {"attention_drops": ()}),
    ("attention's output is not dropped", {"output_drops": ()}),
    ("attention's output is dropped twice", {"output_drops": ("attention", "attention")}),
    ("z, the weighted sum, is dropped in the place of output_proj's output", {"output_drops": ("z",)}),
    ("z, the weighted sum, is dropped, too; the course drops the pattern and output_proj's output alone",
     {"output_drops": ("z", "attention")}),
    ("attention's input is dropped, too; the course drops the pattern and output_proj's output alone",
     {"attention_drops": ("attended", "pattern")}),
)  # fmt: skip

BLOCK_DROPOUT = _drops(
    ("linear2's output is not dropped", {"mlp_drops": ()}),
    ("linear2's output is dropped twice", {"mlp_drops": ("mlp", "mlp")}),
    ("dropout is applied between linear1 and linear2; the course drops linear2's output",
     {"mlp_drops": ("activation",)}),
    ("dropout is applied between linear1 and linear2, too; the course drops linear2's output alone",
     {"mlp_drops": ("activation", "mlp")}),
    ("the block's output is dropped; the course drops linear2's, before the residual connection",
     {"mlp_drops": ("sum",)}),
    ("the block's output is dropped, too; the course drops linear2's alone", {"mlp_drops": ("mlp", "sum")}),
    ("the sum with attention's output is dropped, too; the course drops linear2's output alone",
     {"mlp_drops": ("mid", "mlp")}),
    ("the two sums are dropped; the course drops linear2's output, before the residual connection",
     {"mlp_drops": ("mid", "sum")}),
    ("linear1's input is dropped, too; the course drops linear2's output alone", {"mlp_drops": ("fed", "mlp")}),
    ("the block's input is dropped, too; the course drops linear2's output alone", {"mlp_drops": ("input", "mlp")}),
    ("nothing is dropped in attention", {"attention_drops": (), "output_drops": ()}),
    ("nothing is dropped", {"attention_drops": (), "output_drops": (), "mlp_drops": ()}),
)  # fmt: skip

GPT2_DROPOUT = _drops(
    ("dropout is applied to the token embedding alone; the course drops its sum with the position embedding",
     {"embedding_drops": ("tokens",)}),
    ("dropout is applied to the position embedding alone; the course drops its sum with the token embedding",
     {"embedding_drops": ("positions",)}),
    ("the two embeddings are dropped one by one; the course drops their sum",
     {"embedding_drops": ("tokens", "positions")}),
    ("dropout is applied before the unembedding; the course drops the sum of the embeddings",
     {"embedding_drops": ("ln_final",)}),
    ("dropout is applied before the unembedding, too; the course drops the sum of the embeddings alone",
     {"embedding_drops": ("embeddings", "ln_final")}),
    ("dropout is applied before the final LayerNorm, too; the course drops the sum of the embeddings alone",
     {"embedding_drops": ("embeddings", "last")}),
    ("the logits are dropped, too; the course drops the sum of the embeddings alone",
     {"embedding_drops": ("embeddings", "logits")}),
    ("the embeddings are dropped twice", {"embedding_drops": ("embeddings", "embeddings")}),
)  # fmt: skip
