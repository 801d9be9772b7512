"""Blocks of a trace that hold the features of an autoencoder, which the page shows as it shows neurons."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.contributions import direct
from pellucid.viewer.container import TraceBlock
from pellucid.viewer.logit_blocks import Target
from pellucid.viewer.one_text import OneText
from pellucid.viewer.value_blocks import floats

NAME = "features"
"""What the page calls their values, also when it asks for them."""


def header(sae: SparseAutoencoder, one: OneText) -> dict[str, Any]:
    """What the header says of them: how many there are, and their values as it says of a checkpoint."""
    at = sae.place(one.ckpts.schema)
    return {
        "count": sae.n_features, "at": at,
        "kind": {
            "name": NAME, "block": 0, "short": NAME, "axes": ["batch", "pos", "feature"],
            "shape": [1, one.n_tokens, sae.n_features], "unit": "activation", "meaning": f"features of {at}",
            "equation": "", "computed": "",
        },
    }  # fmt: skip


def values(sae: SparseAutoencoder, one: OneText) -> Tensor:
    """[P, F]."""
    return torch.from_numpy(sae.features(one.ckpts).values[0])


def features(sae: SparseAutoencoder, one: OneText, *, narrow: bool) -> dict[str, TraceBlock]:
    """Their values, as those of a single layer of neurons."""
    block = floats(values(sae, one).float().numpy()[None], narrow)
    return {"features.post": TraceBlock(block.data, block.code, about={"of": NAME})}


def effects(sae: SparseAutoencoder, one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What one unit of each adds to the target's logit."""
    units = direct(sae, one.ckpts, target.token, per_unit=True, features=range(sae.n_features), model=one.model)
    return {"features.effect": TraceBlock(np.asarray(units.values[:, 0, target.pos][None], "<f4"))}
