"""What people do to a transformers model's head, and what then really happens when it is saved and reloaded.

Nothing here uses the library: the cases are the questions, `really` is the answer that predictions are held to.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import support

SIZES = {
    "vocab_size": 31,
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VOCAB, WIDTH = SIZES["vocab_size"], SIZES["n_embd"]


def small(**fields: Any) -> Any:
    """A small transformers model in which every parameter matters."""
    return support.reference(**{**SIZES, **fields})


def linear(bias: bool = False, vocab: int = VOCAB) -> nn.Linear:
    """A head with numbers of its own, as large as the embedding's."""
    head = nn.Linear(WIDTH, vocab, bias=bias)
    nn.init.normal_(head.weight, std=0.3)
    return head


def clone(model: Any) -> nn.Parameter:
    return nn.Parameter(model.transformer.wte.weight.detach().clone())


class Scaled(nn.Linear):
    """A head that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


class Renamed(nn.Linear):
    """A head of another class that computes the same."""


class Marked(nn.Embedding):
    """An embedding of another class that computes the same."""


class Doubled(nn.Embedding):
    """An embedding that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _linear_then_tie(model: Any) -> None:
    model.lm_head = linear()
    model.tie_weights()


def _linear_then_resize(model: Any) -> None:
    model.lm_head = linear()
    model.resize_token_embeddings(VOCAB)


def _resize(model: Any) -> None:
    model.resize_token_embeddings(VOCAB + 5, mean_resizing=False)


def _bias(zero: bool = False, tied: bool = False) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.lm_head = linear(bias=True)
        if zero:
            nn.init.zeros_(model.lm_head.bias)
        if tied:
            model.lm_head.weight = model.transformer.wte.weight

    return change


def _sequential(*rest: nn.Module, untied: bool = False, equal: bool = False) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        head = linear()
        if equal:
            head.weight = clone(model)
        model.lm_head = nn.Sequential(head, *rest)
        model.config.tie_word_embeddings = not untied

    return change


def _sequential_then_tie(model: Any) -> None:
    model.lm_head = nn.Sequential(linear())
    model.tie_weights()


def _wrap(model: Any) -> None:
    model.lm_head = nn.Sequential(linear())
    model.lm_head[0].weight = model.transformer.wte.weight


def _set_head(make: Callable[[Any], nn.Parameter], tied: bool | None = None) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.lm_head.weight = make(model)
        if tied is not None:
            model.config.tie_word_embeddings = tied

    return change


def _module(make: Callable[[], nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.lm_head = make()

    return change


def _say(tied: bool) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.config.tie_word_embeddings = tied

    return change


def _overlap(model: Any) -> None:
    memory = torch.randn(VOCAB + 1, WIDTH)
    model.transformer.wte.weight = nn.Parameter(memory[:-1])
    model.lm_head.weight = nn.Parameter(memory[1:])


def _side_by_side(model: Any) -> None:
    memory = torch.randn(2 * VOCAB, WIDTH)
    model.transformer.wte.weight = nn.Parameter(memory[:VOCAB])
    model.lm_head.weight = nn.Parameter(memory[VOCAB:])


def _columns(model: Any) -> None:
    memory = torch.randn(VOCAB, 2 * WIDTH)
    model.transformer.wte.weight = nn.Parameter(memory[:, :WIDTH])
    model.lm_head.weight = nn.Parameter(memory[:, WIDTH:])


def _nan(model: Any) -> None:
    with torch.no_grad():
        model.transformer.wte.weight[3, 3] = torch.nan
    model.lm_head.weight = clone(model)


def _list(model: Any) -> None:
    model._tied_weights_keys = ["lm_head.weight"]


def _doubled(model: Any) -> None:
    doubled = Doubled(VOCAB, WIDTH)
    doubled.weight = model.transformer.wte.weight
    model.transformer.wte = doubled


def _marked(model: Any) -> None:
    marked = Marked(VOCAB, WIDTH)
    marked.weight = model.transformer.wte.weight
    model.transformer.wte = marked


def _half(model: Any) -> None:
    model.lm_head = linear()
    model.to(torch.bfloat16)


def _half_head(model: Any) -> None:
    model.lm_head = linear().to(torch.float64)
    model.transformer.ln_f.register_forward_hook(lambda module, args, out: out.double())


ROWS: dict[str, Callable[[Any], None]] = {
    "nothing": lambda model: None,
    "new Linear": _module(linear),
    "new Linear, then tie_weights()": _linear_then_tie,
    "new Linear, then resize to the same size": _linear_then_resize,
    "Linear with a bias": _bias(),
    "Sequential(Linear)": _sequential(),
    "Sequential(Linear), config untied": _sequential(untied=True),
    "equal-valued clone": _set_head(clone),
    "head that wraps the embedding": _wrap,
    "two Parameters over one storage": _set_head(lambda model: nn.Parameter(model.transformer.wte.weight.data)),
    "tied, config untied": _say(tied=False),
}
"""The table of the reference, row by row."""

MORE: dict[str, Callable[[Any], None]] = {
    "equal-valued clone, config untied": _set_head(clone, tied=False),
    "new numbers, config untied": _set_head(lambda model: linear().weight, tied=False),
    "Linear with a bias of zero": _bias(zero=True),
    "Linear with a bias, tied": _bias(tied=True),
    "Sequential of an equal clone": _sequential(equal=True),
    "Sequential with an Identity": _sequential(nn.Identity(), equal=True),
    "Sequential with a Tanh": _sequential(nn.Tanh(), equal=True),
    "Sequential, then tie_weights()": _sequential_then_tie,
    "a Linear of another class": _module(lambda: Renamed(WIDTH, VOCAB, bias=False)),
    "a Linear that computes otherwise": _module(lambda: Scaled(WIDTH, VOCAB, bias=False)),
    "no Linear at all": _module(lambda: nn.Bilinear(WIDTH, WIDTH, VOCAB)),
    "a head of another vocabulary": _module(lambda: linear(vocab=VOCAB + 2)),
    "a larger vocabulary": _resize,
    "overlapping views": _overlap,
    "side by side in one storage": _side_by_side,
    "columns of one storage": _columns,
    "an equal clone with NaN": _nan,
    "keys as a list": _list,
    "an embedding that computes otherwise": _doubled,
    "an embedding of another class that computes the same": _marked,
    "another activation": lambda model: setattr(model.transformer.h[0].mlp, "act", nn.ReLU()),
    "everything in bfloat16": _half,
    "a wider head": _half_head,
}
"""Beyond the table."""

SOME = (
    "nothing", "new Linear", "Linear with a bias", "Sequential(Linear)", "head that wraps the embedding",
    "two Parameters over one storage", "tied, config untied", "new numbers, config untied",
    "a head of another vocabulary", "an embedding that computes otherwise", "everything in bfloat16",
)  # fmt: skip
"""One row of each kind, for tests that repeat what `test_table.py` tries with every row."""


def changed(row: str, **fields: Any) -> Any:
    """A small model after what the row says."""
    model = small(**fields)
    torch.manual_seed(7)
    {**ROWS, **MORE}[row](model)
    return model.eval()


def really(model: Any, folder: Path) -> tuple[bool | None, bool | None]:
    """Save, reload, run: the same outputs (None where saving raises), and head tied to embedding or not."""
    try:
        model.save_pretrained(folder)
    except (RuntimeError, AttributeError):
        return None, None
    try:
        again = type(model).from_pretrained(folder).eval()
    except RuntimeError:
        return False, None
    head, embedding = again.get_output_embeddings(), again.get_input_embeddings()
    tied = None if head is None else head.weight is embedding.weight
    ids = torch.arange(8)[None]
    with torch.no_grad():
        try:
            before = model(ids)[0]
        except (TypeError, RuntimeError):
            return False, tied  # it does not run as it is, the reloaded one does
        return close(before, again(ids)[0]), tied


class Reality(NamedTuple):
    """What saving and reloading really give."""

    survives: bool | None  # the same outputs; None where saving raises
    tied: bool | None  # head and embedding afterwards
    nbytes: int | None  # of the tensors in the file; None where saving raises


@functools.cache
def reality(row: str, **fields: Any) -> Reality:
    """What really becomes of a model after what the row says; found out once for all tests of a process."""
    import transformers
    from safetensors import safe_open

    transformers.logging.set_verbosity(50)
    with tempfile.TemporaryDirectory() as folder:
        survives, tied = really(changed(row, **fields), Path(folder))
        if survives is None:
            return Reality(None, None, None)
        with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        return Reality(survives, tied, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the alignment of memory; another head is five orders of magnitude off."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
