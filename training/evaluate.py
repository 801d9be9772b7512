"""The figures of the model card, computed from an exported folder and the validation texts.

The export writes them into card.json and the tests compute them again with the same functions.
Everything runs in float32 on the CPU, on the weights as they are stored.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from corpus import END_OF_TEXT, encode_documents, read_documents
from indirect_object import Sentence, held_out_sentences

VALIDATION = ("ts_valid", "mix_valid")
BATCH, SENTENCES_AT_ONCE = 32, 96
REPEATED, SEQUENCES = 50, 64
INDUCTION_SCORE, PREVIOUS_TOKEN_SCORE = 0.4, 0.5
PROMPT, NEW_TOKENS, TEMPERATURE, SAMPLES = "Once upon a time", 60, 0.6, 3


@dataclass(frozen=True)
class Threshold:
    """What a figure must reach: the keys that lead to it in the figures, and its bound."""

    keys: tuple[str, ...]
    bound: float
    upper: bool

    def met(self, figures: dict[str, Any]) -> bool:
        """Whether the figure is on the right side of the bound."""
        value = self.value(figures)
        return value < self.bound if self.upper else value > self.bound

    def value(self, figures: dict[str, Any]) -> float:
        """The figure."""
        for key in self.keys:
            figures = figures[key]
        return float(figures)  # type: ignore[arg-type]


THRESHOLDS = (
    Threshold(("parameters",), 7_300_000, upper=True),
    Threshold(("ts_valid", "nats_per_token"), 2.0, upper=True),
    Threshold(("mix_valid", "nats_per_token"), 3.7, upper=True),
    Threshold(("induction", "score"), INDUCTION_SCORE, upper=False),
    Threshold(("induction", "gain"), 3.0, upper=False),
    Threshold(("previous_token", "score"), PREVIOUS_TOKEN_SCORE, upper=False),
    Threshold(("indirect_object", "accuracy"), 0.8, upper=False),
)


def load(folder: Path) -> tuple[PreTrainedModel, Tokenizer]:
    """The model of an exported folder in float32, with visible attention, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def all_figures(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: Path, validation: tuple[str, ...] = VALIDATION
) -> dict[str, Any]:
    """Every figure of the card.

    Args:
        model: As `load` returns it.
        tokenizer: The tokenizer exported with it.
        texts: Folder with ts_valid.txt.xz and mix_valid.txt.xz.
        validation: Those of them whose losses are computed.
    """
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    for name in validation:
        figures[name] = text_loss(model, tokenizer, read_documents(texts / f"{name}.txt.xz"))
    stream = encode_documents(tokenizer, read_documents(texts / "mix_valid.txt.xz"))
    return figures | {
        "induction": induction(model),
        "previous_token": previous_token(model, stream),
        "indirect_object": indirect_object(model, tokenizer, held_out_sentences()),
        "samples": [sample(model, tokenizer, seed) for seed in range(SAMPLES)],
    }


def windows(stream: np.ndarray, context: int) -> Iterator[Tensor]:
    """Batches of adjoining windows of `context` + 1 ids; the shorter last window comes alone."""
    starts = range(0, len(stream) - 1, context)
    rows = [torch.from_numpy(stream[s : s + context + 1].astype(np.int64)) for s in starts]
    full = [row for row in rows if len(row) == context + 1]
    for i in range(0, len(full), BATCH):
        yield torch.stack(full[i : i + BATCH])
    if len(full) < len(rows):
        yield rows[-1][None]


@torch.no_grad()
def text_loss(model: PreTrainedModel, tokenizer: Tokenizer, documents: list[str]) -> dict[str, Any]:
    """Mean loss over adjoining windows of the text: a token sees half the context on average.

    Bits per byte count the UTF-8 bytes of the documents, and the nats of the end-of-text tokens
    between them too.
    """
    stream = encode_documents(tokenizer, documents)
    total = 0.0
    for ids in windows(stream, model.config.n_positions):
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        total += loss.double().item()
    size = sum(len(document.encode()) for document in documents)
    tokens = len(stream) - 1
    return {
        "tokens": tokens,
        "bytes": size,
        "nats_per_token": total / tokens,
        "bits_per_byte": total / math.log(2) / size,
    }


def repeated_random_ids(vocabulary: int, seed: int = 0) -> Tensor:
    """End-of-text, then random ids twice; shape (SEQUENCES, 1 + 2 * REPEATED)."""
    rng = np.random.default_rng(seed)
    once = rng.integers(0, vocabulary - 1, (SEQUENCES, REPEATED))
    end = np.full((SEQUENCES, 1), vocabulary - 1)
    return torch.from_numpy(np.concatenate([end, once, once], axis=1))


def _heads(scores: Tensor, bound: float) -> dict[str, Any]:
    """Where the highest of the scores is, shape (layer, head), and all heads above the bound."""
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return {
        "layer": layer,
        "head": head,
        "score": scores.max().item(),
        "heads": (scores > bound).nonzero().tolist(),
    }


@torch.no_grad()
def induction(model: PreTrainedModel) -> dict[str, Any]:
    """Induction heads and what they bring, on repeated random tokens (Olsson et al. 2022).

    A head's score is its mean attention, over the second copy, from a token to the token after
    its first occurrence. The gain is the loss on the first copy less the loss on the second.
    """
    ids = repeated_random_ids(model.config.vocab_size)
    out = model(input_ids=ids, output_attentions=True)
    queries = torch.arange(1 + REPEATED, 1 + 2 * REPEATED)
    scores = torch.stack([pattern[:, :, queries, queries - REPEATED + 1].mean((0, 2)) for pattern in out.attentions])
    loss = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        len(ids), -1
    )
    first, second = loss[:, :REPEATED].mean().item(), loss[:, REPEATED:].mean().item()
    return _heads(scores, INDUCTION_SCORE) | {
        "first_copy_loss": first,
        "second_copy_loss": second,
        "gain": first - second,
    }


@torch.no_grad()
def previous_token(model: PreTrainedModel, stream: np.ndarray) -> dict[str, Any]:
    """The best previous-token head: mean attention from a token to the one before it, on text."""
    ids = next(windows(stream, model.config.n_positions - 1))
    attentions = model(input_ids=ids, output_attentions=True).attentions
    scores = torch.stack([p.diagonal(-1, dim1=-2, dim2=-1).mean((0, 2)) for p in attentions])
    return _heads(scores, PREVIOUS_TOKEN_SCORE)


@torch.no_grad()
def indirect_object(model: PreTrainedModel, tokenizer: Tokenizer, sentences: list[Sentence]) -> dict[str, Any]:
    """How often the indirect object gets a higher logit than the subject (Wang et al. 2022)."""
    right = 0
    for i in range(0, len(sentences), SENTENCES_AT_ONCE):
        batch = sentences[i : i + SENTENCES_AT_ONCE]
        rows = [torch.tensor(tokenizer.encode(s.prompt).ids) for s in batch]
        last = torch.tensor([len(row) - 1 for row in rows])
        # Padding on the right is never seen: attention looks back only.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = model(input_ids=ids).logits[torch.arange(len(rows)), last]
        names = torch.tensor([[_one_token(tokenizer, n) for n in (s.indirect_object, s.subject)] for s in batch])
        chosen = logits.gather(1, names)
        right += int((chosen[:, 0] > chosen[:, 1]).sum())
    return {"sentences": len(sentences), "right": right, "accuracy": right / len(sentences)}


def _one_token(tokenizer: Tokenizer, name: str) -> int:
    (token,) = tokenizer.encode(" " + name).ids
    return token


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: Tokenizer, seed: int) -> dict[str, Any]:
    """One sampled continuation of PROMPT, by inversion of the cumulative distribution.

    Drawn in float64 from a numpy generator, so that rounding hardly ever changes a token.
    """
    rng = np.random.default_rng(seed)
    ids = [tokenizer.token_to_id(END_OF_TEXT), *tokenizer.encode(PROMPT).ids]
    start = len(ids)
    for _ in range(NEW_TOKENS):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        cumulative = (logits / TEMPERATURE).softmax(0).cumsum(0).numpy()
        ids.append(min(int(np.searchsorted(cumulative, rng.random())), len(cumulative) - 1))
    text = tokenizer.decode(ids[start:], skip_special_tokens=False)
    return {"seed": seed, "prompt": PROMPT, "text": text}
