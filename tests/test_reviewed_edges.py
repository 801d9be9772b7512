"""What a hostile reader found where numbers meet the outside: labels, terminals, files, arguments."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import xarray
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.cli import app
from pellucid.cli.shared import layout, tables
from pellucid.cli.shared.values import NextToken
from pellucid.cli.work import generate as verb
from pellucid.cli.work import norms
from pellucid.fast import compiled
from pellucid.generate.generation import Generation, Row
from pellucid.plot import patterns
from pellucid.run import activations

TEXT = "Lily had a red ball. One day, the red ball"


@pytest.fixture(scope="module", name="model")
def _model() -> pl.CkptedTransformer:
    return pl.load()


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# Figures


@pytest.mark.parametrize("draw", [pl.plot.attention, pl.plot.attention_grid])
def test_tokens_given_for_some_queries_are_theirs(draw: Any, model: pl.CkptedTransformer):
    _, ckpts = model.run_with_ckpts(TEXT, names="blocks.*.attn.ckpt_pattern", pos=slice(1, 4))
    array = ckpts.to_xarray()["attn.ckpt_pattern"].sel(batch=0)
    array = array.sel(layer=2, head=0) if draw is pl.plot.attention else array
    strings = ckpts.batch.strings[0]
    drawn = pl.plot.data(draw(array, tokens=strings))
    assert drawn.query_token.values.tolist() == strings[1:4]
    assert drawn.key_token.values.tolist() == strings[: drawn.sizes["key"]]


def test_labels_of_some_queries_say_their_positions():
    weights = np.tril(np.ones((200, 200)))
    weights /= weights.sum(1, keepdims=True)
    axes = pl.plot.attention(weights[-100:], tokens=[f"t{i}" for i in range(200)])
    for side in (axes.yaxis, axes.xaxis):
        assert len(labels(side)) > 2
        assert all(label == f"t{label.split()[1]} {label.split()[1]}" for label in labels(side))
    assert labels(axes.yaxis)[0] == "t100 100"
    assert labels(pl.plot.attention(weights[-100:]).yaxis)[0] == "100"


@pytest.mark.parametrize("axis", ["pos", "query"])
def test_labelled_captures_know_positions(axis: str, model: pl.CkptedTransformer):
    name = {"pos": "blocks.*.resid_post", "query": "blocks.*.attn.ckpt_pattern"}[axis]
    for texts, wanted in (([TEXT], [4, 5, 6, 7]), ([TEXT, "Lily"], None)):
        _, ckpts = model.run_with_ckpts(texts, names=name, pos=slice(4, 8))
        array = next(iter(ckpts.to_xarray().values()))
        positions = array["position" if axis == "pos" else "query_position"]
        expected = ckpts.batch.positions.masked_fill(~ckpts.batch.mask, -1)[:, 4:8].tolist()
        assert positions.values.tolist() == expected
        assert wanted is None or expected == [wanted]


def test_the_first_tokens_are_not_those_that_were_captured_first(model: pl.CkptedTransformer):
    _, ckpts = model.run_with_ckpts(TEXT, names="blocks.*.resid_post", pos=slice(4, None))
    array = ckpts.to_xarray()["resid_post"]
    norms = (array**2).sum("d_model", skipna=False) ** 0.5
    assert not pl.plot.data(pl.plot.norms(norms, skip=1)).isnull().any()
    assert pl.plot.data(pl.plot.norms(norms, skip=5)).isnull().sum() == 4  # one token in each of four layers


def test_values_a_few_ulps_apart_are_drawn():
    values = 1 - 1.1e-16 * (np.arange(50) % 2)
    pl.plot.norms(xarray.DataArray(values.reshape(1, 1, 50), dims=("layer", "batch", "pos")))
    pl.plot.norm_histograms(xarray.DataArray(values.reshape(1, 1, 50), dims=("layer", "batch", "pos")))


@pytest.mark.parametrize("given", ["one term", "an array"])
def test_pvalues_of_another_shape_are_refused(given: str, model: pl.CkptedTransformer):
    _, ckpts = model.run_with_ckpts(TEXT * 3, names="blocks.*.resid_post")
    fit = pl.measure.autoregression(pl.measure.norms(ckpts, "resid_post"), lags=2)
    corrected = fit.corrected("holm")
    pl.plot.autoregression(fit, pvalues=corrected)
    with pytest.raises(pl.InputError) as caught:
        pl.plot.autoregression(fit, pvalues=corrected[["lag1"]] if given == "one term" else corrected.to_numpy())
    assert caught.value.code == "not-a-fit"


# Terminals


def test_beams_give_whole_characters(model: pl.CkptedTransformer):
    assert model.tokenizer is not None
    ids = torch.tensor(model.tokenizer.encode("☃é"))
    assert len(ids) > 2
    written = verb.Written("bundled", "", {}, None, 0, 0)
    row = Row(ids[:0], ids, torch.zeros(len(ids)), "length")
    verb._take(written, model, Generation((row,), model.tokenizer, True))
    assert written.to_dict()["text"] == "☃é"
    assert len(written.tokens) == len(ids)


def test_a_table_shows_brackets():
    for token in ("[eos]", "x[/INST]", "[bold]x"):
        written = io.StringIO()
        Console(width=80, file=written).print(tables.next_tokens([NextToken(token, 1, 0.5)]))
        assert token in written.getvalue()


def test_brackets_in_names_of_tensors_are_text(tmp_path: Path):
    from safetensors.torch import save_file

    path = tmp_path / "odd.safetensors"
    save_file({name: torch.arange(16.0).view(4, 4) for name in ("x[/b]", "y[red]")}, path)
    result = CliRunner().invoke(app, ["ties", str(path)])
    assert result.exit_code in (0, 1), result.output
    assert "x[/b]" in result.stdout
    assert "y[red]" in result.stdout


def test_beams_write_text_as_it_is():
    result = CliRunner().invoke(app, ["generate", "a\tb", "--num-beams", "2", "--max-new-tokens", "1"])
    assert result.stdout.startswith("a\tb")


def test_a_misspelt_file_is_not_measured_as_text(tmp_path: Path):
    assert CliRunner().invoke(app, ["norms", str(tmp_path / "alice.txt")]).exit_code == 3


def test_positions_in_tables_are_whole_numbers(tmp_path: Path):
    texts = [TEXT] * 8 + [TEXT + " rolled away."]
    assert CliRunner().invoke(app, ["norms", *texts, "--csv", str(tmp_path / "n.csv")]).exit_code == 0
    head, first, *_ = (tmp_path / "n.csv").read_text().splitlines()
    assert first.split(",")[head.split(",").index("position")].isdigit()


# Arguments


@pytest.mark.parametrize("penalty", [float("nan"), float("inf"), 5000, "1"])
def test_a_length_penalty_that_no_length_bears(penalty: Any, model: pl.CkptedTransformer):
    with pytest.raises(pl.InputError) as caught:
        model.generate("Once", num_beams=2, length_penalty=penalty, max_new_tokens=2)
    assert caught.value.code == "length-penalty"


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_of_more_than_64_bits(seed: int, model: pl.CkptedTransformer):
    with pytest.raises(pl.InputError) as caught:
        model.generate("Once", sampler=pl.Sampler(), seed=seed, max_new_tokens=1)
    assert caught.value.code == "seed"
    for allowed in (2**64 - 1, -(2**63)):
        model.generate("Once", sampler=pl.Sampler(), seed=allowed, max_new_tokens=1)


def test_forms_that_others_take(model: pl.CkptedTransformer):
    plain = model.generate("Once upon", max_new_tokens=3)
    assert model.generate("Once upon", max_new_tokens=3, stop=None).texts == plain.texts
    first = int(plain.new_ids[0, 0])
    assert model.generate("Once upon", max_new_tokens=3, end_ids=first).stopped == ["end"]
    assert pl.Sampler(suppress_tokens=5).suppress_tokens == (5,)  # pyright: ignore[reportArgumentType]
    with pytest.raises(pl.InputError) as caught:
        pl.Sampler(suppress_tokens="5")  # pyright: ignore[reportArgumentType]
    assert caught.value.code == "sampler-setting"


def test_ids_that_no_vocabulary_has(model: pl.CkptedTransformer):
    assert model.tokenizer is not None
    assert model.tokenizer.decode([5000]) == ""
    with pytest.raises(pl.InputError):
        model.tokenizer.decode([2**40])


# Files


def test_equal_norms_have_as_many_bins_as_others():
    where = ("batch", "pos")
    values = xarray.DataArray(
        np.ones((2, 1, 3)), dims=("layer", *where), coords={"layer": [0, 1], "position": (where, [[0, 1, 2]])}
    )
    result = norms._summary(values, None, norms.Asked("bundled", "resid_post", False, 0, 0))
    assert [sum(layer.histogram) for layer in result.layers] == [3, 3]
    assert {len(layer.histogram) for layer in result.layers} == {norms.BINS}


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


def test_a_tokenizer_is_saved_whole_or_refused_by_name(model: pl.CkptedTransformer, tmp_path: Path):
    assert model.tokenizer is not None
    model.tokenizer.save(tmp_path / "new" / "folder")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "new" / "folder" / "tokenizer.json"))
    assert again.encode(TEXT).ids == model.tokenizer.encode(TEXT)
    (tmp_path / "file").write_text("")
    with pytest.raises(pl.WeightsError) as caught:
        model.tokenizer.save(tmp_path / "file")
    assert caught.value.code == "path-not-writable"


def test_compiled_kernels_that_were_cut_off_are_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    built = tmp_path / "pellucid" / f"decode-{compiled._fingerprint(compiled._compiler())}.so"
    built.parent.mkdir()
    built.write_bytes(b"cut off")
    assert compiled.library.__wrapped__()
    assert built.stat().st_size > 1000


def test_no_home_for_compiled_kernels(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PELLUCID_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(pl.NumericsError) as caught:
        compiled._folder()
    assert caught.value.code == "kernel-cache"


def test_code_beside_weights_is_never_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import transformers

    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *_, **options: seen.update(options) or pl.to_hf(SMALL),
    )
    SMALL.save_pretrained(tmp_path)
    pl.compare(SMALL, f"hf:{tmp_path}", torch.tensor([[1, 2, 3]]))
    assert seen["trust_remote_code"] is False


def _columns_from_the_end(array: Any) -> Any:
    keys = np.arange(array.sizes["key"])
    return keys[len(keys) - array.sizes["query"] :], keys


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "queries are the last": (
        patterns, "_columns", _columns_from_the_end,
        lambda _: test_tokens_given_for_some_queries_are_theirs(pl.plot.attention, pl.load()),
    ),
    "labels count from 0": (
        patterns, "positions_of", lambda array, dim: list(range(array.sizes[dim])),
        lambda _: test_labels_of_some_queries_say_their_positions(),
    ),
    "columns have no positions": (
        activations, "coordinate", lambda axis, what: f"{axis}_{what}_",
        lambda _: test_the_first_tokens_are_not_those_that_were_captured_first(pl.load()),
    ),
    "cells are markup": (layout, "printable", lambda cell: Text.from_markup(cell).plain,
                         lambda _: test_a_table_shows_brackets()),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, tmp_path: Path):
    must_be_noticed(MUTANTS[name], tmp_path, by=[KeyError])


SMALL = support.glass(vocab_size=53, n_positions=16, n_embd=24, n_layer=2, n_head=3)
