"""Real weights for a learner's GPT-2: how they are loaded, and a check of the model that holds them, to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, PellucidError
from pellucid.exercises.course import RIGHT, gpt2, gpt2_layers, no_reference, shapes_of, units
from pellucid.exercises.names import Built, Naming, copied, spread
from pellucid.exercises.result import (
    NAMES,
    CheckResult,
    Findings,
    WrongAnswerError,
    checked,
    last_line,
    logits_of,
    misuse,
    other_than_logits,
    theirs,
)
from pellucid.exercises.watch import apart
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.formulas import Sizes
from pellucid.numerics.constants import TANH
from pellucid.open import from_hf, load
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.compare import compare
from pellucid.prove.report import ComparisonReport
from pellucid.prove.units import units_of
from pellucid.run.model import CkptedTransformer

PROMPT = "Former President of the United States of America, George"
EXPECTED = (" Washington", " Bush")


def alignment_for(my_gpt: nn.Module, reference: Any) -> Alignment:
    """Which parameter of a learner's GPT-2, whatever it holds now, is which of the reference's.

    The names are the course's. A copy is given telling values, and which tensor is which, and how it is laid out,
    is then found from the values. `alignment.convert(reference)` is a state dict for `my_gpt`, without the bias of
    zeros that its head may have.

    Args:
        my_gpt: An instance.
        reference: A GPT-2 of pellucid's or of transformers'.

    Raises:
        InputError: If sizes or names differ, one of them is no model, or the reference's head is not tied.
    """
    require_instance("alignment_for", my_gpt)
    reference = as_reference("alignment_for", reference)
    try:
        scratch = copied(my_gpt).float()
    except WrongAnswerError as wrong:
        raise misuse(
            f"alignment_for: the model cannot be copied: {wrong.mistake}.",
            "Keep no tensor that was computed from parameters as an attribute.",
        ) from wrong
    spread(scratch)
    try:
        units = _units(scratch, reference.config)
    except (WrongAnswerError, AttributeError, IndexError, TypeError, RuntimeError, KeyError) as error:
        raise misuse(
            f"alignment_for: the model has not the parameters of the course's GPT2 in these sizes: {error}.",
            "Construct it with config_of(reference), and see what check_gpt2 says.",
        ) from error
    tensors = {name: value.detach() for name, value in scratch.named_parameters(remove_duplicate=False)}
    found = align(units, tensors, reference.schema)
    own = dict(my_gpt.named_parameters(remove_duplicate=False))
    idle = [
        name for name in found.unexplained if own[name].shape == (reference.config.vocab_size,) and not own[name].any()
    ]
    found = replace(
        found,
        buffers={**found.buffers, **dict.fromkeys(idle, "zeros for every token, which stay as they are")},
        unexplained=tuple(name for name in found.unexplained if name not in idle),
    )
    if not found.complete or not found.bit_equal:
        alone = ", ".join((*found.unexplained, *found.missing)) or "some values"
        raise misuse(f"alignment_for: without a counterpart: {alone}.", "See what check_gpt2 says about the model.")
    return found


def load_into(my_gpt: nn.Module, reference: Any) -> Alignment:
    """Give a learner's GPT-2 the weights of a reference, pellucid's or transformers', by `alignment_for`.

    Returns:
        The alignment, which shows what was loaded.

    Raises:
        InputError: As `alignment_for`.
    """
    require_instance("load_into", my_gpt)
    units = units_of(as_reference("load_into", reference))
    alignment = alignment_for(my_gpt, reference)
    made = alignment.convert(units)
    with torch.no_grad():
        for name, value in my_gpt.named_parameters(remove_duplicate=False):
            if name not in alignment.buffers:
                value.copy_(made[name])
    return alignment.check(units, my_gpt)


def require_instance(check: str, my_gpt: Any) -> None:
    """See that a learner's model is one, and not its class."""
    if not isinstance(my_gpt, nn.Module):
        given = f"the class {my_gpt.__name__}" if isinstance(my_gpt, type) else type(my_gpt).__name__
        raise misuse(f"{check}: {given} given, expected a model.", "Pass an instance: GPT2(config_of(reference)).")


def as_reference(check: str, reference: Any) -> CkptedTransformer:
    """A reference whose weights the course's GPT2 can hold; a model of transformers' is copied."""
    if any(kind.__module__.startswith("transformers.") for kind in type(reference).__mro__):
        reference = from_hf(reference)
    if not isinstance(reference, CkptedTransformer) or not isinstance(reference.config, TransformerConfig):
        raise no_reference(check, reference)
    if not torch.equal(reference.unembed.W_U, reference.embed.W_E.T):
        raise misuse(
            f"{check}: the reference's head is not tied: unembed.W_U has values of its own, and the course's GPT2 "
            "unembeds with its token embedding, so that it cannot hold them.",
            "Take a reference whose head is its embedding, as every GPT-2 of OpenAI's is.",
        )
    return reference


def _units(model: nn.Module, config: TransformerConfig) -> dict[str, Tensor]:
    """The units of a learner's GPT-2, whose parameters have the names of the course or others."""
    sizes = Sizes.of(config)
    ids = torch.arange(min(4, sizes.positions))[None] % sizes.vocabulary

    def right(naming: Naming) -> bool:
        """Whether it computes the course's logits under any activation function."""
        with torch.no_grad(), contextlib.suppress(Exception, SystemExit):  # whatever the learner's code raises
            logits, values = logits_of(copied(model).eval()(ids)), naming.read(model)
            ways = [replace(sizes, activation=one) for one in ("gelu", "gelu_new", "relu")]
            return any(apart(logits, gpt2(values, way)(ids, RIGHT)["logits"]) <= 1e-3 for way in ways)
        return False

    built = Built("the model", model, shapes_of(gpt2_layers, sizes), right)
    built.require_parameters()
    if built.naming is not None and not right(built.naming):
        words = (
            "its names are not the course's, and it does not compute what a GPT2 with parameters of these shapes does"
        )
        raise WrongAnswerError(words, "the parameters", kind=NAMES)
    return {name: value.detach() for name, value in units(built.live(), sizes).items()}


def check_pretrained(
    my_gpt: nn.Module, tokenizer: Any = None, reference: Any = None, *, hint: int | None = None
) -> CheckResult:
    """Check a learner's GPT-2 that holds real weights.

    If it holds others, it does not pass; what a copy of it computes with the reference's is then noted.

    Args:
        my_gpt: An instance.
        tokenizer: With `encode` and `decode`; None for the reference's.
        reference: A GPT-2 of pellucid's or of transformers' with the weights that it should hold, or what
            `pellucid.load` takes; None for the bundled model.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Raises:
        InputError: If a class is given for an instance, or the reference is no GPT-2, has no tokenizer, or its head
            is not tied.
    """
    require_instance("check_pretrained", my_gpt)
    named = reference is None or isinstance(reference, (str, Path))
    opened = as_reference("check_pretrained", load(reference) if named else reference)
    tokenizer = opened.tokenizer if tokenizer is None else tokenizer
    ids = _prompt(tokenizer, opened)

    def body(found: Findings) -> None:
        on_cpu = all(value.device.type == "cpu" for value in my_gpt.parameters())
        model = my_gpt if on_cpu else copied(my_gpt).cpu()
        _check_weights(found, model, opened, ids)
        logits = _check_computed(found, model, opened, ids)
        _what_comes_next(found, tokenizer, logits, opened)
        active = next((name for name, part in my_gpt.named_modules() if part.training), None)
        if active is not None:
            whose = f"'s {active}" if active else ""
            found.note(
                f"your model{whose} is in training mode: call my_gpt.eval() before you sample from it, or dropout acts"
            )

    return checked("pretrained", body, hint)


def _prompt(tokenizer: Any, reference: CkptedTransformer) -> Tensor:
    """The prompt as ids [1, P]."""

    def unfit(what: str) -> InputError:
        return misuse(f"check_pretrained: {what}.", "Pass the tokenizer that belongs to the weights.")

    if not hasattr(tokenizer, "encode") or not hasattr(tokenizer, "decode"):
        raise unfit("no tokenizer with encode and decode")
    try:
        encoded = tokenizer.encode(PROMPT)
        ids = [int(i) for i in getattr(encoded, "ids", encoded)]  # those of the tokenizers package come in an Encoding
    except Exception as error:  # whatever somebody's tokenizer raises
        what = f"the tokenizer's encode does not give a list of ids: {last_line(error)}"
        raise unfit(what) from error
    known, longest = reference.config.vocab_size, reference.config.n_positions
    if not 0 < len(ids) <= longest:
        raise unfit(f"the tokenizer makes {len(ids)} ids of the prompt, expected 1 to {longest}")
    stray = next((i for i in ids if not 0 <= i < known), None)
    if stray is not None:
        raise unfit(f"the tokenizer gives id {stray}, the reference knows {known} tokens")
    return torch.tensor([ids])


def _check_weights(found: Findings, my_gpt: nn.Module, reference: CkptedTransformer, ids: Tensor) -> None:
    """See that every parameter holds the reference's values."""
    try:
        wanted = alignment_for(my_gpt, reference).convert(units_of(reference))
    except PellucidError as error:
        found.note(f"weights are compared by value alone, since names or sizes are not the course's: {error.message}")
        return
    mine = {name: value.detach().cpu() for name, value in my_gpt.named_parameters() if name in wanted}
    held = {name for name, value in mine.items() if torch.equal(value.to(wanted[name]), wanted[name])}
    if len(held) == len(mine):
        return
    name = next(name for name in mine if name not in held)
    words = f"{_misloaded(name, mine[name], wanted)}; load_into(my_gpt, reference) loads them"
    if all(value.dim() < 2 for name, value in mine.items() if name in held):  # gains and biases may be equal by chance
        words = f"none of its matrices holds the reference's weights: {words}"
        _note_the_rest(found, my_gpt, reference, ids)
    raise WrongAnswerError(words, "loading the weights", f"{name} {list(mine[name].shape)}")


def _note_the_rest(found: Findings, my_gpt: nn.Module, reference: CkptedTransformer, ids: Tensor) -> None:
    """Say what the architecture computes with the reference's weights, of which the learner's model holds none."""

    def body(within: Findings) -> None:
        model = copied(my_gpt).float()
        load_into(model, reference)
        _check_computed(within, model, reference, ids)

    result = checked("a copy", body)
    said = "computes what the reference does" if result else f"does not pass either: {result.mistake}"
    found.note(f"a copy of it that is given the reference's weights {said}")
    for note in result.notes:
        found.note(note)


def _misloaded(name: str, value: Tensor, wanted: Mapping[str, Tensor]) -> str:
    """What is wrong with a parameter's values."""
    right = wanted[name]
    if value.dtype != right.dtype and torch.equal(value, right.to(value.dtype)):
        kind = str(value.dtype).removeprefix("torch.")
        return f"`{name}` holds its weights rounded to {kind}; keep the model in float32"
    if value.dim() == 2 and torch.equal(value.T, right):
        return f"`{name}` holds the transpose of its weights: GPT-2's files keep [in, out], Linear [out, in]"
    for other, tensor in wanted.items():
        if other != name and tensor.shape == value.shape and torch.equal(value, tensor):
            return f"`{name}` holds the weights of `{other}`"
    if value.dim() == 2 and torch.equal(value.flatten(), right.T.flatten()):
        return f"`{name}` holds its weights reshaped, where they should be transposed"
    return (
        f"`{name}` does not hold the reference's weights: it differs by up to {float((value - right).abs().max()):.3g}"
    )


def _check_computed(found: Findings, model: nn.Module, reference: CkptedTransformer, ids: Tensor) -> Tensor:
    """The logits [1, P, V] of the prompt, once they and all on the way to them are the reference's."""
    with theirs("running the model"), torch.no_grad():
        output = copied(model).eval()(ids)
    logits = logits_of(output)
    if logits is not output:
        found.note(other_than_logits(output))
    if not isinstance(logits, Tensor) or logits.shape != (*ids.shape, reference.config.vocab_size):
        shape = list(getattr(logits, "shape", ()))
        raise WrongAnswerError(f"the output is {type(logits).__name__} {shape}, expected logits", "the output")
    _compare(found, model, reference, ids, logits)
    return logits


def _compare(found: Findings, model: nn.Module, reference: CkptedTransformer, ids: Tensor, logits: Tensor) -> None:
    report = compare(reference, model, inputs=ids)
    first = report.first_divergence
    at_activation = first is not None and first.where.endswith("mlp.ckpt_post")
    if not report and at_activation and reference.config.activation_function in TANH:
        config = reference.config.replace(activation_function="gelu")
        erf = CkptedTransformer(config, dict(reference.named_parameters())).eval()
        again = compare(erf, model, inputs=ids)
        if again:
            _say_gelu(found, reference, ids, logits)
            report = again
    if not report:
        raise _wrong(report)
    zeros = [name for name, what in report.alignment.buffers.items() if what.startswith("zeros")]
    if zeros:
        named = ", ".join(f"`{name}`" for name in zeros)
        found.note(f"{named}: all zeros, which change nothing; the course's GPT2 has none")
    equal = sum(row.bit_equal for row in report.parameters)
    found.proved.append(f"{equal} of {len(report.parameters)} parameters are the reference's, to the bit")
    shown = f"all {len(report.checkpoints)} values that it shows on the way, logits included"
    how = "equal to the bit" if report.verdict == "identical" else "equal but for rounding, by a float64 run"
    found.proved.append(f"{shown}, are {how}")


def _say_gelu(found: Findings, reference: CkptedTransformer, ids: Tensor, logits: Tensor) -> None:
    with torch.no_grad():
        right = reference(ids)
    gap, agree = float((right - logits).abs().max()), bool((right.argmax(-1) == logits.argmax(-1)).all())
    words = "the most likely tokens are the same" if agree else "some most likely tokens differ"
    found.note(
        f"gelu: this model uses the erf form (nn.GELU()), the weights were trained with the tanh form "
        f"({reference.config.activation_function}); here the logits are up to {gap:.2g} apart, and {words}. "
        "That is the course's own deviation; with it undone in the reference everything agrees"
    )


def _wrong(report: ComparisonReport) -> WrongAnswerError:
    divergence = report.first_divergence
    if divergence is None:
        return WrongAnswerError(f"nothing could be proved: {'; '.join(report.notes)}", "comparing")
    step = "loading the weights" if divergence.what == "parameter" else "running the model"
    return WrongAnswerError(divergence.cause or f"no cause confirmed: {divergence.detail}", step, divergence.where)


def _what_comes_next(found: Findings, tokenizer: Any, logits: Tensor, reference: CkptedTransformer) -> None:
    top = [tokenizer.decode([int(i)]) for i in logits[0, -1].topk(10).indices]
    said = ", ".join(repr(piece) for piece in top[:5])
    found.proved.append(f"after {PROMPT!r} it expects {said}, as its weights do")
    if reference.config.vocab_size >= 50257 and not set(EXPECTED) <= set(top):
        found.note(f"with GPT-2's weights the course expects {' and '.join(map(repr, EXPECTED))} in the first ten")
