"""Only regular files are opened: a pipe, a device or a folder in the place of any file is an error at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import pellucid as pl
from pellucid.weights.manifests import read_text
from weights.checkpoints import small_hf

KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "noise": lambda path: path.symlink_to("/dev/urandom"),
    "terminal": lambda path: path.symlink_to("/dev/ptmx"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("gone"),
}
CODES = {"loop": "path-unreadable", "nowhere": "path-not-found"}
"""Of the error; that of the others is path-not-regular."""

DOORS: dict[str, Callable[[Path], object]] = {
    "config.json": pl.load,
    "model.safetensors": pl.load,
    "model.safetensors.index.json": pl.load,
    "pytorch_model.bin": pl.load,
    "ckpt.pt": pl.load,
    "tokenizer.json": pl.load,
    "vocab.json": pl.load,
    "merges.txt": pl.load,
    "added_tokens.json": pl.load,
    "tokenizer_config.json": pl.load,
    "config.json, its sizes alone": lambda folder: pl.TransformerConfig.from_pretrained(str(folder)),
    "config.json, audited": pl.audit_ties,
    "model.safetensors, audited": pl.audit_ties,
}
"""The file whose place is taken -> the call that would read it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    small_hf().save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, door: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    name = door.split(",", maxsplit=1)[0]
    if name in ("model.safetensors.index.json", "pytorch_model.bin", "ckpt.pt"):
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    KINDS[kind](folder / name)
    with pytest.raises(pl.WeightsError) as caught:
        DOORS[door](folder)
    assert caught.value.code == CODES.get(kind, "path-not-regular"), str(caught.value)
    assert name in caught.value.message


@pytest.mark.parametrize("door", DOORS)
def test_with_regular_files_every_door_opens(door: str, whole: Path) -> None:
    DOORS[door](whole)


def test_a_text_is_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("ä" * 50, encoding="utf-8")
    assert read_text(path, longest=100) == "ä" * 50
    with pytest.raises(pl.WeightsError, match="longer than 99 bytes"):
        read_text(path, longest=99)
    with pytest.raises(pl.NotFoundError):
        read_text(tmp_path / "none")
    with pytest.raises(pl.WeightsError):
        read_text("a\0b")
