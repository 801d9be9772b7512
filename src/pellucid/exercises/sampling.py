"""One door to the second part of the course: functions are recognised by the names that the course gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pellucid.exercises.beam_search import check_beam_search
from pellucid.exercises.cache import check_cache
from pellucid.exercises.draws import check_sample_basic, check_top_k, check_top_p
from pellucid.exercises.next_token import check_sample_next_token
from pellucid.exercises.result import CheckResult, misuse, together
from pellucid.exercises.scores import check_frequency_penalty, check_greedy, check_temperature

CHECKS: Mapping[str, tuple[tuple[str, ...], Callable[..., CheckResult]]] = {
    "greedy": (("greedy_search",), check_greedy),
    "temperature": (("apply_temperature",), check_temperature),
    "frequency_penalty": (("apply_freq_penalty", "apply_frequency_penalty"), check_frequency_penalty),
    "basic": (("sample_basic",), check_sample_basic),
    "top_k": (("sample_top_k",), check_top_k),
    "top_p": (("sample_top_p",), check_top_p),
    "next_token": (("sample_next_token",), check_sample_next_token),
    "beam_search": (("beam_search",), check_beam_search),
}
"""Exercise -> the names that the course gives its function, and its check."""


def check_sampling(
    *answers: Any,
    exercise: str | None = None,
    make_cache: Callable[..., Any] | None = None,
    hint: int | None = None,
) -> CheckResult:
    """Check functions of the course's second part, or the cache of a GPT-2.

    Args:
        *answers: Functions under the course's names: `greedy_search`, `apply_temperature`, `apply_freq_penalty`,
            `sample_basic`, `sample_top_k`, `sample_top_p`, `sample_next_token`, `beam_search`; or a `GPT2`.
        exercise: Which one it is, for a single function of another name: a key of `CHECKS`.
        make_cache: Makes an empty cache, for a `GPT2`.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Returns:
        The function's own result, or one for all of them, which passed if each did.

    Raises:
        InputError: Nothing to check, or a function of an unknown name.

    Example:
        >>> from pellucid.exercises import check_sampling
        >>> def greedy_search(logits):
        ...     return int(logits.argmin())
        >>> print(check_sampling(greedy_search))
        ✗ greedy
            mistake: it takes the least likely token
            step: greedy
            first shows in: the chosen id
    """
    if not answers:
        raise misuse("check_sampling: nothing given.", "Pass one or more of your functions.")
    if exercise is not None and len(answers) > 1:
        raise misuse("check_sampling: several functions and one exercise.", "Pass exercise= with a single function.")
    results = [_check(answer, exercise, make_cache, hint) for answer in answers]
    return results[0] if len(results) == 1 else together("sampling", results)


def _check(answer: Any, exercise: str | None, make_cache: Callable[..., Any] | None, hint: int | None) -> CheckResult:
    if isinstance(answer, nn.Module) or (isinstance(answer, type) and issubclass(answer, nn.Module)):
        if make_cache is None:
            raise misuse("check_sampling: a model without make_cache.", "Pass make_cache=, which makes an empty cache.")
        return check_cache(answer, make_cache, hint=hint)
    if not callable(answer):
        raise misuse(f"check_sampling: {type(answer).__name__} given, expected a function.", "Pass the function.")
    name = getattr(answer, "__name__", "")
    found = exercise or next((key for key, (names, _) in CHECKS.items() if name in (key, *names)), None)
    if found is None or found not in CHECKS:
        raise misuse(
            f"check_sampling: which exercise is {found or name!r}?",
            f"Use the course's name for the function, or pass exercise=, one of {', '.join(CHECKS)}.",
        )
    return CHECKS[found][1](answer, hint=hint)
