"""The mathematics of GPT-2 (Radford et al. 2019), top to bottom, every value through its checkpoint.

    x = W_E[ids] + W_pos[positions]
    for each block:  x = x + attn(ln1(x));  x = x + mlp(ln2(x))
    logits = ln_final(x) W_U

Operations and their order are those of transformers. Each module can be built from a configuration alone and combined
into other small models; its parameters and checkpoints are those that `schema.py` names below its place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid import dialects
from pellucid.ckpt import name_checkpoints
from pellucid.gpt2.attention import Attention, Visible
from pellucid.gpt2.config import TransformerConfig
from pellucid.network import Embedding, Memory, Network, Run, Unembedding
from pellucid.numerics import nonlinear
from pellucid.numerics.execution import EXACT, Execution
from pellucid.numerics.products import Products, products_of
from pellucid.part import Part, Weights, given, require_weights, under
from pellucid.tap import Tap


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

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        """What a direction behind this norm reads of its input: forward(x) · direction = x · reads + b · direction.

        The statistics are x's own and count as constants, so this is linear in the parts that x is a sum of.

        Args:
            direction: [..., D].
            x: [B, P, D].
        """
        gained = self.w * direction
        centred = gained - gained.mean(-1, keepdim=True)
        return centred * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + self.eps)

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


class Transformer(Network):
    """GPT-2: ids [B, P] -> logits [B, P, V].

    Args:
        config: What the model is.
        weights: Its stored parameters by name, shaped as `config.schema.stored` says; used as they are, not copied.
            Fresh ones, by GPT-2's initialisation (Radford et al. 2019, section 2.3), if None.
        execution: How it is run.
    """

    def __init__(self, config: TransformerConfig, weights: Weights | None = None, execution: Execution = EXACT) -> None:
        super().__init__(config, execution)
        build(self, config, weights)

    def transform(self, run: Run, tap: Tap | None = None) -> Tensor:
        return transform(self, run, tap)


def build(network: Network, config: TransformerConfig, weights: Weights | None = None) -> None:
    """Give a network the modules of a GPT-2 around its stored parameters, fresh ones if None."""
    weights = given(config, "", weights)
    require_weights(config.schema, "", weights)
    products, execution = network.products, network.execution
    network.embed = Embedding(config, under("embed", weights))
    network.pos_embed = PosEmbedding(config, under("pos_embed", weights))
    network.blocks = nn.ModuleList(
        TransformerBlock(config, under(f"blocks.{i}", weights), block=i, execution=execution, products=products)
        for i in range(config.n_layer)
    )
    network.ln_final = LayerNorm(config, under("ln_final", weights))
    network.unembed = Unembedding(network.embed, weights.get("unembed.W_U"), products)
    network.take(config, "", weights)
    name_checkpoints(network)


def transform(network: Network, run: Run, tap: Tap | None = None) -> Tensor:
    """Tokens -> logits [B, P, V], those of some columns alone, or what would enter the block where the run ends."""
    residual = _embedded(network, run, tap) if run.start is None else run.start[1]
    visible = Visible(run.padding)
    for i, block in run.through(network.blocks):
        remember = None if run.cache is None else run.cache.writer(i)
        residual = block(residual, visible=visible, tap=tap, remember=remember)
    if run.end is not None:
        return residual
    normalized = network.ln_final(residual, tap=tap)
    return network.unembed(normalized if run.columns is None else run.columns(normalized))


def _embedded(network: Network, run: Run, tap: Tap | None) -> Tensor:
    """What enters the first block [B, P, D]."""
    embed = network.ckpt_embed(network.embed(run.ids), tap=tap)
    pos_embed = network.ckpt_pos_embed(network.pos_embed(run.positions), tap=tap)
    residual = embed + pos_embed
    return F.dropout(residual, network.config.embd_pdrop) if network.training else residual
