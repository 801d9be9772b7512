"""The file that a learner begins with: the course's classes and functions with blanks in them, and their checks."""

from __future__ import annotations

import os
from pathlib import Path

from pellucid import atomic
from pellucid.errors import InputError

TEXT = '''\
# %% [markdown]
# # Build GPT-2: your turn
#
# Fill in the blanks. Below each one its check says what is right; where something is wrong, `hint=1` gives the place
# alone, `hint=2` the kind of mistake as well, and without `hint` you are told what it is. As a script, this file is
# checked as a whole by `pellucid check FILE`. One complete solution is in `build_gpt2_from_scratch`.

# %%
import torch  # noqa: F401 (your answers use it)
from torch import Tensor, nn

from pellucid import exercises

MAIN = __name__ == "__main__"

# %% [markdown]
# ## Attention
#
# `qkv_proj` makes the queries, keys and values of all heads at once, `output_proj` brings the heads together. A query
# sees its own position and earlier ones: every other score becomes -10,000 before the softmax. Scores are divided by
# the square root of `head_size`, which is `hidden_size // num_heads` unless it is given. `attn_dropout` acts on the
# probabilities, `resid_dropout` on the output. The cache comes later.


# %%
class UnidirectionalAttention(nn.Module):
    qkv_proj: nn.Linear
    output_proj: nn.Linear
    attn_dropout: nn.Dropout
    resid_dropout: nn.Dropout

    def __init__(self, hidden_size: int, num_heads: int, head_size: int | None = None, dropout: float = 0.1):
        super().__init__()

    def forward(self, x: Tensor, cache=None) -> Tensor:
        """x: (batch, seq, hidden_size) -> the same shape."""


if MAIN:
    print(exercises.check_attention(UnidirectionalAttention, hint=1))

# %% [markdown]
# ## Block
#
# Attention and the MLP each read a normalized copy of the stream and add their output to it. The MLP is four times as
# wide inside; dropout acts on its output. Make the sub-modules in the order in which they are used.

# %%
ACTIVATION_FUNCTIONS = {"relu": nn.ReLU(), "gelu": nn.GELU()}


class GPT2Block(nn.Module):
    ln1: nn.LayerNorm
    attn: UnidirectionalAttention
    ln2: nn.LayerNorm
    linear1: nn.Linear
    linear2: nn.Linear

    def __init__(
        self, hidden_size: int, num_heads: int, dropout: float, layer_norm_epsilon: float, activation_function: str
    ):
        super().__init__()

    def forward(self, x: Tensor, cache=None) -> Tensor:
        """x: (batch, seq, hidden_size) -> the same shape."""


if MAIN:
    print(exercises.check_block(GPT2Block, hint=1))

# %% [markdown]
# ## GPT-2
#
# `config` is an `exercises.GPTConfig`. Token and position embeddings are added and dropped, the blocks and a last
# LayerNorm follow, and the token embedding, used once more, makes the logits.


# %%
class GPT2(nn.Module):
    token_embedding: nn.Embedding
    pos_embedding: nn.Embedding
    blocks: nn.ModuleList
    ln: nn.LayerNorm

    def __init__(self, config: exercises.GPTConfig):
        super().__init__()

    def forward(self, x: Tensor, cache=None) -> Tensor:
        """x: ids (batch, seq) -> logits (batch, seq, vocab_size)."""


if MAIN:
    print(exercises.check_gpt2(GPT2, hint=1))

# %% [markdown]
# ## Real weights
#
# Once the class is right, it can hold a trained model's weights: here those of the small model that ships with
# pellucid, which needs no network.

# %%
if MAIN and exercises.check_gpt2(GPT2):
    import pellucid as pl

    reference = pl.load()
    my_gpt = GPT2(exercises.config_of(reference)).eval()
    print(exercises.load_into(my_gpt, reference))
    print(exercises.check_pretrained(my_gpt, reference.tokenizer, reference))

# %% [markdown]
# ## Sampling
#
# `logits` are those of one position, (vocab_size,); a function that samples returns one id.


# %%
def greedy_search(logits: Tensor) -> int:
    """The most likely id; of several, the smallest."""


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """The logits divided by the temperature, which is above 0."""


def apply_freq_penalty(input_ids: Tensor, logits: Tensor, freq_penalty: float) -> Tensor:
    """The logits less the penalty, once for each time that a token occurs in input_ids (seq,)."""


def sample_basic(logits: Tensor) -> int:
    """An id, drawn with the probabilities that softmax gives."""


def sample_top_k(logits: Tensor, top_k: int) -> int:
    """An id, drawn from the top_k most likely ones."""


def sample_top_p(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
    """An id, drawn from the fewest likely ones that reach the probability top_p, and no fewer than a least number."""


def sample_next_token(
    model, input_ids: Tensor, temperature=1.0, freq_penalty=0.0, top_k=0, top_p=0.0, cache=None
) -> int:
    """The next id: temperature 0 is greedy; else temperature, then penalty, then top-k or top-p or neither."""


if MAIN:
    for answer in (greedy_search, apply_temperature, apply_freq_penalty, sample_basic, sample_top_k, sample_top_p):
        print(exercises.check_sampling(answer, hint=1))
    print(exercises.check_sampling(sample_next_token, hint=1))

# %% [markdown]
# ## Cache
#
# Keys and values of earlier tokens do not change. Keep them, so that behind the prompt one token at a time is enough.
# How the cache looks is up to you: your `forward` is given what `make_cache` makes.


# %%
def make_cache(model: GPT2):
    """An empty cache for one text."""


if MAIN and exercises.check_gpt2(GPT2):
    print(exercises.check_cache(GPT2, make_cache, hint=1))

# %% [markdown]
# ## Beam search
#
# Keep the `num_beams` likeliest texts. Read all their continuations from the best one on, until `num_beams` of them
# go on; one that ends on the way is finished, and is kept without its end token. Stop once `num_return_sequences` are
# finished, or after `max_new_tokens`, when the best beams take the places that are left.


# %%
def beam_search(
    model, input_ids: Tensor, num_return_sequences: int, num_beams: int, max_new_tokens: int, tokenizer, verbose=False
) -> list[tuple[float, Tensor]]:
    """Sums of log-probabilities with the ids of prompt and continuation, the best first."""


if MAIN:
    print(exercises.check_sampling(beam_search, hint=1))
'''


def starter(path: str | Path | None = None) -> str:
    """The file to begin with: every class and function of the course with a blank in it, and its check below.

    Cells are marked with `# %%`, so that an editor shows it as a notebook; `examples/build_gpt2_starter.ipynb` is one.

    Args:
        path: Where to write it; None to write nothing.

    Returns:
        Its text.

    Raises:
        InputError: There is a file already, which may hold answers.

    Example:
        >>> from pellucid import exercises
        >>> exercises.starter().count("def forward")
        3
    """
    if path is not None:
        target = Path(path)
        if os.path.lexists(target):  # in a folder that may not be looked into nothing is; writing says so
            raise InputError(
                f"starter: {target} already exists and may hold answers.",
                code="file-exists",
                remedy="Give another path.",
            )
        atomic.write_text(target, TEXT)
    return TEXT
