"""The whole GPT-2: wrong answers are named, right ones pass; checks leave no trace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from exercise_solution import variant
from torch import nn

from pellucid import PellucidError
from pellucid.exercises import GPTConfig, check_attention, check_block, check_gpt2, course

SCALE = " / self.head_size**0.5  # (batch, head, query, key)"

HEAD = 'return torch.einsum("bsd,vd->bsv", self.ln(h), self.token_embedding.weight)'
WRONG_GPT2 = {
    "no positions": ((" + self.pos_embedding(positions)", ""), "not embedded", "token + pos"),
    "positions from 1": (
        ("torch.arange(before, before + x.shape[1]", "torch.arange(before + 1, before + 1 + x.shape[1]"),
        None,
        None,
    ),
    "always position 0": (
        ("self.pos_embedding(positions)", "self.pos_embedding(positions * 0)"),
        "gets position 0",
        "pos embedding",
    ),
    "ids as positions": (
        ("self.pos_embedding(positions)", "self.pos_embedding(x % 9)"),
        "given the token ids",
        "pos embedding",
    ),
    "ids as positions, too high": (
        ("self.pos_embedding(positions)", "self.pos_embedding(x)"),
        "pos_embedding is given the token ids, not the positions; ids beyond the last position: your code raised "
        "IndexError",
        "pos embedding",
    ),
    "token embedding of positions": (
        ("self.pos_embedding(positions)", "self.token_embedding(positions)"),
        "embedded with token_embedding",
        "pos embedding",
    ),
    "not handed on": (
        ("            h = block(h, cache)", "            out = block(h, cache)\n        h = out"),
        "does not hand on its result",
        "block 0",
    ),
    "returned in the loop": (
        ("            h = block(h, cache)", "            h = block(h, cache)\n            break"),
        "the loop over the blocks ends, or returns, after one",
        "block 1",
    ),
    "thrown away": (("h = block(h, cache)", "block(h, cache)"), "the blocks are not applied", "block 0"),
    "scaled embedding": (
        ("self.token_embedding(x) +", "self.token_embedding(x) * 12**0.5 +"),
        "multiplied by sqrt",
        "token + pos",
    ),
    "no final norm": (("self.ln(h)", "h"), "final LayerNorm is not", "ln"),
    "last block skipped": (("in self.blocks:", "in self.blocks[:-1]:"), "last block", "block 2"),
    "first block only": (("h = block(h, cache)", "h = self.blocks[0](h, cache)"), "again and again", "block 1"),
    "reversed": (("in self.blocks:", "in reversed(self.blocks):"), "in reverse", "block 0"),
    "probabilities": ((HEAD, HEAD + ".softmax(-1)"), "softmax is applied", "logits"),
    "scores unscaled": ((SCALE, ""), "not divided by sqrt(head_size)", "block 0: attn scores"),
    "blocks in a list": (("self.blocks = nn.ModuleList(", "self.blocks = list("), "plain list", "blocks.0"),
    "positions on the CPU": ((", device=x.device)\n        h", ")\n        h"), "default device", "output"),
    "no dropout": (
        (
            "self.dropout(self.token_embedding(x) + self.pos_embedding(positions))",
            "self.token_embedding(x) + self.pos_embedding(positions)",
        ),
        "never applied",
        None,
    ),
    "always relu": (
        ("                config.activation_function,\n", "                'relu',\n"),
        "function is relu, not the one",
        "block 0: activation",
    ),
    "always 4 heads": (
        ("                config.num_heads,\n", "                4,\n"),
        "always 4 heads",
        "block 0: attn q, k, v",
    ),
    "always one epsilon": (
        ("                config.layer_norm_epsilon,\n", "                0.1,\n"),
        "none of the known",
        "block 0: ln1",
    ),
    "one dropout in the blocks": (
        ("                config.dropout,\n", "                0.25,\n"),
        "`blocks.0.attn.attn_dropout` has p=0.25, not the dropout=0.4 given",
        None,
    ),
    "positions first": (
        ("        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)\n", ""),
        "no `token_embedding`",
        None,
    ),
    "wide logits": ((HEAD, HEAD + "[..., :-1]"), "returns shape [2, 5, 28], expected [2, 5, 29]", "output"),
    "a head of its own": (
        (
            "        self.ln = nn.LayerNorm(config.hidden_size",
            "        self.head = nn.Linear(config.hidden_size, "
            "config.vocab_size, bias=False)\n        self.ln = nn.LayerNorm(config.hidden_size",
        ),
        None,
        None,
    ),
}


SLOW = "always one epsilon"
"""No known mistake, alone or with another, explains it: all are tried."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name == SLOW else ()) for name, row in WRONG_GPT2.items() if row[1]],
)
def test_wrong_gpt2s_are_named(name: str) -> None:
    change, words, tensor = WRONG_GPT2[name]
    result = check_gpt2(variant(change).GPT2)
    assert not result
    assert str(words) in str(result.mistake), result
    assert tensor is None or str(result.tensor).startswith(tensor), result


@pytest.mark.parametrize(("field", "here"), [("n_embd", "hidden_size"), ("n_layer", "num_layers"), ("d_modle", None)])
def test_a_field_that_the_course_does_not_have_is_answered_with_those_it_has(field: str, here: str | None) -> None:
    old = "        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)\n"
    result = check_gpt2(variant((old, old.replace("config.hidden_size", f"config.{field}"))).GPT2)
    said = f"GPTConfig has no {field!r}: " + (f"{field} is called {here} here; " if here else "")
    assert f"{said}its fields are activation_function, num_layers, num_heads" in str(result.mistake), result
    assert copy.deepcopy(GPTConfig()) == pickle.loads(pickle.dumps(GPTConfig())) == GPTConfig()
    assert not hasattr(GPTConfig(), field)


def test_positions_from_one_run_out_of_the_table_or_are_named() -> None:
    result = check_gpt2(variant(WRONG_GPT2["positions from 1"][0]).GPT2)
    assert not result
    assert "positions start at 1" in str(result.mistake) or "IndexError" in str(result.mistake)


def test_a_head_of_its_own_is_named() -> None:
    untied = variant(WRONG_GPT2["a head of its own"][0], (HEAD, "return self.head(self.ln(h))")).GPT2
    result = check_gpt2(untied)
    assert "made with `head.weight`" in str(result.mistake), result
    assert str(result.tensor).startswith("logits")


LAYERS = "for _ in range(config.num_layers)\n        )"
LN = "        self.ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)\n"
OWN_HEAD = "        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)\n        self.head.weight"


def test_layers_that_are_one_module_are_named() -> None:
    shared = variant((LAYERS, f"{LAYERS}\n        self.blocks = nn.ModuleList([self.blocks[0]] * config.num_layers)"))
    result = check_gpt2(shared.GPT2)
    assert "`blocks.1.ln1.weight` and `blocks.0.ln1.weight` are one parameter" in str(result.mistake), result
    assert not result.proved


def test_a_head_on_the_memory_of_the_embedding_is_named_and_one_that_is_the_embedding_passes() -> None:
    use = (HEAD, "return self.head(self.ln(h))")
    aliased = variant(use, (LN, f"{LN}{OWN_HEAD}.data = self.token_embedding.weight.data\n")).GPT2
    result = check_gpt2(aliased)
    assert "`head.weight` and `token_embedding.weight` are two parameters in one memory" in str(result.mistake), result
    assert not any("no weights of its own" in text for text in result.proved)
    tied = variant(use, (LN, f"{LN}{OWN_HEAD} = self.token_embedding.weight\n")).GPT2
    assert check_gpt2(tied), check_gpt2(tied)


def test_right_gpt2s_pass() -> None:
    assert check_gpt2(variant().GPT2)
    matmul = variant((HEAD, "return self.ln(h) @ self.token_embedding.weight.T"))
    assert check_gpt2(matmul.GPT2)
    batched = variant(("self.pos_embedding(positions)", "self.pos_embedding(positions.expand(x.shape))"))
    assert check_gpt2(batched.GPT2)


@pytest.mark.parametrize(
    "returned", ["({0}, [])", "{{'logits': {0}}}", "__import__('types').SimpleNamespace(logits={0}, cache=[])"]
)
def test_logits_beside_a_cache_or_in_an_object_pass_with_a_note(returned: str) -> None:
    made = HEAD.removeprefix("return ")
    result = check_gpt2(variant((HEAD, f"return {returned.format(made)}")).GPT2)
    assert result, result
    assert "whose logits are compared" in " ".join(result.notes)
    assert not check_gpt2(variant((HEAD, f"return {returned.format(made + '.softmax(-1)')}")).GPT2)


def test_embeddings_in_another_order_are_named() -> None:
    token = "        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)\n"
    pos = "        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)\n"
    result = check_gpt2(variant((token + pos, pos + token)).GPT2)
    assert "in the order `pos_embedding`, `token_embedding`" in str(result.mistake), result


@pytest.mark.parametrize("check", [check_attention, check_block, check_gpt2])
@pytest.mark.parametrize("given", [None, 3, nn.Linear(2, 2)])
def test_misuse_is_an_error_of_the_library(check: Any, given: Any) -> None:
    with pytest.raises(PellucidError):
        check(given)


def test_checks_leave_the_generator_and_the_gradient_mode_alone() -> None:
    before = torch.random.get_rng_state()
    check_attention(variant().UnidirectionalAttention)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.is_grad_enabled()


class WithBias(variant().GPT2):  # type: ignore[misc]
    """The solution, whose unembedding has a bias that is zeros at first."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.head_bias = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Any, cache: Any = None) -> Any:
        return super().forward(x) + self.head_bias


def test_a_bias_of_the_unembedding_is_named_even_of_zeros() -> None:
    result = check_gpt2(WithBias)
    assert result.mistake == "`head_bias` is added to the logits; the course's unembedding has no bias"
    assert (result.step, str(result.tensor).split(" ")[0]) == ("the unembedding", "logits")


def test_a_bias_beside_another_mistake_is_named_with_it() -> None:
    class Both(WithBias):
        def forward(self, x: Any, cache: Any = None) -> Any:
            return torch.nn.functional.linear(self.hidden(x), self.head, self.head_bias)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.head = torch.nn.Parameter(torch.randn(config.vocab_size, config.hidden_size))

        def hidden(self, x: Any) -> Any:
            seen: list[Any] = []
            with self.ln.register_forward_hook(lambda module, given, made: seen.append(made)):
                super().forward(x)
            return seen[0]

    told = str(check_gpt2(Both).mistake)
    assert "the logits are made with `head`" in told, told
    assert "`head_bias` is added to the logits" in told


def test_two_mistakes_are_both_named_without_a_whole_run_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[bool] = []
    run = course.run_parts

    def counted(parts: Any, *given: Any) -> Any:
        whole.append(len(parts.order(3)) > 1)
        return run(parts, *given)

    monkeypatch.setattr(course, "run_parts", counted)
    twice = ("scores.softmax(-1)", "scores.softmax(-1).softmax(-1)")
    result = check_gpt2(variant((" / self.head_size**0.5", ""), twice).GPT2)
    assert result.mistake == "the scores are not divided by sqrt(head_size); and softmax is applied twice", result
    assert sum(whole) < 550, "700 if every pair is run whole"
