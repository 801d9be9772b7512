"""The course's configuration, the shapes of its parameters, and the axes and steps of its tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Never

import torch
from torch import Tensor, nn

from pellucid.gpt2.formulas import Sizes


@dataclass(frozen=True)
class GPTConfig:
    """The course's configuration, which a learner's `GPT2` is constructed with."""

    activation_function: str = "gelu"
    num_layers: int = 12
    num_heads: int = 12
    vocab_size: int = 50257
    hidden_size: int = 768
    max_position_embeddings: int = 1024
    dropout: float = 0.1
    layer_norm_epsilon: float = 1e-05

    def __getattr__(self, name: str) -> Never:  # called for what is no field
        here = _ELSEWHERE.get(name)
        known = ", ".join(one.name for one in fields(self))
        meant = f"{name} is called {here} here; " if here else ""
        raise AttributeError(f"GPTConfig has no {name!r}: {meant}its fields are {known}", name=name, obj=self)


_ELSEWHERE = {
    "n_embd": "hidden_size", "d_model": "hidden_size", "n_head": "num_heads", "n_heads": "num_heads",
    "num_attention_heads": "num_heads", "n_layer": "num_layers", "n_layers": "num_layers",
    "num_hidden_layers": "num_layers", "n_positions": "max_position_embeddings", "n_ctx": "max_position_embeddings",
    "block_size": "max_position_embeddings", "max_seq_len": "max_position_embeddings", "d_vocab": "vocab_size",
    "resid_pdrop": "dropout", "attn_pdrop": "dropout", "embd_pdrop": "dropout", "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function", "activation": "activation_function",
}  # fmt: skip
"""Field of other libraries' configurations -> the course's."""


def streams(sizes: Sizes) -> list[Tensor]:
    """Inputs [B, P, D]; the last is loud, so that scores are far apart."""
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randn(b, p, sizes.hidden, generator=generator) for b, p in ((2, 5), (1, 1), (3, 4), (1, 9))]
    return [x.double() for x in (*drawn, 8 * torch.randn(1, 6, sizes.hidden, generator=generator))]


def texts(sizes: Sizes) -> list[Tensor]:
    """Ids [B, P], one short of the longest text, so that positions that are one too high can be told."""
    return [text(sizes, b, p) for b, p in ((2, 5), (1, 1), (3, 4), (1, sizes.positions - 1))]


def text(sizes: Sizes, rows: int, columns: int) -> Tensor:
    """Ids [rows, columns], the same at every call."""
    return torch.randint(sizes.vocabulary, (rows, columns), generator=torch.Generator().manual_seed(columns))


def attention_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Parameter of attention -> its shape."""
    inner = s.heads * s.head
    return {
        "qkv_proj.weight": (3 * inner, s.hidden), "qkv_proj.bias": (3 * inner,),
        "output_proj.weight": (s.hidden, inner), "output_proj.bias": (s.hidden,),
    }  # fmt: skip


def block_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Parameter of a block -> its shape."""
    d = s.hidden
    return {
        "ln1.weight": (d,), "ln1.bias": (d,),
        **{f"attn.{name}": shape for name, shape in attention_shapes(s).items()},
        "ln2.weight": (d,), "ln2.bias": (d,),
        "linear1.weight": (4 * d, d), "linear1.bias": (4 * d,), "linear2.weight": (d, 4 * d), "linear2.bias": (d,),
    }  # fmt: skip


def gpt2_shapes(s: Sizes) -> dict[str, tuple[int, ...]]:
    """Parameter of a GPT-2 -> its shape."""
    blocks = {f"blocks.{i}.{name}": shape for i in range(s.layers) for name, shape in block_shapes(s).items()}
    first = {"token_embedding.weight": (s.vocabulary, s.hidden), "pos_embedding.weight": (s.positions, s.hidden)}
    return {**first, **blocks, "ln.weight": (s.hidden,), "ln.bias": (s.hidden,)}


def attention_makers(s: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """Path -> what makes the module of that path, in attention."""
    inner = s.heads * s.head
    return {
        "qkv_proj": lambda: nn.Linear(s.hidden, 3 * inner), "output_proj": lambda: nn.Linear(inner, s.hidden),
    }  # fmt: skip


def block_makers(s: Sizes) -> dict[str, Callable[[], nn.Module]]:
    """Path -> what makes the module of that path, in a block."""
    inside = {f"attn.{name}": make for name, make in attention_makers(s).items()}
    outside: dict[str, Callable[[], nn.Module]] = {
        "linear1": lambda: nn.Linear(s.hidden, 4 * s.hidden), "linear2": lambda: nn.Linear(4 * s.hidden, s.hidden),
    }  # fmt: skip
    return inside | outside


def orders(groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Every order of the groups, and of what is inside each; the first is the given one."""
    inner = [list(itertools.permutations(group)) for group in groups]
    return list(flat(o for chosen in itertools.product(*inner) for o in itertools.permutations(chosen)))


def flat(orders: Any) -> Iterator[tuple[str, ...]]:
    """Groups of paths, one after the other, as one order."""
    return (tuple(itertools.chain.from_iterable(order)) for order in orders)


_AXES = {
    "q, k, v": "batch, head, seq, head_size", "scores": "batch, head, query, key", "pattern": "batch, head, query, key",
    "z": "batch, seq, heads * head_size", "linear1": "batch, seq, 4 * hidden", "activation": "batch, seq, 4 * hidden",
    "logits": "batch, seq, vocab",
}  # fmt: skip


def axes(stage: str) -> str:
    """A stage with its axes, for a result."""
    kind = stage.rsplit(": ", 1)[-1].removeprefix("attn ")
    return f"{stage} [{_AXES.get(kind, 'batch, seq, hidden')}]"


_STEPS = {
    "ln1": "layer norm", "ln2": "layer norm", "q, k, v": "splitting q, k and v", "scores": "scaling the scores",
    "pattern": "masking the scores, softmax", "z": "the weighted sum", "attn output": "the output projection",
    "after attention": "the residual connection around attention", "linear1": "the MLP", "activation": "the MLP",
    "linear2": "the MLP", "output": "the residual connection around the MLP", "token embedding": "the embeddings",
    "pos embedding": "the embeddings", "token + pos": "the embeddings", "ln": "the final layer norm",
    "logits": "the unembedding",
}  # fmt: skip
"""Stage -> the step that makes it."""


def steps(stage: str) -> str:
    """The step that makes a stage of a block or a GPT-2."""
    block, _, inner = stage.rpartition(": ")
    kind = inner if inner in _STEPS else inner.removeprefix("attn ")
    return f"{_STEPS[kind]} ({block})" if block else _STEPS[kind]


def attention_steps(stage: str) -> str:
    """The step that makes a stage of attention."""
    return "the output projection" if stage == "output" else steps(stage)
