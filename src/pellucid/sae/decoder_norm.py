"""The lengths of decoder directions, moved into the activations, and the proof that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.errors import InputError, NumericsError

if TYPE_CHECKING:
    from pellucid.sae.autoencoder import SparseAutoencoder

_BOUND = 1e-10
"""How far reconstructions in float64 may be apart, relative to their size."""


def folded(sae: SparseAutoencoder) -> SparseAutoencoder:
    """What `SparseAutoencoder.fold_decoder_norm` returns, in float64."""
    if sae.config.activation == "topk" and not sae.config.rescaled:
        raise InputError(
            "fold_decoder_norm: a topk of plain pre-activations; longer ones would be among the k largest.",
            code="sae-fold",
            remedy="Leave it as it is, and multiply its features by sae.W_dec.norm(dim=-1) to compare them.",
        )
    own = {name: p.detach().cpu().double() for name, p in sae.named_parameters()}
    lengths = own["W_dec"].norm(dim=-1)
    lengths = torch.where(lengths > 0, lengths, 1.0)  # a direction of zeros has no length to give away
    for name in ("W_enc", "b_enc", "threshold", "b_gate", "b_mag"):
        if name in own:
            own[name] = own[name] * lengths
    own["W_dec"] = own["W_dec"] / lengths[:, None]
    return type(sae)(replace(sae.config, rescaled=False), own).requires_grad_(False)


def proved(sae: SparseAutoencoder, copy: SparseAutoencoder, x: Tensor) -> float:
    """`SparseAutoencoder.prove_fold`."""
    again, own, x = folded(sae), sae.double_copy(), x.detach().cpu().double()
    weights = {name: p.detach().cpu() for name, p in copy.named_parameters()}
    changed = [name for name, p in again.named_parameters() if not torch.equal(weights[name], p.to(weights[name]))]
    with torch.no_grad():
        before, after = own.split(x).reconstruction, again.split(x).reconstruction
    difference = float((after - before).abs().max() / before.abs().max())
    if changed or not difference <= _BOUND:
        what = f"{changed[0]!r} is not what folding gives" if changed else f"{difference:.2e} apart in float64"
        raise NumericsError(
            f"prove_fold: {what}, expected the same reconstructions to {_BOUND:.0e}.",
            code="sae-fold-differs",
            remedy="Fold again, sae.fold_decoder_norm(): one of the two was changed since.",
        )
    return difference
