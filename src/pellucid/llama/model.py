"""The mathematics of Llama (Touvron et al. 2023, arXiv:2302.13971), top to bottom, every value through its checkpoint.

    x = W_E[ids]
    for each block:  x = x + attn(ln1(x), positions);  x = x + mlp(ln2(x))
    logits = ln_final(x) W_U

Operations and their order are those of transformers. Each module can be built from a configuration alone and combined
into other small models; its parameters and checkpoints are those that `schema.py` names below its place.
"""

from __future__ import annotations

from torch import Tensor

from pellucid.family.attend import Visible
from pellucid.family.blocks import Architecture, Block, FeedForward, RMSNorm, Whole
from pellucid.family.network import Memory, Network, Run
from pellucid.family.rotary import RotaryAttending, Turn, beside, know_positions
from pellucid.llama import schema
from pellucid.llama.config import LlamaConfig
from pellucid.tap import Tap


class Attention(RotaryAttending):
    """Llama's attention: causal, with rotary positions and heads of keys and values that several queries may share.

    Its weights are `W_Q` [H, D, K], `W_K` and `W_V` [G, D, K] of G heads that H / G queries share each, and `W_O`
    [H, K, D]; with `attention_bias` also `b_Q` [H, K], `b_K` and `b_V` [G, K], `b_O` [D].
    """

    elsewhere = schema.ATTENTION_ELSEWHERE

    def settle(self, config: LlamaConfig, block: int) -> None:
        super().settle(config, block)
        self.has_bias = config.attention_bias
        self.makes_scores = ("W_Q", "W_K", "b_Q", "b_K") if self.has_bias else ("W_Q", "W_K")

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self._per_head(x, letter) for letter in "QKV")
        return q, k, v

    def _per_head(self, x: Tensor, letter: str) -> Tensor:
        """x [B, P, D] -> queries, keys or values [B, P, H, K]."""
        bias = getattr(self, f"b_{letter}").flatten() if self.has_bias else None
        product = self._products.linear(x, getattr(self, f"W_{letter}"), bias, rows=_head_rows)
        return product.view(*x.shape[:-1], -1, self.d_head)


def _head_rows(matrices: Tensor) -> Tensor:
    """[H, D, K] -> [H K, D], as the memory lies."""
    return matrices.transpose(1, 2).flatten(0, 1)


class MLP(FeedForward):
    """(act(x W_gate) * (x W_in)) W_out (Shazeer 2020, arXiv:2002.05202).

    Its weights are `W_gate` and `W_in` [D, M], `W_out` [M, D]; with `mlp_bias` also `b_gate`, `b_in` [M], `b_out` [D].
    """

    elsewhere = schema.MLP_ELSEWHERE

    def settle(self, config: LlamaConfig) -> None:
        self.has_bias = config.mlp_bias

    def written(self, x: Tensor, tap: Tap | None) -> Tensor:
        gate = self.ckpt_gate(self._linear(x, "gate"), tap=tap)
        up = self.ckpt_up(self._linear(x, "in"), tap=tap)
        post = self.ckpt_post(self.act(gate) * up, tap=tap)
        return self._linear(post, "out")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        bias = getattr(self, f"b_{name}") if self.has_bias else None
        return self._products.linear(x, getattr(self, f"W_{name}"), bias, rows=Tensor.t)


class TransformerBlock(Block):
    """Attention, then MLP, each reading a normalized copy of the residual stream and adding to it."""

    elsewhere = schema.BLOCK_ELSEWHERE
    made_of = (RMSNorm, Attention, MLP)

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


def _embedded(network: Network, run: Run, tap: Tap | None) -> Tensor:
    """What enters the first block [B, P, D]."""
    return network.ckpt_embed(network.embed(run.ids), tap=tap)


ARCHITECTURE = Architecture(TransformerBlock, RMSNorm, know_positions, _embedded, beside, schema.MODEL_ELSEWHERE)


class Transformer(Whole):
    """Llama: ids [B, P] -> logits [B, P, V]."""

    architecture = ARCHITECTURE
