"""Rows that teach copying: repeated segments and indirect-object sentences.

A small model trained on prose alone does not form induction heads (Olsson et al. 2022,
arXiv:2209.11895) within tens of millions of tokens; short segments repeated back to back bring
them within about a million repeated tokens.
"""

import re
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from corpus import END_OF_TEXT
from indirect_object import ANY_WORDS, CAPITALISED, HELD_OUT, Lists, follow_up, training_sentence

SHORTEST, LONGEST = 6, 48
LINKS = (" to", " to", " to", " to", " with", " for", " at")
ENDINGS = (".", ".", ".", "!", " again.", " and smiled.", ", who was happy.", " and went home.")


class SyntheticRows:
    """Makes rows of ids; every row depends only on the generator it is given.

    Args:
        tokenizer: Turns sentences into ids.
        prose: Array of ids, shape (tokens,), from which segments and snippets are cut.
        length: Ids in a row.
    """

    def __init__(self, tokenizer: Tokenizer, prose: np.ndarray, length: int) -> None:
        self._tokenizer = tokenizer
        self._prose = prose
        self._length = length
        self._end = tokenizer.token_to_id(END_OF_TEXT)
        self._capitalised = (*CAPITALISED.names * 2, *self._words("[A-Z][a-z]+", HELD_OUT.names))
        self._name_ids = [self._one_id(" " + name) for name in self._capitalised if self._is_one_id(" " + name)]
        held_out = {self._one_id(" " + name) for name in HELD_OUT.names}
        self._any_ids = [i for i in range(self._end) if i not in held_out]
        self._no_gap = {*self._name_ids, *held_out}
        self._links = [self._one_id(word) for word in LINKS]
        lower_case = self._words("[a-z]{3,}", HELD_OUT.places + HELD_OUT.objects)
        self._places = (*ANY_WORDS.places * 10, *lower_case)
        self._objects = (*ANY_WORDS.objects * 10, *lower_case)

    def _words(self, pattern: str, held_out: tuple[str, ...]) -> list[str]:
        """Words that are one token after a space, the held-out ones excepted."""
        vocabulary = self._tokenizer.get_vocab()
        words = (re.fullmatch(f"\u0120({pattern})", token) for token in vocabulary)
        return sorted({word[1] for word in words if word} - set(held_out))

    def repeats(self, rng: np.random.Generator) -> np.ndarray:
        """Groups of one segment, random ids or prose, two to four times in a row."""
        parts = [np.array([self._end] * int(rng.integers(2)), dtype=np.int64)]
        while sum(map(len, parts)) < self._length:
            size = int(np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST + 1))))
            segment = self._random_ids(rng, size) if rng.random() < 0.6 else self._cut(rng, size)
            parts.extend([segment] * int(rng.integers(2, 5)))
        return np.concatenate(parts)[: self._length]

    def sentences(self, rng: np.random.Generator, lists: Lists) -> np.ndarray:
        """Indirect-object sentences, some after a snippet of prose, until the row is full.

        Few stand after an end-of-text token, which should go on with a story.
        """
        if lists.capitalised:
            lists = replace(lists, names=self._capitalised)
        if lists.lower_case:
            lists = replace(lists, places=self._places, objects=self._objects)
        ids: list[int] = []
        while len(ids) < self._length:
            if rng.random() < lists.loose:
                ids.extend(self._loose_sentence(rng))
                continue
            if rng.random() < 0.4:
                ids.extend(self._cut(rng, int(rng.integers(8, 64))).tolist())
            sentence = training_sentence(rng, lists)
            text = f"{sentence.prompt} {sentence.indirect_object}"
            text += ENDINGS[rng.integers(len(ENDINGS))]
            if lists.follow_ups:
                more = [follow_up(rng, lists, sentence) for _ in range(rng.integers(1, 6))]
                text = " ".join([text, *more])
            if rng.random() < 0.1:
                ids.append(self._end)
            elif ids:
                text = ("\n", " ")[rng.integers(2)] + text
            ids.extend(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return np.array(ids[: self._length], dtype=np.int64)

    def _loose_sentence(self, rng: np.random.Generator) -> list[int]:
        """Two names among snippets of prose; one comes again, and after a preposition the other.

        No template could be learned here: only which of two words was named again. In half of the sentences any
        token of the vocabulary may stand for a name, so that no list of names could be learned either.
        """
        names = self._name_ids if rng.random() < 0.5 else self._any_ids
        first, second = (names[i] for i in rng.choice(len(names), 2, replace=False))
        ids = [*self._gap(rng, 8), first]
        ids += [self._one_id(" and")] if rng.random() < 0.6 else self._gap(rng, 6)
        ids.append(second)
        for turn in range(rng.integers(1, 5)):
            subject, other = (first, second) if rng.random() < 0.5 else (second, first)
            link = self._links[rng.integers(len(self._links))]
            ids += [*self._gap(rng, 5 if turn else 14), subject, *self._gap(rng, 7), link, other]
        return [*ids, self._one_id(".")]

    def _gap(self, rng: np.random.Generator, longest: int) -> list[int]:
        """Some prose, its names left out."""
        return [int(i) for i in self._cut(rng, int(rng.integers(1, longest + 1))) if i not in self._no_gap]

    def _is_one_id(self, text: str) -> bool:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids) == 1

    def _one_id(self, text: str) -> int:
        (token,) = self._tokenizer.encode(text, add_special_tokens=False).ids
        return token

    def _random_ids(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.integers(0, self._end, size)

    def _cut(self, rng: np.random.Generator, size: int) -> np.ndarray:
        start = int(rng.integers(len(self._prose) - size))
        return self._prose[start : start + size].astype(np.int64)
