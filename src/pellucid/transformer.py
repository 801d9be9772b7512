"""The mathematics of GPT-2 (Radford et al. 2019), top to bottom, every value through its checkpoint.

    x = W_E[ids] + W_pos[positions]
    for each block:  x = x + attn(ln1(x));  x = x + mlp(ln2(x))
    logits = ln_final(x) W_U

Modules are built around given tensors, never around fresh ones: a file that is mapped stays mapped, and the
same constructor serves trained and new weights. Operations and their order are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid import dialects, nonlinear
from pellucid.attention import Attention, Memory, Visible
from pellucid.ckpt import Ckpt, Layer, name_checkpoints
from pellucid.config import TransformerConfig, require_config
from pellucid.errors import WeightsError
from pellucid.execution import Execution
from pellucid.parameters import LiveView, ViewedModule
from pellucid.products import Products, products_of
from pellucid.schema import Parameter
from pellucid.tap import Tap

MLPWeights = tuple[Tensor, Tensor, Tensor, Tensor]
"""W_in [D, M], b_in [M], W_out [M, D], b_out [D]."""

Weights = Mapping[str, Tensor]
"""Stored parameter name -> tensor; `config.schema.stored` lists the names and shapes."""


def fresh_weights(config: TransformerConfig) -> dict[str, Tensor]:
    """GPT-2's initialisation (Radford et al. 2019, section 2.3): normal matrices, zero biases, unit gains.

    The matrices that write into the residual stream are scaled by 1/sqrt(2 n_layer). Draws from torch's global
    generator.
    """
    require_config(config)
    schema = config.schema
    with torch.inference_mode(False), torch.no_grad():  # or the model could never be trained
        return {p.name: _fresh(p, schema.shape_of(p), config) for p in schema.parameters if p.is_stored}


def _fresh(parameter: Parameter, shape: tuple[int, ...], config: TransformerConfig) -> Tensor:
    if parameter.initial in ("ones", "zeros"):
        return torch.full(shape, float(parameter.initial == "ones"))
    std = config.initializer_range
    if parameter.initial == "residual":
        std *= (2 * config.n_layer) ** -0.5
    if parameter.name == "unembed.W_U":  # in memory [V, D], as in the reference, whose product reads rows of the head
        return torch.empty(shape[::-1]).normal_(std=std).t()
    return torch.empty(shape).normal_(std=std)


Columns = Callable[[Tensor], Tensor]
"""[B, P, D] -> some of its columns, [B, C, D]."""


def last_column(values: Tensor) -> Tensor:
    """[B, P, D] -> [B, 1, D]."""
    return values[:, -1:]


class Remembers(Protocol):
    """Where keys and values of earlier columns are, such as a `KeyValueCache`."""

    def writer(self, block: int) -> Memory:
        """What one block calls with its new keys and values."""
        ...


@dataclass(frozen=True)
class Run:
    """What goes through the model.

    Args:
        ids: [B, P].
        positions: [B, P].
        padding: [B, columns], true at real positions, those in the cache included; None where there are no pads.
        cache: Where keys and values of earlier columns are, and where those of these go.
        columns: Chooses the columns whose logits are wanted; None for all.
    """

    ids: Tensor
    positions: Tensor
    padding: Tensor | None = None
    cache: Remembers | None = None
    columns: Columns | None = None


class Embedding(ViewedModule):
    """Token ids -> rows of `W_E` [V, D]."""

    weight = LiveView("W_E", lambda _, stored: stored, "`W_E`, under the name that other libraries expect.")

    def __init__(self, W_E: Tensor) -> None:
        super().__init__()
        self.W_E = nn.Parameter(W_E)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.W_E)


class PosEmbedding(Layer):
    """Positions -> rows of `W_pos` [n_ctx, D]."""

    elsewhere = dialects.POS_EMBED

    def __init__(self, W_pos: Tensor) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(W_pos)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.W_pos)


class LayerNorm(Layer):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis (Ba et al. 2016, arXiv:1607.06450)."""

    elsewhere = dialects.NORM

    def __init__(self, w: Tensor, b: Tensor, eps: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(w), nn.Parameter(b)
        self.eps = eps
        self.ckpt_scaled = Ckpt()
        self.ckpt_normalized = Ckpt()

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        w, b = self.w, self.b
        scaled = self.ckpt_scaled.replacement(self._scaled(x), tap) if self.ckpt_scaled.is_watched(tap) else None
        normalized = F.layer_norm(x, w.shape, w, b, self.eps) if scaled is None else scaled * w + b
        return self.ckpt_normalized(normalized, tap=tap)

    def _scaled(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.w.shape, eps=self.eps)


class MLP(Layer):
    """act(x W_in + b_in) W_out + b_out."""

    elsewhere = dialects.MLP

    def __init__(self, config: TransformerConfig, weights: MLPWeights, products: Products, *, fast: bool) -> None:
        super().__init__()
        self._products = products
        self.W_in, self.b_in, self.W_out, self.b_out = (nn.Parameter(tensor) for tensor in weights)
        self.act = (nonlinear.FAST if fast else nonlinear.EXACT)[config.activation_function]
        self.resid_pdrop = config.resid_pdrop
        self.ckpt_pre = Ckpt()
        self.ckpt_post = Ckpt()
        self.ckpt_mlp_out = Ckpt()

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        pre = self.ckpt_pre(self._products.affine(x, self.W_in, self.b_in), tap=tap)
        post = self.ckpt_post(self.act(pre), tap=tap)
        mlp_out = self._products.affine(post, self.W_out, self.b_out)
        if self.training:
            mlp_out = F.dropout(mlp_out, self.resid_pdrop)
        return self.ckpt_mlp_out(mlp_out, tap=tap)


class TransformerBlock(Layer):
    """Attention, then MLP, each reading a normalized copy of the residual stream and adding to it."""

    elsewhere = dialects.BLOCK

    def __init__(
        self, config: TransformerConfig, block: int, weights: Weights, products: Products, execution: Execution
    ) -> None:
        super().__init__()
        self.resid_pre = Ckpt()
        self.ln1 = LayerNorm(weights["ln1.w"], weights["ln1.b"], config.layer_norm_epsilon)
        self.attn = Attention(
            config,
            block,
            (weights["attn.W_QKV"], weights["attn.b_QKV"], weights["attn.W_O"], weights["attn.b_O"]),
            products,
            execution,
        )
        self.resid_mid = Ckpt()
        self.ln2 = LayerNorm(weights["ln2.w"], weights["ln2.b"], config.layer_norm_epsilon)
        self.mlp = MLP(
            config,
            (weights["mlp.W_in"], weights["mlp.b_in"], weights["mlp.W_out"], weights["mlp.b_out"]),
            products,
            fast=execution.is_fast,
        )
        self.resid_post = Ckpt()

    def forward(
        self, x: Tensor, visible: Visible | None = None, tap: Tap | None = None, remember: Memory | None = None
    ) -> Tensor:
        resid_pre = self.resid_pre(x, tap=tap)
        attn_out, _ = self.attn(self.ln1(resid_pre, tap=tap), visible=visible, tap=tap, remember=remember)
        resid_mid = self.resid_mid(attn_out + resid_pre, tap=tap)
        mlp_out = self.mlp(self.ln2(resid_mid, tap=tap), tap=tap)
        return self.resid_post(resid_mid + mlp_out, tap=tap)


class Unembedding(Layer):
    """Normalized residual stream -> logits, by `W_U` [D, V].

    Tied, it owns no parameter and `W_U` is the transposed live view of `W_E`; untied, `W_U` is a parameter whose
    memory is that of a [V, D] head.
    """

    elsewhere = dialects.UNEMBED

    def __init__(self, embed: Embedding, W_U: Tensor | None, products: Products) -> None:
        super().__init__()
        self._products = products
        self._embed = (embed,)  # in a tuple, so that the embedding is not registered a second time
        self.tied = W_U is None
        if W_U is not None:
            self.W_U = nn.Parameter(W_U)

    @property
    def weight(self) -> Tensor:
        """The head as [V, D], under the name that other libraries expect."""
        return self._embed[0].W_E if self.tied else self.W_U.t()

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight" or (name == "W_U" and self.__dict__.get("tied")):
            raise AttributeError(
                f"unembed.{name} is a live view of the stored parameter "
                f"{'embed.W_E' if self.__dict__.get('tied') else 'unembed.W_U'}; write into it: "
                "`with torch.no_grad(): model.unembed.W_U.copy_(value)`"
            )
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name == "W_U" and self.__dict__.get("tied"):
            return self._embed[0].W_E.t()
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        if self.tied:
            return self._products.linear(x, self._embed[0].W_E)
        return self._products.linear(x, self.W_U, transposed=True)


class Transformer(nn.Module):
    """GPT-2: ids [B, P] -> logits [B, P, V].

    Args:
        config: What the model is.
        weights: Its stored parameters by name, shaped as `config.schema.stored` says; used as they are, not copied.
        execution: How it is run.
    """

    def __init__(self, config: TransformerConfig, weights: Weights, execution: Execution) -> None:
        super().__init__()
        _check_weights(config, weights)
        self.config = config
        self.execution = execution
        self.products = products_of(execution)
        self.embed = Embedding(weights["embed.W_E"])
        self.pos_embed = PosEmbedding(weights["pos_embed.W_pos"])
        self.blocks = nn.ModuleList(
            TransformerBlock(config, i, _under(f"blocks.{i}.", weights), self.products, execution)
            for i in range(config.n_layer)
        )
        self.ln_final = LayerNorm(weights["ln_final.w"], weights["ln_final.b"], config.layer_norm_epsilon)
        self.unembed = Unembedding(self.embed, weights.get("unembed.W_U"), self.products)
        self.ckpt_embed = Ckpt()
        self.ckpt_pos_embed = Ckpt()
        name_checkpoints(self)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)
        if name == "embed" and "unembed" in self._modules:  # a new embedding is the tied head, too
            self.unembed._embed = (cast(Embedding, value),)

    def transform(self, run: Run, tap: Tap | None = None) -> Tensor:
        """Tokens -> logits [B, P, V], or those of some columns alone."""
        embed = self.ckpt_embed(self.embed(run.ids), tap=tap)
        pos_embed = self.ckpt_pos_embed(self.pos_embed(run.positions), tap=tap)
        residual = embed + pos_embed
        if self.training:
            residual = F.dropout(residual, self.config.embd_pdrop)
        visible = Visible(run.padding)
        for i, block in enumerate(self.blocks):
            remember = None if run.cache is None else run.cache.writer(i)
            residual = block(residual, visible=visible, tap=tap, remember=remember)
        normalized = self.ln_final(residual, tap=tap)
        return self.unembed(normalized if run.columns is None else run.columns(normalized))


def _check_weights(config: TransformerConfig, weights: Weights) -> None:
    require_config(config)
    expected = config.schema.stored
    wrong = [
        f"{name}: {list(weights[name].shape) if name in weights else 'missing'}, expected {list(shape)}"
        for name, shape in expected.items()
        if name not in weights or tuple(weights[name].shape) != shape
    ]
    wrong += [f"{name}: not a parameter of this configuration" for name in weights if name not in expected]
    if wrong:
        raise WeightsError(
            f"weights do not fit the configuration: {'; '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}.",
            code="weights-misfit",
            remedy="Give each parameter that config.schema.stored lists, in that shape.",
        )


def _under(prefix: str, weights: Weights) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
