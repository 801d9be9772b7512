"""Second part of the course, with chance: what a function samples, and how often, read off exactly.

`torch.multinomial`, which `Categorical.sample` calls, is told what to draw, once for every place, while it notes
the probabilities that it was given: the distribution over token ids follows without statistics. A function that
draws in another way is called many times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.exercises.result import CheckResult, Findings, WrongAnswerError, checked, explained, theirs
from pellucid.exercises.scores import as_id, given, note_changes
from pellucid.exercises.watch import Drawn, apart

DRAWS, SAME = 4000, 50
EXACT = 1e-5


@dataclass(frozen=True)
class Distribution:
    """What is sampled: probabilities [V], and whether they are exact or counted."""

    probabilities: Tensor
    exact: bool

    def is_(self, expected: Tensor) -> bool:
        """Whether this is the expected distribution; counted ones within 5 standard deviations."""
        if self.exact:
            return apart(self.probabilities, expected) <= EXACT
        deviation = (expected * (1 - expected) / DRAWS).sqrt()
        return bool(((self.probabilities - expected).abs() <= 5 * deviation + 1e-12).all())


def distribution(draw: Callable[[], Any], size: int, step: str, doing: str = "") -> Distribution:
    """The distribution of what `draw` returns over `size` ids; `doing` says what it was given."""
    _require_chance(draw, step, doing)
    first = Drawn(0)
    with theirs(step, doing), first:
        as_id(draw(), step)
    if len(first.weights) != 1 or first.weights[0].size(0) != 1:
        return Distribution(_counted(draw, size, step, doing), exact=False)
    weights = first.weights[0][0] / first.weights[0].sum()
    found = torch.zeros(size, dtype=torch.float64)
    for place in weights.nonzero().flatten().tolist():
        with theirs(step, doing), Drawn(place):
            token = as_id(draw(), step)
        found[_checked(token, size, step)] += weights[place]
    if found.max() < 0.6:  # by chance, all are the same once in 10^11 times
        _require_other_draws(draw, step, doing)
    return Distribution(found, exact=True)


def _require_chance(draw: Callable[[], Any], step: str, doing: str) -> None:
    """See that a function does not set the seed itself, under which every call draws the same."""
    states: list[Tensor] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with theirs(step, doing):
            draw()
        states.append(torch.get_rng_state())
    if torch.equal(*states):
        raise WrongAnswerError("the seed is set inside the function, so that every call draws the same", step,
                               "the chosen id", "something is drawn in another way than it should be")  # fmt: skip


def _require_other_draws(draw: Callable[[], Any], step: str, doing: str) -> None:
    """See that a function does not draw with a generator that it makes, under which every call draws the same."""
    with theirs(step, doing):
        if len({as_id(draw(), step) for _ in range(SAME)}) > 1:
            return
    raise WrongAnswerError("every call draws the same, as with a generator that is made and seeded inside the function",
                           step, "the chosen id")  # fmt: skip


def _counted(draw: Callable[[], Any], size: int, step: str, doing: str) -> Tensor:
    with theirs(step, doing):
        tokens = [_checked(as_id(draw(), step), size, step) for _ in range(DRAWS)]
    return torch.bincount(torch.tensor(tokens), minlength=size).double() / DRAWS


def _checked(token: int, size: int, step: str) -> int:
    if not 0 <= token < size:
        raise WrongAnswerError(f"it returns the id {token}, outside the vocabulary of {size}", step, "the chosen id")
    return token


Law = Callable[..., Tensor]
"""Logits [V] and an option -> probabilities [V]."""


def kept(logits: Tensor, keep: Tensor) -> Tensor:
    """The distribution over the tokens `keep`, renormalised."""
    return logits.double().masked_fill(~_among(logits, keep), -torch.inf).softmax(-1)


def _among(logits: Tensor, keep: Tensor) -> Tensor:
    return torch.zeros(logits.shape, dtype=torch.bool).index_fill(0, keep, True)


def _places(law: Law) -> Law:
    """The law's probabilities in descending order, at the ids 0, 1, 2 ...: places taken for ids."""
    return lambda x, *o: law(x, *o).sort(descending=True).values


def _ranked(x: Tensor) -> Tensor:
    return x.argsort(descending=True)


def basic(x: Tensor, _: Any = None) -> Tensor:
    """Softmax."""
    return x.double().softmax(-1)


def top_k(x: Tensor, k: int) -> Tensor:
    """The k most likely tokens (Fan et al. 2018, arXiv:1805.04833)."""
    return kept(x, _ranked(x)[:k])


def nucleus(x: Tensor, p: float, least: int = 1) -> Tensor:
    """The fewest most likely tokens that hold a probability of p (Holtzman et al. 2020, arXiv:1904.09751)."""
    return kept(x, _ranked(x)[: max(least, _below(x, p) + 1)])


def nucleus_of_the_course(x: Tensor, p: float, least: int = 1) -> Tensor:
    """One token fewer: those that together stay below p."""
    return kept(x, _ranked(x)[: max(least, _below(x, p))])


def _below(x: Tensor, p: float) -> int:
    return int((basic(x).sort(descending=True).values.cumsum(-1) < p).sum())


def greedy(x: Tensor, *_: Any) -> Tensor:
    """All on the most likely token."""
    return torch.nn.functional.one_hot(x.argmax(), x.numel()).double()


def _cut(law: Callable[[Tensor, int], Tensor], more: int) -> Law:
    """A law of how many tokens are kept, as a law of p: those that stay below it, and so many more."""
    return lambda x, p, *_: law(x, max(1, _below(x, p) + more))


def _unsorted_logits(x: Tensor, kept_tokens: int) -> Tensor:
    ids = _ranked(x)[:kept_tokens]
    return torch.zeros(x.shape, dtype=torch.float64).index_copy(0, ids, basic(x[:kept_tokens]))


def _sorted_mask_by_ids(x: Tensor, kept_tokens: int) -> Tensor:
    return kept(x, (_ranked(x) < kept_tokens).nonzero().flatten())


def _sorted_by_ids(x: Tensor, kept_tokens: int) -> Tensor:
    ids = _ranked(x)[:kept_tokens]
    return torch.zeros(x.shape, dtype=torch.float64).index_copy(0, ids, basic(x.sort(descending=True).values[ids]))


ANY: Mapping[str, Law] = {
    "it always takes the most likely token": greedy,
    "it samples from all tokens alike": lambda x, *_: torch.full(x.shape, 1 / x.numel(), dtype=torch.float64),
    "the logits are turned around: unlikely tokens become likely": lambda x, *_: basic(-x),
    "softmax is applied twice": lambda x, *_: basic(x).softmax(-1),
    "sigmoid takes the place of softmax": lambda x, *_: x.double().sigmoid() / x.double().sigmoid().sum(),
}
BASIC: Mapping[str, Law] = ANY
TOP_K: Mapping[str, Law] = {
    "nothing is cut: it samples from all tokens": basic,
    "it keeps the k least likely tokens": lambda x, k: kept(x, _ranked(x)[-k:]),
    "it keeps k + 1 tokens": lambda x, k: top_k(x, k + 1),
    "it keeps k - 1 tokens": lambda x, k: top_k(x, max(1, k - 1)),
    "it returns the place among the k, not the token's id": _places(top_k),
    "it samples from the k tokens alike": lambda x, k: _among(x, _ranked(x)[:k]).double() / k,
    "logits that are cut are set to 0, which softmax does not ignore":
        lambda x, k: basic(torch.where(_among(x, _ranked(x)[:k]), x, 0.0)),
    "softmax is applied twice: before the k are chosen, and to their probabilities":
        lambda x, k: kept(basic(x), _ranked(x)[:k]),
    "it keeps the tokens with the ids below k": lambda x, k: kept(x, torch.arange(k)),
    "the k tokens get the first of the unsorted logits, not their own": _unsorted_logits,
    "the sorted logits are indexed with ids, where places among the sorted are meant": _sorted_by_ids,
    "it keeps the tokens from the k-th least likely one on": lambda x, k: kept(x, _ranked(x)[: x.numel() - k + 1]),
    **ANY,
}  # fmt: skip
TOP_P: Mapping[str, Law] = {
    "nothing is cut: it samples from all tokens": basic,
    "it keeps the least likely tokens: probabilities are added up in ascending order":
        lambda x, p, *_: kept(x, x.argsort()[: _ascending(x, p) + 1]),
    "it keeps the least likely tokens that stay below p":
        lambda x, p, *_: kept(x, x.argsort()[: max(1, _ascending(x, p))]),
    "probabilities are added up unsorted, in the order of the ids":
        lambda x, p, *_: kept(x, torch.arange(int((basic(x).cumsum(-1) < p).sum()) + 1)),
    "logits are added up, where probabilities are meant":
        lambda x, p, *_: kept(x, _ranked(x)[: max(1, int((x.sort(descending=True).values.cumsum(-1) < p).sum()) + 1)]),
    "logits are added up, where probabilities are meant (and one token fewer is kept)":
        lambda x, p, *_: kept(x, _ranked(x)[: max(1, int((x.sort(descending=True).values.cumsum(-1) < p).sum()))]),
    "it keeps what lies behind p: the tokens whose sum of probabilities is above it":
        lambda x, p, *_: kept(x, _ranked(x)[min(_below(x, p), x.numel() - 1) :]),
    "it keeps the tokens whose own probability is above p":
        lambda x, p, *_: kept(x, (basic(x) > p).nonzero().flatten()),
    "it keeps one token more than the nucleus": lambda x, p, *_: kept(x, _ranked(x)[: _below(x, p) + 2]),
    "it cuts at 1 - p, not at p": lambda x, p, *_: nucleus(x, 1 - p),
    "it returns the place among the kept tokens, not the token's id": _places(nucleus),
    "it returns the place among the kept tokens, not the token's id (and keeps one fewer)":
        _places(nucleus_of_the_course),
    "it samples from the kept tokens alike": lambda x, p, *_: (nucleus(x, p) > 0).double() / (nucleus(x, p) > 0).sum(),
    "logits that are cut are set to 0, which softmax does not ignore":
        lambda x, p, *_: basic(torch.where(nucleus(x, p) > 0, x, 0.0)),
    **{words + fewer: _cut(law, more)
       for more, fewer in ((1, ""), (0, " (and one token fewer is kept)")) for words, law in (
           ("places among the sorted tokens are taken for ids: the tokens with the first ids are kept",
            lambda x, count: kept(x, torch.arange(count))),
           ("the kept tokens get the first of the unsorted logits, not their own", _unsorted_logits),
           ("the sorted logits are indexed with ids, where places among the sorted are meant", _sorted_by_ids),
           ("the sorted tokens' mask is indexed with ids, mask[ids], where mask.scatter(0, ids, mask) puts it at them",
            _sorted_mask_by_ids),
       )},
    "softmax is applied twice: before the tokens are chosen, and to their probabilities":
        lambda x, p, *_: kept(basic(x), _ranked(x)[: _below(x, p) + 1]),
    "temperature is used where p is meant: the logits are divided by p": lambda x, p, *_: basic(x / p),
    **ANY,
}  # fmt: skip


def _ascending(x: Tensor, p: float) -> int:
    return int((basic(x).sort().values.cumsum(-1) < p).sum())


def probes() -> list[Tensor]:
    """Logits [V] whose order is not that of the ids."""
    first = torch.tensor([0.05, 0.31, 0.12, 0.08, 0.22, 0.02, 0.2]).log() + 0.7
    return [first, 1.5 * torch.randn(9, generator=torch.Generator().manual_seed(5))]


def check_sample_basic(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `sample_basic(logits) -> int`.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """
    return checked("sampling", lambda found: _check(found, fn, [()], basic, BASIC, "sampling", ()), hint)


def check_top_k(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `sample_top_k(logits, top_k) -> int`.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """

    def body(found: Findings) -> None:
        _check(found, fn, [(3,), (1,), (5,)], top_k, TOP_K, "top-k", ("top_k",))
        found.proved.append("it keeps the k most likely tokens")

    return checked("top-k", body, hint)


def check_top_p(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `sample_top_p(logits, top_p, min_tokens_to_keep=1) -> int`; both forms of the nucleus pass.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """

    def body(found: Findings) -> None:
        options, names = [(0.7,), (0.4,), (0.9,)], ("top_p", "min_tokens_to_keep")
        try:
            _check(found, fn, options, nucleus, TOP_P, "top-p", names)
            law, words = nucleus, "the nucleus of the paper and of transformers: the fewest tokens that reach p"
        except WrongAnswerError:
            _check(found, fn, options, nucleus_of_the_course, TOP_P, "top-p", names)
            law, words = nucleus_of_the_course, "the course's reference: one token fewer than the nucleus of the paper"
            found.note("the course's reference keeps one token fewer than the nucleus of the paper and of transformers")
        found.proved.append(f"top-p keeps {words}")
        _check(Findings(), fn, [(0.01,)], law, {}, "top-p, one token at least", names)
        found.proved.append("one token is kept however small p is")
        _check_whole(fn, law)
        _check_least(found, fn, law, names)

    return checked("top-p", body, hint)


def _check_least(found: Findings, fn: Callable[..., Any], law: Law, names: tuple[str, ...]) -> None:
    """See that min_tokens_to_keep is the least number of tokens, small or large p."""
    fewer = law is nucleus_of_the_course
    known: dict[str, Law] = {
        "min_tokens_to_keep is not used": lambda x, p, _: law(x, p),
        "min_tokens_to_keep is added to the nucleus; it is the least number of tokens":
            lambda x, p, least: top_k(x, _below(x, p) + least - fewer),
    }  # fmt: skip
    try:
        _check(Findings(), fn, [(0.01, 3), (0.7, 2), (0.9, 2)], law, known, "top-p, min_tokens_to_keep", names)
        found.proved.append("min_tokens_to_keep is used")
    except WrongAnswerError as wrong:
        if "TypeError" not in wrong.mistake or wrong.line is not None:  # raised inside of it
            raise
        found.note("it takes no min_tokens_to_keep, which the course's has")


def _check_whole(fn: Callable[..., Any], law: Law) -> None:
    """Every token is kept at p = 1; just below 1, the course's form may keep all but the least likely."""
    step = "top-p, p = 1"
    for logits in probes():
        size = logits.numel()
        drawn = distribution(lambda x=logits: fn(x.clone(), 1.0), size, step, f"given logits [{size}], top_p=1.0")
        if not drawn.is_(basic(logits)) and (law is nucleus or not drawn.is_(top_k(logits, size - 1))):
            raise WrongAnswerError("with p = 1 it does not keep every token", step, "the probabilities [vocab]")


def _check(
    found: Findings,
    fn: Callable[..., Any],
    options: list[tuple[Any, ...]],
    right: Law,
    wrong: Mapping[str, Law],
    step: str,
    names: tuple[str, ...],
) -> None:
    drawn: list[tuple[Distribution, Tensor, tuple[Any, ...]]] = []
    for logits in probes():
        for option in options:

            def draw(x: Tensor = logits, o: tuple[Any, ...] = option) -> Any:
                given_logits = x.clone()
                token = fn(given_logits, *o)
                note_changes(found, step, ("logits",), (given_logits,), (x,))
                return token

            doing = given(("logits", *names), (logits, *option))
            drawn.append((distribution(draw, logits.numel(), step, doing), logits, option))

    def same(law: Law) -> bool:
        return all(one.is_(law(logits, *option)) for one, logits, option in drawn)

    if not same(right):
        one, logits, option = next(d for d in drawn if not d[0].is_(right(d[1], *d[2])))
        sampled, expected = (_shown(p) for p in (one.probabilities, right(logits, *option)))
        if not one.exact and float(one.probabilities.max()) == 1.0:
            expected = f"{expected}: all {DRAWS} calls drew one token"
        unknown = f"it samples with probabilities {sampled}, expected {expected}; none of the known mistakes does that"
        raise explained(wrong, same, unknown, step, "the probabilities [vocab]")
    how = "exactly, by deciding every draw" if drawn[0][0].exact else f"within 5 standard deviations of {DRAWS} draws"
    found.proved.append(f"the probability of every token is right, {how}")


def _shown(probabilities: Tensor) -> str:
    return "[" + ", ".join(f"{p:.3f}" for p in probabilities.tolist()) + "]"
