"""`Config`: what the configuration of every family answers. Its sizes have neutral names, such as "d_model"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from pellucid.errors import ConfigError
from pellucid.schema import Schema


class Config(Protocol):
    """The configuration of a model of any family. Token ids have the names that transformers gives them everywhere."""

    @property
    def schema(self) -> Schema:
        """The checkpoints, parameters and sizes of a model with this configuration."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """The schema's sizes, without the schema being built for them: a file may promise a billion blocks."""
        ...

    @property
    def initializer_range(self) -> float:
        """Standard deviation of fresh matrices."""
        ...

    @property
    def activation(self) -> str:
        """The name of the MLP's activation function."""
        ...

    @property
    def blocks_field(self) -> str:
        """The field that holds the number of blocks."""
        ...

    @property
    def epsilon(self) -> float:
        """What norms add below the root."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text."""
        ...

    @property
    def eos_token_id(self) -> int | tuple[int, ...] | None:
        """The id or ids that end a text, as the file says."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        ...

    @property
    def pad_token_id(self) -> int | None:
        """The id that fills up shorter rows."""
        ...

    @property
    def neutral(self) -> Mapping[str, Any]:
        """Fields that change nothing that the model computes, kept for whoever saves it."""
        ...

    @property
    def unread(self) -> tuple[str, ...]:
        """Those of them that transformers' class never reads."""
        ...

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embedding."""
        ...

    def replace(self, **changes: Any) -> Self:
        """This configuration with fields replaced, such as `tie_word_embeddings`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The fields of a Hugging Face `config.json` that describes this model."""
        ...


def require_schema(config: object) -> Schema:
    """The schema of a configuration.

    Raises:
        ConfigError: Something else than a configuration was given.
    """
    schema, sizes = getattr(config, "schema", None), getattr(config, "sizes", None)  # a model has a schema alone
    if not isinstance(schema, Schema) or not isinstance(sizes, Mapping):
        raise ConfigError(
            f"config: {type(config).__name__} given, expected the configuration of a model.",
            code="config-wrong-type",
            remedy="Give a pl.TransformerConfig first, such as model.config, and tensors as weights={name: tensor}.",
        )
    return schema
