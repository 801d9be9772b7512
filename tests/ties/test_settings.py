"""What a model keeps beside its tensors, and what is not saved as transformers saves a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pellucid as pl
import samples
import support
from pellucid.ties import audit_ties
from ties import cases

IDS = torch.arange(9)[None]


def _set(path: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        *parents, name = path.split(".")
        for parent in parents:
            model = model[int(parent)] if parent.isdigit() else getattr(model, parent)
        setattr(model, name, value)

    return change


def _patched(model: Any) -> None:
    mlp = model.transformer.h[1].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)


CHANGED: dict[str, tuple[Callable[[Any], None], str]] = {
    "heads in the configuration": (_set("config.n_head", 2), "h.0.attn.num_heads"),
    "epsilon in the configuration": (_set("config.layer_norm_epsilon", 0.3), "ln_f.eps"),
    "scale in the configuration": (_set("config.scale_attn_weights", False), "h.0.attn.scaling"),
    "epsilon of one norm": (_set("transformer.h.1.ln_2.eps", 0.3), "transformer.h.1.ln_2.eps"),
    "scale of one layer": (_set("transformer.h.0.attn.scaling", 2.0), "transformer.h.0.attn.scaling"),
    "heads of one layer": (_set("transformer.h.0.attn.head_dim", 6), "transformer.h.0.attn.head_dim"),
    "a patched forward": (_patched, "transformer.h.1.mlp"),
    "the slope of an activation": (_set("transformer.h.0.mlp.act.negative_slope", 0.9), "mlp.act.negative_slope"),
}
HARMLESS: dict[str, Callable[[Any], None]] = {
    "nothing": lambda model: None,
    "the cache in the configuration": _set("config.use_cache", False),
    "dropout while evaluating": _set("transformer.drop.p", 0.7),
    "a name": _set("name_or_path", "mine"),
    "the vocabulary that a module states": _set("transformer.wte.num_embeddings", 5),
    "an attribute of the user's": _set("transformer.note", 3),
}


def reloaded(model: Any, folder: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder)
    again = again[0] if isinstance(again, tuple) else again
    return again.eval()(ids).logits


@pytest.mark.parametrize("case", CHANGED)
def test_what_is_built_with_another_setting(case: str, tmp_path: Path) -> None:
    change, where = CHANGED[case]
    model = cases.small(activation_function="leaky_relu" if "slope" in case else "gelu_new")
    change(model)
    after = audit_ties(model).after_reload
    assert after.survives is False
    assert where in " ".join(loss.name for loss in after.lost)
    assert not torch.equal(reloaded(model, tmp_path), model(IDS).logits)
    with pytest.raises(pl.WeightsError, match="nothing was saved"):
        pl.save_hf(model, tmp_path / "other")


def test_rotary_frequencies_of_another_configuration(tmp_path: Path) -> None:
    """No file holds them, and a reload computes them anew."""
    model = samples.reference("llama", num_hidden_layers=1)
    assert audit_ties(model).after_reload.survives is True
    model.config.rope_parameters["rope_theta"] = 77.0
    after = audit_ties(model).after_reload
    assert after.survives is False
    assert "model.rotary_emb.inv_freq" in [loss.name for loss in after.lost]
    assert not torch.equal(reloaded(model, tmp_path), model(IDS).logits)


ROUNDED = pytest.mark.remedy("reload-rounded")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(
            family,
            dtype,
            marks=[ROUNDED] * (family != "gpt2" and dtype != torch.float64)
            + [pytest.mark.long] * ((family != "llama" and dtype != torch.bfloat16) or dtype == torch.float16),
        )
        for family in samples.SAMPLES
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
    ],
)
def test_a_change_of_dtype_rounds_frequencies(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What an audit says is what a reload gives, of a model of transformers and of ours."""
    theirs = samples.reference(family, dtype=dtype, **({"rotary_pct": 1.0} if family == "gpt_neox" else {}))
    ours, ids = pl.from_hf(theirs), samples.some_ids(1, 16)
    ours.save_pretrained(tmp_path / "ours")
    outputs = {
        theirs: (reloaded(theirs, tmp_path / "theirs", ids), theirs(ids).logits),
        ours: (pl.load(tmp_path / "ours", dtype="stored")(ids), ours(ids)),
    }
    for model, (after, before) in outputs.items():
        audit = audit_ties(model)
        assert audit.after_reload.survives is torch.equal(after, before)
        assert audit.after_reload.survives is (family == "gpt2" or dtype == torch.float64)
        if not audit.after_reload.survives:
            with pytest.raises(pl.WeightsError, match="a change of dtype rounded these"):
                pl.save_hf(model, tmp_path / "saved") if model is theirs else pl.untie(model, verify=True)
            assert audit.problems[0].code == "reload-rounded"
            exec(audit.problems[0].remedy.partition("there: ")[2].rstrip("."), {"model": model})
            assert audit_ties(model).after_reload.survives
    assert pl.save_hf(theirs, tmp_path / "saved").outputs


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_rotation_of_ours_that_was_changed_after_it_was_built(family: str, tmp_path: Path) -> None:
    model, other = samples.pair(family)[0], samples.pair(family)[0]
    assert audit_ties(model).after_reload.survives
    model.rotary.inv_freq.mul_(0.5)
    other.config = other.config.replace(rope_parameters={**other.config.rope_parameters, "rope_theta": 77.0})
    for changed in (model, other):
        assert [(loss.name, loss.code) for loss in audit_ties(changed).after_reload.lost] == [
            ("rotary.inv_freq", "setting")
        ]
        changed.save_pretrained(tmp_path)
        assert not torch.equal(pl.load(tmp_path)(IDS), changed(IDS))


@pytest.mark.parametrize("case", HARMLESS)
def test_what_no_output_depends_on(case: str, tmp_path: Path) -> None:
    model = cases.small()
    HARMLESS[case](model)
    assert audit_ties(model).after_reload.survives is True
    assert torch.equal(reloaded(model, tmp_path), model(IDS).logits)


def test_dropout_counts_while_training() -> None:
    model = cases.small().train()
    model.transformer.drop.p = 0.7
    assert [loss.name for loss in audit_ties(model).after_reload.lost] == ["transformer.drop.p"]


@pytest.mark.remedy("reload-setting")
def test_the_remedy_for_a_changed_configuration(tmp_path: Path) -> None:
    model = cases.small()
    model.config.layer_norm_epsilon = 0.3
    problem = audit_ties(model).problems[0]
    assert problem.code == "reload-setting"
    assert "type(model)(config)" in problem.remedy
    config = model.config
    built = type(model)(config).eval()
    built.load_state_dict(model.state_dict())
    assert audit_ties(built).after_reload.survives
    assert torch.equal(reloaded(built, tmp_path), built(IDS).logits)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"layer_norm_epsilon": 0.3}, "blocks.0.ln1.eps"),
        ({"scale_attn_weights": False}, "blocks.1.attn.scale"),
        ({"activation_function": "relu"}, "blocks.0.mlp.act"),
    ],
)
def test_ours_with_another_configuration_than_it_was_built_from(
    fields: dict[str, Any], where: str, tmp_path: Path
) -> None:
    model = support.glass()
    assert audit_ties(model).after_reload.survives
    model.config = model.config.replace(**fields)
    after = audit_ties(model).after_reload
    assert after.survives is False
    assert where in [loss.name for loss in after.lost]
    model.save_pretrained(tmp_path)
    assert not torch.equal(pl.load(tmp_path)(IDS), model(IDS))


def test_a_quantized_head_cannot_be_saved(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(cases.small(), {nn.Linear}, dtype=torch.qint8)
    audit = audit_ties(model)
    assert audit.after_reload.survives is None
    assert "save_pretrained raises" in audit.after_reload.reason
    assert "lm_head is quantized" in audit.after_reload.reason
    assert "quantize what is read" in audit.problems[0].remedy
    with pytest.raises(AttributeError):
        model.save_pretrained(tmp_path)


class Adapted(nn.Module):
    """Stands for a model with an adapter, whose `save_pretrained` is the adapter's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = cases.small()

    def save_pretrained(self, folder: Path) -> None:
        raise NotImplementedError


def test_other_ways_to_save_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    said = audit_ties(Adapted()).after_reload
    assert said.survives is None
    assert said.reason == "a Adapted has a save_pretrained of its own, which is not predicted"
    monkeypatch.setattr(Adapted, "__module__", "peft.peft_model")
    assert "writes the adapter alone" in audit_ties(Adapted()).after_reload.reason
    assert audit_ties(nn.Linear(2, 2)).after_reload.reason == "a Linear has no save_pretrained"


@pytest.mark.remedy("holds-itself")
def test_a_module_that_holds_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.parts = nn.ModuleDict({"parent": model})
    with pytest.raises(pl.InputError, match=r"parts\.parent is the model itself") as caught:
        audit_ties(model)
    assert caught.value.code == "holds-itself"
    for verb in (pl.count_parameters, pl.from_hf, lambda given: pl.compare(pl.load(), given)):
        with pytest.raises(pl.InputError, match="its names would never end") as caught:
            verb(model)
        assert caught.value.code == "holds-itself"
    del model.parts
    model.parts = (model,)  # what the remedy says
    assert audit_ties(model).unique == 6
    outer = nn.ModuleDict({"inner": nn.ModuleDict({"leaf": nn.Linear(2, 2)})})
    outer["inner"]["again"] = outer["inner"]
    with pytest.raises(pl.InputError, match=r"inner\.again is inner"):
        audit_ties(outer)
    held = cases.small()
    held.transformer.h[0].parent = held
    with pytest.raises(pl.InputError, match="its names would never end"):
        pl.save_hf(held, "nowhere")
