"""The models that are measured: true sizes, random weights spread so that every parameter shows in the results.

Under GPT-2's own initialisation a forgotten bias or a unit gain changes nothing, and a contender that left it out would
pass for equal. The peers get copies of one transformers model: TransformerLens puts modules of its own into the model
that it is given, and nnsight instruments it.
"""

from __future__ import annotations

import copy
import functools
import gzip
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness  # before torch: it pins the threads
from report import Options

# isort: split
import torch
from torch import Tensor

import pellucid as pl

sys.path.append(str(harness.HERE.parent / "tests"))
from support import spread

SIZES: dict[str, dict[str, int]] = {
    "distilgpt2": {"n_layer": 6, "n_head": 12, "n_embd": 768},
    "gpt2-small": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
"""What OpenAI published, and distilgpt2; all with 1024 positions and 50,257 tokens."""


def reference(
    size: str = "gpt2-small", *, attention: str = "sdpa", seed: int = 0, device: str = "cpu", **fields: Any
) -> Any:
    """An evaluating `GPT2LMHeadModel` of transformers with spread weights.

    Args:
        size: A key of `SIZES`.
        attention: "sdpa", transformers' default, or "eager".
        seed: Of the weights, which are the same for the same seed and kind of device.
        device: Where it is made.
        fields: Of the configuration, in place of what the size says.
    """
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.initialization import no_init_weights

    torch.set_num_threads(harness.THREADS)
    with torch.device(device), no_init_weights():  # they are drawn below
        hf = GPT2LMHeadModel(GPT2Config(**{**SIZES[size], **fields}, attn_implementation=attention))
    hf.tie_weights()
    spread(hf, seed)
    return hf.eval()


def asked_for(options: Options, **fields: Any) -> Any:
    """The reference on the device and in the dtype of the command line."""
    return reference(options.size, device=options.device, **fields).to(getattr(torch, options.dtype))


def eager(hf: Any) -> Any:
    """A copy of a transformers model that runs attention unfused, as whoever wants patterns of it has to."""
    other = copy.deepcopy(hf)
    other.set_attn_implementation("eager")
    return other


def bridge(hf: Any) -> Any:
    """A copy of a transformers model in TransformerLens."""
    from transformer_lens.model_bridge import TransformerBridge

    # A folder stands for a name: the configuration is the model's, and nothing is looked up.
    booted = TransformerBridge.boot_transformers(
        "gpt2", hf_model=copy.deepcopy(hf), tokenizer=tokenizer(), device=str(hf.device)
    )
    return booted.eval()


def traced(hf: Any) -> Any:
    """A copy of a transformers model in nnsight."""
    import nnsight

    return nnsight.NNsight(copy.deepcopy(hf))


def tokenizer() -> Any:
    """GPT-2's own, as transformers has it."""
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast.from_pretrained(_tokenizer_folder().name)


@functools.cache
def _tokenizer_folder() -> tempfile.TemporaryDirectory[str]:
    """There until the process ends: TransformerLens opens the tokenizer a second time."""
    folder = tempfile.TemporaryDirectory()
    tokenizer_files(Path(folder.name))
    return folder


def tokenizer_files(folder: Path) -> None:
    """Write GPT-2's vocab.json and merges.txt."""
    for packed in (harness.HERE.parent / "tests" / "data" / "gpt2_tokenizer").glob("*.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))


def some_ids(shape: str, vocab_size: int = 50257, device: str = "cpu", seed: int = 1) -> Tensor:
    """Random ids of a shape such as "1x128"."""
    rows, columns = map(int, shape.split("x"))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (rows, columns), generator=generator).to(device)


def exact_logits(model: pl.CkptedTransformer, ids: Tensor) -> Tensor:
    """Logits of a float64 run of the same weights."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(ids)


def products(config: pl.TransformerConfig, rows: int, columns: int, *, logits: int | None = None) -> int:
    """Floating-point operations of a forward's matrix products: weights, scores and weighted values.

    Attention is counted as the fused kernel runs it: a causal half.

    Args:
        config: Of the model.
        rows: Texts.
        columns: Tokens in each.
        logits: Positions of each text whose logits are computed; all where None.
    """
    d, m, n = config.n_embd, config.d_mlp, rows * columns
    weights = config.n_layer * (4 * d * d + 2 * d * m) * n
    attention = config.n_layer * 2 * d * columns * n // 2
    head = config.vocab_size * d * rows * (columns if logits is None else logits)
    return 2 * (weights + attention + head)
