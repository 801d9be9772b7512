"""Ties that no table lists, held against a real save and a real reload; and none of them is changed by an audit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from offloading import brought_back, moved_by_accelerate
from pellucid.numerics.rounding import same_numbers
from pellucid.ties import audit_ties
from ties import cases

VOCAB, WIDTH = cases.VOCAB, cases.WIDTH
GPT2 = transformers.GPT2LMHeadModel


@pytest.fixture(autouse=True)
def _silent() -> None:
    transformers.logging.set_verbosity(50)


class TiesLayers(GPT2):
    _tied_weights_keys = {  # noqa: RUF012 (as transformers declares it)
        "lm_head.weight": "transformer.wte.weight",
        "transformer.h.1.attn.c_proj.weight": "transformer.h.0.attn.c_proj.weight",
    }


class TiesByPattern(GPT2):
    _tied_weights_keys = {  # noqa: RUF012 (as transformers declares it)
        "lm_head.weight": "transformer.wte.weight",
        r"transformer.h.1.ln_[12].weight": "transformer.h.0.ln_1.weight",
    }


class SharesInInit(GPT2):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.h[1].mlp = self.transformer.h[0].mlp


class WithBias(GPT2):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        self.post_init()


class WithBuffer(GPT2):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.zeros(config.n_embd))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


class DoesNotMissItsHead(GPT2):
    _keys_to_ignore_on_load_missing = ["lm_head.weight"]  # noqa: RUF012 (as transformers declares it)


class Adapted(nn.Module):
    """A head with an adapter around it, as PEFT puts one there."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, VOCAB, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def of_class(cls: Any, then: Callable[[Any], object] = lambda model: None, **fields: Any) -> Callable[[], Any]:
    def make() -> Any:
        plain = cases.small(**fields)
        model = cls(copy.deepcopy(plain.config))
        model.load_state_dict(plain.state_dict(), strict=False)
        model.tie_weights()
        then(model)
        return model.eval()

    return make


def _shares_a_block(model: Any) -> None:
    model.transformer.h[1] = model.transformer.h[0]


def _shares_a_bias(model: Any) -> None:
    model.transformer.h[1].ln_1.bias = model.transformer.h[0].ln_1.bias


def _slices(model: Any) -> None:
    memory = torch.randn(VOCAB + 7, WIDTH)
    model.lm_head.weight, model.transformer.wte.weight = nn.Parameter(memory[:VOCAB]), nn.Parameter(memory[7:])


def _transposed(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(torch.randn(WIDTH, VOCAB).t())


def _stretched(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(torch.randn(1, WIDTH).expand(VOCAB, WIDTH))


def _apart(model: Any) -> None:
    model.transformer.h[1].attn.c_proj.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))


def _clone(model: Any) -> None:
    model.lm_head.weight = cases.clone(model)


def _zero_of_other_sign(model: Any) -> None:
    for matrix, zero in ((model.transformer.wte.weight, 0.0), (model.lm_head.weight, -0.0)):
        with torch.no_grad():
            matrix[0, 0] = zero


def _equal_in_half(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach() + 1e-9)
    model.to(torch.bfloat16)


def _halved_embedding(model: Any) -> None:
    model.transformer.wte.half()
    model.transformer.wte.register_forward_hook(lambda module, args, out: out.float())


def _says(tied: bool) -> Callable[[Any], None]:
    return lambda model: setattr(model.config, "tie_word_embeddings", tied)


def _in_turn(*steps: Callable[[Any], object]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for step in steps:
            step(model)

    return change


ODD: dict[str, Callable[[], Any]] = {
    "a block used twice": of_class(GPT2, _shares_a_block),
    "a bias of two norms": of_class(GPT2, _shares_a_bias),
    "two slices of one matrix": of_class(GPT2, _slices),
    "a transposed head": of_class(GPT2, _transposed, tie_word_embeddings=False),
    "a head of one row": of_class(GPT2, _stretched, tie_word_embeddings=False),
    "a class that ties layers": of_class(TiesLayers),
    "a class that ties layers, configuration untied": of_class(TiesLayers, _says(False)),
    "a class that ties layers, one of them replaced": of_class(TiesLayers, _apart),
    "a class that ties by a pattern": of_class(TiesByPattern),
    "a class that shares a module": of_class(SharesInInit),
    "a class whose head has a bias": of_class(WithBias, lambda model: nn.init.normal_(model.lm_head.bias)),
    "a class with a buffer": of_class(WithBuffer, lambda model: model.mean.normal_()),
    "a buffer over a parameter": of_class(
        WithBuffer, lambda model: setattr(model, "mean", model.transformer.ln_f.bias.detach())
    ),
    "a class that does not miss its head": of_class(DoesNotMissItsHead, _says(False)),
    "a clone, configuration untied": of_class(GPT2, _in_turn(_says(False), _clone)),
    "a clone in bfloat16": of_class(GPT2, _in_turn(lambda model: model.to(torch.bfloat16), _clone)),
    "a clone but for the sign of a zero": of_class(GPT2, _in_turn(_clone, _zero_of_other_sign)),
    "equal when rounded": of_class(GPT2, _equal_in_half),
    "an embedding in float16": of_class(GPT2, _halved_embedding, tie_word_embeddings=False),
    "own numbers, configuration tied": of_class(GPT2, _says(True), tie_word_embeddings=False),
    "forwards that accelerate put around modules": of_class(GPT2, moved_by_accelerate),
    "forwards that accelerate left in modules": of_class(
        GPT2, lambda model: brought_back(moved_by_accelerate(model, "cpu"))
    ),
    "an adapter around the head": of_class(GPT2, lambda model: setattr(model, "lm_head", Adapted(model.lm_head))),
    "an adapter around the head, untied": of_class(
        GPT2, lambda model: setattr(model, "lm_head", Adapted(model.lm_head)), tie_word_embeddings=False
    ),
    "the positions are the embedding": of_class(
        GPT2, lambda model: setattr(model.transformer.wpe, "weight", model.transformer.wte.weight), n_positions=VOCAB
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_tie_is_predicted_as_it_reloads(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = ODD[case]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = audit_ties(model).after_reload
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (after.survives, after.tied_after) == cases.really(model, tmp_path)


def test_what_is_replaced_is_named_and_what_passes_on_its_input_is_nothing() -> None:
    model = cases.small().eval()
    model.transformer.h[0].attn.attn_dropout = nn.Identity()
    assert audit_ties(model).after_reload.survives is True
    model.lm_head.forward = lambda x: 2 * x @ model.lm_head.weight.T
    model.transformer.h[0].mlp.act = nn.ReLU()
    assert [loss.name for loss in audit_ties(model).after_reload.lost] == ["transformer.h.0.mlp.act", "lm_head.weight"]


def test_float8_copies_are_compared_and_differences_seen() -> None:
    """torch neither adds float8 nor takes it in `torch.equal`."""
    values = torch.linspace(-2, 2, 12).reshape(3, 4).to(torch.float8_e4m3fn)
    other = values.clone()
    other[0, 0] = 1.5
    zeros = torch.zeros(3, 4).to(torch.float8_e4m3fn)
    audit = audit_ties({"a": values, "b": values.clone(), "c": other})
    assert len(audit.groups) == 1
    assert "equal: a = b [3, 4]" in str(audit)
    assert same_numbers(values, values.clone())
    assert not same_numbers(values, other)
    assert same_numbers(zeros, (-torch.zeros(3, 4)).to(torch.float8_e4m3fn))
    whole = torch.arange(6).to(torch.uint16)  # nor adds uint16
    assert "equal: a = b [6]" in str(audit_ties({"a": whole, "b": whole.clone()}))
