"""The known mistakes: each in words, as the recipe of a GPT-2 that makes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.gpt2.config import TransformerConfig
from pellucid.numerics import nonlinear
from pellucid.prove import constants, wirings
from pellucid.prove.differences import relative_error
from pellucid.prove.recipe import (
    Facts,
    Heads,
    Ingredients,
    Recipe,
    Weights,
    attend_with,
    layer_norm,
    merge,
    project,
    right_recipe,
)


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        words: What it is, for a report.
        recipe: A GPT-2 that makes it.
        harmless: It is rounding all the same, such as a constant that is stored in float32, or no text can show it.
        slight: It is rounding, so that it explains no large error.
    """

    words: str
    recipe: Recipe
    harmless: bool = False
    slight: bool = False


def known_mistakes(model: Ingredients, *, several_rows: bool = True) -> Iterator[Mistake]:
    """Every mistake that is known, for a reference's sizes; the likely ones first.

    Args:
        model: The reference.
        several_rows: Whether mistakes can show that mix up the rows of a batch.
    """
    right = right_recipe(model)
    config = model.config
    yield from _activations(right, config)
    yield from _scores(right, config)
    yield from _masks(right)
    yield from _rows(right) if several_rows else ()
    yield from _head_axes(right)
    yield from _norms(right, config)
    yield from _projections(right)
    yield from _outputs(right)
    yield from _embeddings(right, config)
    for words, wiring in wirings.WIRINGS.items():
        yield Mistake(words, replace(right, wiring=wiring))
    yield from _heads(right, model)
    yield from _orders(right, config.n_layer)


def _activations(right: Recipe, config: TransformerConfig) -> Iterator[Mistake]:
    for words, function, exact in constants.gelus(config):
        recipe = replace(right, activation=function)
        yield Mistake(words, recipe, harmless=exact, slight=exact)
        for scale in constants.scales(config.d_head) if exact else ():
            if scale.exact:
                both = f"{words}, and the scale of the scores is {scale.words}"
                recipe_of_both = replace(recipe, attend=_scaled(scale.value, config))
                yield Mistake(both, recipe_of_both, harmless=True, slight=True)
    own = nonlinear.EXACT[config.activation_function]
    for name, function in nonlinear.EXACT.items():
        if relative_error(function(_GRID), own(_GRID)) > SAME:
            words = f"activation function {name} instead of {config.activation_function}"
            yield Mistake(words, replace(right, activation=function))
    yield Mistake("no activation function", replace(right, activation=lambda x: x))


_GRID = torch.linspace(-8, 8, 257, dtype=torch.float64)

SAME = 1e-14
"""Relative difference up to which two formulas are one function: another name is no mistake."""


def _scaled(scale: float, config: TransformerConfig) -> Callable[[Heads, Facts], Tensor]:
    """Attention with another number in the place of 1/sqrt(d_head)."""
    return lambda h, f: attend_with(h, f.scale * config.d_head**0.5 * scale, 0)


def _scores(right: Recipe, config: TransformerConfig) -> Iterator[Mistake]:
    def attending(make: Callable[[Heads, Facts], Tensor]) -> Recipe:
        return replace(right, attend=make)

    d_head, d_model = config.d_head, config.n_embd
    for way in constants.scales(d_head):
        recipe = attending(_scaled(way.value, config))
        words = f"the scale of the scores is {way.words} for 1/sqrt(d_head)"
        yield Mistake(words, recipe, harmless=way.exact, slight=way.exact)
    for words, scale in (
        ("no scaling of the scores", 1.0),
        ("scores scaled by 1/sqrt(d_model) instead of 1/sqrt(d_head)", d_model**-0.5),
        ("scores scaled by 1/d_head instead of 1/sqrt(d_head)", 1 / d_head),
        ("scores scaled by 1/d_model", 1 / d_model),
        ("scores multiplied by sqrt(d_head) instead of divided", d_head**0.5),
        ("scores scaled by 1/sqrt(d_head) only", d_head**-0.5),
        ("scores scaled by 1/sqrt(n_head)", config.n_head**-0.5),
        ("scores scaled twice", 1 / d_head),
    ):
        yield Mistake(words, attending(lambda h, f, s=scale: attend_with(h, s, 0)))
    yield Mistake(
        "scores divided by the number of the block", attending(lambda h, f: attend_with(h, f.scale / (f.block + 1), 0))
    )


def _masks(right: Recipe) -> Iterator[Mistake]:
    def attending(make: Callable[[Heads, Facts], Tensor]) -> Recipe:
        return replace(right, attend=make)

    yield Mistake("no causal mask", attending(lambda h, f: attend_with(h, f.scale, None)))
    for words, diagonal in (
        ("causal mask off by one: sees the next token", 1),
        ("causal mask off by one: does not see itself", -1),
    ):
        yield Mistake(words, attending(lambda h, f, d=diagonal: attend_with(h, f.scale, d)))
    yield Mistake(
        "causal mask off by one: does not see itself, the first position excepted",
        attending(lambda h, f: _blind_but_first(h, f.scale)),
    )
    yield Mistake("causal mask the wrong way round", attending(lambda h, f: _anticausal(h, f.scale)))
    yield Mistake("masked scores set to 0", attending(lambda h, f: attend_with(h, f.scale, 0, fill=0.0)))
    yield Mistake(
        "causal mask off by one: does not see itself", attending(lambda h, f: attend_with(h, f.scale, -1, -math.inf))
    )
    for fill in (-1.0, -10.0, -100.0, -1e3, -1e4, -1e5, -1e6, -1e9):
        yield Mistake(
            f"masked scores set to {fill:g}", attending(lambda h, f, m=fill: attend_with(h, f.scale, 0, fill=m))
        )
    yield Mistake("mask after the softmax", attending(lambda h, f: _masked_late(h, f.scale)))
    yield Mistake("softmax over the queries", attending(lambda h, f: attend_with(h, f.scale, 0, over=-2)))
    yield Mistake("softmax over the heads", attending(lambda h, f: attend_with(h, f.scale, 0, over=1)))
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            taken = ", ".join("qkv"[i] for i in order)
            yield Mistake(
                f"q, k, v taken in another order: {taken}",
                attending(lambda h, f, o=order: attend_with((h[o[0]], h[o[1]], h[o[2]]), f.scale, 0)),
            )


def _rows(right: Recipe) -> Iterator[Mistake]:
    for words, change in wirings.ROWS.items():
        yield Mistake(words, replace(right, attend=lambda h, f, c=change: attend_with(c(h), f.scale, 0)))
    for words, diagonal in (("", 0), (", without a mask", None)):
        attending = lambda h, f, d=diagonal: wirings.across_rows(h, f.scale, d)  # noqa: E731
        yield Mistake(f"attention over batch rows instead of positions{words}", replace(right, attend=attending))


def _head_axes(right: Recipe) -> Iterator[Mistake]:
    splits: dict[str, Callable[[Heads, Facts], Tensor]] = {
        "": lambda h, f: attend_with(h, f.scale, 0),
        "heads split as (d_head, head)": wirings.split_other_way,
        "heads split without moving them before positions": wirings.attend_across_positions,
    }
    merges: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda z: z,
        "heads merged as (d_head, head)": wirings.merged_other_way,
        "heads merged without moving them behind positions": wirings.merged_across_positions,
    }
    for (split, attending), (merged, merging) in itertools.product(splits.items(), merges.items()):
        if split or merged:
            words = " and ".join(filter(None, (split, merged)))
            yield Mistake(words, replace(right, attend=lambda h, f, a=attending, m=merging: m(a(h, f))))
    names = ("part", "head", "d_head")
    for stored in ((0, 1, 2), (1, 0, 2)):
        for read in itertools.permutations(range(3)):
            if read != stored:
                words = f"q, k, v and heads read as ({', '.join(names[i] for i in read)})"
                yield Mistake(
                    f"{words} instead of ({', '.join(names[i] for i in stored)})",
                    replace(
                        right,
                        attend=lambda h, f, s=stored, r=read: attend_with(wirings.reread(h, s, r), f.scale, 0),
                    ),
                )


def _blind_but_first(heads: Heads, scale: float) -> Tensor:
    blind = attend_with(heads, scale, -1)
    return torch.cat([heads[2][:, :1], blind[:, 1:]], 1)


def _anticausal(heads: Heads, scale: float) -> Tensor:
    q, k, v = (part.flip(1) for part in heads)
    return attend_with((q, k, v), scale, 0).flip(1)


def _masked_late(heads: Heads, scale: float) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in heads)
    return ((q @ k.transpose(-1, -2) * scale).softmax(-1).tril() @ v).transpose(1, 2)


def _norms(right: Recipe, config: TransformerConfig) -> Iterator[Mistake]:
    eps = config.layer_norm_epsilon
    formulas: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
        f"LayerNorm epsilon {other:g} instead of {eps:g}": lambda x, w, b, _, e=other: layer_norm(x, w, b, e)
        for other in (1e-6, 1e-12, 1e-5, 1e-3, 1e-8, 1e-4, 1e-7, 0.0, 1e-2, 1e-1, 1e-9, 1e-10)
        if other != eps
    }
    formulas |= wirings.NORMS
    everywhere = ("ln1", "ln2", "ln_final")
    for norms in (everywhere, ("ln1", "ln2"), ("ln1",), ("ln2",), ("ln_final",)):
        where = "" if norms == everywhere else f" ({' and '.join(norms)} only)"
        for words, formula in formulas.items():
            yield Mistake(words + where, replace(right, norm=formula, norms=norms))


def _projections(right: Recipe) -> Iterator[Mistake]:
    for order in itertools.product("QKV", repeat=3):
        if order != ("Q", "K", "V"):
            words = f"q, k, v projected by {', '.join(f'W_{letter}' for letter in order)}"
            words = f"q, k, v in another order: {words}" if len(set(order)) == 3 else words

            def reordered(x: Tensor, w: Weights, o: tuple[str, ...] = order) -> Heads:
                made = dict(zip("QKV", project(x, w), strict=True))
                return made[o[0]], made[o[1]], made[o[2]]

            yield Mistake(words, replace(right, project=reordered))
    for size in (1, 2, 3):
        for letters in itertools.combinations("QKV", size):
            named = ", ".join(letter.lower() for letter in letters)
            yield Mistake(
                f"projection of {named} transposed",
                replace(right, project=lambda x, w, c=letters: wirings.transposed(x, w, c)),
            )
            unbiased = replace(right, project=lambda x, w, c=letters: wirings.without_bias(x, w, c))
            yield Mistake(f"no bias on {named}", unbiased, harmless=letters == ("K",))


def _outputs(right: Recipe) -> Iterator[Mistake]:
    def merging(make: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Recipe:
        return replace(right, merge=make)

    yield Mistake("output projection transposed", merging(lambda z, W, b: z.flatten(2) @ W.flatten(0, 1).T + b))
    yield Mistake("no bias on the output projection", merging(lambda z, W, b: merge(z, W, torch.zeros_like(b))))
    yield Mistake("output projection's bias added once per head", merging(lambda z, W, b: merge(z, W, b * z.size(2))))
    for words, changes in wirings.FEEDS.items():
        yield Mistake(words, replace(right, feed_in=changes[0], feed_out=changes[1]))


def _embeddings(right: Recipe, config: TransformerConfig) -> Iterator[Mistake]:
    for words, rows in wirings.POSITIONS.items():
        yield Mistake(words, replace(right, positions=lambda ids, r=rows: r(ids) % config.n_positions))
    yield Mistake("no position embeddings", replace(right, positions=None))
    root = math.sqrt(config.n_embd)
    yield Mistake("token embeddings multiplied by sqrt(d_model)", replace(right, embed=lambda x: x * root))
    yield Mistake("no token embeddings", replace(right, embed=torch.zeros_like))


def _heads(right: Recipe, model: Ingredients) -> Iterator[Mistake]:
    if not model.tied:
        yield Mistake("head tied to the embedding", replace(right, head=model.units["embed.W_E"]))
    yield Mistake("no head: the output is the final normalized residual", replace(right, logits=lambda x, W: x))
    yield Mistake(
        "no head and no final LayerNorm: the output is the last residual stream",
        replace(right, logits=lambda x, W: x, norm=lambda x, w, b, eps: x, norms=("ln_final",)),
    )
    root = math.sqrt(model.config.n_embd)
    yield Mistake("logits multiplied by sqrt(d_model)", replace(right, logits=lambda x, W: x @ W.T * root))
    yield Mistake("logits divided by sqrt(d_model)", replace(right, logits=lambda x, W: x @ W.T / root))
    yield Mistake("log-probabilities instead of logits", replace(right, logits=lambda x, W: F.log_softmax(x @ W.T, -1)))
    yield Mistake("probabilities instead of logits", replace(right, logits=lambda x, W: F.softmax(x @ W.T, -1)))


def _orders(right: Recipe, n_layer: int) -> Iterator[Mistake]:
    blocks = tuple(range(n_layer))
    if n_layer > 1:
        yield Mistake("blocks applied from the last to the first", replace(right, order=blocks[::-1]))
    for i in blocks:
        yield Mistake(f"block {i} is left out", replace(right, order=blocks[:i] + blocks[i + 1 :]))
        yield Mistake(f"block {i} is applied twice", replace(right, order=(*blocks[:i], i, *blocks[i:])))
        yield Mistake(f"block {i} is applied in every place", replace(right, order=(i,) * n_layer))
    for i in blocks[:-1]:
        swapped = (*blocks[:i], i + 1, i, *blocks[i + 2 :])
        yield Mistake(f"blocks {i} and {i + 1} are swapped", replace(right, order=swapped))
