"""A learner's whole GPT-2 against the bundled model: right, wrongly loaded, wrongly computed; and the notebook."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import socket
from typing import Any

import pytest
import torch
from exercise_notebook import NOTEBOOK, SCRIPT, cells
from exercise_solution import variant
from torch import nn

import llamas
import pellucid as pl
import support
from pellucid.exercises import alignment_for, check_pretrained, config_of, load_into

TANH = ("nn.GELU()", "nn.GELU(approximate='tanh')")


class Digits:
    """A tokenizer of the small model: the lengths of words."""

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def glass() -> pl.CkptedTransformer:
    """Of two blocks: each test here runs it and a learner's model often."""
    return support.glass(n_layer=2)


@pytest.fixture(scope="module")
def reference() -> pl.CkptedTransformer:
    """The bundled model."""
    return pl.load()


def loaded(reference: pl.CkptedTransformer, *changes: tuple[str, str]) -> Any:
    """A variant of the solution with the reference's weights."""
    model = variant(*changes).GPT2(config_of(reference)).eval()
    load_into(model, reference)
    return model


def test_the_course_s_gelu_passes_and_its_distance_is_told(glass: pl.CkptedTransformer) -> None:
    model = loaded(glass)
    result = check_pretrained(model, Digits(), glass)
    assert result, result
    (note,) = [note for note in result.notes if "gelu" in note]
    ids = torch.tensor([Digits().encode("Former President of the United States of America, George")])
    with torch.no_grad():
        gap = float((model.eval()(ids) - glass(ids)).abs().max())
    assert f"{gap:.2g} apart" in note
    assert gap > 1e-5
    assert "tanh form (gelu_new)" in note


def test_the_tanh_form_passes_without_a_note(glass: pl.CkptedTransformer) -> None:
    result = check_pretrained(loaded(glass, TANH), Digits(), glass)
    assert result, result
    assert not result.notes
    assert any("28 of 28 parameters" in text for text in result.proved)


def test_a_model_in_training_mode_is_told(glass: pl.CkptedTransformer) -> None:
    result = check_pretrained(loaded(glass, TANH).train(), Digits(), glass)
    assert result, result
    assert any("your model is in training mode: call my_gpt.eval()" in note for note in result.notes), result


def test_a_part_in_training_mode_is_told(glass: pl.CkptedTransformer) -> None:
    model = loaded(glass, TANH).eval()
    name, part = list(model.named_modules())[-1]
    part.train()
    result = check_pretrained(model, Digits(), glass)
    assert result, result
    assert any(f"your model's {name} is in training mode: call my_gpt.eval()" in note for note in result.notes), result


def test_a_transformers_model_is_a_reference_like_any_other(glass: pl.CkptedTransformer) -> None:
    pytest.importorskip("transformers")
    theirs = pl.to_hf(glass).eval()
    theirs.__class__ = type("Mine", (type(theirs),), {})  # a class of one's own
    assert config_of(theirs) == config_of(glass)
    with pytest.raises(pl.NotFoundError, match="Mine given, expected a path") as caught:
        pl.load(theirs)  # type: ignore[arg-type]
    assert "pl.from_hf" in caught.value.remedy
    assert len(str(caught.value)) < 300
    model = variant(TANH).GPT2(config_of(theirs)).eval()
    shown = repr(load_into(model, theirs))
    assert check_pretrained(model, Digits(), theirs)
    assert "token_embedding.weight" in shown
    assert len(shown) < 900
    converted = alignment_for(model, theirs).convert(glass)
    assert all(torch.equal(value, converted[name]) for name, value in model.state_dict().items())


def test_weights_go_into_a_model_of_other_names_or_into_none(glass: pl.CkptedTransformer) -> None:
    pytest.importorskip("transformers")
    theirs = pl.to_hf(glass).eval()
    kept = {name: value.clone() for name, value in theirs.state_dict().items()}
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(1)
    load_into(theirs, glass)
    assert all(torch.equal(value, kept[name]) for name, value in theirs.state_dict().items())
    for block in theirs.transformer.h:
        block.attn.register_forward_hook(lambda *given: (given[2][0] * 2, *given[2][1:]))
    with pytest.raises(pl.InputError, match="does not compute what a GPT2"):
        load_into(theirs, glass)


def test_weights_go_into_a_model_whose_head_has_a_bias_of_zeros(glass: pl.CkptedTransformer) -> None:
    course = variant().GPT2

    class WithBias(course):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, value: float = 0.0) -> None:
            super().__init__(config)
            self.head_bias = torch.nn.Parameter(torch.full((glass.config.vocab_size,), value))

        def forward(self, *given: Any, **named: Any) -> Any:
            found = super().forward(*given, **named)
            return (found[0] + self.head_bias, *found[1:]) if isinstance(found, tuple) else found + self.head_bias

    model = WithBias(config_of(glass)).eval()
    assert load_into(model, glass).complete
    assert not model.head_bias.any()
    result = check_pretrained(model, Digits(), glass)
    assert result, result
    with pytest.raises(pl.InputError, match="without a counterpart: head_bias"):
        load_into(WithBias(config_of(glass), 0.5), glass)


def test_a_bias_of_zeros_on_the_head_is_no_mistake_and_another_is_one(glass: pl.CkptedTransformer) -> None:
    head = 'return torch.einsum("bsd,vd->bsv", self.ln(h), self.token_embedding.weight)'
    model = loaded(glass, TANH, (head, f"{head} + getattr(self, 'b_U', 0.0)"))
    model.b_U = nn.Parameter(torch.zeros(glass.config.vocab_size))
    result = check_pretrained(model, Digits(), glass)
    assert result, result
    assert any("`b_U`: all zeros, which change nothing" in note for note in result.notes), result
    with torch.no_grad():
        model.b_U[3] = 0.5
    wrong = check_pretrained(model, Digits(), glass)
    assert "a bias on the head: b_U" in str(wrong.mistake), wrong


def _fresh(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _scale(model: Any) -> None:
    for value in model.parameters():
        value.mul_(1.01)


def _round(model: Any) -> None:
    model.bfloat16()


def _another(model: Any) -> None:
    for name, value in model.named_parameters():
        value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))


WITHOUT_THE_WEIGHTS = [
    (_fresh, "`token_embedding.weight` does not hold the reference's weights"),
    (_scale, "`token_embedding.weight` does not hold the reference's weights"),
    (_round, "`token_embedding.weight` holds its weights rounded to bfloat16"),
    (_another, "`token_embedding.weight` does not hold the reference's weights"),
]


@pytest.mark.parametrize(("spoil", "words"), support.few_of(WITHOUT_THE_WEIGHTS, _fresh, _round))
def test_other_weights_do_not_pass_and_nothing_is_proved_of_a_copy(
    glass: pl.CkptedTransformer, spoil: Any, words: str
) -> None:
    model = loaded(glass, TANH)
    with torch.no_grad():
        spoil(model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    result = check_pretrained(model, Digits(), glass)
    assert not result
    assert result.step == "loading the weights"
    assert "none of its matrices holds the reference's weights" in str(result.mistake), result
    assert words in str(result.mistake), result
    assert "load_into(my_gpt, reference) loads them" in str(result.mistake), result
    assert not result.proved
    assert result.notes == ("a copy of it that is given the reference's weights computes what the reference does",)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_what_is_wrong_beside_the_weights_is_noted(glass: pl.CkptedTransformer) -> None:
    erf = check_pretrained(variant().GPT2(config_of(glass)), Digits(), glass)
    assert any("erf form" in note for note in erf.notes), erf
    wrong = check_pretrained(variant(TANH, ("self.ln(h)", "h")).GPT2(config_of(glass)), Digits(), glass)
    assert any("does not pass either: " in note for note in wrong.notes), wrong


def test_convert_fits_the_learner_s_state_dict(glass: pl.CkptedTransformer) -> None:
    model = variant(TANH).GPT2(config_of(glass)).eval()
    model.load_state_dict(alignment_for(model, glass).convert(glass))
    assert check_pretrained(model, Digits(), glass)


@pytest.mark.long
def test_without_a_reference_it_is_the_bundled_model(reference: pl.CkptedTransformer) -> None:
    assert check_pretrained(loaded(reference, TANH))


def _transpose(model: Any) -> None:
    weight = model.blocks[1].attn.output_proj.weight
    weight.copy_(weight.T.clone())


def _reshape(model: Any) -> None:
    weight = model.blocks[1].linear1.weight
    weight.copy_(weight.T.reshape(weight.shape).clone())


def _mix_up(model: Any) -> None:
    model.blocks[0].ln1.weight.copy_(model.blocks[0].ln2.weight)


def _forget(model: Any) -> None:
    model.ln.bias.zero_()


WRONG_LOADING = [
    (_transpose, "`blocks.1.attn.output_proj.weight` holds the transpose"),
    (_reshape, "`blocks.1.linear1.weight` holds its weights reshaped"),
    (_mix_up, "`blocks.0.ln1.weight` holds the weights of `blocks.0.ln2.weight`"),
    (_forget, "`ln.bias` does not hold the reference's weights"),
]


@pytest.mark.parametrize(("spoil", "words"), WRONG_LOADING, ids=[row[1] for row in WRONG_LOADING])
def test_wrong_loading_is_named(glass: pl.CkptedTransformer, spoil: Any, words: str) -> None:
    model = loaded(glass, TANH)
    with torch.no_grad():
        spoil(model)
    result = check_pretrained(model, Digits(), glass)
    assert not result
    assert words in str(result.mistake), result
    assert result.step == "loading the weights"


WRONG_RUNNING = [
    ((" / self.head_size**0.5", ""), "blocks.0.attn"),
    (("self.ln(h)", "h"), "logits"),
    (("self.linear1(self.ln2(x))", "self.linear1(x)"), "blocks.0"),
    (("triu(keys - seq + 1)", "triu(keys - seq + 2)"), "blocks.0.attn"),
    (("self.pos_embedding(positions)", "self.pos_embedding(positions + 1)"), "ckpt_pos_embed"),
    (("nn.GELU(approximate='tanh')", "nn.SiLU()"), "blocks.0.mlp"),
    (("eps=config.layer_norm_epsilon", "eps=1e-3"), "ln_final"),
]


@pytest.mark.parametrize(
    ("change", "where"),
    # before the blocks, in attention and behind the blocks; each of these mistakes is also made in check_gpt2's tests
    support.few_of(WRONG_RUNNING, ("self.ln(h)", "h"), *(row[0] for row in WRONG_RUNNING[3:5])),
    ids=[row[0][1] or "no scale" for row in WRONG_RUNNING],
)
def test_wrong_models_are_named_where_they_first_differ(
    glass: pl.CkptedTransformer, change: tuple[str, str], where: str
) -> None:
    result = check_pretrained(loaded(glass, TANH, change), Digits(), glass)
    assert not result
    assert where in str(result.tensor), result
    assert result.step == "running the model"


def test_what_raises_becomes_a_sentence(reference: pl.CkptedTransformer) -> None:
    """Without a reference it is the bundled model, whose weights it holds: else no run would be spoken of."""
    result = check_pretrained(loaded(reference, ("for block in self.blocks:", "for block in self.layers:")))
    assert not result
    assert "AttributeError" in str(result.mistake)
    assert result.step == "running the model"


def test_misuse_is_an_error_of_the_library(reference: pl.CkptedTransformer, gpt2_tokenizer: pl.Tokenizer) -> None:
    model = variant().GPT2(config_of(reference))
    with pytest.raises(pl.PellucidError):
        check_pretrained(variant().GPT2)
    with pytest.raises(pl.PellucidError, match="tokens"):
        check_pretrained(model, gpt2_tokenizer)
    with pytest.raises(pl.PellucidError):
        check_pretrained(model, "tokenizer")
    with pytest.raises(pl.PellucidError):
        alignment_for(nn.Linear(2, 2), reference)


@pytest.mark.parametrize("function", [alignment_for, load_into])
def test_what_cannot_be_aligned_is_an_error_of_the_library(reference: pl.CkptedTransformer, function: Any) -> None:
    solution = variant()
    for given, words in ((solution.GPT2, "the class GPT2 given, expected a model"), (5, "int given, expected a model")):
        with pytest.raises(pl.InputError, match=words):
            function(given, reference)
    model = solution.GPT2(config_of(reference))
    with pytest.raises(pl.InputError, match="'gpt2' given, expected a model as the reference"):
        function(model, "gpt2")
    model.kept = model.token_embedding.weight * 2
    with pytest.raises(pl.InputError, match="cannot be copied: your code raised RuntimeError"):
        function(model, reference)


@pytest.mark.parametrize("given", ["gpt2", None, 5])
def test_sizes_are_those_of_a_model(given: Any) -> None:
    with pytest.raises(pl.InputError, match="expected a model as the reference"):
        config_of(given)


def test_a_reference_with_a_head_of_its_own_is_refused(glass: pl.CkptedTransformer) -> None:
    untied = copy.deepcopy(glass)
    pl.untie(untied)
    model = variant(TANH).GPT2(config_of(untied))
    load_into(model, untied)
    assert check_pretrained(model, Digits(), untied), "a head that equals the embedding can be held"
    with torch.no_grad():
        untied.unembed.W_U.mul_(1.5)
    for refused in (lambda: load_into(model, untied), lambda: check_pretrained(model, Digits(), untied)):
        with pytest.raises(pl.InputError, match="the reference's head is not tied"):
            refused()


def test_a_reference_of_another_family_is_refused(glass: pl.CkptedTransformer) -> None:
    llama, model = llamas.glass(), variant().GPT2(config_of(glass))
    for refused in (
        lambda: config_of(llama),
        lambda: config_of(llama.config),
        lambda: load_into(model, llama),
        lambda: check_pretrained(model, Digits(), llama),
    ):
        with pytest.raises(pl.InputError, match="a Llama given, expected a GPT-2 as the reference"):
            refused()
    with pytest.raises(pl.InputError, match="LlamaForCausalLM given, expected a GPT-2 as the reference"):
        config_of(llamas.reference())


class Encoded:
    """What a tokenizer's `encode` gives, under `ids` as the tokenizers package has it."""

    def __init__(self, ids: Any) -> None:
        self.ids = ids


class Encoder(Digits):
    """A tokenizer that encodes every text alike."""

    def __init__(self, encoded: Any) -> None:
        self.encoded = encoded

    def encode(self, text: str) -> Any:
        return self.encoded


def test_a_tokenizer_of_the_tokenizers_package_is_taken(glass: pl.CkptedTransformer) -> None:
    assert check_pretrained(loaded(glass, TANH), Encoder(Encoded([6, 9, 2])), glass)


def test_a_tokenizer_that_raises_is_an_error_of_the_library(glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError, match="encode does not give a list of ids: TypeError"):
        check_pretrained(loaded(glass, TANH), Digits, glass)


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        ([], "makes 0 ids of the prompt"),
        ([1] * 4000, "makes 4000 ids of the prompt"),
        ([1, -1], "gives id -1"),
        (torch.tensor([[1, 2, 3]]), "encode does not give a list of ids: "),
        (None, "encode does not give a list of ids: TypeError"),
    ],
)
def test_what_is_no_list_of_ids_is_an_error_of_the_library(
    glass: pl.CkptedTransformer, encoded: Any, words: str
) -> None:
    with pytest.raises(pl.InputError, match=words):
        check_pretrained(loaded(glass, TANH), Encoder(encoded), glass)


def test_the_notebook_runs_offline_and_everything_in_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the notebook opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    assert len(code) == sum(kind == "code" for kind, _ in cells(SCRIPT.read_text(encoding="utf-8")))
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for source in code:
            exec(compile(source, "build_gpt2_from_scratch.ipynb", "exec", dont_inherit=True), names)
    assert "✗" not in printed.getvalue()
    assert printed.getvalue().count("✓") == 8
    assert printed.getvalue().splitlines()[-1].startswith("Once upon a time")
