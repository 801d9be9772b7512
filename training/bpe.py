"""A byte-level BPE of 4,096 entries in the layout of GPT-2's own tokenizer.json.

As in GPT-2 (Radford et al. 2019, section 2.2) all 256 bytes are entries, so every text
round-trips, and `<|endoftext|>` is the last entry.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus import END_OF_TEXT

VOCABULARY = 4096


def train_bpe(documents: Iterable[str]) -> Tokenizer:
    """Learn the merges from `documents`; deterministic, so no seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _with_end_of_text(tokenizer)


def _with_end_of_text(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer would give the special token id 0; GPT-2 has it last."""
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"][END_OF_TEXT] = VOCABULARY - 1
    state["added_tokens"] = [
        {
            "id": VOCABULARY - 1,
            "content": END_OF_TEXT,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    return Tokenizer.from_str(json.dumps(state))


def load_or_train(path: Path, documents: Iterable[str]) -> Tokenizer:
    """The tokenizer saved at `path`, trained and saved first where there is none."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        train_bpe(documents).save(str(partial))
        partial.replace(path)
    return Tokenizer.from_file(str(path))
