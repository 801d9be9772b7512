"""`pellucid doctor`: what it says of this installation is so, and a damaged model is noticed."""

from __future__ import annotations

import hashlib
import platform
import shutil
import socket
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
from pellucid.cli.work import doctor
from pellucid.numerics import quickest
from pellucid.open import BUNDLED
from support import few_of

ROOT = Path(__file__).parents[2]
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled model, with hashes of its own, in the bundled model's place."""
    for name in NEEDED:
        shutil.copyfile(BUNDLED / name, tmp_path / name)
    lines = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in NEEDED]
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    monkeypatch.setattr(doctor, "BUNDLED", tmp_path)
    return tmp_path


def test_json(cli_json: Any) -> None:
    found = cli_json("doctor")
    assert list(found) == ["pellucid", "python", "platform", "versions", "device", "extras", "bundled"]
    assert (found["pellucid"], found["python"]) == (pl.__version__, platform.python_version())
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["device"]["cpu_threads"] == torch.get_num_threads()
    assert len(found["device"]["cuda"]) == torch.cuda.device_count()
    assert found["bundled"]["folder"] == str(BUNDLED)
    assert found["bundled"]["intact"] is True
    states = {one["file"]: (one["state"], one["found"]) for one in found["bundled"]["files"]}
    for name in NEEDED:
        assert states[name] == ("intact", hashlib.sha256((BUNDLED / name).read_bytes()).hexdigest())


def test_tables_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [line.split(">=")[0] for line in project["dependencies"]]
    assert list(doctor.LIBRARIES) == names
    extras = {
        extra: [line.split(">=")[0] for line in lines if not line.startswith("pellucid[")]
        for extra, lines in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert {name: list(libraries) for name, (libraries, _) in doctor.EXTRAS.items()} == extras
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [extra for extra in extras if f"`pip install '.[{extra}]'`" not in page] == []


def test_text(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 1)
    result = cli("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    listed = result.stdout.splitlines()[1 : 3 + len(doctor.LIBRARIES)]
    assert [line.split()[0] for line in listed] == ["pellucid", "python", *doctor.LIBRARIES]
    for line in (f"torch            {metadata.version('torch')}", "intact: every file is the one that was shipped"):
        assert line in result.stdout
    assert " on 1 core " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    """Nothing is left of it."""
    path.write_bytes(b"")


DAMAGES = ((flip, "changed"), (empty, "changed"), (Path.unlink, "missing"))


@pytest.mark.parametrize(
    ("name", "damage", "state"),
    few_of(
        [(name, *kind) for name in NEEDED for kind in DAMAGES],
        *((name, *DAMAGES[0]) for name in NEEDED),
        *((NEEDED[1], *kind) for kind in DAMAGES),
    ),
)
def test_damage_is_1_and_names_the_file(
    name: str, damage: Callable[[Path], None], state: str, folder: Path, cli: Any, cli_json: Any
) -> None:
    assert cli("doctor").exit_code == 0
    damage(folder / name)
    found = cli_json("doctor", expect=1)["bundled"]
    assert found["intact"] is False
    assert {one["file"]: one["state"] for one in found["files"]} == {**dict.fromkeys(NEEDED, "intact"), name: state}
    result = cli("doctor")
    assert (result.exit_code, result.stderr) == (1, "")
    assert "not intact" in result.stdout
    assert f"{name} {state}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"0123  model.safetensors\n", b"a\n" * 1000])
def test_hashes_that_are_not_there_are_1(content: bytes | None, folder: Path, cli: Any, cli_json: Any) -> None:
    (folder / "SHA256SUMS").unlink()
    if content is not None:
        (folder / "SHA256SUMS").write_bytes(content)
    files = cli_json("doctor", expect=1)["bundled"]["files"]
    assert [(one["file"], one["state"]) for one in files] == [(name, "unlisted") for name in NEEDED]
    assert "SHA256SUMS names none of them" in cli("doctor").stdout


def test_a_file_that_the_hashes_name_beyond_the_needed_ones_counts(folder: Path, cli_json: Any) -> None:
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest().upper()} *card.json\n")
    assert cli_json("doctor", expect=1)["bundled"]["files"][0]["state"] == "missing"
    (folder / "card.json").write_bytes(b"")
    assert cli_json("doctor")["bundled"]["files"][0]["state"] == "intact"


def test_a_missing_extra_comes_with_its_command_and_is_no_failure(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def version_of(library: str) -> str | None:
        return None if library in ("transformers", "matplotlib") else "1.0"

    monkeypatch.setattr(doctor, "version_of", version_of)
    result = cli("doctor")
    assert result.exit_code == 0
    for said in ("missing: transformers", "pip install 'pellucid[hf]'", "missing: matplotlib", "'pellucid[stats]'"):
        assert said in result.stdout


def test_an_absent_library_has_no_version() -> None:
    assert doctor.version_of("no-such-distribution-anywhere") is None


def test_it_uses_no_network(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert cli("doctor").exit_code == 0


@pytest.fixture
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MATRICES", {"W_O": (64, 64), "W_U": (64, 300)})


def test_speed_shows_what_a_run_takes(
    cli_json: Any, cli: Any, small_matrices: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PELLUCID_PRODUCTS", raising=False)
    assert "speed" not in cli_json("doctor")
    speed = cli_json("doctor", "--speed")["speed"]
    assert speed["torch"] == torch.__version__
    assert [(row["matrix"], row["rows"]) for row in speed["products"]] == [
        (name, rows) for name in ("W_O", "W_U") for rows in doctor.ROWS
    ]
    for row in speed["products"]:
        measured = row["rows"] * row["inputs"] * row["outputs"] >= 2**20
        assert sorted(row["gflops"]) == (["onednn", "packed", "torch"] if measured else [])
        values, outputs = torch.rand(row["rows"], row["inputs"]), row["outputs"]
        weight = torch.rand(outputs, row["inputs"]) if row["matrix"] == "W_U" else torch.rand(64, outputs).t()
        bias = None if row["matrix"] == "W_U" else torch.rand(outputs)
        for key, may_pack in (("library", False), ("packed", True)):
            assert row[key] == quickest.library_for(values, weight, bias, may_pack=may_pack)
    shown = cli("doctor", "--speed").stdout
    assert "W_U 64 x 300" in shown
    assert "billions of operations a second" in shown


def test_speed_says_who_decided(cli: Any, small_matrices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_PRODUCTS", "onednn")
    shown = cli("doctor", "--speed").stdout
    assert "PELLUCID_PRODUCTS=onednn" in shown
    assert shown.count("onednn") == 4 * len(doctor.ROWS) + 2
