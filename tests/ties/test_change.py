"""`tie`, `untie`, `replace_head`: memory, configuration, optimizer and disk agree afterwards, or nothing changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import pellucid as pl
import support
from pellucid.ties import audit_ties, replace_head, tie, untie
from ties import cases
from ties.makers import MAKERS, VOCAB, WIDTH, head, is_tied, logits, rows, trained


def spoil_reloads(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Let whatever is read come back with another bias."""
    right = type(model).from_pretrained

    def wrong(*args: Any, **options: Any) -> Any:
        again = right(*args, **options)
        with torch.no_grad():
            (again.blocks[0].ln1.b if isinstance(again, pl.CkptedTransformer) else again.transformer.ln_f.bias)[0] += 1
        return again

    patch.setattr(type(model), "from_pretrained", wrong)


def agrees(model: Any, tied: bool, folder: Path) -> None:
    """Memory, counts, configuration and what a real reload gives all say the same."""
    assert is_tied(model) is tied
    assert model.config.tie_word_embeddings is tied
    audit = audit_ties(model)
    assert audit.problems == ()
    assert (audit.by_name - audit.unique) == (VOCAB * WIDTH if tied else 0)
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    assert is_tied(again) is tied
    assert cases.close(logits(model.eval()), logits(again.eval()))
    if not isinstance(model, pl.CkptedTransformer):
        assert bool(model.all_tied_weights_keys) is tied


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("whose", MAKERS)
def test_untie_keeps_the_numbers_and_the_memory_apart(whose: str, verify: bool, tmp_path: Path) -> None:
    model = MAKERS[whose]()
    before = logits(model)
    change = untie(model, verify=verify)
    assert torch.equal(logits(model), before)
    assert (change.tied, change.given_up, change.verified) == (False, (), True if verify else None)
    agrees(model, False, tmp_path / "a")
    with torch.no_grad():
        rows(model)[3] += 1
    assert not torch.equal(logits(model), before)
    assert not torch.equal(rows(model), model.get_input_embeddings().weight)
    agrees(model, False, tmp_path / "b")


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("whose", MAKERS)
def test_tie_makes_the_head_the_embedding(whose: str, verify: bool, tmp_path: Path) -> None:
    model = MAKERS[whose](tie_word_embeddings=False)
    change = tie(model, verify=verify)
    name = "unembed.W_U" if whose == "ours" else "lm_head.weight"
    assert (change.tied, change.given_up, change.verified) == (True, (name,), True if verify else None)
    agrees(model, True, tmp_path)
    assert tie(model).given_up == ()
    untie(model)
    assert tie(model).given_up == ()  # equal numbers are not lost


@pytest.mark.parametrize("whose", MAKERS)
@pytest.mark.parametrize(
    ("tied_before", "tied"),
    support.few_of(itertools.product((True, False), (True, False)), (True, False), (False, True)),
)
def test_replace_head(whose: str, tied_before: bool, tied: bool, tmp_path: Path) -> None:
    model, new = MAKERS[whose](tie_word_embeddings=tied_before), head()
    given = new.weight.detach().clone()
    change = replace_head(model, new, tie=tied, verify=True)
    old = () if tied_before else ("unembed.W_U" if whose == "ours" else "lm_head.weight",)
    assert change.given_up == (*old, *(("the head given",) if tied else ()))
    assert torch.equal(rows(model), model.get_input_embeddings().weight if tied else given)
    if whose == "hf":
        assert model.lm_head is new
    else:
        assert torch.equal(new.weight, given)  # the caller's, not adopted
        assert rows(model).data_ptr() != new.weight.data_ptr()
    agrees(model, tied, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_foreign_head_of_ours_is_replaced_or_kept(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, foreign = support.glass(), head()
    model.unembed = foreign
    for verb in (tie, untie):
        with pytest.raises(pl.WeightsError) as caught:
            verb(model)
        assert caught.value.code == "head-not-plain"
    with monkeypatch.context() as patch:
        spoil_reloads(model, patch)
        with pytest.raises(pl.WeightsError, match="undone"):
            replace_head(model, head(), tie=tied, verify=True)
    assert model.unembed is foreign
    optimizer = trained(model, torch.optim.AdamW)
    change = replace_head(model, head(), tie=tied, optimizer=optimizer, verify=True)
    assert (change.optimizer, is_tied(model)) == ("valid", tied)


@pytest.mark.remedy("head-not-plain")
def test_the_head_of_the_second_question() -> None:
    """A Sequential cannot be saved; its Linear can."""
    model = cases.small()
    wrapped = nn.Sequential(nn.Linear(cases.WIDTH, cases.VOCAB, bias=False))
    with pytest.raises(pl.WeightsError, match=r"a reload loses anything else") as caught:
        replace_head(model, wrapped, tie=True)
    assert caught.value.code == "head-not-plain"
    assert is_tied(model)
    replace_head(model, wrapped[0], tie=True, verify=True)
    assert is_tied(model)


NOT_PLAIN = ["Sequential(Linear)", "head that wraps the embedding", "Linear with a bias", "no Linear at all"]


@pytest.mark.parametrize(
    "row", [*NOT_PLAIN, "Sequential with a Tanh", "two Parameters over one storage", "overlapping views"]
)
@pytest.mark.parametrize("tied", support.few_of([True, False], True))
def test_replace_head_repairs_whatever_was_there(row: str, tied: bool) -> None:
    model = cases.changed(row)
    replace_head(model, cases.linear(), tie=tied, verify=row != "overlapping views")
    assert is_tied(model) is tied
    assert audit_ties(model).after_reload.survives is True


@pytest.mark.parametrize("verb", [tie, untie])
@pytest.mark.parametrize("row", NOT_PLAIN)
def test_a_head_that_is_not_plain_is_refused(row: str, verb: Callable[..., Any]) -> None:
    model = cases.changed(row)
    before = (model.lm_head, model.config.to_dict())
    with pytest.raises(pl.WeightsError) as caught:
        verb(model)
    assert caught.value.code == "head-not-plain"
    assert (model.lm_head, model.config.to_dict()) == before


MISFITS = [head(bias=True), head(vocab=3), head().double(), head().to("meta"), None]


@pytest.mark.parametrize("whose", MAKERS)
@pytest.mark.parametrize("new", MISFITS, ids=["bias", "shape", "dtype", "device", "none"])
def test_a_head_that_does_not_fit_is_refused(whose: str, new: Any) -> None:
    model = MAKERS[whose]()
    with pytest.raises(pl.PellucidError) as caught:
        replace_head(model, new, tie=False)
    assert caught.value.code in ("head-not-plain", "head-shape")
    assert is_tied(model)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(2, 2), lambda: support.reference(headless=True)], ids=["a module", "headless"]
)
def test_a_model_without_a_head_is_refused(make: Callable[[], Any]) -> None:
    for verb in (tie, untie):
        with pytest.raises(pl.InputError, match="no output head"):
            verb(make())


def test_a_class_that_declares_no_tie() -> None:
    import transformers as t

    class Undeclared(t.GPT2LMHeadModel):
        _tied_weights_keys = None

    model = Undeclared(t.GPT2Config(**cases.SIZES))
    with pytest.raises(pl.WeightsError) as caught:
        tie(model)
    assert caught.value.code == "tie-not-declared"
    assert model.lm_head.weight is not model.transformer.wte.weight


@pytest.mark.parametrize("whose", MAKERS)
@pytest.mark.parametrize("verb", ["tie", "untie", "replace"])
def test_a_failed_verification_undoes_everything(whose: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MAKERS[whose](tie_word_embeddings=verb != "tie")
    optimizer = trained(model, torch.optim.AdamW)
    before = state(model, optimizer)
    spoil_reloads(model, monkeypatch)
    with pytest.raises(pl.WeightsError, match="The change was undone"):
        {"tie": tie, "untie": untie, "replace": lambda m, **o: replace_head(m, head(), tie=False, **o)}[verb](
            model, optimizer=optimizer, verify=True
        )
    assert state(model, optimizer) == before


def test_a_verification_sees_a_wrong_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    model = support.glass()
    spoil_reloads(model, monkeypatch)
    with pytest.raises(pl.WeightsError, match=r"ln1\.b"):
        untie(model, verify=True)
    assert is_tied(model)
    assert model.config.tie_word_embeddings


def state(model: Any, optimizer: torch.optim.Optimizer) -> Any:
    return (
        [(n, id(p)) for n, p in model.named_parameters(remove_duplicate=False)], model.config.to_dict(),
        [list(map(id, group["params"])) for group in optimizer.param_groups],
        {id(p): {k: v.clone() if k == "never" else id(v) for k, v in s.items()} for p, s in optimizer.state.items()},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (KeyError("rope"), "reload-raises"), (ValueError(), "reload-raises"), (AssertionError("odd"), "reload-raises"),
        (OSError("there is no such file"), "reload-raises"), (SafetensorError("no header"), "reload-raises"),
        (OSError(28, "No space left on device"), "path-not-writable"), (OSError(2, "No such file"), "reload-raises"),
    ],
)  # fmt: skip
def test_a_reload_that_raises_is_an_error_of_the_library(
    problem: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise problem

    model = support.reference()
    monkeypatch.setattr(type(model), "from_pretrained", fail)
    with pytest.raises(pl.WeightsError) as caught:
        untie(model, verify=True)
    assert caught.value.code == code
    assert is_tied(model)


@pytest.mark.parametrize("whose", MAKERS)
def test_gradients_reach_the_tied_tensor_from_both_uses(whose: str) -> None:
    """The gradient of the tied tensor is the sum of what embedding and head get when they are apart."""
    tied, apart = MAKERS[whose](dtype=torch.float64), MAKERS[whose](dtype=torch.float64)
    untie(apart)
    for model in (tied, apart):
        logits(model).square().mean().backward()
    together = tied.get_input_embeddings().weight.grad
    at_head = apart.grad("unembed.W_U").t() if whose == "ours" else apart.lm_head.weight.grad
    at_embedding = apart.get_input_embeddings().weight.grad
    assert float(at_head.abs().max()) > 0
    assert float(at_embedding.abs().max()) > 0
    assert support.close(together, at_head + at_embedding)


@pytest.mark.parametrize("whose", MAKERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_embedding_gives_a_frozen_head(whose: str, frozen: bool) -> None:
    model = MAKERS[whose]()
    model.get_input_embeddings().weight.requires_grad_(not frozen)
    untie(model)
    own = model.unembed.W_U if whose == "ours" else model.lm_head.weight
    assert own.requires_grad is not frozen


def test_ours_still_compiles_copies_and_moves_after_a_change() -> None:
    import copy

    model = support.glass()
    untie(model)
    again = copy.deepcopy(model)
    assert torch.equal(logits(again), logits(model))
    again.load_state_dict(model.state_dict())
    tie(again)
    assert sorted(again.state_dict()) == sorted(support.glass().state_dict())
    assert again.unembed.W_U.data_ptr() == again.embed.W_E.data_ptr()
    assert again.double().unembed.W_U.dtype == torch.float64
