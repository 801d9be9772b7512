"""The helpers of `transformer_lens.utils` that code for HookedTransformer calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.compat.hooked.hooked_factored import FactoredMatrix, composition_scores
from pellucid.compat.hooked.hooked_generation import lm_accuracy, lm_cross_entropy_loss, sample_logits
from pellucid.compat.hooked.hooked_names import Slice, get_act_name
from pellucid.compat.hooked.transformer import HookedTransformer
from pellucid.numerics.nonlinear import gelu_new

__all__ = [
    "FactoredMatrix", "Slice", "composition_scores", "gelu_new", "get_act_name", "get_corner", "get_device",
    "lm_accuracy", "lm_cross_entropy_loss", "remove_batch_dim", "sample_logits", "test_prompt", "to_numpy", "transpose",
]  # fmt: skip


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor, list, number or array as an array."""
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


def get_corner(tensor: Any, n: int = 3) -> Tensor:
    """The first entries of every axis of a tensor or a factored matrix."""
    return tensor.get_corner(n) if isinstance(tensor, FactoredMatrix) else tensor[(slice(n),) * tensor.dim()]


def transpose(tensor: Tensor) -> Tensor:
    """[..., A, B] -> [..., B, A]."""
    return tensor.mT


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """[1, ...] -> [...]; a tensor of several rows as it is."""
    return tensor.squeeze(0) if tensor.shape[0] == 1 else tensor


def get_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: HookedTransformer,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how likely a prompt makes an answer: its rank, logit and probability, token by token, and the top tokens.

    Args:
        prompt: What stands before the answer.
        answer: The answer, or several whose first tokens are compared.
        model: What runs.
        prepend_space_to_answer: Whether to put a space before an answer that has none.
        print_details: Whether to print more than the ranks.
        prepend_bos: Whether the prompt begins with a beginning-of-text token.
        top_k: How many likeliest tokens.
    """
    given = [answer] if isinstance(answer, str) else list(answer)
    answers = [f" {one}" if prepend_space_to_answer and not one.startswith(" ") else one for one in given]
    rows = [model.to_tokens(one, prepend_bos=False)[0].tolist() for one in answers]
    before = model.to_tokens(prompt, prepend_bos)[0].tolist()
    pieces, several = [model.tokenizer.pieces(row) for row in rows], len(rows) > 1
    if print_details:
        print("Tokenized prompt:", model.tokenizer.pieces(before))
        print(f"Tokenized answer{'s' if several else ''}:", pieces if several else pieces[0])
    rows = [row[:1] for row in rows] if several else rows
    with torch.no_grad():
        logits = model(torch.tensor([before + row for row in rows], device=model.model.device))
    ranks: list[list[tuple[str, int]]] = []
    for step in range(len(rows[0])):
        here = logits[:, len(before) + step - 1]
        order = here.argsort(-1, descending=True)
        ranks.append([
            (pieces[i][step], int((order[i] == row[step]).nonzero())) for i, row in enumerate(rows)
        ])  # fmt: skip
        if print_details:
            print(f"Performance on answer token{'s' if several else ''}:")
            for i, (piece, rank) in enumerate(ranks[-1]):
                print(f"Rank: {rank:<8} {_chance(here[i], rows[i][step])} Token: |{piece}|")
            for place in range(top_k):
                token = int(order[0, place])
                print(f"Top {place}th token. {_chance(here[0], token)} Token: |{model.tokenizer.pieces([token])[0]}|")
    print("Ranks of the answer tokens:", ranks if several else [one[0] for one in ranks])


def _chance(logits: Tensor, token: int) -> str:
    """A token's logit and probability, of logits [V]."""
    return f"Logit: {logits[token]:5.2f} Prob: {logits.softmax(-1)[token]:6.2%}"


test_prompt.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  (no test, though pytest might think so)
