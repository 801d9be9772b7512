"""The mistakes that are known, as dials of `Way`: what to say, at which step, and what to turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from pellucid.exercises.answers import NUMBERS
from pellucid.exercises.reference import RIGHT, Stages, Way, turned
from pellucid.exercises.watch import apart


@dataclass(frozen=True)
class Mistake:
    """A known mistake.

    Attributes:
        words: What to tell the learner.
        step: Where it is made.
        changes: Dials of `Way` that make it.
    """

    words: str
    step: str
    changes: Mapping[str, object]

    @property
    def kind(self) -> str:
        """What sort of mistake it is, without giving it away."""
        return "; ".join(dict.fromkeys(KINDS.get(dial, NUMBERS) for dial in self.changes))


KINDS = {
    **dict.fromkeys(("scale", "embed_scale", "fill", "epsilon", "offset", "heads"), "a number is wrong"),
    **dict.fromkeys(("diagonal", "masked"), "which entries are masked, or when, is wrong"),
    "over": "an axis is wrong",
    "normalise": "another function is applied than should be",
    "twice": "something is applied or added twice",
    "unbiased": "a parameter is not used, or not as it should be",
    **dict.fromkeys(("order", "split", "merge"), "axes or parts are in the wrong order"),
    **dict.fromkeys(("values", "mlp_reads", "positions", "head"), "another tensor is used than should be"),
    **dict.fromkeys(("qkv_bias", "out_bias", "project"), "a parameter is not used, or not as it should be"),
    **dict.fromkeys(
        ("norms", "variance", "final"), "normalisation is missing, at the wrong place or computed otherwise"
    ),
    **dict.fromkeys(("first", "second"), "what is added to what is wrong"),
    **dict.fromkeys(("activation", "linear2"), "the activation function is another, missing or at the wrong place"),
    "blocks": "which blocks are applied, or in which order, is wrong",
    **dict.fromkeys(("attn_drop", "out_drops", "mlp_drop", "embed_drop"), "what is dropped, or how often, is wrong"),
}
"""Dial of `Way` -> what sort of mistake turning it makes."""


def _several(step: str, *rows: tuple[str, Mapping[str, object]]) -> tuple[Mistake, ...]:
    return tuple(Mistake(words, step, changes) for words, changes in rows)


ATTENTION: tuple[Mistake, ...] = (
    *_several(
        "scaling the scores",
        ("the scores are not divided by sqrt(head_size)", {"scale": "none"}),
        ("the scores are divided by sqrt(hidden_size), not sqrt(head_size)", {"scale": "hidden"}),
        ("the scores are divided by sqrt(hidden_size // num_heads): head_size is ignored", {"scale": "default head"}),
        ("the scores are divided by sqrt(num_heads * head_size), not sqrt(head_size)", {"scale": "columns"}),
        ("the scores are divided by sqrt(num_heads), not sqrt(head_size)", {"scale": "heads"}),
        ("the scores are divided by head_size, not by its square root", {"scale": "unrooted"}),
        ("the scores are multiplied by sqrt(head_size), not divided", {"scale": "multiplied"}),
        ("the scores are divided by sqrt(seq), not sqrt(head_size)", {"scale": "positions"}),
    ),
    *_several(
        "masking the scores",
        ("there is no causal mask: every query sees the whole text", {"diagonal": None}),
        ("the causal mask is off by one: a query sees the next token", {"diagonal": 1}),
        ("the causal mask is off by one: a query does not see itself", {"diagonal": -1}),
        ("the causal mask is off by one: a query does not see itself", {"diagonal": -1, "fill": -1e4}),
        ("the causal mask is off by one: a query does not see itself", {"diagonal": -1, "fill": -1e9}),
        *(("the causal mask is turned around: a query sees only what comes later",
           {"masked": "transposed", "diagonal": -1, "fill": c}) for c in (-1e4, -math.inf)),
        ("the causal mask is transposed: a query sees itself and what comes later", {"masked": "transposed"}),
        ("masked scores are set to 0, which softmax does not ignore", {"fill": 0.0}),
        ("the mask is applied after softmax, so that the rows do not sum to 1", {"masked": "pattern"}),
        ("the mask is applied after softmax", {"masked": "pattern, renormalised"}),
        *((f"masked scores are set to {c:g}, which is not far enough below the others", {"fill": c})
          for c in (-1.0, -10.0, -100.0)),
        ("masked scores are set to a large positive number: the minus sign is missing", {"fill": 1e4}),
        ("masked scores are set to +inf: the minus sign is missing", {"fill": math.inf}),
        ("the scores are multiplied by the logarithm of the mask, which is to be added",
         {"masked": "times log"}),
        ("the scores are multiplied by a mask of 1 and -10000, which has to replace or to be added to them",
         {"masked": "times fill", "fill": -1e4}),
        ("the scores are multiplied by a mask of 1 and -inf, which has to replace or to be added to them",
         {"masked": "times fill"}),
    ),
    *_several(
        "softmax",
        ("log_softmax is applied, not softmax", {"normalise": "log_softmax", "fill": -1e4}),
        ("sigmoid is applied, not softmax", {"normalise": "sigmoid", "fill": -1e4}),
        ("softmax is not applied", {"normalise": "none", "fill": -1e4}),
        ("softmax is not applied", {"normalise": "none", "fill": -1e9}),
        ("softmax runs over the queries, not over the keys", {"over": -2}),
        ("softmax runs over the heads, not over the keys", {"over": 1}),
        ("softmax runs over the batch, not over the keys", {"over": 0}),
    ),
    *_several(
        "splitting q, k and v",
        ("q and k change places: qkv_proj is read in the order k, q, v, or the scores are k @ q.T", {"order": "kqv"}),
        *((f"qkv_proj is read in the order {', '.join(o)}, not q, k, v", {"order": "".join(o)})
          for o in itertools.permutations("qkv") if "".join(o) not in ("qkv", "kqv")),
        ("each of q, k, v is split as (head_size, num_heads), not (num_heads, head_size)", {"split": "part size head"}),
        ("q, k, v are interleaved inside each head: they are three whole chunks", {"split": "head part size"}),
        ("q, k, v are the innermost axis of qkv_proj: they are three whole chunks", {"split": "head size part"}),
        ("q, k, v are the innermost axis of qkv_proj: they are three whole chunks", {"split": "size head part"}),
        ("q, k, v lie inside head_size: they are three whole chunks", {"split": "size part head"}),
        ("(batch, seq, heads * size) is reshaped to (batch, heads, seq, size) without moving axes", {"split": "rows"}),
        ("qkv_proj's bias is not used", {"qkv_bias": False}),
    ),
    *_several(
        "the weighted sum",
        ("the pattern weighs k, not v", {"values": "k"}),
        ("the pattern weighs q, not v", {"values": "q"}),
        ("the pattern is transposed before it weighs v", {"values": "transposed"}),
        ("the heads are merged as (head_size, num_heads), not (num_heads, head_size)", {"merge": "size head"}),
        ("the heads are not moved behind the positions before they are merged", {"merge": "not moved"}),
    ),
    *_several(
        "the output projection",
        ("output_proj is not applied", {"project": "no"}),
        ("output_proj is applied transposed", {"project": "transposed"}),
        ("output_proj is applied twice", {"project": "twice"}),
        ("the input is added to the output: that is the block's part, not attention's", {"project": "residual"}),
        ("output_proj's bias is not used", {"out_bias": False}),
    ),
)  # fmt: skip

BLOCK: tuple[Mistake, ...] = (
    *_several(
        "layer norm",
        *((f"LayerNorm's epsilon is {e:g}, not the one that is given", {"epsilon": e})
          for e in (1e-5, 1e-6, 1e-8, 1e-3, 0.1)),
        ("LayerNorm's epsilon is 0, or as good as 0 (1e-12), not the one that is given", {"epsilon": 0.0}),
        ("LayerNorm divides by the unbiased standard deviation", {"variance": "unbiased"}),
        ("LayerNorm's epsilon is outside the square root", {"variance": "outside"}),
        ("LayerNorm's gain and bias are not used", {"variance": "plain"}),
        ("RMSNorm takes the place of LayerNorm: the mean is not taken off", {"variance": "rms"}),
        ("ln1 and ln2 are swapped", {"norms": "swapped"}),
        ("ln1 is applied in both places, ln2 nowhere", {"norms": "ln1 twice"}),
        ("ln2 is applied in both places, ln1 nowhere", {"norms": "ln2 twice"}),
        ("ln1 is not applied", {"norms": "no ln1"}),
        ("ln2 is not applied", {"norms": "no ln2"}),
        ("no LayerNorm is applied in the block", {"norms": "none"}),
        ("LayerNorm comes after each residual connection (post-LN); GPT-2's comes before attention and MLP",
         {"norms": "post"}),
    ),
    *_several(
        "attention",
        *((f"there are always {n} heads: num_heads is not handed to attention", {"heads": n}) for n in (1, 4, 12)),
    ),
    *_several(
        "the residual connection around attention",
        ("the input is not added to attention's output", {"first": "missing"}),
        ("ln1's output, not the block's input, is added to attention's output", {"first": "normalized"}),
        ("attention's output is not added to the input", {"first": "input only"}),
        ("the input is added twice to attention's output", {"first": "twice"}),
    ),
    *_several(
        "the residual connection around the MLP",
        ("what comes out of attention is not added to the MLP's output", {"second": "missing"}),
        ("ln2's output, not its input, is added to the MLP's output", {"second": "normalized"}),
        ("what comes out of attention is added twice to the MLP's output", {"second": "twice"}),
        ("attention's own output is added to the MLP's output, without the block's input",
         {"second": "attention alone"}),
        ("the block's input is added to the MLP's output, so that attention reaches the output only through the MLP",
         {"second": "block input"}),
    ),
    *_several(
        "the MLP",
        ("the MLP reads the block's input, not what comes out of attention", {"mlp_reads": "block input"}),
        ("the MLP reads ln1 of the block's input (parallel blocks)", {"mlp_reads": "ln1 of the input"}),
        ("the activation function is missing: linear2 follows linear1 directly", {"activation": "linear"}),
        *((f"the activation function is {a}, not the one that is given", {"activation": a})
          for a in ("gelu", "gelu_new", "relu", "quick_gelu", "silu", "tanh", "sigmoid", "leaky_relu",
                    "relu6")),
        ("the activation function is also applied after linear2", {"linear2": False}),
        ("the activation function is applied twice", {"twice": "activation"}),
        ("ln2 is applied twice, one after the other", {"twice": "ln2"}),
        ("linear1's bias is not used", {"unbiased": "linear1"}),
        ("linear2's bias is not used", {"unbiased": "linear2"}),
    ),
)  # fmt: skip

GPT2: tuple[Mistake, ...] = (
    *_several(
        "the embeddings",
        ("the positions are not embedded", {"positions": "none"}),
        ("the positions are added after the blocks, not before them", {"positions": "at the end"}),
        ("token and position embedding are multiplied, not added", {"positions": "multiplied"}),
        ("positions start at 1, not at 0", {"offset": 1}),
        ("every token gets position 0", {"positions": "first"}),
        ("positions run backwards", {"positions": "reversed"}),
        ("pos_embedding is given the token ids, not the positions", {"positions": "ids"}),
        ("the positions are embedded with token_embedding, not with pos_embedding", {"positions": "token table"}),
        ("the token embedding is multiplied by sqrt(hidden_size)", {"embed_scale": True}),
    ),
    *_several(
        "the blocks",
        ("the blocks are not applied", {"blocks": "none"}),
        ("the last block is not applied", {"blocks": "all but the last"}),
        ("the blocks are applied in reverse", {"blocks": "reversed"}),
        ("the first block is applied again and again", {"blocks": "first"}),
        (
            "only the last block is applied, to the embeddings: the loop over the blocks does not hand on its result",
            {"blocks": "only the last"},
        ),
        (
            "only the first block is applied: the loop over the blocks ends, or returns, after one",
            {"blocks": "only the first"},
        ),
        ("the first block is not applied", {"blocks": "all but the first"}),
        ("all blocks are applied twice", {"blocks": "twice"}),
        ("each block's input is added to its output, which holds it already", {"twice": "block input"}),
    ),
    *_several(
        "the final layer norm",
        ("the final LayerNorm is not applied", {"final": "none"}),
        ("the final LayerNorm is applied twice", {"final": "twice"}),
        ("the final LayerNorm is also applied before the blocks", {"final": "before the blocks, too"}),
    ),
    *_several(
        "the unembedding",
        ("softmax is applied: the output should be logits", {"head": "probabilities"}),
        ("log_softmax is applied: the output should be logits", {"head": "logprobs"}),
        ("the logits are divided by sqrt(hidden_size)", {"head": "scaled"}),
    ),
)

ATTENTION_DROPOUT: tuple[Mistake, ...] = _several(
    "dropout",
    ("attn_dropout is applied to v; the course drops the pattern", {"attn_drop": "v"}),
    ("attn_dropout is applied to z, the weighted sum; the course drops the pattern", {"attn_drop": "z"}),
    ("attn_dropout is applied to the scores, before softmax; the course drops the pattern", {"attn_drop": "scores"}),
    (
        "attn_dropout is applied to the scores, before they are scaled; the course drops the pattern",
        {"attn_drop": "unscaled scores"},
    ),
    ("attn_dropout is applied to q; the course drops the pattern", {"attn_drop": "q"}),
    ("attn_dropout is applied to k; the course drops the pattern", {"attn_drop": "k"}),
    ("the pattern is dropped twice", {"attn_drop": "twice"}),
    ("the pattern is not dropped", {"attn_drop": "none"}),
    ("attention's output is not dropped", {"out_drops": 0}),
    ("attention's output is dropped twice", {"out_drops": 2}),
)

BLOCK_DROPOUT: tuple[Mistake, ...] = _several(
    "dropout",
    ("linear2's output is not dropped", {"mlp_drop": "none"}),
    ("linear2's output is dropped twice", {"mlp_drop": "twice"}),
    ("the activation is dropped; the course drops linear2's output", {"mlp_drop": "activation"}),
    ("the activation is dropped, too; the course drops linear2's output alone", {"mlp_drop": "both"}),
    ("the block's output is dropped; the course drops linear2's, before the residual connection", {"mlp_drop": "sum"}),
    ("nothing is dropped in attention", {"attn_drop": "none", "out_drops": 0}),
    ("nothing is dropped", {"attn_drop": "none", "out_drops": 0, "mlp_drop": "none"}),
)

GPT2_DROPOUT: tuple[Mistake, ...] = _several(
    "dropout",
    ("dropout is applied to the token embedding alone; the course drops its sum with the position embedding",
     {"embed_drop": "tokens"}),
    ("dropout is applied to the position embedding alone; the course drops its sum with the token embedding",
     {"embed_drop": "positions"}),
    ("the two embeddings are dropped one by one; the course drops their sum", {"embed_drop": "each"}),
    ("dropout is applied before the unembedding; the course drops the sum of the embeddings", {"embed_drop": "ln"}),
    ("dropout is applied before the unembedding, too; the course drops the sum of the embeddings alone",
     {"embed_drop": "sum and ln"}),
    ("the embeddings are dropped twice", {"embed_drop": "twice"}),
)  # fmt: skip

Produce = Callable[[Way], Iterator[Stages]]
"""A way -> the stages of every probe, one after the other."""


def confirmed(
    mistakes: Iterable[Mistake], produce: Produce, observed: Sequence[Tensor], tolerance: float
) -> Mistake | None:
    """The first mistake that reproduces what was observed in every probe; outputs that are NaN as a whole show none."""
    spoilt = [output.isnan() for output in observed if output.isnan().any()]
    if spoilt and all(places.all() for places in spoilt):
        return None
    for mistake in mistakes:
        try:
            if agrees(produce(turned(RIGHT, mistake.changes)), observed, tolerance):
                return mistake
        except (RuntimeError, IndexError, KeyError):  # impossible with these shapes
            continue
    return None


def agrees(made: Iterator[Stages], observed: Sequence[Tensor], tolerance: float) -> bool:
    """Whether the last stage of every probe is what was observed."""
    return all(apart(o, list(m.values())[-1]) <= tolerance for o, m in zip(observed, made, strict=True))


def pairs(mistakes: Sequence[Mistake], one_of: Collection[Mistake] | None = None) -> Iterator[Mistake]:
    """Two mistakes at once, at least one of which is among some."""
    for a, b in itertools.combinations(mistakes, 2):
        if not set(a.changes) & set(b.changes) and (one_of is None or a in one_of or b in one_of):
            yield Mistake(f"{a.words}; and {b.words}", f"{a.step}, {b.step}", {**a.changes, **b.changes})


def first_shows(produce: Produce, mistake: Mistake, tolerance: float) -> str | None:
    """The first stage in which a mistake makes a difference."""
    for right, wrong in zip(produce(RIGHT), produce(turned(RIGHT, mistake.changes)), strict=True):
        for name in right:
            if name not in wrong or apart(wrong[name], right[name]) > tolerance:
                return name
    return None
