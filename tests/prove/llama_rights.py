"""A Llama written in plain torch under names of its own, right or with one known mistake in it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl

MISTAKES = {
    "interleaved": "attn.ckpt_z",
    "eps 1e-5": "ln1.ckpt_normalized",
    "mean taken off": "ln1.ckpt_normalized",
    "gate and up exchanged": "mlp.ckpt_post",
    "groups repeated": "attn.ckpt_z",
    "no rotation of k": "attn.ckpt_z",
    "theta": "attn.ckpt_z",
    "gelu": "mlp.ckpt_post",
}
"""Mistake -> the checkpoint of block 0 at which a program that shows its values first differs."""


class Norm(nn.Module):
    def __init__(self, gain: Tensor, eps: float, wrong: str) -> None:
        super().__init__()
        self.gain, self.eps, self.wrong = nn.Parameter(gain.clone()), eps, wrong

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True) if self.wrong == "mean taken off" else wide
        eps = 1e-5 if self.wrong == "eps 1e-5" else self.eps
        return self.gain * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


class Rotation(nn.Module):
    """Turns x [B, H, P, K] by its positions; cosines and sines are computed each time, or from something kept."""

    def __init__(self, width: int, kept: str, wrong: str) -> None:
        super().__init__()
        self.width, self.kept, self.wrong = width, kept, wrong
        if kept == "frequencies":
            self.register_buffer("speeds", self._speeds(torch.float32))
        angles = torch.arange(64.0)[:, None] * self._speeds(torch.float32)
        if kept in ("tables", "from 2"):
            self.register_buffer("cosines", angles.cos().repeat(1, 2), persistent=False)
            self.register_buffer("sines", angles.sin().repeat(1, 2), persistent=False)
        if kept == "angles":
            self.angles = torch.arange(1, 65.0)[:, None] * self._speeds(torch.float32)
        if kept == "by name":
            self.parts = {"cos": angles.cos()[None, :, None].repeat_interleave(2, -1), "-sin": -angles.sin()}
        if kept == "complex":
            self.turns = torch.polar(torch.ones(64, width // 2), angles)

    def _speeds(self, dtype: torch.dtype) -> Tensor:
        theta = 500.0 if self.wrong == "theta" else 1e4
        return theta ** -(torch.arange(0, self.width, 2, dtype=dtype) / self.width)

    def _turn(self, positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self.kept == "angles":
            return self.angles[:positions].cos(), self.angles[:positions].sin()
        if self.kept == "by name":
            return self.parts["cos"][0, :positions, 0, ::2], -self.parts["-sin"][:positions]
        if self.kept == "from 2":
            where = slice(2, positions + 2)
            return self.cosines[where, : self.width // 2], self.sines[where, : self.width // 2]
        if self.kept == "tables":
            return self.cosines[:positions, : self.width // 2], self.sines[:positions, : self.width // 2]
        if self.kept == "complex":
            return self.turns.real[:positions].to(dtype), self.turns.imag[:positions].to(dtype)
        speeds = self.speeds if self.kept == "frequencies" else self._speeds(dtype)
        angles = torch.arange(positions, dtype=dtype)[:, None] * speeds
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self._turn(x.size(2), x.dtype)
        if self.wrong == "interleaved":
            a, b = x[..., ::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """q, k and v apart, or in one matrix."""

    def __init__(self, p: dict[str, Tensor], b: str, rotation: Rotation, *, fused: bool) -> None:
        super().__init__()
        flat = [p[f"{b}attn.W_{c}"].transpose(0, 1).flatten(1).T for c in "QKV"]
        self.counts = [len(matrix) for matrix in flat]
        if fused:
            self.qkv = linear(torch.cat(flat))
        else:
            self.queries, self.keys, self.values = map(linear, flat)
        self.mix = linear(p[f"{b}attn.W_O"].flatten(0, 1).T)
        self.rotation, self.fused = rotation, fused

    def forward(self, x: Tensor) -> Tensor:
        width, wrong = self.rotation.width, self.rotation.wrong
        parts = self.qkv(x).split(self.counts, -1) if self.fused else (self.queries(x), self.keys(x), self.values(x))
        q, k, v = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)
        q, k = self.rotation(q), k if wrong == "no rotation of k" else self.rotation(k)
        times = q.size(1) // k.size(1)
        if wrong == "groups repeated":
            k, v = k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)
        else:
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        scores = (q @ k.mT / math.sqrt(width)).masked_fill(torch.ones(x.size(1), x.size(1)).triu(1).bool(), -1e9)
        return self.mix((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Feed(nn.Module):
    def __init__(self, p: dict[str, Tensor], b: str, wrong: str, *, fused: bool) -> None:
        super().__init__()
        gate, up = p[f"{b}mlp.W_gate"].T, p[f"{b}mlp.W_in"].T
        if fused:
            self.both = linear(torch.cat([gate, up]))
        else:
            self.gate, self.up = linear(gate), linear(up)
        self.down, self.wrong, self.fused = linear(p[f"{b}mlp.W_out"].T), wrong, fused

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, -1) if self.fused else (self.gate(x), self.up(x))
        if self.wrong == "gate and up exchanged":
            gate, up = up, gate
        return self.down((F.gelu(gate) if self.wrong == "gelu" else F.silu(gate)) * up)


def linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.size(1), weight.size(0), bias=False)
    made.weight = nn.Parameter(weight.contiguous().clone())
    return made


class PlainLlama(nn.Module):
    """A Llama with the weights of one of ours; `wrong` in block `only`, or everywhere."""

    def __init__(
        self,
        model: pl.CkptedTransformer,
        wrong: str = "",
        *,
        only: int | None = None,
        fused: bool = False,
        kept: str = "",
    ) -> None:
        super().__init__()
        p = {name: model.parameter(name).detach() for name in model.parameter_names}
        eps, sizes = model.config.rms_norm_eps, model.config.sizes
        self.words = nn.Embedding.from_pretrained(p["embed.W_E"].clone(), freeze=False)
        self.steps = nn.ModuleList()
        for i in range(sizes["layer"]):
            b, here = f"blocks.{i}.", wrong if only in (None, i) else ""
            attention = Attention(p, b, Rotation(sizes["d_head"], kept, here), fused=fused)
            self.steps.append(nn.ModuleDict({
                "before": Norm(p[b + "ln1.w"], eps, here), "attention": attention,
                "middle": Norm(p[b + "ln2.w"], eps, here), "feed": Feed(p, b, here, fused=fused),
            }))  # fmt: skip
        self.last = Norm(p["ln_final.w"], eps, wrong if only is None else "")
        self.scores = linear(p["unembed.W_U"].T)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for step in self.steps:
            x = x + step["attention"](step["before"](x))
            x = x + step["feed"](step["middle"](x))
        return self.scores(self.last(x))
