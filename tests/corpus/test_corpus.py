"""The loop over a corpus: every text once, in order, into any sink; and what a sink is told when it resumes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid import corpus
from pellucid.corpus.sink import Progress, Sink, feed

TEXTS = support.ragged_ids(5, 2, 7, 3, 1)
NAME = "blocks.1.resid_post"


class Values(Sink):
    """Stores the rows of one checkpoint, a list for each text: what a store on disk will do."""

    def __init__(self) -> None:
        self.rows: dict[int, torch.Tensor] = {}
        self.done = Progress()
        self.calls: list[str] = []

    @property
    def captures(self) -> Collection[str]:
        return [NAME]

    def resume(self) -> Progress:
        return Progress(self.done.texts, self.done.digest)

    def take(self, ckpts: pl.ActivationCkpts, texts: range) -> None:
        self.calls.append(f"{texts[0]}-{texts[-1]}")
        assert list(ckpts) == [NAME], "nothing else is captured"
        for row, number in enumerate(texts):
            self.rows[number] = ckpts[NAME][row, ckpts.batch.mask[row]].clone()

    def keep(self, done: Progress, *, last: bool) -> None:
        self.calls.append("last" if last else f"{done.texts} read")
        self.done = Progress(done.texts, done.digest)


def test_a_sink_of_values_gets_every_text_once_in_order() -> None:
    model, sink = support.glass(), Values()
    done = feed(model, iter(TEXTS), sink, batch_size=2)
    assert sink.calls == ["0-1", "2 read", "2-3", "4 read", "4-4", "5 read", "last"]
    assert done == sink.done
    assert done.texts == len(TEXTS)
    for number, text in enumerate(TEXTS):
        _, alone = model.run_with_ckpts([text], names=NAME)
        assert torch.allclose(sink.rows[number], alone[NAME][0], rtol=1e-4, atol=1e-5)


def test_an_interrupted_sink_goes_on_with_the_next_text() -> None:
    model, sink = support.glass(), Values()
    feed(model, TEXTS[:2], sink, batch_size=2)
    before = sink.calls.copy()
    feed(model, TEXTS, sink, batch_size=2)
    assert sink.calls[len(before) :] == ["2-3", "4 read", "4-4", "5 read", "last"]
    assert sorted(sink.rows) == list(range(len(TEXTS)))
    with pytest.raises(pl.InputError, match="the first 5 texts are not those") as caught:
        feed(model, [*TEXTS[1:], TEXTS[0]], sink, batch_size=2)
    assert caught.value.code == "stream-misfit"


class Counting:
    """A tokenizer that counts what it encodes."""

    def __init__(self, plain: Any) -> None:
        self.plain, self.encoded = plain, list[str]()

    def encode(self, text: str, *given: Any, **options: Any) -> Any:
        self.encoded.append(text)
        return self.plain.encode(text, *given, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


def test_each_text_is_tokenized_and_run_once_however_many_statistics_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = pl.load(), ["Once upon a time", "The end", "A cat sat on the mat"]
    counting = Counting(model.tokenizer)
    monkeypatch.setattr(model, "tokenizer", counting)
    runs: list[Any] = []
    hook = model.register_forward_pre_hook(lambda *given: runs.append(given))
    statistics = [
        pl.measure.Moments("resid_post"),
        pl.measure.Covariance("attn.ckpt_z"),
        pl.measure.Autoregression("resid_mid"),
    ]
    pl.measure.stream(model, texts, statistics, batch_size=2)
    hook.remove()
    assert counting.encoded == texts
    assert len(runs) == 2


def test_an_error_names_the_call_and_the_texts() -> None:
    with pytest.raises(pl.InputError, match=r"^capture, texts 2 to 3: ") as caught:
        feed(support.glass(), [[1], [2], [3], []], Values(), batch_size=2, by="capture")
    assert caught.value.code == "empty-text"
    for texts in ("a text", 5, {"text": [1, 2]}):
        with pytest.raises(pl.InputError, match=r"^capture: texts=") as caught:
            feed(support.glass(), texts, Values(), batch_size=2, by="capture")  # type: ignore[arg-type]
        assert caught.value.code == "texts-kind"
    with pytest.raises(pl.InputError, match="text 0: set, expected a text or a row of ids"):
        corpus.sink.Progress().add({1, 2})


def test_no_texts_are_an_error_and_nothing_is_kept() -> None:
    sink = Values()
    with pytest.raises(pl.InputError) as caught:
        feed(support.glass(), [], sink, batch_size=2)
    assert (caught.value.code, sink.calls) == ("no-texts", [])


@pytest.mark.parametrize("missing", ["captures", "take"])
def test_a_sink_without_one_of_its_parts_cannot_be_made(missing: str) -> None:
    parts = {name: part for name, part in vars(Values).items() if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Partial", (Sink,), parts)()


def test_a_sink_need_not_keep_anything() -> None:
    parts = {name: part for name, part in vars(Values).items() if name not in ("resume", "keep")}
    sink = type("Forgetful", (Sink,), parts)()
    feed(support.glass(), [[1, 2], [3]], sink, batch_size=1)
    assert len(sink.calls) == 2


MUTANTS = {
    "texts are read from the beginning again": (
        corpus.sink, "texts_after", lambda texts, done: iter(texts),
        test_an_interrupted_sink_goes_on_with_the_next_text,
    ),
    "texts in another order": (
        corpus.sink, "texts_after", lambda texts, done: reversed(list(texts)),
        test_a_sink_of_values_gets_every_text_once_in_order,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    must_be_noticed(MUTANTS[name])
