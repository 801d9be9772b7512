"""What a generation was asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch

from pellucid.aliases import Names, selected, several
from pellucid.check import as_whole, require_one_of, require_whole
from pellucid.dialects import ARGUMENTS
from pellucid.errors import InputError, shown
from pellucid.generate.beams import MOST, Beams
from pellucid.generate.sampler import Sampler
from pellucid.generate.stepper import Look, RunPlan, left_padded
from pellucid.generate.stopping import Stopping
from pellucid.run.edit import Edit
from pellucid.run.taps import EditTap
from pellucid.schema import Schema
from pellucid.text.batch import Batch

Seed = int | torch.Generator | None
"""What draws come from: a seed, a generator, or torch's own if None."""


@dataclass(frozen=True)
class Request:
    """A generation as it was asked for."""

    batch: Batch  # the prompts, padded on the left
    single: bool  # whether one prompt was given that was not in a list
    sampler: Sampler  # how tokens are chosen
    stopping: Stopping  # when texts end
    seed: Seed  # the seed of the draws
    returned: int  # texts for each prompt
    beams: Beams | None  # the search; None for one token after another
    plan: RunPlan  # how the text is run
    names: frozenset[str]  # what is captured
    edits: Sequence[Edit]  # what is changed
    pad_id: int = 0  # what stands where a text has ended


def left(batch: Batch) -> Batch:
    """The same texts with their pads on the left: each ends in the last column, and the longest begins in the first."""
    if bool(batch.mask[:, -1].all()) and bool(batch.mask[:, 0].any()):
        return batch
    ids, mask = left_padded(list(batch.rows()))
    positions = (mask.long().cumsum(-1) - 1).masked_fill(~mask, 0)
    return Batch(ids, mask, positions, batch.tokenizer, None, batch.checked)


def plan_of(batch: Batch, stopping: Stopping, schema: Schema, *, cached: bool, overflow: str) -> RunPlan:
    """How a text will be run, which must fit into the context unless it slides."""
    require_one_of("generate: overflow", overflow, ("error", "slide"), code="overflow")
    columns = batch.ids.size(1) + stopping.max_new_tokens
    context = schema.sizes["n_ctx"]
    if columns > context and overflow == "error":
        prompt = batch.ids.size(1)
        raise InputError(
            f"generate: a prompt of {prompt} tokens and {stopping.max_new_tokens} new ones, expected at most "
            f"{context} together (the context).",
            code="too-long",
            remedy=f"Ask for at most {context - prompt} new tokens, or pass overflow='slide', which goes on "
            "from the last tokens that fit.",
        )
    return RunPlan(columns, cached, overflow == "slide")


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


def look_at(request: Request, schema: Schema) -> Look:
    """What is captured and changed in a generation."""
    edits = EditTap(request.edits, request.batch, schema, start=0)
    if (request.names or edits.fired) and request.plan.columns > schema.sizes["n_ctx"]:
        raise InputError(
            "generate: names= or edits= with a text that slides, in which a column has no lasting position.",
            code="look-and-slide",
            remedy="Generate within the context.",
        )
    return Look(request.names, edits, schema)


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
    if not -(2**63) <= number < 2**64:
        raise InputError(
            f"generate: seed={shown(number)}, expected a number of 64 bits.",
            code="seed",
            remedy="Give a smaller number.",
        )
    return torch.Generator(device).manual_seed(number)


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
