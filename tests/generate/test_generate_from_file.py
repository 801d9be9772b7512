"""`generation_config.json`: what transformers' `generate` does with a folder, and what of it always counts."""

from __future__ import annotations

import copy
import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from generate import hf_generation as theirs
from pellucid.generate import generation_settings as settings
from pellucid.generate import request as asked

ENDS = [11, 40]
VOCABULARY = support.SIZES["vocab_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    pl.from_hf(support.reference(eos_token_id=11, bos_token_id=None)).save_pretrained(path)
    return path


def write(folder: Path, fields: dict[str, Any] | None, **config: Any) -> Path:
    """The folder with this `generation_config.json`, or without one, and these fields in `config.json`."""
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    if fields is not None:
        path.write_text(json.dumps(fields))
    stated = json.loads((folder / "config.json").read_text())
    stated = {name: value for name, value in stated.items() if name not in settings.SAMPLING}
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    return folder


def expected(folder: Path, rows: list[list[int]], ends: list[int], seed: int = 0, **given: Any) -> list[list[int]]:
    """What transformers makes of the folder: rows of new ids up to their end."""
    from transformers import GPT2LMHeadModel

    hf = GPT2LMHeadModel.from_pretrained(folder).eval()
    ids, mask = theirs.padded(rows, fill=0)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using the model-agnostic default|Unfeasible length constraints")
        out = hf.generate(ids, attention_mask=mask, **given)
    return [theirs.cut(row, tuple(ends)) for row in out[:, ids.size(1) :].tolist()]


def new(out: pl.Generation) -> list[list[int]]:
    return [row.tolist() for row in out.new_ids]


def drawn(number: int) -> tuple[dict[str, Any], list[list[int]]]:
    """A file and prompts; each field is there about every third time."""
    dice = random.Random(number)
    fields: dict[str, list[Any]] = {
        "do_sample": [True, False], "temperature": [0.7, 1.6], "top_k": [0, 5, 50, 80], "top_p": [0.0, 0.6, 1.0, 1.5],
        "min_p": [0.05, 0.0], "typical_p": [0.5, 1.0], "repetition_penalty": [1.3, 0.8, 1],
        "no_repeat_ngram_size": [2, 3, 0], "min_new_tokens": [4, 0], "min_length": [9, 3], "max_new_tokens": [1, 6, 12],
        "max_length": [12, 20], "num_beams": [1, 2, 4], "length_penalty": [-1.0, 0.0, 2.0],
        "early_stopping": [True, False, "never"], "suppress_tokens": [[3, 5, 8], []], "pad_token_id": [0, 11],
        "begin_suppress_tokens": [[1, 2, 60]], "forced_eos_token_id": [11, [40, 11]], "forced_bos_token_id": [7],
        "eos_token_id": [11, [11, 40], [40, 11, 3], [11, 11]], "use_cache": [True], "top_h": [None],
        "diversity_penalty": [0.5], "epsilon_cutoff": [0.0], "unheard_of": [3], "transformers_version": ["4.0"],
    }  # fmt: skip
    file = {name: dice.choice(values) for name, values in fields.items() if dice.random() < 0.35}
    if file.get("num_beams", 1) > 1 or file.get("do_sample"):
        file["num_return_sequences"] = dice.choice([1, 2])
    lengths = dice.choice([(1,), (6,), (5, 5), (1, 1)] + ([(4, 2, 5)] if support.TRANSFORMERS >= (5, 23) else []))
    return file, prompts(*lengths, seed=number)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random rows without the end id and the pad ids, which would look like padding at an edge."""
    return [[{0: 1, 11: 12}.get(token, token) for token in row] for row in support.ragged_ids(*lengths, seed=seed)]


@pytest.mark.parametrize("part", support.few_of(range(4), 0))
def test_a_folder_generates_what_transformers_makes_of_it(part: int, folder: Path) -> None:
    for number in range(part * 16, part * 16 + 16):
        file, rows = drawn(number)
        write(folder, file)
        ends = file.get("eos_token_id") or []
        wanted = expected(folder, rows, [ends] if isinstance(ends, int) else ends, seed=number)
        model = pl.load(folder)
        assert new(model.generate(rows, sampler="file", seed=number)) == wanted, (number, file)


def test_lengths_and_beginnings_are_counted_as_in_transformers(folder: Path) -> None:
    row = [90, 80, 20]
    greedy = new(pl.load(write(folder, {})).generate([row], max_new_tokens=6))[0]
    assert greedy[2] not in greedy[:2]
    fields = {"min_length": 5, "max_length": 9, "eos_token_id": greedy[2]}
    wanted = expected(write(folder, fields), [row], [greedy[2]])
    assert wanted == [greedy[:3]]  # two new tokens make five, so the third may end it
    assert new(pl.load(folder).generate([row], sampler="file")) == wanted
    second = new(pl.load(write(folder, {"forced_bos_token_id": 4})).generate([[9]], max_new_tokens=2))[0][1]
    fields = {"forced_bos_token_id": 4, "begin_suppress_tokens": [second]}  # the text begins behind what is forced
    wanted = expected(write(folder, fields), [[9]], [], max_new_tokens=4)
    assert wanted[0][1] != second
    assert new(pl.load(folder).generate([[9]], max_new_tokens=4)) == wanted


def test_what_the_caller_gives_counts_before_the_file(folder: Path) -> None:
    rows = prompts(5, 5, seed=2)
    write(folder, {"do_sample": True, "top_p": 0.8, "num_beams": 3, "max_length": 30, "eos_token_id": 11})
    given: dict[str, Any] = {"max_new_tokens": 7, "num_beams": 1, "num_return_sequences": 2}
    wanted = expected(folder, rows, [11], seed=4, **given)
    out = pl.load(folder).generate(rows, sampler="file", seed=4, **given)
    assert new(out) == wanted
    assert out.scores is None


ALWAYS = {
    "eos_token_id": [40, 3], "pad_token_id": 5, "suppress_tokens": [6, 7, 8], "begin_suppress_tokens": [1, 9],
    "forced_bos_token_id": 4, "forced_eos_token_id": 12,
}  # fmt: skip


def test_without_a_sampler_the_tokens_that_are_ruled_out_count_and_nothing_else(folder: Path) -> None:
    assert set(ALWAYS) == set(settings.ALWAYS)
    for rows in ([[9]], prompts(6, 6)):
        write(folder, ALWAYS)
        wanted = expected(folder, rows, [40, 3], max_new_tokens=9)
        write(folder, {**ALWAYS, "repetition_penalty": 3.0, "do_sample": True, "num_beams": 4, "max_length": 3})
        model = pl.load(folder)
        assert new(model.generate(rows, max_new_tokens=9)) == wanted
        assert [[token.id for token in model.stream(row, max_new_tokens=9)] for row in rows] == wanted
    assert "counts with sampler=\"file\" only: do_sample, max_length, num_beams, repetition_penalty" in (
        model.provenance["generation"]
    )  # fmt: skip
    assert not {6, 7, 8} & set(model.generate([[9]], sampler=pl.Sampler(temperature=3.0), seed=1).new_ids[0].tolist())


def test_old_settings_in_the_configuration(folder: Path) -> None:
    rows = prompts(6, 6, seed=3)
    old = {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2, "max_length": 20, "do_sample": True, "top_k": 7}
    wanted = expected(write(folder, None, **old), rows, [11], seed=3)
    model = pl.load(folder)
    assert new(model.generate(rows, sampler="file", seed=3)) == wanted
    assert model.provenance["generation"].startswith("the config: ")
    hf = pl.to_hf(model)
    torch.manual_seed(3)
    assert [theirs.cut(row, (11,)) for row in hf.generate(torch.tensor(rows))[:, 6:].tolist()] == wanted
    write(folder, {}, **old)  # the file replaces them, its missing end id included
    wanted = expected(folder, rows, [], seed=3)
    assert new(pl.load(folder).generate(rows, sampler="file", seed=3)) == wanted
    assert pl.load(folder).generation.end_ids == ()
    write(folder, None)


def test_no_setting_is_unheard_of(folder: Path) -> None:
    """Fails when a new transformers has a field that nobody has looked at."""
    from transformers import GenerationConfig

    known = {*settings.ALWAYS, *settings.SAMPLING, *settings.UNIMPLEMENTED, *settings.NEUTRAL}
    theirs_ = {name for name in GenerationConfig().to_dict() if not name.endswith("_tensor")}
    assert theirs_ <= known
    defaults = GenerationConfig._get_default_generation_params()
    assert defaults.pop("max_length") == asked.WITHOUT_A_FILE
    ours = {**settings.ALWAYS, **settings.SAMPLING, **settings.UNIMPLEMENTED}
    assert {name: ours[name] for name in defaults if name in ours} == {n: v for n, v in defaults.items() if n in ours}


UNIMPLEMENTED: dict[str, dict[str, Any]] = {
    "top_h": {"top_h": 0.4, "do_sample": True}, "bad_words_ids": {"bad_words_ids": [[3, 4]]},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.2}, "guidance_scale": {"guidance_scale": 1.5},
    "penalty_alpha": {"penalty_alpha": 0.6}, "num_beam_groups": {"num_beam_groups": 2, "num_beams": 4},
    "epsilon_cutoff": {"epsilon_cutoff": 0.1, "do_sample": True}, "renormalize_logits": {"renormalize_logits": True},
    "sequence_bias": {"sequence_bias": [[[3], -5.0]]}, "max_time": {"max_time": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("name", UNIMPLEMENTED)
def test_what_is_not_implemented_is_named(name: str, folder: Path) -> None:
    model = pl.load(write(folder, UNIMPLEMENTED[name]))
    assert f"not implemented: {name}" in model.provenance["generation"]
    plain = new(model.generate([[1, 2, 3]], max_new_tokens=5))
    with pytest.raises(pl.InputError, match=f"generation_config.json has {name}=") as caught:
        model.generate([[1, 2, 3]], sampler="file")
    assert caught.value.code == "generation-not-implemented"
    instruction = caught.value.remedy.partition("model.generation = ")[2].partition(";")[0]
    model.generation = eval(instruction, {"model": model})
    assert len(new(model.generate([[1, 2, 3]], sampler="file", max_new_tokens=5))[0]) == len(plain[0])


@pytest.mark.parametrize("beside", [{"num_beams": 3}, {"top_k": 1}, {"do_sample": True}], ids=str)
def test_a_penalty_that_begins_no_contrastive_search_is_passed_over(beside: dict[str, Any], folder: Path) -> None:
    fields = {"penalty_alpha": 0.6, "max_new_tokens": 5, **beside}
    wanted = expected(write(folder, fields), [[1, 2, 3]], [11])
    assert new(pl.load(folder).generate([[1, 2, 3]], sampler="file", seed=0)) == wanted


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"do_sample": "yes"}, "generation_config.json: do_sample='yes', expected true or false"),
        ({"top_k": -1, "do_sample": True}, "generation_config.json: Sampler: top_k=-1"),
        ({"temperature": "hot", "do_sample": True}, "generation_config.json: Sampler: temperature='hot'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_length": 3}, "max_length=3, but the prompt has 3 tokens"),
        ({"num_beams": 10**9}, "num_beams=1000000000, expected a whole number from 1 to 65536"),
        ({"min_length": -2}, "min_length=-2"),
        ({"early_stopping": "sometimes", "num_beams": 2}, "early_stopping='sometimes'"),
        ({"eos_token_id": "end"}, "generation_config.json: eos_token_id='end'"),
        ({"forced_eos_token_id": 5000}, "forced_eos_token_id holds 5000"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], said: str, folder: Path) -> None:
    model = pl.load(write(folder, fields))
    with pytest.raises(pl.PellucidError) as caught:
        model.generate([[1, 2, 3]], sampler="file")
    assert said in caught.value.message
    model.generation = model.generation.without(*fields)
    model.generate([[1, 2, 3]], sampler="file", max_new_tokens=2)


OUTSIDE = [
    {"eos_token_id": 50256},
    {"eos_token_id": [11, 50256], "num_beams": 3},
    {"eos_token_id": [11, 50256, -1], "num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    {"eos_token_id": [11, 50256, -1], "min_new_tokens": 5, "suppress_tokens": [5000, 3, -1]},
    {"eos_token_id": 11, "begin_suppress_tokens": [5000, 40]},
]


@pytest.mark.parametrize("fields", OUTSIDE, ids=str)
def test_ids_outside_the_vocabulary_never_come(fields: dict[str, Any], folder: Path) -> None:
    """GPT2Config's own end id is 50256, whatever the size of the vocabulary."""
    ends = fields["eos_token_id"]
    write(folder, fields, eos_token_id=50256)
    rows, ends = [[1, 2, 3], [4, 5, 6]], ends if isinstance(ends, list) else [ends]
    ours = pl.load(folder).generate(rows, sampler="file", max_new_tokens=8, seed=2)
    if fields.get("num_return_sequences"):
        rows = [row for row in rows for _ in range(2)]
    assert new(ours) == expected(folder, [[1, 2, 3], [4, 5, 6]], ends, seed=2, max_new_tokens=8)
    write(folder, None, eos_token_id=50256)
    plain = pl.load(folder).generate(rows, max_new_tokens=8)
    assert new(plain) == expected(folder, rows, [], max_new_tokens=8)


def test_a_file_that_is_no_object(folder: Path) -> None:
    for text in ("{nope", "[1]"):
        write(folder, None)
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(pl.ConfigError, match=r"generation_config\.json"):
            pl.load(folder)
    write(folder, None)
    with pytest.raises(pl.ConfigError, match="expected a mapping"):
        pl.GenerationSettings([1])
    with pytest.raises(pl.ConfigError, match=r"expected pl\.GenerationSettings"):
        support.glass().generation = {"eos_token_id": 1}


def test_streams_of_a_file(folder: Path) -> None:
    model = pl.load(write(folder, {"do_sample": True, "top_p": 0.7, "max_new_tokens": 8, "num_beams": 2}))
    with pytest.raises(pl.InputError, match="beam search of 2 beams") as caught:
        model.stream([[1, 2, 3]], sampler="file")
    model.generation = eval(caught.value.remedy.partition("model.generation = ")[2].rstrip("."), {"model": model})
    streamed = [token.id for token in model.stream([[1, 2, 3]], sampler="file", seed=2)]
    assert [streamed] == new(model.generate([[1, 2, 3]], sampler="file", seed=2))
    assert len(streamed) == 8


def test_settings_go_with_the_model(folder: Path, tmp_path: Path) -> None:
    fields = {"do_sample": True, "eos_token_id": [11, 40], "top_k": 5, "unheard_of": {"a": [1]}, "max_new_tokens": 6}
    model = pl.load(write(folder, fields))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == fields
    hf = pl.to_hf(model)
    assert {name: getattr(hf.generation_config, name) for name in fields} == fields
    copies = [pl.load(tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model)), pl.from_hf(hf)]
    for other in copies:
        said = {name: value for name, value in other.generation.fields.items() if name in fields}
        assert said == fields
        wanted = new(model.generate([[1, 2, 3]], sampler="file", seed=1))
        assert new(other.generate([[1, 2, 3]], sampler="file", seed=1)) == wanted
    assert pl.from_hf(support.reference(eos_token_id=11)).generation.source == "the config"
    plain = support.glass()
    plain.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "generation_config.json").exists()


def test_settings_and_configurations_with_numbers_of_other_libraries_are_saved(tmp_path: Path) -> None:
    model = support.glass()
    model.config = type(model.config).from_dict({**model.config.to_dict(), "note": np.float32(0.5)})
    model.generation = pl.GenerationSettings({"eos_token_id": [np.int64(11), 40], "top_k": np.int64(5)})
    model.save_pretrained(tmp_path)
    again = pl.load(tmp_path)
    assert again.generation.fields == {"eos_token_id": [11, 40], "top_k": 5}
    assert again.config.neutral["note"] == 0.5
    assert pl.GenerationSettings({"stop_strings": np.array(["a", "b"])}).sampling == {"stop_strings": ["a", "b"]}
    model.generation = pl.GenerationSettings({"top_k": object()})
    with pytest.raises(pl.ConfigError, match="expected what JSON can hold"):
        model.save_pretrained(tmp_path)


def test_no_other_models_settings_stay_behind(folder: Path, tmp_path: Path) -> None:
    """Neither those of an earlier save nor those that transformers wrote into the folder."""
    from transformers import GenerationConfig

    GenerationConfig(eos_token_id=7, do_sample=True, top_k=3).save_pretrained(tmp_path)
    plain = support.glass(eos_token_id=11)
    for earlier in (plain, pl.load(write(folder, {"eos_token_id": 3, "suppress_tokens": [1]}))):
        earlier.save_pretrained(tmp_path)
        plain.save_pretrained(tmp_path)
        assert pl.load(tmp_path).generation.fields == {"eos_token_id": 11}
