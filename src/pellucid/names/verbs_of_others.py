"""Functions that other libraries have, by the module where somebody looks for them, and the calls to use here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pellucid.names.attributes import unknown_attribute

_SWEEP = "pl.patching.sweep(model, clean, corrupted, {!r}, over={}, metric=metric)"
_HEADS = {"out": "attn.ckpt_z", **{part: f"attn.ckpt_{part}" for part in ("q", "k", "v", "pattern")}}
_ABLATE = "pl.patching.ablate(model, clean, 'attn.ckpt_z', over=('layer', 'head'), how={!r}, metric=metric)"

PATCHING: Mapping[str, str] = {
    **{
        f"get_act_patch_{short}": _SWEEP.format(name, ("layer", "pos"))
        for short, name in (
            ("resid_pre", "resid_pre"), ("resid_mid", "resid_mid"), ("attn_out", "attn.ckpt_attn_out"),
            ("mlp_out", "mlp.ckpt_mlp_out"),
        )
    },
    **{f"get_act_patch_attn_head_{short}_all_pos": _SWEEP.format(n, ("layer", "head")) for short, n in _HEADS.items()},
    **{
        f"get_act_patch_attn_head_{short}_by_pos": _SWEEP.format(name, ("layer", "pos", "head"))
        for short, name in _HEADS.items()
    },
    "get_act_patch_attn_head_all_pos_every": _SWEEP.format(list(_HEADS.values()), ("layer", "head")),
    "get_act_patch_attn_head_by_pos_every": _SWEEP.format(list(_HEADS.values()), ("layer", "pos", "head")),
    "get_act_patch_block_every": _SWEEP.format(
        ["resid_pre", "attn.ckpt_attn_out", "mlp.ckpt_mlp_out"], ("layer", "pos")
    ),
    **dict.fromkeys(
        ("generic_activation_patch", "activation_patching", "act_patch", "patch"),
        _SWEEP.format("resid_pre", ("layer", "pos")),
    ),
    **dict.fromkeys(
        ("path_patch", "path_patching"),
        "pl.patching.path(model, clean, corrupted, senders=('attn.ckpt_z', {'layer': 0, 'head': 1}), "
        "receivers='logits', metric=metric)",
    ),
    **dict.fromkeys(("mean_ablate", "mean_ablation"), _ABLATE.format("mean")),
    **dict.fromkeys(("zero_ablate", "zero_ablation"), _ABLATE.format("zero")),
}  # fmt: skip

METRICS: Mapping[str, str] = {
    **dict.fromkeys(
        ("logit_diff", "get_logit_diff", "ave_logit_diff", "logits_to_ave_logit_diff", "logit_diff_metric"),
        "pl.metrics.logit_difference(right, wrong)",
    ),
    **dict.fromkeys(("kl_div", "kl_divergence"), "pl.metrics.kl(model(clean))"),
    **dict.fromkeys(("cross_entropy", "cross_entropy_loss", "lm_cross_entropy_loss", "nll"), "pl.metrics.loss()"),
    **dict.fromkeys(("logprobs", "log_prob", "log_probs", "prob"), "pl.metrics.logprob(right)"),
    "logits": "pl.metrics.logit(right)",
}

_GRADIENT = "pl.attribution.gradient(model, clean, corrupted, 'attn.ckpt_z', over=('layer', 'head'), metric=metric{})"

ATTRIBUTION: Mapping[str, str] = {
    **dict.fromkeys(
        ("logit_attrs", "logit_attribution", "direct_logit_attribution", "dla"),
        "pl.attribution.direct(ckpts, right, by='head')",
    ),
    **dict.fromkeys(("attribution_patching", "attr_patch", "atp"), _GRADIENT.format("")),
    "integrated_gradients": _GRADIENT.format(", steps=4"),
    **dict.fromkeys(
        ("eap", "edge_attribution_patching"), "pl.attribution.edges(model, clean, corrupted, metric=metric)"
    ),
    "eap_ig": "pl.attribution.edges(model, clean, corrupted, metric=metric, steps=4)",
}

LENS: Mapping[str, str] = {
    **dict.fromkeys(("logit_lens", "LogitLens"), "pl.lens.logit(ckpts)"),
    "tuned_lens": "pl.lens.TunedLens",
}

HEADS: Mapping[str, str] = {
    **dict.fromkeys(("detect_head", "detect_heads", "head_detector"), "pl.heads.scores(model, clean)"),
    **dict.fromkeys(("all_composition_scores", "composition_scores"), "pl.heads.composition(model, 'K')"),
    "OV": "pl.heads.ov(model, 0, 1)",
    "QK": "pl.heads.qk(model, 0, 1)",
}


def said_of(module: str, words: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module, which says what to call for these words of others.

    Example:
        >>> import pellucid as pl
        >>> pl.metrics.logit_diff
        Traceback (most recent call last):
            ...
        pellucid.errors.UnknownAttributeError: module 'pellucid.metrics' has no attribute 'logit_diff', which is a name from another library.
          remedy: Use pl.metrics.logit_difference(right, wrong).  [unknown-attribute]
    """  # noqa: E501 (the message is one line)

    def missing(name: str) -> Any:
        raise unknown_attribute(f"module {module!r}", name, words)

    return missing
