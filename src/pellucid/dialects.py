"""What other libraries call things: arguments and attributes that do not exist here, and the call to use instead.

One table, read by the errors of the objects and by the documentation.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from pellucid.errors import UnknownArgumentError, nearest

Given = ParamSpec("Given")
Result = TypeVar("Result")

_IDS_FIRST = "Pass ids first, model(ids, mask=...), or the whole mapping that the tokenizer returned, model(encoding)."

ARGUMENTS: Mapping[str, str] = {
    # transformers
    "input_ids": _IDS_FIRST,
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
    "layer": "Name the block in the checkpoint, such as 'blocks.3.resid_post'.",
}
"""Keyword arguments of other libraries' calls -> what to do here."""


def refuse_unknown(verb: str, given: Iterable[str], known: Iterable[str], elsewhere: Mapping[str, str]) -> None:
    """Refuse arguments that a call does not take.

    Args:
        verb: The call, such as "loss".
        given: The arguments' names.
        known: Those that it takes.
        elsewhere: Words of others -> what to do here.

    Raises:
        UnknownArgumentError: There are any.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise UnknownArgumentError(
                f"{verb}: {name}= given, which is no argument of it.",
                code="unknown-argument",
                remedy=elsewhere.get(name)
                or nearest(name, known)
                or _for_a_near_word(name, elsewhere)
                or f"Its arguments are {', '.join(known)}.",
            )


def _for_a_near_word(name: str, elsewhere: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8)
    return elsewhere[close[0]] if close else ""


def named_arguments(
    elsewhere: Mapping[str, str] = ARGUMENTS,
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Make a function refuse keyword arguments that it does not take, and say what to use instead.

    Args:
        elsewhere: Words of other libraries -> what to do here.
    """

    def decorated(function: Callable[Given, Result]) -> Callable[Given, Result]:
        known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
        taken = frozenset(known)

        @functools.wraps(function)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            if not taken.issuperset(kwargs):
                refuse_unknown(function.__name__, kwargs, known, elsewhere)
            return function(*args, **kwargs)

        return checked

    return decorated
