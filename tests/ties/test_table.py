"""What is predicted of a reload, against the real thing, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.ties import audit_ties
from support import few_of
from ties import cases


@pytest.fixture(autouse=True)
def _silent() -> None:
    pytest.importorskip("transformers").logging.set_verbosity(50)


EXPECTED = {
    "nothing": (True, True),
    "new Linear": (True, False),
    "new Linear, then tie_weights()": (True, True),
    "new Linear, then resize to the same size": (True, True),
    "Linear with a bias": (False, False),
    "Sequential(Linear)": (False, True),
    "Sequential(Linear), config untied": (False, False),
    "equal-valued clone": (True, True),
    "head that wraps the embedding": (None, None),
    "two Parameters over one storage": (True, True),
    "tied, config untied": (False, False),
}
"""The table of docs/ties.md, written down so that a library of another behaviour is noticed."""


@pytest.mark.parametrize("row", [*cases.ROWS, *cases.MORE])
def test_every_row(row: str) -> None:
    """What a reload gives, how many bytes are written, and what `tie_weights()` would overwrite."""
    model, real = cases.changed(row), cases.reality(row)
    audit = audit_ties(model)
    after = audit.after_reload
    assert (after.survives, after.tied_after) == (real.survives, real.tied) == EXPECTED.get(row, real[:2])
    assert after.reason
    assert audit.bytes_on_disk == real.nbytes
    if row == "keys as a list":
        assert audit.overwritten_by_tying == ()
        with pytest.raises(AttributeError):
            model.tie_weights()
        return
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters(remove_duplicate=False)}
    model.tie_weights()
    tied = dict(model.named_parameters(remove_duplicate=False))
    assert audit.overwritten_by_tying == tuple(n for n, t in before.items() if not same(t, tied[n]))


@pytest.mark.parametrize("row", few_of([*cases.ROWS, *cases.MORE], *cases.SOME))
def test_every_row_of_a_model_made_untied(row: str) -> None:
    after = audit_ties(cases.changed(row, tie_word_embeddings=False)).after_reload
    assert (after.survives, after.tied_after) == cases.reality(row, tie_word_embeddings=False)[:2]


@pytest.mark.parametrize(
    "row", ["nothing", "new Linear", "equal-valued clone", "Linear with a bias", "Sequential(Linear)"]
)
def test_the_configuration_may_be_overridden(row: str, tmp_path: Path) -> None:
    model = cases.changed(row)
    after = audit_ties(model, tie_word_embeddings=False).after_reload
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, tie_word_embeddings=False).eval()
    ids = torch.arange(8)[None]
    assert after.survives == cases.close(model(ids)[0], again(ids)[0])
    assert after.tied_after == (again.lm_head.weight is again.transformer.wte.weight)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def families() -> dict[str, Any]:
    import transformers as t

    tiny = {
        "vocab_size": 29,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return {
        "headless": (t.GPT2Model, t.GPT2Config(**cases.SIZES)),
        "classifier": (t.GPT2ForSequenceClassification, t.GPT2Config(**cases.SIZES, pad_token_id=0)),
        "two heads": (t.GPT2DoubleHeadsModel, t.GPT2Config(**cases.SIZES)),
        "llama": (t.LlamaForCausalLM, t.LlamaConfig(**tiny)),
        "llama, tied": (t.LlamaForCausalLM, t.LlamaConfig(**tiny, tie_word_embeddings=True)),
        "bert": (t.BertForMaskedLM, t.BertConfig(**tiny)),
        "t5": (t.T5EncoderModel, t.T5Config(vocab_size=29, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)),
    }


@pytest.mark.parametrize("family", ["headless", "classifier", "two heads", "llama", "llama, tied", "bert", "t5"])
def test_other_classes(family: str, tmp_path: Path) -> None:
    cls, config = families()[family]
    model = cls(config).eval()
    after = audit_ties(model).after_reload
    assert (after.survives, after.tied_after) == cases.really(model, tmp_path)


def test_tensors_of_other_sizes_are_named_with_both() -> None:
    after = audit_ties(cases.changed("a head of another vocabulary")).after_reload
    said = f"lm_head.weight is [{cases.VOCAB + 2}, {cases.WIDTH}] in the file"
    assert after.reason == f"from_pretrained raises: {said} and [{cases.VOCAB}, {cases.WIDTH}] in the model"


def test_each_head_has_its_fate() -> None:
    model = cases.changed("Linear with a bias")
    (fate,) = audit_ties(model).after_reload.heads
    assert (fate.name, fate.survives, fate.tied_after) == ("lm_head.weight", False, False)
    assert "lm_head.bias" in fate.reason
    import transformers as t

    bert = t.BertForMaskedLM(families()["bert"][1])
    names = {fate.name for fate in audit_ties(bert).after_reload.heads}
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} <= names


def test_a_module_that_the_class_does_not_have_is_lost_whether_it_is_used_or_not() -> None:
    model = cases.small()
    model.extra = cases.linear()
    after = audit_ties(model).after_reload
    assert after.survives is False
    assert [(loss.name, loss.code) for loss in after.lost] == [("extra.weight", "dropped")]


def test_a_class_that_needs_more_than_its_configuration(tmp_path: Path) -> None:
    import transformers as t

    class Demanding(t.GPT2LMHeadModel):
        def __init__(self, config: Any, more: int) -> None:
            super().__init__(config)

    model = Demanding(t.GPT2Config(**cases.SIZES), 3)
    after = audit_ties(model).after_reload
    assert after.survives is False
    assert "TypeError" in after.reason
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError):
        Demanding.from_pretrained(tmp_path)
