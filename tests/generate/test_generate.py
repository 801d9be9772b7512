"""Generation beyond the ids: cache or none, stops, streams, captures, edits, context, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pellucid.generate import stepper as stepping

DRAWN = pl.Sampler(temperature=1.2, top_k=30)


def rows_of(out: pl.Generation) -> list[list[int]]:
    return [row.tolist() for row in out.ids]


# With a cache and without


@pytest.mark.parametrize("sampler", [None, DRAWN, pl.Sampler(temperature=0, repetition_penalty=1.5)], ids=repr)
@pytest.mark.parametrize("lengths", [(5,), (3, 9, 6)])
def test_with_and_without_a_cache(sampler: Any, lengths: tuple[int, ...], glass: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(*lengths)
    a, b = (glass.generate(rows, max_new_tokens=15, sampler=sampler, seed=3, use_cache=c) for c in (True, False))
    assert rows_of(a) == rows_of(b)
    for one, other in zip(a.logprobs, b.logprobs, strict=True):
        assert (one - other).abs().max() < 1e-5


def test_float64_with_and_without_a_cache(glass64: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(3, 9, 6)
    a, b = (glass64.generate(rows, max_new_tokens=15, use_cache=c) for c in (True, False))
    assert rows_of(a) == rows_of(b)
    assert (torch.stack(list(a.logprobs)) - torch.stack(list(b.logprobs))).abs().max() < 1e-12


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_a_batch_gives_what_its_rows_give(options: dict[str, Any], glass: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(3, 9, 6, 1)
    together = glass.generate(rows, max_new_tokens=12, end_ids=(11,), **options)
    alone = [r for row in rows for r in glass.generate([row], max_new_tokens=12, end_ids=(11,), **options).rows]
    assert [r.new.tolist() for r in together.rows] == [r.new.tolist() for r in alone]
    assert [r.stopped for r in together.rows] == [r.stopped for r in alone]


def test_a_common_beginning_runs_once(glass: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    beginning = support.some_ids(1, 30)[0].tolist()
    rows = [beginning + tail for tail in support.ragged_ids(2, 7, 1)]
    ran: list[int] = []
    transform = type(glass).transform
    monkeypatch.setattr(type(glass), "transform", lambda s, run, tap=None: ran.append(run.ids.numel())
                        or transform(s, run, tap))  # fmt: skip
    shared = glass.generate(rows, max_new_tokens=6)
    assert ran[:3] == [30, 21, 3]
    ran.clear()
    glass.generate(rows[:1], max_new_tokens=3, sampler=DRAWN, num_return_sequences=5)
    assert ran == [32, 5, 5]
    monkeypatch.setattr(stepping, "WORTH_SHARING", 1000)
    assert rows_of(shared) == rows_of(glass.generate(rows, max_new_tokens=6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"sampler": DRAWN, "seed": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_the_default_dtype_changes_nothing(
    dtype: torch.dtype, options: dict[str, Any], glass: pl.CkptedTransformer, request: pytest.FixtureRequest
) -> None:
    rows, default = support.ragged_ids(4, 7), torch.get_default_dtype()
    expected = glass.generate(rows, max_new_tokens=8, **options)
    request.addfinalizer(lambda: torch.set_default_dtype(default))
    torch.set_default_dtype(dtype)
    out = glass.generate(rows, max_new_tokens=8, **options)
    assert rows_of(out) == rows_of(expected)
    assert all(torch.equal(one, other) for one, other in zip(out.logprobs, expected.logprobs, strict=True))
    assert {row.dtype for row in out.logprobs} == {torch.float32}
    assert out.scores == expected.scores


# How texts end


def test_max_new_tokens_and_reasons(glass: pl.CkptedTransformer) -> None:
    out = glass.generate([[1, 2, 3]], max_new_tokens=4)
    assert out.ids.shape == (1, 7)
    assert out.stopped == ["length"]
    assert glass.generate([[1, 2, 3]], max_new_tokens=0).ids.tolist() == [[1, 2, 3]]
    end = int(out.ids[0, -2])
    out = glass.generate([[1, 2, 3]], max_new_tokens=9, end_ids=[end])
    assert (out.new_ids.tolist()[0][-1], out.stopped) == (end, ["end"])
    out = glass.generate([[1, 2, 3]], max_new_tokens=9, stop=end)
    assert (out.new_ids.tolist()[0][-1], out.stopped) == (end, ["stop"])


def test_each_row_has_its_own_end(glass: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(3, 9, 6, 2)
    free = glass.generate(rows, max_new_tokens=12)
    ends = [int(free.new_ids[0][2]), int(free.new_ids[2][5])]
    out = glass.generate(rows, max_new_tokens=12, end_ids=ends)
    for given, whole, reason in zip(out.new_ids, free.new_ids, out.stopped, strict=True):
        hits = [i for i, token in enumerate(whole.tolist()) if token in ends]
        assert given.tolist() == whole.tolist()[: hits[0] + 1 if hits else 12]
        assert reason == ("end" if hits else "length")
    assert isinstance(out.ids, list)
    assert [len(row) for row in out.logprobs] == [len(row) for row in out.new_ids]


def test_stop_strings_across_tokens() -> None:
    model = pl.load()
    free = model.generate("Once upon a time", max_new_tokens=30)
    story = free.text.removeprefix("Once upon a time")
    for stop in ("girl", "a little girl na", "y. S", "l"):
        out = model.generate("Once upon a time", max_new_tokens=30, stop=stop)
        new = out.text.removeprefix("Once upon a time")
        assert out.stopped == ["stop"]
        assert stop in new
        assert story.startswith(new)
        last = model.tokenizer.decode(out.new_ids[0, -1])
        assert stop not in new[: len(new) - len(last)], "it went on behind the string"
    assert "time" in "Once upon a time"
    out = model.generate("Once upon a time", max_new_tokens=5, stop=["time", "no such text", 4000])
    assert out.stopped == ["length"], "the prompt does not count"


def test_log_probabilities_are_the_models_own(glass: pl.CkptedTransformer) -> None:
    out = glass.generate([[5, 6, 7]], max_new_tokens=10, sampler=pl.Sampler(temperature=3, top_k=4), seed=1)
    expected = glass.logprobs(out.ids)[:, 2:]
    assert (out.logprobs - expected).abs().max() < 1e-5


# Streams


@pytest.mark.parametrize("rows", [1, 3])
def test_a_stream_gives_what_generate_gives(rows: int) -> None:
    model = pl.load()
    texts = ["Once upon a time", "Tom", "Lily and Max went"][:rows]
    sampler = pl.Sampler(temperature=1.5)
    out = model.generate(texts, max_new_tokens=25, sampler=sampler, seed=2)
    tokens = list(model.stream(texts, max_new_tokens=25, sampler=sampler, seed=2))
    for row, text in enumerate(texts):
        mine = [token for token in tokens if token.row == row]
        assert text + "".join(map(str, mine)) == out.texts[row]
        assert [token.id for token in mine] == out.new_ids[row].tolist()
        assert [token.logprob for token in mine] == out.logprobs[row].tolist()
        assert [token.stopped for token in mine][-1] == out.stopped[row]
        assert all(token.stopped is None for token in mine[:-1])


def test_a_stream_takes_the_edits_of_generate() -> None:
    model = support.glass(n_positions=32)
    edit = pl.Edit.zero("blocks.*.mlp.ckpt_mlp_out", pos=slice(1, None))
    out = model.generate([[1, 2]], max_new_tokens=9, edits=edit)
    assert out.new_ids.tolist() != model.generate([[1, 2]], max_new_tokens=9).new_ids.tolist()
    assert [token.id for token in model.stream([[1, 2]], max_new_tokens=9, edits=edit)] == out.new_ids[0].tolist()
    with pytest.raises(pl.EditError, match="never fired"):
        list(model.stream([[1, 2]], max_new_tokens=3, edits=pl.Edit.zero("blocks.0.resid_pre", pos=9)))


def test_a_stream_never_splits_a_character() -> None:
    model = pl.load()
    pieces = model.tokenizer.encode("snow ☃ é 漢字 👩‍👩‍👧 end")
    assert any("\ufffd" in model.tokenizer.decode([piece]) for piece in pieces), "characters of several tokens"
    from pellucid.generate.generation import TextStream

    for cut in range(1, len(pieces) + 1):
        stream = TextStream(model.tokenizer)
        shown = [stream.push(token) for token in pieces[:cut]]
        assert all("\ufffd" not in text for text in shown)
        assert "".join(shown) + stream.finish() == model.tokenizer.decode(pieces[:cut])


def test_bytes_that_are_no_character_do_not_stop_a_stream() -> None:
    model = pl.load()
    from pellucid.generate.generation import TextStream

    lone = model.tokenizer.encode("é")[:1]
    ids = [*lone, *lone, *model.tokenizer.encode(" and more text"), *lone]
    stream = TextStream(model.tokenizer)
    assert "".join(map(stream.push, ids)) + stream.finish() == model.tokenizer.decode(ids)


def test_a_stream_is_checked_before_its_first_token(glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError):
        glass.stream([[1, 2]], max_new_tokens=-1)
    stream = glass.stream([[1, 2]], max_new_tokens=50)
    first = list(itertools.islice(stream, 3))
    stream.close()
    assert [token.id for token in first] == glass.generate([[1, 2]], max_new_tokens=3).new_ids[0].tolist()
    assert list(glass.stream([[1, 2]], max_new_tokens=0)) == []


def test_gradients_are_not_switched_off_for_the_caller(glass: pl.CkptedTransformer) -> None:
    for _ in glass.stream([[1, 2]], max_new_tokens=2):
        assert torch.is_grad_enabled()
    assert not glass.generate([[1, 2]], max_new_tokens=2).logprobs.requires_grad


# Inside


@pytest.mark.every_pair
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("lengths", [(5,), (3, 9, 6)])
def test_captures_equal_one_run_over_the_text(
    lengths: tuple[int, ...], cached: bool, glass64: pl.CkptedTransformer
) -> None:
    rows = support.ragged_ids(*lengths)
    free = glass64.generate(rows, max_new_tokens=7, end_ids=(11,))
    out = glass64.generate(rows, max_new_tokens=7, end_ids=(11,), names=None, use_cache=cached)
    assert rows_of(out) == rows_of(free)
    ckpts = out.ckpts
    assert ckpts is not None
    assert list(ckpts) == list(glass64.ckpt_names)
    assert [row.tolist() for row in ckpts.batch.rows()] == rows_of(out)
    _, expected = glass64.run_with_ckpts(ckpts.batch)
    mask = ckpts.batch.mask
    for name, value in ckpts.items():
        assert value.shape == expected[name].shape, name
        if name.endswith(("scores", "pattern")):  # [B, H, Pq, Pk] -> the real queries and keys
            pairs = (mask[:, :, None] & mask[:, None, :])[:, None].expand_as(value)
            gap = (value - expected[name])[pairs]
        else:
            gap = (value - expected[name])[mask]
        assert gap.abs().max() < 1e-12, name


def test_prompts_alone_are_captured_and_edited(glass: pl.CkptedTransformer) -> None:
    name, rows, edit = "blocks.1.resid_post", support.ragged_ids(3, 5), pl.Edit.zero("blocks.0.mlp.ckpt_mlp_out")
    for edits in ([], [edit]):
        out = glass.generate(rows, max_new_tokens=0, names=name, edits=edits)
        _, expected = glass.run_with_ckpts(rows, edits=edits)
        assert out.ckpts is not None
        assert (out.ckpts[name] - expected[name])[out.ckpts.batch.mask].abs().max() < 1e-5
        assert [row.new.tolist() for row in out.rows] == [[], []]


def test_captures_of_some_names(glass: pl.CkptedTransformer) -> None:
    out = glass.generate([[1, 2, 3]], max_new_tokens=4, names="blocks.*.resid_post")
    assert out.ckpts is not None
    assert [tuple(v.shape) for v in out.ckpts.values()] == [(1, 7, 48)] * 3
    assert out.ckpts.to_xarray()["resid_post"].dims == ("layer", "batch", "pos", "d_model")
    assert glass.generate([[1, 2, 3]], max_new_tokens=4).ckpts is None


EDITS = {
    "everywhere": pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[2]),
    "in the prompt": pl.Edit.zero("blocks.0.mlp.ckpt_mlp_out", pos=[3, 4]),
    "in what follows": pl.Edit.scale("blocks.2.resid_post", 3.0, pos=[9, 11]),
    "on both sides": pl.Edit.add("blocks.0.resid_mid", torch.arange(3.0)[None, :, None] * 2, pos=[4, 6, 10]),
    "from a column on": pl.Edit.add("blocks.1.resid_pre", 1.5, pos=slice(7, None)),
    "a head's pattern": pl.Edit.scale("blocks.1.attn.ckpt_pattern", 1.7, heads=[1], pos=[4, 8]),
    "keys": pl.Edit.scale("blocks.0.attn.ckpt_k", 2.0, pos=[5, 9], heads=[0]),
    "a function": pl.Edit.apply("blocks.1.mlp.ckpt_post", lambda part: part.clamp(min=0.1)),
}


@pytest.mark.parametrize("lengths", [(6,), (6, 3)])
@pytest.mark.parametrize("name", EDITS)
def test_edits_count_columns_of_the_text(name: str, lengths: tuple[int, ...], glass64: pl.CkptedTransformer) -> None:
    rows, edit = support.ragged_ids(*lengths), EDITS[name]
    sites = "blocks.*.resid_post"
    a, b = (
        glass64.generate(rows, max_new_tokens=8, edits=edit, names=sites, use_cache=cached) for cached in (True, False)
    )
    assert rows_of(a) == rows_of(b)
    assert a.ckpts is not None
    assert b.ckpts is not None
    expected = glass64.run_with_ckpts(a.ckpts.batch, names=sites, edits=edit)[1]
    for site, value in a.ckpts.items():
        mask = a.ckpts.batch.mask
        assert (value - b.ckpts[site])[mask].abs().max() < 1e-11, site
        assert (value - expected[site])[mask].abs().max() < 1e-11, site
    assert a.ckpts.fired[edit] >= 1


def test_patches_count_columns_too(glass64: pl.CkptedTransformer) -> None:
    other = glass64.run_with_ckpts(support.some_ids(1, 14, seed=8), names="blocks.1.resid_mid")[1]
    for pos in ([2, 7, 9], None):
        edit = pl.Edit.patch("blocks.1.resid_mid", other, pos=pos)
        a, b = (glass64.generate(support.some_ids(1, 6), max_new_tokens=8, edits=edit, use_cache=c) for c in (1, 0))
        assert rows_of(a) == rows_of(b)
        assert rows_of(a) != rows_of(glass64.generate(support.some_ids(1, 6), max_new_tokens=8))


def test_edits_that_cannot_be_made_piece_by_piece(glass: pl.CkptedTransformer) -> None:
    for edit, code in (
        (pl.Edit.mean_ablate("blocks.0.mlp.ckpt_post"), "edit-needs-the-text"),
        (pl.Edit.zero("blocks.0.mlp.ckpt_post", pos=[40]), "edit-never-fired"),
        (pl.Edit.zero("blocks.0.mlp.ckpt_post", pos=-1), "negative-position"),
        (pl.Edit.zero("blocks.0.mlp.ckpt_post", pos=slice(-3, None)), "negative-position"),
    ):
        with pytest.raises(pl.PellucidError) as caught:
            glass.generate([[1, 2, 3]], max_new_tokens=4, edits=edit)
        assert caught.value.code == code
    reference = glass.run_with_ckpts([[5, 6, 7]], names="blocks.0.mlp.ckpt_post")[1]
    glass.generate([[1, 2]], max_new_tokens=3, edits=pl.Edit.mean_ablate("blocks.0.mlp.ckpt_post", reference))


def test_looking_does_not_change_what_is_generated(glass: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(6, 3)
    free = glass.generate(rows, max_new_tokens=10, sampler=DRAWN, seed=1)
    seen = glass.generate(rows, max_new_tokens=10, sampler=DRAWN, seed=1, names=None)
    assert rows_of(free) == rows_of(seen)
    assert all(torch.equal(a, b) for a, b in zip(free.logprobs, seen.logprobs, strict=True))


# The end of the context


def test_too_long_is_refused_before_anything_runs(glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError, match="at most 64 together") as caught:
        glass.generate(support.some_ids(1, 60), max_new_tokens=5)
    assert "at most 4 new tokens" in caught.value.remedy
    assert glass.generate(support.some_ids(1, 60), max_new_tokens=4).ids.shape == (1, 64)


@pytest.mark.parametrize("cached", [True, False])
def test_sliding(cached: bool, glass: pl.CkptedTransformer) -> None:
    ids = support.some_ids(1, 60)
    out = glass.generate(ids, max_new_tokens=10, overflow="slide", use_cache=cached)
    text = ids
    for _ in range(10):  # the documented meaning, by hand
        text = torch.cat([text, glass(text[:, -64:])[:, -1:].argmax(-1)], 1)
    assert torch.equal(out.ids, text)
    rows = support.ragged_ids(60, 20)
    both = glass.generate(rows, max_new_tokens=10, overflow="slide", use_cache=cached)
    alone = [glass.generate([row], max_new_tokens=10, overflow="slide").new_ids[0].tolist() for row in rows]
    assert both.new_ids.tolist() == alone
    with pytest.raises(pl.InputError) as caught:
        glass.generate(ids, max_new_tokens=10, overflow="slide", names="blocks.0.resid_pre")
    assert caught.value.code == "look-and-slide"


# What is refused


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_new_tokens": -1}, "max-new-tokens"),
        ({"max_new_tokens": 2.5}, "max-new-tokens"),
        ({"stop": ""}, "empty-stop"),
        ({"stop": ["a", ""]}, "empty-stop"),
        ({"stop": "text"}, "no-tokenizer"),
        ({"stop": 211}, "id-out-of-range"),
        ({"end_ids": [5, 9999]}, "id-out-of-range"),
        ({"end_ids": [-1]}, "id-out-of-range"),
        ({"overflow": "wrap"}, "overflow"),
        ({"num_beams": 0}, "return-sequences"),
        ({"num_beams": 2**16 + 1}, "return-sequences"),
        ({"num_return_sequences": 0}, "return-sequences"),
        ({"num_return_sequences": 2}, "return-sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "return-sequences"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early-stopping"),
        ({"num_beams": 2, "early_stopping": 1}, "early-stopping"),
        ({"early_stopping": True}, "early-stopping"),
        ({"length_penalty": 2.0}, "length-penalty"),
        ({"num_beams": 2, "names": "**"}, "look-and-beams"),
        ({"seed": "zero"}, "seed"),
        ({"names": "blocks.9.resid_pre"}, "unknown-checkpoint"),
        ({"edits": "zero"}, "edit-kind"),
        ({"sampler": pl.Sampler(suppress_tokens=(500,))}, "id-out-of-range"),
        ({"sampler": pl.Sampler(temperature=1e-30, frequency_penalty=-1e30)}, "sampler-setting"),
        ({"sampler": pl.Sampler(temperature=1e-30, frequency_penalty=-1e30), "num_beams": 2}, "sampler-setting"),
        ({"sampler": pl.Sampler(suppress_tokens=tuple(range(211)))}, "nothing-left"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], code: str, glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.PellucidError) as caught:
        glass.generate([[1, 2, 3]], **{"max_new_tokens": 3, **options})
    assert caught.value.code == code
    assert caught.value.remedy


def test_a_search_that_finds_fewer_texts_than_are_asked_for_says_so(glass: pl.CkptedTransformer) -> None:
    """Everything but one token is ruled out, so the other beams have nothing to continue with."""
    only = pl.Sampler(temperature=0, forced_eos_token_id=4)
    assert glass.generate([[1, 2], [3]], max_new_tokens=1, num_beams=2, sampler=only).new_ids[1].tolist() == [4]
    with pytest.raises(pl.InputError, match="2 beams found 1 of 2 texts for prompt 0") as caught:
        glass.generate([[1, 2], [3]], max_new_tokens=1, num_beams=2, num_return_sequences=2, sampler=only)
    assert caught.value.code == "return-sequences"
    assert "num_return_sequences=" in caught.value.remedy


def test_prompts_that_cannot_be(glass: pl.CkptedTransformer) -> None:
    for prompt, code in (([[]], "empty-text"), (support.some_ids(1, 65), "too-long"), ([[999]], "id-out-of-range")):
        with pytest.raises(pl.InputError) as caught:
            glass.generate(prompt, max_new_tokens=1)
        assert caught.value.code == code
    with pytest.raises(pl.InputError):
        pl.load().generate("")


@pytest.mark.parametrize(("name", "belongs"), [
    ("temprature", "sampler=pl.Sampler(temperature=...)"), ("temperature", "pl.Sampler(temperature"),
    ("max_length", "max_new_tokens="),
])  # fmt: skip
def test_arguments_that_do_not_exist(glass: pl.CkptedTransformer, name: str, belongs: str) -> None:
    with pytest.raises(TypeError) as caught:
        glass.generate([[1]], **{name: 1})
    assert isinstance(caught.value, pl.UnknownArgumentError)
    assert belongs in caught.value.remedy
    with pytest.raises(pl.UnknownArgumentError):
        glass.stream([[1]], **{name: 1})


@pytest.mark.parametrize(("site", "name"), [
    ("blocks.1.mlp.W_in", "blocks.1.mlp.ckpt_pre"), ("ln_final.b", "ln_final.ckpt_normalized"),
    ("blocks.2.attn.b_V", "blocks.2.attn.ckpt_v"), ("embed.W_E", "ckpt_embed"),
])  # fmt: skip
def test_nan_is_traced_to_where_it_begins(site: str, name: str) -> None:
    model = support.glass()
    with torch.no_grad():
        model.parameter(site).view(-1)[:].mul_(torch.nan)
    for options in ({}, {"num_beams": 2}, {"use_cache": False}):
        with pytest.raises(pl.NumericsError, match=f"step 0 hold NaN, which comes first at {name}") as caught:
            model.generate([[1, 2, 3], [4]], max_new_tokens=3, **options)
        assert caught.value.code == "nan-logits"


def test_nan_in_a_later_step() -> None:
    model = support.glass(eos_token_id=None)
    with torch.no_grad():
        model.pos_embed.W_pos[5] = torch.nan
    with pytest.raises(pl.NumericsError, match="step 3 hold NaN, which comes first at ckpt_pos_embed"):
        model.generate([[1, 2, 3]], max_new_tokens=8)


# The result


def test_shapes_of_the_result() -> None:
    model = pl.load()
    one = model.generate("Once upon", max_new_tokens=3)
    assert isinstance(one.text, str)
    assert one.ids.shape == (1, 5)
    assert one.new_ids.shape == one.logprobs.shape == (1, 3)
    flat = model.generate(model.tokenizer.encode("Once upon"), max_new_tokens=3)
    assert flat.text == one.text
    several = model.generate(["Once upon"], max_new_tokens=3)
    assert several.text == [one.text]
    drawn = model.generate("Once upon", max_new_tokens=3, sampler=DRAWN, seed=0, num_return_sequences=2)
    assert isinstance(drawn.text, list)
    assert len(drawn) == 2
    assert one.scores is None
    assert repr(one).startswith("Generation of 1 text\n  'Once upon")
    assert str(one) == one.text
    model.tokenizer = None
    assert model.generate([[1, 2]], max_new_tokens=1).texts[0].startswith("1 2 ")


def test_right_padded_and_masked_prompts(glass: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(6, 3)
    expected = rows_of(glass.generate(rows, max_new_tokens=5))
    assert rows_of(glass.generate(glass.tokenize(rows, padding_side="right"), max_new_tokens=5)) == expected
    ids = torch.tensor([rows[0], [0, 0, 0, *rows[1]]])
    batch = glass.tokenize(ids, mask=torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]]))
    assert rows_of(glass.generate(batch, max_new_tokens=5)) == expected


def test_more_texts_than_any_memory_holds_are_refused(glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError) as caught:
        glass.generate([[1, 2]], max_new_tokens=1, sampler=pl.Sampler(), seed=0, num_return_sequences=10**12)
    assert caught.value.code == "return-sequences"
    assert "65536" in str(caught.value)
