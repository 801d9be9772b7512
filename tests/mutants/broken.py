"""Ways to break the library in one place, until the patch is undone; `test_core_mutants` says who must notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pellucid as pl
from pellucid import tap as ckpt
from pellucid.family import network
from pellucid.gpt2 import model as attention
from pellucid.gpt2 import model as transformer
from pellucid.numerics import nonlinear, products
from pellucid.run import edit
from pellucid.run.region import Region
from pellucid.run.taps import Recorder
from pellucid.schema import Axis
from pellucid.tap import StopAfter
from pellucid.text import batching as batches

Patch = pytest.MonkeyPatch


def replaced(owner: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def wrapped(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """`owner.name` replaced by what `make` makes of it."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def other_epsilon(epsilon: float) -> Callable[[Patch], None]:
    def make(init: Any) -> Any:
        return lambda self, config, weights: init(self, config.replace(layer_norm_epsilon=epsilon), weights)

    return wrapped(transformer.LayerNorm, "__init__", make)


def other_activation(function: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setitem(nonlinear.EXACT, "gelu_new", function)


def other_scale(scale: Callable[[pl.TransformerConfig, int], float]) -> Callable[[Patch], None]:
    return replaced(pl.TransformerConfig, "attention_scale", scale)


def transposed_projection(patch: Patch) -> None:
    plain = products.affine

    def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        square = weight.size(0) == weight.size(1)
        return plain(x, weight.t() if square else weight, bias)

    patch.setattr(products, "affine", affine)


def without_biases(patch: Patch) -> None:
    plain = products.affine
    patch.setattr(products, "affine", lambda x, weight, bias: plain(x, weight, torch.zeros_like(bias)))


def roles(order: tuple[int, int, int]) -> Callable[[Patch], None]:
    """Queries, keys and values taken from other thirds of the projection."""

    def breaks(patch: Patch) -> None:
        plain = products.affine

        def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            out = plain(x, weight, bias)
            thirds = out.chunk(3, -1)
            return torch.cat([thirds[i] for i in order], -1) if weight.size(1) == 3 * weight.size(0) else out

        patch.setattr(products, "affine", affine)

    return breaks


def heads_split_the_other_way(patch: Patch) -> None:
    """Columns read as (K, H) instead of (H, K)."""
    plain = products.affine

    def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = plain(x, weight, bias)
        if weight.size(1) != 3 * weight.size(0):
            return out
        return out.unflatten(-1, (3, 12, 4)).transpose(-1, -2).flatten(-3)

    patch.setattr(products, "affine", affine)


def strided_keys(patch: Patch) -> None:
    """Keys and values as they lie between queries, in one tensor."""

    def make(init: Any) -> Any:
        def strided(self: Any, *arguments: Any, **options: Any) -> None:
            init(self, *arguments, **options)
            self.exact = False

        return strided

    wrapped(attention.Attention, "__init__", make)(patch)


def strided_heads(patch: Patch) -> None:
    """The values of all heads as the explicit path leaves them, head after head."""
    plain = products.affine
    patch.setattr(
        products,
        "affine",
        lambda x, weight, bias: plain(
            x.transpose(1, 2).contiguous().transpose(1, 2) if weight.size(0) == weight.size(1) else x, weight, bias
        ),
    )


def fused(change: Callable[[Tensor, Tensor], dict[str, Any]]) -> Callable[[Patch], None]:
    """Our attention's calls of torch's fused kernel, and nobody else's, get options of `change(queries, keys)` too."""

    def make(forward: Any) -> Any:
        def attend(self: Any, *given: Any, **options: Any) -> Any:
            plain = F.scaled_dot_product_attention

            def call(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
                return plain(q, k, v, **{**how, **change(q, k)})

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(F, "scaled_dot_product_attention", call)
                return forward(self, *given, **options)

        return attend

    return wrapped(attention.Attention, "forward", make)


def causal_off_by(diagonal: int) -> Callable[[Patch], None]:
    def options(q: Tensor, k: Tensor) -> dict[str, Any]:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril(diagonal)
        mask[:, 0] = True
        return {"attn_mask": mask, "is_causal": False}

    return fused(options)


def positions_shifted(patch: Patch) -> None:
    """Left-padded rows start at position one."""
    wrapped(batches, "positions_of", lambda plain: lambda mask: plain(mask) + (~mask[:, :1]).long())(patch)


def rectangular_positions(patch: Patch) -> None:
    patch.setattr(batches, "positions_of", lambda mask: torch.arange(mask.size(1)).expand_as(mask))


def pads_seen(patch: Patch) -> None:
    """A run that knows of no pads."""
    plain = pl.CkptedTransformer.transform
    patch.setattr(
        pl.CkptedTransformer, "transform",
        lambda self, run, tap=None: plain(self, dataclasses.replace(run, padding=None), tap),
    )  # fmt: skip


def untied_head(patch: Patch) -> None:
    generator = torch.Generator().manual_seed(5)

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(x, torch.randn(self.weight.shape, generator=generator).to(x))

    patch.setattr(network.Unembedding, "forward", forward)


def no_affine(patch: Patch) -> None:
    def forward(self: Any, x: Tensor, tap: Any = None) -> Tensor:
        if self.ckpt_scaled.is_watched(tap):
            self.ckpt_scaled.replacement(F.layer_norm(x, self.w.shape, eps=self.eps), tap)
        return self.ckpt_normalized(F.layer_norm(x, self.w.shape, eps=self.eps), tap)

    patch.setattr(transformer.LayerNorm, "forward", forward)


def unbiased_variance(patch: Patch) -> None:
    def forward(self: Any, x: Tensor, tap: Any = None) -> Tensor:
        if self.ckpt_scaled.is_watched(tap):
            variance, mean = torch.var_mean(x, dim=-1, correction=1, keepdim=True)
            self.ckpt_scaled.replacement((x - mean) / torch.sqrt(variance + self.eps), tap)
        return self.ckpt_normalized(F.layer_norm(x, self.w.shape, self.w, self.b, self.eps), tap)

    patch.setattr(transformer.LayerNorm, "forward", forward)


def no_final_norm(patch: Patch) -> None:
    def init(plain: Any) -> Any:
        def made(self: Any, *arguments: Any, **options: Any) -> None:
            plain(self, *arguments, **options)
            self.ln_final.forward = lambda x, tap=None: self.ln_final.ckpt_normalized(x, tap)

        return made

    wrapped(pl.CkptedTransformer, "__init__", init)(patch)


def residual_after_norm(patch: Patch) -> None:
    """Adds to the normalized stream instead of to the stream."""

    def forward(self: Any, x: Tensor, visible: Any = None, tap: Any = None, remember: Any = None) -> Tensor:
        normed = self.ln1(self.resid_pre(x, tap), tap)
        mid = self.resid_mid(self.attn(normed, visible, tap)[0] + normed, tap)
        return self.resid_post(mid + self.mlp(self.ln2(mid, tap), tap), tap)

    patch.setattr(transformer.TransformerBlock, "forward", forward)


def mlp_beside_attention(patch: Patch) -> None:
    """Attention and MLP both read what enters the block."""

    def forward(self: Any, x: Tensor, visible: Any = None, tap: Any = None, remember: Any = None) -> Tensor:
        x = self.resid_pre(x, tap)
        mid = self.resid_mid(self.attn(self.ln1(x, tap), visible, tap)[0] + x, tap)
        return self.resid_post(mid + self.mlp(self.ln2(x, tap), tap), tap)

    patch.setattr(transformer.TransformerBlock, "forward", forward)


def pattern_before_the_softmax(patch: Patch) -> None:
    plain = ckpt.Ckpt.replacement
    scores: dict[str, Tensor] = {}

    def replacement(self: Any, value: Tensor, tap: Any) -> Any:
        if self.name.endswith("ckpt_scores"):
            scores[self.name.replace("scores", "pattern")] = value.clone()  # the softmax may overwrite them
        if self.name.endswith("ckpt_pattern"):
            value = scores[self.name]
        return plain(self, value, tap)

    patch.setattr(ckpt.Ckpt, "replacement", replacement)


def drops_what_comes_back(at: str) -> Callable[[Patch], None]:
    """One kind of checkpoint shows its value, and the model goes on with its own."""

    def breaks(patch: Patch) -> None:
        plain_call, plain_replacement = ckpt.Ckpt.__call__, ckpt.Ckpt.replacement

        def call(self: Any, value: Tensor, tap: Any = None) -> Tensor:
            seen = plain_call(self, value, tap)
            return value if self.name.endswith(at) else seen

        def replacement(self: Any, value: Tensor, tap: Any) -> Any:
            instead = plain_replacement(self, value, tap)
            return None if self.name.endswith(at) else instead

        patch.setattr(ckpt.Ckpt, "__call__", call)
        patch.setattr(ckpt.Ckpt, "replacement", replacement)

    return breaks


def recorder(change: Callable[[Any, str, Tensor], None]) -> Callable[[Patch], None]:
    """After a value is recorded, `change(recorder, name, value)`."""

    def make(plain: Any) -> Any:
        def call(self: Any, name: str, value: Tensor) -> Tensor:
            out = plain(self, name, value)
            change(self, name, value)
            return out

        return call

    return wrapped(Recorder, "__call__", make)


def keeps_the_live_tensor(self: Any, name: str, value: Tensor) -> None:
    self.values[name] = value.detach()


def draws(self: Any, name: str, value: Tensor) -> None:
    torch.rand(1)


def nudges(self: Any, name: str, value: Tensor) -> None:
    value.mul_(1.0001)


def looking_goes_explicit(patch: Patch) -> None:
    """A layer that is looked into makes its output from the pattern."""
    plain = ckpt.Ckpt.replacement

    def replacement(self: Any, value: Tensor, tap: Any) -> Any:
        instead = plain(self, value, tap)
        return ckpt.Replaced(value, None) if instead is None and self.is_watched(tap) else instead

    patch.setattr(ckpt.Ckpt, "replacement", replacement)


def always_watched(patch: Patch) -> None:
    patch.setattr(ckpt.Ckpt, "is_watched", lambda self, tap: True)


def writes_in_place(patch: Patch) -> None:
    def put(value: Tensor, indices: dict[int, Tensor], part: Tensor) -> Tensor:
        where = tuple(indices.get(axis, torch.arange(size)) for axis, size in enumerate(value.shape))
        value[torch.meshgrid(*where, indexing="ij")] = part
        return value

    patch.setattr(edit, "put", put)


def runs_on(patch: Patch) -> None:
    """The run goes to its end, and the logits are thrown away."""

    def make(plain: Any) -> Any:
        def run(self: Any, *given: Any, stop_at: str | None = None, **options: Any) -> Any:
            logits, ckpts = plain(self, *given, stop_at=stop_at, **options)
            return None if stop_at else logits, ckpts

        return run

    patch.setattr(StopAfter, "__call__", lambda self, name, value: value)
    wrapped(pl.CkptedTransformer, "run_with_ckpts", make)(patch)


def shows_everything(patch: Patch) -> None:
    def forward(self: Any, value: Tensor, tap: Any = None) -> Tensor:
        return value if tap is None else tap(self.name, value)

    patch.setattr(ckpt.Ckpt, "forward", forward)


def star_crosses_dots(patch: Patch) -> None:
    def make(plain: Any) -> Any:
        return lambda self, batch, names: plain(self, batch, names=names.replace("**", "*").replace("*", "**"))

    wrapped(pl.CkptedTransformer, "run_with_ckpts", make)(patch)


def other_heads(patch: Patch) -> None:
    """Heads counted from the end."""

    def make(plain: Any) -> Any:
        def indices(self: Any, name: str, shape: Any, axes: Any, *, strict: bool) -> dict[int, Tensor]:
            found = plain(self, name, shape, axes, strict=strict)
            return {i: shape[i] - 1 - chosen if axes[i] is Axis.HEAD else chosen for i, chosen in found.items()}

        return indices

    wrapped(Region, "indices", make)(patch)


def dropout_while_evaluating(patch: Patch) -> None:
    fused(lambda q, k: {"dropout_p": 0.1})(patch)


def another_softmax_in_place(patch: Patch) -> None:
    plain = torch.softmax
    patch.setattr(
        torch, "softmax", lambda scores, dim, out=None: plain(scores * (1 if out is None else 7 / 8), dim, out=out)
    )


def no_dropout(patch: Patch) -> None:
    patch.setattr(F, "dropout", lambda x, *_: x)
    plain = F.scaled_dot_product_attention
    patch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **options: plain(*args, **{**options, "dropout_p": 0.0})
    )
