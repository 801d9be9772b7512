"""What strangers do to a program: habits that change nothing, and mistakes that change something."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pellucid as pl

Change = Callable[[Any, pl.CkptedTransformer], Any]


class Around(nn.Module):
    """A program within another module, which may change what goes in and what comes out."""

    def __init__(self, inner: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.inner = inner
        self.before, self.after = before or (lambda ids: ids), after or (lambda logits: logits)

    def forward(self, ids: Tensor) -> Tensor:
        return self.after(logits_of(self.inner, self.before(ids)))


def logits_of(program: Any, ids: Tensor) -> Tensor:
    """The logits of whatever a stranger's program returns, however it wants to be called."""
    keyword = getattr(type(program).forward, "__kwdefaults__", None)
    found = program(input_ids=ids) if keyword else program(ids)
    if isinstance(found, tuple):
        return found[0]
    if isinstance(found, dict):
        return found["logits"]
    return found if isinstance(found, Tensor) else found.logits


def table_of_positions(program: nn.Module, model: pl.CkptedTransformer) -> nn.Parameter:
    """The program's parameter that holds the positions."""
    wanted = model.parameter("pos_embed.W_pos")
    return next(p for p in program.parameters() if p.shape == wanted.shape and torch.equal(p, wanted))


def written(change: Callable[[dict[str, nn.Parameter], pl.CkptedTransformer], None]) -> Change:
    """Write into the parameters."""

    def changed(program: nn.Module, model: pl.CkptedTransformer) -> nn.Module:
        with torch.no_grad():
            change(dict(program.named_parameters()), model)
        return program

    return changed


def around(before: Any = None, after: Any = None) -> Change:
    return lambda program, model: Around(program, before, after)


# Habits


def with_value_head(program: nn.Module, model: pl.CkptedTransformer) -> nn.Module:
    program.v_head = nn.Linear(model.config.n_embd, 1)  # pyright: ignore[reportAttributeAccessIssue]
    return program


def patched(program: nn.Module, _: pl.CkptedTransformer) -> nn.Module:
    """As libraries do that move modules between devices."""
    plain = program.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    program.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return program


def in_float64(program: nn.Module, _: pl.CkptedTransformer) -> nn.Module:
    return program.double()


def traced(program: nn.Module, _: pl.CkptedTransformer) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Around(program), torch.zeros(2, 9, dtype=torch.long), check_trace=False)  # pyright: ignore[reportReturnType]


RIGHT: dict[str, Change] = {
    "as it is": lambda program, _: program,
    "training": lambda program, _: program.train(),
    "frozen": lambda program, _: program.requires_grad_(False),
    "wrapped": around(),
    "a copy": lambda program, _: copy.deepcopy(program),
    "an unused value head": with_value_head,
    "a patched forward": patched,
    "in float64": in_float64,
    "logits in float32": around(after=lambda logits: logits.float() if logits.dtype != torch.float64 else logits),
}  # fmt: skip
"""Habits that change no number that the program gives."""


# Mistakes


def _first(names: dict[str, nn.Parameter], shape: tuple[int, ...]) -> nn.Parameter:
    return next(parameter for parameter in names.values() if tuple(parameter.shape) == shape)


def one_weight(names: dict[str, nn.Parameter], model: pl.CkptedTransformer) -> None:
    matrices = [parameter for parameter in names.values() if parameter.dim() >= 2]
    matrices[len(matrices) // 2].view(-1)[7] += 1e-3


def one_bias(names: dict[str, nn.Parameter], model: pl.CkptedTransformer) -> None:
    vectors = [parameter for parameter in names.values() if parameter.dim() == 1]
    vectors[len(vectors) // 2][3] += 1e-4


class Remembers(Around):
    """Keeps something from one call to the next."""

    def forward(self, ids: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return logits_of(self.inner, ids) * (1 + 1e-3 * (self.calls - 1))


class AlwaysDrops(Around):
    """Dropout that nobody switched off."""

    def forward(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.dropout(logits_of(self.inner, ids), 0.1, training=True)


WRONG: dict[str, Change] = {
    "one weight off": written(one_weight),
    "one bias off": written(one_bias),
    "positions from one": lambda program, model: written(
        lambda names, m: table_of_positions(program, m).copy_(m.parameter("pos_embed.W_pos").roll(-1, 0))
    )(program, model),
    "a constant on one logit": around(after=lambda logits: logits + 1e-3 * torch.eye(1, logits.size(-1)).to(logits)),
    "probabilities": around(after=lambda logits: logits.softmax(-1)),
    "ids of the likeliest": around(after=lambda logits: logits.argmax(-1)),
    "a temperature": around(after=lambda logits: logits / 1.001),
    "one token late": around(before=lambda ids: ids.roll(1, 1)),
    "not a number": around(
        after=lambda logits: logits * torch.where(torch.arange(logits.size(-1)) == 5, torch.nan, 1.0)
    ),
    "infinite": around(after=lambda logits: logits * torch.where(torch.arange(logits.size(-1)) == 5, torch.inf, 1.0)),
    "rows exchanged": around(after=lambda logits: logits.flip(0)),
    "a mean over the batch": around(after=lambda logits: logits + 1e-3 * logits.mean(0, keepdim=True)),
    "no more than 20 tokens": around(before=lambda ids: torch.cat([ids[:, :20], ids[:, 20:] * 0], 1)),
    "texts reversed": around(before=lambda ids: ids.flip(1)),
    "ids one off": around(before=lambda ids: (ids + 1).clamp(max=200)),
    "remembers": lambda program, _: Remembers(program),
    "always drops": lambda program, _: AlwaysDrops(program),
}
"""Mistakes that change what the program gives, some of them only for some inputs."""
