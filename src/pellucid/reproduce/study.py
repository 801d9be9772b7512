"""What published figures are computed again on: a model, and sentences drawn for it.

Sentences have an indirect object, their words are ours, in groups of one length; others are about years. The task is
that of Wang et al. (2022, arXiv:2211.00593): of two names that were said, the one that was said once comes next. The
fifteen templates of the paper are not in this package, so figures that were published of those are compared in kind.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from pellucid.errors import InputError
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Batch
from pellucid.text.tokenizer import Tokenizer

TEMPLATES = (
    "While {a} and {b} were cleaning the {place}, {s} passed the {object} to",
    "Later that day, {a} and {b} met at the {place}, and {s} handed a {object} to",
    "After {a} and {b} came back from the {place}, {s} showed the {object} to",
    "Because {a} and {b} were late for the {place}, {s} lent a {object} to",
    "Yesterday {a} and {b} walked to the {place}. There {s} gave a {object} to",
    "Once {a} and {b} had closed the {place}, {s} brought the {object} to",
)
NAMES = (
    *("Mary", "John", "Paul", "Anna", "Peter", "Kate", "Robert", "Laura", "Simon", "Jane"),
    *("Tom", "Sarah", "David", "Emma", "Henry", "Alice", "George", "Lucy", "Jack", "Ben"),
)
PLACES = ("park", "shop", "school", "garden", "station", "office", "market", "church")
OBJECTS = ("book", "ball", "letter", "cup", "ring", "box", "key", "drink")
NOUNS = ("war", "strike", "project", "trial", "crisis", "campaign", "tour", "battle")
CENTURIES = range(11, 18)

EIGHT = (
    ("When {a} and {b} went to the shops, {s} gave the bag to", "John", "Mary"),
    ("When {a} and {b} went to the park, {s} gave the ball to", "Tom", "James"),
    ("When {a} and {b} went to the shops, {s} gave an apple to", "Dan", "Sid"),
    ("After {a} and {b} went to the park, {s} gave a drink to", "Martin", "Amy"),
)
"""What the demos of TransformerLens and of RelP run: each sentence once with either name as the subject."""


@dataclass(frozen=True)
class Sentences:
    """Sentences of one template and one order of the names, all with as many tokens."""

    texts: list[str]  # the sentences
    swapped: list[str]  # the same with the other name as the subject, so that the answer is the other one
    others: list[str]  # the same with three names of which none comes twice
    answers: list[tuple[str, str]]  # (" IO", " S") of each: the indirect object, which comes next, and the subject
    # io, s1, s2: at which token the indirect object is, and the subject for the first and the second time
    io: int
    s1: int
    s2: int


def eight() -> Sentences:
    """The eight sentences of the demos."""
    each = [(t, {"a": a, "b": b}, s, o) for t, a, b in EIGHT for s, o in ((b, a), (a, b))]
    return Sentences(
        [template.format(s=subject, **names) for template, names, subject, _ in each],
        [template.format(s=other, **names) for template, names, _, other in each],
        [], [(f" {other}", f" {subject}") for _, _, subject, other in each], -1, -1, -1,
    )  # fmt: skip


def groups(tokenizer: Tokenizer, templates: int, count: int, seed: int) -> list[Sentences]:
    """Draw sentences: `count` for each of so many templates and each order of the names."""
    draws = random.Random(seed)
    names, places, objects = (single(tokenizer, words) for words in (NAMES, PLACES, OBJECTS))
    if len(names) < 5 or not places or not objects:
        raise InputError(
            "reproduce: the tokenizer splits the names, places or objects of the sentences.",
            code="not-one-token",
            remedy="Give a model with GPT-2's tokenizer.",
        )
    return [
        _group(tokenizer, template, subject, [(draws.sample(names, 5), draws.choice(places), draws.choice(objects))
                                              for _ in range(count)])
        for template in TEMPLATES[:templates]
        for subject in (1, 0)
    ]  # fmt: skip


def _group(tokenizer: Tokenizer, template: str, subject: int, drawn: Sequence[tuple[list[str], str, str]]) -> Sentences:
    """Sentences whose subject is the first (0) or the second (1) of the two names."""
    made = Sentences([], [], [], [], 0, 0, 0)
    for (a, b, *unsaid), place, thing in drawn:
        s, io = ((a, b), (b, a))[subject]
        fill = {"place": place, "object": thing}
        made.texts.append(template.format(a=a, b=b, s=s, **fill))
        made.swapped.append(template.format(a=a, b=b, s=io, **fill))
        made.others.append(template.format(a=unsaid[0], b=unsaid[1], s=unsaid[2], **fill))
        made.answers.append((f" {io}", f" {s}"))
    ids = list(tokenizer.encode(made.texts[0]))
    io, s = (tokenizer.encode(name)[0] for name in made.answers[0])
    return replace(made, io=ids.index(io), s1=ids.index(s), s2=len(ids) - 1 - ids[::-1].index(s))


def years(tokenizer: Tokenizer, count: int, seed: int) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Sentences about a year, as ids: those that end with a later century's first digits, the same that begin in a
    year 01, and the two last digits of the year that must be exceeded (Hanna et al. 2023, arXiv:2305.00586).
    """
    draws, nouns = random.Random(seed), single(tokenizer, NOUNS)
    numbers = (*two_digits(), *(f" {century}" for century in CENTURIES))
    if not nouns or any(len(tokenizer.encode(number)) != 1 for number in numbers):
        raise InputError(
            "reproduce: the tokenizer splits numbers of two digits.",
            code="not-one-token",
            remedy="Give a model with GPT-2's tokenizer.",
        )
    clean, corrupted, starts = list[list[int]](), list[list[int]](), list[int]()
    for _ in range(count):
        noun, century, year = draws.choice(nouns), draws.choice(CENTURIES), draws.randrange(2, 99)
        before, after = tokenizer.encode(f"The {noun} lasted from {century}"), tokenizer.encode(f" to {century}")
        for rows, begin in ((clean, year), (corrupted, 1)):
            rows.append([*before, *tokenizer.encode(f"{begin:02d}"), *after])
        starts.append(year)
    return clean, corrupted, starts


def two_digits() -> list[str]:
    """ "00" to "99"."""
    return [f"{number:02d}" for number in range(100)]


def single(tokenizer: Tokenizer, words: Iterable[str]) -> list[str]:
    """The words that are one token behind a space."""
    return [word for word in words if len(tokenizer.encode(f" {word}")) == 1]


Head = tuple[int, int]
"""Layer and number."""


@dataclass(frozen=True)
class Study:
    """A model and the texts that it is measured on."""

    model: CkptedTransformer  # what runs, evaluating
    templates: int  # how many of the templates
    count: int  # sentences of each template and order of names
    each: int  # how many of them what takes hundreds of runs is measured on
    seed: int  # of all draws

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's; an error if it has none."""
        if self.model.tokenizer is None:
            raise InputError(
                "reproduce: the model has no tokenizer, and published figures are of texts.",
                code="no-tokenizer",
                remedy="Set model.tokenizer = pl.Tokenizer.from_file('tokenizer.json').",
            )
        return self.model.tokenizer

    @cached_property
    def groups(self) -> list[Sentences]:
        """The sentences of each template and order of names."""
        return groups(self.tokenizer, self.templates, self.count, self.seed)

    @cached_property
    def few(self) -> Sentences:
        """The first `each` sentences of each group together, for what takes hundreds of runs."""

        def first(field: str) -> list[Any]:
            return [text for group in self.groups for text in getattr(group, field)[: self.each]]

        return Sentences(first("texts"), first("swapped"), first("others"), first("answers"), -1, -1, -1)

    def behind_bos(self, texts: Sequence[str]) -> Batch:
        """Texts with the beginning-of-text id in front, which the configuration has to name."""
        start = self.model.config.bos_token_id
        if start is None:
            raise InputError(
                "reproduce: the model's configuration has no bos_token_id, behind which the figure was published.",
                code="no-bos",
                remedy="Give config={'bos_token_id': 50256} to pl.load, for example.",
            )
        rows = [[start, *self.tokenizer.encode(text)] for text in texts]
        longest = max(map(len, rows))  # pads in front, with a mask that says so: the id itself may be a pad id
        ids = torch.tensor([[start] * (longest - len(row)) + row for row in rows], device="cpu")
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device="cpu")
        return self.model.tokenize({"input_ids": ids, "attention_mask": mask})

    def require(self, *wanted: Head, neurons: int = 0) -> None:
        """See that the model has these heads, and so many neurons in each layer."""
        sizes = self.model.schema.sizes
        layers, count, width = sizes["layer"], sizes["head"], sizes["d_mlp"]
        missing = [f"head {layer}.{head}" for layer, head in wanted if layer >= layers or head >= count]
        missing += [f"neuron {neurons - 1}"] * (neurons > width)
        if missing:
            raise InputError(
                f"reproduce: no {missing[0]} in {layers} layers of {count} heads and {width} neurons.",
                code="index-out-of-range",
                remedy="Give a model of GPT-2 small's shape.",
            )
