"""Sentences with an indirect object, after Wang et al. 2022, arXiv:2211.00593.

"When Mary and John went to the shop, John gave a drink to" must go on with Mary, whichever name
came first. The held-out lists share no name, opening, action, place or object with the training
lists, so a model that answers them has not memorised the sentences.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Lists:
    """What sentences are made of.

    `{a}` and `{b}` are the two names, `{s}` the subject and `{o}` the other one. Sentences that
    follow up are about the same two; either may be the subject. With `capitalised`, names are also
    any capitalised words of the vocabulary that are not held out; with `lower_case`, places and
    objects are also any lower-case words that are not. `loose` is the share of sentences without a
    template: the names stand between snippets of prose.
    """

    names: tuple[str, ...]
    openings: tuple[str, ...]
    actions: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]
    follow_ups: tuple[str, ...] = ()
    capitalised: bool = False
    lower_case: bool = False
    loose: float = 0.0


@dataclass(frozen=True)
class Sentence:
    """A prompt that ends before the indirect object, and the two names to choose from."""

    prompt: str
    indirect_object: str
    subject: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST = Lists(
    names=_words(
        "Mary John Tom Tim Lily Max Sam Jane Mia Amy Bob Peter Robert William Richard Charles "
        "Dick Anne Dorothy Heidi Hugh Margaret Ethel Flora Norman Philip Meg Jo Laurie Billy Jim "
        "Tommy Timmy Sally Bill Kitty Hans Charlie Eric Daisy Alan Guy Ozma Marilla James Michael "
        "David Joseph Thomas Daniel Matthew Mark Kate Sarah Lisa Kelly Alex Andrew Steven Brian "
        "Kevin Jason Rose Ellen Fred Arthur Frank Diana Clara Ned Rachel Beth Betty Susan Elsie "
        "Nancy Martha Dora Ella Eva Ruth Ralph Joe Jimmy Simon Oscar Leo Louis Maria Molly Nell "
        "Roger Walter Edgar Grace Helen Jenny Emily Elizabeth Julia Stephen Colin Agnes Herbert "
        "Bobby Bella Ellie Nick Pete Pam Zoe Nora Ann Patrick"
    ),
    openings=(
        "When {a} and {b} went to the {place}, {s}",
        "When {a} and {b} were at the {place}, {s}",
        "When {a} and {b} got to the {place}, {s}",
        "While {a} and {b} were playing at the {place}, {s}",
        "While {a} and {b} were working at the {place}, {s}",
        "After {a} and {b} went to the {place}, {s}",
        "After {a} and {b} had left the {place}, {s}",
        "Then {a} and {b} went to the {place}. {s}",
        "Then {a} and {b} had a long talk at the {place}. {s}",
        "One day {a} and {b} went to the {place}. {s}",
        "One day, {a} and {b} met at the {place}, and {s}",
        "Every day {a} and {b} met near the {place}. {s}",
        "{a} and {b} were friends. At the {place}, {s}",
        "{a} and {b} went to the {place}. Soon {s}",
        "{a} and {b} were at the {place} when {s}",
        "{a} met {b} at the {place}. {s}",
        "{a} saw {b} at the {place}, so {s}",
        "{a} was with {b} at the {place}. After a while {s}",
        "As {a} and {b} came to the {place}, {s}",
        "Because {a} and {b} were hungry at the {place}, {s}",
        "The {place} was quiet. {a} and {b} sat down, and {s}",
        "Last week {a} and {b} were at the {place}, where {s}",
        "In the morning {a} found {b} at the {place}. {s}",
        "At the {place}, {a} and {b} played a game. Then {s}",
    ),
    actions=(
        "gave a {object} to",
        "gave the {object} to",
        "gave his {object} to",
        "gave her {object} to",
        "gave a big {object} to",
        "handed a {object} to",
        "handed the {object} to",
        "passed the {object} to",
        "brought a {object} to",
        "showed the {object} to",
        "sent a {object} to",
        "threw a {object} to",
        "wanted to give the {object} to",
        "said hello to",
        "told a story to",
        "sang a song to",
    ),
    places=_words(
        "shop park school store farm house beach zoo market garden lake forest river station "
        "castle church kitchen playground office field hill village"
    ),
    objects=_words(
        "drink ball book toy flower cake apple kiss hat cup stick box letter coin gift pen doll "
        "stone bag basket present"
    ),
)

TRAINING = Lists(
    names=FIRST.names
    + _words(
        "Fox Wolf Bear Lion Hare Rabbit Mouse Frog Goat Duck Cat Dog Monkey Tortoise Elephant "
        "Adam Amanda Barbara Carol Catherine Chris Cindy Dan Dennis Donald Dorcas Douglas Edith "
        "Eleanor Felix Fiona Gerald Gordon Greta Hilda Ian Ida Irene Isaac Ivy Jacob Jean Jessie "
        "Joan Jonathan Karen Keith Lena Linda Luke Mabel Marie Marjorie Miles Nathan Nina Noah "
        "Olive Olivia Pamela Pauline Percy Phoebe Ray Rebecca Rita Ronald Rosie Rupert Sandra "
        "Sebastian Sophie Stella Sylvia Teddy Theodore Tina Toby Tony Vera Victor Violet Wendy "
        "Winnie"
    ),
    openings=(
        *FIRST.openings,
        "{a} and {b} had a picnic at the {place}, and {s}",
        "{a} and {b} lived by the {place}. One morning {s}",
        "{a} came to the {place} to see {b}. {s}",
        "{a} asked {b} to come to the {place}. There {s}",
        "{a} and {b} were tired of the {place}. So {s}",
        "{a} liked {b} very much. On the way to the {place}, {s}",
        "{a} looked at {b} and laughed. In the {place}, {s}",
        "{a}, who was a friend of {b}, lived at the {place}. {s}",
        "Once {a} and {b} got lost by the {place}. {s}",
        "Once {a} visited {b} at the {place}. {s}",
        "In the evening, {a} and {b} cleaned the {place}. {s}",
        "On Sunday {a} and {b} drove to the {place}, and {s}",
        "It was raining, so {a} and {b} stayed in the {place}. {s}",
        "It was a hot day. {a} and {b} sat in the {place}, and {s}",
        "There were two friends, {a} and {b}. At the {place} {s}",
        "If {a} and {b} are at the {place}, {s} always",
        "Though {a} and {b} did not like the {place}, {s}",
        "Until {a} and {b} found the {place}, {s} never",
        "Whenever {a} and {b} go to the {place}, {s}",
        "Today {a} and {b} are at the {place}. {s}",
        "Behind the {place} {a} and {b} had a secret. {s}",
        "From the {place}, {a} could see {b}. {s}",
        "Two children, {a} and {b}, went into the {place}. {s}",
        "All day {a} and {b} painted the {place}. Afterwards {s}",
        "The dog barked at {a} and {b} in the {place}. {s}",
        "Mother sent {a} and {b} to the {place}, where {s}",
        "Having seen {a} and {b} by the {place}, we saw that {s}",
        "Everybody knows {a} and {b}. In front of the {place} {s}",
    ),
    actions=(
        *FIRST.actions,
        "gave the new {object} to",
        "gave a nice {object} to",
        "quickly handed the {object} to",
        "lent the {object} to",
        "read a letter to",
        "sold a {object} to",
        "was ready to give a {object} to",
        "ran up and gave the {object} to",
        "bought a {object} and gave it to",
        "found a {object} and showed it to",
        "waved to",
        "spoke kindly to",
        "talked to",
        "went back to",
        "promised a {object} to",
        "wrote to",
    ),
    places=FIRST.places + _words("mill ship wood well town city mountain cave yard palm island road sea inn camp fair"),
    objects=FIRST.objects
    + _words("shoe fish egg pie horse crown sword rope lamp card shell leaf coat knife boat dress"),
)

CHAINS = replace(
    TRAINING,
    follow_ups=(
        "{s} thanked {o}.",
        "{s} smiled at {o}.",
        "{s} kissed {o}.",
        "{s} waited for {o}.",
        "{s} was angry with {o}.",
        "{s} was happy to see {o}.",
        "{s} sat down next to {o}.",
        "{s} wanted to help {o}.",
        "{s} gave it back to {o}.",
        "{s} passed it to {o}.",
        "{s} gave something to {o}.",
        "{s} brought some water to {o}.",
        "{s} said thank you to {o}.",
        "{s} showed everything to {o}.",
        "{s} asked {o} to come home.",
        "{s} told {o} a story.",
        "{s} and {o} were glad.",
        "{s} went home with {o}.",
        "Then {s} ran after {o}.",
        "Soon {s} followed {o}.",
        "But {s} did not hear {o}.",
        "So {s} gave a kiss to {o}.",
        "The next day {s} wrote to {o}.",
        '"I like you," said {s} to {o}.',
    ),
)

# Parts that combine into some six thousand openings and three hundred actions.
STARTS = (
    *("", "One day ", "Then ", "In the afternoon ", "Last summer ", "After dinner, "),
    *("Early in the morning ", "When the sun came out, ", "For a while ", "That night "),
)
WHENS = ("When", "While", "After", "As", "Because", "Just when", "Though", "Every time")
PAIRS = (
    *("{a} and {b}", "{a} and {b} both", "{a} and his friend {b}", "{a} and her sister {b}"),
    *("little {a} and big {b}", "both {a} and {b}"),
)
DOINGS = (
    *("went to", "stayed at", "walked to", "looked at", "ate in", "slept in", "danced in"),
    *("talked about", "worked in", "waited at", "drove to", "hid in", "came out of"),
    *("had fun at", "swam near", "sang in"),
)
JOINS = (". {s}", ", and {s}", ". Then {s}", ". After that {s}", ", so {s}", ", where {s}")
HOWS = ("", "quickly ", "kindly ", "then ", "at once ")
GIVINGS = _words("gave handed passed sent brought showed threw lent sold")
WHICH = _words("a the his her another one")

COMBINED = replace(
    CHAINS,
    openings=(
        *CHAINS.openings * 40,
        *(
            f"{start}{pair} {doing} the {{place}}{join}"
            for start, pair, doing, join in itertools.product(STARTS, PAIRS, DOINGS, JOINS)
        ),
        *(
            f"{when} {pair} {doing} the {{place}}, {{s}}"
            for when, pair, doing in itertools.product(WHENS, PAIRS, DOINGS)
        ),
    ),
    actions=(
        *CHAINS.actions * 10,
        *(f"{how}{giving} {which} {{object}} to" for how, giving, which in itertools.product(HOWS, GIVINGS, WHICH)),
    ),
)

CAPITALISED = replace(COMBINED, capitalised=True)
ANY_WORDS = replace(CAPITALISED, lower_case=True)
LOOSE = replace(ANY_WORDS, loose=0.6)

HELD_OUT = Lists(
    names=_words("Ben Lucy Sue Jack Emma Alice Henry Anna George Paul Sara Edward Polly Harry Laura Martin"),
    openings=(
        "As soon as {a} and {b} reached the {place}, {s}",
        "Before {a} and {b} walked home from the {place}, {s}",
        "Yesterday {a} and {b} ran across the {place}. Later {s}",
        "Near the {place}, {a} stood beside {b}. Suddenly {s}",
        "Long ago {a} and {b} built a little {place}. At last {s}",
        "Since {a} and {b} both liked the {place}, {s}",
    ),
    actions=(
        "offered a {object} to",
        "took the {object} back to",
        "decided to give this {object} to",
        "carried an old {object} to",
    ),
    places=_words("bridge tower palace tree room barn"),
    objects=_words("picture ring bell candle feather key"),
)

ORDERS = ("ABBA", "BABA")


def fill(lists: Lists, rng: np.random.Generator, order: str, frame: tuple[int, int]) -> Sentence:
    """One sentence of the opening and action of `frame`, names, place and object at random."""
    first, second = (lists.names[i] for i in rng.choice(len(lists.names), 2, replace=False))
    subject, other = (second, first) if order == "ABBA" else (first, second)
    text = f"{lists.openings[frame[0]]} {lists.actions[frame[1]]}".format(
        a=first,
        b=second,
        s=subject,
        place=lists.places[rng.integers(len(lists.places))],
        object=lists.objects[rng.integers(len(lists.objects))],
    )
    return Sentence(text, other, subject)


def training_sentence(rng: np.random.Generator, lists: Lists) -> Sentence:
    """A sentence of the training lists, each order half of the time."""
    frame = (int(rng.integers(len(lists.openings))), int(rng.integers(len(lists.actions))))
    return fill(lists, rng, ORDERS[rng.integers(2)], frame)


def follow_up(rng: np.random.Generator, lists: Lists, sentence: Sentence) -> str:
    """One more sentence about the two names of `sentence`, either of them the subject."""
    names = (sentence.subject, sentence.indirect_object)
    first = int(rng.integers(2))
    template = lists.follow_ups[rng.integers(len(lists.follow_ups))]
    return template.format(s=names[first], o=names[1 - first])


def held_out_sentences(per_frame: int = 12, seed: int = 0) -> list[Sentence]:
    """The evaluation set: every held-out opening with every action, in both orders."""
    rng = np.random.default_rng(seed)
    frames = itertools.product(range(len(HELD_OUT.openings)), range(len(HELD_OUT.actions)), ORDERS)
    return [
        fill(HELD_OUT, rng, order, (opening, action)) for opening, action, order in frames for _ in range(per_frame)
    ]
