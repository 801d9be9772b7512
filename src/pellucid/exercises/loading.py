"""The sizes and the weights of a reference, for a learner's GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, shown
from pellucid.exercises.course import GPTConfig, gpt2_shapes
from pellucid.exercises.learner import copied, spread
from pellucid.exercises.other_names import namings
from pellucid.exercises.reference import RIGHT, gpt2
from pellucid.exercises.result import NAMES, WrongAnswerError, misuse
from pellucid.exercises.watch import apart
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.formulas import Sizes
from pellucid.open import from_hf
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.units import units_of
from pellucid.run.model import CkptedTransformer


def config_of(reference: Any, activation_function: str = "gelu") -> GPTConfig:
    """The course's configuration of a model with the sizes of a reference, pellucid's or transformers'.

    Raises:
        InputError: No model.
    """
    try:
        config = reference.config
        return GPTConfig(
            activation_function, config.n_layer, config.n_head, config.vocab_size,
            config.n_embd, config.n_positions, config.resid_pdrop, config.layer_norm_epsilon,
        )  # fmt: skip
    except AttributeError as error:
        raise _no_reference("config_of", reference) from error


def alignment_for(my_gpt: nn.Module, reference: Any) -> Alignment:
    """Which parameter of a learner's GPT-2, whatever it holds now, is which of the reference's.

    The names are the course's. A copy is given telling values, and which tensor is which, and how it is laid out,
    is then found from the values. `alignment.convert(reference)` is a state dict for `my_gpt`, without the bias of
    zeros that its head may have.

    Args:
        my_gpt: An instance.
        reference: A model of pellucid's or of transformers'.

    Raises:
        InputError: The two have other sizes or names, one of them is no model, or the reference's head is not tied.
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
        raise misuse(
            f"alignment_for: without a counterpart: {alone}.",
            "See what check_gpt2 says about the model.",
        )
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
    """A reference whose weights the course's GPT2 can hold; a model of transformers' is copied.

    Raises:
        InputError: No model, or one whose head is not tied.
    """
    if type(reference).__module__.startswith("transformers."):
        reference = from_hf(reference)
    if not isinstance(reference, CkptedTransformer):
        raise _no_reference(check, reference)
    if not torch.equal(reference.unembed.W_U, reference.embed.W_E.T):
        raise misuse(
            f"{check}: the reference's head is not tied: unembed.W_U has values of its own, and the course's GPT2 "
            "unembeds with its token embedding, so that it cannot hold them.",
            "Take a reference whose head is its embedding, as every GPT-2 of OpenAI's is.",
        )
    return reference


def _no_reference(check: str, given: Any) -> InputError:
    name = shown(given) if isinstance(given, str) else type(given).__name__
    return misuse(
        f"{check}: {name} given, expected a model as the reference.",
        "Open a file, a folder or a name with pellucid.load; a model of transformers' is taken as it is.",
    )


def _units(model: nn.Module, config: TransformerConfig) -> dict[str, Tensor]:
    """The units of a learner's GPT-2, whose parameters have the names of the course or others."""
    sizes = Sizes(
        config.n_embd, config.n_head, config.d_head, layers=config.n_layer, vocabulary=config.vocab_size,
        positions=config.n_positions, epsilon=config.layer_norm_epsilon,
    )  # fmt: skip
    values = _live_parameters(model, sizes)
    units = {"embed.W_E": values["token_embedding.weight"], "pos_embed.W_pos": values["pos_embedding.weight"]}
    for i in range(config.n_layer):
        here = f"blocks.{i}"
        heads = (3, config.n_head, config.d_head)
        weights = values[f"{here}.attn.qkv_proj.weight"].unflatten(0, heads)
        biases = values[f"{here}.attn.qkv_proj.bias"].unflatten(0, heads)
        for part, letter in enumerate("QKV"):
            units[f"{here}.attn.W_{letter}"] = weights[part].transpose(1, 2)
            units[f"{here}.attn.b_{letter}"] = biases[part]
        units[f"{here}.attn.W_O"] = values[f"{here}.attn.output_proj.weight"].T.unflatten(0, heads[1:])
        units[f"{here}.attn.b_O"] = values[f"{here}.attn.output_proj.bias"]
        for linear, kind in (("linear1", "in"), ("linear2", "out")):
            units[f"{here}.mlp.W_{kind}"] = values[f"{here}.{linear}.weight"].T
            units[f"{here}.mlp.b_{kind}"] = values[f"{here}.{linear}.bias"]
        for norm in ("ln1", "ln2"):
            units |= {f"{here}.{norm}.{to}": values[f"{here}.{norm}.{kind}"] for to, kind in _NORM}
    units |= {f"ln_final.{to}": values[f"ln.{kind}"] for to, kind in _NORM}
    return {name: value.detach() for name, value in units.items()}


_NORM = (("w", "weight"), ("b", "bias"))


def _live_parameters(model: nn.Module, sizes: Sizes) -> dict[str, Tensor]:
    """The parameters of a GPT-2 by the names of the course, whatever their own.

    Raises:
        WrongAnswerError: One is not there in these sizes.
    """
    shapes = gpt2_shapes(sizes)
    held = dict(model.named_parameters(remove_duplicate=False))
    if all(name in held and tuple(held[name].shape) == shape for name, shape in shapes.items()):
        return {name: held[name] for name in shapes}
    found = namings(model, shapes)
    if not found:
        lacking = next(n for n, shape in shapes.items() if n not in held or tuple(held[n].shape) != shape)
        what = f"has the shape {list(held[lacking].shape)}" if lacking in held else "is not there"
        raise WrongAnswerError(
            f"`{lacking}` {what}, expected {list(shapes[lacking])}", "the parameters", lacking, NAMES
        )
    values = found[0].read(model)
    if not _computes(model, values, sizes):
        words = (
            "its names are not the course's, and it does not compute what a GPT2 with parameters of these shapes does"
        )
        raise WrongAnswerError(words, "the parameters", kind=NAMES)
    return values


def _computes(model: nn.Module, values: Mapping[str, Tensor], sizes: Sizes) -> bool:
    """Whether a model's logits are those of the course's GPT2 with these parameters, under any activation function."""
    ids = torch.arange(min(4, sizes.positions))[None] % sizes.vocabulary
    try:
        with torch.no_grad():
            output = copied(model).eval()(ids)
            logits = getattr(output, "logits", output)
            ways = [replace(sizes, activation=one) for one in ("gelu", "gelu_new", "relu")]
            return any(apart(logits, gpt2(ids, values, way, RIGHT)["logits"]) <= 1e-3 for way in ways)
    except (Exception, SystemExit):  # whatever the learner's code raises
        return False
