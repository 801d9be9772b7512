"""A step of decoding that stays where it is in memory, as an accelerator replays it; here it is run as it is."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from pellucid.family import attend
from pellucid.fast import decoder
from pellucid.gpt2 import model as attention

LENGTHS = {"one": (6,), "padded": (9, 2, 5), "forty": (4,) * 40}
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True, params=["fused", "explicit"])
def _as_on_an_accelerator(request: pytest.FixtureRequest, monkeypatch: Patch) -> None:
    """Where steps are recorded; one query attends by the fused kernel (half precision) or explicitly (float32)."""
    monkeypatch.setattr(decoder, "can_record", lambda device: True)
    monkeypatch.setattr(decoder, "recorded", lambda run, device: run)
    monkeypatch.setattr(attend, "_fused_takes_keys_in_turn", lambda q: request.param == "explicit")


def fast_of(model: pl.CkptedTransformer, numerics: str = "fast") -> pl.CkptedTransformer:
    return pl.CkptedTransformer(model.config, copy.deepcopy(model.state_dict()), numerics=numerics).eval()


def standing(model: pl.CkptedTransformer, cache: pl.KeyValueCache) -> Callable[[Tensor, Tensor], Tensor]:
    """Runs the next column of a cache, however it lies."""
    runner = decoder.decoder(model, cache.rows)
    assert isinstance(runner, decoder.GraphDecoder)

    def step(ids: Tensor, positions: Tensor) -> Tensor:
        cache.open(torch.ones(cache.rows, 1, dtype=torch.bool))
        return runner.step(ids, positions, cache)[0]

    return step


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"sampler": pl.Sampler(top_k=20), "seed": 3},
    {"num_beams": 2, "num_return_sequences": 2},
    {"sampler": pl.Sampler(temperature=0.7), "seed": 1, "num_return_sequences": 4},
]


@pytest.mark.parametrize(
    ("options", "lengths"),
    support.few_of(
        itertools.product(OPTIONS, LENGTHS.values()),
        *((options, LENGTHS["padded"]) for options in OPTIONS),
        ({}, LENGTHS["one"]),
        ({"num_beams": 3}, LENGTHS["forty"]),
    ),
    ids=str,
)  # fmt: skip
def test_every_way_of_decoding(options: dict[str, Any], lengths: tuple[int, ...]) -> None:
    exact = support.glass()
    rows = support.ragged_ids(*lengths)
    a, b = (m.generate(rows, max_new_tokens=16, end_ids=(11,), **options) for m in (exact, fast_of(exact)))
    assert [row.tolist() for row in a.ids] == [row.tolist() for row in b.ids]


def test_a_text_that_slides() -> None:
    exact = support.glass()
    a, b = (m.generate([[1, 2, 3]], max_new_tokens=80, overflow="slide", end_ids=()) for m in (exact, fast_of(exact)))
    assert a.ids.tolist() == b.ids.tolist()


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False}, {"activation_function": "mish"}], ids=str)
def test_logits_are_as_near_to_float64_as_those_of_a_run(fields: dict[str, Any]) -> None:
    exact, truth = (support.glass(dtype=dtype, **fields) for dtype in (torch.float32, torch.float64))
    fast, ids = fast_of(exact), support.some_ids(3, 20)
    with torch.no_grad():
        step = standing(fast, pl.KeyValueCache(fast.config, 3, 33))
        for column in range(20):
            logits = step(ids[:, column], torch.full((3,), column))
            expected = truth(ids[:, : column + 1])[:, -1]
            bound = 8 * float((exact(ids[:, : column + 1])[:, -1] - expected).abs().max()) + 1e-6
            assert float((logits - expected).abs().max()) < bound


def test_columns_to_come_count_nothing_whatever_lies_there() -> None:
    fast = fast_of(support.glass())
    cache = pl.KeyValueCache(fast.config, 2, 12)
    cache.content.fill_(torch.nan)
    with torch.no_grad():
        step, ids = standing(fast, cache), support.some_ids(2, 5)
        for column in range(5):
            logits = step(ids[:, column], torch.full((2,), column))
        assert support.close(logits, fast(ids)[:, -1], 1e-5)
        cache.rewind(2)  # what was written there lies in the memory still
        assert support.close(step(ids[:, 2], torch.full((2,), 2)), fast(ids[:, :3])[:, -1], 1e-5)


def test_logits_are_the_callers() -> None:
    fast = fast_of(support.glass())
    with torch.no_grad():
        step = standing(fast, pl.KeyValueCache(fast.config, 1, 8))
        first = step(torch.tensor([3]), torch.tensor([0]))
        kept = first.clone()
        step(torch.tensor([5]), torch.tensor([1]))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("numerics", ["fast", "bfloat16"])
def test_a_step_asks_for_no_number(numerics: str) -> None:
    """Whatever it asked for would be that of the step that was recorded."""
    fast = fast_of(support.glass(), numerics)
    with torch.no_grad():
        cache = pl.KeyValueCache(fast.config, 2, 12)
        made = decoder._Standing(fast, cache, (), [])
        made._run()
        seen = checks.ops(made._run)
    assert seen.count("mm") - seen.count("bmm") == 4 * fast.config.n_layer + 1
    assert not seen.count(*checks.WAITS)


@pytest.mark.parametrize("numerics", ["fast", "bfloat16"])
def test_a_weight_that_is_written_to_between_steps(numerics: str) -> None:
    fast = fast_of(support.glass(), numerics)
    tokens = [checks.written_to_meanwhile(fast_of(fast, numerics), write) for write in (None, "in place", "anew")]
    assert tokens[0][:12] == tokens[1][:12] == tokens[2][:12]
    assert tokens[0] != tokens[1]
    assert tokens[1] == tokens[2]


def test_a_step_is_made_anew_where_its_memory_changes() -> None:
    """A replay would go on reading what was there."""
    fast = fast_of(support.glass())
    runner = decoder.decoder(fast, 1)
    assert isinstance(runner, decoder.GraphDecoder)
    cache, made = pl.KeyValueCache(fast.config, 1, 16), []
    weight = fast.blocks[1].mlp.W_in
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: weight.mul_(1.5),
        lambda: setattr(weight, "data", weight.detach().clone()),
        cache.trim,
    ]
    with torch.no_grad():
        for change in changes:
            change()
            cache = cache.fork(capacity=16) if cache.capacity < 16 else cache
            for _ in range(2):
                positions = cache.counts
                cache.open(torch.ones(1, 1, dtype=torch.bool))
                runner.step(torch.tensor([3]), positions, cache)
                made.append(runner._standing)
    assert all(made[i] is made[i + 1] for i in range(0, 8, 2))
    assert len(set(map(id, made))) == 4


def test_a_step_is_recorded_once_it_pays(monkeypatch: Patch) -> None:
    """Played by a replay that runs what it was given; memory that is read is held as long."""
    recorded: list[int] = []

    def records(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        recorded.append(1)
        return run

    monkeypatch.setattr(decoder, "recorded", records)
    monkeypatch.setattr(decoder, "can_record", lambda device: True)
    fast = fast_of(support.glass(), "bfloat16")
    fast.generate([[1, 2, 3]], max_new_tokens=4, end_ids=())
    assert not recorded
    out = fast.generate([[1, 2, 3]], max_new_tokens=30, end_ids=())
    assert len(recorded) == 1
    assert out.ids.shape == (1, 33)


def test_values_are_looked_at_in_a_run_of_the_model() -> None:
    fast = fast_of(support.glass())
    assert decoder.decoder(fast, 1, ["blocks.0.attn.ckpt_z"]) is None
    out = fast.generate([[1, 2, 3]], max_new_tokens=5, names="blocks.*.resid_post")
    assert out.ckpts is not None
    assert out.ckpts["blocks.0.resid_post"].shape == (1, 8, 48)


def test_autocast_is_left_to_a_run_of_the_model() -> None:
    exact = support.glass()
    fast = fast_of(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoder.decoder(fast, 1) is None
        expected = exact.generate([[1, 2, 3]], max_new_tokens=6, end_ids=())
        assert fast.generate([[1, 2, 3]], max_new_tokens=6, end_ids=()).ids.tolist() == expected.ids.tolist()


def test_autocast_that_begins_between_two_steps() -> None:
    fast = fast_of(support.glass())
    stream = fast.stream([1, 2, 3], max_new_tokens=6, end_ids=())
    tokens = [next(stream).id, next(stream).id]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens += [token.id for token in stream]
    assert len(tokens) == 6


def test_what_a_recorded_step_reads_stays(monkeypatch: Patch) -> None:
    """Rounded weights that the model drops are held until the step is made anew."""
    monkeypatch.setattr(decoder, "recorded", lambda run, device: run)
    fast = fast_of(support.glass(), "bfloat16")
    stream = fast.stream([1, 2, 3], max_new_tokens=40, end_ids=())
    for _ in range(3):
        next(stream)
    (first, *_) = fast.products.kept()
    held = weakref.ref(first)
    del first
    fast.refresh()
    assert held() is not None
    for _ in range(3):
        next(stream)
    assert held() is None


def test_autocast_is_not_recorded(monkeypatch: Patch) -> None:
    recorded: list[int] = []
    monkeypatch.setattr(decoder, "can_record", lambda device: True)
    monkeypatch.setattr(decoder, "recorded", lambda run, device: recorded.append(1) or run)
    stream = fast_of(support.glass()).stream([1, 2, 3], max_new_tokens=60, end_ids=())
    next(stream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(12):
            next(stream)
    assert not recorded
    list(stream)
    assert recorded


def test_a_model_made_under_inference_mode() -> None:
    with torch.inference_mode():
        fast = fast_of(support.glass())
        assert fast.embed.W_E.is_inference()
        out = fast.generate([[1, 2, 3]], max_new_tokens=8, end_ids=())
        assert out.ids.tolist() == support.glass().generate([[1, 2, 3]], max_new_tokens=8, end_ids=()).ids.tolist()
        assert fast.run_with_ckpts([[1, 2]], names="ckpt_embed")[1]["ckpt_embed"].shape == (1, 2, 48)


def test_one_query_of_a_plain_run_attends_so_too() -> None:
    exact = support.glass()
    fast, cache = fast_of(exact), pl.KeyValueCache(exact.config, 3)
    with torch.no_grad():
        rows = support.ragged_ids(9, 2, 5)
        fast(rows, cache=cache)
        found = fast([[7], [8], [9]], cache=cache)
        truth = exact([[*row, new] for row, new in zip(rows, (7, 8, 9), strict=True)])
        assert support.close(found[:, -1], truth[:, -1], 1e-5)


# Mutants: each check must fail on what is broken


def decodes() -> None:
    test_every_way_of_decoding({}, LENGTHS["padded"])


def fits() -> None:
    test_logits_are_as_near_to_float64_as_those_of_a_run({})


def asks_for_nothing() -> None:
    test_a_step_asks_for_no_number("fast")


def memory_as_it_lies(patch: Patch) -> None:
    def init(self: Any, cache: pl.KeyValueCache) -> None:
        self.column = torch.zeros(1, dtype=torch.long)
        self.mask, self._content = torch.zeros_like(cache.mask), cache.content

    patch.setattr(decoder.WholeCache, "__init__", init)


def hidden_by(change: Callable[[Any, pl.KeyValueCache], None]) -> Callable[[Patch], None]:
    def breaks(patch: Patch) -> None:
        plain = decoder.WholeCache.at

        def at(self: Any, cache: pl.KeyValueCache) -> None:
            plain(self, cache)
            change(self, cache)

        patch.setattr(decoder.WholeCache, "at", at)

    return breaks


def all_columns(whole: Any, cache: pl.KeyValueCache) -> None:
    whole.mask.fill_(True)


def pads_too(whole: Any, cache: pl.KeyValueCache) -> None:
    whole.mask[:, : cache.length + 1] = True


def one_too_late(whole: Any, cache: pl.KeyValueCache) -> None:
    whole.column.add_(1).clamp_(max=cache.capacity - 1)


def always_the_first_position(patch: Patch) -> None:
    plain = decoder._Standing.step
    patch.setattr(decoder._Standing, "step", lambda self, ids, at, cache, **_: plain(self, ids, at * 0, cache))


def never_outdated(patch: Patch) -> None:
    patch.setattr(decoder, "state_of", lambda modules: ())


def asks_for_the_column(patch: Patch) -> None:
    def write(self: Any, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._content[block]
        at = int(self.column)
        keys[:, :, at : at + 1], values[:, :, at : at + 1] = k, v
        return keys, values

    patch.setattr(decoder.WholeCache, "_write", write)


def hands_out_its_own_logits(patch: Patch) -> None:
    """What a replay writes into is given to the caller."""
    plain = decoder._Standing.step

    def step(self: Any, *given: Any, **options: Any) -> Tensor:
        logits = plain(self, *given, **options)
        self.out = logits if not hasattr(self, "out") else self.out.copy_(logits)
        return self.out

    patch.setattr(decoder._Standing, "step", step)


def records_at_once(patch: Patch) -> None:
    patch.setattr(decoder, "PATIENCE", 0)


def looks_by_replays(patch: Patch) -> None:
    plain = decoder.decoder
    patch.setattr(decoder, "decoder", lambda model, rows, names=(): plain(model, rows))


def rounds_by_autocast(patch: Patch) -> None:
    plain = decoder.decoder

    def chosen(*given: Any, **options: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return plain(*given, **options)

    patch.setattr(decoder, "decoder", chosen)


def writes_as_it_comes(patch: Patch) -> None:
    def write(self: Any, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._content[block]
        return keys.index_copy_(2, self.column, k), values.index_copy_(2, self.column, v)

    patch.setattr(decoder.WholeCache, "_write", write)


def holds_nothing(patch: Patch) -> None:
    plain = decoder._Standing.__init__
    patch.setattr(decoder._Standing, "__init__", lambda self, *given: plain(self, *given[:3], []))


def records_autocast(patch: Patch) -> None:
    plain = decoder._Standing.step
    patch.setattr(decoder._Standing, "step", lambda self, *given, **_: plain(self, *given))


def attends_to_all(patch: Patch) -> None:
    patch.setattr(attend, "_fused_takes_keys_in_turn", lambda q: True)
    patch.setattr(attend, "_hide", lambda scores, visible: scores)


def forgets_the_scale(patch: Patch) -> None:
    plain = attention.Attention._scores
    patch.setattr(attend, "_fused_takes_keys_in_turn", lambda q: True)
    patch.setattr(
        attention.Attention, "_scores", lambda self, q, k, visible: plain(self, q * q.size(-1) ** 0.5, k, visible)
    )


def a_test(check: Callable[..., None]) -> Callable[[], None]:
    """A test that takes a patch, as a check without arguments."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            check(patch)

    run.__name__ = check.__name__
    return run


@pytest.mark.parametrize(("breaks", "check"), [
    (memory_as_it_lies, test_columns_to_come_count_nothing_whatever_lies_there),
    (hidden_by(all_columns), fits),
    (hidden_by(pads_too), decodes),
    (hidden_by(one_too_late), fits),
    (always_the_first_position, fits),
    (never_outdated, test_a_step_is_made_anew_where_its_memory_changes),
    (asks_for_the_column, asks_for_nothing),
    (hands_out_its_own_logits, test_logits_are_the_callers),
    (records_at_once, a_test(test_a_step_is_recorded_once_it_pays)),
    (looks_by_replays, test_values_are_looked_at_in_a_run_of_the_model),
    (rounds_by_autocast, test_autocast_is_left_to_a_run_of_the_model),
    (writes_as_it_comes, test_autocast_that_begins_between_two_steps),
    (holds_nothing, a_test(test_what_a_recorded_step_reads_stays)),
    (records_autocast, a_test(test_autocast_is_not_recorded)),
    (attends_to_all, fits),
    (attends_to_all, test_one_query_of_a_plain_run_attends_so_too),
    (forgets_the_scale, fits),
])  # fmt: skip
def test_what_is_broken_is_noticed(breaks: Callable[[Patch], None], check: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, RuntimeError)):
            check()
