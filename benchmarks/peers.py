"""How the peers capture, and under which of our names their values go.

Each runs as its documentation says, under `torch.no_grad()`: TransformerLens `run_with_cache`, nnsight
`tracer.cache()`, torchlens `trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import harness  # before torch: it pins the threads

if TYPE_CHECKING:
    from torch import Tensor

    from harness import Call

LENS, NNSIGHT, NNSIGHT_FUSED = "TransformerLens", "nnsight", "nnsight, fused attention"

LENS_NAMES = {
    "hook_resid_pre": "resid_pre", "ln1.hook_normalized": "ln1.ckpt_scaled", "ln1.hook_out": "ln1.ckpt_normalized",
    "attn.hook_q": "attn.ckpt_q", "attn.hook_k": "attn.ckpt_k", "attn.hook_v": "attn.ckpt_v",
    "attn.hook_attn_scores": "attn.ckpt_scores", "attn.hook_pattern": "attn.ckpt_pattern",
    "attn.hook_z": "attn.ckpt_z", "hook_attn_out": "attn.ckpt_attn_out", "hook_resid_mid": "resid_mid",
    "ln2.hook_normalized": "ln2.ckpt_scaled", "ln2.hook_out": "ln2.ckpt_normalized", "mlp.hook_pre": "mlp.ckpt_pre",
    "mlp.hook_post": "mlp.ckpt_post", "hook_mlp_out": "mlp.ckpt_mlp_out", "hook_resid_post": "resid_post",
}  # fmt: skip
"""TransformerLens' names within a block -> ours: all 17."""

LENS_AROUND = {
    "hook_embed": "ckpt_embed", "hook_pos_embed": "ckpt_pos_embed", "ln_final.hook_normalized": "ln_final.ckpt_scaled",
    "ln_final.hook_out": "ln_final.ckpt_normalized",
}  # fmt: skip

NNSIGHT_NAMES = {
    "ln_1": "ln1.ckpt_normalized", "attn": "attn.ckpt_attn_out", "ln_2": "ln2.ckpt_normalized",
    "mlp.c_fc": "mlp.ckpt_pre", "mlp.act": "mlp.ckpt_post", "mlp": "mlp.ckpt_mlp_out", "": "resid_post",
}  # fmt: skip
"""Modules of a transformers block -> ours; `attn.c_attn` holds queries, keys and values side by side."""


SHOWN_BY_NNSIGHT = [
    "ckpt_embed", "ln_final.ckpt_normalized", *(f"blocks.*.attn.ckpt_{name}" for name in ("q", "k", "v", "pattern")),
    *(f"blocks.*.{name}" for name in NNSIGHT_NAMES.values()),
]  # fmt: skip


def lens_run(lens: Any, ids: Tensor, without: Sequence[str] = ()) -> Call:
    """TransformerLens' full cache, or all but names that end so."""
    endings = tuple(LENS_ENDINGS[name] for name in without)
    names = lens.run_with_cache(ids[:, :1])[1] if endings else ()
    wanted = [name for name in names if not name.endswith(endings)] or None  # a list: it warns about a function
    return lambda: lens.run_with_cache(ids, names_filter=wanted)


LENS_ENDINGS = {"ckpt_scores": "hook_attn_scores", "ckpt_pattern": "hook_pattern"}


def lens_values(out: Any) -> dict[str, Tensor]:
    """Under our names."""
    logits, cache = out
    found = {"logits": logits}
    for name in cache:
        block, _, rest = name.removeprefix("blocks.").partition(".")
        if name in LENS_AROUND:
            found[LENS_AROUND[name]] = cache[name]
        elif name.startswith("blocks.") and rest in LENS_NAMES:
            found[f"blocks.{block}.{LENS_NAMES[rest]}"] = cache[name]
    return found


def nnsight_run(model: Any, ids: Tensor) -> Call:
    """The output of every module, and the model's; left where they are, which on an accelerator it is to be told."""

    def run() -> Any:
        with model.trace(ids) as tracer:
            cache = tracer.cache(device=ids.device)
        return cache  # noqa: RET504 (nnsight runs the body of a trace itself; it must assign)

    return run


def nnsight_values(cache: Any) -> dict[str, Tensor]:
    """Under our names."""
    found = {
        "logits": cache["model.lm_head"].output,
        "ckpt_embed": cache["model.transformer.wte"].output,
        "ln_final.ckpt_normalized": cache["model.transformer.ln_f"].output,
    }
    names = cache.keys()
    for i in range(sum(name.endswith(".ln_1") for name in names)):
        for theirs, ours in NNSIGHT_NAMES.items():
            value = cache[f"model.transformer.h.{i}.{theirs}".rstrip(".")].output
            found[f"blocks.{i}.{ours}"] = value[0] if isinstance(value, tuple) else value
        pattern = cache[f"model.transformer.h.{i}.attn"].output[1]
        found |= {} if pattern is None else {f"blocks.{i}.attn.ckpt_pattern": pattern}
        heads = () if pattern is None else (3, pattern.size(1), -1)
        if heads:
            q, k, v = cache[f"model.transformer.h.{i}.attn.c_attn"].output.unflatten(-1, heads).unbind(2)
            found |= {f"blocks.{i}.attn.ckpt_{name}": value for name, value in zip("qkv", (q, k, v), strict=True)}
    return found


def torchlens_against_ours(shape: str, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a call of torchlens' trace, of our capture of everything and of our plain forward; in a fresh process.

    torchlens leaves torch's functions wrapped, which slows whoever else runs: ours, here.

    Raises:
        ResultsDifferError: torchlens' logits are not those of the model that it traces.
    """
    import torch
    import torchlens

    import pellucid as pl
    from models import reference, some_ids

    torch.set_num_threads(threads)
    with torch.no_grad():
        hf, ids = reference(), some_ids(shape)
        model = pl.from_hf(hf)
        calls = {
            "torchlens": lambda: torchlens.trace(hf, ids),
            "pellucid": lambda: model.run_with_ckpts(ids),
            "plain forward": lambda: model(ids),
        }
        logits = next(
            op.out for op in calls["torchlens"]() if op.has_saved_activation and op.shape == (*ids.shape, 50257)
        )
        harness.require_equal({"plain forward": calls["plain forward"](), "torchlens": logits})
        return harness.compete(calls, rounds=rounds).seconds
