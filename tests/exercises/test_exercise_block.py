"""One block: wrong answers are named, right ones pass with either GELU."""

from __future__ import annotations

import pytest
from exercise_solution import variant

from pellucid.exercises import check_block

SCALE = " / self.head_size**0.5  # (batch, head, query, key)"

WRONG_BLOCK = {
    "ln1 twice": (
        (("self.linear1(self.ln2(x))", "self.linear1(self.ln1(x))"),),
        "ln1 is applied in both places",
        "ln2",
    ),
    "ln2 twice": ((("self.ln1(x), cache", "self.ln2(x), cache"),), "ln2 is applied in both places", "ln1"),
    "post-LN": (
        (
            ("x = x + self.attn(self.ln1(x), cache)", "x = self.ln1(x + self.attn(x, cache))"),
            ("self.linear1(self.ln2(x))", "self.linear1(x)"),
            (
                "return x + self.dropout(self.linear2(hidden))",
                "return self.ln2(x + self.dropout(self.linear2(hidden)))",
            ),
        ),
        "post-LN",
        "ln1",
    ),
    "no first residual": (
        (("x = x + self.attn(", "x = self.attn("),),
        "the input is not added to attention",
        "after attention",
    ),
    "no second residual": ((("return x + self.dropout(", "return self.dropout("),), "not added to the MLP", "output"),
    "residual from ln1": (
        (("x = x + self.attn(self.ln1(x), cache)", "x = self.ln1(x)\n        x = x + self.attn(x, cache)"),),
        "ln1's output, not the block's input",
        "after attention",
    ),
    "norms swapped": (
        (("self.ln1(x), cache", "self.ln2(x), cache"), ("self.linear1(self.ln2(x))", "self.linear1(self.ln1(x))")),
        "swapped",
        "ln1",
    ),
    "ln2 missing": ((("self.linear1(self.ln2(x))", "self.linear1(x)"),), "ln2 is not applied", "ln2"),
    "epsilon ignored": (
        (
            ("self.ln1 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)", "self.ln1 = nn.LayerNorm(hidden_size)"),
            ("self.ln2 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)", "self.ln2 = nn.LayerNorm(hidden_size)"),
        ),
        "epsilon is 1e-05",
        "ln1",
    ),
    "no activation": (
        (("self.activation(self.linear1(self.ln2(x)))", "self.linear1(self.ln2(x))"),),
        "missing",
        "activation",
    ),
    "always gelu": (
        (("self.activation = ACTIVATIONS[activation_function]", "self.activation = nn.GELU()"),),
        "function is gelu, not",
        "activation",
    ),
    "parallel": (
        (
            (
                "x = x + self.attn(self.ln1(x), cache)\n        hidden = self.activation(self.linear1(self.ln2(x)))",
                "hidden = self.activation(self.linear1(self.ln2(x)))\n        x = x + self.attn(self.ln1(x), cache)",
            ),
        ),
        "reads the block's input",
        "ln2",
    ),
    "scale missing inside": (((SCALE, ""),), "not divided by sqrt(head_size)", "attn scores"),
    "in place": ((("x = x + self.attn(", "x += self.attn("),), "changes its input in place", "the input"),
    "no dropout": ((("x + self.dropout(self.linear2(hidden))", "x + self.linear2(hidden)"),), "never applied", None),
    "linears in another order": (
        (
            (
                "        self.linear1 = nn.Linear(hidden_size, 4 * hidden_size)\n",
                "        self.linear2 = nn.Linear(4 * hidden_size, hidden_size)\n"
                "        self.linear1 = nn.Linear(hidden_size, 4 * hidden_size)\n",
            ),
            (
                "        self.linear2 = nn.Linear(4 * hidden_size, hidden_size)\n        self.dropout",
                "        self.dropout",
            ),
        ),
        "the order of use is",
        None,
    ),
    "one layer norm": (
        (("self.ln2 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)", "self.ln2 = self.ln1"),),
        "`ln2.weight` and `ln1.weight` are one parameter",
        "ln2.weight",
    ),
    "relu is relu6": ((('"relu": nn.ReLU()', '"relu": nn.ReLU6()'),), "function is relu6, not", "activation"),
    "always 4 heads": (
        (
            (
                "self.attn = UnidirectionalAttention(hidden_size, num_heads,",
                "self.attn = UnidirectionalAttention(hidden_size, 4,",
            ),
        ),
        "always 4 heads",
        "attn q, k, v",
    ),
    "always one epsilon": (
        (
            (
                "self.ln1 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)",
                "self.ln1 = nn.LayerNorm(hidden_size, eps=0.1)",
            ),
            (
                "self.ln2 = nn.LayerNorm(hidden_size, eps=layer_norm_epsilon)",
                "self.ln2 = nn.LayerNorm(hidden_size, eps=0.1)",
            ),
        ),
        "epsilon is 0.1, not the one that is given",
        "ln1",
    ),
    "gelu is silu": ((('"gelu": nn.GELU()', '"gelu": nn.SiLU()'),), "function is silu", "activation"),
}


@pytest.mark.parametrize("name", WRONG_BLOCK)
def test_wrong_blocks_are_named(name: str) -> None:
    changes, words, tensor = WRONG_BLOCK[name]
    result = check_block(variant(*changes).GPT2Block)
    assert not result
    assert words in str(result.mistake), result
    assert tensor is None or str(result.tensor).startswith(tensor), result


def test_an_epsilon_that_is_not_the_given_one_is_not_proved() -> None:
    changes, _, _ = WRONG_BLOCK["always one epsilon"]
    assert not any("epsilon" in text for text in check_block(variant(*changes).GPT2Block).proved)


def test_right_blocks_pass_with_either_gelu_and_say_which() -> None:
    erf = check_block(variant().GPT2Block)
    assert erf
    assert any("erf form" in note and "tanh form" in note for note in erf.notes)
    tanh = check_block(variant(("nn.GELU()", "nn.GELU(approximate='tanh')")).GPT2Block)
    assert tanh, tanh
    assert any("so was GPT-2 trained" in note and "4.7e-04" in note for note in tanh.notes)
