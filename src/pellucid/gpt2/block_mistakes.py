"""Mistakes in a block outside of attention: LayerNorm, the MLP, and how the block is put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from pellucid.family.common_mistakes import other_functions
from pellucid.gpt2.formulas import Norm, PlainWeights, Sizes, activate, feed_in, feed_out, layer_norm, rounded
from pellucid.gpt2.mistake import (
    ACTIVATED,
    ADDED,
    NORMALISED,
    NUMBER,
    ORDERED,
    OTHER_TENSOR,
    TWICE,
    UNUSED,
    Mistake,
)
from pellucid.gpt2.parts import PlainBlock, pre_norm
from pellucid.numerics import nonlinear
from pellucid.numerics.constants import gelus, scales

# LayerNorm


def _divided_by(divisor: Callable[[Tensor, float], Tensor]) -> Norm:
    """LayerNorm with a divisor made of x and epsilon in another way."""
    return lambda x, w, b, eps: (x - x.mean(-1, keepdim=True)) / divisor(x, eps) * w + b


def _rms(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w + b


def _over_positions(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return (x - mean) / (variance + eps).sqrt() * w + b


_FORMULAS: tuple[tuple[str, str, Norm], ...] = (
    ("unbiased variance in LayerNorm", "LayerNorm divides by the unbiased standard deviation",
     _divided_by(lambda x, eps: (x.var(-1, keepdim=True) + eps).sqrt())),
    ("unbiased variance in LayerNorm, and epsilon outside the square root", "",
     _divided_by(lambda x, eps: x.std(-1, keepdim=True) + eps)),
    ("LayerNorm epsilon outside the square root", "LayerNorm's epsilon is outside the square root",
     _divided_by(lambda x, eps: x.std(-1, keepdim=True, correction=0) + eps)),
    ("LayerNorm divides by the variance", "LayerNorm divides by the variance, not by the standard deviation",
     _divided_by(lambda x, eps: x.var(-1, keepdim=True, correction=0) + eps)),
    ("LayerNorm without its gain and bias", "LayerNorm's gain and bias are not used",
     lambda x, w, b, eps: layer_norm(x, w * 0 + 1, b * 0, eps)),
    ("LayerNorm without its bias", "LayerNorm's bias is not used", lambda x, w, b, eps: layer_norm(x, w, b * 0, eps)),
    ("LayerNorm without its gain", "LayerNorm's gain is not used",
     lambda x, w, b, eps: layer_norm(x, w * 0 + 1, b, eps)),
    ("LayerNorm's gain added to 1", "", lambda x, w, b, eps: layer_norm(x, w + 1, b, eps)),
    ("RMSNorm instead of LayerNorm", "RMSNorm takes the place of LayerNorm: the mean is not taken off", _rms),
    ("RMSNorm without a bias instead of LayerNorm", "", lambda x, w, b, eps: _rms(x, w, b * 0, eps)),
    ("LayerNorm over positions", "LayerNorm runs over the positions, not over hidden_size", _over_positions),
    ("no LayerNorm", "", lambda x, w, b, eps: x),
    ("no LayerNorm, only its gain and bias", "", lambda x, w, b, eps: x * w + b),
    ("LayerNorm applied twice", "", lambda x, w, b, eps: layer_norm(layer_norm(x, w, b, eps), w, b, eps)),
)  # fmt: skip
"""What a report says, what a learner is told, and the formula."""

_EPSILONS = (1e-6, 1e-12, 1e-5, 1e-3, 1e-8, 1e-4, 1e-7, 0.0, 1e-2, 1e-1, 1e-9, 1e-10)
_LEARNERS_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-3, 0.1)
EVERYWHERE = ("ln1", "ln2", "ln_final")


def _normed(formula: Norm, norms: Collection[str] = EVERYWHERE) -> dict[str, Norm]:
    return dict.fromkeys(norms, formula)


def _with_epsilon(epsilon: float) -> Norm:
    return lambda x, w, b, _: layer_norm(x, w, b, epsilon)


def default_epsilon(norm: str, told: str, step: str) -> Mistake:
    """One LayerNorm that is constructed without an epsilon."""
    words = f"the epsilon of {told} is 1e-05, torch's default, not the one that is given"
    return Mistake({norm: _with_epsilon(1e-5)}, "", words, step, NUMBER)


def norms(sizes: Sizes | None) -> Iterator[Mistake]:
    """LayerNorm by another formula, everywhere or in some places; None for a learner, whatever the sizes are."""
    if sizes is None:
        for e in _LEARNERS_EPSILONS:
            words = f"LayerNorm's epsilon is {e:g}, not the one that is given"
            yield Mistake({"epsilon": e}, "", words, "layer norm", NUMBER)
        words = "LayerNorm's epsilon is 0, or as good as 0 (1e-12), not the one that is given"
        yield Mistake({"epsilon": 0.0}, "", words, "layer norm", NUMBER)
        yield from (default_epsilon(name, name, "layer norm") for name in ("ln1", "ln2"))
        words = "the epsilon of ln1 and ln2 is the dropout rate that is given: two arguments have changed places"
        yield Mistake(_normed(_with_epsilon(Sizes.dropout), ("ln1", "ln2")), "", words, "layer norm", ORDERED)
        for report, learner, formula in _FORMULAS:
            yield Mistake(_normed(formula), report, learner, "layer norm", NORMALISED)
        return
    others = (e for e in _EPSILONS if e != sizes.epsilon)
    formulas = [(f"LayerNorm epsilon {e:g} instead of {sizes.epsilon:g}", "", _with_epsilon(e)) for e in others]
    for places in (EVERYWHERE, ("ln1", "ln2"), ("ln1",), ("ln2",), ("ln_final",)):
        where = "" if places == EVERYWHERE else f" ({' and '.join(places)} only)"
        for report, _, formula in (*formulas, *_FORMULAS):
            yield Mistake(_normed(formula, places), report + where)


# The MLP


def activations(sizes: Sizes | None) -> Iterator[Mistake]:
    """Another activation function, or its constants in other digits; None for a learner, whatever the sizes are."""
    if sizes is None:
        words = "the activation function is missing: linear2 follows linear1 directly"
        yield Mistake({"activation": _named("linear")}, "", words, "the MLP", ACTIVATED)
        for a in ("gelu", "gelu_new", "relu", "quick_gelu", "silu", "tanh", "sigmoid", "leaky_relu", "relu6"):
            words = f"the activation function is {a}, not the one that is given"
            yield Mistake({"activation": _named(a)}, "", words, "the MLP", ACTIVATED)
        return
    for words, function, exact in gelus(sizes.activation):
        changes = {"activation": lambda x, _, f=function: f(x)}
        yield Mistake(changes, words, harmless=exact, slight=exact)
        for way in scales(sizes.head) if exact else ():
            if way.exact:
                both = f"{words}, and the scale of the scores is {way.words}"
                yield Mistake({**changes, "scale": rounded(way.value)}, both, harmless=True, slight=True)
    for words, function in other_functions(sizes.activation):
        yield Mistake({"activation": lambda x, _, f=function: f(x)}, words)


def _named(name: str) -> Callable[[Tensor, Sizes], Tensor]:
    return lambda x, sizes: nonlinear.EXACT[name](x)


def _unbiased_in(x: Tensor, w: PlainWeights) -> Tensor:
    return x @ w["mlp.W_in"]


def _unbiased_out(x: Tensor, w: PlainWeights) -> Tensor:
    return x @ w["mlp.W_out"]


MLP = (
    Mistake({"feed_out": lambda x, w: activate(feed_out(x, w), w.sizes)}, "",
            "the activation function is also applied after linear2", "the MLP", ACTIVATED),
    Mistake({"feed_in": lambda x, w: feed_in(activate(x, w.sizes), w), "activation": lambda x, s: x}, "",
            "the activation function is applied before linear1, not after it", "the MLP", ACTIVATED),
    Mistake({"activation": lambda x, s: activate(activate(x, s), s)}, "", "the activation function is applied twice",
            "the MLP", TWICE),
    Mistake({"norm_before_mlp": ("ln2", "ln2")}, "", "ln2 is applied twice, one after the other", "the MLP", TWICE),
    Mistake({"feed_in": _unbiased_in}, "no bias on W_in", "linear1's bias is not used", "the MLP", UNUSED),
    Mistake({"feed_out": _unbiased_out}, "no bias on W_out", "linear2's bias is not used", "the MLP", UNUSED),
    Mistake({"feed_in": _unbiased_in, "feed_out": _unbiased_out}, "no bias in the MLP"),
    Mistake({"feed_in": lambda x, w: x @ w["mlp.W_in"].T + w["mlp.b_in"]}, "W_in transposed"),
    Mistake({"feed_out": lambda x, w: x @ w["mlp.W_out"].T + w["mlp.b_out"]}, "W_out transposed"),
)  # fmt: skip


# How a block is put together


def post_norm(block: PlainBlock, x: Tensor) -> Tensor:
    """A block of the original transformer: LayerNorm after each residual connection."""
    mid = block.norm(("ln1",), block.parts.add_attention(x, x, block.attention(x)))
    out = block.mlp(block.record("mid", mid))
    return block.norm(("ln2",), block.parts.dropped("sum", block.parts.add_mlp(x, mid, mid, out)))


def _norm_of_output(block: PlainBlock, x: Tensor) -> Tensor:
    x = block.record("mid", x + block.norm(("ln1",), block.attention(x)))
    return x + block.norm(("ln2",), block.mlp(x))


def _mlp_first(block: PlainBlock, x: Tensor) -> Tensor:
    x = block.record("mid", x + block.mlp(block.norm(("ln2",), x)))
    return x + block.attention(block.norm(("ln1",), x))


def _attention_twice(block: PlainBlock, x: Tensor) -> Tensor:
    return pre_norm(block, x + block.attention(block.norm(("ln1",), x)))


def _mlp_twice(block: PlainBlock, x: Tensor) -> Tensor:
    x = pre_norm(block, x)
    return x + block.mlp(block.norm(("ln2",), x))


def _only_out(*values: Tensor) -> Tensor:
    """The output alone, without what the residual connection adds."""
    return values[-1]


def _read_and_out(*values: Tensor) -> Tensor:
    """The output, added to the normalised values that were read."""
    return values[-2] + values[-1]


_ATTENTION_STEP = "the residual connection around attention"
_MLP_STEP = "the residual connection around the MLP"

WIRING = (
    Mistake({"wiring": post_norm}, "post-LayerNorm: LayerNorm after the residual connection",
            "LayerNorm comes after each residual connection (post-LN); GPT-2's comes before attention and MLP",
            "layer norm", NORMALISED),
    Mistake({"wiring": _norm_of_output}, "LayerNorm of what attention and the MLP give",
            "ln1 and ln2 are applied to the outputs of attention and MLP; GPT-2 applies them to the inputs",
            "layer norm", NORMALISED),
    Mistake({"mlp_reads": lambda x, mid: x}, "the MLP reads the block's input, in parallel with attention",
            "the MLP reads the block's input, not what comes out of attention", "the MLP", OTHER_TENSOR),
    Mistake({"mlp_reads": lambda x, mid: x, "norm_before_mlp": ("ln1",)}, "",
            "the MLP reads ln1 of the block's input (parallel blocks)", "the MLP", OTHER_TENSOR),
    Mistake({"add_attention": _only_out}, "the residual connection around attention is missing",
            "the input is not added to attention's output", _ATTENTION_STEP, ADDED),
    Mistake({"add_mlp": _only_out}, "the residual connection around the MLP is missing",
            "what comes out of attention is not added to the MLP's output", _MLP_STEP, ADDED),
    Mistake({"add_attention": _only_out, "add_mlp": _only_out}, "both residual connections are missing"),
    Mistake({"add_attention": _read_and_out, "add_mlp": _read_and_out},
            "the residual connections carry the normalized values"),
    Mistake({"add_attention": _read_and_out}, "the residual connection around attention carries the normalized values",
            "ln1's output, not the block's input, is added to attention's output", _ATTENTION_STEP, ADDED),
    Mistake({"add_mlp": _read_and_out}, "the residual connection around the MLP carries the normalized values",
            "ln2's output, not its input, is added to the MLP's output", _MLP_STEP, ADDED),
    Mistake({"wiring": _mlp_first}, "the MLP comes before attention", "the MLP comes before attention", "the MLP",
            ORDERED),
    Mistake({"norm_before_attention": ("ln2",), "norm_before_mlp": ("ln1",)}, "ln1 and ln2 are swapped",
            "ln1 and ln2 are swapped", "layer norm", NORMALISED),
    Mistake({"norm_before_mlp": ("ln1",)}, "ln1 is used in the place of ln2",
            "ln1 is applied in both places, ln2 nowhere", "layer norm", NORMALISED),
    Mistake({"norm_before_attention": ("ln2",)}, "ln2 is used in the place of ln1",
            "ln2 is applied in both places, ln1 nowhere", "layer norm", NORMALISED),
    Mistake({"norm_before_attention": ()}, "attention reads the stream without LayerNorm",
            "ln1 is not applied", "layer norm", NORMALISED),
    Mistake({"norm_before_mlp": ()}, "the MLP reads the stream without LayerNorm",
            "ln2 is not applied", "layer norm", NORMALISED),
    Mistake({"norm_before_attention": (), "norm_before_mlp": ()}, "",
            "no LayerNorm is applied in the block", "layer norm", NORMALISED),
    Mistake({"wiring": _attention_twice}, "", "attention is applied and added twice, one after the other",
            _ATTENTION_STEP, TWICE),
    Mistake({"wiring": _mlp_twice}, "", "the MLP is applied and added twice, one after the other", _MLP_STEP, TWICE),
    Mistake({"add_mlp": lambda x, mid, read, out: mid}, "the MLP's output is not added",
            "the MLP's output is not added to what comes out of attention", _MLP_STEP, ADDED),
    Mistake({"add_mlp": lambda x, mid, read, out: mid - out}, "",
            "the MLP's output is subtracted, not added", _MLP_STEP, ADDED),
    Mistake({"add_attention": lambda x, read, out: x - out}, "",
            "attention's output is subtracted, not added", _ATTENTION_STEP, ADDED),
    Mistake({"add_attention": lambda x, read, out: x}, "attention's output is not added",
            "attention's output is not added to the input", _ATTENTION_STEP, ADDED),
    Mistake({"add_attention": lambda x, read, out: 2 * x + out}, "the residual stream is added twice at attention",
            "the input is added twice to attention's output", _ATTENTION_STEP, ADDED),
    Mistake({"add_mlp": lambda x, mid, read, out: 2 * mid + out}, "the residual stream is added twice at the MLP",
            "what comes out of attention is added twice to the MLP's output", _MLP_STEP, ADDED),
    Mistake({"add_mlp": lambda x, mid, read, out: mid - x + out}, "",
            "attention's own output is added to the MLP's output, without the block's input", _MLP_STEP, ADDED),
    Mistake({"add_mlp": lambda x, mid, read, out: x + out}, "the MLP's output is added to the block's input",
            "the block's input is added to the MLP's output, so that attention reaches the output only through the MLP",
            _MLP_STEP, ADDED),
)  # fmt: skip
