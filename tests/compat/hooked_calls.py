"""Calls of HookedTransformer's interface, and what each gives as a few numbers.

They run on the bundled model in float64, whose weights do not change. `numbers_of` is given the modules under test:
ours, or TransformerLens' own, whose numbers `tests/data/hooked_numbers.json` holds (`write_hooked_numbers.py`).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

CLEAN = "Tom gave the ball to Lily. Lily was happy"
OTHER = "Lily gave the ball to Tom. Tom was happy"
BOTH = [CLEAN, OTHER]
IDS = torch.tensor([[5, 300, 17, 256, 90, 411, 7], [8, 301, 17, 250, 92, 410, 9]])


class Library(NamedTuple):
    """A model and the modules beside it."""

    model: Any
    utils: Any
    patching: Any


def _halved(value: Tensor, hook: Any) -> Tensor:
    return value * 0.5


def _written(value: Tensor, hook: Any) -> None:
    value[:, -2:] *= 0.25


def _one_head(value: Tensor, hook: Any) -> Tensor:
    value[:, :, hook.layer() % 4] = 0.0
    return value


def _edited(library: Library, name: Any, hook: Callable[..., Any]) -> Tensor:
    return library.model.run_with_hooks(IDS, fwd_hooks=[(name, hook)])


def _switched(library: Library, switch: str, name: str) -> Tensor:
    getattr(library.model, f"set_{switch}")(True)
    try:
        return _edited(library, name, _halved)
    finally:
        getattr(library.model, f"set_{switch}")(False)


def _gradient(library: Library, name: str) -> Tensor:
    kept: list[Tensor] = []

    def keep(gradient: Any, hook: Any) -> None:
        kept.append((gradient[0] if isinstance(gradient, tuple) else gradient).clone())

    with library.model.hooks(bwd_hooks=[(name, keep)]):
        library.model(IDS, return_type="loss").backward()
    library.model.zero_grad()
    return kept[0]


def _cache(library: Library, text: Any = CLEAN, **options: Any) -> Any:
    with torch.no_grad():
        return library.model.run_with_cache(text, **options)[1]


def _metric(logits: Tensor) -> Tensor:
    return logits[0, -1, 300] - logits[0, -1, 17]


def _patched(name: str) -> Callable[[Library], Tensor]:
    def run(library: Library) -> Tensor:
        with torch.no_grad():
            clean = _cache(library, IDS[:1])
            return getattr(library.patching, name)(library.model, IDS[1:, :5], _shorter(clean), _metric)

    return run


def _shorter(cache: Any) -> Any:
    """The first five positions: fewer runs."""
    for name, value in list(cache.cache_dict.items()):
        if name.endswith(("pattern", "scores")):
            cache.cache_dict[name] = value[..., :5, :5]
        else:
            cache.cache_dict[name] = value[:, :5]
    return cache


def _generated(library: Library, text: Any, **options: Any) -> Any:
    torch.manual_seed(3)
    return library.model.generate(text, max_new_tokens=9, verbose=False, **options)


def _attended(library: Library) -> Tensor:
    cache = _cache(library, IDS)
    return library.model.blocks[1].attn(*(cache[f"resid_{place}", 1] for place in ("pre", "mid", "post")))


def _tested(library: Library, answer: Any, **options: Any) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        library.utils.test_prompt("Once upon a", answer, library.model, top_k=2, **options)
    return printed.getvalue()


WEIGHTS = (
    "W_E",
    "W_pos",
    "W_U",
    "b_U",
    "W_E_pos",
    "W_Q",
    "W_K",
    "W_V",
    "W_O",
    "b_Q",
    "b_K",
    "b_V",
    "b_O",
    "W_in",
    "W_out",
    "b_in",
    "b_out",
)
VALUES = (
    "hook_embed",
    "hook_pos_embed",
    "blocks.1.hook_resid_pre",
    "blocks.0.ln1.hook_scale",
    "blocks.2.attn.hook_q",
    "blocks.2.attn.hook_k",
    "blocks.2.attn.hook_v",
    "blocks.1.attn.hook_pattern",
    "blocks.1.attn.hook_attn_scores",
    "blocks.3.attn.hook_z",
    "blocks.0.hook_attn_out",
    "blocks.0.hook_resid_mid",
    "blocks.3.mlp.hook_pre",
    "blocks.3.mlp.hook_post",
    "blocks.3.hook_mlp_out",
    "blocks.3.hook_resid_post",
    "ln_final.hook_scale",
)
SWITCHED = {
    "use_attn_result": "blocks.1.attn.hook_result",
    "use_attn_in": "blocks.1.hook_attn_in",
    "use_split_qkv_input": "blocks.2.hook_k_input",
    "use_hook_mlp_in": "blocks.2.hook_mlp_in",
}

CALLS: dict[str, Callable[[Library], Any]] = {
    "logits of a text": lambda at: at.model(CLEAN),
    "logits of texts of unequal length": lambda at: at.model([CLEAN, "The cat"])[:, :3],
    "logits without a beginning": lambda at: at.model(CLEAN, prepend_bos=False),
    "logits, padded on the left": lambda at: at.model([CLEAN, "The cat"], padding_side="left")[:, -3:],
    "loss": lambda at: at.model(CLEAN, return_type="loss"),
    "loss of each token": lambda at: at.model(BOTH, return_type="loss", loss_per_token=True),
    "both": lambda at: at.model(IDS, return_type="both")[1],
    "stop": lambda at: at.model(IDS, stop_at_layer=2),
    "stop at the end": lambda at: at.model(IDS, stop_at_layer=4),
    "start": lambda at: at.model(at.model(IDS, stop_at_layer=2), start_at_layer=2),
    "tokens": lambda at: at.model.to_tokens(BOTH),
    "tokens on the left": lambda at: at.model.to_tokens([CLEAN, "The cat"], padding_side="left"),
    "tokens without a beginning": lambda at: at.model.to_tokens(CLEAN, prepend_bos=False),
    "string": lambda at: at.model.to_string(IDS),
    "str tokens": lambda at: at.model.to_str_tokens(CLEAN),
    "str tokens of ids": lambda at: at.model.to_str_tokens(IDS[0]),
    "str tokens of texts": lambda at: at.model.to_str_tokens(BOTH, prepend_bos=False),
    "single token": lambda at: at.model.to_single_token(" ball"),
    "single str token": lambda at: at.model.to_single_str_token(300),
    "position": lambda at: at.model.get_token_position(" Lily", CLEAN, mode="last"),
    "directions": lambda at: at.model.tokens_to_residual_directions(IDS),
    "direction of a text": lambda at: at.model.tokens_to_residual_directions(" ball"),
    **{f"value {name}": (lambda at, name=name: _cache(at, IDS)[name]) for name in VALUES},
    **{f"weight {name}": (lambda at, name=name: getattr(at.model, name)) for name in WEIGHTS},
    **{f"halved {name}": (lambda at, name=name: _edited(at, name, _halved)) for name in VALUES},
    "written into": lambda at: _edited(at, "blocks.1.hook_resid_mid", _written),
    "written into q": lambda at: _edited(at, "blocks.1.attn.hook_q", _written),
    "a head of every block": lambda at: _edited(at, lambda name: name.endswith("hook_z"), _one_head),
    **{
        f"halved {name}": (lambda at, switch=switch, name=name: _switched(at, switch, name))
        for switch, name in SWITCHED.items()
    },
    **{
        f"gradient {name}": (lambda at, name=name: _gradient(at, name))
        for name in VALUES
        if "ln1" not in name and "scores" not in name
    },
    "attention of three inputs": _attended,
    "position embeddings of ids": lambda at: at.model.pos_embed(IDS),
    "kept before a stop": lambda at: sorted(set(_cache(at, IDS, stop_at_layer=1).keys())),
    "kept at a stop before all": lambda at: sorted(set(_cache(at, IDS, stop_at_layer=0).keys())),
    "a prompt tested": lambda at: _tested(at, "time"),
    "a prompt tested for two answers": lambda at: _tested(at, ["time", " little girl"]),
    "a prompt tested in short": lambda at: _tested(at, "time ago", print_details=False),
    "positions": lambda at: _cache(at, IDS, pos_slice=-1)["blocks.1.attn.hook_z"],
    "names filter": lambda at: sorted(_cache(at, IDS, names_filter=lambda name: "hook_q" in name).keys()),
    "without batch": lambda at: _cache(at, IDS[:1], remove_batch_dim=True)["pattern", 2],
    "accumulated": lambda at: _cache(at, IDS).accumulated_resid(incl_mid=True, apply_ln=True),
    "accumulated before a block": lambda at: _cache(at, IDS).accumulated_resid(
        2, mlp_input=True, apply_ln=True, pos_slice=-1
    ),
    "decomposed": lambda at: _cache(at, IDS).decompose_resid(apply_ln=True),
    "decomposed labels": lambda at: _cache(at, IDS).decompose_resid(2, mode="attn", return_labels=True)[1],
    "heads": lambda at: _cache(at, IDS).stack_head_results(incl_remainder=True, pos_slice=-1, apply_ln=True),
    "heads labels": lambda at: _cache(at, IDS).stack_head_results(2, return_labels=True)[1],
    "neurons": lambda at: _cache(at, IDS).stack_neuron_results(2, pos_slice=-1, neuron_slice=(0, 5)),
    "attributed": lambda at: _attributed(at, 300),
    "attributed difference": lambda at: _attributed(at, " Tom", " Lily"),
    "stacked patterns": lambda at: _cache(at, IDS).stack_activation("pattern"),
    "OV": lambda at: at.model.OV[1, 2].AB,
    "QK singular values": lambda at: at.model.QK.S,
    "OV eigenvalues": lambda at: at.model.OV.eigenvalues.abs().sort(-1).values,
    "full OV circuit": lambda at: (at.model.W_E @ at.model.OV[0, 1] @ at.model.W_U).get_corner(),
    **{f"composition {mode}": (lambda at, mode=mode: at.model.all_composition_scores(mode)) for mode in "QKV"},
    **{
        name: _patched(name)
        for name in (
            "get_act_patch_resid_pre",
            "get_act_patch_mlp_out",
            "get_act_patch_attn_head_out_all_pos",
            "get_act_patch_attn_head_k_by_pos",
            "get_act_patch_attn_head_pattern_all_pos",
            "get_act_patch_attn_head_all_pos_every",
        )
    },
    "greedy": lambda at: _generated(at, CLEAN, do_sample=False),
    "sampled": lambda at: _generated(at, CLEAN, top_k=8, temperature=0.9),
    "sampled by share": lambda at: _generated(at, at.model.to_tokens(CLEAN), top_p=0.8, freq_penalty=0.3),
    "names": lambda at: [
        at.utils.get_act_name(*name)
        for name in (
            ("k", 6, "a"),
            ("pre5",),
            ("scale4ln1",),
            ("embed",),
            ("normalized",),
            ("attn", 3),
            ("resid_post", 1),
            ("mlp_out", 0),
        )
    ],
    "gelu_new": lambda at: at.utils.gelu_new(torch.linspace(-3, 3, 13, dtype=torch.float64)),
    "accuracy": lambda at: at.utils.lm_accuracy(at.model(IDS), IDS),
}


def _attributed(library: Library, right: Any, wrong: Any = None) -> Tensor:
    cache = _cache(library, IDS)
    return cache.logit_attrs(cache.decompose_resid(), right, wrong)


def numbers_of(result: Any) -> Any:
    """What a call gave, as text or as a tensor's shape and three numbers that every entry has a part in."""
    if not isinstance(result, Tensor):
        return result
    flat = result.detach().double().flatten()
    flat = flat.where(flat.isfinite(), 0.0)
    waves = torch.arange(len(flat), dtype=torch.float64).mul(0.37).cos()
    return [list(result.shape), [float(flat.sum()), float((flat * waves).sum()), float(flat.abs().max())]]


def differs(found: Any, expected: Any, *, relative: float) -> bool:
    """Whether two results of `numbers_of` are more than rounding apart."""
    is_numbers = isinstance(expected, list) and len(expected) == 2 and isinstance(expected[1], list)
    if not is_numbers or not expected[1] or not isinstance(expected[1][0], float):
        return found != expected
    scale = max(1.0, math.prod(expected[0]) ** 0.5) * max(expected[1][2], 1e-3)
    gaps = [abs(one - other) for one, other in zip(found[1], expected[1], strict=True)]
    return found[0] != expected[0] or not max(gaps) <= relative * scale
