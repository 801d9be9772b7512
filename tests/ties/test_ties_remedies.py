"""Remedies of the verbs on ties, and of what an audit finds beside heads, followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

import pellucid as pl
import support
from following import Case, follow, params
from offloading import brought_back, moved_by_accelerate
from pellucid.ties import audit_ties
from ties import cases

Here = SimpleNamespace


class Undeclared(transformers.GPT2LMHeadModel):
    """A class whose configuration cannot say that the head is tied."""

    _tied_weights_keys = None


class Declared(transformers.GPT2LMHeadModel):
    """What the remedy says."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012 as the remedy prints it


def _of(kind: type) -> Any:
    return kind(transformers.GPT2Config(**cases.SIZES))


def _wider_embedding(model: Any, head: nn.Linear) -> Any:
    model.resize_token_embeddings(cases.VOCAB + 1, mean_resizing=False)
    return pl.replace_head(model, head, tie=False)


def _changed_config() -> Any:
    model = cases.small()
    model.config.layer_norm_epsilon = 0.3
    return model


def _mended(model: Any) -> Any:
    """Do what the audit's first remedy says."""
    assert "type(model)(config)" in audit_ties(model).problems[0].remedy
    built = type(model)(model.config).eval()
    built.load_state_dict(model.state_dict())
    return built


def _away(home: str = "cpu") -> Any:
    return moved_by_accelerate(cases.small(), home)


def _on_meta() -> Any:
    with torch.device("meta"):
        return _of(transformers.GPT2LMHeadModel)


REMEDIES: dict[str, list[Case]] = {
    "meta-device": [
        Case(lambda h: audit_ties(_away()), "remove_hook_from_module(model, recurse=True)",
             lambda h: audit_ties(brought_back(_away()))),
        Case(lambda h: pl.save_hf(_away(), h.folder / "c"), "accelerate.hooks.remove_hook_from_module",
             lambda h: pl.save_hf(brought_back(_away()), h.folder / "c")),
        Case(lambda h: pl.save_hf(_away("meta"), h.folder / "c"), "open the model again without device_map",
             lambda h: pl.save_hf(cases.small(), h.folder / "c")),
        Case(lambda h: pl.untie(_away()), "recurse=True) brings them back",
             lambda h: pl.untie(brought_back(_away()), verify=True)),
        Case(lambda h: pl.save_hf(_on_meta(), h.folder / "c"), "Load its weights first",
             lambda h: pl.save_hf(cases.small(), h.folder / "c")),
    ],
    "not-a-transformers-model": [
        Case(lambda h: pl.save_hf(pl.load(), h.folder / "a"), "save_pretrained, which transformers reads",
             lambda h: (pl.load().save_pretrained(h.folder / "a"),
                        transformers.AutoModelForCausalLM.from_pretrained(h.folder / "a"))),
    ],
    "save-would-lose": [
        Case(lambda h: pl.save_hf(cases.changed("equal-valued clone"), h.folder / "b"), "pl.tie(model)",
             lambda h: pl.save_hf((model := cases.changed("equal-valued clone"), pl.tie(model))[0], h.folder / "b")),
        Case(lambda h: pl.save_hf(cases.changed("a wider head"), h.folder / "b"), "model.to(dtype)",
             lambda h: pl.save_hf(pl_untied(cases.changed("a wider head").to(torch.float32)), h.folder / "b")),
    ],
    "not-a-state-dict": [
        Case(lambda h: audit_ties({"a": 3}), "model.state_dict()", lambda h: audit_ties(h.model.state_dict()))
    ],
    "not-auditable": [
        Case(lambda h: audit_ties(3), "the model itself", lambda h: audit_ties(h.model)),
        Case(lambda h: audit_ties(None), "the path of a weights file", lambda h: audit_ties(h.saved)),
    ],
    "optimizer-without-model": [
        Case(lambda h: audit_ties(h.model.state_dict(), optimizer=torch.optim.SGD(h.model.parameters())),
             "Give the model whose parameters",
             lambda h: audit_ties(h.model, optimizer=torch.optim.SGD(h.model.parameters())))
    ],
    "not-an-optimizer": [
        Case(lambda h: audit_ties(h.model, optimizer="adam"), "Give the optimizer itself",
             lambda h: audit_ties(h.model, optimizer=torch.optim.AdamW(h.model.parameters()))),
        Case(lambda h: pl.tie(h.model, optimizer=torch.optim.AdamW), "Give the optimizer itself",
             lambda h: pl.tie(h.model, optimizer=torch.optim.AdamW(h.model.parameters()))),
    ],
    "override-without-configuration": [
        Case(lambda h: audit_ties(nn.Linear(2, 2), tie_word_embeddings=True), "Leave it out",
             lambda h: audit_ties(nn.Linear(2, 2))),
        Case(lambda h: audit_ties(nn.Linear(2, 2), tie_word_embeddings=True), "a model of transformers",
             lambda h: audit_ties(h.model, tie_word_embeddings=True)),
    ],
    "head-shape": [
        Case(lambda h: pl.replace_head(cases.small(), cases.linear().double(), tie=False),
             ".to(model.device, model.dtype)",
             lambda h: pl.replace_head(m := cases.small(), cases.linear().double().to(m.device, m.dtype), tie=False)),
        Case(lambda h: pl.replace_head(cases.small(), cases.linear(vocab=cases.VOCAB + 1), tie=False),
             "resize the embedding first",
             lambda h: _wider_embedding(cases.small(), cases.linear(vocab=cases.VOCAB + 1))),
    ],
    "head-not-plain": [
        Case(lambda h: pl.tie(cases.changed("Sequential(Linear)")), "pl.replace_head",
             lambda h: pl.replace_head(cases.changed("Sequential(Linear)"), cases.linear(), tie=True, verify=True)),
    ],
    "reload-differs": [
        Case(lambda h: pl.untie(_changed_config(), verify=True), "pl.audit_ties(model).problems",
             lambda h: pl.untie(_mended(_changed_config()), verify=True))
    ],
    "no-head": [
        Case(lambda h: pl.tie(nn.Linear(2, 2)), "a model of pellucid", lambda h: pl.tie(support.glass())),
        Case(lambda h: pl.tie(support.reference(headless=True)), "get_output_embeddings()",
             lambda h: pl.tie(support.reference())),
    ],
    "tie-not-declared": [
        Case(lambda h: pl.tie(_of(Undeclared)), "_tied_weights_keys = {'lm_head.weight': 'transformer.wte.weight'}",
             lambda h: pl.tie(_of(Declared), verify=True))
    ],
}  # fmt: skip


def pl_untied(model: Any) -> Any:
    pl.untie(model)
    return model


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("ties")
    cases.small().save_pretrained(folder / "saved")
    return Here(folder=folder, model=cases.small(), saved=folder / "saved")


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)


def problem_of(x: Any, code: str, **more: Any) -> pl.ties.problems.Problem:
    return next(problem for problem in audit_ties(x, **more).problems if problem.code == code)


def codes(x: Any, **more: Any) -> set[str]:
    return {problem.code for problem in audit_ties(x, **more).problems}


@pytest.mark.remedy("overlapping-views")
def test_views_that_overlap() -> None:
    memory = torch.randn(10, 4)
    parts = {"a": memory[:6], "b": memory[4:]}
    assert "tensor.clone()" in problem_of(parts, "overlapping-views").remedy
    assert not codes({name: tensor.clone() for name, tensor in parts.items()})


@pytest.mark.remedy("embedding-not-stored")
def test_a_file_without_the_embedding(tmp_path: Any) -> None:
    model = cases.small()
    model.config.save_pretrained(tmp_path)
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    assert "save_pretrained" in problem_of(tmp_path, "embedding-not-stored").remedy
    transformers.GPT2LMHeadModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert not codes(tmp_path / "again")


@pytest.mark.remedy("reload-random")
def test_a_file_that_lacks_tensors(tmp_path: Any) -> None:
    model = cases.small()
    model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["transformer.wpe.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "all of the class's tensors" in problem_of(tmp_path, "reload-random").remedy
    model.save_pretrained(tmp_path)
    assert not codes(tmp_path)


@pytest.mark.remedy("reload-dtype")
def test_a_head_of_another_dtype() -> None:
    model = cases.changed("a wider head")
    assert "model.to(dtype)" in problem_of(model, "reload-dtype").remedy
    assert "reload-dtype" not in codes(model.to(torch.float32))


@pytest.mark.remedy("optimizer-stale", "optimizer-misses")
def test_an_optimizer_of_another_head() -> None:
    model = cases.small(tie_word_embeddings=False)
    old = torch.optim.SGD(model.parameters(), lr=0.1)
    model.lm_head = cases.linear()
    for code in ("optimizer-stale", "optimizer-misses"):
        assert "model.parameters()" in problem_of(model, code, optimizer=old).remedy
    assert not codes(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    model.lm_head.weight.requires_grad = False
    assert "requires_grad=False" in problem_of(cases.small(), "optimizer-misses", optimizer=old).remedy
    assert "optimizer-misses" not in codes(model, optimizer=old)
