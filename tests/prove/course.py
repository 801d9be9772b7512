"""A GPT-2 as a course has its students write it, right or with one known mistake in it.

Names, nesting and layouts are the course's (token_embedding, qkv_proj, output_proj, linear1, linear2). `Course` shows
most of its values, because every matrix is a module; `Monolith` does the same sums from bare tensors and shows none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normalize(x: Tensor, w: Tensor, b: Tensor, eps: float, wrong: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    if wrong == "eps 1e-6":
        eps = 1e-6
    if wrong == "eps 1e-12":
        eps = 1e-12
    if wrong == "unbiased variance":
        variance = x.var(-1, keepdim=True)
    if wrong == "eps outside":
        return centred / (variance.sqrt() + eps) * w + b
    if wrong == "rms":
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w + b
    if wrong == "norm without affine":
        return centred / (variance + eps).sqrt()
    if wrong == "norm without bias":
        return centred / (variance + eps).sqrt() * w
    return centred / torch.sqrt(variance + eps) * w + b


def activate(x: Tensor, wrong: str) -> Tensor:
    if wrong == "erf gelu":
        return F.gelu(x)
    if wrong == "relu":
        return F.relu(x)
    if wrong == "quick gelu":
        return x * torch.sigmoid(1.702 * x)
    return new_gelu(x)


def attend(qkv: Tensor, heads: int, wrong: str) -> Tensor:
    """[B, P, 3D] -> [B, P, D]."""
    b, p, width = qkv.shape
    d = width // 3 // heads
    if wrong == "interleaved":
        q, k, v = qkv.view(b, p, heads, 3, d).permute(3, 0, 2, 1, 4)
    elif wrong == "heads (d, h)":
        q, k, v = qkv.view(b, p, 3, d, heads).permute(2, 0, 4, 1, 3)
    elif wrong == "heads not moved":
        q, k, v = (part.reshape(b, heads, p, d) for part in qkv.split(width // 3, -1))
    else:
        q, k, v = qkv.view(b, p, 3, heads, d).permute(2, 0, 3, 1, 4)
    if wrong == "order kqv":
        q, k = k, q
    if wrong == "order qvk":
        k, v = v, k
    scale = {"no scale": 1.0, "scale by width": (heads * d) ** -0.5, "scale 1/d": 1 / d}.get(wrong, d**-0.5)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    offset = {"mask sees next": 1, "mask blind to itself": -1}.get(wrong, 0)
    hidden = ~torch.ones(p, p, dtype=torch.bool).tril(offset)
    if wrong != "no mask":
        scores = scores.masked_fill(hidden, 0.0 if wrong == "mask 0" else -1e4)
    pattern = scores.softmax(-2 if wrong == "softmax over queries" else -1)
    if wrong == "dropout on":
        pattern = F.dropout(pattern, 0.1)
    z = pattern @ v
    if wrong == "heads merged (d, h)":
        return z.permute(0, 2, 3, 1).reshape(b, p, -1)
    if wrong == "heads not moved back":
        return z.reshape(b, p, -1)
    return z.transpose(1, 2).reshape(b, p, -1)


def wire(x: Tensor, norms: Any, attention: Any, mlp: Any, wrong: str) -> Tensor:
    ln1, ln2 = norms
    if wrong == "post-LN":
        x = ln1(x + attention(x))
        return ln2(x + mlp(x))
    if wrong == "parallel":
        return x + attention(ln1(x)) + mlp(ln2(x))
    if wrong == "no residual at attention":
        x = attention(ln1(x))
        return x + mlp(ln2(x))
    if wrong == "no residual at mlp":
        x = x + attention(ln1(x))
        return mlp(ln2(x))
    if wrong == "normalized residual":
        x = ln1(x)
        x = x + attention(x)
        return x + mlp(ln2(x))
    if wrong == "norms swapped":
        x = x + attention(ln2(x))
        return x + mlp(ln1(x))
    x = x + attention(ln1(x))
    return x + mlp(ln2(x))


def positions(p: int, wrong: str) -> Tensor:
    shift = {"positions from 1": 1}.get(wrong, 0)
    return torch.zeros(p, dtype=torch.long) if wrong == "position 0" else torch.arange(p) + shift


class Norm(nn.Module):
    def __init__(self, width: int, eps: float, wrong: str) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps, self.wrong = eps, wrong

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.weight, self.bias, self.eps, self.wrong)


class UnidirectionalAttention(nn.Module):
    def __init__(self, width: int, heads: int, wrong: str) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.output_proj = nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.heads, self.wrong = heads, wrong

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        z = attend(self.qkv_proj(x), self.heads, self.wrong)
        if self.wrong == "output transposed":
            return z @ self.output_proj.weight + self.output_proj.bias
        return self.resid_dropout(self.output_proj(z))


class GPT2Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float, wrong: str) -> None:
        super().__init__()
        self.ln1 = Norm(width, eps, wrong)
        self.attn = UnidirectionalAttention(width, heads, wrong)
        self.ln2 = Norm(width, eps, wrong)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout, self.wrong = nn.Dropout(0.1), wrong

    def mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(activate(self.linear1(x), self.wrong)))

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return wire(x, (self.ln1, self.ln2), self.attn, self.mlp, self.wrong)


class Course(nn.Module):
    """`wrong` in block `only`, or everywhere."""

    def __init__(self, config: pl.TransformerConfig, wrong: str = "", only: int | None = None) -> None:
        super().__init__()
        width, eps = config.n_embd, config.layer_norm_epsilon
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.pos_embedding = nn.Embedding(config.n_positions, width)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.Sequential(
            *(
                GPT2Block(width, config.n_head, config.d_mlp, eps, wrong if only in (None, i) else "")
                for i in range(config.n_layer)
            )
        )
        self.ln = Norm(width, eps, wrong if only is None else "")
        self.wrong = wrong

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        embedded = self.token_embedding(x)
        if self.wrong == "embedding scaled":
            embedded = embedded * math.sqrt(embedded.size(-1))
        if self.wrong != "no positions":
            embedded = embedded + self.pos_embedding(positions(x.size(1), self.wrong))
        y = self.dropout(embedded)
        blocks = list(self.blocks)
        if self.wrong == "blocks reversed":
            blocks = blocks[::-1]
        if self.wrong == "last block left out":
            blocks = blocks[:-1]
        for block in blocks:
            y = block(y)
        y = y if self.wrong == "no final norm" else self.ln(y)
        logits = torch.einsum("bpd,vd->bpv", y, self.token_embedding.weight)
        return logits.log_softmax(-1) if self.wrong == "log-probabilities" else logits


class Monolith(nn.Module):
    """The same sums without a module inside: one table of tensors under names that say little."""

    def __init__(self, config: pl.TransformerConfig, wrong: str = "", only: int | None = None) -> None:
        super().__init__()
        self.table = nn.ParameterDict()
        self.config, self.wrong, self.only = config, wrong, only

    def forward(self, ids: Tensor) -> Tensor:
        t = self.table
        eps = self.config.layer_norm_epsilon
        x = t["tok"][ids]
        if self.wrong == "embedding scaled":
            x = x * math.sqrt(x.size(-1))
        if self.wrong != "no positions":
            x = x + t["pos"][positions(ids.size(1), self.wrong)]
        order = list(range(self.config.n_layer))
        order = order[::-1] if self.wrong == "blocks reversed" else order
        order = order[:-1] if self.wrong == "last block left out" else order
        for i in order:
            x = self.block(x, i, self.wrong if self.only in (None, i) else "")
        if self.wrong != "no final norm":
            x = normalize(x, t["g"], t["c"], eps, self.wrong if self.only is None else "")
        logits = x @ t["tok"].T
        return logits.log_softmax(-1) if self.wrong == "log-probabilities" else logits

    def block(self, x: Tensor, i: int, wrong: str) -> Tensor:
        t = {name.split("/")[1]: tensor for name, tensor in self.table.items() if name.startswith(f"{i}/")}
        eps = self.config.layer_norm_epsilon
        out = t["o"].T if wrong == "output transposed" else t["o"]
        return wire(
            x,
            [lambda y, n=n: normalize(y, t[f"g{n}"], t[f"c{n}"], eps, wrong) for n in (1, 2)],
            lambda y: attend(y @ t["qkv"] + t["bqkv"], self.config.n_head, wrong) @ out + t["bo"],
            lambda y: activate(y @ t["in"] + t["bin"], wrong) @ t["out"] + t["bout"],
            wrong,
        )


def course(model: pl.CkptedTransformer, wrong: str = "", only: int | None = None) -> Course:
    """A `Course` with the weights of a model of ours, as the course's `load_pretrained_weights` copies them."""
    made = Course(model.config, wrong, only)
    p = {name: model.parameter(name).detach() for name in model.parameter_names}
    state = {"token_embedding.weight": p["embed.W_E"], "pos_embedding.weight": p["pos_embed.W_pos"]}
    state |= {"ln.weight": p["ln_final.w"], "ln.bias": p["ln_final.b"]}
    for i in range(model.config.n_layer):
        ours, theirs = f"blocks.{i}.", f"blocks.{i}."
        state |= {f"{theirs}{n}.{w}": p[f"{ours}{n}.{w[0]}"] for n in ("ln1", "ln2") for w in ("weight", "bias")}
        state |= {
            f"{theirs}attn.qkv_proj.weight": p[f"{ours}attn.W_QKV"].T,
            f"{theirs}attn.qkv_proj.bias": p[f"{ours}attn.b_QKV"],
            f"{theirs}attn.output_proj.weight": p[f"{ours}attn.W_O"].flatten(0, 1).T,
            f"{theirs}attn.output_proj.bias": p[f"{ours}attn.b_O"],
            f"{theirs}linear1.weight": p[f"{ours}mlp.W_in"].T,
            f"{theirs}linear1.bias": p[f"{ours}mlp.b_in"],
            f"{theirs}linear2.weight": p[f"{ours}mlp.W_out"].T,
            f"{theirs}linear2.bias": p[f"{ours}mlp.b_out"],
        }
    made.load_state_dict(state)
    return made.eval()


def monolith(model: pl.CkptedTransformer, wrong: str = "", only: int | None = None) -> Monolith:
    """A `Monolith` with the weights of a model of ours."""
    made = Monolith(model.config, wrong, only)
    p = {name: model.parameter(name).detach() for name in model.parameter_names}
    table = {"tok": p["embed.W_E"], "pos": p["pos_embed.W_pos"], "g": p["ln_final.w"], "c": p["ln_final.b"]}
    kinds = {
        "g1": "ln1.w", "c1": "ln1.b", "g2": "ln2.w", "c2": "ln2.b", "qkv": "attn.W_QKV", "bqkv": "attn.b_QKV",
        "bo": "attn.b_O", "in": "mlp.W_in", "bin": "mlp.b_in", "out": "mlp.W_out", "bout": "mlp.b_out",
    }  # fmt: skip
    for i in range(model.config.n_layer):
        table |= {f"{i}/{theirs}": p[f"blocks.{i}.{ours}"] for theirs, ours in kinds.items()}
        table[f"{i}/o"] = p[f"blocks.{i}.attn.W_O"].flatten(0, 1)
    made.table.update({name: nn.Parameter(tensor.clone()) for name, tensor in table.items()})
    return made.eval()
