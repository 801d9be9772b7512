"""The mathematics of GPT-NeoX (Black et al. 2022, arXiv:2204.06745), top to bottom, every value through its checkpoint.

    x = W_E[ids]
    for each block:  x = mlp(ln2(x)) + attn(ln1(x), positions) + x            (use_parallel_residual)
    or:              x = attn(ln1(x), positions) + x;  x = mlp(ln2(x)) + x
    logits = ln_final(x) W_U

Operations and their order are those of transformers. Each module can be built from a configuration alone and combined
into other small models; its parameters and checkpoints are those that `schema.py` names below its place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.family.attend import Visible
from pellucid.family.blocks import Architecture, Block, FeedForward, LayerNorm, Whole
from pellucid.family.network import Memory, Network, Run
from pellucid.family.part import LiveView
from pellucid.family.rotary import RotaryAttending, Turn, beside, know_positions, turned
from pellucid.neox import schema
from pellucid.neox.config import GPTNeoXConfig
from pellucid.tap import Tap


def _head_matrices(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(1, (attention.n_head, 3, -1))[:, :, part].transpose(0, 1)

    return LiveView("W_QKV", view, f"W_{'QKV'[part]} [H, D, K], a live view of the stored W_QKV [D, 3D].")


def _head_biases(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(0, (attention.n_head, 3, -1))[:, part]

    return LiveView("b_QKV", view, f"b_{'QKV'[part]} [H, K], a live view of the stored b_QKV [3D].")


class Attention(RotaryAttending):
    """GPT-NeoX's attention: causal, with rotary positions in the first entries of each head.

    Its weights are `W_QKV` [D, 3D] with a head's q|k|v side by side, head after head, and `W_O` [H, K, D]; with
    `attention_bias` also `b_QKV` [3D] and `b_O` [D].
    """

    elsewhere = schema.ATTENTION_ELSEWHERE

    W_Q, W_K, W_V = _head_matrices(0), _head_matrices(1), _head_matrices(2)
    b_Q, b_K, b_V = _head_biases(0), _head_biases(1), _head_biases(2)

    def settle(self, config: GPTNeoXConfig, block: int) -> None:
        super().settle(config, block)
        self.out_pdrop = config.hidden_dropout
        self.has_bias = config.attention_bias
        self.makes_scores = ("W_QKV", "b_QKV") if self.has_bias else ("W_QKV",)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.b_QKV if self.has_bias else None
        qkv = self._products.linear(x, self.W_QKV, bias, rows=Tensor.t)
        q, k, v = qkv.view(*x.shape[:-1], self.n_head, 3, -1).unbind(-2)
        return q, k, v

    def turned(self, values: Tensor, turn: Turn) -> Tensor:
        width = turn[0].size(-1)
        # joined even if nothing is left over: another operation may lay the result out otherwise
        return torch.cat((turned(values[..., :width], turn), values[..., width:]), dim=-1)


class MLP(FeedForward):
    """act(x W_in + b_in) W_out + b_out, with weights `W_in` [D, M], `b_in` [M], `W_out` [M, D] and `b_out` [D]."""

    elsewhere = schema.MLP_ELSEWHERE

    def settle(self, config: GPTNeoXConfig) -> None:
        self.out_pdrop = config.hidden_dropout

    def written(self, x: Tensor, tap: Tap | None) -> Tensor:
        pre = self.ckpt_pre(self._products.linear(x, self.W_in, self.b_in, rows=Tensor.t), tap=tap)
        post = self.ckpt_post(self.act(pre), tap=tap)
        return self._products.linear(post, self.W_out, self.b_out, rows=Tensor.t)


class TransformerBlock(Block):
    """Attention and MLP, each reading a normalized copy of the residual stream and adding to it, at once or in turn."""

    elsewhere = schema.BLOCK_ELSEWHERE
    made_of = (LayerNorm, Attention, MLP)

    def settle(self, config: GPTNeoXConfig) -> None:
        self.parallel = config.use_parallel_residual
        if self.parallel:
            self.words(schema.PARALLEL_BLOCK_ELSEWHERE)

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
        if self.parallel:
            mlp_out = self.mlp(self.ln2(resid_pre, tap=tap), tap=tap)
            return self.resid_post(mlp_out + attn_out + resid_pre, tap=tap)
        resid_mid = self.resid_mid(attn_out + resid_pre, tap=tap)
        mlp_out = self.mlp(self.ln2(resid_mid, tap=tap), tap=tap)
        return self.resid_post(mlp_out + resid_mid, tap=tap)


def _embedded(network: Network, run: Run, tap: Tap | None) -> Tensor:
    """What enters the first block [B, P, D]."""
    embed = network.ckpt_embed(network.embed(run.ids), tap=tap)
    return F.dropout(embed, network.config.hidden_dropout) if network.training else embed


ARCHITECTURE = Architecture(TransformerBlock, LayerNorm, know_positions, _embedded, beside, schema.MODEL_ELSEWHERE)


class Transformer(Whole):
    """GPT-NeoX: ids [B, P] -> logits [B, P, V]."""

    architecture = ARCHITECTURE
