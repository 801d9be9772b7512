"""Traces of random numbers in the documented format (docs/trace.md), written here byte for byte.

The page is tried on what the format says, not on what one writer of it happens to write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

VIEWER = Path(__file__).parents[2] / "src" / "pellucid" / "viewer" / "static" / "viewer.js"
WORDS = ["Once", " upon", " a", " time", " there", " was", " a", " cat", "\n"]
TYPES = {"uint8": "u8", "uint32": "u32", "float16": "f16", "float32": "f32", "float64": "f64"}
D_MODEL, D_HEAD, D_MLP, D_VOCAB = 16, 8, 32, 60


def _points(layers: int, heads: int, tokens: int) -> list[dict[str, Any]]:
    """A schema like GPT-2's, with the shapes of this run."""
    stream, head = ("d_model", D_MODEL), ("d_head", D_HEAD)
    inner: list[tuple[str, tuple[tuple[str, int], ...]]] = [
        ("resid_pre", (stream,)),
        ("ln1.ckpt_scaled", (stream,)),
        ("ln1.ckpt_normalized", (stream,)),
        *((f"attn.ckpt_{name}", (("head", heads), head)) for name in "qkv"),
        ("attn.ckpt_scores", ()),
        ("attn.ckpt_pattern", ()),
        ("attn.ckpt_z", (("head", heads), head)),
        ("attn.ckpt_attn_out", (stream,)),
        ("resid_mid", (stream,)),
        ("ln2.ckpt_scaled", (stream,)),
        ("ln2.ckpt_normalized", (stream,)),
        ("mlp.ckpt_pre", (("d_mlp", D_MLP),)),
        ("mlp.ckpt_post", (("d_mlp", D_MLP),)),
        ("mlp.ckpt_mlp_out", (stream,)),
        ("resid_post", (stream,)),
    ]
    named = [(None, name, name, (stream,)) for name in ("ckpt_embed", "ckpt_pos_embed")]
    named += [(layer, f"blocks.{layer}.{short}", short, axes) for layer in range(layers) for short, axes in inner]
    named += [(None, name, name, (stream,)) for name in ("ln_final.ckpt_scaled", "ln_final.ckpt_normalized")]
    out: list[dict[str, Any]] = []
    for block, name, short, axes in named:
        square = (("head", heads), ("query", tokens), ("key", tokens))
        shape = (("batch", 1), *((("pos", tokens), *axes) if axes else square))
        out.append(
            {
                "name": name,
                "block": block,
                "short": short,
                "axes": [axis for axis, _ in shape],
                "shape": [size for _, size in shape],
                "unit": "",
                "meaning": f"what {short} means",
                "equation": "x + y",
                "computed": "always",
            }
        )
    return out


def written(
    words: Sequence[str] = WORDS,
    *,
    layers: int = 2,
    heads: int = 2,
    without: Sequence[str] = (),
    seed: int = 0,
    remainder: float = 0.0,
    **header: Any,
) -> bytes:
    """The deflated bytes of a trace of these tokens; blocks whose names begin as one of `without` are left out.

    `remainder` is what the logit has above the sum of its parts.
    """
    random = np.random.default_rng(seed)
    count = len(words)
    query, key = np.tril_indices(count)
    scores = random.normal(size=(layers, heads, count, count)) * 2
    pattern = np.exp(scores) * np.tri(count)
    pattern /= pattern.sum(-1, keepdims=True)
    logits = random.normal(size=D_VOCAB).astype("f4") * 2
    logprobs = logits - np.log(np.exp(logits).sum())
    target = int(logits.argmax())
    apart = [{"dimension": 3, "mean_abs": 9.5}, {"dimension": 5, "mean_abs": 5.0 * seed}][: 1 + min(seed, 1)]
    many = np.argsort(-random.normal(size=(layers + 1, count, D_VOCAB)), axis=-1)
    lens = np.sort(-random.exponential(2, size=(layers + 1, count, 10)).astype("f4"), axis=-1)[..., ::-1]
    parts = ["ckpt_embed", "ckpt_pos_embed"]
    for layer in range(layers):
        parts += [f"blocks.{layer}.attn[{head}]" for head in range(heads)]
        parts += [f"blocks.{layer}.attn.b_O", f"blocks.{layer}.mlp"]
    parts += ["ln_final.b"]
    adds = random.normal(size=len(parts))

    def cells(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype("f4")

    places = layers + 1, count
    blocks: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "attention.pattern": (
            np.round(255 * np.sqrt(pattern[:, :, query, key])).astype("u1"),
            {"code": {"kind": "sqrt"}, "layout": "lower"},
        ),
        "attention.q": (cells(layers, count, heads, D_HEAD), {}),
        "attention.k": (cells(layers, count, heads, D_HEAD), {}),
        "attention.value_norm": (abs(cells(layers, heads, count)), {}),
        "attention.measures": (
            np.where(np.arange(5)[:, None, None] == 3, np.nan, abs(cells(5, layers, heads))).astype("f4"),
            {"of": ["previous", "first", "induction", "duplicate", "entropy"]},
        ),
        "norms": (
            5 + abs(cells(5, layers, count)),
            {"of": ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]},
        ),
        "prediction.logits": (logits, {}),
        "prediction.top.ids": (np.tile(np.argsort(-logits)[:20], (count, 1)).astype("u4"), {}),
        "prediction.top.logprobs": (np.tile(np.sort(logprobs)[::-1][:20], (count, 1)).astype("f4"), {}),
        "lens.ids": (many[..., :10].astype("u4"), {}),
        "lens.logprobs": (lens, {}),
        "lens.entropy": (abs(cells(*places)), {}),
        "lens.kl": (abs(cells(*places)), {}),
        "lens.rank": (random.integers(0, D_VOCAB, places).astype("u4"), {}),
        "lens.target_logprob": (-abs(cells(*places)), {}),
        "lens.next_rank": (random.integers(0, D_VOCAB, places).astype("u4"), {}),
        "lens.next_logprob": (-abs(cells(*places)), {}),
        "attribution.components": (adds, {"of": parts}),
        "attribution.logit": (np.array([adds.sum() + remainder]), {}),
        "attribution.sources": (cells(layers, heads, count), {}),
        "neurons.pre": (cells(layers, count, D_MLP).astype("f2"), {"of": "mlp.ckpt_pre"}),
        "neurons.post": (cells(layers, count, D_MLP).astype("f2"), {"of": "mlp.ckpt_post"}),
        "neurons.effect": (cells(layers, D_MLP), {}),
        "embeddings.pca": (
            cells(layers + 2, count, 3),
            {
                "of": ["ckpt_embed", "blocks.0.resid_pre", *(f"blocks.{i}.resid_post" for i in range(layers))],
                "of_variance": [[0.5, 0.2, 0.1]] * (layers + 2),
            },
        ),
        "distributions.edges": (
            np.tile(np.linspace(-3, 3, 41), (2, 2 * layers + 1, 1)).astype("f4"),
            {},
        ),
        "distributions.counts": (
            random.integers(0, 90, (2, 2 * layers + 1, 40)).astype("u4"),
            {
                "of": [f"blocks.{i // 2}.ln{i % 2 + 1}" for i in range(2 * layers)] + ["ln_final"],
                "clipped": [[1] * (2 * layers + 1)] * 2,
                "total": [[count * D_MODEL] * (2 * layers + 1)] * 2,
                "outliers": [[apart] * (2 * layers + 1)] * 2,
            },
        ),
    }
    for point in _points(layers, heads, count):
        square = point["axes"][-1] == "key"
        shape = (heads, count * (count + 1) // 2) if square else tuple(point["shape"][1:])
        blocks["atlas." + point["name"]] = (cells(*shape).astype("f2"), {"layout": "lower"} if square else {})
    blocks = {name: block for name, block in blocks.items() if not name.startswith(tuple(without))}

    entries: dict[str, Any] = {}
    data = b""
    for name, (array, more) in blocks.items():
        entries[name] = {"dtype": TYPES[array.dtype.name], "shape": list(array.shape), "offset": len(data), **more}
        data += array.tobytes() + bytes(-array.nbytes % 8)
    text = "".join(words)
    whole: dict[str, Any] = {
        "format": "pellucid-trace/1",
        "model": {
            "name": "random",
            "family": "gpt2",
            "fingerprint": "sha256:" + "0" * 64,
            "sizes": {
                "layer": layers,
                "head": heads,
                "head_kv": heads,
                "d_model": D_MODEL,
                "d_head": D_HEAD,
                "d_mlp": D_MLP,
                "d_vocab": D_VOCAB,
                "n_ctx": 64,
            },
            "tied": True,
            "numerics": "exact",
            "dtype": "float32",
        },
        "versions": {"pellucid": "0", "torch": "0"},
        "made": "2026-01-01",
        "text": text,
        "tokens": [{"id": at % D_VOCAB, "text": word} for at, word in enumerate(words)],
        "vocabulary": {str(at): words[at % count] if at < count else f" w{at}" for at in range(D_VOCAB)},
        "schema": {"points": _points(layers, heads, count), "parameters": []},
        "calls": {"python": "import pellucid as pl", "shell": "pellucid view", "values": "import pellucid as pl"},
        "target": {"id": target, "text": f" w{target}", "pos": count - 1, "why": "the most probable next token"},
        "attention": {"scale": [D_HEAD**-0.5] * layers},
        "edits": [],
        "left_out": [{"what": name, "why": f"{name} is too large for this page", "bytes": 1} for name in without],
        "blocks": entries,
    }
    return packed(whole | header, data)


def packed(header: dict[str, Any], data: bytes) -> bytes:
    """A header and its data, deflated."""
    said = json.dumps(header).encode()
    raw = len(said).to_bytes(4, "little") + said
    return zlib.compress(raw + bytes(-len(raw) % 8) + data)


def page_of(
    trace: bytes, script: str | None = None, policy: str | None = None, second: bytes = b"", **scripts: str
) -> str:
    """A saved page as the package writes it: an element, the traces, and the viewer, under a strict content policy."""
    script = VIEWER.read_text(encoding="utf-8") if script is None else script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    strict = f"default-src 'none'; script-src 'sha256-{digest}'; img-src data: blob:; form-action 'none'"
    policy = strict if policy is None else policy
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    kind = 'type="application/json"'
    kinds = {"pellucid-trace": trace, "pellucid-trace-2": second}
    traces = "".join(
        f'<script type="application/vnd.pellucid.trace" id="{name}">{base64.b64encode(held).decode()}</script>'
        for name, held in kinds.items()
        if held
    )
    more = "".join(f'<script {kind} id="pellucid-{name}">{text}</script>' for name, text in scripts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A run</title>'
        f"{meta}"
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head><body>'
        '<div id="pellucid-viewer"></div>'
        f"{traces}{more}"
        f"<script>{script}</script></body></html>"
    )


def unpacked(trace: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a deflated trace, and its data."""
    raw = zlib.decompress(trace)
    size = int.from_bytes(raw[:4], "little")
    return json.loads(raw[4 : 4 + size]), raw[-(-(4 + size) // 8) * 8 :]


def numbers(trace: bytes) -> dict[str, np.ndarray]:
    """The blocks of a deflated trace as they are stored."""
    header, data = unpacked(trace)
    kinds = {code: np.dtype(name) for name, code in TYPES.items()}
    out: dict[str, np.ndarray] = {}
    for name, entry in header["blocks"].items():
        count = int(np.prod(entry["shape"]))
        flat = np.frombuffer(data, kinds[entry["dtype"]], count, entry["offset"])
        out[name] = flat.reshape(entry["shape"])
    return out
