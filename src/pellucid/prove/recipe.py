"""GPT-2 once more, as formulas that can be replaced one by one: the reference with a known mistake put into it.

Everything is float64 (float32 where it only refuses) and by hand (einsum over the per-head matrices, no fused
kernels), so that it shares nothing with the model but the parameters. Values are recorded by point (see
`pellucid.prove.points`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.gpt2.config import TransformerConfig
from pellucid.numerics import nonlinear
from pellucid.prove.points import CANONICAL, LOGITS
from pellucid.prove.units import units_of
from pellucid.run.model import CkptedTransformer

Values = dict[str, Tensor]
Heads = tuple[Tensor, Tensor, Tensor]
"""q, k, v, each [B, P, H, K]."""


SMALL = 1 << 20
"""Up to how many values a parameter is kept in float64 too; larger ones are converted each time."""


@dataclass(frozen=True)
class Ingredients:
    """The parameters of a reference, converted to a dtype as they are asked for, and its configuration."""

    config: TransformerConfig
    units: Mapping[str, Tensor]
    converted: dict[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    def __getitem__(self, name: str) -> Tensor:
        if name in self.converted:
            return self.converted[name]
        made = self.units[name].to(self.dtype)
        if made.numel() <= SMALL:
            self.converted[name] = made
        return made

    def coarsely(self) -> Ingredients:
        """The same in float32, in which formulas are quick and can be refused."""
        return Ingredients(self.config, self.units, dtype=torch.float32)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return "unembed.W_U" not in self.units

    @property
    def head(self) -> Tensor:
        """The head as [V, D]."""
        return self.units["embed.W_E"] if self.tied else self.units["unembed.W_U"].t()


def ingredients_of(model: CkptedTransformer) -> Ingredients:
    """The parameters and the configuration of a model."""
    return Ingredients(model.config, units_of(model))


@dataclass(frozen=True)
class Weights:
    """The float64 parameters of one block (or of what surrounds the blocks), converted as they are asked for."""

    model: Ingredients
    prefix: str = ""

    def __getitem__(self, name: str) -> Tensor:
        return self.model[self.prefix + name]


@dataclass(frozen=True)
class Facts:
    """What the formulas of a block know beside the weights.

    Attributes:
        block: Which block.
        eps: LayerNorm's epsilon.
        scale: What the scores are multiplied by.
    """

    block: int
    eps: float
    scale: float


def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w + b


def project(x: Tensor, weights: Weights) -> Heads:
    q, k, v = (
        torch.einsum("bpd,hdk->bphk", x, weights[f"attn.W_{letter}"]) + weights[f"attn.b_{letter}"] for letter in "QKV"
    )
    return q, k, v


def attend(heads: Heads, facts: Facts) -> Tensor:
    """z [B, P, H, K]."""
    return attend_with(heads, facts.scale, 0)


def attend_with(
    heads: Heads,
    scale: float,
    mask: int | Tensor | None,
    fill: float | None = None,
    over: int = -1,
) -> Tensor:
    """Attention by hand, z [B, P, H, K].

    Args:
        heads: q, k and v.
        scale: What scores are multiplied by.
        mask: Where the causal mask ends, as a diagonal; or which keys each query sees [Pq, Pk]; None for no mask.
        fill: What hidden scores become; None for the least number of their dtype.
        over: The axis of softmax.
    """
    q, k, v = (part.transpose(1, 2) for part in heads)
    scores = q @ k.transpose(-1, -2) * scale
    if isinstance(mask, int):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(mask)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min if fill is None else fill)
    return (scores.softmax(over) @ v).transpose(1, 2)


def merge(z: Tensor, W_O: Tensor, b_O: Tensor) -> Tensor:
    return torch.einsum("bphk,hkd->bpd", z, W_O) + b_O


def feed_in(x: Tensor, weights: Weights) -> Tensor:
    return x @ weights["mlp.W_in"] + weights["mlp.b_in"]


def feed_out(x: Tensor, weights: Weights) -> Tensor:
    return x @ weights["mlp.W_out"] + weights["mlp.b_out"]


@dataclass(frozen=True)
class Sublayers:
    """The two halves of one block, each recording what it computes; a wiring puts them together."""

    recipe: Recipe
    weights: Weights
    facts: Facts
    record: Callable[[str, Tensor], Tensor]

    def norm(self, name: str, x: Tensor) -> Tensor:
        """ln1 or ln2."""
        self.record(f"{name}<", x)
        formula = self.recipe.norm if name in self.recipe.norms else layer_norm
        w, b = self.weights[f"{name}.w"], self.weights[f"{name}.b"]
        return self.record(f"{name}>", formula(x, w, b, self.facts.eps))

    def attention(self, x: Tensor) -> Tensor:
        """What is added to the residual stream."""
        for point in ("attn<", "qkv<", "q<", "k<", "v<"):
            self.record(point, x)
        heads = self.recipe.project(x, self.weights)
        for letter, part in zip("qkv", heads, strict=True):
            self.record(f"{letter}>", part)
        z = self.record("O<", self.recipe.attend(heads, self.facts))
        out = self.recipe.merge(z, self.weights["attn.W_O"], self.weights["attn.b_O"])
        self.record("O>", out)
        return self.record("attn>", out)

    def mlp(self, x: Tensor) -> Tensor:
        """What is added to the residual stream."""
        self.record("mlp<", x)
        self.record("in<", x)
        pre = self.record("in>", self.recipe.feed_in(x, self.weights))
        out = self.recipe.feed_out(self.record("out<", self.recipe.activation(pre)), self.weights)
        self.record("out>", out)
        return self.record("mlp>", out)


def pre_norm(block: Sublayers, x: Tensor) -> Tensor:
    """GPT-2's wiring."""
    x = x + block.attention(block.norm("ln1", x))
    return x + block.mlp(block.norm("ln2", x))


@dataclass(frozen=True)
class Recipe:
    """A GPT-2 as formulas; `dataclasses.replace` puts a mistake in the place of one of them.

    Attributes:
        activation: The MLP's activation function.
        embed: What becomes of the token embeddings [B, P, D].
        positions: The rows of W_pos that are read for ids [B, P]; None adds no position embeddings.
        norm: LayerNorm, of the norms that `norms` names.
        blocks: Where the changed formulas hold, None for everywhere; other blocks are right.
        order: The blocks in the order in which they are applied; None for all, in order.
        logits: From ln_final's output and the head [V, D].
        head: The head [V, D]; None for the model's.
    """

    activation: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    positions: Callable[[Tensor], Tensor] | None = field(default=lambda ids: torch.arange(ids.size(1)))
    norm: Callable[[Tensor, Tensor, Tensor, float], Tensor] = layer_norm
    norms: tuple[str, ...] = ("ln1", "ln2", "ln_final")
    project: Callable[[Tensor, Weights], Heads] = project
    attend: Callable[[Heads, Facts], Tensor] = attend
    merge: Callable[[Tensor, Tensor, Tensor], Tensor] = merge
    feed_in: Callable[[Tensor, Weights], Tensor] = feed_in
    feed_out: Callable[[Tensor, Weights], Tensor] = feed_out
    wiring: Callable[[Sublayers, Tensor], Tensor] = pre_norm
    blocks: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    logits: Callable[[Tensor, Tensor], Tensor] = field(default=lambda x, head: x @ head.T)
    head: Tensor | None = None

    def first_change(self, right: Recipe, n_layer: int) -> int:
        """The first block at which a recipe is another than the right one; -1 for the embeddings, `n_layer` behind."""
        if self.embed is not right.embed or self.positions is not right.positions:
            return -1
        if self.order is not None:
            return next((i for i, block in enumerate(self.order) if block != i), len(self.order))
        norms = self.norm is not right.norm and self.norms != ("ln_final",)
        if norms or any(getattr(self, name) is not getattr(right, name) for name in _OF_BLOCKS):
            return 0 if self.blocks is None else min(self.blocks, default=n_layer)
        return n_layer


_OF_BLOCKS = ("activation", "project", "attend", "merge", "feed_in", "feed_out", "wiring")


def right_recipe(model: Ingredients) -> Recipe:
    """The recipe without a mistake."""
    return Recipe(activation=nonlinear.EXACT[model.config.activation_function])


@dataclass(frozen=True)
class Span:
    """Part of a model: from the embeddings or the input of a block, to the end of a block or the logits.

    Attributes:
        ids: [B, P].
        first: The first block; -1 begins with the embeddings.
        last: The last block; `n_layer` ends with the logits.
        residual: What enters the first block, where it is not the embeddings' sum.
    """

    ids: Tensor
    first: int = -1
    last: int = 1 << 30
    residual: Tensor | None = None


def run_recipe(recipe: Recipe, model: Ingredients, span: Span) -> Values:
    """The values of a span by point, checkpoints and "logits" among them."""
    values: Values = {}
    n_layer = model.config.n_layer
    x = span.residual.to(model.dtype) if span.residual is not None else _embeddings(recipe, model, span.ids, values)
    order = tuple(range(n_layer)) if recipe.order is None else recipe.order
    for i in order[max(span.first, 0) : span.last + 1]:
        here = recipe if recipe.blocks is None or i in recipe.blocks else right_recipe(model)
        x = run_block(here, model, i, x, values)
    if span.last >= n_layer:
        _finish(recipe, model, x, values)
    return values


def run_block(recipe: Recipe, model: Ingredients, i: int, x: Tensor, values: Values) -> Tensor:
    """One block; its values go into `values`."""
    prefix = f"blocks.{i}."

    def record(kind: str, value: Tensor) -> Tensor:
        values[prefix + kind] = value
        return value

    facts = Facts(i, model.config.layer_norm_epsilon, model.config.attention_scale(i))
    record("block<", x)
    x = record("block>", recipe.wiring(Sublayers(recipe, Weights(model, prefix), facts, record), x))
    values |= {prefix + ckpt: values[prefix + kind] for ckpt, kind in CANONICAL.items() if prefix + kind in values}
    return x


def _embeddings(recipe: Recipe, model: Ingredients, ids: Tensor, values: Values) -> Tensor:
    x = recipe.embed(model.units["embed.W_E"][ids].to(model.dtype))
    values["embed>"] = values["ckpt_embed"] = x
    if recipe.positions is not None:
        rows = recipe.positions(ids.cpu()).to(ids.device)
        positions = model.units["pos_embed.W_pos"][rows].to(model.dtype).expand_as(x)
        values["pos>"] = values["ckpt_pos_embed"] = positions
        x = x + positions
    return x


def _finish(recipe: Recipe, model: Ingredients, x: Tensor, values: Values) -> None:
    values["ln_final<"] = x
    weights = Weights(model)
    formula = recipe.norm if "ln_final" in recipe.norms else layer_norm
    x = formula(x, weights["ln_final.w"], weights["ln_final.b"], model.config.layer_norm_epsilon)
    values["ln_final>"] = values["ln_final.ckpt_normalized"] = x
    head = model.head if recipe.head is None else recipe.head
    values[LOGITS] = recipe.logits(x, head.to(model.dtype))
