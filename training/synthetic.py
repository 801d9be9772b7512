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

    def _random_ids(self, rng: np.random.Generator, size: int) -> np.ndarray:
        return rng.integers(0, self._end, size)

    def _cut(self, rng: np.random.Generator, size: int) -> np.ndarray:
        start = int(rng.integers(len(self._prose) - size))
        return self._prose[start : start + size].astype(np.int64)
