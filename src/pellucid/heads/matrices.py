"""What the weights of a head say: W_OV, W_QK, how much heads read of what earlier heads write, and whether they copy or
look back by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pellucid.check import as_whole, require_one_of
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.family.network import Network
from pellucid.heads.factored import FactoredMatrix, triangle
from pellucid.run.model import CkptedTransformer
from pellucid.run.origin import source_of

if TYPE_CHECKING:
    import xarray

Kind = Literal["Q", "K", "V"]


def ov(model: Network, layer: int, head: int) -> FactoredMatrix:
    """Return W_V W_O of a head, [D, D]: what it writes is its input's average times this (Elhage et al. 2021).

    Rows are inputs: `x @ ov`. The values' bias and the norm before the head are not in it. If heads share
    values, it is that of the query's number. The factors are copies, and stay as they are if the model is changed.

    Args:
        model: Any family.
        layer: The number of the block; negative ones count from the end.
        head: The number of the head among the queries'; likewise.

    Raises:
        InputError: If there is no such head, or its weights are not finite.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> circuit = model.embed.W_E @ pl.heads.ov(model, 1, 3) @ model.unembed.W_U  # from tokens to logits
        >>> values = circuit.eigenvalues()  # positive ones raise the token's own logit, negative ones lower it
        >>> circuit.shape, float(values.real.sum() / values.abs().sum()) < -0.8
        (torch.Size([4096, 4096]), True)
    """
    return _factored(model, layer, head, "V", "O", "heads.ov")


def qk(model: Network, layer: int, head: int) -> FactoredMatrix:
    """Return W_Q W_K^T of a head, [D, D]: its score of a query x and a key y is x W_QK y^T, times the scale.

    Rows are queries and columns are keys. Biases, the scale, the norm before the head and rotations are not in it.
    Arguments, sharing and errors are those of `ov`.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> u, s, vh = pl.heads.qk(model, 0, 3).svd()
        >>> u.shape, s.shape, vh.shape
        (torch.Size([256, 64]), torch.Size([64]), torch.Size([64, 256]))
    """
    return _factored(model, layer, head, "Q", "K", "heads.qk")


def composition(model: Network, kind: Kind) -> xarray.DataArray:
    """Compute how much each head reads of what each earlier head writes, from the weights alone.

    It is |W_OV W_QK| / (|W_OV| |W_QK|) for "Q", |W_QK W_OV^T| / (|W_QK| |W_OV|) for "K", and |W_OV W_OV'| /
    (|W_OV| |W_OV'|) for "V", with W_OV of the earlier head, W_QK and W_OV' of the later one, and Frobenius norms
    (Elhage et al. 2021, "A mathematical framework for transformer circuits"). Random heads are not at 0 but at about
    1 / sqrt(D). Norms, biases and rotations are left out; heads that share keys and values have those of their group.

    Args:
        model: Any family.
        kind: What of the later head: its queries "Q", keys "K" or values "V".

    Returns:
        [layer, head, layer_to, head_to]; NaN unless layer < layer_to, and 0 for a head whose weights are zero.

    Raises:
        InputError: If it is another kind, or weights are not finite.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> scores = pl.heads.composition(pl.load(), "K")
        >>> scores.sizes, int(scores.notnull().sum())
        (Frozen({'layer': 4, 'head': 4, 'layer_to': 4, 'head_to': 4}), 96)
    """
    remedy = "Give 'Q', 'K' or 'V': what of the later head reads."
    require_one_of("heads.composition: kind", kind, ("Q", "K", "V"), code="composition-kind", remedy=remedy)
    layers, heads = model.schema.sizes["layer"], model.schema.sizes["head"]
    pairs = list(_written_and_read(model, kind))
    scores = torch.full((layers, heads, layers, heads), torch.nan, dtype=torch.float64, device="cpu")
    for to in range(1, layers):
        earlier, later = torch.cat([written for written, _ in pairs[:to]]), pairs[to][1]
        # one product for all pairs: [earlier K, D] by [D, later K]
        products = earlier.flatten(0, 1) @ later.transpose(0, 1).flatten(1)
        found = torch.linalg.matrix_norm(
            products.unflatten(0, earlier.shape[:2]).unflatten(-1, (heads, -1)), dim=(1, 3)
        )
        sizes = torch.linalg.matrix_norm(earlier)[:, None] * torch.linalg.matrix_norm(later)
        scores[:to, :, to] = torch.where(sizes > 0, found / sizes, 0.0).unflatten(0, (to, heads))
    dims = ("layer", "head", "layer_to", "head_to")
    return need("xarray", "pellucid.heads").DataArray(
        scores.numpy(), dims=dims, name="composition",
        attrs={"kind": kind, "model": source_of(model)},
        coords={dim: range(size) for dim, size in zip(dims, scores.shape, strict=True)},
    )  # fmt: skip


def weight_scores(model: CkptedTransformer) -> xarray.Dataset:
    """Score every head from the weights alone.

    - copying: sum(Re e) / sum(|e|) over the eigenvalues e of W_E W_OV W_U, from 1, if the head raises the logits of the
      tokens that it reads, to -1, if it lowers them (Elhage et al. 2021, "A mathematical framework for transformer
      circuits"). Norms and biases are left out.
    - previous: the mean of A[q, q - 1] over q, with A the pattern of the head if its block is given the position
      embeddings W_pos and nothing else: what the position embeddings say through W_Q and W_K (as Elhage et al. take the
      tokens'), with the norm, biases and scale of the block. Patterns of real texts also depend on the tokens.

    Args:
        model: Any family. If positions enter by rotation (Llama, GPT-NeoX) there are no position embeddings, and how
            far back a head looks is not in its weights alone: `previous` is NaN. `pellucid.heads.scores` gives it on a
            text.

    Returns:
        A dataset [layer, head].

    Raises:
        InputError: If weights are not finite.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> scores = pl.heads.weight_scores(pl.load())
        >>> int(scores.previous[0].argmax("head")), float(scores.copying[1, 3]) < -0.8
        (2, True)
    """
    layers, heads = model.schema.sizes["layer"], model.schema.sizes["head"]
    W_E, W_U = (model.parameter(name).detach() for name in ("embed.W_E", "unembed.W_U"))
    for name, matrix in (("embed.W_E", W_E), ("unembed.W_U", W_U)):
        require_finite(matrix, name, "heads.weight_scores")
    around = FactoredMatrix(W_U, W_E).dense()  # W_E W_OV W_U has the eigenvalues of W_OV W_U W_E, [D, D]
    copying = torch.full((layers, heads), torch.nan, dtype=torch.float64, device="cpu")
    for layer in range(layers):
        v, o = (_weights(model, layer, letter, "heads.weight_scores") for letter in "VO")
        values = torch.linalg.eigvals((o @ around.to(o.dtype) @ v).double())
        copying[layer] = values.real.sum(-1) / values.abs().sum(-1)
    found = {"copying": copying, "previous": _previous(model, layers, heads)}
    dims = ("layer", "head")
    return need("xarray", "pellucid.heads").Dataset(
        {name: (dims, values.cpu().numpy()) for name, values in found.items()},
        coords={"layer": range(layers), "head": range(heads)},
    )


def _previous(model: CkptedTransformer, layers: int, heads: int) -> Tensor:
    """[layer, head]: the attention to the token before of patterns that position embeddings alone make."""
    found = torch.full((layers, heads), torch.nan, dtype=torch.float64, device="cpu")
    if "pos_embed.W_pos" not in model.parameter_names:
        return found
    stream = model.parameter("pos_embed.W_pos").detach()[None]
    ids = torch.zeros(stream.shape[:2], dtype=torch.long, device="cpu")
    for layer in range(layers):
        pattern = f"blocks.{layer}.attn.ckpt_pattern"
        start = (f"blocks.{layer}.resid_pre", stream)
        _, ckpts = model.run_with_ckpts(ids, names=pattern, start_at=start, stop_at=pattern)
        require_finite(ckpts[pattern], pattern, "heads.weight_scores")
        found[layer] = ckpts[pattern][0].diagonal(-1, -2, -1).double().mean(-1)
    return found


def _written_and_read(model: Network, kind: Kind) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each block what its heads write [H, K, D], and what they read earlier heads with [H, D, K].

    The outer factor of each product is replaced by its triangle, which has the same norm and is K by K. So |W_OV W_QK|
    is the norm of the product of the two, and |W_OV| that of the first alone.
    """
    for layer in range(len(model.schema.blocks)):
        q, k, v, o = (_weights(model, layer, letter, "heads.composition") for letter in "QKVO")
        inner, outer = {"Q": (q, k), "K": (k, q), "V": (v, o.mT)}[kind]
        yield triangle(v) @ o, inner @ triangle(outer).mT


def _factored(model: Network, layer: int, head: int, left: str, right: str, by: str) -> FactoredMatrix:
    block = _number(f"{by}: layer", layer, len(model.schema.blocks))
    number = _number(f"{by}: head", head, model.schema.sizes["head"])
    first, second = (_weights(model, block, letter, by)[number].clone() for letter in (left, right))
    return FactoredMatrix(first, second if right == "O" else second.mT)


def _weights(model: Network, layer: int, letter: str, by: str) -> Tensor:
    """A matrix of each query's head, in float32 or better: [H, D, K], of W_O [H, K, D]."""
    name = f"blocks.{layer}.attn.W_{letter}"
    held = model.parameter(name).detach()
    require_finite(held, name, by)
    matrix = held.to(torch.promote_types(held.dtype, torch.float32))
    return matrix.repeat_interleave(model.schema.sizes["head"] // matrix.size(0), 0)


def require_finite(value: Tensor, what: str, by: str) -> None:
    """Raise `InputError` if a number is NaN or infinite."""
    if not bool(value.isfinite().all()):
        raise InputError(
            f"{by}: {what} has numbers that are not finite.",
            code="not-finite",
            remedy="Load weights whose numbers are finite.",
        )


def _number(what: str, given: Any, count: int) -> int:
    number = as_whole(given)
    if number is None or not -count <= number < count:
        raise InputError(
            f"{what}={shown(given)}, expected a number from 0 to {count - 1}.",
            code="index-out-of-range",
            remedy="Choose one that exists; negative ones count from the end.",
        )
    return number % count
