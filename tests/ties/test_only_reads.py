"""An audit reads: the model, its optimizer, the generators and the disk are as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pellucid.ties import audit_ties
from ties import cases

pytest.importorskip("transformers")


@pytest.mark.parametrize("row", [*cases.ROWS, *cases.MORE])
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


def test_an_audit_writes_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction does not perform the save."""
    import transformers

    monkeypatch.chdir(tmp_path)
    for name in ("save_pretrained", "from_pretrained"):
        monkeypatch.setattr(transformers.PreTrainedModel, name, lambda *_, **__: pytest.fail("performed"))
    monkeypatch.setattr(torch, "save", lambda *_, **__: pytest.fail("saved"))
    for row in cases.ROWS:
        audit_ties(cases.changed(row))
    assert list(tmp_path.iterdir()) == []
