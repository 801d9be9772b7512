"""A folder's tokenizer gives the ids that transformers' gives, as it was brought and as we save it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import pellucid as pl
from support import glass

TEXTS = (
    "one two one", " one", "", "a<|endoftext|>b", "one<sep> two <sep>", "<a><b> <pad>x", "[C] two[C]", "</s>one",
    "½ the ONE", "<|im_start|>one<|im_end|>", "<image>", "naïve\n\n<unk>", "don't",
)  # fmt: skip
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = [("o", "n"), ("on", "e"), ("t", "w"), ("tw", "o"), ("Ġ", "one"), ("Ġ", "two")]
PIECES = ["<|endoftext|>", *BYTES, *(a + b for a, b in MERGES)]
VOCABULARY = {piece: number for number, piece in enumerate(PIECES)}
SIZE = len(PIECES)
Folder = dict[str, Any]


def stored(*, without: str = "", added: tuple[str, ...] = (), **parts: Any) -> Folder:
    """What a `tokenizer.json` holds: a byte-level BPE, with other parts in the place of its own."""
    vocabulary = {piece: number for number, piece in enumerate(p for p in PIECES if p != without)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(list(added))
    return {**json.loads(backend.to_str()), **parts}


def decoder(*tokens: str, first: int = SIZE, **flags: bool) -> Folder:
    """An `added_tokens_decoder`."""
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {str(first + number): {"content": token, **plain, **flags} for number, token in enumerate(tokens)}


GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
END = {"<|endoftext|>": 0}
SPLIT = {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "o"}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
]}  # fmt: skip
LOWER = {"type": "Lowercase"}
TOKEN = {"content": "<pad>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
PADDING = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
           "pad_token": "<|endoftext|>"}  # fmt: skip

FOLDERS: dict[str, Folder] = {
    "tokenizer.json alone": {"tokenizer.json": stored(added=("<|endoftext|>",))},
    "no added tokens in it": {"tokenizer.json": stored()},
    "no added tokens, run as stored": {"tokenizer.json": stored(), "tokenizer_config.json": FAST},
    "no special tokens, as it says": {
        "tokenizer.json": stored(added=("<|endoftext|>",)),
        "tokenizer_config.json": {**GPT2, "bos_token": None, "eos_token": None, "pad_token": None},
    },
    "the end only named, run as stored": {
        "tokenizer.json": stored(), "tokenizer_config.json": {**FAST, "eos_token": "<|endoftext|>"},
    },
    "an end that the vocabulary lacks": {"tokenizer.json": stored(without="<|endoftext|>")},
    "tokens in the configuration only": {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {
            **GPT2, "added_tokens_decoder": decoder("<|endoftext|>", first=0) | decoder("<sep>", "<a>"),
        },
    },
    "tokens that the configuration leaves out": {
        "tokenizer.json": stored(added=("<|endoftext|>", "<sep>", "<a>")),
        "tokenizer_config.json": {**GPT2, "added_tokens_decoder": decoder("<sep>")},
    },
    "tokens in the configuration, run as stored": {
        "tokenizer.json": stored(added=("<sep>",)),
        "tokenizer_config.json": {**FAST, "added_tokens_decoder": decoder("<sep>", "<a>"), "eos_token": "</s>",
                                  "pad_token": "<pad>"},
    },
    "tokens that strip": {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {**GPT2, "added_tokens_decoder": decoder("<sep>", "<a>", lstrip=True, rstrip=True)},
    },
    "tokens that are not special": {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {
            **GPT2, "added_tokens_decoder": decoder("one<sep>", "<a>", special=False, normalized=True),
        },
    },
    "a pad and an end of its own": {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {**GPT2, "pad_token": {"__type": "AddedToken", **TOKEN}, "eos_token": "</s>",
                                  "bos_token": "[C]", "padding_side": "left", "model_max_length": 24},
    },
    "special_tokens_map.json": {
        "tokenizer.json": stored(),
        "special_tokens_map.json": {
            "pad_token": TOKEN, "eos_token": "</s>", "additional_special_tokens": ["[C]", "<a>"],
        },
    },
    "special_tokens_map.json that does not count": {
        "tokenizer.json": stored(), "tokenizer_config.json": {"added_tokens_decoder": decoder("<sep>")},
        "special_tokens_map.json": {"pad_token": "<pad>"},
    },
    "more special tokens": {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {**GPT2, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    },
    "special tokens with names": {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {**FAST, "extra_special_tokens": {"image_token": "<image>"}},
    },
    "a model's own special token": {
        "tokenizer.json": stored(), "tokenizer_config.json": {**GPT2, "image_token": "<image>", "mask_token": "<a>"},
    },
    "special tokens are split": {
        "tokenizer.json": stored(added=("<|endoftext|>", "<sep>")),
        "tokenizer_config.json": {**GPT2, "split_special_tokens": True},
    },
    "a space before a text": {"tokenizer.json": stored(), "tokenizer_config.json": {**GPT2, "add_prefix_space": True}},
    "a space before a text, run as stored": {
        "tokenizer.json": stored(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}),
        "tokenizer_config.json": {**FAST, "add_prefix_space": False},
    },
    "a space only in tokenizer.json": {
        "tokenizer.json": stored(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}),
    },
    "a normalizer": {"tokenizer.json": stored(normalizer=LOWER), "tokenizer_config.json": GPT2},
    "a normalizer, run as stored": {"tokenizer.json": stored(normalizer=LOWER), "tokenizer_config.json": FAST},
    "words split otherwise": {"tokenizer.json": stored(pre_tokenizer=SPLIT), "tokenizer_config.json": GPT2},
    "words split otherwise, run as stored": {
        "tokenizer.json": stored(pre_tokenizer=SPLIT), "tokenizer_config.json": FAST,
    },
    "padding in tokenizer.json": {"tokenizer.json": stored(padding=PADDING), "tokenizer_config.json": FAST},
    "the class in config.json": {
        "tokenizer.json": stored(normalizer=LOWER), "config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    },
    "vocab.json": {"vocab.json": VOCABULARY, "merges.txt": MERGES},
    "vocab.json and added_tokens.json": {
        "vocab.json": VOCABULARY, "merges.txt": MERGES, "added_tokens.json": {"<a>": SIZE + 1, "<sep>": SIZE},
        "special_tokens_map.json": {"sep_token": "<sep>", "pad_token": "<pad>"},
    },
    "vocab.json and tokenizer_config.json": {
        "vocab.json": VOCABULARY, "merges.txt": MERGES,
        "tokenizer_config.json": {**GPT2, "add_prefix_space": True, "unk_token": "<unk>", "eos_token": None,
                                  "added_tokens_decoder": decoder("<sep>", "<a>")},
    },
}  # fmt: skip


def write(folder: Path, files: Folder) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {**files, "config.json": {"model_type": "gpt2", **files.get("config.json", {})}}.items():
        text = json.dumps(content) if name != "merges.txt" else "\n".join(map(" ".join, content))
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def ids(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_special_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = theirs(write(tmp_path / "given", FOLDERS[name]))
    ours = pl.Tokenizer.from_folder(tmp_path / "given")
    assert ours is not None
    assert [ours.encode(text) for text in TEXTS] == ids(reference)
    assert len(ours) == len(reference)
    told = {kind: getattr(reference, kind) for kind in ("eos_token_id", "bos_token_id", "pad_token_id")}
    assert {kind: getattr(ours, kind) for kind, token in told.items() if token is not None} == {
        kind: token for kind, token in told.items() if token is not None
    }
    plain = [ours.decode(row, skip_special_tokens=True) for row in ids(reference)]
    assert plain == [reference.decode(row, skip_special_tokens=True) for row in ids(reference)]

    stale = {"special_tokens_map.json": {"eos_token": "two"}, "added_tokens.json": {"one": len(ours)}}
    write(tmp_path / "saved", stale)
    ours.save(tmp_path / "saved")
    saved = theirs(tmp_path / "saved")
    assert ids(saved) == ids(reference)
    assert [saved(text)["input_ids"] for text in TEXTS] == [reference(text)["input_ids"] for text in TEXTS]
    for kind in ("eos_token", "bos_token", "pad_token", "unk_token", "padding_side", "model_max_length"):
        assert getattr(saved, kind) == getattr(reference, kind), kind
    assert saved.decode(ids(saved)[0]) == reference.decode(ids(reference)[0])
    again = pl.Tokenizer.from_folder(tmp_path / "saved")
    assert again is not None
    assert [again.encode(text) for text in TEXTS] == ids(reference)
    assert again.files() == ours.files()


def test_a_model_is_saved_with_its_tokenizer(tmp_path: Path) -> None:
    name = "a pad and an end of its own"
    model = glass(vocab_size=SIZE + 4)
    model.save_pretrained(tmp_path / "given")
    files = {**FOLDERS[name], "config.json": json.loads((tmp_path / "given" / "config.json").read_text())}
    model = pl.load(write(tmp_path / "given", files))
    model.save_pretrained(tmp_path / "saved")
    assert ids(theirs(tmp_path / "saved")) == ids(theirs(tmp_path / "given"))
    assert theirs(tmp_path / "saved").padding_side == "left"


def test_a_token_that_has_no_place_is_refused(tmp_path: Path) -> None:
    files = {
        "tokenizer.json": stored(),
        "tokenizer_config.json": {"added_tokens_decoder": decoder("<a>", first=SIZE + 9)},
    }
    with pytest.raises(pl.WeightsError, match=r"tokenizer_config\.json.*no place for '<a>'") as caught:
        pl.Tokenizer.from_folder(write(tmp_path, files))
    assert caught.value.code == "tokenizer-unreadable"


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("said", [{"eos_token": 5}, {"pad_token": ["<pad>"]}, {"extra_special_tokens": 1.5}])
def test_a_special_token_that_is_none_is_refused(file: str, said: Folder, tmp_path: Path) -> None:
    with pytest.raises(pl.WeightsError) as caught:
        pl.Tokenizer.from_folder(write(tmp_path, {"tokenizer.json": stored(), file: said}))
    assert caught.value.code == "tokenizer-unreadable"


@pytest.mark.parametrize(("file", "said"), [
    ({"added_tokens_decoder": [1]}, "something stands in it"),
    ({"added_tokens_decoder": {"0": {"special": True}}}, "something stands in it"),
    ({"added_tokens_decoder": {"x": {"content": "a"}}}, "'x'"),
])  # fmt: skip
def test_a_file_that_is_arranged_otherwise_is_refused(file: Folder, said: str, tmp_path: Path) -> None:
    write(tmp_path, {"tokenizer.json": stored(), "tokenizer_config.json": file})
    with pytest.raises(pl.WeightsError, match=said) as caught:
        pl.Tokenizer.from_folder(tmp_path)
    assert caught.value.code == "tokenizer-unreadable"


@pytest.mark.parametrize("line", ["one", "o n e", " one", "o "])
def test_a_line_that_is_no_merge_is_shown(line: str, tmp_path: Path) -> None:
    write(tmp_path, {"vocab.json": VOCABULARY})
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\no n\n{line}\n", "utf-8")
    with pytest.raises(pl.WeightsError, match=f"the merge '{line}'"):
        pl.Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("settings", [GPT2, FAST])
def test_the_version_that_stands_before_merges_is_passed_over(settings: Folder, tmp_path: Path) -> None:
    content = stored()
    content["model"]["merges"] = ["#version: 0.2", *map(" ".join, MERGES)]
    ours = pl.Tokenizer.from_folder(write(tmp_path, {"tokenizer.json": content, "tokenizer_config.json": settings}))
    assert ours is not None
    assert ours.encode("one two") == [VOCABULARY["one"], VOCABULARY["Ġtwo"]]


def test_a_vocabulary_of_no_kind_of_model_is_gpt2s(tmp_path: Path) -> None:
    files = {"vocab.json": VOCABULARY, "merges.txt": MERGES, "config.json": {"model_type": None, "n_embd": 8}}
    ours = pl.Tokenizer.from_folder(write(tmp_path, files))
    assert ours is not None
    assert ours.encode("one<|endoftext|>") == [VOCABULARY["one"], 0]


def test_openais_own_names(tmp_path: Path) -> None:
    write(tmp_path, {"encoder.json": VOCABULARY})
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(map(" ".join, MERGES)))
    ours = pl.Tokenizer.from_folder(tmp_path)
    assert ours is not None
    assert ours.encode("one two<|endoftext|>") == [VOCABULARY["one"], VOCABULARY["Ġtwo"], 0]


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "##s"]


def test_a_model_with_berts_vocabulary_opens_and_its_first_text_says_what_to_do(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    glass(vocab_size=len(WORDS)).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    model = pl.load(tmp_path)
    assert model([[5, 6]]).shape == (1, 2, len(WORDS))
    for call in (model, model.generate, model.loss):
        with pytest.raises(pl.InputError, match=r"vocab\.txt is the vocabulary of a WordPiece tokenizer") as caught:
            call("ones two")
        assert caught.value.code == "no-tokenizer"
        assert "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)" in caught.value.remedy
    reference = AutoTokenizer.from_pretrained(tmp_path)
    reference.save_pretrained(tmp_path)  # the remedy
    again = pl.load(tmp_path)
    assert again.tokenizer is not None
    assert again.tokenizer.encode("ones two") == [5, 7, 6]
    assert again("ones two").shape == (1, 3, len(WORDS))
    assert "tokenizer" not in again.provenance


class Letters:
    """A tokenizer of the caller's own."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 61 for letter in text]


def test_a_tokenizer_that_cannot_be_saved_is_left_out_with_a_warning(tmp_path: Path) -> None:
    model = glass()
    model.tokenizer = Letters()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(pl.PellucidWarning, match=r"the tokenizer is not saved: Letters has no files\(\)"):
        model.save_pretrained(tmp_path)
    assert pl.load(tmp_path).tokenizer is None
