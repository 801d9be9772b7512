"""`audit_ties` of models, modules and state dicts: counts, bytes, declarations, problems; it only reads."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pellucid as pl
import support
from pellucid.ties import TieAudit, audit_ties, replace_head, tie, untie
from pellucid.ties.subject import OUR_HEAD
from pellucid.weights.foreign import unwrapped
from ties import cases

UNIQUE, BY_NAME = 124_439_808, 163_037_184


def codes(audit: TieAudit) -> list[str]:
    assert all(problem.message and problem.remedy for problem in audit.problems)
    return [problem.code for problem in audit.problems]


def test_gpt2_small_as_in_the_questions() -> None:
    """124.4M, 163.0M with the head replaced, 124.4M when tied again, by their addresses."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        meta = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    model = meta.to_empty(device="cpu")  # breaks the tie, silently
    assert audit_ties(model).unique == BY_NAME
    model.tie_weights()
    audit = audit_ties(model)
    assert (audit.unique, audit.by_name, audit.by_object) == (UNIQUE, BY_NAME, UNIQUE)
    assert audit.bytes_in_memory == audit.bytes_on_disk == 4 * UNIQUE
    (tie,) = (group for group in audit.groups if "lm_head.weight" in group.names)
    assert tie.addresses == (model.transformer.wte.weight.untyped_storage().data_ptr(),) * 2

    head = nn.utils.skip_init(nn.Linear, 768, 50257, bias=False)  # whose usual values take a second to draw
    model.lm_head = nn.Sequential(head)
    nn.init.ones_(head.weight)
    replaced = audit_ties(model)
    assert (replaced.unique, replaced.by_name) == (BY_NAME, BY_NAME)
    assert not any("lm_head.0.weight" in group.names for group in replaced.groups)
    assert replaced.after_reload.survives is False

    model.lm_head[0].weight = model.transformer.wte.weight
    again = audit_ties(model)
    assert (again.unique, again.by_name) == (UNIQUE, BY_NAME)
    assert again.after_reload.survives is None
    assert codes(again)[0] == "save-raises"


@pytest.mark.parametrize("tied", [True, False])
def test_ours_counts_as_count_parameters_does(tied: bool) -> None:
    model = support.glass(tie_word_embeddings=tied)
    audit, counted = audit_ties(model), pl.count_parameters(model)
    assert (audit.unique, audit.by_name) == (counted.unique, counted.by_name)
    assert audit.bytes_in_memory == audit.bytes_on_disk == counted.bytes
    assert [(group.kind, group.names) for group in audit.groups] == (
        [("same parameter", ("embed.W_E", OUR_HEAD))] if tied else []
    )
    assert (audit.after_reload.survives, audit.after_reload.tied_after) == (True, tied)
    assert codes(audit) == []


def test_ours_mapped_from_one_file_shares_no_numbers() -> None:
    """Tensors mapped from a file share a storage; that is no tie."""
    audit = audit_ties(pl.load(dtype="stored"))
    assert [group.names for group in audit.groups] == [("embed.W_E", OUR_HEAD)]
    assert codes(audit) == []


def spoil_config_tied(model: pl.CkptedTransformer) -> None:
    model.config = model.config.replace(tie_word_embeddings=True)


def spoil_config_untied(model: pl.CkptedTransformer) -> None:
    model.config = model.config.replace(tie_word_embeddings=False)


def spoil_equal(model: pl.CkptedTransformer) -> None:
    with torch.no_grad():
        model.unembed.W_U.copy_(model.embed.W_E.t())
    spoil_config_tied(model)


def spoil_one_storage(model: pl.CkptedTransformer) -> None:
    model.unembed.W_U = nn.Parameter(model.embed.W_E.detach().t())


def spoil_module(model: pl.CkptedTransformer) -> None:
    model.unembed = nn.Linear(48, 211, bias=False)


SPOILED = {
    "untied, config tied": (False, spoil_config_tied), "tied, config untied": (True, spoil_config_untied),
    "untied and equal, config tied": (False, spoil_equal), "one storage": (False, spoil_one_storage),
    "a module of torch": (True, spoil_module), "as built": (True, lambda model: None),
    "a module of torch, untied": (False, spoil_module),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_ours_is_predicted_as_it_reloads(case: str, tmp_path: Any) -> None:
    tied, spoil = SPOILED[case]
    model = support.glass(tie_word_embeddings=tied)
    spoil(model)
    after = audit_ties(model).after_reload
    try:
        model.save_pretrained(tmp_path)
    except (KeyError, pl.PellucidError):
        assert after.survives is None
        return
    again = pl.CkptedTransformer.from_pretrained(tmp_path)
    ids = support.some_ids(1, 8)
    assert after.survives == torch.equal(model(ids), again(ids))
    assert after.tied_after == again.unembed.tied


OUR_PROBLEMS = {
    "untied, config tied": "save-raises", "tied, config untied": "save-raises", "one storage": "two-parameters",
    "a module of torch": "save-raises", "a module of torch, untied": "save-raises", "as built": None,
}  # fmt: skip


@pytest.mark.parametrize("case", OUR_PROBLEMS)
def test_problems_of_ours_and_their_remedy(case: str) -> None:
    tied, spoil = SPOILED[case]
    model = support.glass(tie_word_embeddings=tied)
    spoil(model)
    assert codes(audit_ties(model)) == ([OUR_PROBLEMS[case]] if OUR_PROBLEMS[case] else [])
    replace_head(model, nn.Linear(48, 211, bias=False), tie=False, verify=True)
    assert codes(audit_ties(model)) == []
    tie(model, verify=True)
    assert codes(audit_ties(model)) == []
    assert model.unembed.tied


PROBLEMS = {
    "nothing": [],
    "new Linear": ["tied-by-config-only"],
    "new Linear, then tie_weights()": [],
    "Linear with a bias": ["reload-dropped", "tied-by-config-only"],
    "Sequential(Linear)": ["reload-replaced", "cache-stale"],
    "Sequential(Linear), config untied": ["reload-replaced", "cache-stale"],
    "equal-valued clone": ["equal-becomes-tied", "cache-stale"],
    "equal-valued clone, config untied": ["cache-stale"],
    "head that wraps the embedding": ["save-raises", "cache-stale"],
    "two Parameters over one storage": ["two-parameters"],
    "tied, config untied": ["tie-not-in-config"],
    "overlapping views": ["save-raises", "tied-by-config-only", "overlapping-views"],
    "a head of another vocabulary": ["reload-raises", "tied-by-config-only"],
    "keys as a list": ["save-raises"],
    "a wider head": ["reload-dtype", "tied-by-config-only"],
}


@pytest.mark.parametrize("row", PROBLEMS)
def test_problems_of_a_transformers_model(row: str) -> None:
    pytest.importorskip("transformers")
    assert codes(audit_ties(cases.changed(row))) == PROBLEMS[row]


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        pytest.param("new Linear", untie, marks=pytest.mark.remedy("tied-by-config-only")),
        pytest.param("equal-valued clone", tie, marks=pytest.mark.remedy("equal-becomes-tied", "cache-stale")),
        pytest.param("two Parameters over one storage", tie, marks=pytest.mark.remedy("two-parameters")),
        pytest.param("tied, config untied", tie, marks=pytest.mark.remedy("tie-not-in-config")),
        pytest.param("tied, config untied", untie, marks=pytest.mark.remedy("tie-not-in-config")),
        ("Sequential(Linear)", lambda model: replace_head(model, cases.linear(), tie=False)),
        pytest.param(
            "head that wraps the embedding",
            lambda model: replace_head(model, cases.linear(), tie=True),
            marks=pytest.mark.remedy("save-raises"),
        ),
        ("Linear with a bias", lambda model: replace_head(model, cases.linear(), tie=True)),
    ],
)  # fmt: skip
def test_the_remedy_helps(row: str, remedy: Callable[[Any], Any]) -> None:
    model = cases.changed(row)
    assert codes(audit_ties(model))
    remedy(model)
    assert codes(audit_ties(model)) == []


def test_modules_and_their_groups() -> None:
    model = nn.ModuleDict({"a": nn.Linear(10, 10), "b": nn.Linear(10, 10), "n": nn.BatchNorm1d(10)})
    model["b"].weight = model["a"].weight
    audit = audit_ties(model)
    assert [(group.names, group.kind) for group in audit.groups] == [(("a.weight", "b.weight"), "same parameter")]
    assert (audit.unique, audit.by_name) == (100 + 20 + 20, 200 + 20 + 20)  # buffers are no parameters
    assert audit.bytes_in_memory == 4 * (140 + 20) + 8
    assert audit.after_reload.survives is None
    assert "no save_pretrained" in audit.after_reload.reason
    assert codes(audit) == []


def test_one_module_under_two_names() -> None:
    shared = nn.Linear(4, 4)
    audit = audit_ties(nn.Sequential(shared, nn.ReLU(), shared))
    assert [group.names for group in audit.groups] == [("0.weight", "2.weight"), ("0.bias", "2.bias")]
    assert (audit.unique, audit.by_name) == (20, 40)


@pytest.mark.parametrize("row", ["nothing", "new Linear", "two Parameters over one storage"])
def test_state_dicts(row: str) -> None:
    model = cases.changed(row)
    whole, audit = audit_ties(model), audit_ties(model.state_dict())
    assert (audit.unique, audit.by_name) == (whole.unique, whole.by_name)
    assert [group.names for group in audit.groups] == [group.names for group in whole.groups]
    assert audit.after_reload.survives is None
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert 0 < buffer.tell() - audit.bytes_on_disk < 20_000  # torch.save's own records
    assert codes(audit) == []


@pytest.mark.remedy("part-of-more")
def test_a_row_of_a_matrix_takes_the_matrix_along() -> None:
    matrix = torch.randn(1000, 64)
    audit = audit_ties({"row": matrix[3]})
    buffer = io.BytesIO()
    torch.save({"row": matrix[3]}, buffer)
    assert audit.bytes_on_disk == 256_000 < buffer.tell()
    assert audit.bytes_in_memory == 256
    assert codes(audit) == ["part-of-more"]
    assert codes(audit_ties({"row": matrix[3].clone()})) == []


def test_views_that_overlap() -> None:
    memory = torch.randn(10, 4)
    audit = audit_ties({"a": memory[:6], "b": memory[4:]})
    assert (audit.unique, audit.by_name) == (40, 48)
    assert codes(audit) == ["overlapping-views"]


def test_what_class_configuration_and_cache_say() -> None:
    model = cases.small()
    said = audit_ties(model).declared
    tie = {"lm_head.weight": "transformer.wte.weight"}
    assert (said.by_class, said.by_config, said.by_cache) == (tie, True, tie)
    model.config.tie_word_embeddings = False
    said = audit_ties(model).declared
    assert (said.by_class, said.by_config, said.by_cache) == (tie, False, tie)
    listed = audit_ties(cases.changed("keys as a list"))
    assert listed.declared.malformed == ("GPT2LMHeadModel",)
    assert "as a dict" in listed.problems[0].remedy


def test_wrappers_are_seen_through() -> None:
    model = cases.small()
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        assert audit_ties(wrapped).to_dict() == audit_ties(model).to_dict()


def test_a_class_of_ones_own_is_no_wrapper_by_its_name() -> None:
    for name in ("CheckpointWrapper", "OptimizedModule"):
        mine: Any = type(name, (nn.Module,), {})()
        mine.module = cases.small()
        assert unwrapped(mine) is mine


def test_it_prints_itself_and_becomes_json() -> None:
    audit = audit_ties(cases.changed("head that wraps the embedding"))
    text = repr(audit)
    for part in (
        "GPT2LMHeadModel",
        "unique",
        "0x",
        "remedy",
        "save-raises",
        "class: lm_head.weight = transformer.wte.weight",
    ):
        assert part in text
    content = json.loads(audit.to_json())
    assert content["after_reload"]["survives"] is None
    assert content["groups"][0]["addresses"][0].startswith("0x")
    assert content["problems"][0]["code"] == "save-raises"
    with pytest.raises(AttributeError):
        audit.unique = 3  # type: ignore[misc]


@pytest.mark.parametrize("given", [3, None, [torch.zeros(2)], {}, {"a": 3}, {3: torch.zeros(2)}])
def test_what_is_no_model(given: Any) -> None:
    with pytest.raises(pl.InputError):
        audit_ties(given)


@pytest.mark.parametrize("given", [lambda: nn.Linear(2, 2), lambda: {"a": torch.zeros(2)}, support.glass])
def test_an_override_needs_a_configuration(given: Any) -> None:
    with pytest.raises(pl.InputError, match="tie_word_embeddings="):
        audit_ties(given(), tie_word_embeddings=False)


def test_an_optimizer_needs_a_model() -> None:
    model = cases.small()
    with pytest.raises(pl.InputError, match="expected a model"):
        audit_ties(model.state_dict(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("touched", [True, False])
def test_a_generation_configuration_that_cannot_be_saved(touched: bool, tmp_path: Path) -> None:
    """From 5.23 on, one that is as it was read is written whatever it says."""
    refused = touched or support.TRANSFORMERS < (5, 23)
    model = cases.small()
    model.generation_config.temperature = -1.0
    if not touched:
        model.generation_config._original_object_hash = hash(model.generation_config)
    audit = audit_ties(model)
    try:
        model.save_pretrained(tmp_path)
        saves = True
    except ValueError:
        saves = False
    assert saves == (not refused)
    assert audit.after_reload.survives == (None if refused else True)
    assert [(p.code, "generation_config" in p.remedy) for p in audit.problems] == [("save-raises", True)] * refused


def test_ours_in_a_coarser_dtype_says_how_to_read_it(tmp_path: Path) -> None:
    model = support.glass().bfloat16()
    assert 'dtype="stored"' in audit_ties(model).after_reload.reason
    assert 'dtype="stored"' not in audit_ties(support.glass()).after_reload.reason
    model.save_pretrained(tmp_path)
    ids = torch.arange(6)[None]
    assert torch.equal(pl.load(tmp_path, dtype="stored")(ids), model(ids))
