"""The caller's models and the state around them are the same after a comparison, whatever a forward does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course
from torch import nn

import pellucid as pl
import support
from pellucid.prove.copies import deep_copy
from pellucid.prove.lending import Loan

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 24, "n_layer": 1, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


def state(module: nn.Module) -> dict[str, Any]:
    """Everything that a comparison could leave changed."""
    about: dict[str, Any] = {
        name: (id(t), t.detach().clone(), t._version, t.requires_grad, t.dtype, t.device)
        for name, t in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    }
    for name, child in module.named_modules():
        hooks = (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks)
        about[f"{name}()"] = (id(child), child.training, *(list(h.items()) for h in hooks), sorted(vars(child)))
    about["attention"] = getattr(getattr(module, "config", None), "_attn_implementation", None)
    about["random"] = torch.get_rng_state()
    about["default"] = (torch.get_default_dtype(), torch.is_grad_enabled())
    return about


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


class Selfish(nn.Module):
    """Counts its runs in a buffer, keeps its last output, draws random numbers, and perhaps raises in the middle."""

    def __init__(self, model: pl.CkptedTransformer, *, raises: bool = False) -> None:
        super().__init__()
        self.inner = course(model)
        self.register_buffer("runs", torch.zeros(()))
        self.raises = raises
        self.last: Any = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        torch.rand(3)
        self.last = self.inner(ids)
        if self.raises:
            raise ValueError("in the middle")
        return self.last


def with_outputs_kept(model: pl.CkptedTransformer) -> nn.Module:
    made = Selfish(model)
    made(IDS)  # with a graph, which torch refuses to copy
    return made


KINDS: dict[str, Callable[[pl.CkptedTransformer], nn.Module]] = {
    "ours": copy.deepcopy,
    "hf": pl.to_hf,
    "course": course,
    "selfish": Selfish,
    "kept": with_outputs_kept,
    "raises": lambda model: Selfish(model, raises=True),
}


@pytest.mark.parametrize(
    ("kind", "training"),
    support.few_of(
        [*((kind, True) for kind in KINDS), ("ours", False), ("course", False)],
        *((k, True) for k in KINDS),
        ("course", False),
    ),
)
def test_nothing_of_the_caller_changes(kind: str, training: bool) -> None:
    ours = support.glass(**SMALL)
    other = KINDS[kind](ours)
    ours.train(training)
    other.train(training)
    next(other.children()).eval()  # a mode of its own
    seen: list[str] = []
    handle = other.register_forward_pre_hook(lambda module, given: seen.append("ran"))
    before = state(ours), state(other)
    report = pl.compare(ours, other, IDS)
    report.to_json()
    assert same(before[0], state(ours))
    assert same(before[1], state(other))
    assert (report.verdict in ("identical", "equivalent")) == (kind != "raises"), report
    if training and kind in ("ours", "selfish"):
        _ = report.sensitivity
        assert same(before[1], state(other))
    handle.remove()


def test_two_models_in_float64_stay_what_they_are() -> None:
    """Their bits need no conversion to be read, so what reads them has to leave them alone."""
    ours = support.glass(dtype=torch.float64, **SMALL)
    hf = pl.to_hf(ours)
    before = state(ours), state(hf)
    assert pl.compare(ours, hf, IDS).verdict == "identical"
    assert pl.compare(ours.state_dict(), hf.state_dict()).verdict == "identical"
    assert same(before, (state(ours), state(hf)))


class Adding(nn.Module):
    """Adds what it is given to a list that it may share."""

    def __init__(self, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: torch.Tensor) -> None:
        self.seen.append(x)


class Gathering(Adding):
    """Reads what its child has added to the list that both hold."""

    def __init__(self) -> None:
        super().__init__([])
        self.inner = Adding(self.seen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner(x)
        return self.seen[0]


def test_an_empty_list_that_two_modules_share_stays_one() -> None:
    made, x = Gathering(), torch.ones(1)
    assert deep_copy(made, {})(x) is x
    with Loan(made).taken() as lent:
        assert lent(x) is x
    assert made.seen == []
    assert made.inner.seen is made.seen


def test_the_comparison_would_notice() -> None:
    """`state` sees modes, hooks, values, buffers and random state."""
    made = course(support.glass(**SMALL))
    for change in (
        made.blocks[0].train,
        lambda: made.ln.register_forward_hook(lambda *_: None),
        lambda: made.ln.weight.data.add_(1.0),
        lambda: torch.rand(1),
        lambda: setattr(made.ln, "mark", 1),
    ):
        before = state(made)
        change()
        assert not same(before, state(made))
