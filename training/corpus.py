"""Read the training text: xz files of documents, and the arrays of token ids made of them.

Every source is one file `NAME.train.txt.xz`; its documents stand between lines `<|endoftext|>`.
TinyStories: Eldan and Li 2023, arXiv:2305.07759.
"""

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Source:
    """One file of the training text and what the model card must say about it."""

    name: str
    licence: str
    origin: str


SOURCES = (
    Source(
        "tinystories",
        "CDLA-Sharing-1.0 (as its card states)",
        "TinyStories (Eldan and Li 2023), subsets published in public repositories",
    ),
    Source(
        "storybooks_ccby",
        "CC-BY 3.0 and 4.0, credits in NOTICE",
        "Global African Storybook projects",
    ),
    Source(
        "standardebooks_children_cc0",
        "CC0, public domain in the USA",
        "Standard Ebooks: Baum, Grimm, Alcott, Burnett, Montgomery, Grahame, Kipling, Lofting, Potter, Aesop, Carroll",
    ),
    Source(
        "fairytaleqa_stories",
        "public-domain stories in an Apache-2.0 repository",
        "FairytaleQA",
    ),
    Source("chilit_pd", "public domain", "ChiLit: 71 children's books of the 19th century"),
    Source(
        "gitenberg_children_pd",
        "public domain",
        "Project Gutenberg: Lang's fairy books, Andersen, Jacobs, Oz, Pinocchio, Heidi, Black Beauty and others",
    ),
)


def read_documents(path: Path) -> list[str]:
    """The documents of one xz file, without the separating lines."""
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        parts = file.read().split(END_OF_TEXT + "\n")
    return [part.rstrip("\n") for part in parts if part.strip()]


def training_documents(folder: Path) -> Iterator[str]:
    """Every training document of the known sources, source by source."""
    for source in SOURCES:
        yield from read_documents(folder / f"{source.name}.train.txt.xz")


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """One stream of ids: each document after an end-of-text token, one more at the very end.

    Returns:
        Array of uint16, shape (tokens,).
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [end]
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(end)
    return np.array(ids, dtype=np.uint16)


def prepare(folder: Path, tokenizer: Tokenizer, cache: Path) -> dict[str, np.ndarray]:
    """The id streams of all sources, encoded once and kept as .npy files in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    streams = {}
    for source in SOURCES:
        target = cache / f"{source.name}.npy"
        if not target.exists():
            documents = read_documents(folder / f"{source.name}.train.txt.xz")
            partial = target.with_suffix(".partial.npy")
            np.save(partial, encode_documents(tokenizer, documents))
            partial.replace(target)
        streams[source.name] = np.load(target)
    return streams
