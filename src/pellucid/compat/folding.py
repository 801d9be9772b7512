"""Weights folded and centred, as HookedTransformer changes them: the same probabilities from other weights.

A norm's gain and bias can be multiplied into the matrices that read it, what writes into the stream can be centred
where every norm subtracts the mean, and the logits of a token can all be moved by one number. Formulas: Elhage et al.
2021, "A mathematical framework for transformer circuits"; TransformerLens' "Weight processing".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pellucid.errors import InputError, NumericsError
from pellucid.family.blocks import Norm
from pellucid.heads.factored import FactoredMatrix
from pellucid.heads.matrices import require_finite
from pellucid.names.calls import named_arguments, named_methods
from pellucid.run.model import CkptedTransformer
from pellucid.schema import Schema
from pellucid.text.batch import Inputs

_BOUND = 1e-10
"""Nats by which log-probabilities in float64 may differ: rounding is a thousandth of that in a GPT-2."""


@named_methods
@dataclass(frozen=True, eq=False)
class Folded:
    """A model with other weights and the same probabilities; the model that it was made of is not touched.

    Attributes:
        model: The model with the other weights, evaluating, its head a matrix of its own.
        b_U: [V], what has to be added to its logits: the last norm's bias after the head.
        steps: What was done.
        of: The model that it was made of.

    Example:
        >>> import pellucid as pl
        >>> folded = pl.fold(pl.load())
        >>> folded.prove("Once upon a time") < 1e-10
        True
        >>> float(folded["blocks.0.ln1.w"].std()), folded.logits("Once upon a time").shape
        (0.0, torch.Size([1, 4, 4096]))
    """

    model: CkptedTransformer
    b_U: Tensor
    steps: tuple[str, ...]
    of: CkptedTransformer

    def __getitem__(self, name: str) -> Tensor:
        """A copy of a parameter by its name, "unembed.b_U" among them."""
        return (self.b_U if name == "unembed.b_U" else self.model.parameter(name)).detach().clone()

    def logits(self, inputs: Inputs, *, mask: Any = None) -> Tensor:
        """Logits [B, P, V]; those of the original, each token's moved by one number if the head was centred."""
        with torch.no_grad():
            return self.model(inputs, mask=mask) + self.b_U

    def prove(self, inputs: Inputs, *, mask: Any = None) -> float:
        """Fold the original again in float64, and compare the log-probabilities of every token.

        The weights here have to be those that are folded in float64, rounded to the dtype of the model, to the bit.

        Returns:
            The largest difference in nats.

        Raises:
            NumericsError: If it is more than 1e-10, or weights differ: one of the two models was changed since.
        """
        again = _folded(self.of, self.steps, "auto")  # rows of a softmax in float32, as eager attention has, miss one
        own = {**self.model.state_dict(), "unembed.b_U": self.b_U}
        expected = {**again.model.state_dict(), "unembed.b_U": again.b_U}
        changed = [name for name, value in own.items() if not torch.equal(value, expected[name].to(value))]
        batch = self.of.tokenize(inputs, mask=mask)
        with torch.no_grad():
            before = _in_float64(self.of, "auto")(batch).log_softmax(-1)
            after = (again.model(batch) + again.b_U).log_softmax(-1)
        difference = float((after - before)[batch.mask].abs().max())
        if changed or not difference <= _BOUND:
            what = f"{changed[0]!r} is not what folding gives" if changed else f"{difference:.2e} nats in float64"
            raise NumericsError(
                f"Folded.prove: {what}, expected the same log-probabilities to {_BOUND:.0e} nats.",
                code="folding-differs",
                remedy="Fold the model again, pl.fold(model): one of the two was changed since.",
            )
        return difference


@named_arguments()
def fold(
    model: CkptedTransformer,
    *,
    fold_ln: bool = True,
    center_writing_weights: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
    refactor_factored_attn_matrices: bool = False,
) -> Folded:
    """Fold and centre the weights of a copy of a model; the steps have HookedTransformer's names.

    Everything is computed in float64 and rounded once. A norm that does not subtract the mean (RMSNorm) lets nothing be
    centred before it: `center_writing_weights` does nothing then, as in HookedTransformer.

    Args:
        model: Any family.
        fold_ln: Multiply each norm's gain and bias into the matrices and biases that read it, and take off the mean of
            each of their columns, which a centred input cannot see. The last norm's bias becomes `b_U`.
        center_writing_weights: Take off the mean over D of what is written into the stream.
        center_unembed: Take off the mean over the vocabulary of the head and of `b_U`.
        fold_value_biases: Move what the values' biases write, b_V W_O, into b_O; a row of a pattern sums to one.
        refactor_factored_attn_matrices: Give each head other queries, keys and values with the same scores and outputs:
            its factors are the singular vectors of W_QK, biases included, and of W_OV. Queries and keys share the
            singular values; W_O has those of W_OV.

    Raises:
        InputError: If queries and keys are rotated or heads share keys, which cannot be refactored, a matrix without a
            bias would have to read one, or weights are not finite.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> pl.fold(model, center_unembed=False).prove("Once upon a time") < 1e-10
        True
    """
    asked = {"fold_ln": fold_ln, "center_writing_weights": center_writing_weights, "center_unembed": center_unembed,
             "fold_value_biases": fold_value_biases,
             "refactor_factored_attn_matrices": refactor_factored_attn_matrices}  # fmt: skip
    for name in model.parameter_names:
        require_finite(model.parameter(name).detach(), name, "fold")
    exact = _folded(model, tuple(step for step, wanted in asked.items() if wanted))
    return Folded(exact.model.to(model.dtype), exact.b_U.to(model.dtype), exact.steps, model)


def _folded(model: CkptedTransformer, steps: tuple[str, ...], attention: str | None = None) -> Folded:
    """The same in float64; it attends as the model does unless told otherwise."""
    changed = _in_float64(model, attention)
    bias = changed.unembed.W_U.new_zeros(changed.unembed.W_U.size(1))
    with torch.no_grad():
        if "fold_ln" in steps:
            bias += _fold_norms(changed)
        if "center_writing_weights" in steps and changed.ln_final.centres:
            for name in _writes(model.schema):
                own = changed.parameter(name)
                own -= own.mean(-1, keepdim=True)
        if "center_unembed" in steps:
            changed.unembed.W_U.sub_(changed.unembed.W_U.mean(-1, keepdim=True))
            bias -= bias.mean()
        if "fold_value_biases" in steps or "refactor_factored_attn_matrices" in steps:
            for block in range(len(model.schema.blocks)):
                _fold_value_bias(changed, f"blocks.{block}.attn")
        if "refactor_factored_attn_matrices" in steps:
            _refactor(changed)
    return Folded(changed, bias, steps, model)


def _refactor(model: CkptedTransformer) -> None:
    """Make each head's factors singular vectors; a row of ones beside the input stands for the biases."""
    sizes = model.schema.sizes
    if "attn.ckpt_rot_q" in model.schema.in_blocks or sizes["head"] != sizes["head_kv"]:
        raise InputError(
            "fold: refactor_factored_attn_matrices with rotated queries and keys, or heads that share keys.",
            code="folding-rotated",
            remedy="Pass refactor_factored_attn_matrices=False.",
        )
    for block in range(sizes["layer"]):
        q, k, v, o = (model.parameter(f"blocks.{block}.attn.W_{letter}") for letter in "QKVO")
        biases = [model.parameter(f"blocks.{block}.attn.b_{letter}") for letter in "QK"]
        queries, keys = (torch.cat([own, bias[:, None]], 1) for own, bias in zip((q, k), biases, strict=True))
        left, values, right = FactoredMatrix(queries, keys.mT).svd()
        root = values.sqrt()[:, None]
        for own, bias, made in zip((q, k), biases, (left * root, right.mT * root), strict=True):
            own.copy_(made[:, :-1])
            bias.copy_(made[:, -1])
        left, values, right = FactoredMatrix(v, o).svd()
        v.copy_(left)
        o.copy_(values[:, :, None] * right)


def _in_float64(model: CkptedTransformer, attention: str | None) -> CkptedTransformer:
    """A copy in float64, evaluating, with a head of its own and without gradients."""
    config = model.config.replace(tie_word_embeddings=False)
    weights = {name: model.parameter(name).detach().double().clone() for name in config.schema.stored}
    copy = CkptedTransformer(
        config, weights, tokenizer=model.tokenizer, attention=attention or model.execution.attention,
        numerics="fast" if model.execution.is_fast else "exact", provenance=model.provenance,
    )  # fmt: skip
    return copy.eval().requires_grad_(False)


def _reads(schema: Schema) -> Iterator[tuple[str, str, str]]:
    """(norm, matrix, bias) of every matrix in the blocks that reads a norm; "" without a bias."""
    for i, block in enumerate(schema.blocks):
        norm, place = "", f"blocks.{i}."
        for point in block:
            if point.name.endswith(".ckpt_normalized"):
                norm = place + point.name.removesuffix(".ckpt_normalized")
            elif norm and point.parameters:
                matrix, *bias = (place + name for name in point.parameters)
                if "d_model" in schema.parameter(matrix).axes[:-1]:
                    yield norm, matrix, bias[0] if bias else ""


def _writes(schema: Schema) -> Iterator[str]:
    """Every parameter that writes into the stream; the last axis is D."""
    norms = {point.parameters[0].rpartition(".")[0] for point in schema.points if point.name.endswith("_normalized")}
    for parameter in schema.parameters:
        if parameter.axes[-1] == "d_model" and parameter.name.rpartition(".")[0].split(".")[-1] not in norms:
            yield parameter.name


def _fold_norms(model: CkptedTransformer) -> Tensor:
    """Fold every norm into what reads it; what the last one's bias writes, [V]."""
    reads = list(_reads(model.schema))
    for norm, matrix, bias in reads:
        if f"{norm}.b" in model.parameter_names and bias not in model.parameter_names:
            raise InputError(
                f"fold: {matrix!r} has no bias that could take up that of {norm!r}.",
                code="folding-without-bias",
                remedy="Pass fold_ln=False.",
            )
    for norm, matrix, bias in reads:
        written = _fold_into(model, norm, model.parameter(matrix))
        if written is not None:
            own = model.parameter(bias)
            own += written
    head = model.unembed.W_U
    written = _fold_into(model, "ln_final", head)
    for norm in {"ln_final", *(norm for norm, _, _ in reads)}:
        model.parameter(f"{norm}.w").fill_(1.0)
        if f"{norm}.b" in model.parameter_names:
            model.parameter(f"{norm}.b").zero_()
    return head.new_zeros(head.size(1)) if written is None else written


def _fold_into(model: CkptedTransformer, norm: str, matrix: Tensor) -> Tensor | None:
    """Fold a norm into a matrix [..., D, K], in place; what its bias writes, [..., K], None if it has none."""
    bias = f"{norm}.b"
    written = None
    if bias in model.parameter_names:
        written = torch.einsum("d,...dk->...k", model.parameter(bias), matrix)
    matrix *= model.parameter(f"{norm}.w")[:, None]
    if cast(Norm, model.get_submodule(norm)).centres:
        matrix -= matrix.mean(-2, keepdim=True)
    return written


def _fold_value_bias(model: CkptedTransformer, place: str) -> None:
    """Move what the values' biases of a block write into b_O: each row of a pattern sums to one."""
    if f"{place}.b_V" not in model.parameter_names:
        return
    if f"{place}.b_O" not in model.parameter_names:
        raise InputError(
            f"fold: {place!r} has biases of values and no b_O that could take them up.",
            code="folding-without-bias",
            remedy="Pass fold_value_biases=False.",
        )
    values, outputs, own = (model.parameter(f"{place}.{name}") for name in ("b_V", "W_O", "b_O"))
    shared = values.repeat_interleave(outputs.size(0) // values.size(0), dim=0)  # heads that share a value
    own += torch.einsum("hk,hkd->d", shared, outputs)
    values.zero_()
