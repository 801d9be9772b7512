"""A predictor with a mistake in it disagrees with the real thing on a row of the table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.numerics.rounding import same_numbers
from pellucid.ties import audit, audit_ties, output_head, predict, standins, stored
from pellucid.ties.predict import AfterReload
from ties import cases, test_audit, test_checkpoints

Mutate = Callable[[pytest.MonkeyPatch], None]


def is_predicted(row: str, real: tuple[bool | None, bool | None]) -> bool:
    try:
        after = audit_ties(cases.changed(row)).after_reload
        return (after.survives, after.tied_after) == real
    except Exception:  # a mutant may crash
        return False


def always(survives: bool | None, tied: bool | None) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(audit, "predict_hf", lambda *_: AfterReload(survives, tied, "always"))

    return mutate


def what_memory_says(patch: pytest.MonkeyPatch) -> None:
    def naive(model: Any, *_: Any) -> AfterReload:
        tied = getattr(model.lm_head, "weight", None) is model.transformer.wte.weight
        return AfterReload(True, tied, "as in memory")

    patch.setattr(audit, "predict_hf", naive)


def what_the_configuration_says(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        audit, "predict_hf", lambda model, *_: AfterReload(True, model.config.tie_word_embeddings, "as declared")
    )


def code_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(predict, "_same_code", lambda a, b: True)


def classes_instead_of_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(predict, "_same_code", lambda a, b: type(a) is type(b))


def any_sequential_is_a_linear(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        predict, "plain_linear", lambda module: next((m for m in module.modules() if hasattr(m, "weight")), None)
    )


def a_bias_has_no_effect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(predict, "_adds_nothing", lambda linear: True)


def a_bias_always_has_an_effect(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(predict, "_adds_nothing", lambda linear: linear.bias is None)


def sharing_is_never_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(predict, "written", lambda model, declared: dict(model.state_dict()))


def declarations_do_not_count(patch: pytest.MonkeyPatch) -> None:
    import transformers.modeling_utils

    patch.setattr(transformers.modeling_utils, "_get_tied_weight_keys", lambda model: [])


def equal_tensors_stay_apart(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(standins, "alike", lambda named, equal: [[one] for one in named])


def all_tensors_are_tied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(standins, "alike", lambda named, equal: [list(named)])


def nan_equals_nan(patch: pytest.MonkeyPatch) -> None:
    right = standins.alike
    patch.setattr(standins, "alike", lambda named, equal: right(named, same_numbers))


def the_cache_instead_of_the_configuration(patch: pytest.MonkeyPatch) -> None:
    right = standins.saved_configuration

    def stale(model: Any) -> Any:
        config = right(model)
        config.tie_word_embeddings = True
        return config

    patch.setattr(predict, "saved_configuration", stale)


def a_loss_of_a_kind_is_none(code: str) -> Mutate:
    def mutate(patch: pytest.MonkeyPatch) -> None:
        right = predict._Comparison._loss

        def blind(self: Any, name: str) -> Any:
            loss = right(self, name)
            return None if loss is not None and loss.code == code else loss

        patch.setattr(predict._Comparison, "_loss", blind)

    return mutate


def lists_are_dicts(patch: pytest.MonkeyPatch) -> None:
    right = predict.predict_hf

    def lenient(model: Any, *given: Any) -> AfterReload:
        keys, model._tied_weights_keys = model._tied_weights_keys, type(model)._tied_weights_keys
        after = right(model, *given)
        model._tied_weights_keys = keys
        return after

    patch.setattr(audit, "predict_hf", lenient)


MUTANTS: dict[Mutate, str] = {
    always(True, True): "new Linear", always(True, False): "nothing", always(False, True): "nothing",
    always(False, False): "nothing", always(None, None): "nothing", what_memory_says: "equal-valued clone",
    what_the_configuration_says: "new Linear", code_is_not_compared: "a Linear that computes otherwise",
    classes_instead_of_code: "an embedding of another class that computes the same",
    any_sequential_is_a_linear: "Sequential with a Tanh", a_bias_has_no_effect: "Linear with a bias",
    a_bias_always_has_an_effect: "Linear with a bias of zero",
    sharing_is_never_refused: "head that wraps the embedding", declarations_do_not_count: "nothing",
    equal_tensors_stay_apart: "equal-valued clone", all_tensors_are_tied: "new Linear",
    nan_equals_nan: "an equal clone with NaN",
    the_cache_instead_of_the_configuration: "tied, config untied", a_loss_of_a_kind_is_none("dtype"): "a wider head",
    a_loss_of_a_kind_is_none("random"): "tied, config untied", lists_are_dicts: "keys as a list",
}  # fmt: skip
"""A mistake, and a row that tells it; without a mistake, `test_every_row` sees all of them predicted."""


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__qualname__)
def test_a_mistaken_predictor_is_caught(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cases.reality(MUTANTS[mutate])[:2]
    mutate(monkeypatch)
    assert not is_predicted(MUTANTS[mutate], real)


def by_object(named: Any) -> list[list[Any]]:
    objects: dict[int, list[Any]] = {}
    for one in named:
        objects.setdefault(id(one.tensor), []).append(one)
    return list(objects.values())


def test_an_optimizer_audit_that_goes_by_objects_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's find_tied_parameters goes by objects, and finds nothing in two Parameters over one storage."""
    model = cases.changed("two Parameters over one storage")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert audit_ties(model, optimizer=optimizer).optimizer.twice
    monkeypatch.setattr(output_head, "clusters", by_object)
    assert not audit_ties(model, optimizer=optimizer).optimizer.twice


@pytest.mark.parametrize("broken", ["wrappers", "classes", "generation"])
def test_a_mistaken_prediction_of_a_folder_is_caught(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if broken == "wrappers":
        monkeypatch.setattr(stored, "prefixed", lambda name, family: name.removeprefix("module."))
        check = partial(test_checkpoints.test_names_of_a_wrapper_are_not_read, "module.", tmp_path)
    elif broken == "classes":
        monkeypatch.setattr(stored, "_read_other", lambda stored, config: (AfterReload(False, None, "no"), {}))
        check = partial(test_checkpoints.test_classes_for_other_tasks, "GPT2DoubleHeadsModel", tmp_path)
    else:
        monkeypatch.setattr(predict, "saved_configuration", lambda model: copy.deepcopy(model.config))
        check = partial(test_audit.test_a_generation_configuration_that_cannot_be_saved, True, tmp_path)
    with pytest.raises(AssertionError):
        check()


def test_real_outputs_depend_on_the_head(tmp_path: Path) -> None:
    """The measure itself: another head gives outputs that `close` tells apart."""
    model = cases.small()
    ids = torch.arange(8)[None]
    before = model(ids)[0]
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 0.01
    assert not cases.close(before, model(ids)[0])
