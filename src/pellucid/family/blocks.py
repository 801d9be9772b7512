"""What the models of all families share: norms, blocks built around given weights, and the way through a network.

A family's own file says what its attention and its MLP compute and how a block adds them to the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.errors import ShapeError
from pellucid.family.attend import Attending, Visible
from pellucid.family.json_config import Config
from pellucid.family.network import Embedding, Memory, Network, Run, Unembedding
from pellucid.family.part import MISREAD, Part, Weights, given, require_vectors, require_weights, under
from pellucid.names import attributes
from pellucid.numerics import nonlinear
from pellucid.numerics.products import EXACT, Execution, Products, products_of
from pellucid.tap import Tap, name_checkpoints


class Norm(Part):
    """A norm over the last axis, with the epsilon of the configuration."""

    elsewhere = attributes.NORM
    centres: ClassVar[bool]
    """Whether the mean is subtracted."""

    def __init__(self, config: Config, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "ln_final", weights)
        self.eps = config.epsilon

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """x [B, P, D], normalized."""
        raise NotImplementedError

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        """What a direction [..., D] reads of this norm's input x [B, P, D]: forward(x) · d = x · reads + b · d.

        The statistics are x's own and count as constants, so this is linear in the parts that x is a sum of.
        """
        raise NotImplementedError


class LayerNorm(Norm):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis (Ba et al. 2016, arXiv:1607.06450); `w` and `b` [D]."""

    centres = True

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        w, b = self.w, self.b
        try:
            edited = self.ckpt_scaled.replacement(self._scaled(x), tap) if self.ckpt_scaled.is_watched(tap) else None
            if edited is None:
                normalized = F.layer_norm(x, w.shape, w, b, self.eps)
            else:
                normalized = edited.value * w + b
                if edited.rows is not None:
                    normalized = torch.where(edited.rows, normalized, F.layer_norm(x, w.shape, w, b, self.eps))
        except MISREAD:
            require_vectors(self, x, w, len(w))
            raise
        return self.ckpt_normalized(normalized, tap=tap)

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        gained = self.w * direction
        centred = gained - gained.mean(-1, keepdim=True)
        return centred * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + self.eps)

    def _scaled(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.w.shape, eps=self.eps)


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    The root is taken in float32, and the quotient is in the dtype of x before it is multiplied by the gain `w` [D].
    """

    centres = False
    elsewhere = {name: said for name, said in attributes.NORM.items() if name != "bias"} | {
        "variance_epsilon": "{here}.eps"
    }

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        w = self.w
        if not isinstance(x, Tensor) or x.shape[-1:] != w.shape or not x.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            require_vectors(self, x, w, len(w))  # torch would repeat a single number, or round to whole ones
        wide = x.to(torch.float32)
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.ckpt_normalized(w * self.ckpt_scaled(scaled.to(x.dtype), tap=tap), tap=tap)

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        return self.w * direction * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class FeedForward(Part):
    """The MLP of a block; a family says what it computes."""

    elsewhere = attributes.MLP
    out_pdrop = 0.0
    """The rate of the dropout before `mlp_out`."""

    def __init__(
        self,
        config: Config,
        weights: Weights | None = None,
        *,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self._products = products or products_of(execution)
        self.take(config, "blocks.0.mlp", weights)
        self.act = (nonlinear.FAST if execution.is_fast else nonlinear.EXACT)[config.activation]
        self.settle(config)

    def settle(self, config: Any) -> None:
        """Keep what else the configuration says."""

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """x [B, P, D] -> mlp_out [B, P, D]."""
        try:
            mlp_out = self.written(x, tap)
        except MISREAD:
            require_vectors(self, x, self.W_in, len(self.W_in))
            raise
        if self.training and self.out_pdrop:
            mlp_out = F.dropout(mlp_out, self.out_pdrop)
        return self.ckpt_mlp_out(mlp_out, tap=tap)

    def written(self, x: Tensor, tap: Tap | None) -> Tensor:
        """x [B, P, D] -> mlp_out [B, P, D], before its dropout and its checkpoint."""
        raise NotImplementedError


class Block(Part):
    """Two norms, attention and an MLP; a family says of which kinds, and how they add to the residual stream."""

    elsewhere = attributes.BLOCK
    made_of: ClassVar[tuple[type[Norm], type[Attending], type[FeedForward]]]
    """Classes of its norms, its attention and its MLP."""

    def __init__(
        self,
        config: Config,
        weights: Weights | None = None,
        *,
        block: int = 0,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        norm, attention, mlp = self.made_of
        products = products or products_of(execution)
        weights = given(config, "blocks.0", weights)
        self.take(config, "blocks.0", weights)
        self.ln1 = norm(config, under("ln1", weights))
        self.attn = attention(config, under("attn", weights), block=block, execution=execution, products=products)
        self.ln2 = norm(config, under("ln2", weights))
        self.mlp = mlp(config, under("mlp", weights), execution=execution, products=products)
        self.settle(config)
        self.order(config.schema, "blocks.0")
        name_checkpoints(self, f"blocks.{block}")

    def settle(self, config: Any) -> None:
        """Keep what else the configuration says."""


def _nothing(network: Network, run: Run, residual: Tensor) -> Mapping[str, Any]:  # a lambda could not be pickled
    return {}


@dataclass(frozen=True)
class Architecture:
    """The modules of a family's network, and the way through them."""

    block: type[Block]  # the class of its blocks
    norm: type[Norm]  # the class of its last norm
    # puts what the network knows positions by into it, from the configuration and the weights
    positions: Callable[[Network, Any, Weights], None]
    # what enters the first block [B, P, D], through the checkpoints before it
    enter: Callable[[Network, Run, Tap | None], Tensor]
    # what every block of a run is given beside the stream, from that stream
    beside: Callable[[Network, Run, Tensor], Mapping[str, Any]] = _nothing
    # words of other libraries for what a network holds, as in `pellucid.names.attributes`
    words: Mapping[str, str] = field(default_factory=lambda: attributes.MODEL)

    def build(self, network: Network, config: Any, weights: Weights | None = None) -> None:
        """Give a network the family's modules around its stored parameters, fresh ones if None."""
        weights = given(config, "", weights)
        require_weights(config.schema, "", weights)
        network.architecture = self
        products, execution = network.products, network.execution
        network.words(self.words)
        network.embed = Embedding(config, under("embed", weights))
        self.positions(network, config, weights)
        network.blocks = nn.ModuleList(
            self.block(config, under(f"blocks.{i}", weights), block=i, execution=execution, products=products)
            for i in range(config.sizes["layer"])
        )
        network.ln_final = self.norm(config, under("ln_final", weights))
        network.unembed = Unembedding(network.embed, weights.get("unembed.W_U"), products)
        network.take(config, "", weights)
        name_checkpoints(network)

    def transform(self, network: Network, run: Run, tap: Tap | None = None) -> Tensor:
        """Tokens -> logits [B, P, V], those of some columns alone, or what would enter the block where the run ends."""
        residual = self.enter(network, run, tap) if run.start is None else run.start[1]
        visible, beside = Visible(run.padding, run.texts), self.beside(network, run, residual)
        for i, block in run.through(network.blocks):
            remember: Memory | None = None if run.cache is None else run.cache.writer(i)
            residual = block(residual, visible=visible, tap=tap, remember=remember, **beside)
        if run.end is not None:
            return residual
        normalized = network.ln_final(residual, tap=tap)
        return network.unembed(normalized if run.columns is None else run.columns(normalized))


class Whole(Network):
    """A family's network: ids [B, P] -> logits [B, P, V]; given weights are used as they are, None makes fresh ones."""

    def __init__(self, config: Config, weights: Weights | None = None, execution: Execution = EXACT) -> None:
        super().__init__(config, execution)
        self.architecture.build(self, config, weights)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits of ids [B, P], at the positions [B, P], [1, P] or [P] given, else from 0 on."""
        if not isinstance(ids, Tensor) or ids.dim() != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            remedy = "Pass a matrix of ids, torch.tensor([[1, 2, 3]]); a pl.CkptedTransformer takes texts, too."
            raise _misshapen(ids, "ids [B, P]", remedy)
        if positions is None:
            positions = torch.arange(ids.size(1), device=ids.device)
        elif not isinstance(positions, Tensor) or positions.shape not in (ids.shape, (1, ids.size(1)), ids.shape[1:]):  # pyright: ignore[reportUnnecessaryIsInstance]
            remedy = "Pass a position for each id, torch.arange(ids.size(1)).expand_as(ids)."
            raise _misshapen(positions, f"positions {list(ids.shape)}", remedy)
        return self.transform(Run(ids, positions.expand_as(ids)))


def _misshapen(given: object, expected: str, remedy: str) -> ShapeError:
    what = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    return ShapeError(f"transformer: {what} given, expected {expected}.", code="module-input", remedy=remedy)
