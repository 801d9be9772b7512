"""Ways of opening a tokenizer that do not exist: each is refused by its name, and what the error says to do works."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import pellucid as pl
import support
from pellucid.compat.hooked import HookedTransformer

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def own() -> pl.Tokenizer:
    found = pl.load().tokenizer
    assert found is not None
    return found


@pytest.fixture
def folder(own: pl.Tokenizer, tmp_path: Path) -> Path:
    own.save(tmp_path / "saved")
    return tmp_path / "saved"


NO_PATHS = [None, 3, "", b"tokenizer.json", ["tokenizer.json"], True, "a\0b"]


@pytest.mark.parametrize("given", NO_PATHS, ids=repr)
@pytest.mark.parametrize("door", ["from_file", "from_folder", "from_characters", "vocabulary", "merges"])
def test_what_is_no_path_is_refused_at_every_door(door: str, given: Any, folder: Path) -> None:
    files = {"vocabulary": (given, folder / "merges.txt"), "merges": (folder / "tokenizer.json", given)}
    with pytest.raises(pl.WeightsError) as caught:
        getattr(pl.Tokenizer, "from_vocabulary" if door in files else door)(*files.get(door, (given,)))
    assert caught.value.code == "not-a-path"


def test_a_folder_is_no_file_and_the_name_of_a_model_is_neither(folder: Path, own: pl.Tokenizer) -> None:
    with pytest.raises(pl.WeightsError, match="a folder, expected a tokenizer") as caught:
        pl.Tokenizer.from_file(folder)
    assert "pl.Tokenizer.from_folder" in caught.value.remedy
    found = pl.Tokenizer.from_folder(folder)
    assert found is not None
    assert found.encode(TEXT) == pl.Tokenizer.from_file(folder / "tokenizer.json").encode(TEXT) == own.encode(TEXT)
    for door in (pl.Tokenizer.from_file, pl.Tokenizer.from_folder):
        with pytest.raises(pl.NotFoundError, match="bundled: no such") as caught:
            door("bundled")
        assert "pl.load(name).tokenizer" in caught.value.remedy


def test_a_tilde_is_the_users_own_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, own: pl.Tokenizer) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert pl.Tokenizer.from_file("~/saved/tokenizer.json").encode(TEXT) == own.encode(TEXT)


REMEDIES: dict[str, Callable[[pl.Tokenizer, Path], tuple[Any, Callable[[], pl.Tokenizer | None]]]] = {
    "a name": lambda own, folder: ("bundled", lambda: pl.load("bundled").tokenizer),
    "a folder": lambda own, folder: (folder, lambda: pl.Tokenizer.from_folder(folder)),
    "a file": lambda own, folder: (
        str(folder / "tokenizer.json"), lambda: pl.Tokenizer.from_file(folder / "tokenizer.json")
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REMEDIES)
def test_a_path_or_a_name_in_a_tokenizers_place(kind: str, own: pl.Tokenizer, folder: Path) -> None:
    given, instead = REMEDIES[kind](own, folder)
    model = pl.load()
    model.tokenizer = given
    doors = (
        lambda: pl.Tokenizer(given),
        lambda: model(TEXT),
        lambda: model.generate(TEXT, max_new_tokens=1),
        lambda: model.tokenize([[1, 2]]),
        lambda: pl.compare(pl.load(), pl.load(), inputs=TEXT, tokenizer=given),
        lambda: pl.CkptedTransformer(model.config, tokenizer=given).tokenize(TEXT),
    )
    for door in doors:
        with pytest.raises(pl.InputError, match=re.escape(repr(str(given)))) as caught:
            door()
        assert caught.value.code == "tokenizer-kind"
        for way in ("pl.Tokenizer.from_folder", "pl.Tokenizer.from_file", "pl.load(name).tokenizer"):
            assert way in caught.value.remedy
    model.tokenizer = instead()
    assert model.tokenize(TEXT).ids[0].tolist() == own.encode(TEXT)


def test_what_other_libraries_made_is_told_apart(own: pl.Tokenizer, folder: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = pl.load()
    model.tokenizer = backend  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(pl.InputError, match="Tokenizer given, expected a tokenizer") as caught:
        model(TEXT)
    assert "pl.Tokenizer(tokenizer)" in caught.value.remedy
    model.tokenizer = pl.Tokenizer(backend)
    assert model.tokenize(TEXT).ids[0].tolist() == own.encode(TEXT)
    for given in (theirs, own):
        with pytest.raises(pl.InputError, match=r"given, expected tokenizers\.Tokenizer") as caught:
            pl.Tokenizer(given)
        assert "model.tokenizer = tokenizer" in caught.value.remedy
        model.tokenizer = given
        assert model.tokenize(TEXT).ids[0].tolist() == own.encode(TEXT)
    theirs.save_pretrained(folder.parent / "again")
    again = pl.Tokenizer.from_folder(folder.parent / "again")
    assert again is not None
    assert again.encode(TEXT) == own.encode(TEXT)
    for nothing in (3, object(), [theirs]):
        with pytest.raises(pl.InputError, match=f"{type(nothing).__name__} given") as caught:
            pl.Tokenizer(nothing)  # pyright: ignore[reportArgumentType]
        assert "docs/tokens.md" in caught.value.remedy


class Bare:
    """Nothing but text to ids and back."""

    own: pl.Tokenizer

    def __init__(self, own: pl.Tokenizer) -> None:
        self.own = own

    def encode(self, text: str) -> Any:
        return self.own.encode(text)

    def decode(self, ids: Any) -> str:
        return self.own.decode(ids)


class Arrays(Bare):
    def encode(self, text: str) -> Any:
        return np.array(self.own.encode(text))


class LikeTiktoken(Bare):
    """Takes Python's whole numbers alone, and knows its size by another name."""

    n_vocab = np.int64(4096)

    def decode(self, tokens: list[int], errors: str = "replace") -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert {*map(type, tokens)} <= {int}
        return self.own.decode(tokens)


class Strict(Bare):
    def decode(self, ids: Any) -> str:
        if (text := self.own.decode(ids)).endswith("\ufffd"):
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "unexpected end of data")
        return text


OWN: dict[str, Callable[[pl.Tokenizer, Path], Any]] = {
    "bare": lambda own, folder: Bare(own),
    "arrays": lambda own, folder: Arrays(own),
    "like tiktoken": lambda own, folder: LikeTiktoken(own),
    "strict about bytes": lambda own, folder: Strict(own),
    "transformers'": lambda own, folder: transformers.AutoTokenizer.from_pretrained(folder),
}


@pytest.mark.parametrize("kind", OWN)
def test_text_to_ids_and_back_is_all_that_a_tokenizer_has_to_do(kind: str, own: pl.Tokenizer, folder: Path) -> None:
    model, given = pl.load(), OWN[kind](own, folder)
    text = f"{TEXT} ☃"

    def seen() -> list[Any]:
        _, ckpts = model.run_with_ckpts(text, names="resid_post")
        return [
            ckpts.batch.strings, model.generate(TEXT, max_new_tokens=6, stop=[" wa"]).text,
            "".join(token.text for token in model.stream(TEXT, max_new_tokens=3)), str(pl.lens.logit(ckpts)),
            str(ckpts.to_xarray()),
        ]  # fmt: skip

    expected = seen()
    model.tokenizer = given
    assert seen() == expected
    assert model.tokenizer is not None
    assert model.tokenizer.own is own if isinstance(given, Bare) else model.tokenizer.pad_token is None
    assert copy.deepcopy(model).tokenize(text).strings == expected[0]
    small = support.glass(vocab_size=4096, n_layer=1)
    assert pl.compare(small, copy.deepcopy(small), inputs=TEXT, tokenizer=given)
    hooked = HookedTransformer(small, tokenizer=given)
    assert hooked.to_tokens(TEXT, prepend_bos=False)[0].tolist() == own.encode(TEXT)
    assert hooked.to_single_token(" the") == own.token_id(" the")
    assert hooked.to_str_tokens(TEXT, prepend_bos=False) == own.pieces(own.encode(TEXT))
    if kind in ("bare", "arrays", "strict about bytes"):
        with pytest.raises(pl.InputError, match="has no __len__") as caught:
            len(model.tokenizer)
        assert caught.value.code == "tokenizer-kind"
    else:
        assert len(model.tokenizer) == 4096


WAYS = {
    "from_pretrained": ("pl.load(name).tokenizer", "pl.Tokenizer.from_folder(folder)"),
    "from_str": ("pl.Tokenizer(tokenizers.Tokenizer.from_str(text))",),
    "from_buffer": ("pl.Tokenizer(tokenizers.Tokenizer.from_buffer(content))",),
}
"""Class methods of other libraries -> the expressions that the error gives instead."""


def test_a_tokenizer_of_transformers_is_called_and_set_up_as_before(folder: Path) -> None:
    """What a model makes of it is no other tokenizer."""
    theirs, model = transformers.AutoTokenizer.from_pretrained(folder), support.glass()
    model.tokenizer = theirs
    assert model.tokenizer("Once", return_tensors="pt")["input_ids"].tolist() == [theirs.encode("Once")]
    model.tokenizer.padding_side, model.tokenizer.pad_token = "left", theirs.eos_token
    assert (theirs.padding_side, theirs.pad_token_id) == ("left", theirs.eos_token_id)
    assert model.tokenizer.pad_token_id == theirs.eos_token_id
    copied = copy.deepcopy(model).tokenizer
    assert copied.pieces(theirs.encode("Once")) == model.tokenizer.pieces(theirs.encode("Once"))
    assert pickle.loads(pickle.dumps(model.tokenizer)).encode("Once") == theirs.encode("Once")


@pytest.mark.parametrize("name", WAYS)
def test_class_methods_of_other_libraries(name: str, folder: Path, own: pl.Tokenizer) -> None:
    content = (folder / "tokenizer.json").read_bytes()
    names = {"pl": pl, "tokenizers": tokenizers, "name": "bundled", "folder": folder, "text": content.decode()}
    assert not hasattr(pl.Tokenizer, name)
    with pytest.raises(pl.UnknownAttributeError) as caught:
        getattr(pl.Tokenizer, name)
    for way in WAYS[name]:
        assert way in caught.value.remedy
        assert eval(way, {**names, "content": content}).encode(TEXT) == own.encode(TEXT)
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'") as plain:
        pl.Tokenizer.no_such_thing  # noqa: B018
    assert not isinstance(plain.value, pl.PellucidError)


def test_a_single_number_is_not_several_and_an_array_no_form(own: pl.Tokenizer) -> None:
    for call in (own, own.batch_decode, own.convert_tokens_to_ids):
        with pytest.raises(pl.InputError, match="expected several"):
            call(torch.tensor(2))  # type: ignore[arg-type]
    for encode in (own, own.encode):
        with pytest.raises(pl.InputError, match="expected 'pt', 'np' or None"):
            encode("a", return_tensors=np.array([1, 2]))  # type: ignore[call-overload]
    batch = pl.load().tokenize("a")
    with pytest.raises(pl.InputError, match=r"expected a pl\.Tokenizer"):
        pl.Batch(batch.ids, batch.mask, batch.positions, "gpt2")  # type: ignore[arg-type]
