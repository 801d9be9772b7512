"""The facts that define one GPT-2, frozen, under the names that transformers' `GPT2Config` uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pellucid.dialects import named_arguments
from pellucid.errors import warn
from pellucid.gpt2.config_fields import FIELDS
from pellucid.gpt2.schema import schema_of
from pellucid.json_config import JsonConfig
from pellucid.schema import Schema


@named_arguments()
@dataclass(frozen=True, kw_only=True)
class TransformerConfig(JsonConfig):
    """What a GPT-2 is, apart from its weights.

    The five sizes have no default: they come with the weights. The others default to what
    transformers assumes when a published `config.json` leaves them out.

    Example:
        >>> from pellucid import TransformerConfig
        >>> config = TransformerConfig.from_pretrained("gpt2-small", vocab_size=5000)
        >>> config.vocab_size, config.n_embd, config.d_head, config.d_mlp
        (5000, 768, 64, 3072)
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    about = FIELDS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_multiple("n_embd", "n_head", self.n_head)

    @property
    def d_head(self) -> int:
        """Width of one attention head, K."""
        return self.n_embd // self.n_head

    @property
    def d_mlp(self) -> int:
        """Width of the hidden layer of each MLP, M."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def _sizes_by_axis(self) -> dict[str, int]:
        return {
            "layer": self.n_layer, "head": self.n_head, "head_kv": self.n_head, "d_model": self.n_embd,
            "d_head": self.d_head, "d_qkv": 3 * self.n_embd, "d_mlp": self.d_mlp, "d_vocab": self.vocab_size,
            "n_ctx": self.n_positions,
        }  # fmt: skip

    def _make_schema(self) -> Schema:
        sizes = tuple(self.sizes.items())
        return schema_of(sizes, tied=self.tie_word_embeddings, upcast=self.reorder_and_upcast_attn)

    def attention_scale(self, block: int) -> float:
        """What the scores of this block are multiplied by: 1/sqrt(d_head), 1/(block + 1), both or neither."""
        scale = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return scale / float(block + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def override(self, **overrides: Any) -> Self:
        """This configuration with some fields replaced; checks them like `from_dict`.

        Raises:
            ConfigError: A field that does not exist: what a file may hold unread is a spelling mistake here.
        """
        made = super().override(**overrides)
        if "n_ctx" in overrides and overrides["n_ctx"] != made.n_positions:
            warn(
                f"n_ctx={overrides['n_ctx']} changes nothing: GPT-2 reads its context length from n_positions "
                f"({overrides.get('n_positions', self.n_positions)}), as in transformers."
            )
        return made
