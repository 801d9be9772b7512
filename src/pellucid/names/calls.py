"""What other libraries call functions and their arguments, and the call to use here.

One table for each kind of call, read by the errors and by the documentation; `attributes` beside it has the attributes.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pellucid.errors import InputError, UnknownArgumentError, nearest, shown

Called = TypeVar("Called", bound=Callable[..., Any])
Owner = TypeVar("Owner")

ARGUMENTS: Mapping[str, str] = {
    # transformers
    "input_ids": "Pass inputs=, the ids or all that the tokenizer returned; it may stand first, without its name.",
    "attention_mask": "Pass mask=, 1 at real tokens.",
    "token_type_ids": "Leave it out; transformers adds the embeddings of these ids, and pellucid does not.",
    "position_ids": "Leave it out; positions follow from mask=, counted from each text's first token.",
    "labels": "Call model.loss(inputs, mask=...), which takes each next token as the label.",
    "inputs_embeds": "Pass ids, and edits=pl.Edit.replace('ckpt_embed', embeddings) to run_with_ckpts.",
    "output_hidden_states": "Call model.run_with_ckpts(inputs, names='resid_post').",
    "output_attentions": "Call model.run_with_ckpts(inputs, names='pattern').",
    "past_key_values": "Pass cache=pl.KeyValueCache(model.config), which the run fills.",
    "use_cache": "Pass cache=pl.KeyValueCache(model.config), which the run fills.",
    "return_dict": "Leave it out; logits come back as a tensor.",
    # HookedTransformer
    "return_type": "Leave it out: model(inputs) gives logits, model.loss(inputs) the loss.",
    "prepend_bos": "Leave it out, and put the id before the text yourself: [model.config.bos_token_id, *ids].",
    "names_filter": "Pass names=, names or patterns of checkpoints.",
    "stop_at_layer": "Pass stop_at=, the last checkpoint to run, such as ('resid_post', 2).",
    "pos_slice": "Pass pos=.",
    "fwd_hooks": "Pass edits=, such as pl.Edit.zero('blocks.0.attn.ckpt_z', heads=3).",
    "remove_batch_dim": "Leave it out, and take ckpts[name][0].",
    "loss_per_token": "Call -model.logprobs(inputs).",
    "head": "Pass heads=, one or several.",
    "head_index": "Pass heads=, one or several.",
    "position": "Pass pos=, one or several.",
    "positions": "Pass pos=, one or several.",
    "neuron": "Pass neurons=, one or several.",
    "layer": "Pass names= with their block, such as 'blocks.3.resid_post'.",
}
"""Keyword arguments of other libraries' calls -> what to do here, if the call takes what is to be passed."""

_OF_RUNS = ("names_filter", "stop_at_layer", "fwd_hooks")
"""Those that `model.run_with_ckpts` has another word for, whatever was called with them."""

PLACES: Mapping[str, str] = {
    **dict.fromkeys(
        ("layer", "layer_idx", "layer_index", "block_idx"), "Pass block=, counted from 0, or from the end by -1."
    ),
    **dict.fromkeys(("name", "activation", "names"), "Pass the name first, such as ckpts.get('pattern', 'attn', 0)."),
    "layer_type": "Pass layer_name=, such as 'attn'.",
}
"""What other libraries call the places of a captured value -> what to do in `ActivationCkpts.get`."""

_AFTERWARDS: Mapping[str, str] = {
    "tokenizer": "Leave it out, and set it afterwards: model.tokenizer = pl.Tokenizer.from_folder(folder).",
    **dict.fromkeys(
        ("fold_ln", "fold_value_biases", "center_writing_weights", "center_unembed", "refactor_factored_attn_matrices"),
        "Leave it out; weights stay as they are stored. pl.fold(model) folds and centres them afterwards.",
    ),
}

OPENING: Mapping[str, str] = {
    **_AFTERWARDS,
    "torch_dtype": "Pass dtype='float16' or another.",
    "device_map": "Pass device='cpu' or another; a model is on one device.",
    **dict.fromkeys(("load_in_8bit", "load_in_4bit"), "Leave it out; weights are never quantized here."),
    **{
        theirs: f"Pass hub=pl.HubOptions({here}=...)."
        for here, theirs in (
            ("revision", "revision"), ("cache_dir", "cache_dir"), ("token", "token"), ("token", "use_auth_token"),
            ("endpoint", "mirror"),
        )
    },
    "local_files_only": "Pass hub=pl.HubOptions(offline=True).",
    "attn_implementation": "Pass attention='eager', which makes every layer explicit, or attention='auto'.",
    "tie_word_embeddings": "Pass config={'tie_word_embeddings': True} or False.",
    **dict.fromkeys(
        ("trust_remote_code", "low_cpu_mem_usage", "use_safetensors", "weights_only"),
        "Leave it out; no code of a repository is run, and weights are mapped from their file.",
    ),
}  # fmt: skip
"""Keyword arguments by which other libraries open a model -> what to do here."""

CONVERTING: Mapping[str, str] = {
    **_AFTERWARDS,
    **dict.fromkeys(
        ("device", "dtype", "torch_dtype"), "Leave it out, and call .to(device) or .to(dtype) of the copy."
    ),
}
"""Keyword arguments that a copy of a live model does not take -> what to do here."""

COMPARING: Mapping[str, str] = {
    **dict.fromkeys(("text", "texts", "prompt", "ids", "input_ids"), "Pass inputs=, a text or ids."),
    **dict.fromkeys(
        ("atol", "rtol", "tolerance"), "Leave it out; runs in float64 show which differences are rounding."
    ),
}
"""Keyword arguments of other libraries' comparisons -> what to do here."""

SAVING: Mapping[str, str] = dict.fromkeys(
    ("safe_serialization", "max_shard_size", "state_dict", "is_main_process", "save_function"),
    "Leave it out; everything is written, the weights as one model.safetensors.",
)
"""Keyword arguments by which other libraries save a model -> what to do here."""

SAMPLING: Mapping[str, str] = {
    "temp": "Pass temperature=.",
    "do_sample": "Leave it out; a sampler draws, and temperature=0 takes the likeliest token.",
    **{
        name: f"Pass it to generate: model.generate(text, {here}=...)."
        for name, here in (
            ("max_new_tokens", "max_new_tokens"), ("max_tokens", "max_new_tokens"), ("max_length", "max_new_tokens"),
            ("seed", "seed"), ("num_beams", "num_beams"), ("length_penalty", "length_penalty"),
            ("num_return_sequences", "num_return_sequences"), ("stop", "stop"), ("eos_token_id", "end_ids"),
        )
    },
    "min_tokens_to_keep": "Leave it out; a filter keeps one token at least.",
}  # fmt: skip
"""Settings of other libraries' samplers -> what to do here."""

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


def refuse_unknown(verb: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str]) -> None:
    """Refuse arguments that a call, such as "loss", does not take; `elsewhere` has others' words -> what to do."""
    known = list(known)
    words = {word: _said_of_a_word(word, said, known) or _taken(known) for word, said in elsewhere.items()}
    for name in given:
        if name not in known:
            raise UnknownArgumentError(
                f"{verb}: {name}= is not one of its arguments.",
                code="unknown-argument",
                remedy=words.get(name) or nearest(name, known) or _for_a_near_word(name, words) or _taken(known),
            )


def _said_of_a_word(word: str, said: str, known: Sequence[str]) -> str:
    """What to do, unless an argument is to be passed that the call does not take; "" then, or which call takes it."""
    passed = re.match(r"Pass (\w+)=", said)
    if passed is None or passed[1] in known:
        return said
    return f"Call model.run_with_ckpts, which takes {passed[1]}=." if word in _OF_RUNS else ""


def _taken(known: Sequence[str]) -> str:
    return f"It takes {', '.join(known) or 'no arguments'}."


def _for_a_near_word(name: str, elsewhere: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8)
    return elsewhere[close[0]] if close else ""


def _refuse_missing(verb: str, function: Callable[..., Any], missing: Sequence[str]) -> None:
    """Refuse a call without an argument that it needs, and say what that is, in the words of its documentation."""
    if missing:
        every = " and ".join(f"{name}=" for name in missing)
        raise UnknownArgumentError(
            f"{verb}: {every} {'is' if len(missing) == 1 else 'are'} missing.",
            code="missing-argument",
            remedy=" ".join(f"Give {name}={_said_of(name, function)}." for name in missing),
        )


def _said_of(name: str, function: Callable[..., Any]) -> str:
    """The first sentence that a function's documentation says of an argument, after a colon; "" if it says nothing."""
    document = inspect.getdoc(function) or ""
    found = re.search(rf"^ +(?:\w+, )*{name}(?:, \w+)*: (.+?)(?:\.\s|\.?$(?!\n {{8}}))", document, re.M | re.S)
    if found and (other := re.match(r"See `(\w+)`", found[1])):
        return _said_of(name, getattr(sys.modules[function.__module__.rpartition(".")[0]], other[1]))
    return ": " + " ".join(found[1].split()) if found else ""


def _refuse_no_model(verb: str, name: str, given: object) -> None:
    """Refuse what is no model of ours; what wraps one, as torch.compile does, is one."""
    model = getattr(given, "_orig_mod", given)
    bases = {base.__name__ for base in type(model).__mro__}  # by their names, for `--help` does not wait for torch
    if "Network" not in bases:
        kind = f"a {type(model).__name__}" if "Module" in bases else shown(given)
        raise InputError(
            f"{verb}: {name}={kind}, expected a model of pellucid's.",
            code="not-a-model",
            remedy="Give the model first: pl.load(), pl.from_hf(hf_model) of transformers', or what a "
            "HookedTransformer has as .model.",
        )


def named_arguments(elsewhere: Mapping[str, str] = ARGUMENTS) -> Callable[[Called], Called]:
    """Make a function, or a class when it is called, refuse a call that does not fit and say what to give.

    Refused are arguments that it does not take, those that are missing, and what is no model where one is expected. The
    public methods of a class refuse them, too.

    Args:
        elsewhere: Words of other libraries -> what to do here.
    """

    def decorated(called: Called) -> Called:
        if isinstance(called, type):
            called.__init__ = _checked(called.__init__, called.__name__, elsewhere)
            return cast(Called, named_methods(called))
        return cast(Called, _checked(called, called.__name__, elsewhere))

    return decorated


def named_methods(owner: type[Owner]) -> type[Owner]:
    """Make the public methods of a class refuse calls that do not fit; those that do keep their words."""
    for name, value in list(vars(owner).items()):
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if inspect.isfunction(function) and not name.startswith("_") and _CHECKED not in vars(function):
            checked = _checked(function, name, ARGUMENTS)
            setattr(owner, name, checked if function is value else type(value)(checked))
    return owner


def name_arguments(room: dict[str, Any]) -> None:
    """Make a package's public functions and classes refuse calls that do not fit: `name_arguments(globals())`."""
    for name, value in room.items():
        is_own = str(getattr(value, "__module__", "")).startswith(room["__name__"])
        if inspect.isfunction(value) and is_own and not name.startswith("_"):
            room[name] = named_arguments()(value)
        elif inspect.isclass(value) and is_own:
            named_methods(value)


_CHECKED = "refuses_calls_that_do_not_fit"
"""The attribute of a function that was made so."""

_MODELS = ("CkptedTransformer", "Network", "Reader")
"""Annotations of a first argument that takes a model of ours."""


def _checked(function: Callable[..., Any], verb: str, elsewhere: Mapping[str, str]) -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters
    known = [name for name, one in parameters.items() if name not in ("self", "cls") and one.kind != one.VAR_POSITIONAL]
    taken = frozenset(known)
    by_name = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters.values())
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    places = math.inf if any_number else len(parameters) - len(by_name) - any_name
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    needed = [n for n, one in parameters.items() if one.default is one.empty and one.kind not in several]
    by_place = [name for name in parameters if name not in by_name]
    needed_by_place, needed_by_name = len({*needed} - {*by_name}), frozenset(needed).intersection(by_name)
    model = known[0] if known and known[0] in by_place and parameters[known[0]].annotation in _MODELS else ""
    place = by_place.index(model) if model else 0

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not (any_name or taken.issuperset(kwargs)):
            refuse_unknown(verb, kwargs, known, elsewhere)
        if len(args) < needed_by_place or (needed_by_name and not needed_by_name.issubset(kwargs)):
            _refuse_missing(verb, function, [n for n in needed if n not in kwargs and n not in by_place[: len(args)]])
        if model:
            _refuse_no_model(verb, model, args[place] if place < len(args) else kwargs.get(model))
        if len(args) > places:
            raise UnknownArgumentError(
                f"{verb}: {len(args) - places} arguments more than it takes without a name.",
                code="unknown-argument",
                remedy=f"Give these by name: {', '.join(f'{name}=' for name in by_name)}."
                if by_name
                else _taken(known),
            )
        return function(*args, **kwargs)

    vars(checked)[_CHECKED] = True
    return checked
