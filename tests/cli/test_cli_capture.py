"""`pellucid capture`: what it writes is what the library writes, and what differs is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
from pellucid.cli import main
from pellucid.corpus import intake, part_making, ray_workers
from pellucid.open import BUNDLED

WANTED = ("--names", "blocks.3.resid_post", "--names", "blocks.0.mlp.ckpt_post")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("Once upon a time\n\nThe end\n")
    return tmp_path / "a.txt"


def test_it_is_the_librarys(bundled: pl.CkptedTransformer, cli_json: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    found = cli_json("capture", "--data", str(data), "--lines", *WANTED, "--out", str(out))
    names = ["blocks.0.mlp.ckpt_post", "blocks.3.resid_post"]
    assert found["names"] == {names[0]: [6, 1024], names[1]: [6, 256]}
    assert (found["model"], found["out"], found["rows"], found["texts"], found["parts"]) == (
        "bundled", str(out), 6, 2, 1,
    )  # fmt: skip
    store = pl.corpus.capture(bundled, ["Once upon a time", "The end"], names, tmp_path / "b.zarr")
    assert found["nbytes"] == store.plan.nbytes == 6 * (1024 + 256) * 4
    opened = pl.corpus.open(out)
    for name in names:
        assert (opened[name][:] == store[name][:]).all()
    assert found["provenance"]["weights"] == store.provenance["weights"]
    said = cli_json("capture", "--data", str(data), "--lines", *WANTED, "--out", str(out))
    assert said == found, "it is there already"


def test_the_engine_and_its_workers_are_the_librarys(
    cli_json: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int | None]] = []
    plain = pl.corpus.capture

    def capture(*given: Any, engine: str, workers: int | None, **about: Any) -> Any:
        asked.append((engine, workers))
        return plain(*given, **about)

    monkeypatch.setattr(pl.corpus, "capture", capture)
    given = ("capture", "--data", str(data), "--lines", *WANTED, "--out", str(tmp_path / "a.zarr"))
    cli_json(*given, "--engine", "ray", "--workers", "3")
    cli_json(*given)
    assert asked == [("ray", 3), ("local", None)]


@pytest.mark.long  # a Ray of its own; tests/corpus/test_ray_engine.py starts one for all of its tests
def test_ray_writes_the_same(cli_json: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started for that, and stopped."""
    ray: Any = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")  # other tests may have one at the same time
    given = ("capture", "--data", str(data), "--lines", *WANTED, "--out")
    state = lambda: (signal.getsignal(signal.SIGTERM), *map(os.environ.get, ray_workers.SET_BY_RAY))  # noqa: E731
    before = state()
    found = cli_json(*given, str(tmp_path / "ray.zarr"), "--engine", "ray", "--workers", "1")
    assert not ray.is_initialized()
    assert state() == before
    here = cli_json(*given, str(tmp_path / "here.zarr"))
    assert found == {**here, "out": str(tmp_path / "ray.zarr")}
    contents = [
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "ray.zarr", tmp_path / "here.zarr")
    ]
    assert contents[0] == contents[1]


def test_it_says_how_large_it_is_before(cli: Any, data: Path, tmp_path: Path) -> None:
    data.write_text("Once upon a time\nThe end\nThe end\n")
    given = ("--lines", "--pack", "--keep-as", "bfloat16", "--out", str(tmp_path / "a.zarr"))
    result = cli("capture", "--data", str(data), *WANTED, *given)
    size = "8 tokens of 3 texts, 2 checkpoints in bfloat16: 20,480 bytes in 1 part"
    size = re.escape(f"{size}, packed into 2 rows (1 saved), about 0 s; ")
    assert re.search(size + r"[\d,]+ bytes are free", result.stderr)
    assert "blocks.3.resid_post  [8, 256]  bfloat16" in result.stdout


def test_interrupted(cli: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with what is left, which stderr shows whether it is a terminal or a pipe."""
    for owner, name, said in (
        (part_making.Corpus, "make", "a.zarr keeps what is whole; begun again the same way, it goes on from there"),
        (intake.Intake, "read", "interrupted while the texts were read; nothing of them is kept"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, _interrupt)
            result = cli("capture", "--data", str(data), *WANTED, "--out", str(tmp_path / name / "a.zarr"), "--json")
        assert (result.exit_code, result.stdout) == (130, "")
        assert said in result.stderr


def _interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


def test_a_closed_standard_error_is_no_failure(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as end:
        main(["capture", "--data", str(data), *WANTED, "--out", str(tmp_path / "a.zarr")])
    assert end.value.code == 0


def test_long_files_are_cut(cli_json: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time. " * 100)
    found = cli_json("capture", "--data", str(tmp_path / "a.txt"), *WANTED, "--out", str(tmp_path / "a.zarr"))
    assert found["rows"] > 256
    assert found["texts"] == -(-found["rows"] // 256)


def test_it_is_verified(cli: Any, cli_json: Any, data: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "a.zarr")
    cli_json("capture", "--data", str(data), *WANTED, "--out", out)
    found = cli_json("capture", "--verify", "--out", out)
    assert (found["equal"], found["rows"], found["missing"]) == (True, 9, 0)
    assert "equal to the bit" in cli("capture", "--verify", "--out", out, "--rows", "3").stdout
    file = tmp_path / "a.zarr" / "blocks.3.resid_post" / "c.0.0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    found = cli_json("capture", "--verify", "--out", out, expect=1)
    assert found["unequal"] == [["blocks.3.resid_post", 0]]
    assert found["damaged"] == [["blocks.3.resid_post", 0]]


@pytest.mark.remedy("corpus-misfit")
def test_a_store_of_something_else(cli: Any, data: Path, tmp_path: Path) -> None:
    """The remedy names the options that the folder was made with."""
    given, out = ("capture", "--data", str(data)), ("--out", str(tmp_path / "a.zarr"))
    made = ("--names", "ckpt_embed", "--names", "resid_post", "--keep-as", "float16", "--batch-tokens", "100")
    cli(*given, *made, *out)
    stored = "--names ckpt_embed " + " ".join(f"--names blocks.{block}.resid_post" for block in range(4))
    for wrong, remedy in {
        ("--pack", *made): "Leave --pack out, or give another --out.",
        made[:-2]: "Give --batch-tokens 100, which it was made with, or another --out.",
        made[:4] + made[6:]: "Give --keep-as float16, which it was made with, or another --out.",
        made[:2] + made[4:]: f"Give {stored}, which it was made with, or another --out.",
        (
            "--lines",
            *made,
        ): "Give --data as it was, or another --out: what is stored is of texts that have changed since.",
        (*made, "--dtype", "float64"): "Give its model by -m, with the same --dtype, or another --out.",
    }.items():
        result = cli(*given, *wrong, *out)
        assert result.exit_code == 4
        assert f"remedy: {remedy}" in result.stderr, result.stderr
    assert cli(*given, *stored.split(), *made[4:], *out).exit_code == 0


@pytest.mark.remedy("corpus-misfit")
def test_a_store_from_before_eager_attention_was_asked_for(cli: Any, data: Path, tmp_path: Path) -> None:
    model, config = tmp_path / "model", tmp_path / "copy.json"
    shutil.copytree(BUNDLED, model)
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    command = ("capture", "-m", str(model), "--data", str(data), *WANTED, "--out", str(tmp_path / "a.zarr"))
    assert cli(*command).exit_code == 0
    (model / "config.json").write_text(json.dumps({**fields, "_attn_implementation": "eager"}), encoding="utf-8")
    result = cli(*command)
    said = "Give by --config a copy of its config.json with '_attn_implementation': 'sdpa', or another --out."
    assert f"remedy: {said}" in result.stderr, result.stderr
    config.write_text(json.dumps({**fields, "_attn_implementation": "sdpa"}), encoding="utf-8")
    assert cli(*command, "--config", str(config)).exit_code == 0
    assert cli("capture", "--verify", "--out", str(tmp_path / "a.zarr")).exit_code == 0


@pytest.mark.parametrize(
    ("given", "code"),
    [([], 2), (["--data", "a.txt"], 2), (["--verify", "--names", "resid_post"], 2), (["--verify"], 3),
     (["--data", "nothing.txt", *WANTED], 3), (["--data", "a.txt", "--names", "pattern"], 4),
     (["--data", "a.txt", "--names", "resid_pots"], 4), (["--data", "a.txt", *WANTED, "--keep-as", "int8"], 4),
     (["--data", "a.txt", *WANTED, "--engine", "spark"], 4), (["--data", "a.txt", *WANTED, "--workers", "2"], 4)],
    ids=str,
)  # fmt: skip
def test_exit_codes(
    given: list[str], code: int, cli: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("capture", *given, "--out", "out.zarr").exit_code == code
    assert not (tmp_path / "out.zarr").exists()


def test_a_name_that_is_too_long_is_no_fault(cli: Any, data: Path, tmp_path: Path) -> None:
    said = cli("capture", "--data", str(data), *WANTED, "--out", str(tmp_path / ("a" * 300) / "x"))
    assert said.exit_code == 4
    assert "will be made" not in said.stderr


@pytest.mark.remedy("empty-text")
def test_an_empty_text(cli: Any, cli_json: Any, data: Path, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty.txt", (*WANTED, "--out", str(tmp_path / "a.zarr"))
    empty.touch()
    result = cli("capture", "--data", str(data), "--data", str(empty), *out)
    assert "text 1" in result.stderr
    assert "Leave the empty file or line out" in result.stderr
    assert cli_json("capture", "--data", str(data), *out)["texts"] == 1


@pytest.mark.remedy("corpus-field")
def test_the_field_of_the_texts(cli: Any, cli_json: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "Once upon a time"}\n')
    command = ("capture", "--data", str(tmp_path / "a.jsonl"), *WANTED, "--out", str(tmp_path / "a.zarr"))
    assert "by --field" in cli(*command).stderr
    assert cli_json(*command, "--field", "content")["rows"] == 4
