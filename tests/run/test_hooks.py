"""torch's own hooks on the model: every verb runs them, as transformers' `generate` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

import pellucid as pl
import support
from generate import hf_generation
from pellucid.generate import stepper as stepping

ROWS = support.ragged_ids(5, 3)
FORCED = 7
NEW = 4

Verb = Callable[[pl.CkptedTransformer], Any]

VERBS: dict[str, Verb] = {
    "call": lambda m: m(ROWS)[:, -1].argmax(-1),
    "next_token_logits": lambda m: m.next_token_logits(ROWS).argmax(-1),
    "next_token_logits with a cache": lambda m: m.next_token_logits(
        ROWS, cache=pl.KeyValueCache(m.config, len(ROWS))
    ).argmax(-1),
    "run_with_ckpts": lambda m: m.run_with_ckpts(ROWS, names="ckpt_embed")[0][:, -1].argmax(-1),
    "logprobs": lambda m: torch.where(m.logprobs([[1, FORCED], [2, FORCED]])[:, -1] > -1e-3, FORCED, 0),
    "loss": lambda m: torch.tensor([FORCED if m.loss([[1, FORCED]]) < 1e-3 else 0]),
    "generate": lambda m: _new(m.generate(ROWS, max_new_tokens=NEW, end_ids=())),
    "generate without a cache": lambda m: _new(m.generate(ROWS, max_new_tokens=NEW, end_ids=(), use_cache=False)),
    "generate with captures": lambda m: _new(m.generate(ROWS, max_new_tokens=NEW, end_ids=(), names="ckpt_embed")),
    "generate with an edit": lambda m: _new(
        m.generate(ROWS, max_new_tokens=NEW, end_ids=(), edits=pl.Edit.zero("blocks.0.attn.ckpt_z", heads=0))
    ),
    "beams": lambda m: _new(m.generate(ROWS, max_new_tokens=NEW, end_ids=(), num_beams=2)),
    "samples": lambda m: _new(
        m.generate(ROWS, max_new_tokens=NEW, end_ids=(), sampler=pl.Sampler(temperature=1.0), num_return_sequences=2)
    ),
    "beyond the context": lambda m: _new(
        m.generate(ROWS, max_new_tokens=m.config.n_positions, end_ids=(), overflow="slide")
    ),
    "stream": lambda m: torch.tensor([t.id for t in m.stream(ROWS, max_new_tokens=NEW, end_ids=())]),
}


def _new(out: pl.Generation) -> Tensor:
    return torch.cat([row.new for row in out.rows])


def force(module: Any, args: Any, out: Tensor) -> Tensor:
    out = out.clone()
    out[..., FORCED] = 1e4
    return out


def by_return(model: Any) -> Any:
    return model.register_forward_hook(force)


def in_place(model: Any) -> Any:
    def write(module: Any, args: Any, out: Tensor) -> None:
        out[..., FORCED] = 1e4

    return model.register_forward_hook(write)


def always(model: Any) -> Any:
    return model.register_forward_hook(force, always_call=True)


def with_kwargs(model: Any) -> Any:
    return model.register_forward_hook(lambda module, args, kwargs, out: force(module, args, out), with_kwargs=True)


def everywhere(model: Any) -> Any:
    return torch_module.register_module_forward_hook(
        lambda module, args, out: force(module, args, out) if module is model else None
    )


@pytest.fixture(scope="module", params=["exact", "fast"])
def small(request: pytest.FixtureRequest) -> pl.CkptedTransformer:
    return support.glass(numerics=request.param, n_layer=2, n_positions=12)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_goes_on_with_what_a_hook_returns(small: pl.CkptedTransformer, verb: str) -> None:
    run = VERBS[verb]
    with torch.no_grad():
        before = run(small)
        assert not (before == FORCED).all()
        for register in (by_return, in_place, always, with_kwargs, everywhere):
            handle = register(small)
            try:
                assert (run(small) == FORCED).all(), register.__name__
            finally:
                handle.remove()
        assert torch.equal(run(small), before) or verb == "samples"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_goes_on_with_what_a_pre_hook_gives(small: pl.CkptedTransformer, verb: str) -> None:
    """It gets a batch of the tokens that are run, whatever the verb was given, and may give ids back."""
    run, seen = VERBS[verb], []

    def other(module: Any, args: Any) -> Any:
        ids = args[0].ids if isinstance(args[0], pl.Batch) else None
        seen.append(ids)
        return None

    def other_with_kwargs(module: Any, args: Any, kwargs: Any) -> Any:
        batch = args[0] if isinstance(args[0], pl.Batch) else module.tokenize(args[0])
        return (pl.Batch(torch.full_like(batch.ids, 3), batch.mask, batch.positions), *args[1:]), kwargs

    with torch.no_grad():
        handle = small.register_forward_pre_hook(other)
        run(small)
        handle.remove()
        assert seen
        assert all(ids is not None for ids in seen) or verb == "call"
        handle = small.register_forward_pre_hook(other_with_kwargs, with_kwargs=True)
        changed = run(small)
        handle.remove()
        if verb in ("next_token_logits", "generate", "stream"):
            (alone,) = small.generate([3] * 3, max_new_tokens=1, end_ids=()).rows
            assert alone.new[0] in changed.tolist()


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "samples": {"sampler": pl.Sampler(temperature=0.9), "returned": 2},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("equal", [False, True])
def test_the_text_is_that_of_transformers_under_the_same_hook(setting: str, equal: bool) -> None:
    """A hook that tells rows and steps apart: it must see the same rows in the same runs."""
    model, hf = support.pair(n_layer=2)
    rows = [ROWS[0]] * 2 if equal else support.ragged_ids(12, 9)
    calls: dict[str, list[tuple[int, ...]]] = {"ours": [], "theirs": []}

    def steer(logits: Tensor, side: str) -> Tensor:
        calls[side].append(tuple(logits.shape))
        row = torch.arange(logits.size(0))[:, None]
        return logits + 3.0 * torch.cos(row * 7.0 + torch.arange(logits.size(-1)) + len(calls[side]))[:, None]

    def on_theirs(module: Any, args: Any, out: Any) -> Any:
        out.logits = steer(out.logits, "theirs")
        return out

    options = dict(SETTINGS[setting])
    returned = options.pop("returned", 1)
    hf.register_forward_hook(on_theirs)
    theirs = hf_generation.generate(hf, rows, max_new_tokens=6, returned=returned, seed=3, **options)
    model.register_forward_hook(lambda module, args, out: steer(out, "ours"))
    torch.manual_seed(3)
    ours = model.generate(rows, max_new_tokens=6, end_ids=(), num_return_sequences=returned, **options)
    assert [row.new.tolist() for row in ours.rows] == theirs.new
    assert calls["ours"] == calls["theirs"]


def test_a_hook_that_comes_in_the_middle_of_a_stream_is_seen_from_the_next_step_on(small: pl.CkptedTransformer) -> None:
    plain = [token.id for token in small.stream(ROWS[0], max_new_tokens=6, end_ids=())]
    found: list[int] = []
    for token in small.stream(ROWS[0], max_new_tokens=6, end_ids=()):
        found.append(token.id)
        if len(found) == 3:
            handle = small.register_forward_hook(force)
    handle.remove()
    assert found == [*plain[:3], FORCED, FORCED, FORCED]
    assert FORCED not in plain


def test_backward_hooks_on_the_model_see_the_gradient_of_the_logits(small: pl.CkptedTransformer) -> None:
    seen: list[Tensor] = []
    handle = small.register_full_backward_pre_hook(lambda module, grads: seen.append(grads[0]))
    with pytest.warns(UserWarning, match="no inputs require gradients"):  # torch's own word: ids carry none
        small(ROWS).sum().backward()
    small.generate(ROWS, max_new_tokens=2)
    handle.remove()
    small.zero_grad()
    assert [tuple(grad.shape) for grad in seen] == [(2, 5, small.config.vocab_size)]
    assert (seen[0] == 1).all()


def _prompts_run_once(self: Any) -> Tensor:
    self.cache, logits = self._prefilled()
    return logits.repeat_interleave(self.plan.repeats, 0)


@pytest.mark.parametrize(
    ("name", "broken", "check"),
    [
        (
            "_called",
            lambda self, batch, **how: self.model.forward(batch, **how),
            lambda: test_every_verb_goes_on_with_what_a_hook_returns(support.glass(n_layer=2), "generate"),
        ),
        (
            "start",
            _prompts_run_once,
            lambda: test_the_text_is_that_of_transformers_under_the_same_hook("samples", True),
        ),
    ],
)
def test_a_generation_that_passes_hooks_over_is_noticed(
    name: str, broken: Any, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping.Stepper, name, broken)
    with pytest.raises(AssertionError):
        check()


def test_a_pre_hook_that_returns_the_value_takes_neither_tap_nor_mask(tiny: pl.CkptedTransformer):
    padded = tiny.tokenize([[1, 2, 3], [4]])
    plain, count = tiny(padded), len(tiny.ckpt_names)
    for module in tiny.modules():
        if module is not tiny and module is not tiny.blocks:
            module.register_forward_pre_hook(lambda _, args: args[0])
    assert torch.equal(tiny(padded)[padded.mask], plain[padded.mask])
    assert len(tiny.run_with_ckpts(padded)[1]) == count
    assert tiny.run_with_ckpts(support.ROW, stop_at="blocks.0.resid_mid")[0] is None


def test_a_name_that_never_fires_is_an_error(tiny: pl.CkptedTransformer):
    tiny.blocks[0].resid_mid = torch.nn.Identity()
    tiny.blocks[0].resid_mid.forward = lambda value, tap=None: value
    with pytest.raises(pl.UnknownNameError) as caught:
        tiny.run_with_ckpts(support.ROW, names="blocks.0.resid_mid")
    assert caught.value.code == "checkpoint-never-fired"


def test_hooks_on_the_model_see_every_run(tiny: pl.CkptedTransformer):
    tiny.register_forward_hook(lambda *_: torch.zeros(1, 6, 50))
    assert not tiny.run_with_ckpts(support.ROW)[0].any()
    assert torch.allclose(tiny.logprobs(support.ROW), -torch.tensor(50.0).log())


def test_a_backward_hook_on_what_is_computed_for_it(tiny: pl.CkptedTransformer):
    seen: list[str] = []
    for name in ("attn.ckpt_scores", "attn.ckpt_pattern", "ln1.ckpt_scaled", "attn.ckpt_q"):
        module = tiny.get_submodule(f"blocks.0.{name}")
        module.register_full_backward_hook(lambda module, grad_in, grad_out, name=name: seen.append(name))
    tiny.loss(support.ROW).backward()
    assert sorted(seen) == ["attn.ckpt_pattern", "attn.ckpt_q", "attn.ckpt_scores", "ln1.ckpt_scaled"]
