"""The course's GPT-2: its configuration, the file to begin with, its layers, the stages of a run.

The computation is the plain one of `pellucid.gpt2.parts` with the learner's own parameters, and mistakes in it. Stages
have the names that a learner is told, and come in the order in which they are computed.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor, nn

from pellucid import atomic
from pellucid.check import path_of
from pellucid.errors import InputError, shown
from pellucid.exercises.result import misuse
from pellucid.exercises.starter_notebook import notebook, notebook_text
from pellucid.exercises.watch import Unfilled, marked
from pellucid.family.json_config import Config
from pellucid.gpt2 import parts as plain
from pellucid.gpt2.formulas import PlainWeights, Sizes
from pellucid.gpt2.parts import LOGITS, Parts, PlainBlock, Span, Values, recorder, run_block, run_parts
from pellucid.names.calls import named_arguments

_ELSEWHERE = {
    "n_embd": "hidden_size", "d_model": "hidden_size", "n_head": "num_heads", "n_heads": "num_heads",
    "num_attention_heads": "num_heads", "n_layer": "num_layers", "n_layers": "num_layers",
    "num_hidden_layers": "num_layers", "n_positions": "max_position_embeddings", "n_ctx": "max_position_embeddings",
    "block_size": "max_position_embeddings", "max_seq_len": "max_position_embeddings", "d_vocab": "vocab_size",
    "resid_pdrop": "dropout", "attn_pdrop": "dropout", "embd_pdrop": "dropout", "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function", "activation": "activation_function",
}  # fmt: skip
"""Field of other libraries' configurations -> the course's."""


@named_arguments({theirs: f"Pass {here}=." for theirs, here in _ELSEWHERE.items()})
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


STARTER = Path(__file__).parent / "starter.txt"


def starter(path: str | Path | None = None) -> str:
    """The file to begin with: every class and function of the course with a blank in it, and its check below.

    A name that ends with `.ipynb` makes it a notebook, any other a script, whose cells are marked with `# %%`.

    Args:
        path: Where to write it; None to write nothing.

    Returns:
        The text of the file.

    Raises:
        InputError: If there is a file already, which may hold answers.

    Example:
        >>> from pellucid import exercises
        >>> exercises.starter().count("def forward")
        3
    """
    text = STARTER.read_text(encoding="utf-8")
    if path is not None:
        target = path_of(path)
        if os.path.lexists(target):  # in a folder that may not be looked into nothing is; writing says so
            raise InputError(
                f"starter: {target} already exists and may hold answers.",
                code="file-exists",
                remedy="Give another path.",
            )
        text = notebook_text(notebook(text)) if target.suffix == ".ipynb" else text
        atomic.write_text(path, text)
    return text


def config_of(reference: Any, activation_function: str = "gelu") -> GPTConfig:
    """The course's configuration with the sizes of a reference, a model of pellucid's or transformers' or its config.

    Raises:
        InputError: If it is neither.
    """
    try:
        config = getattr(reference, "config", reference)
        return GPTConfig(
            activation_function, config.n_layer, config.n_head, config.vocab_size,
            config.n_embd, config.n_positions, config.resid_pdrop, config.layer_norm_epsilon,
        )  # fmt: skip
    except AttributeError as error:
        raise no_reference("config_of", reference) from error


def no_reference(check: str, given: Any) -> InputError:
    """The error for what is no GPT-2, where a reference was expected."""
    config = getattr(given, "config", given)
    ours = f"a {config.about.family}" if isinstance(config, Config) else ""
    if ours or getattr(config, "model_type", "gpt2") != "gpt2":
        return misuse(
            f"{check}: {ours or type(given).__name__} given, expected a GPT-2 as the reference.",
            "Take a GPT-2, which is what the course builds: pellucid.load() opens one.",
        )
    name = shown(given) if isinstance(given, str) else type(given).__name__
    return misuse(
        f"{check}: {name} given, expected a model as the reference.",
        "Open a file, a folder or a name with pellucid.load; a model of transformers' is taken as it is.",
    )


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


Layers = Mapping[str, Callable[[], nn.Module]]
"""Path of a layer that the course asks for -> what makes one like it."""


def attention_layers(s: Sizes) -> Layers:
    """The layers of attention."""
    inner = s.heads * s.head
    return {"qkv_proj": lambda: nn.Linear(s.hidden, 3 * inner), "output_proj": lambda: nn.Linear(inner, s.hidden)}


def block_layers(s: Sizes) -> Layers:
    """The layers of a block."""
    norm = lambda: nn.LayerNorm(s.hidden)  # noqa: E731
    return {
        "ln1": norm, **_below("attn", attention_layers(s)), "ln2": norm,
        "linear1": lambda: nn.Linear(s.hidden, 4 * s.hidden), "linear2": lambda: nn.Linear(4 * s.hidden, s.hidden),
    }  # fmt: skip


def gpt2_layers(s: Sizes) -> Layers:
    """The layers of a GPT-2."""
    layers: dict[str, Callable[[], nn.Module]] = {
        "token_embedding": lambda: nn.Embedding(s.vocabulary, s.hidden),
        "pos_embedding": lambda: nn.Embedding(s.positions, s.hidden),
    }
    for i in range(s.layers):
        layers |= _below(f"blocks.{i}", block_layers(s))
    return {**layers, "ln": lambda: nn.LayerNorm(s.hidden)}


def _below(path: str, layers: Layers) -> Layers:
    return {f"{path}.{name}": make for name, make in layers.items()}


@functools.cache
def shapes_of(layers: Callable[[Sizes], Layers], sizes: Sizes) -> Mapping[str, tuple[int, ...]]:
    """Parameter of the layers of some sizes -> its shape; a check asks for those of one size again and again."""
    with torch.device("meta"), Unfilled():  # which draw no random numbers
        made = {path: make() for path, make in layers(sizes).items()}
    return {f"{path}.{kind}": tuple(p.shape) for path, one in made.items() for kind, p in one.named_parameters()}


def orders(*groups: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Every order of the groups, each of which is given as the orders of what is inside; the first is the given one."""
    every = (order for chosen in itertools.product(*groups) for order in itertools.permutations(chosen))
    return [tuple(itertools.chain.from_iterable(order)) for order in every]


Stages = dict[str, Tensor]
Parameters = Mapping[str, Tensor]
Run = Callable[[Tensor, Parts], Stages]
"""A run of inputs through a GPT-2, right or with a mistake: the last of its stages is the output."""

RIGHT = replace(plain.RIGHT, fill=-math.inf)
"""What is asked for; masked scores are -inf, as in the course, so that a wrong softmax shows what a learner's shows."""


def training(parts: Parts, sizes: Sizes) -> Parts:
    """A GPT-2 in training, with dropout's stand-in."""
    return replace(parts, drop=lambda x: marked(x, sizes.dropout))


def attention(p: Parameters, sizes: Sizes) -> Run:
    """Attention with these parameters, of x [B, P, D]; its output is [B, P, D]."""
    weights = _weights(_attention(p, "", "blocks.0.", sizes), sizes).of_block(0)

    def run(x: Tensor, parts: Parts) -> Stages:
        values: Values = {}
        PlainBlock(parts, weights, recorder(values)).attention(x)
        return _attention_stages(values)

    return run


def block(p: Parameters, sizes: Sizes) -> Run:
    """One block with these parameters, of x [B, P, D]; its output is [B, P, D]."""
    weights = _weights(_block(p, "", 0, sizes), sizes).of_block(0)
    return lambda x, parts: _block_stages(run_block(parts, weights, x)[1])


def gpt2(p: Parameters, sizes: Sizes) -> Run:
    """A GPT-2 with these parameters, of ids [B, P]; its output are the logits [B, P, V]."""
    weights = _weights(units(p, sizes), sizes)

    def run(ids: Tensor, parts: Parts) -> Stages:
        values = run_parts(parts, weights, Span(ids, by_place=True))
        stages: Stages = {"token embedding": values["looked up"], "pos embedding": values["pos>"]}
        stages["token + pos"] = values["embedded"]
        for place in range(len(parts.order(sizes.layers))):
            inside = _block_stages(values, f"blocks.{place}.")
            stages |= {f"block {place}: {name}": value for name, value in inside.items()}
        return {**stages, "ln": values["read by the head"], "logits": values[LOGITS]}

    return run


def output_of(stages: Stages) -> Tensor:
    """The last of them."""
    return next(reversed(stages.values()))


def units(p: Parameters, sizes: Sizes) -> dict[str, Tensor]:
    """The parameters of the course's GPT-2 by our names, as live views."""
    tensors = {"embed.W_E": p["token_embedding.weight"], "pos_embed.W_pos": p["pos_embedding.weight"]}
    for i in range(sizes.layers):
        tensors |= _block(p, f"blocks.{i}.", i, sizes)
    return {**tensors, "ln_final.w": p["ln.weight"], "ln_final.b": p["ln.bias"]}


def _weights(tensors: Mapping[str, Tensor], sizes: Sizes) -> PlainWeights:
    return PlainWeights(sizes, tensors, next(iter(tensors.values())).dtype)


def _split(qkv: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
    """q, k and v of a parameter whose first axis holds all three; that axis becomes two: head, and d_head."""
    return qkv.unflatten(0, (3, sizes.heads, sizes.head)).unbind()


def _attention(p: Parameters, prefix: str, ours: str, sizes: Sizes) -> dict[str, Tensor]:
    """The course's parameters of attention below a prefix, by our names and as live views."""
    columns = _split(p[f"{prefix}qkv_proj.weight"], sizes)  # each [H, K, D]
    biases = _split(p[f"{prefix}qkv_proj.bias"], sizes)
    out = p[f"{prefix}output_proj.weight"].T.unflatten(0, (sizes.heads, sizes.head))
    return {
        **{f"{ours}attn.W_{letter}": part.mT for letter, part in zip("QKV", columns, strict=True)},
        **{f"{ours}attn.b_{letter}": part for letter, part in zip("QKV", biases, strict=True)},
        f"{ours}attn.W_O": out, f"{ours}attn.b_O": p[f"{prefix}output_proj.bias"],
    }  # fmt: skip


def _block(p: Parameters, prefix: str, number: int, sizes: Sizes) -> dict[str, Tensor]:
    """The course's parameters of a block below a prefix, by our names and as live views."""
    ours = f"blocks.{number}."
    return {
        **{f"{ours}{ln}.{kind[0]}": p[f"{prefix}{ln}.{kind}"] for ln in ("ln1", "ln2") for kind in ("weight", "bias")},
        **_attention(p, f"{prefix}attn.", ours, sizes),
        f"{ours}mlp.W_in": p[f"{prefix}linear1.weight"].T, f"{ours}mlp.b_in": p[f"{prefix}linear1.bias"],
        f"{ours}mlp.W_out": p[f"{prefix}linear2.weight"].T, f"{ours}mlp.b_out": p[f"{prefix}linear2.bias"],
    }  # fmt: skip


def _attention_stages(values: Values, prefix: str = "") -> Stages:
    together = torch.stack([values[f"{prefix}{letter} by head"] for letter in "qkv"])
    middle = {name: values[prefix + name] for name in ("scores", "pattern", "z")}
    return {"q, k, v": together, **middle, "output": values[f"{prefix}O>"]}


_OF_BLOCK = {
    "after attention": "mid", "ln2": "mlp<", "linear1": "in>", "activation": "out<", "linear2": "out>",
    "output": "block>",
}  # fmt: skip


def _block_stages(values: Values, prefix: str = "") -> Stages:
    attended = {f"attn {name}": value for name, value in _attention_stages(values, prefix).items()}
    behind = {name: values[prefix + point] for name, point in _OF_BLOCK.items()}
    return {"ln1": values[f"{prefix}attn<"], **attended, **behind}


Produce = Callable[[Parts], Iterator[Stages]]
"""A GPT-2 -> the stages of every probe, one after the other."""


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
