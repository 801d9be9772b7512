"""GPT-2's tokenizer to the id, and batches in which padding changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checks
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid as pl
import support
from pellucid.generate.generation import Stopping, TextStream
from pellucid.text import tokenizer_classes
from pellucid.text.tokenizer_files import library

TEXTS = [
    "Hello world",
    "Hello, world!",
    " leading",
    "trailing ",
    "  two  spaces   three",
    "\n\n\t\ttabs\r\nlines\n",
    " ",
    "\t",
    "\n",
    "naïve café — “quotes” … ÀÉÎÕÜ ß",
    "Ελληνικά, Русский, עברית, العربية, हिन्दी",
    "日本語のテキスト、中文字符，한국어",
    "a\u0301 e\u0308 \u200b\u200d\ufeff",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽",
    "it's we'll they've I'd you're I'M DON'T",
    "3.14159 1,000,000 0x1F 2026-11-21",
    "def f(x):\n    return x ** 2  # code",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "<|endoftext|><|endoftext|>",
    "<|endoftext",
    "�",
    "\x00\x01\x7f\x80\x9f\xa0\xad",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "supercalifragilisticexpialidocious" * 3,
    "ＡＢＣ ①②③ ½ ²",
    "The quick brown fox jumps over the lazy dog.",
]


PRINTABLE = [33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174 for byte in range(256)]
BYTES = [
    chr(byte) if printable else chr(256 + sum(not p for p in PRINTABLE[:byte]))
    for byte, printable in enumerate(PRINTABLE)
]
"""How GPT-2 writes each byte in its vocabulary: itself if printable, else the next character from U+0100 on."""


@pytest.fixture(scope="module")
def theirs(gpt2_tokenizer_folder: Path) -> Any:
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer.from_pretrained(gpt2_tokenizer_folder)


def test_the_files_are_gpt2s_own(gpt2_tokenizer_folder: Path) -> None:
    hashes = {
        "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    }
    for name, expected in hashes.items():
        assert hashlib.sha256((gpt2_tokenizer_folder / name).read_bytes()).hexdigest() == expected


def test_known_ids(gpt2_tokenizer: pl.Tokenizer) -> None:
    assert gpt2_tokenizer.encode("Hello world") == [15496, 995]
    assert gpt2_tokenizer.encode("Hello, world!") == [15496, 11, 995, 0]
    assert gpt2_tokenizer.encode("<|endoftext|>") == [50256]
    assert gpt2_tokenizer.encode("") == []
    assert len(gpt2_tokenizer) == 50257
    assert gpt2_tokenizer.token_id(" world") == 995
    assert gpt2_tokenizer.pieces([15496, 995]) == ["Hello", " world"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_are_transformers_own_and_come_back(gpt2_tokenizer: pl.Tokenizer, theirs: Any, text: str) -> None:
    ids = gpt2_tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert gpt2_tokenizer.decode(ids) == text


def test_all_256_bytes(gpt2_tokenizer: pl.Tokenizer, theirs: Any) -> None:
    text = "".join(map(chr, range(256)))
    assert gpt2_tokenizer.encode(text) == theirs(text)["input_ids"]
    single = [gpt2_tokenizer.encode(chr(i)) for i in range(128)]
    assert all(len(ids) == 1 for ids in single)
    for byte in range(256):  # each byte is a token; those above 127 are no text of their own
        token = theirs.convert_tokens_to_ids(BYTES[byte])
        assert gpt2_tokenizer.decode([token]) == (chr(byte) if byte < 128 else "\ufffd")
        if byte < 128:
            assert single[byte] == [token]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_any_text(gpt2_tokenizer: pl.Tokenizer, theirs: Any, text: str) -> None:
    ids = gpt2_tokenizer.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert gpt2_tokenizer.decode(ids) == text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids(gpt2_tokenizer: pl.Tokenizer, theirs: Any, ids: list[int]) -> None:
    assert gpt2_tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_tokenizer_json_is_all_of_it(gpt2_tokenizer: pl.Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    gpt2_tokenizer.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    again = pl.Tokenizer.from_folder(tmp_path)
    in_transformers = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert (
            again.encode(text)
            == gpt2_tokenizer.encode(text)
            == in_transformers(text, add_special_tokens=False)["input_ids"]
        )


def metaspace() -> pl.Tokenizer:
    """Words that begin with a mark, which is a space but where a text begins."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(*_words("\u2581one \u2581two s . e").values()))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    return pl.Tokenizer(backend)


def stripping() -> pl.Tokenizer:
    """The same mark, taken away at the beginning of a text by steps, as SentencePiece's byte fallback has it."""
    built = metaspace()
    built._backend.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("\u2581", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
        tokenizers.decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return built


def wordpiece() -> pl.Tokenizer:
    """Words with a space between them, and ends of words that have none."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "one", "two", "##s", "."])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    return pl.Tokenizer(backend)


def _words(words: str) -> dict[str, Any]:
    """A vocabulary of these words, and the merges that make them, one character after another."""
    vocabulary: dict[str, int] = {}
    merges: dict[tuple[str, str], None] = {}
    for word in words.split():
        for end in range(1, len(word) + 1):
            for part in (word[end - 1], word[:end]):
                vocabulary.setdefault(part, len(vocabulary))
            if end > 1:
                merges[word[: end - 1], word[end - 1]] = None
    return {"vocab": vocabulary, "merges": list(merges)}


SPACED = (metaspace, stripping, wordpiece)


@pytest.mark.parametrize("build", SPACED)
def test_tokens_keep_the_spaces_that_a_text_begins_without(build: Callable[[], pl.Tokenizer]) -> None:
    tokenizer = build()
    ids = tokenizer.encode("one twos one.")
    assert tokenizer.decode(ids) == "one twos one."
    assert tokenizer.pieces(ids) == [" one", " two", "s", " one", "."]
    for cut in range(len(ids) + 1):
        assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:], after=ids[:cut]) == "one twos one."


@pytest.mark.parametrize("build", SPACED)
def test_a_stream_keeps_spaces(build: Callable[[], pl.Tokenizer]) -> None:
    tokenizer = build()
    ids = tokenizer.encode("one twos one.")
    for cut in range(len(ids)):
        stream = TextStream(tokenizer, after=ids[:cut])
        shown = [stream.push(token) for token in ids[cut:]]
        assert tokenizer.decode(ids[:cut]) + "".join(shown) + stream.finish() == "one twos one."


@pytest.mark.parametrize("build", SPACED)
def test_texts_grow_by_what_is_streamed(build: Callable[[], pl.Tokenizer]) -> None:
    tokenizer = build()
    model = support.glass(vocab_size=len(tokenizer))
    model.tokenizer = tokenizer
    prompts = ["one", "twos one."]
    for options in ({}, {"sampler": pl.Sampler(temperature=3.0), "seed": 1}):
        out = model.generate(prompts, max_new_tokens=12, end_ids=(), **options)
        tokens = list(model.stream(prompts, max_new_tokens=12, end_ids=(), **options))
        for row, prompt in enumerate(prompts):
            assert prompt + "".join(token.text for token in tokens if token.row == row) == out.texts[row]


@pytest.mark.parametrize("build", SPACED)
def test_texts_stop_at_a_space(build: Callable[[], pl.Tokenizer]) -> None:
    tokenizer = build()
    two = tokenizer.encode("one two")[1]
    stops = Stopping(max_new_tokens=9, end_ids=(), strings=(" two",), tokenizer=tokenizer)
    assert [stops.reason(ids) for ids in ([two], tokenizer.encode("ones"))] == ["stop", None]


def test_tokens_of_gpt2_have_a_text_of_their_own(gpt2_tokenizer: pl.Tokenizer) -> None:
    every = [
        *range(600),
        *range(600, len(gpt2_tokenizer) - 5, 11),
        *range(len(gpt2_tokenizer) - 5, len(gpt2_tokenizer)),
    ]
    assert gpt2_tokenizer.pieces(every) == [gpt2_tokenizer.decode([i]) for i in every]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert pl.Tokenizer.from_folder(tmp_path) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert pl.Tokenizer.from_folder(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
def test_an_unreadable_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(pl.WeightsError) as caught:
        pl.Tokenizer.from_folder(tmp_path)
    assert caught.value.code == "tokenizer-unreadable"


@pytest.fixture(scope="module")
def reader(gpt2_tokenizer: pl.Tokenizer) -> pl.CkptedTransformer:
    """A small model with GPT-2's vocabulary and tokenizer."""
    model = support.glass(vocab_size=50257, n_embd=16, n_layer=1, n_head=2, eos_token_id=50256, bos_token_id=50256)
    model.tokenizer = gpt2_tokenizer
    return model


def test_nothing_is_added_to_a_text(reader: pl.CkptedTransformer) -> None:
    batch = reader.tokenize("Hello world")
    assert batch.ids.tolist() == [[15496, 995]]
    assert batch.positions.tolist() == [[0, 1]]
    assert batch.mask.tolist() == [[True, True]]
    assert batch.strings == [["Hello", " world"]]
    assert not batch.padded


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_unequal_length(reader: pl.CkptedTransformer, side: str) -> None:
    texts = ["Hello world", "The quick brown fox jumps", "a"]
    batch = reader.tokenize(texts, padding_side=side)
    rows = [reader.tokenizer.encode(text) for text in texts]
    assert [row.tolist() for row in batch.rows()] == rows
    assert batch.strings == [reader.tokenizer.pieces(row) for row in rows]
    assert set(batch.ids[~batch.mask].tolist()) == {50256}
    assert not batch.positions[~batch.mask].any()
    assert (len(batch), batch.shape) == (3, torch.Size([3, 5]))
    for number, row in enumerate(rows):
        pads = [False] * (5 - len(row))
        real = [True] * len(row)
        assert batch.mask[number].tolist() == (pads + real if side == "left" else real + pads)


def test_pads_are_on_the_left_unless_asked(reader: pl.CkptedTransformer) -> None:
    assert reader.tokenize([[1], [2, 3]]).mask.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize(
    "given_",
    [
        [5, 6, 7],
        [[5, 6, 7]],
        (5, 6, 7),
        ((5, 6, 7),),
        torch.tensor([5, 6, 7]),
        torch.tensor([[5, 6, 7]]),
        torch.tensor([[5, 6, 7]], dtype=torch.int32),
        torch.tensor([5, 6, 7], dtype=torch.uint8),
        np.array([5, 6, 7]),
        np.array([[5, 6, 7]]),
        [torch.tensor([5, 6, 7])],
        [np.array([5, 6, 7])],
        {"input_ids": torch.tensor([[5, 6, 7]])},
        {"input_ids": [[5, 6, 7]]},
        {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3)},
    ],
    ids=repr,
)
def test_forms_of_the_same_ids(glass: pl.CkptedTransformer, given_: Any) -> None:
    batch = glass.tokenize(given_)
    assert batch.ids.tolist() == [[5, 6, 7]]
    assert batch.ids.dtype == torch.long
    assert batch.strings == [["5", "6", "7"]]
    assert torch.equal(glass(given_), glass([5, 6, 7]))
    assert torch.equal(glass(batch), glass([5, 6, 7]))


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("GPT2Tokenizer", "tokenizer.json"),
        ("GPT2Tokenizer", "vocab.json"),
        ("PreTrainedTokenizerFast", "tokenizer.json"),
    ],
)
@pytest.mark.parametrize("space", [True, False])
def test_a_prefix_space_of_the_folder_counts_where_transformers_reads_it(
    space: bool, kind: str, kept: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    shipped = pl.load().tokenizer
    assert shipped is not None
    stored = json.loads(shipped.to_json())
    stored["pre_tokenizer"]["add_prefix_space"] = not space
    if kept == "tokenizer.json":
        (tmp_path / kept).write_text(json.dumps(stored))
    else:
        (tmp_path / kept).write_text(json.dumps(stored["model"]["vocab"]))
        (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in stored["model"]["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, "add_prefix_space": space}))
    ours, theirs = pl.Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours is not None
    for text in ("Once upon a time", " Once", "don't"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    ours.save(tmp_path / "again")
    again = pl.Tokenizer.from_folder(tmp_path / "again")
    assert again is not None
    assert again.encode("Once") == ours.encode("Once")


def _like_llama_2() -> dict[str, Any]:
    """A `tokenizer.json` of a SentencePiece vocabulary, as older versions of transformers wrote it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdeimnopt", "ti", "me", "▁a"]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]  # fmt: skip
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return {
        "version": "1.0", "truncation": None, "padding": None, "pre_tokenizer": None, "post_processor": None,
        "added_tokens": [{"id": i, "content": pieces[i], **special} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": ["t i", "m e", "▁ a"],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("family", "settings", "like"),
    [
        ("llama", {}, "llama 3"),
        ("llama", {"tokenizer_class": "LlamaTokenizerFast"}, "llama 3"),
        ("llama", {"tokenizer_class": "GPT2Tokenizer"}, "llama 3"),
        ("gpt2", {"tokenizer_class": "NobodysTokenizer"}, "llama 3"),
        ("gpt2", {}, "llama 3"),
        ("gpt_neox", {}, "llama 3"),
        ("gpt_neox", {"tokenizer_class": "GPTNeoXTokenizerFast", "bos_token": "<s>"}, "llama 3"),
        ("llama", {}, "llama 2"),
        ("llama", {"tokenizer_class": "LlamaTokenizer"}, "llama 2"),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}, "llama 2"),
        ("llama", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, "llama 2"),
        ("", {"tokenizer_class": "LlamaTokenizer"}, "llama 3"),
        ("mistral", {"tokenizer_class": "LlamaTokenizer"}, "llama 2"),
        ("gpt_bigcode", {"tokenizer_class": "GPT2Tokenizer"}, "llama 3"),
        ("opt", {}, "llama 3"),
    ],
    ids=repr,
)
def test_a_folder_gets_the_class_that_transformers_gives_it(
    family: str, settings: dict[str, Any], like: str, tmp_path: Path
) -> None:
    """Some run the file as it is, some cut texts their own way, by what the folder names, or by the kind of model."""
    from transformers import AutoTokenizer

    stored = _like_llama_2()
    if like == "llama 3":
        shipped = pl.load().tokenizer
        assert shipped is not None
        stored = json.loads(shipped.to_json().replace("endoftext", "endoftext" if family else "eot"))
        split = {
            "type": "Split",
            "pattern": {"Regex": r" ?\p{L}+|\p{N}{1,3}|\s+"},
            "behavior": "Isolated",
            "invert": False,
        }
        steps = [split, {**stored["pre_tokenizer"], "use_regex": False}]
        stored["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    for name, content in {
        "tokenizer.json": stored, "tokenizer_config.json": settings,
        **({"config.json": {"model_type": family}} if family else {}),
    }.items():  # fmt: skip
        (tmp_path / name).write_text(json.dumps(content))
    ours, theirs = pl.Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours is not None
    for text in ("Once upon (a) time", "cafe\u0301", "12345", " time", "<s>time</s>", "a<|endoftext|>b<|padding|>"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert len(ours) == len(theirs)


def test_kinds_of_models_get_the_class_that_transformers_gives_them() -> None:
    from transformers.models.auto import tokenization_auto as auto

    names = auto.TOKENIZER_MAPPING_NAMES
    for kind, name in tokenizer_classes._OF_MODELS.items():
        assert names[kind] == name
    of_file = ("TokenizersBackend", "MistralCommonBackend")
    for kind in tokenizer_classes._AS_STORED:
        assert names[kind] in of_file or kind in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS


def test_what_transformers_tokenizer_returns(reader: pl.CkptedTransformer, theirs: Any) -> None:
    theirs.pad_token = "<|endoftext|>"
    encoded = theirs(["Hello world", "The quick brown fox"], return_tensors="pt", padding=True, padding_side="left")
    batch = reader.tokenize(encoded)
    ours = reader.tokenize(["Hello world", "The quick brown fox"])
    for part in ("ids", "mask", "positions"):
        assert torch.equal(getattr(batch, part), getattr(ours, part))


@pytest.mark.parametrize("vocab_size", [1, 2, 300])
def test_ids_work_with_any_vocabulary_and_no_tokenizer(vocab_size: int) -> None:
    model = support.glass(vocab_size=vocab_size)
    assert model.tokenizer is None
    assert model([[0], [vocab_size - 1, 0]]).shape == (2, 2, vocab_size)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("lengths", [(1, 2), (3, 11, 7), (64, 1, 30)])
def test_padding_changes_nothing(
    side: str, dtype: torch.dtype, tolerance: float, attention: str, lengths: tuple[int, ...]
) -> None:
    model = support.glass(dtype=dtype, attention=attention)
    checks.padding(model, support.ragged_ids(*lengths), side, tolerance)


def test_masks_with_holes_and_positions(glass64: pl.CkptedTransformer) -> None:
    """Positions count real tokens, wherever the pads are."""
    ids = support.some_ids(1, 7)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 0]])
    batch = glass64.tokenize(ids, mask=mask)
    assert batch.positions[batch.mask].tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        alone = glass64(ids[mask.bool()][None])
        assert support.close(glass64(batch)[batch.mask], alone[0])


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32, torch.uint8], ids=str)
def test_masks_of_any_dtype(glass: pl.CkptedTransformer, dtype: torch.dtype) -> None:
    ids = support.some_ids(2, 4)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert torch.equal(glass.tokenize(ids, mask=mask.to(dtype)).mask, mask.bool())
    assert torch.equal(glass.tokenize(ids, mask=mask.tolist()).mask, mask.bool())
    assert torch.equal(glass.tokenize(ids[0], mask=mask[0]).mask, mask[:1].bool())


def test_declared_pads() -> None:
    """A pad id that also ends texts may occur in them; uneven padding of a batch may not go unmasked."""
    model = support.glass(eos_token_id=9, pad_token_id=9, bos_token_id=9)
    assert model.tokenize(torch.tensor([[9, 1, 9, 2]])).mask.all()
    assert model.tokenize(torch.tensor([[9, 1], [9, 2]])).mask.all(), "every row begins with it"
    with pytest.raises(pl.InputError, match="the id 9"):
        model.tokenize(torch.tensor([[9, 9, 1], [1, 2, 3]]))
    assert model.tokenize(torch.tensor([[9, 9, 1], [1, 2, 3]]), mask=torch.tensor([[0, 0, 1], [1, 1, 1]])).padded
    assert model.tokenize([[1], [1, 2]]).ids[0, 0] == 9
    own = support.glass(eos_token_id=9, pad_token_id=8)
    with pytest.raises(pl.InputError, match="pad id 8"):
        own.tokenize(torch.tensor([[1, 8, 2]]))
    assert own.tokenize([[1], [1, 2]]).ids[0, 0] == 8


def test_pad_ids_outside_the_vocabulary_are_not_used() -> None:
    model = support.glass(pad_token_id=50256, eos_token_id=50256)
    assert model.tokenize([[1], [1, 2]]).ids[0, 0] == 0


def test_rows_are_filled_up_with_the_pad_id_that_counts() -> None:
    """The tokenizer's, with which transformers pads prompts; else the one that its `generate` pads with."""
    model = support.glass(pad_token_id=8, eos_token_id=9)
    rows = [[1], [1, 2]]
    model.generation = pl.GenerationSettings({"eos_token_id": [6, 7]})
    assert model.tokenize(rows).ids[0, 0] == 6
    model.generation = pl.GenerationSettings({"pad_token_id": 5, "eos_token_id": 6})
    assert model.tokenize(rows).ids[0, 0] == 5
    with pytest.raises(pl.InputError, match="pad id 5"):
        model.loss(torch.tensor([[1, 5, 2]]))
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[PAD]": 3}, unk_token="a"))
    model.tokenizer = pl.Tokenizer(backend)
    assert model.tokenize(rows).ids[0, 0] == 3
    padded = model.generate(rows, max_new_tokens=4, end_ids=range(61), sampler=None)
    assert padded.ids[0][-1] != 3


def test_the_whole_context_fits(glass: pl.CkptedTransformer) -> None:
    ids = support.some_ids(1, 64)
    assert glass(ids).shape == (1, 64, 211)
    padded = torch.cat([torch.zeros(1, 10, dtype=torch.long), ids], 1)
    mask = (torch.arange(74) >= 10)[None]
    batch = glass.tokenize(padded, mask=mask)  # 74 columns, 64 tokens
    assert support.close(glass(batch)[0, 10:], glass(ids)[0], 1e-5)


def test_a_batch_moves(glass: pl.CkptedTransformer) -> None:
    batch = glass.tokenize([[1], [2, 3]])
    moved = batch.to("cpu")
    assert torch.equal(moved.ids, batch.ids)
    assert moved.strings == batch.strings
    assert moved.padded


# Calls of transformers' tokenizers


def test_calls_of_transformers_tokenizers(gpt2_tokenizer: pl.Tokenizer, gpt2_tokenizer_folder: Path) -> None:
    from transformers import GPT2Tokenizer

    folder = gpt2_tokenizer_folder
    theirs = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    text, texts = "Once upon a <|endoftext|> time, é", ["a cat", "the dog"]
    for ours, reference in ((gpt2_tokenizer(text), theirs(text)), (gpt2_tokenizer(texts), theirs(texts))):
        assert dict(ours) == {key: reference[key] for key in ours}
        assert ours.input_ids == reference.input_ids
    for form in ("pt", "np"):
        ours, reference = gpt2_tokenizer(texts, return_tensors=form), theirs(texts, return_tensors=form)
        assert all((ours[key] == reference[key]).all() and ours[key].dtype == reference[key].dtype for key in ours)
    ids = theirs.encode(text)
    assert torch.equal(gpt2_tokenizer.encode(text, return_tensors="pt"), theirs.encode(text, return_tensors="pt"))
    assert gpt2_tokenizer("a", return_tensors="pt").to("cpu").input_ids.shape == (1, 1)
    for skip in (False, True):
        assert gpt2_tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    rows = [ids, ids[:2]]
    assert gpt2_tokenizer.batch_decode(rows) == theirs.batch_decode(rows)
    tokens = theirs.convert_ids_to_tokens(ids)
    assert gpt2_tokenizer.convert_ids_to_tokens(torch.tensor(ids)) == tokens
    assert gpt2_tokenizer.convert_ids_to_tokens(ids[0]) == tokens[0]
    assert gpt2_tokenizer.convert_tokens_to_ids(tokens) == ids
    assert gpt2_tokenizer.convert_tokens_to_ids(tokens[0]) == ids[0]
    assert gpt2_tokenizer.get_vocab() == theirs.get_vocab()
    for name in ("eos_token_id", "bos_token_id", "vocab_size"):
        assert getattr(gpt2_tokenizer, name) == getattr(theirs, name)
    assert gpt2_tokenizer.pad_token_id is None


def test_what_a_call_of_a_tokenizer_cannot_do_says_who_can(gpt2_tokenizer: pl.Tokenizer) -> None:
    for wrong, said in [
        (lambda: gpt2_tokenizer(["a", "a cat sat"], return_tensors="pt"), "model.tokenize(texts)"),
        (lambda: gpt2_tokenizer(["a", "a cat sat"], padding=True), "model.tokenize(texts)"),
        (lambda: gpt2_tokenizer("a", truncation=True), "tokenizer.encode(text)[:length]"),
        (lambda: gpt2_tokenizer("a", return_tensors="tf"), "'pt'"),
    ]:
        with pytest.raises(pl.InputError) as caught:
            wrong()
        assert said in caught.value.remedy
    with pytest.raises(AttributeError):
        getattr(gpt2_tokenizer("a"), "token_type_ids")  # noqa: B009
    assert gpt2_tokenizer.encode("a cat sat")[:2] == gpt2_tokenizer.encode("a cat"), "the remedy works"


def test_a_token_for_padding_alone_betrays_pads() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="a"))
    model = support.glass()
    model.tokenizer = pl.Tokenizer(backend)
    with pytest.raises(pl.InputError, match="the pad id 1"):
        model(torch.tensor([[5, 1, 6]]))


@pytest.mark.parametrize(("said", "reason"), [
    ({"continuing_subword_prefix": "xxx"}, "does not begin with .xxx."),
    ({"vocab": {"a": 0, "b": 1}}, "out of range"),
    ({"vocab": {"a": 0, "b": 1, "ab": 2**31}}, "id 2147483648, expected a whole number below 10,000,000"),
    ({"vocab": {"a": 0, "b": 1, "ab": 2**40}}, "expected u32"),
    ({"unk_token": "NO"}, "Unk token `NO` not found"),
])  # fmt: skip
def test_a_tokenizer_that_cannot_be_is_an_error_of_ours(said: dict[str, Any], reason: str, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    written = json.loads(backend.to_str())
    written["model"].update(said)
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))

    def read() -> Any:
        found = pl.Tokenizer.from_folder(tmp_path)
        return None if found is None else found.encode("abz")

    with pytest.raises(pl.WeightsError, match=reason) as caught:
        read()
    assert caught.value.code == "tokenizer-unreadable"


@pytest.mark.parametrize("vocabulary", ["[1]", "null", '{"a": -1}', '{"a": 1.5}', '{"a": "0"}', '{"a": 99999999}'])
def test_a_vocabulary_without_ids_says_so_in_our_words(vocabulary: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(pl.WeightsError, match=r"vocab\.json' cannot be read: (a JSON|id ).*, expected") as caught:
        pl.Tokenizer.from_folder(tmp_path)
    assert caught.value.code == "tokenizer-unreadable"


@pytest.mark.parametrize(("number", "protocol"), [(int, 4), *((np.int64, protocol) for protocol in range(6))])
def test_nanogpts_characters_are_a_tokenizer(number: Any, protocol: int, tmp_path: Path) -> None:
    import pickle

    from weights.checkpoints import save_nanogpt, small_hf

    characters = sorted(set("\n hello wörld,∂"))
    meta = {"vocab_size": len(characters), "stoi": {c: number(i) for i, c in enumerate(characters)},
            "itos": dict(enumerate(characters))}  # fmt: skip
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    if number is int:
        save_nanogpt(tmp_path / "ckpt.pt", small_hf(activation_function="gelu"))
    tokenizer = pl.load(tmp_path).tokenizer if number is int else pl.Tokenizer.from_folder(tmp_path)
    assert tokenizer is not None
    text = "hello\n wörld,  ∂"
    assert tokenizer.encode(text) == [characters.index(c) for c in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.pieces(tokenizer.encode("w ö")) == ["w", " ", "ö"]
    assert len(tokenizer) == len(characters)
    with pytest.raises(pl.InputError, match="'x': not among") as caught:
        tokenizer.encode("hex")
    assert caught.value.code == "text-not-encoded"


class Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("stoi", [{"ab": 0}, {"a": -1}, {"a": np.float32(0)}, {"a": np.array([0])},
                                  {"a": 0, "b": 0}, {"a": "0"}, [1], 3, {1: 1}, "run", "damaged"])  # fmt: skip
def test_a_meta_pkl_of_something_else_is_refused(stoi: Any, tmp_path: Path) -> None:
    import pickle

    path, mark = tmp_path / "meta.pkl", tmp_path / "mark"
    content = pickle.dumps({"stoi": Touch(mark) if stoi == "run" else stoi})
    path.write_bytes(content[:-3] if stoi == "damaged" else content)
    with pytest.raises(pl.WeightsError, match=r"meta\.pkl"):
        pl.Tokenizer.from_folder(tmp_path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps({"vocab_size": 3}))
    assert pl.Tokenizer.from_folder(tmp_path) is None


def test_half_a_character_is_refused():
    tokenizer = pl.load().tokenizer
    for text in ("\ud800", None, 3):
        with pytest.raises(pl.InputError):
            tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("the")[0]) == "the"
    with pytest.raises(pl.InputError):
        tokenizer.decode([-1])


def test_ids_that_no_vocabulary_has(bundled: pl.CkptedTransformer):
    assert bundled.tokenizer is not None
    tokenizer = bundled.tokenizer
    with pytest.warns(pl.PellucidWarning, match="id 5000 and 1 more without a text: none of its 4096 tokens"):
        assert tokenizer.decode([5, 5000, 10**9]) == tokenizer.decode(5)
    assert tokenizer.pieces([5, 5000]) == [tokenizer.decode(5), ""]  # labels of a model with more rows
    assert tokenizer.convert_ids_to_tokens([5000]) == [None]


NO_IDS: dict[str, tuple[Any, str]] = {
    "beyond any vocabulary": ([2**40], "id-out-of-range"),
    "a number that fills a line": ([10**300], "id-out-of-range"),
    "negative": (-1, "id-out-of-range"),
    "a truth value": ([True], "ids-dtype"),
    "a fraction": ([1.0], "ids-dtype"),
    "a text": ("ab", "ids-dtype"),
    "bytes": (b"ab", "ids-dtype"),
    "nothing": (None, "ids-dtype"),
    "a set": ({1, 2}, "ids-dtype"),
    "rows in a list": ([[1, 2], [3]], "ids-dtype"),
    "rows in a tensor": (torch.ones(2, 3, dtype=torch.long), "ids-dtype"),
    "a tensor without numbers": (torch.ones(2, dtype=torch.long, device="meta"), "ids-not-dense"),
    "a sparse tensor": (torch.eye(2).long().to_sparse(), "ids-not-dense"),
}


@pytest.mark.parametrize("kind", NO_IDS)
@pytest.mark.parametrize("verb", ["decode", "pieces", "convert_ids_to_tokens"])
def test_what_is_no_id_is_refused_at_every_door(verb: str, kind: str, gpt2_tokenizer: pl.Tokenizer):
    ids, code = NO_IDS[kind]
    with pytest.raises(pl.InputError) as caught:
        getattr(gpt2_tokenizer, verb)(ids)
    assert caught.value.code == code
    assert len(str(caught.value)) < 400


def test_what_is_one_row_is_decoded_whatever_its_axes(gpt2_tokenizer: pl.Tokenizer):
    for ids in (torch.tensor([[5, 6]]), np.array([[5, 6]]), (5, 6), range(5, 7), iter([5, 6]), [torch.tensor(5), 6]):
        assert gpt2_tokenizer.decode(ids) == "&'"


@pytest.mark.parametrize("text", [None, 5, b"ab", Path("x"), ["a", 5], "\ud800", {"a": "b"}], ids=repr)
def test_what_is_no_text_is_refused_at_every_door(text: Any, gpt2_tokenizer: pl.Tokenizer):
    for verb in (gpt2_tokenizer, gpt2_tokenizer.encode, gpt2_tokenizer.token_id, gpt2_tokenizer.convert_tokens_to_ids):
        with pytest.raises(pl.InputError) as caught:
            verb(text)
        assert caught.value.code == "text-kind"


def test_rows_are_given_in_a_list(gpt2_tokenizer: pl.Tokenizer):
    assert gpt2_tokenizer.batch_decode(torch.tensor([[5], [6]])) == ["&", "'"]
    for rows in (5, "ab", None):
        with pytest.raises(pl.InputError, match="several of these: row of ids"):
            gpt2_tokenizer.batch_decode(rows)


@pytest.mark.parametrize("name", ["nowhere", "", "a file"])
def test_a_folder_that_is_none_is_refused(name: str, tmp_path: Path):
    (tmp_path / "a file").write_text("{}")
    folder = tmp_path / name if name else Path("not here")
    with pytest.raises(pl.NotFoundError, match="no such folder") as caught:
        pl.Tokenizer.from_folder(folder)
    assert caught.value.code == "path-not-found"


def test_added_tokens_beside_a_vocabulary(tmp_path: Path):
    ids = {character: number for number, character in enumerate("abc")}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<sep>": 3, "<cls>": 4}))
    found = pl.Tokenizer.from_folder(tmp_path)
    assert found is not None
    assert found.encode("a<sep>b<cls>") == [0, 3, 1, 4]
    for wrong in ({"<sep>": 7}, ["<sep>"]):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(pl.WeightsError) as caught:
            pl.Tokenizer.from_folder(tmp_path)
        assert caught.value.code == "tokenizer-unreadable"


def test_a_tokenizer_is_saved_whole_or_refused_by_name(bundled: pl.CkptedTransformer, tmp_path: Path):
    assert bundled.tokenizer is not None
    bundled.tokenizer.save(tmp_path / "new" / "folder")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "folder" / "tokenizer.json"))
    assert again.encode("Lily had a red ball.").ids == bundled.tokenizer.encode("Lily had a red ball.")
    (tmp_path / "file").write_text("")
    with pytest.raises(pl.WeightsError) as caught:
        bundled.tokenizer.save(tmp_path / "file")
    assert caught.value.code == "path-not-writable"


PANICS: dict[str, dict[str, Any]] = {
    "a prefix that no merge has": {"model": {"continuing_subword_prefix": "##"}},
    "pieces of no characters": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a replacement of nothing": {
        "normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    },
    "a beginning of no characters": {
        "normalizer": {"type": "Prepend", "prepend": ""},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    },
    **{
        f"a replacement of {pattern!r}, which may be nothing": {
            "normalizer": {"type": "Replace", "pattern": {"Regex": pattern}, "content": "a"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        }
        for pattern in ("b*", "^", "▁*", '"*', "\t*", r"\d*", "(?=a)", r"\b", "(?=a|b)b*")
    },
}
"""What a `tokenizer.json` holds that makes the library panic, as it reads it or as it encodes a text."""


@pytest.mark.parametrize("case", PANICS)
def test_what_makes_the_library_panic_is_refused_before(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A panic is an error of ours, too, but prints a trace first."""
    stored = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str())
    changed = {k: {**stored[k], **v} if k == "model" else v for k, v in PANICS[case].items()}
    written = json.dumps({**stored, **changed})
    (tmp_path / "tokenizer.json").write_text(written)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for door, path in ((pl.Tokenizer.from_file, tmp_path / "tokenizer.json"), (pl.Tokenizer.from_folder, tmp_path)):
        with pytest.raises(pl.WeightsError, match="cannot be read"):
            door(path)
    assert "panicked" not in capfd.readouterr().err
    with pytest.raises(BaseException) as caught:
        tokenizers.Tokenizer.from_str(written).encode("ab")
    assert caught.type.__name__ == "PanicException"


@pytest.mark.parametrize(("pattern", "content"), [("$", "a"), (r"\s*$", "a"), ("(?<=a)", "b"), ("b*", "")])
def test_what_replaces_nothing_elsewhere_than_before_a_text_is_run(pattern: str, content: str, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), content)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert pl.Tokenizer.from_file(tmp_path / "tokenizer.json").encode("ab") == backend.encode("ab").ids


def test_another_panic_of_the_library_is_an_error_of_ours() -> None:
    class Panic(BaseException):
        pass

    with pytest.raises(pl.WeightsError, match="'a file' cannot be read: slice index") as caught, library("a file"):
        raise Panic("slice index")
    assert caught.value.code == "tokenizer-unreadable"
