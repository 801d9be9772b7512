"""Texts from files: each once, in order, or an error that says where."""

from __future__ import annotations

import bz2
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
from noticed import must_be_noticed
from pellucid.corpus import text_files

TEXTS = ["Once upon a time", "Fin.\nÉpilogue", "  spaces  ", "tab\tand \u2028 separator"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts in every kind of file, of which none is in two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n\nthree")
    lines = "".join(json.dumps({"text": text, "content": "other"}) + "\n" for text in TEXTS)
    (tmp_path / "b.jsonl").write_text(lines + "\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "text": TEXTS}), tmp_path / "d.parquet")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "e.txt").write_text("five")
    (tmp_path / ".hidden").write_text("not read")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b.jsonl.metadata").write_text("not read either")
    return tmp_path


def test_kinds_of_files(folder: Path) -> None:
    assert list(pl.corpus.read(folder / "a.txt")) == ["one\ntwo\n\nthree"]
    assert list(pl.corpus.read(str(folder / "a.txt"), lines=True)) == ["one", "two", "three"]
    for name in ("b.jsonl", "c.jsonl.gz", "d.parquet"):
        assert list(pl.corpus.read(folder / name)) == TEXTS, name
    assert list(pl.corpus.read(folder / "b.jsonl", field="content")) == ["other"] * 4
    several = [folder / "inside" / "e.txt", str(folder / "b.jsonl")]
    assert list(pl.corpus.read(several)) == ["five", *TEXTS]


def test_a_folder_is_its_files_in_the_order_of_their_names(folder: Path) -> None:
    assert list(pl.corpus.read(folder)) == ["one\ntwo\n\nthree", *TEXTS, *TEXTS, *TEXTS, "five"]


def test_a_file_is_not_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "ROWS_AT_ONCE", 1)
    for name in ("b.jsonl", "d.parquet"):
        found = pl.corpus.read(folder / name)
        assert next(found) == TEXTS[0]
        assert list(found) == TEXTS[1:]


WRONG: dict[str, tuple[Any, str, str]] = {
    "nothing.txt": (None, "path-not-found", "nothing.txt"),
    "latin.txt": ("é".encode("latin-1"), "text-not-utf8", "iconv"),
    "texts.jsonl.bz2": (bz2.compress(b"a"), "text-not-utf8", "Unpack it"),
    "no.jsonl": (b'{"text": "a"}\nno json\n', "corpus-damaged", "line 2"),
    "list.jsonl": (b"[1, 2]\n", "corpus-field", "line 1"),
    "other.jsonl": (b'{"content": "a"}\n', "corpus-field", "it has 'content'"),
    "number.jsonl": (b'{"text": 3}\n', "corpus-field", "line 1"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "corpus-damaged", "line 1"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:20], "corpus-damaged", "cut.jsonl.gz"),
    "no.jsonl.gz": (b"no gzip", "corpus-damaged", "no.jsonl.gz"),
    "no.parquet": (b"no parquet", "corpus-damaged", "no.parquet"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    content, code, said = WRONG[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(pl.PellucidError) as caught:
        list(pl.corpus.read(tmp_path / name))
    assert caught.value.code == code
    assert said in str(caught.value)


def test_a_folder_without_files_and_a_column_of_something_else(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(pl.NotFoundError, match="no file"):
        list(pl.corpus.read(tmp_path))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "d.parquet")
    for field in ("text", "content"):
        with pytest.raises(pl.InputError, match=f"no text under '{field}'"):
            list(pl.corpus.read(tmp_path / "d.parquet", field=field))


def test_a_pipe_in_a_folder_and_a_page_that_is_damaged(folder: Path) -> None:
    content = (folder / "d.parquet").read_bytes()
    at = content.index(b"Once upon")
    (folder / "d.parquet").write_bytes(content[: at - 8] + b"\xff" * 24 + content[at + 16 :])
    with pytest.raises(pl.PellucidError) as caught:
        list(pl.corpus.read(folder / "d.parquet"))
    assert caught.value.code in ("corpus-damaged", "corpus-field"), "a length, or the bytes of a text"
    os.mkfifo(folder / "pipe")
    with pytest.raises(pl.WeightsError, match="a pipe, expected a regular file"):
        list(pl.corpus.read([folder / "a.txt", folder / "pipe"]))
    (folder / "d.parquet").unlink()
    with pytest.raises(pl.WeightsError, match="a pipe"):
        list(pl.corpus.read(folder))


@pytest.mark.parametrize(
    ("problem", "seen", "code"),
    [
        (MemoryError(), MemoryError, None), (OSError(5, "Input/output error"), pl.WeightsError, "path-unreadable"),
        (OSError("no footer"), pl.InputError, "corpus-damaged"),
    ],
)  # fmt: skip
def test_only_a_damaged_file_is_said_to_be_damaged(
    problem: Exception, seen: type[Exception], code: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise problem

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fail)
    with pytest.raises(seen) as caught:
        list(pl.corpus.read(folder / "d.parquet"))
    assert getattr(caught.value, "code", None) == code


def test_a_mistake_is_noticed(folder: Path) -> None:
    plain = text_files._objects
    once = lambda file, path, field: (text for n, text in enumerate(plain(file, path, field)) if n)  # noqa: E731
    must_be_noticed((text_files, "_objects", once, test_kinds_of_files), folder)
