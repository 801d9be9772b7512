"""What a caller gives as a path: every verb that writes one reads it alike, and refuses what is none alike."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pellucid import exercises
from pellucid.viewer import trace

FOLDERS: dict[str, Callable[[Any, Any], object]] = {
    "save_pretrained": lambda made, path: made.model.save_pretrained(path),
    "Tokenizer.save": lambda made, path: made.model.tokenizer.save(path),
    "save_hf": lambda made, path: pl.save_hf(made.hf, path),
    "SparseAutoencoder.save": lambda made, path: made.sae.save(path),
}
FILES: dict[str, Callable[[Any, Any], object]] = {
    "ActivationCkpts.save": lambda made, path: made.ckpts.save(path),
    "Alignment.save": lambda made, path: made.report.alignment.save(path),
    "save_html": lambda made, path: pl.save_html(made.report, path),
    "KeyValueCache.save": lambda made, path: made.cache.save(path),
    "starter": lambda made, path: exercises.starter(path),
    "TunedLens.save": lambda made, path: made.lens.save(path),
    "save_view": lambda made, path: pl.save_view(made.trace, path),
}
VERBS = FOLDERS | FILES
OTHERS: dict[str, Callable[[Any, Any], object]] = {
    "capture": lambda made, path: pl.corpus.capture(made.model, support.ROW.tolist(), "resid_pre", path),
    "stream": lambda made, path: pl.measure.stream(
        made.model, support.ROW.tolist(), [pl.measure.Moments("resid_pre")], checkpoint=path
    ),
    "TunedLens.fit": lambda made, path: pl.lens.TunedLens.fit(made.model, support.ROW.tolist(), path=path),
}
"""Verbs that write while they work."""


@pytest.fixture(scope="module")
def made() -> Any:
    model = support.glass(n_layer=2, n_embd=8, n_head=2)
    model.tokenizer = pl.load().tokenizer
    cache = pl.KeyValueCache(model.config)
    weights = {"W_enc": torch.zeros(8, 4), "b_enc": torch.zeros(4), "W_dec": torch.ones(4, 8), "b_dec": torch.zeros(8)}
    model(support.ROW, cache=cache)
    return SimpleNamespace(
        model=model, hf=pl.to_hf(model), ckpts=model.run_with_ckpts(support.ROW)[1], cache=cache,
        report=pl.compare(model, model, inputs=support.ROW), trace=trace(pl.load(), "One"),
        lens=pl.lens.TunedLens(torch.zeros(1, 8, 8), torch.zeros(1, 8), torch.zeros(1, 1)),
        sae=pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.0.resid_post", "relu"), weights),
    )  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


GIVEN: list[Any] = ["", " ", "a\0b", "\ud800", b"bytes", 5, None, ["x"], True]


@pytest.mark.parametrize(
    ("verb", "given"),
    support.few_of(
        itertools.product(VERBS, GIVEN),
        *itertools.product(VERBS, ("a\0b", 5)),
        *itertools.product([*VERBS][:2], GIVEN),
    ),
    ids=repr,
)
def test_what_is_no_path_is_refused_and_nothing_is_written(verb: str, given: Any, made: Any, here: Path):
    if verb == "starter" and given is None:
        pytest.skip("starter() gives the text alone")
    with pytest.raises(pl.WeightsError) as caught:
        VERBS[verb](made, given)
    assert caught.value.code == "not-a-path"
    assert not os.listdir(here)


@pytest.mark.parametrize("verb", [*VERBS, *OTHERS])
def test_a_tilde_is_the_users_own_folder_and_folders_that_are_missing_are_made(verb: str, made: Any, here: Path):
    for number, kind in enumerate((str, Path)):
        (VERBS | OTHERS)[verb](made, kind(f"~/deep/{number}"))
        assert (here.parent / "home" / "deep" / str(number)).exists()
    assert not os.listdir(here)


@pytest.mark.parametrize("verb", FOLDERS)
def test_a_folder_is_written_as_it_is_named(verb: str, made: Any, here: Path):
    (here / "link").symlink_to("real")
    (here / "real").mkdir()
    for given in (".", "new/", "new/deep/one", Path("path"), "link", "real"):
        FOLDERS[verb](made, given)
        assert any(name.endswith(".json") for name in os.listdir(given))
    assert (here / "link").is_symlink()


@pytest.mark.parametrize("name", ["file", "dangling", "loop", "file/below", "/dev/full", "n" * 300])
@pytest.mark.parametrize("verb", FOLDERS)
def test_what_can_be_no_folder_is_named(verb: str, name: str, made: Any, here: Path):
    _obstacles(here)
    with pytest.raises(pl.WeightsError, match="cannot be written: ") as caught:
        FOLDERS[verb](made, name)
    assert caught.value.code == "path-not-writable"
    assert ascii(name)[1:-1] in caught.value.message
    assert (here / "file").read_text() == "kept"
    assert sorted(os.listdir(here)) == ["dangling", "file", "folder", "loop"]


@pytest.mark.every_pair
@pytest.mark.parametrize("name", ["folder", "folder/", "new/", ".", "loop", "file/below", "/dev/full", "n" * 300])
@pytest.mark.parametrize("verb", FILES)
def test_what_can_be_no_file_is_named(verb: str, name: str, made: Any, here: Path):
    if verb == "starter" and name != "new/" and (os.path.lexists(here / name) or name.startswith(("folder", "loop"))):
        pytest.skip("what exists is refused by another rule")
    _obstacles(here)
    with pytest.raises(pl.PellucidError) as caught:
        FILES[verb](made, name)
    assert caught.value.code in ("path-not-writable", "file-exists")
    assert ascii(name.rstrip("/"))[1:-1] in caught.value.message
    assert (here / "file").read_text() == "kept"
    assert sorted(os.listdir(here)) == ["dangling", "file", "folder", "loop"]
    assert not os.listdir(here / "folder")


def test_what_is_written_in_the_users_own_folder_is_read_there(made: Any, here: Path):
    made.model.save_pretrained("~/m")
    assert pl.compare(pl.load("~/m"), made.model, inputs=support.ROW).verdict == "identical"
    made.ckpts.save("~/c.safetensors")
    assert list(pl.ActivationCkpts.load("~/c.safetensors")) == list(made.ckpts)
    made.report.alignment.save("~/a.json")
    assert len(pl.Alignment.load("~/a.json").matches) == len(made.report.alignment.matches)


def _obstacles(here: Path) -> None:
    (here / "file").write_text("kept")
    (here / "folder").mkdir()
    (here / "dangling").symlink_to("nowhere/at/all")
    (here / "loop").symlink_to("loop")
