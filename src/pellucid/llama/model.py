"""The mathematics of Llama (Touvron et al. 2023, arXiv:2302.13971), top to bottom, every value through its checkpoint.

    x = W_E[ids]
    for each block:  x = x + attn(ln1(x), positions);  x = x + mlp(ln2(x))
    logits = ln_final(x) W_U

Operations and their order are those of transformers. Each module can be built from a configuration alone and combined
into other small models; its parameters and checkpoints are those that `schema.py` names below its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.attend import Visible
from pellucid.ckpt import name_checkpoints
from pellucid.llama import aliases
from pellucid.llama.attention import Attention
from pellucid.llama.config import LlamaConfig
from pellucid.llama.rotary import Rotary, Turn
from pellucid.network import Embedding, Memory, Network, Run, Unembedding
from pellucid.numerics import nonlinear
from pellucid.numerics.execution import EXACT, Execution
from pellucid.numerics.products import Products, products_of
from pellucid.part import Part, Weights, given, require_weights, under
from pellucid.tap import Tap


class RMSNorm(Part):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    The root is taken in float32, and the quotient is in the dtype of x before it is multiplied by the gain.

    Args:
        config: What the model is.
        weights: `w` [D]; ones if None.
    """

    elsewhere = aliases.NORM

    def __init__(self, config: LlamaConfig, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "ln_final", weights)
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        wide = x.to(torch.float32)
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.ckpt_normalized(self.w * self.ckpt_scaled(scaled.to(x.dtype), tap=tap), tap=tap)

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        """What a direction [..., D] behind this norm reads of its input x: forward(x) · direction = x · reads.

        The root is x's own and counts as a constant, so this is linear in the parts that x is a sum of.
        """
        return self.w * direction * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class MLP(Part):
    """(act(x W_gate) * (x W_in)) W_out (Shazeer 2020, arXiv:2002.05202), with biases where the configuration has them.

    Args:
        config: What the model is.
        weights: `W_gate` and `W_in` [D, M], `W_out` [M, D]; perhaps `b_gate`, `b_in` [M], `b_out` [D]. Fresh if None.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    elsewhere = aliases.MLP

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights | None = None,
        *,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self._products = products or products_of(execution)
        self.take(config, "blocks.0.mlp", weights)
        self.has_bias = config.mlp_bias
        self.act = (nonlinear.FAST if execution.is_fast else nonlinear.EXACT)[config.hidden_act]

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        gate = self.ckpt_gate(self._linear(x, "gate"), tap=tap)
        up = self.ckpt_up(self._linear(x, "in"), tap=tap)
        post = self.ckpt_post(self.act(gate) * up, tap=tap)
        return self.ckpt_mlp_out(self._linear(post, "out"), tap=tap)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        bias = getattr(self, f"b_{name}") if self.has_bias else None
        return self._products.linear(x, getattr(self, f"W_{name}"), bias, rows=Tensor.t)


class TransformerBlock(Part):
    """Attention, then MLP, each reading a normalized copy of the residual stream and adding to it.

    Args:
        config: What the model is.
        weights: Those of its modules, such as `attn.W_O`; fresh if None.
        block: Number of the block.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    elsewhere = aliases.BLOCK

    def __init__(
        self,
        config: LlamaConfig,
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
        self.ln1 = RMSNorm(config, under("ln1", weights))
        self.attn = Attention(config, under("attn", weights), block=block, execution=execution, products=products)
        self.ln2 = RMSNorm(config, under("ln2", weights))
        self.mlp = MLP(config, under("mlp", weights), execution=execution, products=products)
        self.order(config.schema, "blocks.0")
        name_checkpoints(self, f"blocks.{block}")

    def forward(
        self,
        x: Tensor,
        visible: Visible | None = None,
        tap: Tap | None = None,
        remember: Memory | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        resid_pre = self.resid_pre(x, tap=tap)
        attn_out, _ = self.attn(self.ln1(resid_pre, tap=tap), visible, tap=tap, remember=remember, turn=turn)
        resid_mid = self.resid_mid(resid_pre + attn_out, tap=tap)
        mlp_out = self.mlp(self.ln2(resid_mid, tap=tap), tap=tap)
        return self.resid_post(resid_mid + mlp_out, tap=tap)


class Transformer(Network):
    """Llama: ids [B, P] -> logits [B, P, V].

    Args:
        config: What the model is.
        weights: Its stored parameters by name, shaped as `config.schema.stored` says; used as they are, not copied.
            Fresh ones if None.
        execution: How it is run.
    """

    def __init__(self, config: LlamaConfig, weights: Weights | None = None, execution: Execution = EXACT) -> None:
        super().__init__(config, execution)
        build(self, config, weights)

    def transform(self, run: Run, tap: Tap | None = None) -> Tensor:
        return transform(self, run, tap)


def build(network: Network, config: LlamaConfig, weights: Weights | None = None) -> None:
    """Give a network the modules of a Llama around its stored parameters, fresh ones if None."""
    weights = given(config, "", weights)
    require_weights(config.schema, "", weights)
    products, execution = network.products, network.execution
    network.words(aliases.MODEL)
    network.embed = Embedding(config, under("embed", weights))
    network.rotary = Rotary(config.rule, network.embed.W_E.device)
    network.blocks = nn.ModuleList(
        TransformerBlock(config, under(f"blocks.{i}", weights), block=i, execution=execution, products=products)
        for i in range(config.num_hidden_layers)
    )
    network.ln_final = RMSNorm(config, under("ln_final", weights))
    network.unembed = Unembedding(network.embed, weights.get("unembed.W_U"), products)
    network.take(config, "", weights)
    name_checkpoints(network)


def transform(network: Network, run: Run, tap: Tap | None = None) -> Tensor:
    """Tokens -> logits [B, P, V], those of some columns alone, or what would enter the block where the run ends."""
    residual = network.ckpt_embed(network.embed(run.ids), tap=tap) if run.start is None else run.start[1]
    visible, turn = Visible(run.padding), network.rotary(run.positions, residual.dtype)
    for i, block in run.through(network.blocks):
        remember = None if run.cache is None else run.cache.writer(i)
        residual = block(residual, visible=visible, tap=tap, remember=remember, turn=turn)
    if run.end is not None:
        return residual
    normalized = network.ln_final(residual, tap=tap)
    return network.unembed(normalized if run.columns is None else run.columns(normalized))
