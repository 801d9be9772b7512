"""`pellucid run`: what it shows and writes is what the model computes, and bad input is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
import support

SENTENCE = "Once upon a time there was a tiny bird"


@pytest.fixture(scope="module")
def run(bundled: pl.CkptedTransformer) -> tuple[torch.Tensor, pl.ActivationCkpts]:
    """The same run through the library."""
    logits, ckpts = bundled.run_with_ckpts(SENTENCE)
    assert logits is not None
    return logits, ckpts


def rows(stdout: str) -> list[list[str]]:
    """The table of checkpoints, cell by cell; the axes are as many cells as there are axes."""
    lines = [line.split() for line in stdout.splitlines()]
    return [line for line in lines if line and ("ckpt_" in line[0] or ".resid_" in line[0])]


def test_json_is_what_the_model_computes(cli_json: Any, bundled: Any, run: Any) -> None:
    logits, ckpts = run
    found = cli_json("run", SENTENCE, "--top", "3")
    assert list(found) == ["model", "text", "tokens", "ids", "pos", "next", "checkpoints", "saved", "sae"]
    assert (found["model"], found["text"], found["saved"]) == ("bundled", SENTENCE, None)
    assert "".join(found["tokens"]) == SENTENCE
    assert found["ids"] == bundled.tokenizer.encode(SENTENCE)
    assert found["pos"] == len(found["ids"]) - 1
    probabilities = torch.softmax(logits[0, -1].double(), 0)
    assert [one["id"] for one in found["next"]] == probabilities.sort(descending=True).indices[:3].tolist()
    for one in found["next"]:
        assert list(one) == ["token", "id", "probability"]
        assert one["token"] == bundled.tokenizer.decode([one["id"]])
        assert one["probability"] == pytest.approx(float(probabilities[one["id"]]), rel=1e-6)
    assert [one["name"] for one in found["checkpoints"]] == list(ckpts)


def test_json_statistics(cli_json: Any, run: Any) -> None:
    _, ckpts = run
    axes = support.schema(ckpts.n_layer).axes
    for one in cli_json("run", SENTENCE)["checkpoints"]:
        value = ckpts[one["name"]].double()
        assert one["axes"] == list(map(str, axes[one["name"]]))
        assert one["shape"] == list(value.shape)
        assert one["dtype"] == "float32"
        lengths = (value**2).sum(-1).sqrt()
        if one["name"].endswith("ckpt_scores"):
            past = torch.ones(value.shape[-2:], dtype=torch.bool).tril()
            lengths = ((value * past) ** 2).sum(-1).sqrt()
            value = value[..., past]
        expected = (value.mean(), value.var(correction=0).sqrt(), value.min(), value.max(), lengths.mean())
        for key, number in zip(("mean", "std", "min", "max", "norm"), expected, strict=True):
            assert one[key] == pytest.approx(float(number), rel=1e-6, abs=1e-9), (one["name"], key)


def test_the_table_lists_everything_in_execution_order(cli: Any, bundled: Any, run: Any) -> None:
    result = cli("run", SENTENCE)
    table = rows(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [row[0] for row in table] == list(bundled.ckpt_names)
    assert f"{len(table)} of {len(table)} checkpoints" in result.stdout
    _, ckpts = run
    for row in table:
        value = ckpts[row[0]]
        assert [int(cell.lstrip("PqkHDKM")) for cell in row[1:-5]] == list(value.shape[1:])
        if not row[0].endswith("ckpt_scores"):
            assert float(row[-3]) == pytest.approx(float(value.min()), rel=0.06, abs=5e-4)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_names_repeat_and_keep_execution_order(cli: Any, cli_json: Any) -> None:
    names = ["--names", "blocks.*.resid_post", "--names", "blocks.1.attn.hook_pattern"]
    expected = ["blocks.0.resid_post", "blocks.1.attn.ckpt_pattern", *(f"blocks.{i}.resid_post" for i in (1, 2, 3))]
    assert [one["name"] for one in cli_json("run", SENTENCE, *names)["checkpoints"]] == expected
    shown = cli("run", SENTENCE, *names).stdout
    assert [row[0] for row in rows(shown)] == expected
    assert f"{len(expected)} of 72 checkpoints" in shown


def test_save_writes_what_load_reads(cli: Any, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "seen.safetensors"
    result = cli("run", SENTENCE, "--names", "blocks.2.**", "--save", str(path))
    assert result.exit_code == 0
    assert path.name in result.stdout
    kept = pl.ActivationCkpts.load(path)
    _, ckpts = run
    assert list(kept) == [name for name in ckpts if name.startswith("blocks.2.")]
    assert all(torch.equal(value, ckpts[name]) for name, value in kept.items())
    assert kept.batch.strings == ckpts.batch.strings


@pytest.mark.parametrize("pos", [2, -3])
def test_pos_looks_at_one_position(pos: int, cli: Any, cli_json: Any, run: Any) -> None:
    logits, ckpts = run
    found = cli_json("run", SENTENCE, "--pos", str(pos))
    at = pos % logits.size(1)
    assert found["pos"] == at
    assert found["next"][0]["id"] == int(logits[0, at].argmax())
    by_name = {one["name"]: one for one in found["checkpoints"]}
    assert by_name["ckpt_embed"]["shape"] == [1, 1, 256]
    assert by_name["ckpt_embed"]["norm"] == pytest.approx(float(ckpts["ckpt_embed"][0, at].norm()), rel=1e-5)
    assert f"next after {at} " in cli("run", SENTENCE, "--pos", str(pos)).stdout


def test_top_zero_shows_no_next_tokens(cli: Any) -> None:
    assert "next after" not in cli("run", SENTENCE, "--top", "0", "--names", "ckpt_embed").stdout
    assert "next after" in cli("run", SENTENCE, "--names", "ckpt_embed").stdout


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_dash_reads_standard_input_without_its_last_line_break(ending: bytes, cli: Any) -> None:
    text = "  Caf\u00e9,\n\nthen home "
    typed = cli("run", text, "--names", "ckpt_embed")
    piped = cli("run", "-", "--names", "ckpt_embed", stdin=text.encode() + ending)
    assert (piped.exit_code, piped.stdout) == (0, typed.stdout)
    assert "↵" in piped.stdout
    assert piped.stdout.count("·") > 2


def test_text_cannot_act_on_the_terminal(cli: Any) -> None:
    result = cli("run", "a\x1b[31m \u202e[bold]b[/bold]", "--names", "ckpt_embed")
    assert result.exit_code == 0
    assert not {"\x1b", "\u202e"} & set(result.stdout)
    assert "\\x1b" in result.stdout
    assert (result.stdout.count("["), result.stdout.count("/")) == (3, 1)  # markup stays text


def test_another_model(cli_json: Any, bundled: Any, tmp_path: Path) -> None:
    bundled.save_pretrained(tmp_path)
    found = cli_json("run", SENTENCE, "-m", str(tmp_path))
    assert found["model"] == str(tmp_path)
    assert found["next"] == cli_json("run", SENTENCE)["next"]


BAD = [
    (["run", ""], 4, "empty-text"),
    (["run", "word " * 300], 4, "too-long"),
    (["run", "caf\udce9"], 4, "text-not-utf8"),
    (["run", "x", "--names", "blocks.1.attn.ckpt_patern"], 4, "unknown-checkpoint"),
    (["run", "x", "--names", "nothing.*"], 4, "unknown-checkpoint"),
    (["run", "x", "--names", "blocks.0.ln1.hook_scale"], 4, "alias-refused"),
    (["run", "x", "--pos", "99"], 4, "index-out-of-range"),
    (["run", "x", "-m", "no/such/folder"], 3, "path-not-found"),
    (["run", "x", "-m", ""], 3, "path-not-found"),
    (["run", "x", "-m", "EMPTY"], 3, "weights-not-found"),
    (["run", "x", "-m", "NO_CONFIG"], 3, "config-not-found"),
    (["run", "x", "-m", "NO_CONFIG/notes.txt"], 4, "format-unknown"),
    (["run", "x", "--save", "NO_CONFIG/notes.txt/x.safetensors"], 4, "path-not-writable"),
    (["run", "x", "--save", "EMPTY"], 4, "path-not-writable"),
]


@pytest.mark.parametrize(("args", "exit_code", "code"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input(
    args: list[str], exit_code: int, code: str, cli: Any, cli_json: Any, bundled: Any, tmp_path: Path
) -> None:
    (tmp_path / "EMPTY").mkdir()
    bundled.save_pretrained(tmp_path / "NO_CONFIG")
    (tmp_path / "NO_CONFIG" / "config.json").unlink()
    (tmp_path / "NO_CONFIG" / "notes.txt").write_text("this is not a model\n")
    args = [str(tmp_path / arg) if arg.startswith(("EMPTY", "NO_CONFIG")) else arg for arg in args]
    before = sorted(tmp_path.rglob("*"))
    result = cli(*args)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert f"[{code}]" in result.stderr
    assert "remedy: " in result.stderr
    assert cli_json(*args, expect=exit_code)["error"]["code"] == code
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistyped_name_gets_a_suggestion(cli: Any) -> None:
    assert "Did you mean 'blocks.1.attn.ckpt_pattern'" in cli("run", "x", "--names", "blocks.1.attn.ckpt_patern").stderr


def test_standard_input_that_is_not_utf8(cli: Any) -> None:
    result = cli("run", "-", stdin=b"caf\xe9")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "byte 3 is 0xe9" in result.stderr


TEXT_VERBS: dict[str, tuple[str, ...]] = {
    "run": ("run", "{}"), "generate": ("generate", "{}", "--max-new-tokens", "2"), "attribute": ("attribute", "{}"),
    "lens": ("lens", "{}"), "heads": ("heads", "{}"), "compare": ("compare", "bundled", "bundled", "--text", "{}"),
    "patch": ("patch", "{}", "{}", "--names", "attn.ckpt_z", "--over", "layer"),
}  # fmt: skip
"""Every verb that takes a text as it stands; `norms` reads files."""


@pytest.mark.parametrize("verb", support.few_of(TEXT_VERBS, "run", "generate", "patch"))
def test_a_text_that_looks_like_the_name_of_a_file_that_is_not_there_is_noted(
    verb: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note, because the name may be the text; with what it says, the text of a file is read."""
    monkeypatch.chdir(tmp_path)

    def call(text: str, **more: Any) -> Any:
        return cli(*(part.format(text) for part in TEXT_VERBS[verb]), "--json", **more)

    noted = call("Story.TXT")
    assert noted.exit_code == 0
    said = "note: the text is the name Story.TXT, and no such file is here; what a file holds is given by - < FILE\n"
    assert noted.stderr == said * (1 + (verb == "patch"))
    if verb == "run":  # all read their texts in one place
        assert call("Read story.txt").stderr == call("i.e.").stderr == call("and/or").stderr == ""
    if verb != "patch":  # which has two texts, and one standard input
        plain = call("Lily had a red ball")
        assert (plain.exit_code, plain.stderr) == (0, "")
        given = json.loads(call("-", stdin=b"Lily had a red ball\n").stdout)
        expected = json.loads(plain.stdout)
        given.pop("date", None), expected.pop("date", None)
        assert given == expected


@pytest.mark.parametrize("verb", [("run",), ("generate", "--max-new-tokens", "2")])
def test_a_text_that_is_also_a_files_name_is_noted(
    verb: tuple[str, ...], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note, because the name may be what is meant; what it says gives the text of the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my story.txt").write_text("Lily had a red ball\n")
    name, *options = verb
    plain = cli(name, "Lily had a red ball", *options)
    noted = cli(name, "my story.txt", *options)
    assert plain.stderr == ""
    assert noted.stderr == (
        "note: the text is the name 'my story.txt', not what the file of this name holds; "
        "give - < 'my story.txt' for that\n"
    )
    assert noted.stdout != plain.stdout
    assert cli(name, "-", *options, stdin=(tmp_path / "my story.txt").read_bytes()).stdout == plain.stdout
