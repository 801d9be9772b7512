"""A learner's whole GPT-2 with real weights, compared with the library's to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.config import TransformerConfig
from pellucid.errors import PellucidError
from pellucid.exercises.answers import Findings, WrongAnswerError, checked, misuse, theirs
from pellucid.exercises.learner import copied, parameter, spread
from pellucid.exercises.modules import GPTConfig
from pellucid.exercises.result import CheckResult
from pellucid.model import CkptedTransformer
from pellucid.open import load
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.compare import compare
from pellucid.prove.report import ComparisonReport
from pellucid.prove.units import units_of

PROMPT = "Former President of the United States of America, George"
EXPECTED = (" Washington", " Bush")
TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")


def config_of(reference: CkptedTransformer, activation_function: str = "gelu") -> GPTConfig:
    """The course's configuration of a model with the sizes of a reference."""
    config = reference.config
    return GPTConfig(
        activation_function, config.n_layer, config.n_head, config.vocab_size,
        config.n_embd, config.n_positions, config.resid_pdrop, config.layer_norm_epsilon,
    )  # fmt: skip


def alignment_for(my_gpt: nn.Module, reference: CkptedTransformer) -> Alignment:
    """Which parameter of a learner's GPT-2, whatever it holds now, is which of the reference's.

    The names are the course's. A copy is given telling values, and which tensor is which, and how it is laid out,
    is then found from the values. `alignment.convert(units_of(reference))` is a state dict for `my_gpt`.

    Raises:
        InputError: The two have other sizes or names.
    """
    scratch = copied(my_gpt).float()
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
        PellucidError: The two have other sizes or names.
    """
    made = alignment_for(my_gpt, reference).convert(units_of(reference))
    with torch.no_grad():
        for name, value in my_gpt.named_parameters(remove_duplicate=False):
            value.copy_(made[name])


def check_pretrained(
    my_gpt: nn.Module, tokenizer: Any = None, reference: CkptedTransformer | str | Path | None = None
) -> CheckResult:
    """Check a learner's GPT-2 that holds real weights.

    Where it still holds its fresh ones, a copy of it is given the reference's.

    Args:
        my_gpt: An instance.
        tokenizer: With `encode` and `decode`; None for the reference's.
        reference: A model with the weights that it should hold, or what `pellucid.load` takes; None for the
            bundled model.

    Raises:
        InputError: A class instead of an instance, or no tokenizer.
    """
    if not isinstance(my_gpt, nn.Module):
        raise misuse(
            f"check_pretrained: {type(my_gpt).__name__} given, expected a model.",
            "Pass an instance of your GPT2 with the weights loaded.",
        )
    opened = reference if isinstance(reference, CkptedTransformer) else load(reference)
    tokenizer = opened.tokenizer if tokenizer is None else tokenizer
    ids = _prompt(tokenizer, opened)

    def body(found: Findings) -> None:
        on_cpu = all(value.device.type == "cpu" for value in my_gpt.parameters())
        model = _loaded(found, my_gpt if on_cpu else copied(my_gpt).cpu(), opened)
        with theirs("running the model"), torch.no_grad():
            logits = copied(model).eval()(ids)
        if not isinstance(logits, Tensor) or logits.shape != (*ids.shape, opened.config.vocab_size):
            shape = list(getattr(logits, "shape", ()))
            raise WrongAnswerError(f"the output is {type(logits).__name__} {shape}, expected logits", "the output")
        _compare(found, model, opened, ids, logits)
        _what_comes_next(found, tokenizer, logits, opened)

    return checked("pretrained", body)


def _prompt(tokenizer: Any, reference: CkptedTransformer) -> Tensor:
    """The prompt as ids [1, P]."""
    if not hasattr(tokenizer, "encode") or not hasattr(tokenizer, "decode"):
        raise misuse("check_pretrained: no tokenizer with encode and decode.", "Pass the checkpoint's tokenizer.")
    ids = torch.tensor([list(tokenizer.encode(PROMPT))])
    if int(ids.max()) >= reference.config.vocab_size:
        raise misuse(
            f"check_pretrained: the tokenizer gives id {int(ids.max())}, the reference knows "
            f"{reference.config.vocab_size} tokens.",
            "Pass the tokenizer that belongs to the weights.",
        )
    return ids


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


def _loaded(found: Findings, my_gpt: nn.Module, reference: CkptedTransformer) -> nn.Module:
    """The learner's model once its weights are right; a copy with the reference's where it holds none of them."""
    try:
        wanted = alignment_for(my_gpt, reference).convert(units_of(reference))
    except PellucidError as error:
        found.note(f"weights are compared by value alone, since names or sizes are not the course's: {error.message}")
        return my_gpt
    mine = {name: value.detach().cpu() for name, value in my_gpt.named_parameters()}
    held = {name for name, value in mine.items() if torch.equal(value.to(wanted[name]), wanted[name])}
    if all(value.dim() < 2 for name, value in mine.items() if name in held):  # gains and biases may be equal by chance
        model = copied(my_gpt)
        load_into(model, reference)
        found.note("it holds none of the reference's weights, so a copy of it was given them")
        return model
    for name, value in mine.items():
        if name not in held:
            raise WrongAnswerError(
                _misloaded(name, value, wanted), "loading the weights", f"{name} {list(value.shape)}"
            )
    return my_gpt


def _misloaded(name: str, value: Tensor, wanted: Mapping[str, Tensor]) -> str:
    """What is wrong with a parameter's values."""
    right = wanted[name]
    if value.dim() == 2 and torch.equal(value.T, right):
        return f"`{name}` holds the transpose of its weights: the checkpoint's Conv1D keeps [in, out], Linear [out, in]"
    for other, tensor in wanted.items():
        if other != name and tensor.shape == value.shape and torch.equal(value, tensor):
            return f"`{name}` holds the weights of `{other}`"
    if value.dim() == 2 and torch.equal(value.flatten(), right.T.flatten()):
        return f"`{name}` holds its weights reshaped, where they should be transposed"
    return (
        f"`{name}` does not hold the reference's weights: it differs by up to {float((value - right).abs().max()):.3g}"
    )


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
        f"gelu: this model uses the erf form (nn.GELU()), the checkpoint was trained with the tanh form "
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
