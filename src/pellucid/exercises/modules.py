"""The first part of the course: unidirectional attention, one block, and the whole GPT-2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises import course
from pellucid.exercises.beyond_numbers import (
    DROPOUT,
    check_applied,
    check_device,
    check_gradient,
    check_initial_order,
    require_dropout,
)
from pellucid.exercises.learner import COARSE, ModuleProbe
from pellucid.exercises.names import Built, own
from pellucid.exercises.result import (
    NAMES,
    CheckResult,
    Findings,
    WrongAnswerError,
    checked,
    logits_of,
    misuse,
    other_than_logits,
    theirs,
)
from pellucid.exercises.watch import apart
from pellucid.gpt2.formulas import Sizes
from pellucid.gpt2.mistake import NUMBER, Mistake
from pellucid.gpt2.mistakes import ATTENTION, ATTENTION_DROPOUT, BLOCK, BLOCK_DROPOUT, GPT2, GPT2_DROPOUT


def check_attention(answer: type[nn.Module] | Callable[..., nn.Module], *, hint: int | None = None) -> CheckResult:
    """Check a `UnidirectionalAttention(hidden_size, num_heads, head_size=None, dropout=0.1)`.

    Args:
        answer: The class, not an instance.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Raises:
        InputError: If it cannot be constructed, or the hint is unknown.
    """
    _require_class(answer, "check_attention", "UnidirectionalAttention")
    plain, wide = Sizes(12, 4, 3), Sizes(18, 3, 5)  # 5 is not 18 // 3, nor are their square roots rounded down

    def build(sizes: Sizes) -> Any:
        given = sizes.hidden, sizes.heads, sizes.head
        return answer(12, 4) if sizes is plain else answer(*given, dropout=sizes.dropout)

    probe = ModuleProbe(
        "UnidirectionalAttention", build, course.attention, course.attention_layers, course.streams,
        course.attention_steps, ATTENTION, ATTENTION_DROPOUT,
    )  # fmt: skip

    def body(found: Findings) -> None:
        try:
            built = probe.check_values(found, wide)
        except WrongAnswerError as wrong:
            if wrong.step.startswith(("running", "the output of", "the parameters")):  # see _by_default
                _by_default(found, probe, plain, wide, wrong)
            raise
        found.proved.append("the output is that of causal attention, in float64, for 5 shapes of input")
        probe.check_values(found, plain)
        found.proved.append("head_size is taken as given, and defaults to hidden_size // num_heads")
        x = own(built.module, course.streams(wide)[0])
        _check_attention_dropout(found, probe, built, x, wide)
        _check_the_rest(found, probe, built, wide, x, course.orders([("qkv_proj",)], [("output_proj",)]))

    return checked("attention", body, hint)


def _by_default(found: Findings, probe: ModuleProbe, plain: Sizes, wide: Sizes, wrong: WrongAnswerError) -> None:
    """Try heads of the default size, whose square matrices show what another size hides, and say what is right there.

    Raise the mistake that is named there, or `wrong` with what it depends on; nothing if the same names are missing.
    """
    try:
        built = probe.check_values(found, plain)
    except WrongAnswerError as other:
        if other.kind == wrong.kind == NAMES:
            return
        raise
    found.proved.append("with heads of the default size the output is that of causal attention, in float64")
    built.note_names(found)
    words = f"with head_size={wide.head}, which is not hidden_size // num_heads, {wrong.mistake}"
    raise WrongAnswerError(words, wrong.step, wrong.tensor, wrong.kind, wrong.line)


def _check_attention_dropout(found: Findings, probe: ModuleProbe, built: Built, x: Tensor, sizes: Sizes) -> None:
    """See that the pattern and the output are dropped."""
    module, names = built.module, ("attn_dropout", "resid_dropout")
    held = [[one for one in [getattr(module, name, None)] if isinstance(one, nn.Dropout)] for name in names]
    lacking = [f"`{name}`" for name, dropouts in zip(names, held, strict=True) if not dropouts]
    if lacking and not any(isinstance(one, nn.MultiheadAttention) for one in module.modules()):
        require_dropout([one for one in module.modules() if isinstance(one, nn.Dropout)], " and ".join(lacking))
    try:
        right = probe.check_places(found, replace(sizes, dropout=0.4))
    except WrongAnswerError as wrong:
        if lacking:
            words = f"{wrong.mistake}; there is no nn.Dropout {' and '.join(lacking)}"
            raise WrongAnswerError(words, wrong.step, wrong.tensor, wrong.kind, wrong.line) from wrong
        raise
    if right:
        found.proved.append("dropout acts on the pattern and on the output, at the rate given")
    if lacking:
        found.note(f"names: there is no nn.Dropout {' and '.join(lacking)}, as the course calls it")
        return
    bias = built.parameters()["output_proj.bias"].to(x).expand(x.shape)
    expected = [bias, torch.zeros_like(x)]
    dropped = [check_applied(module, dropouts, x, f"`{name}`") for name, dropouts in zip(names, held, strict=True)]
    if all(apart(a, b) <= COARSE for a, b in zip(dropped, expected, strict=True)):
        return
    if all(apart(a, b) <= COARSE for a, b in zip(dropped, expected[::-1], strict=True)):
        found.note(
            "names: `attn_dropout` drops the output and `resid_dropout` the pattern: the two are exchanged, which "
            "changes nothing at one rate"
        )
    elif not right:
        raise WrongAnswerError(
            "with p=1 in `attn_dropout` the output is not output_proj's bias, or with p=1 in `resid_dropout` it is not "
            "0: they drop other tensors",
            "dropout",
            kind=DROPOUT,
        )


def check_block(answer: type[nn.Module] | Callable[..., nn.Module], *, hint: int | None = None) -> CheckResult:
    """Check a `GPT2Block(hidden_size, num_heads, dropout, layer_norm_epsilon, activation_function)`.

    Args:
        answer: The class, not an instance.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Raises:
        InputError: If it cannot be constructed, or the hint is unknown.
    """
    _require_class(answer, "check_block", "GPT2Block")

    def build(sizes: Sizes) -> Any:
        return answer(sizes.hidden, sizes.heads, sizes.dropout, sizes.epsilon, sizes.activation)

    every = (*BLOCK, *_inside("attn", ATTENTION))
    dropouts = (*BLOCK_DROPOUT, *_inside("attn", ATTENTION_DROPOUT))
    probe = ModuleProbe(
        "GPT2Block", build, course.block, course.block_layers, course.streams, course.steps, every, dropouts,
    )  # fmt: skip
    sizes = Sizes(12, 4, 3, epsilon=0.1)
    others = Sizes(12, 3, 4, epsilon=0.03, activation="gelu", dropout=0.4)

    def body(found: Findings) -> None:
        built = probe.check_values(found, sizes)
        module = built.module
        found.proved.append("the output is that of a pre-LN block, in float64, for 5 shapes of input")
        gelu = _gelu(probe, others)
        found.proved.append("the LayerNorms have the epsilon that is given")
        _say_gelu(found, gelu)
        x = own(module, course.streams(sizes)[0])
        mlp = [one for name, one in module.named_modules() if isinstance(one, nn.Dropout) and "attn" not in name]
        require_dropout(mlp, "behind linear2")
        without = check_applied(module, mlp, x, "behind linear2")
        if probe.check_places(found, replace(others, activation="relu")):
            found.proved.append("dropout follows the MLP, at the rate given")
        else:
            named = {name: value.to(x.dtype) for name, value in built.parameters().items()}
            if apart(without, course.block(named, sizes)(x, course.RIGHT)["after attention"]) > COARSE:
                raise WrongAnswerError("with p=1 in every nn.Dropout outside attention, the output is not what comes "
                                       "out of attention: linear2's output is not dropped, or not alone",
                                       "dropout", kind=DROPOUT)  # fmt: skip
        inside = list(itertools.permutations(("attn.qkv_proj", "attn.output_proj")))
        _check_the_rest(found, probe, built, sizes, x, course.orders(inside, [("linear1",)], [("linear2",)]))

    return checked("block", body, hint)


def check_gpt2(answer: type[nn.Module] | Callable[..., nn.Module], *, hint: int | None = None) -> CheckResult:
    """Check a `GPT2(config)`, which gets a `GPTConfig` with the course's fields.

    Args:
        answer: The class, not an instance.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Raises:
        InputError: If it cannot be constructed, or the hint is unknown.
    """
    _require_class(answer, "check_gpt2", "GPT2")

    def build(sizes: Sizes) -> Any:
        module = answer(
            course.GPTConfig(
                sizes.activation, sizes.layers, sizes.heads, sizes.vocabulary,
                sizes.hidden, sizes.positions, sizes.dropout, sizes.epsilon,
            )
        )  # fmt: skip
        held = getattr(module, "blocks", ())
        if isinstance(held, (nn.ModuleList, nn.Sequential)) and len(held) > sizes.layers:
            words = f"`blocks` holds {len(held)} blocks, but config.num_layers is {sizes.layers}"
            raise WrongAnswerError(words, "constructing GPT2", "blocks", NUMBER)
        if isinstance(module, nn.Module):
            module.register_forward_hook(_logits_alone)
        return module

    every = (*GPT2, *_inside("in every block", BLOCK), *_inside("in every block, attn", ATTENTION))
    inside = (*BLOCK_DROPOUT, *ATTENTION_DROPOUT)
    dropouts = (*GPT2_DROPOUT, *_inside("in every block", inside))
    probe = ModuleProbe(
        "GPT2", build, course.gpt2, course.gpt2_layers, course.texts, course.steps, every, dropouts,
    )  # fmt: skip
    sizes = Sizes(12, 4, 3, epsilon=0.1, layers=3, vocabulary=29, positions=9)
    others = Sizes(12, 3, 4, 0.03, "gelu", layers=2, vocabulary=23, positions=7, dropout=0.4)

    def body(found: Findings) -> None:
        built = _check_logits(found, probe, sizes)
        module, ids = built.module, course.texts(sizes)[0]
        with theirs("running GPT2"), torch.no_grad():
            output = module.forward(ids)
        if not isinstance(output, Tensor):
            found.note(other_than_logits(output))
        replace(probe, inputs=lambda s: [course.text(s, 1, s.positions)]).check_values(found, sizes)
        found.proved.append("the logits are GPT-2's, in float64, for 5 shapes of input up to the longest text")
        _gelu(probe, others)
        found.proved.append("the unembedding is the token embedding: no weights of its own")
        early = [m for n, m in module.named_modules() if isinstance(m, nn.Dropout) and not n.startswith("blocks")]
        require_dropout(early, "behind the embeddings")
        check_applied(module, early, ids, "behind the embeddings")
        if probe.check_places(found, replace(others, activation="relu")):
            found.proved.append("dropout follows the embeddings, at the rate given")
        one = replace(sizes, layers=1)  # one block is enough to tell the order
        inside = [tuple(f"blocks.0.{path}" for path in ("attn.qkv_proj", "attn.output_proj", "linear1", "linear2"))]
        order = course.orders([("token_embedding",)], [("pos_embedding",)], inside)
        _check_the_rest(found, probe, built, one, ids, order)

    return checked("gpt2", body, hint)


def _logits_alone(module: nn.Module, given: Any, output: Any) -> Any:
    """A hook behind a GPT2 that may return a cache beside its logits, or an object that holds them."""
    return None if isinstance(output, Tensor) else logits_of(output)


def _check_logits(found: Findings, probe: ModuleProbe, sizes: Sizes) -> Built:
    """Run the module; if ids end behind a table, with ids that are positions, too, which shows what they index."""
    try:
        return probe.check_values(found, sizes)
    except WrongAnswerError as wrong:
        if "IndexError" not in wrong.mistake:
            raise
        small = replace(probe, inputs=lambda s: [ids % s.positions for ids in course.texts(s)])
        try:
            small.check_values(found, sizes)
        except WrongAnswerError as named:
            raise WrongAnswerError(f"{named.mistake}; ids beyond the last position: {wrong.mistake}", named.step,
                                   named.tensor, named.kind, wrong.line) from wrong  # fmt: skip
        raise


def _check_the_rest(
    found: Findings, probe: ModuleProbe, built: Built, sizes: Sizes, x: Tensor, order: list[tuple[str, ...]]
) -> None:
    """Check what every module owes beyond its numbers and its dropout; `order` is as for `check_initial_order`."""
    built.note_names(found)
    if built.has_names:
        check_initial_order(found, probe, sizes, order)
    check_device(found, built.module, x)
    check_gradient(found, built.module, x)


def _gelu(probe: ModuleProbe, sizes: Sizes) -> str:
    """Which of the two GELUs it is, in other sizes than before; both are right."""
    try:
        probe.check_values(Findings(), sizes)
    except WrongAnswerError as wrong:
        if "gelu_new" not in wrong.mistake or ";" in wrong.mistake:
            raise
        return "gelu_new"
    return "gelu"


def _say_gelu(found: Findings, kind: str) -> None:
    """Which of the two GELUs it is, and what lies between them."""
    form = "the erf form, which is what the course's nn.GELU() is"
    if kind == "gelu_new":
        form = "the tanh form, not the course's nn.GELU(), which is the erf form"
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    gap = float((nn.functional.gelu(grid) - nn.functional.gelu(grid, approximate="tanh")).abs().max())
    found.proved.append(f"activation_function is taken as given; its gelu is {form}")
    trained = "so was GPT-2 trained" if kind == "gelu_new" else "GPT-2 was trained with the tanh form"
    found.note(f"gelu: {form}; {trained}; for one number the two are up to {gap:.1e} apart")


def _inside(where: str, mistakes: Sequence[Mistake]) -> tuple[Mistake, ...]:
    return tuple(replace(one, step=f"{one.step} ({where})") for one in mistakes)


def _require_class(answer: Any, check: str, name: str) -> None:
    if isinstance(answer, nn.Module) or not callable(answer):
        raise misuse(
            f"{check}: {type(answer).__name__} given, expected the class {name}.",
            f"Pass the class itself, as in {check}({name}): it is constructed here with sizes that tell.",
        )
