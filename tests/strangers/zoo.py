"""Programs as strangers write them: a GPT-2 in other people's layouts, each from nothing but torch.

Every class takes the sizes and builds itself with random weights, as its authors would; `fill` puts a model's weights
in, as their own loading code would. So their names, their buffers and their odd habits are theirs, and none of it is
ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl

Weights = dict[str, Tensor]


def weights_of(model: pl.CkptedTransformer) -> Weights:
    """Every parameter by its name, per head and fused, as copies."""
    return {name: model.parameter(name).detach().clone() for name in model.parameter_names}


def set_(target: Tensor, value: Tensor) -> None:
    """Write a tensor into a parameter, whose shape must be the same."""
    assert target.shape == value.shape, (target.shape, value.shape)
    with torch.no_grad():
        target.copy_(value)


def set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    """Write [in, out] into a Linear."""
    set_(linear.weight, weight.T)
    if bias is not None:
        set_(linear.bias, bias)


def set_norm(norm: nn.Module, w: Weights, name: str) -> None:
    set_(norm.weight, w[f"{name}.w"])
    set_(norm.bias, w[f"{name}.b"])


def flat(w: Weights, name: str) -> Tensor:
    """W_Q, W_K or W_V [H, D, K] as [D, H K]; W_O [H, K, D] as [H K, D]; biases [H, K] as [H K]."""
    tensor = w[name]
    if name.endswith("W_O"):
        return tensor.flatten(0, 1)
    return tensor.transpose(0, 1).flatten(1) if tensor.dim() == 3 else tensor.flatten()


def gelu(x: Tensor) -> Tensor:
    """GPT-2's, as most people write it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


# nanoGPT


class NanoGPT(nn.Module):
    """Fused Linears, flash attention, a tied head, `(logits, loss)`, in evaluation the last position alone."""

    def __init__(self, c: pl.TransformerConfig, *, padded: int = 0, every: bool = False) -> None:
        super().__init__()
        self.config, self.every = SimpleNamespace(block_size=c.n_positions, n_head=c.n_head), every
        vocab, d = max(c.vocab_size, padded), c.n_embd

        def block() -> nn.ModuleDict:
            attn = nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d), "c_proj": nn.Linear(d, d)})
            mlp = nn.ModuleDict({"c_fc": nn.Linear(d, c.d_mlp), "c_proj": nn.Linear(c.d_mlp, d)})
            return nn.ModuleDict({"ln_1": nn.LayerNorm(d), "attn": attn, "ln_2": nn.LayerNorm(d), "mlp": mlp})

        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(vocab, d), "wpe": nn.Embedding(c.n_positions, d), "drop": nn.Dropout(0.1),
            "h": nn.ModuleList(block() for _ in range(c.n_layer)), "ln_f": nn.LayerNorm(d),
        })  # fmt: skip
        self.lm_head = nn.Linear(d, vocab, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def fill(self, w: Weights) -> None:
        t = self.transformer
        with torch.no_grad():
            t["wte"].weight[: len(w["embed.W_E"])] = w["embed.W_E"]
        set_(t["wpe"].weight, w["pos_embed.W_pos"])
        for i, block in enumerate(t["h"]):
            b = f"blocks.{i}"
            set_norm(block["ln_1"], w, f"{b}.ln1")
            set_norm(block["ln_2"], w, f"{b}.ln2")
            qkv = [(flat(w, f"{b}.attn.W_{n}"), flat(w, f"{b}.attn.b_{n}")) for n in "QKV"]
            set_linear(block["attn"]["c_attn"], torch.cat([m for m, _ in qkv], 1), torch.cat([v for _, v in qkv]))
            set_linear(block["attn"]["c_proj"], flat(w, f"{b}.attn.W_O"), w[f"{b}.attn.b_O"])
            set_linear(block["mlp"]["c_fc"], w[f"{b}.mlp.W_in"], w[f"{b}.mlp.b_in"])
            set_linear(block["mlp"]["c_proj"], w[f"{b}.mlp.W_out"], w[f"{b}.mlp.b_out"])
        set_norm(t["ln_f"], w, "ln_final")

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        t = self.transformer
        x = t["drop"](t["wte"](idx) + t["wpe"](torch.arange(idx.size(1), device=idx.device)))
        for block in t["h"]:
            q, k, v = block["attn"]["c_attn"](block["ln_1"](x)).split(x.size(-1), dim=2)
            q, k, v = (y.view(*y.shape[:2], self.config.n_head, -1).transpose(1, 2) for y in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["attn"]["c_proj"](y.transpose(1, 2).contiguous().view_as(x))
            x = x + block["mlp"]["c_proj"](F.gelu(block["mlp"]["c_fc"](block["ln_2"](x)), approximate="tanh"))
        x = t["ln_f"](x)
        return (self.lm_head(x), None) if self.every else (self.lm_head(x[:, [-1], :]), None)


# minGPT


class MinGPT(nn.Module):
    """A mask in a buffer, an MLP called through a lambda that holds the block's own modules, an untied head."""

    class Block(nn.Module):
        def __init__(self, c: pl.TransformerConfig) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd)
            self.attn = nn.Module()
            self.attn.c_attn, self.attn.c_proj = nn.Linear(c.n_embd, 3 * c.n_embd), nn.Linear(c.n_embd, c.n_embd)
            mask = torch.tril(torch.ones(c.n_positions, c.n_positions))
            self.attn.register_buffer("bias", mask.view(1, 1, c.n_positions, c.n_positions))
            self.mlp = nn.ModuleDict({
                "c_fc": nn.Linear(c.n_embd, c.d_mlp), "c_proj": nn.Linear(c.d_mlp, c.n_embd),
                "dropout": nn.Dropout(0.1),
            })  # fmt: skip
            m, self.heads = self.mlp, c.n_head
            self.mlpf = lambda x: m["dropout"](m["c_proj"](gelu(m["c_fc"](x))))

        def forward(self, x: Tensor) -> Tensor:
            n = x.size(1)
            q, k, v = self.attn.c_attn(self.ln_1(x)).split(x.size(2), dim=2)
            q, k, v = (y.view(*y.shape[:2], self.heads, -1).transpose(1, 2) for y in (q, k, v))
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = F.softmax(att.masked_fill(self.attn.bias[:, :, :n, :n] == 0, float("-inf")), dim=-1)
            x = x + self.attn.c_proj((att @ v).transpose(1, 2).contiguous().view_as(x))
            return x + self.mlpf(self.ln_2(x))

    def __init__(self, c: pl.TransformerConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(c.vocab_size, c.n_embd), "wpe": nn.Embedding(c.n_positions, c.n_embd),
            "h": nn.ModuleList(self.Block(c) for _ in range(c.n_layer)), "ln_f": nn.LayerNorm(c.n_embd),
        })  # fmt: skip
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)

    def fill(self, w: Weights) -> None:
        t: Any = self.transformer
        set_(t["wte"].weight, w["embed.W_E"])
        set_(t["wpe"].weight, w["pos_embed.W_pos"])
        for i, block in enumerate(t["h"]):
            b = f"blocks.{i}"
            set_norm(block.ln_1, w, f"{b}.ln1")
            set_norm(block.ln_2, w, f"{b}.ln2")
            set_linear(block.attn.c_attn, w[f"{b}.attn.W_QKV"], w[f"{b}.attn.b_QKV"])
            set_linear(block.attn.c_proj, flat(w, f"{b}.attn.W_O"), w[f"{b}.attn.b_O"])
            set_linear(block.mlp["c_fc"], w[f"{b}.mlp.W_in"], w[f"{b}.mlp.b_in"])
            set_linear(block.mlp["c_proj"], w[f"{b}.mlp.W_out"], w[f"{b}.mlp.b_out"])
        set_norm(t["ln_f"], w, "ln_final")
        set_(self.lm_head.weight, w["unembed.W_U"].T)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, None]:
        t = self.transformer
        x = t["wte"](idx) + t["wpe"](torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device).unsqueeze(0))
        for block in t["h"]:
            x = block(x)
        return self.lm_head(t["ln_f"](x)), None


# The layout of HookedTransformer, as courses copy it


class Hook(nn.Module):
    """A point that a value goes through."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Demo(nn.Module):
    """Per-head matrices, einsum, a mask by a buffer, an unembedding of its own with a bias of zeros."""

    class Norm(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean(dim=-1, keepdim=True)
            std = (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            return (x - mean) / std * self.w + self.b

    class Attention(nn.Module):
        def __init__(self, h: int, d: int, hooks: bool) -> None:
            super().__init__()
            for name in "QKV":
                self.register_parameter(f"W_{name}", nn.Parameter(torch.randn(h, d, d // h)))
                self.register_parameter(f"b_{name}", nn.Parameter(torch.zeros(h, d // h)))
            self.W_O, self.b_O = nn.Parameter(torch.randn(h, d // h, d)), nn.Parameter(torch.zeros(d))
            self.register_buffer("IGNORE", torch.tensor(float("-inf")))
            for name in ("q", "k", "v", "pattern", "z"):
                self.add_module(f"hook_{name}", Hook() if hooks else nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                getattr(self, f"hook_{n.lower()}")(
                    torch.einsum("bpd,hdk->bphk", x, getattr(self, f"W_{n}")) + getattr(self, f"b_{n}")
                )
                for n in "QKV"
            )
            scores = torch.einsum("bqhk,bjhk->bhqj", q, k) / k.size(-1) ** 0.5
            mask = torch.triu(torch.ones(scores.size(-2), scores.size(-1), device=x.device), diagonal=1).bool()
            pattern = self.hook_pattern(scores.masked_fill(mask, self.IGNORE.to(scores.dtype)).softmax(-1))
            z = self.hook_z(torch.einsum("bhqj,bjhk->bqhk", pattern, v))
            return torch.einsum("bqhk,hkd->bqd", z, self.W_O) + self.b_O

    class MLP(nn.Module):
        def __init__(self, d: int, m: int) -> None:
            super().__init__()
            self.W_in, self.b_in = nn.Parameter(torch.randn(d, m)), nn.Parameter(torch.zeros(m))
            self.W_out, self.b_out = nn.Parameter(torch.randn(m, d)), nn.Parameter(torch.zeros(d))

        def forward(self, x: Tensor) -> Tensor:
            return gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out

    class Block(nn.Module):
        def __init__(self, c: pl.TransformerConfig, hooks: bool) -> None:
            super().__init__()
            self.ln1, self.ln2 = Demo.Norm(c.n_embd), Demo.Norm(c.n_embd)
            self.attn, self.mlp = Demo.Attention(c.n_head, c.n_embd, hooks), Demo.MLP(c.n_embd, c.d_mlp)

        def forward(self, resid_pre: Tensor) -> Tensor:
            resid_mid = self.attn(self.ln1(resid_pre)) + resid_pre
            return self.mlp(self.ln2(resid_mid)) + resid_mid

    def __init__(self, c: pl.TransformerConfig, *, hooks: bool = False) -> None:
        super().__init__()
        self.embed, self.pos_embed, self.unembed = nn.Module(), nn.Module(), nn.Module()
        self.embed.W_E = nn.Parameter(torch.randn(c.vocab_size, c.n_embd))
        self.pos_embed.W_pos = nn.Parameter(torch.randn(c.n_positions, c.n_embd))
        self.blocks = nn.ModuleList(self.Block(c, hooks) for _ in range(c.n_layer))
        self.ln_final = self.Norm(c.n_embd)
        self.unembed.W_U = nn.Parameter(torch.randn(c.n_embd, c.vocab_size))
        self.unembed.b_U = nn.Parameter(torch.zeros(c.vocab_size), requires_grad=False)

    def fill(self, w: Weights) -> None:
        names = dict(self.named_parameters())
        for name, parameter in names.items():
            if name != "unembed.b_U":
                set_(parameter, w[name])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed.W_E[tokens] + self.pos_embed.W_pos[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x) @ self.unembed.W_U + self.unembed.b_U


# The course's


class Course(nn.Module):
    """The names that the course prescribes, scores of -1e4 at later tokens, the embedding as its head.

    Args:
        c: The sizes.
        mask: Where the mask comes from: "made" at every run, or a "buffer".
        blocks: What holds the blocks.
    """

    class Attention(nn.Module):
        def __init__(self, c: pl.TransformerConfig, mask: str) -> None:
            super().__init__()
            self.num_heads = c.n_head
            self.qkv_proj, self.output_proj = nn.Linear(c.n_embd, 3 * c.n_embd), nn.Linear(c.n_embd, c.n_embd)
            self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
            size = c.n_positions
            self.register_buffer("mask", torch.ones(size, size).tril().bool() if mask == "buffer" else None)

        def forward(self, x: Tensor) -> Tensor:
            n = x.size(1)
            q, k, v = (
                part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, -1)
            )
            seen = torch.ones(n, n).tril().bool() if self.mask is None else self.mask[:n, :n]
            scores = torch.where(seen, q @ k.mT / math.sqrt(q.size(-1)), torch.tensor(-1e4, dtype=x.dtype))
            z = (self.attn_dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)
            return self.resid_dropout(self.output_proj(z))

    class Block(nn.Module):
        def __init__(self, c: pl.TransformerConfig, mask: str) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd)
            self.attn, self.dropout = Course.Attention(c, mask), nn.Dropout(0.1)
            self.linear1, self.linear2 = nn.Linear(c.n_embd, c.d_mlp), nn.Linear(c.d_mlp, c.n_embd)

        def forward(self, x: Tensor, cache: Any = None) -> Tensor:
            x = x + self.attn(self.ln1(x))
            return x + self.dropout(self.linear2(gelu(self.linear1(self.ln2(x)))))

    def __init__(
        self, c: pl.TransformerConfig, mask: str = "made", blocks: Callable[..., nn.Module] | None = None
    ) -> None:
        super().__init__()
        made = [self.Block(c, mask) for _ in range(c.n_layer)]
        self.token_embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.pos_embedding = nn.Embedding(c.n_positions, c.n_embd)
        self.blocks = nn.ModuleList(made) if blocks is None else blocks(*made)
        self.dropout, self.ln = nn.Dropout(0.1), nn.LayerNorm(c.n_embd)

    def fill(self, w: Weights) -> None:
        set_(self.token_embedding.weight, w["embed.W_E"])
        set_(self.pos_embedding.weight, w["pos_embed.W_pos"])
        set_norm(self.ln, w, "ln_final")
        for i, block in enumerate(self.blocks.children()):
            b = f"blocks.{i}"
            set_norm(block.ln1, w, f"{b}.ln1")
            set_norm(block.ln2, w, f"{b}.ln2")
            set_linear(block.attn.qkv_proj, w[f"{b}.attn.W_QKV"], w[f"{b}.attn.b_QKV"])
            set_linear(block.attn.output_proj, flat(w, f"{b}.attn.W_O"), w[f"{b}.attn.b_O"])
            set_linear(block.linear1, w[f"{b}.mlp.W_in"], w[f"{b}.mlp.b_in"])
            set_linear(block.linear2, w[f"{b}.mlp.W_out"], w[f"{b}.mlp.b_out"])

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        found = self.dropout(self.token_embedding(x) + self.pos_embedding(torch.arange(x.size(1))))
        for block in self.blocks.children():
            found = block(found)
        return torch.einsum("bsd,vd->bsv", self.ln(found), self.token_embedding.weight)


# torch's own layers


class Encoder(nn.Module):
    """`nn.TransformerEncoder` with its norm first and a causal mask; evaluating, torch may take a fused path."""

    def __init__(self, c: pl.TransformerConfig) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            c.n_embd, c.n_head, c.d_mlp, dropout=0.1, activation=gelu, batch_first=True, norm_first=True
        )
        self.token, self.position = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.n_positions, c.n_embd)
        self.layers = nn.TransformerEncoder(layer, c.n_layer, nn.LayerNorm(c.n_embd), enable_nested_tensor=False)

    def fill(self, w: Weights) -> None:
        set_(self.token.weight, w["embed.W_E"])
        set_(self.position.weight, w["pos_embed.W_pos"])
        for i, layer in enumerate(self.layers.layers):
            b = f"blocks.{i}"
            set_norm(layer.norm1, w, f"{b}.ln1")
            set_norm(layer.norm2, w, f"{b}.ln2")
            set_(layer.self_attn.in_proj_weight, torch.cat([flat(w, f"{b}.attn.W_{n}").T for n in "QKV"]))
            set_(layer.self_attn.in_proj_bias, torch.cat([flat(w, f"{b}.attn.b_{n}") for n in "QKV"]))
            set_linear(layer.self_attn.out_proj, flat(w, f"{b}.attn.W_O"), w[f"{b}.attn.b_O"])
            set_linear(layer.linear1, w[f"{b}.mlp.W_in"], w[f"{b}.mlp.b_in"])
            set_linear(layer.linear2, w[f"{b}.mlp.W_out"], w[f"{b}.mlp.b_out"])
        set_norm(self.layers.norm, w, "ln_final")

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.size(1)
        mask = nn.Transformer.generate_square_subsequent_mask(n, dtype=self.token.weight.dtype)
        x = self.token(ids) + self.position(torch.arange(n))
        return F.linear(self.layers(x, mask=mask, is_causal=True), self.token.weight)


class Separate(nn.Module):
    """Query, key and value in three Linears under BERT's names; ids by keyword only; an output object."""

    class Layer(nn.Module):
        def __init__(self, c: pl.TransformerConfig) -> None:
            super().__init__()
            d = c.n_embd
            self.before, self.after, self.heads = nn.LayerNorm(d), nn.LayerNorm(d), c.n_head
            self.query, self.key, self.value, self.dense = (nn.Linear(d, d) for _ in range(4))
            self.intermediate, self.output = nn.Linear(d, c.d_mlp), nn.Linear(c.d_mlp, d)

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)
            q, k, v = (
                part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
            )
            n = x.size(1)
            bias = torch.zeros(n, n, dtype=x.dtype).masked_fill(torch.ones(n, n).triu(1).bool(), -1e9)
            weights = torch.softmax(q @ k.mT / math.sqrt(q.size(-1)) + bias, -1)
            x = x + self.dense((weights @ v).transpose(1, 2).flatten(2))
            return x + self.output(gelu(self.intermediate(self.after(x))))

    def __init__(self, c: pl.TransformerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(c.vocab_size, c.n_embd)
        self.position_embeddings = nn.Embedding(c.n_positions, c.n_embd)
        self.layer = nn.ModuleList(self.Layer(c) for _ in range(c.n_layer))
        self.norm = nn.LayerNorm(c.n_embd)
        self.decoder = nn.Linear(c.n_embd, c.vocab_size)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = self.word_embeddings.weight

    def fill(self, w: Weights) -> None:
        set_(self.word_embeddings.weight, w["embed.W_E"])
        set_(self.position_embeddings.weight, w["pos_embed.W_pos"])
        for i, layer in enumerate(self.layer):
            b = f"blocks.{i}"
            set_norm(layer.before, w, f"{b}.ln1")
            set_norm(layer.after, w, f"{b}.ln2")
            for part, name in ((layer.query, "Q"), (layer.key, "K"), (layer.value, "V")):
                set_linear(part, flat(w, f"{b}.attn.W_{name}"), flat(w, f"{b}.attn.b_{name}"))
            set_linear(layer.dense, flat(w, f"{b}.attn.W_O"), w[f"{b}.attn.b_O"])
            set_linear(layer.intermediate, w[f"{b}.mlp.W_in"], w[f"{b}.mlp.b_in"])
            set_linear(layer.output, w[f"{b}.mlp.W_out"], w[f"{b}.mlp.b_out"])
        set_norm(self.norm, w, "ln_final")

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.word_embeddings(input_ids) + self.position_embeddings(torch.arange(input_ids.size(1)))
        for layer in self.layer:
            x = layer(x)
        return SimpleNamespace(logits=self.decoder(self.norm(x)))


class Flat(nn.Module):
    """One module with a dict of arrays, as pure functions are written: no submodules at all."""

    def __init__(self, c: pl.TransformerConfig) -> None:
        super().__init__()
        d, m = c.n_embd, c.d_mlp
        shapes = {"ln_1.g": (d,), "ln_1.b": (d,), "c_attn.w": (d, 3 * d), "c_attn.b": (3 * d,), "c_proj.w": (d, d),
                  "c_proj.b": (d,), "ln_2.g": (d,), "ln_2.b": (d,), "c_fc.w": (d, m), "c_fc.b": (m,),
                  "c_out.w": (m, d), "c_out.b": (d,)}  # fmt: skip
        self.n_layer, self.n_head = c.n_layer, c.n_head
        tops = {"wte": (c.vocab_size, d), "wpe": (c.n_positions, d), "ln_f.g": (d,), "ln_f.b": (d,)}
        inner = {f"h{i}.{name}": shape for i in range(c.n_layer) for name, shape in shapes.items()}
        self.params = nn.ParameterDict({
            name.replace(".", "/"): nn.Parameter(torch.randn(shape)) for name, shape in {**tops, **inner}.items()
        })  # fmt: skip

    def fill(self, w: Weights) -> None:
        def put(name: str, value: Tensor) -> None:
            set_(self.params[name.replace(".", "/")], value)

        put("wte", w["embed.W_E"])
        put("wpe", w["pos_embed.W_pos"])
        put("ln_f.g", w["ln_final.w"])
        put("ln_f.b", w["ln_final.b"])
        for i in range(self.n_layer):
            b = f"blocks.{i}"
            for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
                put(f"h{i}.{theirs}.g", w[f"{b}.{ours}.w"])
                put(f"h{i}.{theirs}.b", w[f"{b}.{ours}.b"])
            put(f"h{i}.c_attn.w", w[f"{b}.attn.W_QKV"])
            put(f"h{i}.c_attn.b", w[f"{b}.attn.b_QKV"])
            put(f"h{i}.c_proj.w", flat(w, f"{b}.attn.W_O"))
            put(f"h{i}.c_proj.b", w[f"{b}.attn.b_O"])
            for theirs, ours in (("c_fc.w", "W_in"), ("c_fc.b", "b_in"), ("c_out.w", "W_out"), ("c_out.b", "b_out")):
                put(f"h{i}.{theirs}", w[f"{b}.mlp.{ours}"])

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        p = self.params

        def norm(x: Tensor, name: str) -> Tensor:
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
            return p[f"{name}/g"] * (x - mean) / torch.sqrt(variance + 1e-5) + p[f"{name}/b"]

        x = p["wte"][inputs] + p["wpe"][range(inputs.shape[1])]
        causal = (1 - torch.tril(torch.ones(inputs.shape[1], inputs.shape[1], dtype=x.dtype))) * -1e10
        for i in range(self.n_layer):
            qkv = norm(x, f"h{i}/ln_1") @ p[f"h{i}/c_attn/w"] + p[f"h{i}/c_attn/b"]
            heads = [part.chunk(self.n_head, -1) for part in qkv.chunk(3, -1)]
            outs = [
                torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + causal, -1) @ v
                for q, k, v in zip(*heads, strict=True)
            ]
            x = x + torch.cat(outs, -1) @ p[f"h{i}/c_proj/w"] + p[f"h{i}/c_proj/b"]
            hidden = gelu(norm(x, f"h{i}/ln_2") @ p[f"h{i}/c_fc/w"] + p[f"h{i}/c_fc/b"])
            x = x + hidden @ p[f"h{i}/c_out/w"] + p[f"h{i}/c_out/b"]
        return {"logits": norm(x, "ln_f") @ p["wte"].T}


@dataclass(frozen=True)
class Stranger:
    """A program and how it is made.

    Attributes:
        name: Of the test.
        make: The program of these sizes, with random weights.
        opens: Whether its state dict has a layout that `pl.load` reads.
    """

    name: str
    make: Callable[[pl.TransformerConfig], Any]
    opens: bool = False

    def filled(self, model: pl.CkptedTransformer) -> Any:
        """Evaluating, with a model's weights."""
        made = self.make(model.config)
        made.fill(weights_of(model))
        return made.eval()


ZOO = [
    Stranger("nanoGPT, last position", NanoGPT, opens=True),
    Stranger("nanoGPT, all positions", lambda c: NanoGPT(c, every=True), opens=True),
    Stranger("nanoGPT, padded vocabulary", lambda c: NanoGPT(c, padded=-(-c.vocab_size // 64) * 64, every=True)),
    Stranger("minGPT", MinGPT, opens=True),
    Stranger("demo transformer", Demo, opens=True),
    Stranger("hooked transformer", lambda c: Demo(c, hooks=True), opens=True),
    Stranger("the course's", Course, opens=True),
    Stranger("the course's, another holder and mask", lambda c: Course(c, "buffer", nn.Sequential), opens=True),
    Stranger("torch's encoder", Encoder),
    Stranger("three Linears, keyword only", Separate),
    Stranger("a dict of arrays", Flat),
]
