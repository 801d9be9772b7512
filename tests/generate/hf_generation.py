"""transformers' `generate`, called for the same rows and settings as ours."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

import pellucid as pl

OURS_ALONE = ("frequency_penalty", "presence_penalty")
"""What transformers has no setting for."""


@dataclass(frozen=True)
class Theirs:
    """What transformers gave: rows of new ids up to their end, and log-probabilities of its own distribution."""

    new: list[list[int]]
    logprobs: list[list[float]]
    scores: list[float] | None


def generate(
    hf: Any, rows: list[list[int]], *, sampler: pl.Sampler | None = None, seed: int = 0, max_new_tokens: int = 12,
    end_ids: tuple[int, ...] = (), returned: int = 1, processors: Any = None, **beams: Any,
) -> Theirs:  # fmt: skip
    """Call it, with pads on the left."""
    ids, mask = padded(rows, fill=end_ids[0] if end_ids else 0)
    torch.manual_seed(seed)
    out = hf.generate(
        ids, attention_mask=mask, max_new_tokens=max_new_tokens, eos_token_id=list(end_ids) or None,
        pad_token_id=end_ids[0] if end_ids else 0, num_return_sequences=returned, logits_processor=processors or [],
        return_dict_in_generate=True, output_logits=True, output_scores=True, **settings(sampler), **beams,
    )  # fmt: skip
    new = [cut(row, end_ids) for row in out.sequences[:, ids.size(1) :].tolist()]
    found = getattr(out, "sequences_scores", None)
    logits = torch.stack(out.logits, 1)
    if found is not None:
        return Theirs(new, beam_logprobs(logits, out.beam_indices, new), found.tolist())
    logprobs = logits.float().log_softmax(-1).gather(-1, out.sequences[:, ids.size(1) :, None]).squeeze(-1)
    return Theirs(new, [row[: len(kept)] for row, kept in zip(logprobs.tolist(), new, strict=True)], None)


def beam_logprobs(logits: Tensor, beams: Tensor, new: list[list[int]]) -> list[list[float]]:
    logprobs = logits.float().log_softmax(-1)
    return [
        [float(logprobs[beams[row, step], step, token]) for step, token in enumerate(tokens)]
        for row, tokens in enumerate(new)
    ]


def padded(rows: list[list[int]], fill: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[fill] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def settings(sampler: pl.Sampler | None) -> dict[str, Any]:
    """A sampler in transformers' words."""
    if sampler is None:
        return {"do_sample": False}
    given = {f.name: getattr(sampler, f.name) for f in fields(sampler) if f.name not in OURS_ALONE}
    sampled = not sampler.is_greedy
    said: dict[str, Any] = {"do_sample": sampled}
    for name, value in given.items():
        filters = name in ("temperature", "top_k", "top_p", "min_p", "typical_p")
        if filters and not sampled:
            continue
        if name == "top_k" or value != type(sampler).__dataclass_fields__[name].default:
            said[name] = list(value) if name == "suppress_tokens" else value
    return said


def cut(row: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """A row up to its end id and with it."""
    ends = [i for i, token in enumerate(row) if token in end_ids]
    return row[: ends[0] + 1] if ends else row
