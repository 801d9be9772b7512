"""What a generation is asked for: the caller's arguments, the settings of a file, and what always counts of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pellucid.check import as_number, require_whole
from pellucid.errors import InputError, shown
from pellucid.generate.beams import MOST
from pellucid.generate.sampler import GREEDY, Sampler
from pellucid.generate.stopping import Stop
from pellucid.generation_settings import GenerationSettings

WITHOUT_A_FILE = 20
"""New tokens, at most, where neither the caller nor the file gives a length: transformers' default."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `generate` that a file may give, with pellucid's defaults.

    Attributes are named and explained as the arguments of `generate`.
    """

    max_new_tokens: int = 50
    sampler: Sampler = GREEDY
    stop: Stop = ()
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def with_given(self, **given: Any) -> Asked:
        """These with what the caller gave in their place; None was not given."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def asked_by(settings: GenerationSettings, columns: int, n_positions: int) -> Asked:
    """What `transformers` would do with these settings if its `generate` were called without arguments.

    Args:
        settings: What the file says.
        columns: How many columns the prompts have, pads included: `max_length` and `min_length` count them.
        n_positions: The context.
    """
    settings = _that_apply(settings)
    if settings.unimplemented:
        names = sorted(settings.unimplemented)
        raise InputError(
            f"generate: {settings.source} has {', '.join(f'{n}={shown(settings.fields[n])}' for n in names)}, "
            "which is not implemented.",
            code="generation-not-implemented",
            remedy=f"Leave it out: model.generation = model.generation.without({str(names)[1:-1]}); or pass a "
            "pl.Sampler instead of sampler='file'.",
        )
    fields = {**_DEFAULTS, **{name: value for name, value in settings.fields.items() if value is not None}}
    try:
        return Asked(
            max_new_tokens=_length(fields, columns, n_positions),
            sampler=_sampler(fields, columns),
            stop=fields["stop_strings"],
            num_return_sequences=_count("num_return_sequences", fields),
            num_beams=_count("num_beams", fields),
            length_penalty=fields["length_penalty"],
            early_stopping=fields["early_stopping"],
        )
    except InputError as problem:
        raise InputError(
            f"{settings.source}: {problem.message}",
            code=problem.code,
            remedy="Correct the file, or set model.generation = pl.GenerationSettings({...}); or pass a pl.Sampler "
            "instead of sampler='file'.",
        ) from problem


def with_what_always_counts(sampler: Sampler, settings: GenerationSettings, vocabulary: int) -> Sampler:
    """A sampler that also keeps to the tokens that a file suppresses and forces; its own forced ones stay.

    What a file suppresses outside the vocabulary is suppressed already.
    """
    suppressed = {
        name: (*getattr(sampler, name), *(token for token in settings.ids(name) if 0 <= token < vocabulary))
        for name in _SUPPRESSED
    }
    forced = {name: getattr(sampler, name) or settings.ids(name) for name in _FORCED}
    return replace(sampler, **suppressed, **forced)


_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")

_DEFAULTS: dict[str, Any] = {
    "do_sample": False, "top_k": 50, "min_length": 0, "num_return_sequences": 1, "num_beams": 1,
    "length_penalty": 1.0, "early_stopping": False, "stop_strings": (),
}  # fmt: skip
"""transformers' defaults of fields that are read here, where they are not the sampler's."""

_FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_OF_DRAWS = ("top_h", "epsilon_cutoff", "eta_cutoff")


def _that_apply(settings: GenerationSettings) -> GenerationSettings:
    """Settings without those that transformers passes over because of others."""
    draws = settings.fields.get("do_sample") is True
    idle: list[str] = [] if draws else list(_OF_DRAWS)
    if draws or not (as_number(settings.fields.get("top_k")) or 0) > 1:
        idle.append("penalty_alpha")  # contrastive search takes both
    if not (as_number(settings.fields.get("num_beam_groups")) or 1) > 1:
        idle.append("diversity_penalty")
    return settings.without(*idle)


def _length(fields: dict[str, Any], columns: int, n_positions: int) -> int:
    if "max_new_tokens" in fields:
        return require_whole("generate: max_new_tokens", fields["max_new_tokens"], at_least=1, code="max-new-tokens")
    if "max_length" not in fields:
        return max(min(WITHOUT_A_FILE, n_positions - columns), 1)
    longest = require_whole("generate: max_length", fields["max_length"], code="max-new-tokens")
    if longest <= columns:
        raise InputError(
            f"generate: max_length={longest}, but the prompt has {columns} tokens already.",
            code="max-new-tokens",
            remedy="Pass max_new_tokens=, which counts before the file.",
        )
    return longest - columns


def _sampler(fields: dict[str, Any], columns: int) -> Sampler:
    given = {name: fields[name] for name in ("repetition_penalty", "no_repeat_ngram_size") if name in fields}
    if not isinstance(fields["do_sample"], bool):
        raise InputError(
            f"do_sample={shown(fields['do_sample'])}, expected true or false.",
            code="sampler-setting",
            remedy="Give do_sample as true or false.",
        )
    if fields["do_sample"]:
        given |= {name: fields[name] for name in _FILTERS if name in fields}
        for name in ("top_p", "typical_p"):  # transformers passes over them from 1 on
            number = as_number(given.get(name))
            if number is not None and number >= 1:
                del given[name]
    else:
        given["temperature"] = 0
    if "min_new_tokens" in fields:
        given["min_new_tokens"] = fields["min_new_tokens"]
    else:
        shortest = require_whole("generate: min_length", fields["min_length"], code="sampler-setting")
        given["min_new_tokens"] = max(0, shortest - columns)
    return Sampler(**given)


def _count(name: str, fields: dict[str, Any]) -> int:
    return require_whole(f"generate: {name}", fields[name], at_least=1, at_most=MOST, code="return-sequences")
