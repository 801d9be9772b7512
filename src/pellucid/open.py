"""Opening models: `load`, and the way to and from transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pellucid.agreement import require_agreement, require_unchanged
from pellucid.dialects import CONVERTING, OPENING, named_arguments
from pellucid.errors import WeightsError
from pellucid.run.model import CkptedTransformer
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights import load as weights
from pellucid.weights.foreign import uncompiled
from pellucid.weights.hub import BUNDLED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@named_arguments(OPENING)
def load(
    name: str | Path | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    attention: str = "auto",
    numerics: str = "exact",
    config: weights.Configuration | None = None,
    ignore_config: Collection[str] = (),
    hub: weights.HubOptions | None = None,
) -> CkptedTransformer:
    """Open a model of a registered family (a GPT-2 or another of docs/families.md), evaluating.

    Args:
        name: None or "bundled" for the bundled model, offline; an alias (`gpt2-small`, `gpt2-medium`, `gpt2-large`,
            `gpt2-xl`, `distilgpt2`); any hub id; a folder; a file; or a state dict in memory, whose tensors are copied.
        device: Where to put it.
        dtype: "float32" unless asked; "stored" keeps what the file has; else "float64", "float16", "bfloat16" or the
            torch.dtype.
        attention: "auto" fuses every layer that nobody looks inside; "eager" makes every layer explicit.
        numerics: "exact" performs transformers' operations, equal to the bit; "fast" may fuse them; "bfloat16"
            also multiplies by the weights in bfloat16.
        config: What the model is, for a file that does not say: a configuration of ours or of transformers', or the
            path of a `config.json`; a mapping replaces single fields of what the file says.
        ignore_config: Fields of the configuration to drop although they are known to change the computation.
        hub: Revision, cache, token and offline switch of the hub.

    Raises:
        NotFoundError: No such file, folder or repository.
        WeightsError: Weights that cannot be read or explained.
        ConfigError: A configuration that cannot be or is not implemented.

    Example:
        >>> import pellucid as pl
        >>> pl.load().config.n_layer
        4
    """
    options = weights.LoadOptions(
        device=device,
        dtype=dtype,
        attention=attention,
        numerics=numerics,
        config=config,
        ignore_config=ignore_config,
        hub=hub or weights.HubOptions(),
    )
    return weights.load(CkptedTransformer, BUNDLED if name is None else name, options, Tokenizer.from_folder)


@named_arguments(CONVERTING)
def from_hf(hf_model: PreTrainedModel, *, attention: str = "auto", numerics: str = "exact") -> CkptedTransformer:
    """A copy of a transformers model, which is only read.

    A live model is what it computes: its modules count, whatever its configuration says, and what cannot be carried
    over is refused by name. At the end both are run once on a few ids, and are equal to the bit.

    Args:
        hf_model: A model of a registered family, such as a `GPT2LMHeadModel`; or one without a head, such as a
            `GPT2Model`, whose logits are its last hidden state times the transposed embedding.
        attention: As for `load`.
        numerics: As for `load`.

    Raises:
        WeightsError: Another class; a part, forward, hook, constant or tensor that cannot be carried over; or logits
            that differ, with the checkpoint at which the two part.
        ConfigError: A configuration that is not implemented.

    Example:
        >>> import pellucid as pl
        >>> hf = pl.to_hf(pl.load())
        >>> pl.from_hf(hf).config.n_layer
        4
    """
    model = weights.from_hf(CkptedTransformer, hf_model, attention=attention, numerics=numerics)
    require_agreement("from_hf", model, hf_model)
    return model


@named_arguments(CONVERTING)
def to_hf(model: CkptedTransformer) -> PreTrainedModel:
    """A transformers model with equal tensors, such as a `GPT2LMHeadModel`, tied where `model` is.

    At the end both are run once on a few ids, and are equal to the bit.

    Raises:
        WeightsError: No model of ours, or it was changed since it was built (hooks, patches, other modules or
            constants), or logits differ.
        MissingExtraError: transformers is not installed, or cannot be imported.
    """
    model = cast(CkptedTransformer, uncompiled(model) if isinstance(model, torch.nn.Module) else model)
    if not isinstance(model, CkptedTransformer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise WeightsError(
            f"to_hf: given {type(model).__name__}, expected a CkptedTransformer.",
            code="hf-wrong-class",
            remedy="Give what pl.load or pl.from_hf returned; a model of transformers' needs no conversion.",
        )
    require_unchanged(model)
    hf_model: PreTrainedModel = weights.to_hf(model)
    require_agreement("to_hf", model, hf_model)
    return hf_model
