"""Ways to change a model's weights after which no copy of what they were may be read."""

from __future__ import annotations

from torch import nn

import pellucid as pl
import support


def written(model: pl.CkptedTransformer) -> None:
    model.blocks[1].mlp.W_in.mul_(-1)


def by_view(model: pl.CkptedTransformer) -> None:
    model.blocks[0].attn.W_V.mul_(-1)


def loaded(model: pl.CkptedTransformer) -> None:
    model.load_state_dict(support.glass(seed=3).state_dict())


def converted(model: pl.CkptedTransformer) -> None:
    model.half().float()


def exchanged(model: pl.CkptedTransformer) -> None:
    model.blocks[0].attn.W_O = nn.Parameter(-model.blocks[0].attn.W_O)


def behind_torch(model: pl.CkptedTransformer) -> None:
    model.embed.W_E.data.mul_(-1)
    model.refresh()


def put_elsewhere(model: pl.CkptedTransformer) -> None:
    model.blocks[1].mlp.W_in.data = -model.blocks[1].mlp.W_in.data


WRITES = (written, by_view, loaded, converted, exchanged, behind_torch, put_elsewhere)
