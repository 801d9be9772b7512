"""How a GPT-2 is recognised that does not say that it is one: a module nobody has described, or tensors alone.

Shapes and the order of registration suggest which tensor is which and how it is laid out. They do not tell how many
heads there are, the activation function and the like, so several models may be meant.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.check import attribute
from pellucid.family.layout import Layout
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.layouts import sizes_of

_TRIED_EPSILONS = (1e-5, 1e-6, 1e-12, 1e-8, 1e-3)
_TRIED_ACTIVATIONS = ("gelu_new", "gelu", "relu", "gelu_fast", "quick_gelu", "silu")
_HEAD_ATTRIBUTES = ("n_head", "num_heads", "n_heads", "num_attention_heads", "heads", "nhead", "n_embd_heads")

Proposal = tuple[TransformerConfig, dict[str, Tensor]]
"""What a module may be: a configuration and stored parameters."""


def configs(theirs: Mapping[str, Tensor], layout: Layout) -> Iterator[TransformerConfig]:
    """The configurations that tensors under canonical names fit; most layouts do not say how many heads there are.

    Raises:
        KeyError: If the embedding, the positions or the first block is not there.
    """
    plainest = TransformerConfig(**sizes_of(theirs, layout))
    yield plainest
    if plainest.n_head == 1:
        width = plainest.n_embd
        yield from (
            plainest.replace(n_head=n)
            for n in dict.fromkeys((width // 64, *range(2, 65)))
            if n > 1 and width % n == 0 and width // n >= 4
        )


def readings(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Iterator[Proposal]]:
    """Ways to read a module, the likeliest first: which tensor is which; none if they are not those of a GPT-2."""
    with contextlib.suppress(_NotLikeThis):
        yield from (_proposals(module, parts) for parts in _readings(module, tensors))


class _NotLikeThis(Exception):  # noqa: N818  (it never leaves this file)
    """A module's tensors are not those of a GPT-2 in one of the arrangements that are known."""


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A matrix as [in, out] with its bias [out]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Block:
    """Gains and shifts of both norms, and the matrices; `qkv` [D, 3D] in the module's own order of columns."""

    norms: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
    qkv: _Matrix
    out: _Matrix
    feed_in: _Matrix
    feed_out: _Matrix


@dataclass(frozen=True)
class _Parts:
    embedding: Tensor
    positions: Tensor
    head: Tensor | None
    blocks: tuple[_Block, ...]
    norm: tuple[Tensor, Tensor]
    fused: bool


@dataclass(frozen=True)
class _Untold:
    """What shapes do not tell."""

    n_head: int  # heads
    activation: str  # the MLP's activation function
    epsilon: float  # the epsilon of the norms
    columns: tuple[str, ...]  # the order in which the columns of q|k|v nest, slowest first
    rows: tuple[str, ...]  # the order in which the rows of the output projection nest

    def model(self, parts: _Parts) -> Proposal:
        """The model that the module is by these."""
        vocabulary, width = parts.embedding.shape
        config = TransformerConfig(
            vocab_size=vocabulary, n_positions=len(parts.positions), n_embd=width, n_layer=len(parts.blocks),
            n_head=self.n_head, n_inner=parts.blocks[0].feed_in.weight.size(1), activation_function=self.activation,
            layer_norm_epsilon=self.epsilon, tie_word_embeddings=parts.head is None,
        )  # fmt: skip
        weights = {"embed.W_E": parts.embedding, "pos_embed.W_pos": parts.positions}
        for i, block in enumerate(parts.blocks):
            weights |= {f"blocks.{i}.{name}": tensor for name, tensor in self._weights(block, width).items()}
        weights |= {"ln_final.w": parts.norm[0], "ln_final.b": parts.norm[1]}
        if parts.head is not None:
            weights["unembed.W_U"] = parts.head.T
        return config, weights

    def _weights(self, block: _Block, width: int) -> dict[str, Tensor]:
        (w1, b1), (w2, b2) = block.norms
        sizes = {"part": 3, "head": self.n_head, "d_head": width // self.n_head}
        return {
            "ln1.w": w1, "ln1.b": b1, "ln2.w": w2, "ln2.b": b2,
            "attn.W_QKV": _reordered(block.qkv.weight, 1, self.columns, ("part", "head", "d_head"), sizes),
            "attn.b_QKV": _reordered(block.qkv.bias, 0, self.columns, ("part", "head", "d_head"), sizes),
            "attn.W_O": _reordered(block.out.weight, 0, self.rows, ("head", "d_head"), sizes)
            .unflatten(0, (self.n_head, -1)),
            "attn.b_O": block.out.bias,
            "mlp.W_in": block.feed_in.weight, "mlp.b_in": block.feed_in.bias,
            "mlp.W_out": block.feed_out.weight, "mlp.b_out": block.feed_out.bias,
        }  # fmt: skip


def _reordered(
    tensor: Tensor, axis: int, given: tuple[str, ...], wanted: tuple[str, ...], sizes: Mapping[str, int]
) -> Tensor:
    """One axis that nests axes in the order `given`, nested as `wanted`."""
    if given == wanted:
        return tensor
    parts = tensor.movedim(axis, 0).unflatten(0, [sizes[name] for name in given])
    order = [given.index(name) for name in wanted]
    rest = range(len(given), parts.dim())
    return parts.permute(*order, *rest).flatten(0, len(given) - 1).movedim(0, axis).contiguous()


def _proposals(module: nn.Module, parts: _Parts) -> Iterator[Proposal]:
    width = parts.embedding.size(1)
    said = {
        value
        for child in module.modules()
        for name in _HEAD_ATTRIBUTES
        if isinstance(value := attribute(child, name), int) and not isinstance(value, bool)
    }
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    heads = [n for n in divisors if n in said] or sorted(divisors, key=lambda n: abs(width / n - 64))
    epsilons = {eps for child in module.modules() if isinstance(eps := attribute(child, "eps"), float)}
    columns = list(itertools.permutations(("part", "head", "d_head"))) if parts.fused else [("part", "head", "d_head")]
    for column, row, activation, epsilon, n_head in itertools.product(
        columns, (("head", "d_head"), ("d_head", "head")), _activations(module), epsilons or _TRIED_EPSILONS, heads
    ):
        yield _Untold(n_head, activation, epsilon, column, row).model(parts)


def _activations(module: nn.Module) -> tuple[str, ...]:
    """The activation function that the module holds as a module, else those that are common."""
    for child in module.modules():
        if isinstance(child, nn.GELU):
            return ("gelu_pytorch_tanh",) if child.approximate == "tanh" else ("gelu",)
        if isinstance(child, nn.ReLU):
            return ("relu",)
    return _TRIED_ACTIVATIONS


def _readings(module: nn.Module, named: Mapping[str, Tensor]) -> Iterator[_Parts]:
    """Which tensor is which, by shape and by the order of registration; the likeliest reading first."""
    inside, outside = _blocks_of(named)
    tables = {name: tensor.flatten(0, -2) for name, tensor in outside.items() if tensor.dim() >= 2}
    norms = list(_norms(outside, {size for table in tables.values() for size in table.shape}))
    if len(tables) not in (2, 3) or len(norms) != 1:
        raise _NotLikeThis
    width = norms[0][0].numel()
    owners = dict(module.named_modules())
    blocks = tuple(_block(tensors, width, owners) for tensors in inside)
    fused = any(tensor.numel() == 3 * width * width for tensor in inside[0].values())
    tables = {name: table if table.size(1) == width else table.T for name, table in tables.items()}
    looked_up = {m.weight.data_ptr() for m in owners.values() if isinstance(m, nn.Embedding)}
    order = sorted(tables, key=lambda name: (tables[name].data_ptr() not in looked_up, "pos" in name.lower()))
    for embedding, positions, *head in itertools.permutations(tables[name] for name in order):
        if not head or len(head[0]) == len(embedding):
            untied = bool(head) and not torch.equal(head[0], embedding)
            yield _Parts(embedding, positions, head[0] if untied else None, blocks, norms[0], fused)


def _blocks_of(named: Mapping[str, Tensor]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of each block by their full names, and those around the blocks."""
    grouped: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in named.items():
        if match := re.match(r"(.*?)(?:^|\.)(\d+)\.", name):
            grouped.setdefault(match[1], {}).setdefault(int(match[2]), {})[name] = tensor
    if not grouped:
        raise _NotLikeThis
    blocks = max(grouped.values(), key=lambda group: sum(map(len, group.values())))
    inside = [blocks[i] for i in sorted(blocks)]
    taken = {name for block in inside for name in block}
    if len({len(block) for block in inside}) != 1 or sorted(blocks) != list(range(len(blocks))):
        raise _NotLikeThis
    return inside, {name: tensor for name, tensor in named.items() if name not in taken}


def _by_owner(tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    owned: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        owned.setdefault(name.rpartition(".")[0], []).append(tensor)
    return owned


def _norms(tensors: Mapping[str, Tensor], widths: set[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Gain and shift of every module that holds vectors alone."""
    for held in _by_owner(tensors).values():
        if all(tensor.dim() == 1 and tensor.numel() in widths for tensor in held) and len(held) in (1, 2):
            yield held[0], held[1] if len(held) == 2 else torch.zeros_like(held[0])


def _block(tensors: Mapping[str, Tensor], width: int, owners: Mapping[str, nn.Module]) -> _Block:
    norms = list(_norms(tensors, {width}))
    held = {
        name: group for name, group in _by_owner(tensors).items() if sorted(t.dim() for t in group) in ([2], [1, 2])
    }
    turned = {type(owners[name]): answer for name, group in held.items() if (answer := _is_turned(group)) is not None}
    matrices = {
        name: _matrix(group, turned.get(type(owners[name]), isinstance(owners[name], nn.Linear)))
        for name, group in held.items()
    }
    square = [name for name, matrix in matrices.items() if matrix.weight.shape == (width, width)]
    inner = [matrix for name, matrix in matrices.items() if name not in square]
    fused = [matrix for matrix in inner if matrix.weight.shape == (width, 3 * width)]
    inner = [matrix for matrix in inner if matrix.weight.shape != (width, 3 * width)]
    feed_in = [matrix for matrix in inner if matrix.weight.size(0) == width]
    feed_out = [matrix for matrix in inner if matrix.weight.size(1) == width]
    if (len(norms), len(feed_in), len(feed_out), len(fused), len(square)) not in ((2, 1, 1, 1, 1), (2, 1, 1, 0, 4)):
        raise _NotLikeThis
    pair = (norms[0], norms[1])
    if fused:
        return _Block(pair, fused[0], matrices[square[0]], feed_in[0], feed_out[0])
    q, k, v, out = (matrices[name] for name in _in_order(square))
    qkv = _Matrix(torch.cat([q.weight, k.weight, v.weight], 1), torch.cat([q.bias, k.bias, v.bias]))
    return _Block(pair, qkv, out, feed_in[0], feed_out[0])


def _in_order(names: list[str]) -> list[str]:
    """Names of q, k, v and the output projection in that order: by their letters, else as they were registered."""
    last = [re.sub(r"(proj|linear|weight|to|attn|c)", "", name.rpartition(".")[2].lower()).strip("_") for name in names]
    letters = [text[:1] for text in last]
    found = {letter: name for letter, name in zip(letters, names, strict=True) if letter in "qkv" and letter}
    rest = [name for name in names if name not in found.values()]
    return [found["q"], found["k"], found["v"], *rest] if len(found) == 3 and len(rest) == 1 else names


def _is_turned(held: list[Tensor]) -> bool | None:
    """Whether a matrix is kept as [out, in], by its bias; None if it is square or has none."""
    matrix, *bias = sorted(held, key=lambda tensor: -tensor.dim())
    return bias[0].numel() == matrix.size(0) if bias and matrix.size(0) != matrix.size(1) else None


def _matrix(held: list[Tensor], turned: bool) -> _Matrix:
    matrix, *bias = sorted(held, key=lambda tensor: -tensor.dim())
    matrix = matrix.T if turned else matrix
    return _Matrix(matrix, bias[0] if bias else torch.zeros(matrix.size(1), dtype=matrix.dtype))
