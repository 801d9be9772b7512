"""What a generation was asked for by its caller and by a file, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch

from pellucid.check import as_flag, as_number, as_whole, require_one_of, require_seed, require_whole
from pellucid.errors import InputError, shown
from pellucid.family.network import Network
from pellucid.generate.beams import MOST, Beams
from pellucid.generate.generation import Stop, Stopping
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.generate.sampler import GREEDY, Sampler
from pellucid.generate.stepper import Look, RunPlan, left_padded
from pellucid.names.aliases import Names, selected, several
from pellucid.names.calls import ARGUMENTS
from pellucid.run.edit import Edit
from pellucid.run.taps import EditTap
from pellucid.schema import Schema
from pellucid.text.batch import Batch
from pellucid.text.batching import positions_of

Seed = int | torch.Generator | None
"""What draws come from: a seed, a generator, or torch's own if None."""


@dataclass(frozen=True)
class Request:
    """A generation as it was asked for."""

    batch: Batch  # the prompts, padded on the left
    single: bool  # whether one text is asked for, by one prompt that was not in a list
    sampler: Sampler  # how tokens are chosen
    stopping: Stopping  # when texts end
    seed: Seed  # the seed of the draws
    returned: int  # texts for each prompt
    beams: Beams | None  # the search; None for one token after another
    plan: RunPlan  # how the text is run
    names: frozenset[str]  # what is captured
    edits: Sequence[Edit]  # what is changed
    pad_id: int = 0  # what stands where a text has ended

    @property
    def runs_nothing(self) -> bool:
        """Whether the prompts are all that is asked for, and nobody looks at them."""
        return self.stopping.max_new_tokens == 0 and not self.names and not self.edits


def left(batch: Batch) -> Batch:
    """The same texts with their pads on the left: each ends in the last column, and the longest begins in the first."""
    if bool(batch.mask[:, -1].all()) and bool(batch.mask[:, 0].any()):
        return batch
    ids, mask = left_padded(list(batch.rows()))
    return Batch(ids, mask, positions_of(mask), batch.tokenizer, None, batch.checked)


def plan_of(batch: Batch, stopping: Stopping, schema: Schema, *, cached: bool, overflow: str) -> RunPlan:
    """How a text will be run, which must fit into the context unless it slides."""
    require_one_of("generate: overflow", overflow, ("error", "slide"), code="overflow")
    columns = batch.ids.size(1) + stopping.max_new_tokens
    context = schema.sizes["n_ctx"]
    if columns > context and overflow == "error":
        prompt = batch.ids.size(1)
        raise InputError(
            f"generate: a prompt of {prompt} tokens and {shown(stopping.max_new_tokens)} new ones, expected at most "
            f"{context} together (the context).",
            code="too-long",
            remedy=f"Ask for at most {context - prompt} new tokens, or pass overflow='slide', which goes on "
            "from the last tokens that fit.",
        )
    return RunPlan(columns, cached)


def sampler_of(given: Sampler | Literal["file"] | None) -> Sampler | Literal["file"] | None:
    """How tokens are chosen, as it was given."""
    if given is None or isinstance(given, Sampler) or given == "file":  # pyright: ignore[reportUnnecessaryComparison]
        return given
    raise InputError(
        f"generate: sampler={shown(given)}, expected pl.Sampler, 'file' or None.",
        code="sampler-setting",
        remedy="Give pl.Sampler(temperature=0.8, top_p=0.9), 'file' for the settings of generation_config.json, or "
        "nothing for the likeliest token.",
    )


def require_some(name: str, value: object, at_most: int | None = None) -> int:
    """A number of texts, of which there has to be one or more."""
    return require_whole(f"generate: {name}", value, at_least=1, at_most=at_most, code="return-sequences")


def returned_of(num_return_sequences: int, num_beams: int, sampler: Sampler) -> int:
    """How many texts each prompt gets."""
    returned = require_some("num_return_sequences", num_return_sequences, at_most=MOST)
    beams = require_some("num_beams", num_beams, at_most=MOST)
    if returned > 1 and beams == 1 and sampler.is_greedy:
        raise InputError(
            f"generate: num_return_sequences={returned}, but greedy decoding gives one text.",
            code="return-sequences",
            remedy="Pass a sampler with a temperature, or num_beams.",
        )
    return returned


def look_at(request: Request, model: Network) -> Look:
    """What is captured and changed in a generation."""
    edits = EditTap(request.edits, request.batch, model, start=0)
    if (request.names or edits.fired) and request.plan.columns > model.schema.sizes["n_ctx"]:
        raise InputError(
            "generate: names= or edits= with a text that slides, in which a column has no lasting position.",
            code="look-and-slide",
            remedy="Generate within the context.",
        )
    return Look(request.names, edits, model.schema)


def names_of(names: Names, schema: Schema) -> frozenset[str]:
    """The checkpoints to capture; an empty list captures nothing, None everything."""
    if names is None:
        return frozenset(schema.names)
    wanted = several(names)
    return frozenset(selected(wanted, schema)) if wanted else frozenset()


def generator_of(seed: Seed, device: torch.device) -> torch.Generator | None:
    """A generator for draws on this device; None for torch's own."""
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    number = as_whole(seed)
    if number is None:
        raise InputError(
            f"generate: seed={shown(seed)}, expected a whole number or a torch.Generator.",
            code="seed",
            remedy="Leave it out to draw from torch's own generator.",
        )
    return torch.Generator(device).manual_seed(require_seed("generate: seed", number, code="seed"))


ELSEWHERE = {
    **ARGUMENTS,
    **{field.name: f"Pass sampler=pl.Sampler({field.name}=...)." for field in fields(Sampler)},
    "do_sample": "Pass sampler=pl.Sampler().",
    "max_tokens": "Pass max_new_tokens=.",
    "max_length": "Pass max_new_tokens=.",
    "eos_token_id": "Pass end_ids=.",
    "stop_at_eos": "Pass end_ids=(), which generates without an end.",
    "stop_strings": "Pass stop=.",
    "stopping_criteria": "Pass stop=, ids or texts at which to stop, or end_ids=.",
    "streamer": "Call model.stream(...), which gives each token as it comes.",
    "generation_config": "Set model.generation = pl.GenerationSettings({...}), and pass sampler='file'.",
    "pad_token_id": "Leave it out: pass mask= beside padded ids, or texts and lists, which are padded and masked here.",
    "verbose": "Leave it out; nothing is printed.",
}
"""What others pass to `generate` -> what to do here."""


def edits_of(edits: Edit | Iterable[Edit]) -> Sequence[Edit]:
    """One edit or several, as a list."""
    return [edits] if isinstance(edits, Edit) or not isinstance(edits, Iterable) else list(edits)


WITHOUT_A_FILE = 20
"""New tokens, at most, if neither the caller nor the file gives a length: transformers' default."""


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
        """These with what the caller gave in their place; None was not given. Raise if only a search would read it."""
        given = {name: value for name, value in given.items() if value is not None}
        found = replace(self, **given)
        plain = {
            "length_penalty": as_number(found.length_penalty) == 1,
            "early_stopping": as_flag(found.early_stopping) is False,
        }
        idle = next((name for name, is_default in plain.items() if name in given and not is_default), None)
        if idle is not None and found.num_beams == 1:
            raise InputError(
                f"generate: {idle}={shown(given[idle])} without a beam search, which alone reads it.",
                code="length-penalty" if idle == "length_penalty" else "early-stopping",
                remedy="Search with several beams (num_beams), or leave it out.",
            )
        return found


def asked_by(settings: GenerationSettings, columns: int, n_positions: int) -> Asked:
    """What `transformers` would do with these settings if its `generate` were called without arguments.

    `columns` are those of the prompts, pads included: `max_length` and `min_length` count them.
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
            num_return_sequences=require_some("num_return_sequences", fields["num_return_sequences"], at_most=MOST),
            num_beams=require_some("num_beams", fields["num_beams"], at_most=MOST),
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
"""transformers' defaults of fields that are read here, if they are not the sampler's."""

_FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_OF_DRAWS = ("top_h", "epsilon_cutoff", "eta_cutoff")
_SEARCHES = ("top_k", "num_beams")


def _that_apply(settings: GenerationSettings) -> GenerationSettings:
    """Settings without those that transformers passes over because of others."""
    draws = settings.fields.get("do_sample") is True
    idle: list[str] = [] if draws else list(_OF_DRAWS)
    top_k, beams = (_DEFAULTS[name] if (given := settings.fields.get(name)) is None else given for name in _SEARCHES)
    if draws or (as_number(beams) or 1) > 1 or not (as_number(top_k) or 0) > 1:
        idle.append("penalty_alpha")  # contrastive search takes several candidates, of one text
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
