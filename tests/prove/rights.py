"""Right GPT-2s in other people's layouts, each written on its own: names, nesting, orientation and order of heads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from course import course, monolith, new_gelu
from torch import Tensor, nn

import pellucid as pl


def tensors(model: pl.CkptedTransformer) -> dict[str, Tensor]:
    return {name: model.parameter(name).detach().clone() for name in model.parameter_names}


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """From [in, out]."""
    made = nn.Linear(*weight.shape)
    made.weight, made.bias = nn.Parameter(weight.T.contiguous()), nn.Parameter(bias.clone())
    return made


def norm(w: Tensor, b: Tensor) -> nn.LayerNorm:
    made = nn.LayerNorm(len(w), eps=1e-5)
    made.weight, made.bias = nn.Parameter(w), nn.Parameter(b)
    return made


def embedding(table: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(table, freeze=False)


class Nano(nn.Module):
    """nanoGPT's shape: a fused Linear, flash attention, tied head, (logits, loss), the last position's logits only."""

    class Block(nn.Module):
        def __init__(self, p: dict[str, Tensor], i: int, heads: int) -> None:
            super().__init__()
            b = f"blocks.{i}."
            self.ln_1, self.ln_2 = norm(p[b + "ln1.w"], p[b + "ln1.b"]), norm(p[b + "ln2.w"], p[b + "ln2.b"])
            self.c_attn = linear(p[b + "attn.W_QKV"], p[b + "attn.b_QKV"])
            self.c_proj = linear(p[b + "attn.W_O"].flatten(0, 1), p[b + "attn.b_O"])
            self.mlp = nn.Sequential(
                linear(p[b + "mlp.W_in"], p[b + "mlp.b_in"]), nn.GELU("tanh"),
                linear(p[b + "mlp.W_out"], p[b + "mlp.b_out"]), nn.Dropout(0.1),
            )  # fmt: skip
            self.register_buffer("bias", torch.ones(64, 64).tril()[None, None])
            self.heads = heads

        def forward(self, x: Tensor) -> Tensor:
            split = self.c_attn(self.ln_1(x)).split(x.size(-1), -1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in split)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).flatten(2))
            return x + self.mlp(self.ln_2(x))

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        self.lm_head = nn.Linear(model.config.n_embd, model.config.vocab_size, bias=False)
        self.transformer = nn.ModuleDict({
            "wte": embedding(p["embed.W_E"]), "wpe": embedding(p["pos_embed.W_pos"]),
            "h": nn.ModuleList(self.Block(p, i, model.config.n_head) for i in range(model.config.n_layer)),
            "ln_f": norm(p["ln_final.w"], p["ln_final.b"]),
        })  # fmt: skip
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, None]:
        t = self.transformer
        x = t["wte"](idx) + t["wpe"](torch.arange(idx.size(1)))
        for block in t["h"]:
            x = block(x)
        return self.lm_head(t["ln_f"](x)[:, [-1], :]), None


class Split(nn.Module):
    """q, k and v apart; the result of attention is a tuple; residuals in place; a mask is demanded."""

    class Attention(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str, heads: int) -> None:
            super().__init__()
            for letter in "KVQ":
                weight = p[f"{b}attn.W_{letter}"].transpose(0, 1).flatten(1)
                setattr(self, f"to_{letter.lower()}", linear(weight, p[f"{b}attn.b_{letter}"].flatten()))
            self.out = linear(p[b + "attn.W_O"].flatten(0, 1), p[b + "attn.b_O"])
            self.heads = heads
            self.register_buffer("root", torch.sqrt(torch.tensor(float(p[b + "attn.W_Q"].size(2)))))

        def forward(self, *, states: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v = (getattr(self, f"to_{c}")(states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for c in "qkv")
            scores = q / self.root @ k.mT + torch.where(seen, 0.0, -1e9)
            pattern = torch.softmax(scores, -1, dtype=torch.float32)
            return self.out((pattern @ v).transpose(1, 2).flatten(2)), pattern

    class Layer(nn.Module):
        def __init__(self, p: dict[str, Tensor], i: int, heads: int) -> None:
            super().__init__()
            b = f"blocks.{i}."
            self.attention = Split.Attention(p, b, heads)
            self.feed_in = linear(p[b + "mlp.W_in"], p[b + "mlp.b_in"])
            self.feed_out = linear(p[b + "mlp.W_out"], p[b + "mlp.b_out"])
            self.norms = nn.ModuleList([norm(p[f"{b}ln{n}.w"], p[f"{b}ln{n}.b"]) for n in (1, 2)])

        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            x += self.attention(states=self.norms[0](x), seen=seen)[0]
            x += self.feed_out(new_gelu(self.feed_in(self.norms[1](x))))
            return x

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        self.layers = nn.ModuleList(self.Layer(p, i, model.config.n_head) for i in range(model.config.n_layer))
        self.last = norm(p["ln_final.w"], p["ln_final.b"])
        self.words, self.places = embedding(p["embed.W_E"]), embedding(p["pos_embed.W_pos"])

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        seen = torch.ones(ids.size(1), ids.size(1)).tril().bool() & attention_mask.bool()[:, None, None]
        x = self.words(ids) + self.places(torch.arange(ids.size(1))[None])
        for layer in self.layers:
            x = layer(x, seen)
        return {"loss": torch.zeros(()), "logits": self.last(x) @ self.words.weight.mT}


class PerHead(nn.Module):
    """Every head a module of its own, with q, k and v apart, as in lectures."""

    class Head(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str, h: int) -> None:
            super().__init__()
            self.query, self.key, self.value = (linear(p[f"{b}attn.W_{c}"][h], p[f"{b}attn.b_{c}"][h]) for c in "QKV")

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.query(x), self.key(x), self.value(x)
            scores = q @ k.mT * q.size(-1) ** -0.5
            return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1) @ v

    class Block(nn.Module):
        def __init__(self, p: dict[str, Tensor], i: int, heads: int) -> None:
            super().__init__()
            b = f"blocks.{i}."
            self.heads = nn.ModuleList(PerHead.Head(p, b, h) for h in range(heads))
            self.proj = linear(p[b + "attn.W_O"].flatten(0, 1), p[b + "attn.b_O"])
            self.before, self.middle = norm(p[b + "ln1.w"], p[b + "ln1.b"]), norm(p[b + "ln2.w"], p[b + "ln2.b"])
            self.up, self.down = (
                linear(p[b + "mlp.W_in"], p[b + "mlp.b_in"]),
                linear(p[b + "mlp.W_out"], p[b + "mlp.b_out"]),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x)
            x = x + self.proj(torch.cat([head(y) for head in self.heads], -1))
            return x + self.down(new_gelu(self.up(self.middle(x))))

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        self.tokens, self.positions = nn.Parameter(p["embed.W_E"]), nn.Parameter(p["pos_embed.W_pos"])
        self.stack = nn.Sequential(*(self.Block(p, i, model.config.n_head) for i in range(model.config.n_layer)))
        self.end = norm(p["ln_final.w"], p["ln_final.b"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens[ids] + self.positions[: ids.size(1)]
        return torch.einsum("bpd,vd->bpv", self.end(self.stack(x)), self.tokens)


class Einsum(nn.Module):
    """Bare parameters per head, [H, K, D] and [D, H, K], in an attention module without children."""

    class Attention(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str) -> None:
            super().__init__()
            self.wq = nn.Parameter(p[b + "attn.W_Q"].permute(0, 2, 1).contiguous())
            self.wk = nn.Parameter(p[b + "attn.W_K"].permute(1, 0, 2).contiguous())
            self.wv = nn.Parameter(p[b + "attn.W_V"].permute(2, 1, 0).contiguous())
            self.bq, self.bk, self.bv = (nn.Parameter(p[f"{b}attn.b_{c}"]) for c in "QKV")
            self.wo, self.bo = (
                nn.Parameter(p[b + "attn.W_O"].permute(2, 0, 1).contiguous()),
                nn.Parameter(p[b + "attn.b_O"]),
            )

        def forward(self, x: Tensor) -> Tensor:
            q = torch.einsum("bpd,hkd->bhpk", x, self.wq) + self.bq[:, None]
            k = torch.einsum("bpd,dhk->bhpk", x, self.wk) + self.bk[:, None]
            v = torch.einsum("bpd,kdh->bhpk", x, self.wv) + self.bv[:, None]
            scores = torch.einsum("bhqk,bhpk->bhqp", q, k) / math.sqrt(q.size(-1))
            hidden = torch.full(scores.shape[-2:], -torch.inf).triu(1)
            return torch.einsum("bhqp,bhpk,ohk->bqo", (scores + hidden).softmax(-1), v, self.wo) + self.bo

    class MLP(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(p[b + "mlp.W_in"].T.contiguous()), nn.Parameter(p[b + "mlp.b_in"])
            self.c, self.d = nn.Parameter(p[b + "mlp.W_out"]), nn.Parameter(p[b + "mlp.b_out"])

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(F.linear(x, self.a, self.b), approximate="tanh") @ self.c + self.d

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        self.e, self.w = nn.Parameter(p["embed.W_E"].T.contiguous()), nn.Parameter(p["pos_embed.W_pos"])
        self.attn = nn.ModuleList(self.Attention(p, f"blocks.{i}.") for i in range(model.config.n_layer))
        self.mlp = nn.ModuleList(self.MLP(p, f"blocks.{i}.") for i in range(model.config.n_layer))
        self.norm = nn.ModuleList(
            norm(p[f"blocks.{i}.ln{n}.w"], p[f"blocks.{i}.ln{n}.b"])
            for i in range(model.config.n_layer)
            for n in (1, 2)
        )
        self.final = norm(p["ln_final.w"], p["ln_final.b"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e.T[ids] + self.w[: ids.size(1)]
        for i, (attn, mlp) in enumerate(zip(self.attn, self.mlp, strict=True)):
            x = x + attn(self.norm[2 * i](x))
            x = x + mlp(self.norm[2 * i + 1](x))
        return self.final(x) @ self.e


class Fused(nn.Module):
    """Modules that do more than their matrix (GELU inside a linear, q scaled in its projection); sequence first."""

    class GeluLinear(nn.Module):
        def __init__(self, weight: Tensor, bias: Tensor) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

        def forward(self, x: Tensor) -> Tensor:
            return new_gelu(x @ self.weight + self.bias)

    class ScaledLinear(nn.Module):
        def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
            super().__init__()
            self.weight, self.bias, self.scale = nn.Parameter(weight), nn.Parameter(bias), scale

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight + self.bias) * self.scale

    class Residual(nn.Module):
        """x + attention(norm(x)), as one module."""

        def __init__(self, p: dict[str, Tensor], b: str, heads: int) -> None:
            super().__init__()
            flat = {c: p[f"{b}attn.W_{c}"].transpose(0, 1).flatten(1) for c in "QKV"}
            bias = {c: p[f"{b}attn.b_{c}"].flatten() for c in "QKV"}
            self.norm = norm(p[b + "ln1.w"], p[b + "ln1.b"])
            self.q = Fused.ScaledLinear(flat["Q"], bias["Q"], (flat["Q"].size(1) // heads) ** -0.5)
            self.kv = linear(torch.cat([flat["K"], flat["V"]], 1), torch.cat([bias["K"], bias["V"]]))
            self.o = linear(p[b + "attn.W_O"].flatten(0, 1), p[b + "attn.b_O"])
            self.heads = heads

        def forward(self, x: Tensor) -> Tensor:  # [P, B, D]
            y = self.norm(x)
            k, v = self.kv(y).chunk(2, -1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3) for part in (self.q(y), k, v))
            scores = (q @ k.mT).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -1e4)
            return x + self.o((scores.softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2))

    class Feed(nn.Module):
        def __init__(self, p: dict[str, Tensor], b: str) -> None:
            super().__init__()
            self.norm = norm(p[b + "ln2.w"], p[b + "ln2.b"])
            self.up = Fused.GeluLinear(p[b + "mlp.W_in"], p[b + "mlp.b_in"])
            self.down = linear(p[b + "mlp.W_out"], p[b + "mlp.b_out"])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(self.norm(x)))

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        self.e, self.w = embedding(p["embed.W_E"]), embedding(p["pos_embed.W_pos"])
        self.steps = nn.ModuleList()
        for i in range(model.config.n_layer):
            self.steps += [self.Residual(p, f"blocks.{i}.", model.config.n_head), self.Feed(p, f"blocks.{i}.")]
        self.last = norm(p["ln_final.w"], p["ln_final.b"])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids.T) + self.w(torch.arange(ids.size(1)))[:, None]
        for step in self.steps:
            x = step(x)
        return (self.last(x) @ self.e.weight.T).transpose(0, 1)


class Permuted(nn.Module):
    """Heads in another order everywhere; q|k|v per head; the model's head untied but equal; a named tuple out."""

    class Out(NamedTuple):
        scores: Tensor
        extra: Any

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        h = model.config.n_head
        for i in range(model.config.n_layer):
            order = torch.randperm(h, generator=torch.Generator().manual_seed(i + 1))
            for c in "QKV":
                p[f"blocks.{i}.attn.W_{c}"] = p[f"blocks.{i}.attn.W_{c}"][order]
                p[f"blocks.{i}.attn.b_{c}"] = p[f"blocks.{i}.attn.b_{c}"][order]
            p[f"blocks.{i}.attn.W_O"] = p[f"blocks.{i}.attn.W_O"][order]
        self.inner = Interleaved(model, p)
        self.head = nn.Linear(model.config.n_embd, model.config.vocab_size, bias=False)
        self.head.weight = nn.Parameter(p["embed.W_E"].clone())

    def forward(self, ids: Tensor) -> Any:
        return self.Out(self.head(self.inner.hidden(ids)), None)


class Interleaved(nn.Module):
    """One Linear whose output is (head, part, d_head); functional LayerNorm; the MLP is registered before attention."""

    def __init__(self, model: pl.CkptedTransformer, p: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        p = p or tensors(model)
        self.heads, self.layers = model.config.n_head, model.config.n_layer
        self.par = nn.ParameterDict()
        self.lin = nn.ModuleDict()
        for i in range(self.layers):
            b = f"blocks.{i}."
            W = torch.stack([p[f"{b}attn.W_{c}"] for c in "QKV"], 1)  # [H, 3, D, K]
            bias = torch.stack([p[f"{b}attn.b_{c}"] for c in "QKV"], 1)
            self.lin[f"{i}down"] = linear(p[b + "mlp.W_out"], p[b + "mlp.b_out"])
            self.lin[f"{i}up"] = linear(p[b + "mlp.W_in"], p[b + "mlp.b_in"])
            self.lin[f"{i}qkv"] = linear(W.permute(2, 0, 1, 3).flatten(1), bias.flatten())
            self.lin[f"{i}o"] = linear(p[b + "attn.W_O"].flatten(0, 1), p[b + "attn.b_O"])
            for n in (1, 2):
                self.par[f"{i}w{n}"], self.par[f"{i}b{n}"] = (
                    nn.Parameter(p[f"{b}ln{n}.w"]),
                    nn.Parameter(p[f"{b}ln{n}.b"]),
                )
        self.par["w"], self.par["b"] = nn.Parameter(p["ln_final.w"]), nn.Parameter(p["ln_final.b"])
        self.table, self.places = embedding(p["embed.W_E"]), embedding(p["pos_embed.W_pos"])

    def hidden(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places(torch.arange(ids.size(1)))
        width = (x.size(-1),)
        for i in range(self.layers):
            y = F.layer_norm(x, width, self.par[f"{i}w1"], self.par[f"{i}b1"])
            q, k, v = self.lin[f"{i}qkv"](y).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.lin[f"{i}o"](z)
            y = F.layer_norm(x, width, self.par[f"{i}w2"], self.par[f"{i}b2"])
            x = x + self.lin[f"{i}down"](new_gelu(self.lin[f"{i}up"](y)))
        return F.layer_norm(x, width, self.par["w"], self.par["b"])

    def forward(self, ids: Tensor) -> Tensor:
        return self.hidden(ids) @ self.table.weight.T


class Stacked(nn.Module):
    """All blocks in one tensor of each kind, [L, ...], run by a loop."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p = tensors(model)
        kinds = ("ln1.w", "ln1.b", "attn.W_QKV", "attn.b_QKV", "attn.W_O", "attn.b_O", "ln2.w", "ln2.b",
                 "mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out")  # fmt: skip
        layers = range(model.config.n_layer)
        stacked = {kind: torch.stack([p[f"blocks.{i}.{kind}"] for i in layers]) for kind in kinds}
        self.all = nn.ParameterDict({kind.replace(".", "_"): nn.Parameter(value) for kind, value in stacked.items()})
        self.rest = nn.ParameterList(p[n] for n in ("embed.W_E", "pos_embed.W_pos", "ln_final.w", "ln_final.b"))
        self.heads = model.config.n_head

    def forward(self, ids: Tensor) -> Tensor:
        table, places, w, b = self.rest
        x = table[ids] + places[: ids.size(1)]
        width = (x.size(-1),)
        for i in range(len(self.all["ln1_w"])):
            t = {kind: value[i] for kind, value in self.all.items()}
            y = F.layer_norm(x, width, t["ln1_w"], t["ln1_b"]) @ t["attn_W_QKV"] + t["attn_b_QKV"]
            q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + z @ t["attn_W_O"].flatten(0, 1) + t["attn_b_O"]
            y = F.layer_norm(x, width, t["ln2_w"], t["ln2_b"]) @ t["mlp_W_in"] + t["mlp_b_in"]
            x = x + new_gelu(y) @ t["mlp_W_out"] + t["mlp_b_out"]
        return F.layer_norm(x, width, w, b) @ table.T


class Torch(nn.Module):
    """torch's own encoder layers with a causal mask, dropout left at a tenth and in training mode."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        p, c = tensors(model), model.config
        self.layers = nn.ModuleList()
        for i in range(c.n_layer):
            b = f"blocks.{i}."
            layer = nn.TransformerEncoderLayer(
                c.n_embd, c.n_head, c.d_mlp, 0.1, activation=new_gelu, batch_first=True, norm_first=True
            )
            layer.load_state_dict({
                "self_attn.in_proj_weight": p[b + "attn.W_QKV"].T, "self_attn.in_proj_bias": p[b + "attn.b_QKV"],
                "self_attn.out_proj.weight": p[b + "attn.W_O"].flatten(0, 1).T,
                "self_attn.out_proj.bias": p[b + "attn.b_O"],
                "linear1.weight": p[b + "mlp.W_in"].T, "linear1.bias": p[b + "mlp.b_in"],
                "linear2.weight": p[b + "mlp.W_out"].T, "linear2.bias": p[b + "mlp.b_out"],
                "norm1.weight": p[b + "ln1.w"], "norm1.bias": p[b + "ln1.b"],
                "norm2.weight": p[b + "ln2.w"], "norm2.bias": p[b + "ln2.b"],
            })  # fmt: skip
            self.layers.append(layer)
        self.e, self.w, self.last = (
            embedding(p["embed.W_E"]),
            embedding(p["pos_embed.W_pos"]),
            norm(p["ln_final.w"], p["ln_final.b"]),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.e(ids) + self.w(torch.arange(ids.size(1)))
        hidden = nn.Transformer.generate_square_subsequent_mask(ids.size(1))
        for layer in self.layers:
            x = layer(x, src_mask=hidden, is_causal=True)
        return self.last(x) @ self.e.weight.T


RIGHTS: dict[str, Any] = {
    "course": course, "monolith": monolith, "nano": Nano, "split": Split, "per head": PerHead, "einsum": Einsum,
    "fused": Fused, "permuted": Permuted, "interleaved": Interleaved, "stacked": Stacked, "torch": Torch,
}  # fmt: skip
