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
from torch import Tensor

from pellucid.family.attend import Attending, Visible
from pellucid.family.blocks import Architecture, Block, FeedForward, LayerNorm, Whole
from pellucid.family.network import Memory, Network, Run, looked_up
from pellucid.family.part import LiveView, Part, Weights, under
from pellucid.gpt2.config import TransformerConfig
from pellucid.names import attributes
from pellucid.tap import Tap


def _head_matrices(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        d_model, h = stored.size(0), attention.n_head
        return stored.unflatten(1, (3, h, d_model // h))[:, part].transpose(0, 1)

    return LiveView("W_QKV", view, f"W_{'QKV'[part]} [H, D, K], a live view of the stored W_QKV [D, 3D].")


def _head_biases(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(0, (3, attention.n_head, -1))[part]

    return LiveView("b_QKV", view, f"b_{'QKV'[part]} [H, K], a live view of the stored b_QKV [3D].")


class Attention(Attending):
    """GPT-2's attention: causal, its scores scaled by the number of the block in some configurations.

    Its weights are `W_QKV` [D, 3D] with columns q|k|v, each head after head; `b_QKV` [3D]; `W_O` [H, K, D]; `b_O` [D].
    """

    makes_scores = ("W_QKV", "b_QKV")

    W_Q, W_K, W_V = _head_matrices(0), _head_matrices(1), _head_matrices(2)
    b_Q, b_K, b_V = _head_biases(0), _head_biases(1), _head_biases(2)

    def settle(self, config: TransformerConfig, block: int) -> None:
        self.scale = config.attention_scale(block)
        self.attn_pdrop, self.out_pdrop = config.attn_pdrop, config.resid_pdrop
        self.upcast = self.eager and config.reorder_and_upcast_attn  # transformers' sdpa path ignores the field

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self._products.affine(x, self.W_QKV, self.b_QKV)
        q, k, v = qkv.view(*x.shape[:-1], 3, self.n_head, -1).unbind(-3)
        return q, k, v

    def joined(self, z: Tensor) -> Tensor:
        return self._products.affine(z.flatten(2).contiguous(), self.W_O, self.b_O)

    def _products_of(self, q: Tensor, k: Tensor) -> Tensor:
        return self._upcast_scores(q, k) if self.upcast else super()._products_of(q, k)

    def _upcast_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores in float32 or better with the scale inside the product, as `reorder_and_upcast_attn` asks for."""
        b, h, queries, d_head = q.shape
        keys = k.size(2)
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            rows = q.reshape(b * h, queries, d_head).to(dtype)
            columns = k.transpose(-1, -2).reshape(b * h, d_head, keys).to(dtype)
            empty = torch.empty(b * h, queries, keys, dtype=dtype, device=q.device)
            return torch.baddbmm(empty, rows, columns, beta=0, alpha=self.scale).view(b, h, queries, keys)


class PosEmbedding(Part):
    """Positions -> rows of `W_pos` [n_ctx, D].

    Args:
        config: What the model is.
        weights: `W_pos`; fresh if None.
    """

    elsewhere = attributes.POS_EMBED

    def __init__(self, config: TransformerConfig, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "pos_embed", weights)

    def forward(self, positions: Tensor) -> Tensor:
        remedy = "Give positions, not ids: torch.arange(ids.size(1)).expand_as(ids)."
        return looked_up(positions, self.W_pos, "pos_embed", remedy)


class MLP(FeedForward):
    """act(x W_in + b_in) W_out + b_out, with weights `W_in` [D, M], `b_in` [M], `W_out` [M, D] and `b_out` [D]."""

    def settle(self, config: TransformerConfig) -> None:
        self.out_pdrop = config.resid_pdrop

    def written(self, x: Tensor, tap: Tap | None) -> Tensor:
        pre = self.ckpt_pre(self._products.affine(x, self.W_in, self.b_in), tap=tap)
        post = self.ckpt_post(self.act(pre), tap=tap)
        return self._products.affine(post, self.W_out, self.b_out)


class TransformerBlock(Block):
    """Attention, then MLP, each reading a normalized copy of the residual stream and adding to it."""

    made_of = (LayerNorm, Attention, MLP)

    def forward(
        self, x: Tensor, visible: Visible | None = None, tap: Tap | None = None, remember: Memory | None = None
    ) -> Tensor:
        resid_pre = self.resid_pre(x, tap=tap)
        attn_out, _ = self.attn(self.ln1(resid_pre, tap=tap), visible=visible, tap=tap, remember=remember)
        resid_mid = self.resid_mid(attn_out + resid_pre, tap=tap)
        mlp_out = self.mlp(self.ln2(resid_mid, tap=tap), tap=tap)
        return self.resid_post(resid_mid + mlp_out, tap=tap)


def _know_positions(network: Network, config: TransformerConfig, weights: Weights) -> None:
    network.pos_embed = PosEmbedding(config, under("pos_embed", weights))


def _embedded(network: Network, run: Run, tap: Tap | None) -> Tensor:
    """What enters the first block [B, P, D]."""
    embed = network.ckpt_embed(network.embed(run.ids), tap=tap)
    pos_embed = network.ckpt_pos_embed(network.pos_embed(run.positions), tap=tap)
    residual = embed + pos_embed
    return F.dropout(residual, network.config.embd_pdrop) if network.training else residual


ARCHITECTURE = Architecture(TransformerBlock, LayerNorm, _know_positions, _embedded)


class Transformer(Whole):
    """GPT-2: ids [B, P] -> logits [B, P, V]; fresh weights are GPT-2's (Radford et al. 2019, section 2.3)."""

    architecture = ARCHITECTURE
