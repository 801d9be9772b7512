"""Llamas, GPT-NeoXs and GPT-2s of bare tensors in plain torch: right ones in many spellings, and wrong ones.

Every stage is a function that takes the program, so a spelling or a mistake replaces one stage and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl

Stage = Callable[..., Any]


class Bare(nn.Module):
    """A program with the weights of one of our models.

    Args:
        model: Of any family.
        stages: What replaces a stage, by its name.
    """

    def __init__(self, model: pl.CkptedTransformer, **stages: Stage) -> None:
        super().__init__()
        self.config, self.sizes, self.d = model.config, model.config.sizes, model.config.sizes["d_head"]
        whole = [name for name in model.parameter_names if not name.endswith("QKV")]  # stored so, and shown as three
        tensors = {name: model.parameter(name).detach().clone() for name in whole}
        self.own = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in tensors.items()})
        self.family = {"TransformerConfig": "gpt2", "LlamaConfig": "llama"}.get(type(model.config).__name__, "neox")
        self.eps = next(
            getattr(self.config, name)
            for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
            if hasattr(self.config, name)
        )
        self.stages = {**STAGES, **stages}
        for name, table in self.do("kept").items():
            self.register_buffer(name, table, persistent=False)

    def do(self, stage: str, *given: Any) -> Any:
        return self.stages[stage](self, *given)

    def get(self, block: int, name: str) -> Tensor | float:
        return dict(self.own.items()).get(f"blocks/{block}/{name.replace('.', '/')}", 0.0)

    def norm(self, x: Tensor, name: str) -> Tensor:
        own = dict(self.own.items())
        return self.do("rms" if self.family == "llama" else "layernorm", x, own[f"{name}/w"], own.get(f"{name}/b"))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.do("embedded", ids)
        for block in range(self.sizes["layer"]):
            x = self.do("block", x, block)
        return self.do("logits", self.norm(x, "ln_final"))


def embedded(m: Bare, ids: Tensor) -> Tensor:
    x = m.own["embed/W_E"][ids]
    return x + m.own["pos_embed/W_pos"][m.do("places", ids.size(1))] if m.family == "gpt2" else x


def logits(m: Bare, x: Tensor) -> Tensor:
    return x @ (m.own["unembed/W_U"] if "unembed/W_U" in m.own else m.own["embed/W_E"].T)


def block(m: Bare, x: Tensor, i: int) -> Tensor:
    if m.family == "neox" and m.config.use_parallel_residual:
        return parallel(m, x, i)
    return sequential(m, x, i)


def sequential(m: Bare, x: Tensor, i: int) -> Tensor:
    x = x + m.do("attention", m.norm(x, f"blocks/{i}/ln1"), i)
    return x + m.do("mlp", m.norm(x, f"blocks/{i}/ln2"), i)


def parallel(m: Bare, x: Tensor, i: int) -> Tensor:
    return x + m.do("attention", m.norm(x, f"blocks/{i}/ln1"), i) + m.do("mlp", m.norm(x, f"blocks/{i}/ln2"), i)


def rms(m: Bare, x: Tensor, w: Tensor, _: Any) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.eps) * w


def layernorm(m: Bare, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + m.eps).sqrt() * w + b


def attention(m: Bare, x: Tensor, i: int) -> Tensor:
    q, k, v = m.do("projected", x, i)  # [B, H, P, K]
    if m.family != "gpt2":
        q, k = m.do("placed", q, k)
    k, v = m.do("spread", q, k, v)
    z = m.do("mixed", q, k, v)
    return torch.einsum("bhpk,hkd->bpd", z, m.get(i, "attn.W_O")) + m.do("bias", i, "attn.b_O")


def projected(m: Bare, x: Tensor, i: int) -> tuple[Tensor, ...]:
    def one(c: str) -> Tensor:
        bias = m.do("bias", i, f"attn.b_{c}")
        made = torch.einsum("bpd,hdk->bhpk", x, m.get(i, f"attn.W_{c}"))
        return made + bias[:, None] if isinstance(bias, Tensor) else made

    return tuple(map(one, "QKV"))


def bias(m: Bare, i: int, name: str) -> Tensor | float:
    return m.get(i, name)


def places(m: Bare, length: int) -> Tensor:
    return torch.arange(length)


def speeds(m: Bare, dtype: torch.dtype | None = None, base: float = 0.0, width: int = 0) -> Tensor:
    width = width or m.config.rule.turned
    base = base or m.config.rule.parameters["rope_theta"]
    return base ** -(torch.arange(0, width, 2, dtype=dtype or torch.get_default_dtype()) / width)


def kept(m: Bare) -> dict[str, Tensor]:
    return {}


def angles(m: Bare, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles [P, K / 2]."""
    angle = m.do("places", length).to(torch.get_default_dtype())[:, None] * m.do("speeds")
    return angle.cos(), angle.sin()


def placed(m: Bare, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = m.do("angles", q.size(2))
    return m.do("turned", q, cos, sin), m.do("turned", k, cos, sin)


def turned(m: Bare, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.size(-1)
    a, b = x[..., :width].chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., width:]], -1)


def spread(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    times = q.size(1) // k.size(1)
    return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)


def mixed(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = ~m.do("sees", torch.arange(q.size(2))[:, None], torch.arange(q.size(2)))
    return (q @ k.mT * m.do("scale")).masked_fill(hidden, -torch.inf).softmax(-1) @ v


def sees(m: Bare, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def scale(m: Bare) -> float:
    return m.d**-0.5


def mlp(m: Bare, x: Tensor, i: int) -> Tensor:
    up = x @ m.get(i, "mlp.W_in") + m.do("bias", i, "mlp.b_in")
    if m.family == "llama":
        gate = x @ m.get(i, "mlp.W_gate") + m.do("bias", i, "mlp.b_gate")
        post = m.do("gated", gate, up)
    else:
        post = m.do("act", up)
    return post @ m.get(i, "mlp.W_out") + m.do("bias", i, "mlp.b_out")


def gated(m: Bare, gate: Tensor, up: Tensor) -> Tensor:
    return m.do("act", gate) * up


def act(m: Bare, x: Tensor) -> Tensor:
    if m.family == "gpt2":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return F.silu(x) if m.family == "llama" else F.gelu(x)


STAGES: dict[str, Stage] = {
    f.__name__: f
    for f in (embedded, logits, block, rms, layernorm, attention, projected, bias, places, speeds, kept, angles, placed,
              turned, spread, mixed, sees, scale, mlp, gated, act)
}  # fmt: skip
"""What a right program does at every stage."""


# Right ones


def tables(base: float = 0.0, width: int = 0, dtype: torch.dtype = torch.float32, repeat: str = "") -> dict[str, Stage]:
    """Cosines and sines in buffers, made once in some dtype."""

    def make(m: Bare) -> dict[str, Tensor]:
        angle = torch.arange(64, dtype=dtype)[:, None] * speeds(m, dtype, base, width)
        made = {"cosines": angle.cos(), "sines": angle.sin()}
        return {n: t.repeat(1, 2) if repeat else t for n, t in made.items()}

    def read(m: Bare, length: int) -> tuple[Tensor, Tensor]:
        dtype, at = m.own["embed/W_E"].dtype, m.do("places", length)
        half = m.get_buffer("cosines").size(-1) // (2 if repeat else 1)
        return m.get_buffer("cosines")[at, :half].to(dtype), m.get_buffer("sines")[at, :half].to(dtype)

    return {"kept": make, "angles": read}


def complex_turned(m: Bare, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.size(-1)
    a, b = x[..., :width].chunk(2, -1)
    made = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat([made.real, made.imag, x[..., width:]], -1)


def by_matrix(m: Bare, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.size(-1)
    ones = torch.eye(width // 2)
    blocks = [torch.cat([torch.cat([ones * c, ones * s], 1), torch.cat([-ones * s, ones * c], 1)])
              for c, s in zip(cos, sin, strict=True)]  # fmt: skip
    return torch.cat([torch.einsum("bhpk,pkl->bhpl", x[..., :width], torch.stack(blocks)), x[..., width:]], -1)


def half_cat(m: Bare, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.size(-1)
    own = x[..., :width]
    other = torch.cat([-own[..., width // 2 :], own[..., : width // 2]], -1)
    return torch.cat([own * cos.repeat(1, 2) + other * sin.repeat(1, 2), x[..., width:]], -1)


def grouped(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without copies of keys: queries have an axis of groups."""
    length = q.size(2)
    q = q.unflatten(1, (k.size(1), -1))
    scores = torch.einsum("bgnqk,bgpk->bgnqp", q, k) * m.d**-0.5
    scores = scores + torch.full((length, length), -torch.inf).triu(1)
    return torch.einsum("bgnqp,bgpk->bgnqk", scores.softmax(-1), v).flatten(1, 2)


def fused(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))


def one_by_one(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query by itself, on the keys up to its own."""
    rows = [((q[:, :, i : i + 1] / m.d**0.5) @ k[:, :, : i + 1].mT).softmax(-1) @ v[:, :, : i + 1]
            for i in range(q.size(2))]  # fmt: skip
    return torch.cat(rows, 2)


def expanded(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    times = q.size(1) // k.size(1)
    made = (part[:, :, None].expand(-1, -1, times, -1, -1).flatten(1, 2) for part in (k, v))
    return tuple(made)  # pyright: ignore[reportReturnType]


def as_they_are(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return k, v


def torch_rms(m: Bare, x: Tensor, w: Tensor, _: Any) -> Tensor:
    return F.rms_norm(x, w.shape, w, m.eps)


def torch_layernorm(m: Bare, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, w.shape, w, b, m.eps)


def later_places(m: Bare, length: int) -> Tensor:
    return torch.arange(length) + 11


SPELLINGS: dict[str, dict[str, Stage]] = {
    "as it is": {},
    "keys in groups": {"spread": as_they_are, "mixed": grouped},
    "keys expanded": {"spread": expanded},
    "the fused kernel": {"spread": as_they_are, "mixed": fused},
    "query by query": {"mixed": one_by_one},
    "torch's norms": {"rms": torch_rms, "layernorm": torch_layernorm},
    "products with sigmoid": {"gated": lambda m, gate, up: up * gate * torch.sigmoid(gate)},
}
TURNED: dict[str, dict[str, Stage]] = {
    "complex numbers": {"turned": complex_turned},
    "matrices": {"turned": by_matrix},
    "halves exchanged": {"turned": half_cat},
    "tables": tables(),
    "tables, twice": tables(repeat="yes"),
    "tables in float64": tables(dtype=torch.float64),
    "complex numbers of tables": {**tables(), "turned": complex_turned},
    "positions from 11 on": {"places": later_places},
    "frequencies": {"kept": lambda m: {"rates": speeds(m, torch.float32)}, "speeds": lambda m: m.get_buffer("rates")},
}


# Wrong ones


def interleaved(m: Bare, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = 2 * cos.size(-1)
    a, b = x[..., :width:2], x[..., 1:width:2]
    own = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.cat([own, x[..., width:]], -1)


def last_dims(m: Bare, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The last entries of each head turn, not the first."""
    return turned(m, x.flip(-1), cos, sin).flip(-1)


def tiled(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    times = q.size(1) // k.size(1)
    return k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)


def of_width(m: Bare) -> float:
    return m.own["embed/W_E"].size(1) ** -0.5


def rms_outside(m: Bare, x: Tensor, w: Tensor, _: Any) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + m.eps) * w


def unbiased(*names: str) -> dict[str, Stage]:
    return {"bias": lambda m, i, name: 0.0 if name.split(".")[1] in names else m.get(i, name)}


def pads_hidden(m: Bare, q: Tensor, k: Tensor) -> Tensor:
    return (k <= q) & ((k != 3) | (q < 9))


def summed_after(m: Bare, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mask is put on the pattern, which is not normalised again."""
    return (q @ k.mT * m.d**-0.5).softmax(-1).tril() @ v


ROTARY: dict[str, tuple[dict[str, Stage], str]] = {
    "pairs interleaved": ({"turned": interleaved}, "pairs interleaved"),
    "pairs interleaved, tables": ({**tables(), "turned": interleaved}, "pairs interleaved"),
    "half of the entries": (
        {"speeds": lambda m: speeds(m, width=m.config.rule.turned // 2)},
        "entries of each head turn",
    ),
    "keys as they are": (
        {"placed": lambda m, q, k: (m.do("turned", q, *m.do("angles", q.size(2))), k)},
        "no rotation of keys",
    ),
    "queries as they are": (
        {"placed": lambda m, q, k: (q, m.do("turned", k, *m.do("angles", q.size(2))))},
        "no rotation of queries",
    ),
    "no rotation": ({"placed": lambda m, q, k: (q, k)}, "no rotation of queries and keys"),
    "base 500": ({"speeds": lambda m: speeds(m, base=500.0)}, "rotary base 500 instead of 10000"),
    "base 500, tables": (tables(500.0), "rotary base 500 instead of 10000"),
    "base 500, tables, twice": (tables(500.0, repeat="yes"), "rotary base 500 instead of 10000"),
    "base 500, tables in float64": (tables(500.0, dtype=torch.float64), "rotary base 500 instead of 10000"),
    "base 500, complex tables": ({**tables(500.0), "turned": complex_turned}, "rotary base 500 instead of 10000"),
    "base 500, frequencies": (
        {"kept": lambda m: {"rates": speeds(m, torch.float32, 500.0)}, "speeds": lambda m: m.get_buffer("rates")},
        "rotary base 500 instead of 10000",
    ),
    "base 1234": ({"speeds": lambda m: speeds(m, base=1234.0)}, ""),
    "base 1234, tables": (tables(1234.0), "rotary base 1234 instead of 10000"),
    "the other way round": ({"turned": lambda m, x, c, s: turned(m, x, c, -s)}, "turned the other way round"),
    "the other way round, tables": (
        {**tables(), "turned": lambda m, x, c, s: turned(m, x, c, -s)},
        "turned the other way round",
    ),
    "positions from the end": (
        {"places": lambda m, length: torch.arange(length).flip(0)},
        "turned the other way round",
    ),
    "positions by two": ({"places": lambda m, length: 2 * torch.arange(length)}, "positions"),
    "turned twice": ({"turned": lambda m, x, c, s: turned(m, turned(m, x, c, s), c, s)}, ""),
    "values turn too": (
        {"mixed": lambda m, q, k, v: mixed(m, q, k, m.do("turned", v, *m.do("angles", v.size(2))))},
        "",
    ),
    "sines and cosines exchanged": ({"turned": lambda m, x, c, s: turned(m, x, s, c)}, "the other way round"),
}
"""Wrong rotations, and what a report says of the cause; "" where it only says where."""

ANY: dict[str, tuple[dict[str, Stage], str]] = {
    "scale of d_model": ({"scale": of_width}, "1/sqrt(d_model)"),
    "no scale": ({"scale": lambda m: 1.0}, "no scaling"),
    "window of 40": ({"sees": lambda m, q, k: (k <= q) & (q - k < 40)}, "attention to the last 40 tokens only"),
    "a key is hidden": ({"sees": pads_hidden}, ""),
    "mask on the pattern": ({"mixed": summed_after}, "mask after the softmax"),
    "mask blind to itself": ({"sees": lambda m, q, k: (k < q) | (q + k == 0)}, "does not see itself"),
    "no bias on the output": (unbiased("b_O"), "no bias on the output projection"),
    "no bias on v": (unbiased("b_V"), "no bias on v"),
    "no bias on q": (unbiased("b_Q"), "no bias on q"),
    "no bias on W_in": (unbiased("b_in"), "no bias on W_in"),
    "no bias on W_out": (unbiased("b_out"), "no bias on W_out"),
    "scores in thousands": ({"mixed": lambda m, q, k, v: mixed(m, (q * 1e3).round() / 1e3, k, v)}, ""),
    "wide activations clipped": ({"act": lambda m, x: act(m, x.clamp(max=3.0))}, ""),
    "norms in float16": (
        {
            "rms": lambda m, x, w, b: rms(m, x.half().to(x.dtype), w, b),
            "layernorm": lambda m, x, w, b: layernorm(m, x.half().to(x.dtype), w, b),
        },
        "",
    ),
    "the last position attends to all": ({"sees": lambda m, q, k: (k <= q) | (k == 0 * q + 2)}, ""),
}

LLAMAS: dict[str, tuple[dict[str, Stage], str]] = {
    "groups tiled": ({"spread": tiled}, "shared heads repeated as a whole"),
    "epsilon outside": ({"rms": rms_outside}, "epsilon outside the square root"),
    "gain and one": ({"rms": lambda m, x, w, b: rms(m, x, w + 1, b)}, "gain added to 1"),
    "mean taken off": ({"rms": lambda m, x, w, b: rms(m, x - x.mean(-1, keepdim=True), w, b)}, "mean is taken off"),
    "gelu": ({"act": lambda m, x: F.gelu(x)}, "activation function gelu instead of silu"),
    "gate and up exchanged": ({"gated": lambda m, gate, up: act(m, up) * gate}, "gate and up-projection exchanged"),
    "parallel": ({"block": parallel}, "in parallel with attention"),
}

NEOXES: dict[str, tuple[dict[str, Stage], str]] = {
    "sequential": ({"block": sequential}, "in sequence"),
    "tanh": ({"act": lambda m, x: F.gelu(x, approximate="tanh")}, "activation function gelu_new instead of gelu"),
    "rms": ({"layernorm": lambda m, x, w, b: rms(m, x, w, b) + b}, "RMSNorm instead of LayerNorm"),
    "the last entries turn": ({"turned": last_dims}, ""),
    "whole heads turn": ({"speeds": lambda m: speeds(m, width=m.d)}, "16 entries of each head turn instead of 4"),
    "one norm for both": (
        {
            "block": lambda m, x, i: (
                x + m.do("attention", m.norm(x, f"blocks/{i}/ln1"), i) + m.do("mlp", m.norm(x, f"blocks/{i}/ln1"), i)
            )
        },
        "ln1 is used in the place of ln2",
    ),
}

GPT2S: dict[str, tuple[dict[str, Stage], str]] = {
    "parallel": ({"block": parallel}, "in parallel with attention"),
    "gelu": ({"act": lambda m, x: F.gelu(x)}, "activation function gelu instead of gelu_new"),
    "silu": ({"act": lambda m, x: F.silu(x)}, "activation function silu instead of gelu_new"),
    "positions from the end": ({"places": lambda m, length: torch.arange(length).flip(0)}, "counted from the end"),
    "positions from 1": ({"places": lambda m, length: torch.arange(length) + 1}, "position"),
    "rms": ({"layernorm": lambda m, x, w, b: rms(m, x, w, b) + b}, "RMSNorm instead of LayerNorm"),
}
