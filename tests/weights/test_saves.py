"""A model's folder is saved as one: whatever is killed, and whoever saves at the same time, no mixture is ever read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import GPT2LMHeadModel

import pellucid as pl
from killed import CHANGES, at_every_step, in_a_child
from noticed import must_be_noticed
from pellucid import atomic
from pellucid.weights import own_file, saves
from test_atomic import files_of_at_most
from weights.checkpoints import small_hf, stored_bytes

Saver = Callable[[Path], object]


def tokenizer(*pieces: str) -> pl.Tokenizer:
    return pl.Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token=pieces[0]))
    )


def model(number: int, *, reads: bool = True, **fields: Any) -> pl.CkptedTransformer:
    """Number, configuration and tokenizer say the same of it."""
    made = pl.from_hf(small_hf(n_embd=16, n_head=2, layer_norm_epsilon=10.0**-number, **fields))
    with torch.no_grad():
        made.ln_final.b.fill_(float(number))
    made.tokenizer = tokenizer("a", f"{number}") if reads else None
    return made


def number_in(folder: Path) -> int:
    """Which model a folder holds; every part of it says the same."""
    found = pl.load(folder)
    said = {round(found.ln_final.b[0].item()), round(-torch.tensor(found.config.layer_norm_epsilon).log10().item())}
    if found.tokenizer is not None:
        said.add(int(found.tokenizer.decode(1)))
    assert len(said) == 1, f"a mixture of the models {said}"
    return said.pop()


def number_or_error(folder: Path) -> int | None:
    try:
        return number_in(folder)
    except pl.WeightsError as error:
        if error.code != "saves-mixed":
            raise
        return None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ONE, TWO = model(1), model(2)


def by_transformers(number: int) -> Saver:
    """What transformers writes, which carries no id."""
    return lambda folder: pl.to_hf(model(number)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("old", "reads"),
    [
        (ONE.save_pretrained, True),
        (by_transformers(1), False),
        pytest.param(ONE.save_pretrained, False, marks=pytest.mark.long),
        pytest.param(by_transformers(1), True, marks=pytest.mark.long),
    ],
)
def test_a_kill_at_every_step_leaves_one_model_or_says_so(old: Saver, reads: bool, tmp_path: Path):
    new, seen, folder = model(2, reads=reads), [], tmp_path / "model"
    old(tmp_path / "old")
    shutil.copytree(tmp_path / "old", folder)
    (folder / "notes.txt").write_text("mine")
    for _ in at_every_step(lambda: new.save_pretrained(folder), CHANGES, after=False):
        seen.append(number_or_error(folder))
        if seen[-1] is None:
            new.save_pretrained(folder)
            assert number_in(folder) == 2, "the remedy: save again"
        if seen[-1] != 1:
            for name in {*names(folder)} - {"notes.txt"}:
                (folder / name).unlink()
            shutil.copytree(tmp_path / "old", folder, dirs_exist_ok=True)
    assert set(seen) == {1, 2, None}
    assert number_in(folder) == 2
    kept = {"config.json", "model.safetensors", "notes.txt"} | (
        {"tokenizer.json", "tokenizer_config.json"} if reads else set()
    )
    assert kept <= set(names(folder)) <= kept | {"generation_config.json"}


@pytest.mark.remedy("saves-mixed")
def test_the_other_remedy_is_to_say_that_they_belong_together(tmp_path: Path):
    model(1, reads=False).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    TWO.save_pretrained(tmp_path / "two")
    os.replace(tmp_path / "two" / "config.json", config)
    with pytest.raises(pl.WeightsError, match=r"model\.safetensors and config\.json come from two") as caught:
        pl.load(tmp_path)
    for call in (pl.audit_ties, lambda path: pl.load(path / "model.safetensors")):
        with pytest.raises(pl.WeightsError):
            call(tmp_path)
    assert "delete the line 'pellucid_save' from config.json" in caught.value.remedy
    lines = config.read_text().splitlines()
    config.write_text("\n".join(line for line in lines if "pellucid_save" not in line))
    assert pl.load(tmp_path).config.layer_norm_epsilon == 1e-2


def test_what_is_edited_or_exchanged_on_purpose_is_read(tmp_path: Path):
    ONE.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.5}))
    assert pl.load(tmp_path).config.layer_norm_epsilon == 0.5
    ONE.save_pretrained(tmp_path)
    hf = GPT2LMHeadModel.from_pretrained(tmp_path)
    with torch.no_grad():
        hf.transformer.ln_f.bias.fill_(7.0)
    hf.save_pretrained(tmp_path)  # carries our id in its configuration, and none in its weights
    assert pl.load(tmp_path).ln_final.b[0].item() == 7.0
    assert pl.from_hf(hf).config == ONE.config
    later = model(1)
    with torch.no_grad():
        later.ln_final.b.fill_(9.0)
    ONE.save_pretrained(tmp_path / "first")
    later.save_pretrained(tmp_path / "later")
    os.replace(tmp_path / "later" / "model.safetensors", tmp_path / "first" / "model.safetensors")
    assert pl.load(tmp_path / "first").ln_final.b[0].item() == 9.0, (
        "weights of one configuration and tokenizer are exchanged freely"
    )


def test_the_id_is_no_field_of_the_model(tmp_path: Path):
    ONE.save_pretrained(tmp_path / "a")
    again = pl.load(tmp_path / "a")
    assert "pellucid_save" not in again.config.to_dict()
    assert "pellucid_save" not in pl.TransformerConfig.from_pretrained(str(tmp_path / "a")).to_dict()
    again.save_pretrained(tmp_path / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }, "saving is reproducible"


def test_what_an_earlier_save_wrote_beside_does_not_stay_behind(tmp_path: Path):
    ONE.save_pretrained(tmp_path)
    model(2, reads=False).save_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    tokenizer("a", "3").save(tmp_path)  # somebody's own, put there before the model, as scripts do
    model(3, reads=False).save_pretrained(tmp_path)
    assert number_in(tmp_path) == 3
    ONE.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer("a", "4").to_json())  # changed after the save
    model(4, reads=False).save_pretrained(tmp_path)
    assert number_in(tmp_path) == 4


def test_an_interrupted_save_is_repeated_and_no_old_tokenizer_stays(tmp_path: Path):
    """Killed after the new weights took their name, with the old tokenizer there, whose record was in the old ones."""
    ONE.save_pretrained(tmp_path / "old")
    new = model(2, reads=False)
    shutil.copytree(tmp_path / "old", tmp_path / "mixed")
    new.save_pretrained(tmp_path / "mixed")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "old" / name, tmp_path / "mixed")
    assert number_or_error(tmp_path / "mixed") is None
    new.save_pretrained(tmp_path / "mixed")
    assert names(tmp_path / "mixed") == ["config.json", "model.safetensors"]


def test_shards_of_an_earlier_save_go(tmp_path: Path):
    hf = small_hf()
    hf.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ONE.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert number_in(tmp_path) == 1


def slow_renames(patch: pytest.MonkeyPatch) -> None:
    plain = os.replace
    patch.setattr(os, "replace", lambda *names: (plain(*names), time.sleep(0.003))[0])


def test_savers_at_the_same_time_and_a_reader_among_them(tmp_path: Path):
    ONE.save_pretrained(tmp_path)
    seen: set[int | None] = set()
    with pytest.MonkeyPatch.context() as patch:
        slow_renames(patch)  # in the children; the reader renames nothing
        children = [
            in_a_child(lambda saved=saved: [saved.save_pretrained(tmp_path) for _ in range(12)])
            for saved in (ONE, TWO, model(3, reads=False))
        ]
    running = set(children)
    while running:
        seen.add(number_or_error(tmp_path))
        running -= {child for child in running if os.waitpid(child, os.WNOHANG)[0]}
    assert number_in(tmp_path) in (1, 2, 3)
    assert len(seen - {None}) > 1
    assert {"config.json", "model.safetensors"} <= set(names(tmp_path)) <= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip


@pytest.mark.parametrize("shards", [pytest.param(None, marks=pytest.mark.long), "32KB"])
def test_save_hf_is_killed_at_every_step(shards: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = pl.to_hf(ONE), pl.to_hf(model(2, reads=False))
    if shards:
        plain = GPT2LMHeadModel.save_pretrained
        monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", lambda self, at: plain(self, at, max_shard_size=shards))
    folder = tmp_path / "model"
    pl.save_hf(new, folder)
    seen = [number_or_error(folder)]
    pl.save_hf(old, folder)
    shutil.copytree(folder, tmp_path / "old")
    for step in at_every_step(lambda: pl.save_hf(new, folder), ((os, "replace"),), after=False):
        seen.append(number_or_error(folder))
        if seen[-1] != 1:
            assert step > 1
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "old", folder)
    assert seen[0] == 2
    assert set(seen) == {1, 2, None}
    assert not list(folder.glob(".pellucid*"))


@pytest.mark.parametrize("size", [300, 3000])
def test_a_full_disk_leaves_the_old_model(size: int, tmp_path: Path):
    hf = pl.to_hf(ONE)
    pl.save_hf(hf, tmp_path / "hf")
    ONE.save_pretrained(tmp_path / "ours")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for save, folder in ((TWO.save_pretrained, "ours"), (lambda path: pl.save_hf(hf, path), "hf")):
        with files_of_at_most(size), pytest.raises(pl.WeightsError) as caught:
            save(tmp_path / folder)
        assert caught.value.code == "path-not-writable"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_a_link_in_the_folder_stays_one(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "disk" / "weights")
    ONE.save_pretrained(folder)
    TWO.save_pretrained(folder)
    assert (folder / "model.safetensors").is_symlink()
    assert names(tmp_path / "disk") == ["weights"]
    assert number_in(folder) == 2


def test_every_tensor_begins_on_a_boundary(tmp_path: Path):
    """Of any configuration: the data on 64 bytes, and each tensor on a place as round as its own size."""
    for n_embd, vocab_size, untied in ((16, 61, False), (12, 61, True), (10, 7, True), (6, 3, False)):
        hf = small_hf(n_embd=n_embd, n_head=2, vocab_size=vocab_size, tie_word_embeddings=not untied)
        hf.save_pretrained(tmp_path / "theirs")
        pl.save_hf(hf, tmp_path / "hf")
        pl.from_hf(hf).save_pretrained(tmp_path / "ours")
        for side in ("hf", "ours"):
            path = tmp_path / side / "model.safetensors"
            assert stored_bytes(path) == stored_bytes(tmp_path / "theirs" / "model.safetensors")
            content = path.read_bytes()
            start = 8 + int.from_bytes(content[:8], "little")
            assert start % 64 == 0
            header = json.loads(content[8:start])
            if side == "ours":
                for name, (_, _, data) in stored_bytes(path).items():
                    divisor = min(len(data) & -len(data), 64)
                    assert header[name]["data_offsets"][0] % divisor == 0
        again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in hf.state_dict().items())


def test_widths_of_published_models_are_laid_out_as_transformers_does(tmp_path: Path):
    hf = small_hf(n_embd=32, n_head=4, vocab_size=96)
    hf.save_pretrained(tmp_path / "theirs")
    pl.from_hf(hf).save_pretrained(tmp_path / "ours")
    theirs, ours = ((tmp_path / side / "model.safetensors").read_bytes() for side in ("theirs", "ours"))
    assert theirs[8 + int.from_bytes(theirs[:8], "little") :] == ours[8 + int.from_bytes(ours[:8], "little") :]


def test_the_metadata_of_no_safetensors_file_are_none(tmp_path: Path):
    for content in (
        b"",
        b"12345678",
        (2**63).to_bytes(8, "little") + b"{}",
        b"\2\0\0\0\0\0\0\0[]",
        b"\x22\0\0\0\0\0\0\0" + b'{"__metadata__":[1,2,3,4,5,6,7,8]}',
        b"\xff\0\0\0\0\0\0\0" + b"[" * 255,
    ):
        (tmp_path / "file").write_bytes(content)
        with (tmp_path / "file").open("rb") as file:
            assert own_file.read_metadata(file) == {}


def test_a_save_while_a_folder_is_read_is_noticed(tmp_path: Path):
    """After the weights were read, and before the tokenizer is."""
    ONE.save_pretrained(tmp_path)
    plain, left = pl.Tokenizer.from_folder, [TWO.save_pretrained]

    def from_folder(folder: Path) -> Any:
        while left:
            left.pop()(folder)
        return plain(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Tokenizer, "from_folder", from_folder)
        assert number_in(tmp_path) == 2


def test_a_folder_that_is_saved_without_an_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ONE.save_pretrained(tmp_path)
    draws = iter(range(1000))
    monkeypatch.setattr(saves, "_state", lambda path: next(draws))  # it changes at every look
    assert number_in(tmp_path) == 1, "savers are kept out, and the last look counts"
    monkeypatch.setattr(atomic, "LONGEST_WAIT", 0.0)
    with atomic.alone(tmp_path), pytest.raises(pl.WeightsError, match="another process has been saving") as caught:
        pl.load(tmp_path)
    assert caught.value.code == "path-unreadable"


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "mixtures are read": (
        saves, "ids_in", lambda fields: frozenset(),
        lambda folder: test_a_kill_at_every_step_leaves_one_model_or_says_so(ONE.save_pretrained, True, folder),
    ),
    "a configuration of others is not marked": (
        saves, "_marked", lambda folder: [],
        lambda folder: test_a_kill_at_every_step_leaves_one_model_or_says_so(by_transformers(1), True, folder),
    ),
    "a reader does not look again": (
        saves, "_state", lambda path: {}, test_a_save_while_a_folder_is_read_is_noticed,
    ),
    "a tokenizer stays behind": (
        saves, "_outdated", lambda folder: [], test_what_an_earlier_save_wrote_beside_does_not_stay_behind,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, tmp_path: Path):
    must_be_noticed(MUTANTS[name], tmp_path, by=[pl.PellucidError])


def test_a_tie_that_the_configuration_denies_is_not_saved(tiny: pl.CkptedTransformer, tmp_path):
    tiny.config = tiny.config.replace(tie_word_embeddings=False)
    with pytest.raises(pl.WeightsError):
        tiny.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
