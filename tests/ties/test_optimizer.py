"""What an optimizer does with tied parameters, and how a change of the head keeps it valid."""

from __future__ import annotations

import itertools

import pytest
import torch

import support
from pellucid.ties import audit_ties, replace_head, tie, untie
from ties import cases
from ties.makers import MAKERS, head, step, trained

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
}


VERBS = ("tie", "untie", "replace", "replace tied")


@pytest.mark.parametrize("whose", MAKERS)
@pytest.mark.parametrize(
    ("which", "verb"),
    support.few_of(itertools.product(OPTIMIZERS, VERBS), "adamw", ("sgd", "untie"), ("adagrad", "replace tied")),
)
def test_an_optimizer_stays_valid(whose: str, which: str, verb: str) -> None:
    cls, options = OPTIMIZERS[which]
    model = MAKERS[whose](tie_word_embeddings=verb == "untie")
    optimizer = trained(model, cls, **options)
    change = {
        "tie": tie, "untie": untie, "replace": lambda m, **o: replace_head(m, head(), tie=False, **o),
        "replace tied": lambda m, **o: replace_head(m, head(), tie=True, **o),
    }[verb](model, optimizer=optimizer)  # fmt: skip
    assert change.optimizer == "valid"
    assert audit_ties(model, optimizer=optimizer).problems == ()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert set(map(id, optimizer.state)) <= {id(p) for p in held}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimizer)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    type(optimizer)(model.parameters(), **{"lr": 1e-2, **options}).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("whose", MAKERS)
def test_an_untied_head_goes_on_with_the_state_of_the_embedding(whose: str) -> None:
    model = MAKERS[whose]()
    optimizer = trained(model, torch.optim.AdamW)
    untie(model, optimizer=optimizer)
    embedding = model.get_input_embeddings().weight
    own = model.unembed.W_U if whose == "ours" else model.lm_head.weight
    theirs, ours = optimizer.state[embedding], optimizer.state[own]
    for key in ("exp_avg", "exp_avg_sq"):
        assert ours[key].shape == own.shape
        assert torch.equal(ours[key].t() if whose == "ours" else ours[key], theirs[key])
        assert ours[key].data_ptr() != theirs[key].data_ptr()


@pytest.mark.parametrize("whose", MAKERS)
def test_an_optimizer_that_cannot_be_edited_is_left_and_said_so(whose: str) -> None:
    model = MAKERS[whose]()
    optimizer = torch.optim.LBFGS(model.parameters())
    held = list(optimizer.param_groups[0]["params"])
    change = untie(model, optimizer=optimizer)
    assert change.optimizer == "rebuild"
    assert "rebuild it" in change.note
    assert "rebuild" in repr(change)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], held, strict=True))


@pytest.mark.parametrize("whose", MAKERS)
def test_an_optimizer_of_a_part(whose: str) -> None:
    """What the caller left out stays out; the head's place is kept; a head that was trained and is gone is said."""
    model = MAKERS[whose](tie_word_embeddings=False)
    own = model.unembed.W_U if whose == "ours" else model.lm_head.weight
    only_head = torch.optim.SGD([own], lr=0.1)
    assert replace_head(model, head(), tie=False, optimizer=only_head).optimizer == "valid"
    new = model.unembed.W_U if whose == "ours" else model.lm_head.weight
    assert [id(p) for p in only_head.param_groups[0]["params"]] == [id(new)]
    assert tie(model, optimizer=only_head).optimizer == "rebuild"

    model = MAKERS[whose]()
    norms = [p for name, p in model.named_parameters() if "ln" in name]
    partial = torch.optim.SGD(norms, lr=0.1)
    assert untie(model, optimizer=partial).optimizer == "valid"
    assert [id(p) for p in partial.param_groups[0]["params"]] == [id(p) for p in norms]


def test_an_optimizer_with_groups() -> None:
    model = support.reference(tie_word_embeddings=True)
    slow, fast = [model.transformer.wte.weight], [p for n, p in model.named_parameters() if "wte" not in n]
    optimizer = torch.optim.AdamW([{"params": fast, "lr": 1e-2}, {"params": slow, "lr": 1e-4}])
    untie(model, optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(slow[0]), id(model.lm_head.weight)]


@pytest.mark.remedy("stepped-twice")
def test_double_stepping_is_found() -> None:
    """Two Parameters over one storage: a step of 0.1 times the gradient is taken twice."""
    model = cases.changed("two Parameters over one storage")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    audit = audit_ties(model, optimizer=optimizer)
    assert audit.optimizer.twice == (("transformer.wte.weight", "lm_head.weight"),)
    assert {"two-parameters", "stepped-twice"} <= {problem.code for problem in audit.problems}
    before = model.lm_head.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.allclose(before - model.lm_head.weight, torch.tensor(0.2))
    assert tie(model, optimizer=optimizer).optimizer == "valid"
    before = model.lm_head.weight.detach().clone()
    model.lm_head.weight.grad = torch.ones_like(before)
    optimizer.step()
    assert torch.allclose(before - model.lm_head.weight, torch.tensor(0.1))


def test_a_stale_optimizer_is_found() -> None:
    """The head was replaced by hand after the optimizer was made."""
    model = cases.small(tie_word_embeddings=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert audit_ties(model, optimizer=optimizer).problems == ()
    model.lm_head = cases.linear()
    found = audit_ties(model, optimizer=optimizer)
    assert found.optimizer.stale == ((cases.VOCAB, cases.WIDTH),)
    assert found.optimizer.missed == ("lm_head.weight",)
    assert [problem.code for problem in found.problems] == ["optimizer-stale", "optimizer-misses"]
