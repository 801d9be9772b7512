"""An audit reads: the model, its optimizer, the generators and the disk are as they were."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pellucid.ties import audit_ties
from ties import cases

pytest.importorskip("transformers")


@pytest.mark.parametrize("row", support.few_of([*cases.ROWS, *cases.MORE], *cases.ROWS))
def test_an_audit_only_reads(row: str) -> None:
    model = cases.changed(row).train()
    model.transformer.h[0].eval()
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the model was run"))
    optimizer = torch.optim.AdamW(model.parameters())

    def state() -> Any:
        return (
            [(n, id(p), p._version, p.grad) for n, p in model.named_parameters(remove_duplicate=False)],
            [(n, id(m), m.training, dict(m._forward_hooks)) for n, m in model.named_modules()],
            copy.deepcopy(model.config.to_dict()), dict(vars(model.config)), dict(model.all_tied_weights_keys),
            [list(map(id, group["params"])) for group in optimizer.param_groups], len(optimizer.state),
        )  # fmt: skip

    before, bits = state(), torch.get_rng_state()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit_ties(model, optimizer=optimizer)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), bits)
    assert all(torch.equal(a.nan_to_num(), tensors[name].nan_to_num()) for name, a in model.state_dict().items())


def test_an_audit_writes_no_tensor_and_leaves_no_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save is performed on the configurations alone: a large model is not written to be audited."""
    import safetensors.torch
    import transformers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", lambda *_, **__: pytest.fail("performed"))
    for module in (torch, safetensors.torch):
        for name in ("save", "save_file"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("saved"))
    for row in cases.ROWS:
        audit_ties(cases.changed(row))
    assert list(tmp_path.iterdir()) == []


def test_the_reload_takes_no_memory_for_the_tensors() -> None:
    """What `from_pretrained` is given holds one number for each tensor, however many it stands for."""
    model = cases.small()
    given: list[int] = []

    class Watched(type(model)):
        @classmethod
        def from_pretrained(cls, *args: Any, state_dict: Any, **options: Any) -> Any:
            given.extend(tensor.untyped_storage().nbytes() for tensor in state_dict.values())
            return super().from_pretrained(*args, state_dict=state_dict, **options)

    model.__class__ = Watched
    assert audit_ties(model).after_reload.survives
    assert len(given) == len(model.state_dict()) - 1
    assert set(given) == {4}


def test_a_class_that_draws_past_the_guards_draws_into_stand_ins() -> None:
    """Its reload loses the embedding; the audit says so, and the model keeps it."""
    base = type(cases.small())

    class Careless(base):
        def _init_weights(self, module: Any) -> None:
            self.transformer.wte.weight.data.normal_()

    model = cases.small()
    model.__class__ = Careless
    model.config.tie_word_embeddings = False  # the head is missing, and is drawn
    before = model.transformer.wte.weight.detach().clone()
    lost = [loss.name for loss in audit_ties(model).after_reload.lost]
    assert {"transformer.wte.weight", "lm_head.weight"} <= set(lost)
    assert torch.equal(model.transformer.wte.weight, before)


def test_a_temporary_folder_that_cannot_be_made(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(pl.WeightsError, match="No such file or directory") as caught:
        audit_ties(cases.small())
    assert "TMPDIR" in caught.value.remedy
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # what the remedy says
    assert audit_ties(cases.small()).after_reload.survives


def test_a_configuration_that_its_class_does_not_read_is_no_disk_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("it does not appear to have a file")

    model = cases.small()
    monkeypatch.setattr(type(model.config), "from_pretrained", fail)
    assert "from_pretrained raises: config: it does not appear" in audit_ties(model).after_reload.reason
