"""The sizes and the weights of a reference, for a learner's GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.config import TransformerConfig
from pellucid.errors import InputError
from pellucid.exercises.answers import WrongAnswerError, misuse
from pellucid.exercises.learner import copied, parameter, spread
from pellucid.exercises.modules import GPTConfig
from pellucid.model import CkptedTransformer
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.units import units_of


def config_of(reference: CkptedTransformer, activation_function: str = "gelu") -> GPTConfig:
    """The course's configuration of a model with the sizes of a reference.

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


def alignment_for(my_gpt: nn.Module, reference: CkptedTransformer) -> Alignment:
    """Which parameter of a learner's GPT-2, whatever it holds now, is which of the reference's.

    The names are the course's. A copy is given telling values, and which tensor is which, and how it is laid out,
    is then found from the values. `alignment.convert(units_of(reference))` is a state dict for `my_gpt`.

    Raises:
        InputError: The two have other sizes or names, one of them is no model, or the reference's head is not tied.
    """
    require_instance("alignment_for", my_gpt)
    require_reference("alignment_for", reference)
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
    except (AttributeError, IndexError, TypeError, RuntimeError, KeyError) as error:
        raise misuse(
            f"alignment_for: the model has not the parameters of the course's GPT2 in these sizes: {error}.",
            "Construct it with config_of(reference), and see what check_gpt2 says.",
        ) from error
    tensors = {name: value.detach() for name, value in scratch.named_parameters(remove_duplicate=False)}
    found = align(units, tensors, reference.config.n_layer, reference.config.n_head)
    if not found.complete or not found.bit_equal:
        alone = ", ".join((*found.unexplained, *found.missing)) or "some values"
        raise misuse(
            f"alignment_for: without a counterpart: {alone}.",
            "See what check_gpt2 says about the model.",
        )
    return found


def load_into(my_gpt: nn.Module, reference: CkptedTransformer) -> None:
    """Give a learner's GPT-2 the weights of a reference, by `alignment_for`.

    Raises:
        InputError: As `alignment_for`.
    """
    made = alignment_for(my_gpt, reference).convert(units_of(reference))
    with torch.no_grad():
        for name, value in my_gpt.named_parameters(remove_duplicate=False):
            value.copy_(made[name])


def require_instance(check: str, my_gpt: Any) -> None:
    """See that a learner's model is one, and not its class."""
    if not isinstance(my_gpt, nn.Module):
        given = f"the class {my_gpt.__name__}" if isinstance(my_gpt, type) else type(my_gpt).__name__
        raise misuse(f"{check}: {given} given, expected a model.", "Pass an instance: GPT2(config_of(reference)).")


def require_reference(check: str, reference: Any) -> None:
    """See that the course's GPT2 can hold a reference's weights."""
    if not isinstance(reference, CkptedTransformer):
        raise _no_reference(check, reference)
    if not torch.equal(reference.unembed.W_U, reference.embed.W_E.T):
        raise misuse(
            f"{check}: the reference's head is not tied: unembed.W_U has values of its own, and the course's GPT2 "
            "unembeds with its token embedding, so that it cannot hold them.",
            "Take a reference whose head is its embedding, as every GPT-2 of OpenAI's is.",
        )


def _no_reference(check: str, given: Any) -> InputError:
    name = repr(given) if isinstance(given, str) else type(given).__name__
    return misuse(f"{check}: {name} given, expected a model as the reference.", "Open it with pellucid.load.")


def _units(model: nn.Module, config: TransformerConfig) -> dict[str, Tensor]:
    """The units of a learner's GPT-2, read by the names of the course."""

    def at(path: str) -> Tensor:
        return parameter(model, path).detach()

    units = {"embed.W_E": at("token_embedding.weight"), "pos_embed.W_pos": at("pos_embedding.weight")}
    for i in range(config.n_layer):
        mine, ours = f"blocks.{i}", f"blocks.{i}"
        heads = (3, config.n_head, config.d_head)
        weights = at(f"{mine}.attn.qkv_proj.weight").unflatten(0, heads)
        biases = at(f"{mine}.attn.qkv_proj.bias").unflatten(0, heads)
        for part, letter in enumerate("QKV"):
            units[f"{ours}.attn.W_{letter}"] = weights[part].transpose(1, 2)
            units[f"{ours}.attn.b_{letter}"] = biases[part]
        out = at(f"{mine}.attn.output_proj.weight").T
        units[f"{ours}.attn.W_O"] = out.unflatten(0, heads[1:])
        units[f"{ours}.attn.b_O"] = at(f"{mine}.attn.output_proj.bias")
        for linear, kind in (("linear1", "in"), ("linear2", "out")):
            units[f"{ours}.mlp.W_{kind}"] = at(f"{mine}.{linear}.weight").T
            units[f"{ours}.mlp.b_{kind}"] = at(f"{mine}.{linear}.bias")
        for norm in ("ln1", "ln2"):
            units |= {f"{ours}.{norm}.w": at(f"{mine}.{norm}.weight"), f"{ours}.{norm}.b": at(f"{mine}.{norm}.bias")}
    units |= {"ln_final.w": at("ln.weight"), "ln_final.b": at("ln.bias")}
    if not _same_shapes(units, config):
        raise RuntimeError("other sizes")
    return units


def _same_shapes(units: Mapping[str, Tensor], config: TransformerConfig) -> bool:
    d, h, k, m = config.n_embd, config.n_head, config.d_head, config.d_mlp
    first = {
        "embed.W_E": (config.vocab_size, d), "pos_embed.W_pos": (config.n_positions, d), "blocks.0.attn.W_Q": (h, d, k),
        "blocks.0.attn.W_O": (h, k, d), "blocks.0.mlp.W_in": (d, m), "ln_final.w": (d,),
    }  # fmt: skip
    return all(tuple(units[name].shape) == shape for name, shape in first.items() if name in units)
