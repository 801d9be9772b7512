"""The table of names, patterns of names, and the module that a value passes through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules import module as torch_module

import pellucid as pl
import support
from pellucid.schema import select
from pellucid.tap import Ckpt, name_checkpoints

# Written out from the public contract, not from the table.
BLOCK_0 = [
    "blocks.0.resid_pre",
    "blocks.0.ln1.ckpt_scaled",
    "blocks.0.ln1.ckpt_normalized",
    "blocks.0.attn.ckpt_q",
    "blocks.0.attn.ckpt_k",
    "blocks.0.attn.ckpt_v",
    "blocks.0.attn.ckpt_scores",
    "blocks.0.attn.ckpt_pattern",
    "blocks.0.attn.ckpt_z",
    "blocks.0.attn.ckpt_attn_out",
    "blocks.0.resid_mid",
    "blocks.0.ln2.ckpt_scaled",
    "blocks.0.ln2.ckpt_normalized",
    "blocks.0.mlp.ckpt_pre",
    "blocks.0.mlp.ckpt_post",
    "blocks.0.mlp.ckpt_mlp_out",
    "blocks.0.resid_post",
]


class Doubling:
    """A tap that edits the names it wants."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def wants(self, name: str) -> bool:
        return name in self.names

    def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value * 2


def test_names_are_those_of_the_contract() -> None:
    assert list(support.schema(1).names) == [
        "ckpt_embed",
        "ckpt_pos_embed",
        *BLOCK_0,
        "ln_final.ckpt_scaled",
        "ln_final.ckpt_normalized",
    ]
    assert len(support.schema(12).names) == 208
    assert len(set(support.schema(12).names)) == 208


def test_axes_are_those_of_the_contract() -> None:
    axes = support.schema(2).axes
    assert axes["blocks.1.attn.ckpt_pattern"] == ("batch", "head", "query", "key")
    assert axes["blocks.1.attn.ckpt_q"] == ("batch", "pos", "head", "d_head")
    assert axes["blocks.0.mlp.ckpt_pre"] == ("batch", "pos", "d_mlp")
    assert axes["ckpt_embed"] == ("batch", "pos", "d_model")


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("blocks.*.resid_post", ["blocks.0.resid_post", "blocks.1.resid_post"]),
        ("blocks.1.attn.ckpt_z", ["blocks.1.attn.ckpt_z"]),
        ("blocks.0.*", ["blocks.0.resid_pre", "blocks.0.resid_mid", "blocks.0.resid_post"]),
        ("blocks.0.ln*.ckpt_scaled", ["blocks.0.ln1.ckpt_scaled", "blocks.0.ln2.ckpt_scaled"]),
        ("**.ckpt_mlp_out", ["blocks.0.mlp.ckpt_mlp_out", "blocks.1.mlp.ckpt_mlp_out"]),
        ("*", ["ckpt_embed", "ckpt_pos_embed"]),
        ("*.*", ["ln_final.ckpt_scaled", "ln_final.ckpt_normalized"]),
        ("blocks.*.attn.*_q", ["blocks.0.attn.ckpt_q", "blocks.1.attn.ckpt_q"]),
    ],
)
def test_patterns(pattern: str, chosen: list[str]) -> None:
    assert list(select(pattern, support.schema(2).names)) == chosen


@pytest.mark.parametrize(
    "pattern",
    [
        "blocks.*.ckpt_z",
        "*.resid_pre",
        "blocks*",
        "ckpt_embe?",
        "ckpt_[e]mbed",
        "blocks.0.resid.pre",
        "",
        " ckpt_embed",
    ],
)
def test_patterns_that_match_nothing(pattern: str) -> None:
    with pytest.raises(pl.UnknownNameError) as caught:
        select(pattern, support.schema(2).names)
    assert caught.value.code == "unknown-checkpoint"


def test_order_is_that_of_execution_whatever_is_asked() -> None:
    assert select(["ln_final.ckpt_scaled", "blocks.1.resid_pre", "ckpt_embed", "ckpt_*"], support.schema(2).names) == (
        "ckpt_embed", "ckpt_pos_embed", "blocks.1.resid_pre", "ln_final.ckpt_scaled",
    )  # fmt: skip
    assert select(None, support.schema(2).names) == support.schema(2).names


@given(st.sampled_from(support.schema(13).names))
def test_a_name_selects_itself_only(name: str) -> None:
    assert select(name, support.schema(13).names) == (name,)


def named(name: str = "here") -> Ckpt:
    root = torch.nn.ModuleDict({name: Ckpt()})
    name_checkpoints(root)
    return root[name]  # type: ignore[return-value]


def test_it_is_the_identity() -> None:
    value = torch.randn(2)
    assert named()(value) is value
    assert named()(value, Doubling("elsewhere")) is value, "a tap is asked only for what it wants"


def test_what_a_tap_returns_goes_on() -> None:
    value = torch.ones(2)
    assert named()(value, Doubling("here")).tolist() == [2, 2]
    replaced = named().replacement(value, Doubling("here"))
    assert replaced is not None
    assert replaced.value.tolist() == [2, 2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_replacement_tells_looks_from_edits(mode: Any) -> None:
    hooks: dict[str, tuple[Any, bool]] = {
        "returns nothing": (lambda module, args, out: None, False),
        "returns the same": (lambda module, args, out: out, False),
        "returns a copy": (lambda module, args, out: out.clone(), True),
        "writes": (lambda module, args, out: out.add_(1) and None, True),
        "writes and returns": (lambda module, args, out: out.mul_(2), True),
    }
    for what, (hook, edits) in hooks.items():
        with mode():
            point, value = named(), torch.ones(3)
            handle = point.register_forward_hook(hook if what != "writes" else _adds_one)
            assert (point.replacement(value, None) is not None) == edits, what
            handle.remove()


def test_replacement_knows_which_rows_differ() -> None:
    hooks: dict[str, tuple[Any, list[bool] | None]] = {
        "one row": (lambda module, args, out: out + torch.tensor([[0.0], [1.0], [0.0]]), [False, True, False]),
        "NaN": (lambda module, args, out: out.index_fill(0, torch.tensor([2]), torch.nan), [False, False, True]),
        "all rows": (lambda module, args, out: out * 2, None),
        "written and copied": (lambda module, args, out: out.add_(torch.tensor([[0.0], [1.0], [0.0]])).clone(), None),
    }
    for mode in (torch.no_grad, torch.inference_mode):
        for what, (hook, rows) in hooks.items():
            with mode():
                point, value = named(), torch.ones(3, 2)
                handle = point.register_forward_hook(hook)
                replaced = point.replacement(value, None)
                handle.remove()
            assert replaced is not None
            assert (None if replaced.rows is None else replaced.rows.flatten().tolist()) == rows, what
    with torch.enable_grad():  # a gradient has to reach every row
        point, value = named(), torch.ones(3, 2, requires_grad=True) * 1
        point.register_forward_hook(hooks["one row"][0])
        replaced = point.replacement(value, None)
        assert replaced is not None
        assert replaced.rows is None


def _adds_one(module: Any, args: Any, out: torch.Tensor) -> None:
    out.add_(1)


def test_is_watched() -> None:
    point = named()
    assert not point.is_watched(None)
    assert point.is_watched(Doubling("here"))
    assert not point.is_watched(Doubling("elsewhere"))
    for register in (point.register_forward_hook, point.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert point.is_watched(None)
        handle.remove()
        assert not point.is_watched(None)


def test_global_hooks_see_checkpoints_too(glass: pl.CkptedTransformer) -> None:
    seen: list[str] = []
    handle = torch_module.register_module_forward_hook(
        lambda module, args, out: seen.append(module.name) if isinstance(module, Ckpt) else None
    )
    try:
        hooked = glass([[1, 2, 3]])
    finally:
        handle.remove()
    assert tuple(seen) == support.schema(3).names
    assert torch.equal(hooked, glass([[1, 2, 3]]))


def fires(register: Any) -> bool:
    """Whether a hook that `register` puts on a checkpoint, or on all modules, runs in a forward and backward pass."""
    point, seen = named(), []
    handle = register(point, lambda *_: seen.append(1))
    try:
        point(torch.ones(2, requires_grad=True)).sum().backward()
    finally:
        handle.remove()
    quiet = len(seen)
    point(torch.ones(2, requires_grad=True)).sum().backward()
    assert len(seen) == quiet
    return bool(seen)


HOOKS = {
    "forward": lambda point, hook: point.register_forward_hook(hook),
    "before forward": lambda point, hook: point.register_forward_pre_hook(hook),
    "backward": lambda point, hook: point.register_full_backward_hook(hook),
    "before backward": lambda point, hook: point.register_full_backward_pre_hook(hook),
    "forward everywhere": lambda _, hook: torch_module.register_module_forward_hook(hook),
    "before forward everywhere": lambda _, hook: torch_module.register_module_forward_pre_hook(hook),
    "backward everywhere": lambda _, hook: torch_module.register_module_full_backward_hook(hook),
    "before backward everywhere": lambda _, hook: torch_module.register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_every_native_hook_runs(kind: str) -> None:
    assert fires(HOOKS[kind])


@pytest.mark.parametrize("kind", HOOKS)
def test_a_call_that_overlooks_hooks_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ckpt, "__call__", lambda self, value, tap=None: self.forward(value, tap))
    assert not fires(HOOKS[kind])


def test_the_table_is_made_once() -> None:
    assert support.schema(3) is support.schema(3)
    assert len(support.schema(3).in_blocks) == 17
