"""The mathematics of GPT-2 (Radford et al. 2019), top to bottom, every value through its checkpoint.

    x = W_E[ids] + W_pos[positions]
    for each block:  x = x + attn(ln1(x));  x = x + mlp(ln2(x))
    logits = ln_final(x) W_U

Operations and their order are those of transformers. Each module can be built from a configuration alone and combined
into other small models; its parameters and checkpoints are those that `schema.py` names below its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid import dialects
from pellucid.ckpt import name_checkpoints
from pellucid.errors import UnknownNameError, nearest
from pellucid.gpt2.attention import Attention, Memory, Visible
from pellucid.gpt2.config import TransformerConfig, require_config
from pellucid.numerics import nonlinear
from pellucid.numerics.execution import EXACT, Execution
from pellucid.numerics.products import Products, products_of
from pellucid.parameters import LiveView
from pellucid.part import Part, Weights, given, require_weights, under
from pellucid.tap import Tap

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
        padding: [B, columns], true at real positions, those in the cache included; None if there are no pads.
        cache: Where keys and values of earlier columns are, and where those of these go.
        columns: Chooses the columns whose logits are wanted; None for all.
        start: The first block that runs and what enters it [B, P, D]; None begins with the embeddings.
    """

    ids: Tensor
    positions: Tensor
    padding: Tensor | None = None
    cache: Remembers | None = None
    columns: Columns | None = None
    start: tuple[int, Tensor] | None = None


class Embedding(Part):
    """Token ids -> rows of `W_E` [V, D].

    Args:
        config: What the model is.
        weights: `W_E`; fresh if None.
    """

    weight = LiveView("W_E", lambda _, stored: stored, "`W_E`, under the name that other libraries expect.")

    def __init__(self, config: TransformerConfig, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "embed", weights)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.W_E)


class PosEmbedding(Part):
    """Positions -> rows of `W_pos` [n_ctx, D].

    Args:
        config: What the model is.
        weights: `W_pos`; fresh if None.
    """

    elsewhere = dialects.POS_EMBED

    def __init__(self, config: TransformerConfig, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "pos_embed", weights)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.W_pos)


class LayerNorm(Part):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis (Ba et al. 2016, arXiv:1607.06450).

    Args:
        config: What the model is.
        weights: `w` [D] and `b` [D]; ones and zeros if None.
    """

    elsewhere = dialects.NORM

    def __init__(self, config: TransformerConfig, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "ln_final", weights)
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        w, b = self.w, self.b
        edited = self.ckpt_scaled.replacement(self._scaled(x), tap) if self.ckpt_scaled.is_watched(tap) else None
        if edited is None:
            normalized = F.layer_norm(x, w.shape, w, b, self.eps)
        else:
            normalized = edited.value * w + b
            if edited.rows is not None:
                normalized = torch.where(edited.rows, normalized, F.layer_norm(x, w.shape, w, b, self.eps))
        return self.ckpt_normalized(normalized, tap=tap)

    def _scaled(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.w.shape, eps=self.eps)


class MLP(Part):
    """act(x W_in + b_in) W_out + b_out.

    Args:
        config: What the model is.
        weights: `W_in` [D, M], `b_in` [M], `W_out` [M, D], `b_out` [D]; fresh if None.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    elsewhere = dialects.MLP

    def __init__(
        self,
        config: TransformerConfig,
        weights: Weights | None = None,
        *,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self._products = products or products_of(execution)
        self.take(config, "blocks.0.mlp", weights)
        self.act = (nonlinear.FAST if execution.is_fast else nonlinear.EXACT)[config.activation_function]
        self.resid_pdrop = config.resid_pdrop

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        pre = self.ckpt_pre(self._products.affine(x, self.W_in, self.b_in), tap=tap)
        post = self.ckpt_post(self.act(pre), tap=tap)
        mlp_out = self._products.affine(post, self.W_out, self.b_out)
        if self.training:
            mlp_out = F.dropout(mlp_out, self.resid_pdrop)
        return self.ckpt_mlp_out(mlp_out, tap=tap)


class TransformerBlock(Part):
    """Attention, then MLP, each reading a normalized copy of the residual stream and adding to it.

    Args:
        config: What the model is.
        weights: Those of its modules, such as `attn.W_O`; fresh if None.
        block: Number of the block.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    elsewhere = dialects.BLOCK

    def __init__(
        self,
        config: TransformerConfig,
        weights: Weights | None = None,
        *,
        block: int = 0,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        products = products or products_of(execution)
        weights = given(config, "blocks.0", weights)
        self.take(config, "blocks.0", weights)
        self.ln1 = LayerNorm(config, under("ln1", weights))
        self.attn = Attention(config, under("attn", weights), block=block, execution=execution, products=products)
        self.ln2 = LayerNorm(config, under("ln2", weights))
        self.mlp = MLP(config, under("mlp", weights), execution=execution, products=products)
        self.order(config.schema, "blocks.0")
        name_checkpoints(self, f"blocks.{block}")

    def forward(
        self, x: Tensor, visible: Visible | None = None, tap: Tap | None = None, remember: Memory | None = None
    ) -> Tensor:
        resid_pre = self.resid_pre(x, tap=tap)
        attn_out, _ = self.attn(self.ln1(resid_pre, tap=tap), visible=visible, tap=tap, remember=remember)
        resid_mid = self.resid_mid(attn_out + resid_pre, tap=tap)
        mlp_out = self.mlp(self.ln2(resid_mid, tap=tap), tap=tap)
        return self.resid_post(resid_mid + mlp_out, tap=tap)


class Unembedding(Part):
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

    def __getattr__(self, name: str) -> Any:
        if name == "W_U" and self.__dict__.get("tied"):
            return self._embed[0].W_E.t()
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        if self.tied:
            return self._products.linear(x, self._embed[0].W_E)
        return self._products.linear(x, self.W_U, transposed=True)


class Transformer(Part):
    """GPT-2: ids [B, P] -> logits [B, P, V].

    Args:
        config: What the model is.
        weights: Its stored parameters by name, shaped as `config.schema.stored` says; used as they are, not copied.
            Fresh ones, by GPT-2's initialisation (Radford et al. 2019, section 2.3), if None.
        execution: How it is run.
    """

    def __init__(self, config: TransformerConfig, weights: Weights | None = None, execution: Execution = EXACT) -> None:
        super().__init__()
        require_config(config)
        weights = given(config, "", weights)
        self.config = config
        self.execution = execution
        self.products = products_of(execution)
        require_weights(config.schema, "", weights)
        self.embed = Embedding(config, under("embed", weights))
        self.pos_embed = PosEmbedding(config, under("pos_embed", weights))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config, under(f"blocks.{i}", weights), block=i, execution=execution, products=self.products
            )
            for i in range(config.n_layer)
        )
        self.ln_final = LayerNorm(config, under("ln_final", weights))
        self.unembed = Unembedding(self.embed, weights.get("unembed.W_U"), self.products)
        self.take(config, "", weights)
        name_checkpoints(self)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)
        if name == "embed" and "unembed" in self._modules:  # a new embedding is the tied head, too
            self.unembed._embed = (cast(Embedding, value),)

    def transform(self, run: Run, tap: Tap | None = None) -> Tensor:
        """Tokens -> logits [B, P, V], or those of some columns alone."""
        first, residual = (0, self._embedded(run, tap)) if run.start is None else run.start
        visible = Visible(run.padding)
        for i, block in enumerate(self.blocks):
            if i < first:
                continue
            remember = None if run.cache is None else run.cache.writer(i)
            residual = block(residual, visible=visible, tap=tap, remember=remember)
        normalized = self.ln_final(residual, tap=tap)
        return self.unembed(normalized if run.columns is None else run.columns(normalized))

    def _embedded(self, run: Run, tap: Tap | None) -> Tensor:
        """What enters the first block [B, P, D]."""
        embed = self.ckpt_embed(self.embed(run.ids), tap=tap)
        pos_embed = self.ckpt_pos_embed(self.pos_embed(run.positions), tap=tap)
        residual = embed + pos_embed
        return F.dropout(residual, self.config.embd_pdrop) if self.training else residual

    def parameter(self, name: str) -> Tensor:
        """A parameter, or a live view of one, by its dotted name, such as "blocks.0.attn.W_Q".

        Raises:
            UnknownNameError: No such parameter.
        """
        module, attribute = self._locate(name)
        return getattr(module, attribute)

    def grad(self, name: str) -> Tensor | None:
        """The gradient of a parameter or of a live view of one; None before a backward pass.

        The gradient of a tied `unembed.W_U` is that of the shared tensor, from both of its uses.
        """
        module, attribute = self._locate(name)
        if attribute == "W_U" and self.unembed.tied:
            return None if self.embed.W_E.grad is None else self.embed.W_E.grad.t()
        view = getattr(type(module), attribute, None)
        if not isinstance(view, LiveView):
            return getattr(module, attribute).grad
        stored = getattr(module, view.stored).grad
        return None if stored is None else view.view(module, stored)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Every name that `parameter` takes: stored ones and live views."""
        names = [name for name, _ in self.named_parameters()]
        for path, module in self.named_modules():
            names += [f"{path}.{n}" for n, a in vars(type(module)).items() if isinstance(a, LiveView) and n != "weight"]
        return (*names, "unembed.W_U") if self.unembed.tied else tuple(names)

    def _locate(self, name: str) -> tuple[nn.Module, str]:
        if name not in self.parameter_names:
            raise UnknownNameError(
                f"no such parameter: {name!r}.",
                code="unknown-parameter",
                remedy=f"{nearest(str(name), self.parameter_names)} `model.parameter_names` lists them all.".strip(),
            )
        path, attribute = name.rsplit(".", 1)
        return self.get_submodule(path), attribute
