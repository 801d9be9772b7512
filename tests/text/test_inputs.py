"""One door for inputs: every verb takes whatever `tokenize` takes, with a mask beside ids, and refuses alike."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.text import ids as ids_module

END = 9
PADDED = torch.tensor([[END, END, 5, 6], [7, 8, 1, 2]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

Verb = Callable[..., Any]


@pytest.fixture(scope="module")
def model() -> pl.CkptedTransformer:
    return support.glass(eos_token_id=END, bos_token_id=END)


def _tensors(found: Any) -> Any:
    """What a verb gives, as something that compares."""
    if isinstance(found, tuple):
        return [found[0], *found[1].values()]
    return [found] if isinstance(found, Tensor) else found


VERBS: dict[str, Callable[[pl.CkptedTransformer], Verb]] = {
    "forward": lambda model: model,
    "logprobs": lambda model: model.logprobs,
    "loss": lambda model: model.loss,
    "run_with_ckpts": lambda model: model.run_with_ckpts,
    "next_token_logits": lambda model: model.next_token_logits,
    "generate": lambda model: lambda inputs, **more: list(model.generate(inputs, max_new_tokens=2, **more).new_ids),
    "stream": lambda model: lambda inputs, **more: [t.id for t in model.stream(inputs, max_new_tokens=2, **more)],
    "tokenize": lambda model: lambda inputs, **more: [model.tokenize(inputs, **more).positions],
    "estimate": lambda model: lambda inputs, **more: pl.estimate(model, inputs, **more).nbytes,
    "estimate_generation": lambda model: lambda inputs, **more: pl.estimate_generation(model, inputs, **more).cache,
}  # fmt: skip

FILLED = (pl.Sampler, pl.HubOptions, pl.TransformerConfig, pl.LlamaConfig, pl.GPTNeoXConfig, pl.KeyValueCache)
"""Classes that a caller gives values, not what a verb returns."""

WITH_A_MASK: dict[str, tuple[Any, Any]] = {
    "tensors": (PADDED, MASK),
    "tensors of other dtypes": (PADDED.int(), MASK.bool()),
    "arrays": (PADDED.numpy(), MASK.numpy()),
    "arrays of other dtypes": (PADDED.numpy().astype(np.uint16), MASK.numpy().astype(np.float32)),
    "arrays of another byte order": (PADDED.numpy().astype(">i4"), MASK.numpy() == 1),
    "lists": (PADDED.tolist(), MASK.tolist()),
    "lists of tensors": (list(PADDED), list(MASK)),
    "lists of arrays": (list(PADDED.numpy()), list(MASK.numpy())),
    "a tensor and lists": (PADDED, MASK.bool().tolist()),
    "a mapping": ({"input_ids": PADDED, "attention_mask": MASK}, None),
    "a mapping of lists": ({"input_ids": PADDED.tolist(), "attention_mask": MASK.tolist()}, None),
    "a mapping whose mask is replaced": ({"input_ids": PADDED, "attention_mask": torch.ones(2, 4)}, MASK),
}


@pytest.mark.parametrize("way", WITH_A_MASK)
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_takes_a_mask_beside_ids(model: pl.CkptedTransformer, verb: str, way: str) -> None:
    call, (given, mask) = VERBS[verb](model), WITH_A_MASK[way]
    found = _tensors(call(given, **({} if mask is None else {"mask": mask})))
    expected = _tensors(call(model.tokenize([[5, 6], [7, 8, 1, 2]])))
    assert len(found) == len(expected) if isinstance(found, list) else found == expected
    if isinstance(found, list):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == theirs if isinstance(ours, int) else torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_padded_ids_without_a_mask(model: pl.CkptedTransformer, verb: str) -> None:
    for given in (PADDED, PADDED.tolist(), {"input_ids": PADDED}, model.tokenize([[1], [2, 3]]).ids):
        with pytest.raises(pl.InputError) as caught:
            VERBS[verb](model)(given)
        assert caught.value.code == "pad-without-mask"


ROWS: dict[str, tuple[Any, list[list[int]]]] = {
    "numbers of tensors": ([torch.tensor(1), torch.tensor(2)], [[1, 2]]),
    "numbers of an array": (list(np.array([1, 2])), [[1, 2]]),
    "rows of arrays": ([np.array([1, 2]), np.array([3])], [[1, 2], [3]]),
    "rows of tensors": ([torch.tensor([1, 2]), torch.tensor([3, 4])], [[1, 2], [3, 4]]),
    "what a tokenizer returned for each text": ([torch.tensor([[1, 2]]), torch.tensor([[3]])], [[1, 2], [3]]),
    "a tuple": ((1, 2), [[1, 2]]),
    "a range": (range(1, 4), [[1, 2, 3]]),
    "an array of rows": (np.array([[1, 2], [3]], dtype=object), [[1, 2], [3]]),
    "a row in a mapping": ({"input_ids": [1, 2, 3]}, [[1, 2, 3]]),
    "ragged rows in a mapping": ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]]}, [[1, 2], [3]]),
    "ragged rows with a pad": ({"input_ids": [[9, 1, 2], [3]], "attention_mask": [[0, 1, 1], [1]]}, [[1, 2], [3]]),
}


@pytest.mark.parametrize("way", ROWS)
def test_rows_are_read_from_whatever_holds_them(model: pl.CkptedTransformer, way: str) -> None:
    given, expected = ROWS[way]
    assert [row.tolist() for row in model.tokenize(given).rows()] == expected


def test_numbers_of_several_libraries_stand_in_one_row(model: pl.CkptedTransformer) -> None:
    mixed = [np.int8(3), np.uint64(2), 5, torch.tensor(7), torch.tensor(1, dtype=torch.uint8), np.array(4)]
    assert model.tokenize(mixed).ids.tolist() == [[3, 2, 5, 7, 1, 4]]
    assert model.tokenize([mixed, [1]]).ids[0].tolist() == [3, 2, 5, 7, 1, 4]


def test_a_batch_is_no_memory_of_the_callers(model: pl.CkptedTransformer) -> None:
    for given in (torch.tensor([[1, 2]]), np.array([[1, 2]])):
        batch = model.tokenize(given)
        given[0, 0] = 3
        assert batch.ids.tolist() == [[1, 2]]


def test_one_row_gives_one_text(model: pl.CkptedTransformer) -> None:
    for one in ([1, 2], np.array([1, 2]), torch.tensor([1, 2]), (1, 2), {"input_ids": [1, 2]}, [np.int64(1), 2]):
        assert isinstance(model.generate(one, max_new_tokens=1).text, str)
    for several in ([[1, 2]], {"input_ids": [[1, 2]]}, torch.tensor([[1, 2]])):
        assert isinstance(model.generate(several, max_new_tokens=1).text, list)


@pytest.mark.parametrize(("given", "said"), [
    ({"input_ids": [1], "token_type_ids": [0]}, "return_token_type_ids=False"),
    ({"input_ids": [1], "labels": [1]}, "model.loss(inputs)"),
    ({"input_ids": [1], "position_ids": [0]}, "positions follow from the mask"),
    ({"input_ids": [1], "inputs_embeds": [0]}, "'inputs_embeds'"),
    ({"attention_mask": [1]}, "expected 'input_ids'"),
])  # fmt: skip
def test_what_a_mapping_may_not_hold(model: pl.CkptedTransformer, given: dict[str, Any], said: str) -> None:
    with pytest.raises(pl.InputError) as caught:
        model(given)
    assert said in str(caught.value)
    kept = {key: value for key, value in given.items() if key in ("input_ids", "attention_mask")}
    assert "input_ids" not in kept or model(kept).shape == (1, 1, 211), "the remedy works"


def test_what_a_tokenizer_returns_beside_them_is_left_alone(model: pl.CkptedTransformer) -> None:
    more = {"special_tokens_mask": [0, 0], "offset_mapping": [(0, 1), (1, 2)], "length": [2], "token_type_ids": None}
    assert model.tokenize({"input_ids": [1, 2], **more}).ids.tolist() == [[1, 2]]


@pytest.mark.parametrize("form", [None, "np", "pt"])
def test_encodings_of_transformers(gpt2_tokenizer_folder: Any, form: str | None) -> None:
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(str(gpt2_tokenizer_folder / "vocab.json"), str(gpt2_tokenizer_folder / "merges.txt"))
    theirs.pad_token = theirs.eos_token
    model = support.glass(vocab_size=50257, eos_token_id=50256, n_layer=1)
    texts = ["a cat", "a cat sat on the mat"]
    for side in ("left", "right"):
        theirs.padding_side = side
        encoded = theirs(texts, padding=True, return_tensors=form)
        found = model.tokenize(encoded)
        assert [row.tolist() for row in found.rows()] == [theirs.encode(text) for text in texts]
        with pytest.raises(pl.InputError) as caught:
            model(encoded["input_ids"])
        assert caught.value.code == "pad-without-mask"
        assert torch.equal(model.tokenize(encoded["input_ids"], mask=encoded["attention_mask"]).mask, found.mask)


# Arguments of other libraries


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("word", "said"), [
    ("attention_mask", "mask="), ("input_ids", "first"), ("position_ids", "mask="), ("labels", "model.loss"),
    ("return_type", "model.loss"), ("prepend_bos", "bos_token_id"), ("names_filter", "names="), ("mst", "mask"),
])  # fmt: skip
def test_arguments_of_other_libraries_are_answered(
    model: pl.CkptedTransformer, verb: str, word: str, said: str
) -> None:
    if word == "mst" and verb in ("generate", "stream", "estimate", "estimate_generation"):
        return  # the nearest words of these are others
    with pytest.raises(pl.UnknownArgumentError) as caught:
        VERBS[verb](model)([1, 2], **{word: 1})
    assert caught.value.code == "unknown-argument"
    assert said in caught.value.remedy
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", [
    name for name in pl.__all__ if inspect.isfunction(getattr(pl, name)) or getattr(pl, name) in FILLED
])  # fmt: skip
def test_the_packages_own_calls_answer_a_misspelt_argument(name: str) -> None:
    """Every function of the package, and every class that a caller fills: by the name, its near words, or the list."""
    call = getattr(pl, name)
    known = [word for word in inspect.signature(call).parameters if word != "self"]
    for word, said in ((f"{known[-1]}s", f"'{known[-1]}'"), ("zzzzzzz", f"It takes {', '.join(known)}")):
        with pytest.raises(pl.UnknownArgumentError, match=rf"^{name}: {word}= is not one of") as caught:
            call(**{word: 1})
        assert said in caught.value.remedy


@pytest.mark.parametrize(("call", "said"), [
    (lambda m: pl.Sampler(temp=3), "Pass temperature="),  # pyright: ignore[reportCallIssue]
    (lambda m: pl.Sampler(seed=3), "model.generate(text, seed=...)"),  # pyright: ignore[reportCallIssue]
    (lambda m: pl.compare(m, m, text="a"), "Pass inputs="),
    (lambda m: pl.compare(m, m, atol=1e-4), "float64"),
    (lambda m: m.save_pretrained("folder", safe_serialization=True), "Leave it out"),
    (lambda m: pl.TransformerConfig(n_layers=2), "'n_layer'"),  # pyright: ignore[reportCallIssue]
])  # fmt: skip
def test_other_words_for_them(model: pl.CkptedTransformer, call: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(pl.UnknownArgumentError) as caught:
        call(model)
    assert said in caught.value.remedy


def test_a_mask_without_its_name_is_no_tap(model: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError) as caught:
        model(PADDED, MASK)
    assert "mask=" in caught.value.remedy


def test_ids_of_a_padded_batch_are_known_whatever_fills_it() -> None:
    model = support.glass(n_layer=1)  # without an end id, its pads are 0, which is a token like others
    for side in ("left", "right"):
        batch = model.tokenize([[1, 2], [3, 4, 5]], padding_side=side)
        with pytest.raises(pl.InputError) as caught:
            model(batch.ids)
        assert "Pass the batch itself" in caught.value.remedy
        assert model(batch).shape == model(batch.ids, mask=batch.mask).shape == (2, 3, 211)
    assert model(torch.tensor([[0, 0, 1], [1, 2, 3]])).shape == (2, 3, 211)
    assert model(model.tokenize([[1, 2], [3, 4]]).ids).shape == (2, 2, 211), "a batch without pads"


def test_generated_ids_are_text_also_where_one_of_them_ends() -> None:
    model = support.glass(eos_token_id=END)
    first = model.generate([[1, 2], [3, 4]], max_new_tokens=1, end_ids=()).ids
    ending = support.glass(eos_token_id=int(first[0, -1]))
    out = ending.generate([[1, 2], [3, 4]], max_new_tokens=1)
    assert out.stopped == ["end", "length"]
    assert ending(out.ids).shape == (2, 3, 211)
    with pytest.raises(pl.InputError):
        ending(out.ids.clone())


def test_texts_and_ragged_rows_hold_what_they_hold() -> None:
    model = pl.load()
    end = model.config.eos_token_id
    assert [len(row) for row in model.tokenize(["<|endoftext|><|endoftext|>a", "The end"]).rows()] == [3, 2]
    assert [row.tolist() for row in model.tokenize([[end, end, 1], [2]]).rows()] == [[end, end, 1], [2]]


def test_comparing_on_texts_with_equally_many_pads(model: pl.CkptedTransformer) -> None:
    given = {"input_ids": [[END, 1, 2], [3, 4, END]], "attention_mask": [[0, 1, 1], [1, 1, 0]]}
    assert pl.compare(model, support.glass(), inputs=given).verdict == "identical"


TEXTS = ["Once upon", "a time"]

OF_TEXTS: dict[str, Any] = {
    "a tuple": tuple(TEXTS),
    "a deque": deque(TEXTS),
    "an array": np.array(TEXTS),
    "an array of objects": np.array(TEXTS, dtype=object),
    "a column of a table": pd.Series(TEXTS),
    "a column of categories": pd.Series(TEXTS, dtype="category"),
    "an index": pd.Index(TEXTS),
    "a list of NumPy's strings": list(np.array(TEXTS)),
}

OF_IDS: dict[str, Any] = {
    "a column of a table": pd.Series([1, 2, 3]),
    "a table": pd.DataFrame([[1, 2, 3]]),
    "a column in a mapping": {"input_ids": pd.Series([1, 2, 3])},
    "a column in a list": [pd.Series([1, 2, 3])],
    "a range": range(1, 4),
    "an array of which no entry is masked": np.ma.array([1, 2, 3]),
}


@pytest.mark.parametrize("way", OF_TEXTS)
def test_texts_are_taken_from_whatever_holds_them_in_order(way: str) -> None:
    model = pl.load()
    assert torch.equal(model.tokenize(OF_TEXTS[way]).ids, model.tokenize(TEXTS).ids)
    assert model.generate(OF_TEXTS[way], max_new_tokens=2).text == model.generate(TEXTS, max_new_tokens=2).text


@pytest.mark.parametrize("way", OF_IDS)
def test_ids_are_taken_from_whatever_holds_them_in_order(way: str, model: pl.CkptedTransformer) -> None:
    assert model.tokenize(OF_IDS[way]).ids.tolist() == [[1, 2, 3]]


def test_one_text_of_numpys_is_one_text() -> None:
    model = pl.load()
    for text in (np.str_(TEXTS[0]), np.array(TEXTS[0])):
        assert model.generate(text, max_new_tokens=2).text == model.generate(TEXTS[0], max_new_tokens=2).text


def test_a_mask_comes_from_a_column_as_well(model: pl.CkptedTransformer) -> None:
    batch = model.tokenize([END, 5, 6], mask=pd.Series([0, 1, 1]))
    assert [row.tolist() for row in batch.rows()] == [[5, 6]]


# Mutants: each check must fail on what is broken


@pytest.mark.parametrize("mutant", [
    (pl.Batch, "__post_init__", lambda self: None, test_ids_of_a_padded_batch_are_known_whatever_fills_it),
    (ids_module, "opened", lambda inputs: inputs.tolist()[:1] if isinstance(inputs, np.ndarray) else inputs,
     lambda: test_texts_are_taken_from_whatever_holds_them_in_order("an array")),
    (ids_module, "is_flat", lambda inputs: False, lambda: test_one_row_gives_one_text(support.glass())),
])  # fmt: skip
def test_what_is_broken_is_noticed(mutant: Any) -> None:
    must_be_noticed(mutant)


@pytest.mark.parametrize("ids", [[2**63], [[1, 2], [10**30, 2]], [-(10**30)]])
def test_ids_of_more_than_64_bits_are_told_in_plain_words(ids: Any, glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError, match="64 bits cannot hold one of them") as caught:
        glass(ids)
    assert caught.value.code == "ids-dtype"


def test_a_batch_does_not_follow_the_callers_tensor(tiny: pl.CkptedTransformer):
    ids, mask = support.ROW.clone(), torch.ones_like(support.ROW, dtype=torch.bool)
    batch = tiny.tokenize(ids, mask=mask)
    ids[0, 0], mask[0, 0] = 7, False
    assert batch.ids[0, 0] == 1
    assert batch.mask.all()


def test_a_mask_beside_a_batch_is_refused(tiny: pl.CkptedTransformer):
    batch = tiny.tokenize(support.ROW)
    with pytest.raises(pl.InputError):
        tiny.tokenize(batch, mask=torch.ones_like(support.ROW))


def test_what_a_tokenizer_returns_unpadded_is_padded_here(tiny: pl.CkptedTransformer):
    batch = tiny.tokenize({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]]})
    assert batch.ids.shape == (2, 2)
    assert batch.mask.tolist() == [[True, True], [False, True]]


def test_positions_of_a_batch_made_by_hand_are_whole_numbers_of_any_kind(tiny: pl.CkptedTransformer):
    batch = tiny.tokenize([[1, 2], [3]])
    for dtype in (torch.uint8, torch.int32, torch.uint16):
        assert torch.equal(tiny(pl.Batch(batch.ids, batch.mask, batch.positions.to(dtype))), tiny(batch))
