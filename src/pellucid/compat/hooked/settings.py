"""HookedTransformer's configuration: the facts of a model under its names, and where a model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, cast

import tokenizers
import torch

from pellucid.check import as_whole
from pellucid.errors import ConfigError, InputError, shown
from pellucid.family.blocks import Norm
from pellucid.family.families import config_of, family_of
from pellucid.family.json_config import Config
from pellucid.open import from_hf, load
from pellucid.run.model import CkptedTransformer
from pellucid.text.borrowed import Tokenizes, complete
from pellucid.text.tokenizer import Tokenizer
from pellucid.weights.load import parse_dtype


@dataclass
class HookedTransformerConfig:
    """What a model is, in HookedTransformer's words.

    As an argument of `HookedTransformer` it describes a fresh model of GPT-2's form.

    Attributes:
        use_attn_result: Whether `attn.hook_result` is computed, [B, P, H, D]; so for the next three.
        use_split_qkv_input: Whether `hook_q_input`, `hook_k_input` and `hook_v_input` are.
        use_attn_in: Whether `hook_attn_in` is.
        use_hook_mlp_in: Whether `hook_mlp_in` is.
        default_prepend_bos: Whether a beginning-of-text token is put before texts.

    Example:
        >>> from pellucid.compat.hooked import HookedTransformer, HookedTransformerConfig
        >>> cfg = HookedTransformerConfig(n_layers=2, d_model=32, n_ctx=16, d_head=8, d_vocab=50, act_fn="relu")
        >>> HookedTransformer(cfg).W_Q.shape
        torch.Size([2, 4, 32, 8])
    """

    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    model_name: str = "custom"
    n_heads: int = -1
    d_mlp: int | None = None
    act_fn: str | None = None
    d_vocab: int = -1
    tokenizer_name: str | None = None
    eps: float = 1e-5
    use_attn_result: bool = False
    use_attn_scale: bool = True
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    original_architecture: str | None = None
    attn_only: bool = False
    seed: int | None = None
    initializer_range: float = -1.0
    init_weights: bool = True
    normalization_type: str | None = "LN"
    positional_embedding_type: str = "standard"
    attention_dir: str = "causal"
    final_rms: bool = False
    gated_mlp: bool = False
    d_vocab_out: int = -1
    n_key_value_heads: int | None = None
    parallel_attn_mlp: bool = False
    default_prepend_bos: bool = True
    tokenizer_prepends_bos: bool = False
    device: str | torch.device | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head
        if self.d_mlp is None and not self.attn_only:
            self.d_mlp = 4 * self.d_model
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / self.d_model**0.5

    @classmethod
    def unwrap(cls, config: HookedTransformerConfig | dict[str, Any]) -> HookedTransformerConfig:
        """A configuration, which may be given as a dictionary."""
        return cls.from_dict(config) if isinstance(config, dict) else config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> Self:
        """A configuration from a dictionary of its fields."""
        known = {field.name for field in fields(cls)}
        unknown = [name for name in config_dict if name not in known]
        if unknown:
            raise ConfigError(
                f"cfg: {', '.join(unknown)}: fields that are not known here.",
                code="hooked-config",
                remedy=f"Leave them out. The fields are {', '.join(sorted(known))}.",
            )
        return cls(**config_dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def attn_scale(self) -> float:
        """What scores are divided by."""
        return self.d_head**0.5 if self.use_attn_scale else 1.0

    @property
    def n_params(self) -> int:
        """Numbers in the matrices of the blocks, as HookedTransformer counts them."""
        heads = self.n_layers * self.d_model * self.d_head * self.n_heads * 4
        matrices = 3 if self.gated_mlp else 2
        return heads + (0 if self.attn_only else self.n_layers * self.d_model * (self.d_mlp or 0) * matrices)

    def to_pellucid(self) -> Config:
        """The configuration of a fresh GPT-2 of these sizes, whose head is a matrix of its own."""
        plain = {
            "attn_only": False, "normalization_type": "LN", "positional_embedding_type": "standard",
            "attention_dir": "causal", "final_rms": False, "gated_mlp": False, "parallel_attn_mlp": False,
            "n_key_value_heads": None, "d_vocab_out": self.d_vocab, "d_head": self.d_model // self.n_heads,
        }  # fmt: skip
        other = [f"{name}={getattr(self, name)!r}" for name, value in plain.items() if getattr(self, name) != value]
        if self.act_fn is None or self.d_vocab < 1:
            other.append(f"act_fn={self.act_fn!r} and d_vocab={self.d_vocab!r}")
        if other:
            raise ConfigError(
                f"cfg: {', '.join(other)}; a fresh model here has GPT-2's form.",
                code="hooked-config",
                remedy="Give act_fn= and d_vocab=, and leave the other fields as they are by default. Small models of "
                "other forms are built from the modules of pellucid.gpt2.",
            )
        return config_of({
            "model_type": "gpt2", "vocab_size": self.d_vocab, "n_positions": self.n_ctx, "n_embd": self.d_model,
            "n_layer": self.n_layers, "n_head": self.n_heads, "n_inner": self.d_mlp,
            "activation_function": self.act_fn, "layer_norm_epsilon": self.eps,
            "scale_attn_weights": self.use_attn_scale, "tie_word_embeddings": False,
            "initializer_range": self.initializer_range, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
        })  # fmt: skip


def described(model: CkptedTransformer) -> HookedTransformerConfig:
    """A model of any family in HookedTransformer's words."""
    sizes, schema, config = model.schema.sizes, model.schema, model.config
    grouped = sizes["head_kv"] != sizes["head"]
    centred = cast(Norm, model.get_submodule("ln_final")).centres
    return HookedTransformerConfig(
        n_layers=len(schema.blocks),
        d_model=sizes["d_model"],
        n_ctx=sizes["n_ctx"],
        d_head=sizes["d_head"],
        model_name=model.provenance.get("source", "custom"),
        tokenizer_name=None if model.tokenizer is None else model.provenance.get("source", "custom"),
        n_heads=sizes["head"],
        d_mlp=sizes["d_mlp"],
        act_fn=config.activation,
        d_vocab=sizes["d_vocab"],
        eps=config.epsilon,
        use_attn_scale=config.to_dict().get("scale_attn_weights", True),
        original_architecture=family_of(config).in_transformers.model,
        initializer_range=config.initializer_range,
        normalization_type="LN" if centred else "RMS",
        positional_embedding_type="standard" if "ckpt_pos_embed" in schema else "rotary",
        final_rms=not centred,
        gated_mlp="mlp.ckpt_gate" in schema.in_blocks,
        n_key_value_heads=sizes["head_kv"] if grouped else None,
        parallel_attn_mlp=bool(schema.blocks) and schema.is_parallel(0),
        device=model.device,
        dtype=model.dtype,
    )


_WITHOUT_EFFECT = ("move_to_device", "n_devices", "checkpoint_index", "checkpoint_value", "trust_remote_code")
"""Keywords that change nothing here if they have their usual value."""


def fresh(cfg: HookedTransformerConfig, *, move_to_device: bool) -> CkptedTransformer:
    """A model with random weights, by the configuration's seed."""
    with torch.random.fork_rng(enabled=cfg.seed is not None):
        if cfg.seed is not None:
            torch.manual_seed(cfg.seed)
        made = CkptedTransformer(cfg.to_pellucid())
    made = made.to(cfg.dtype)
    return made.to(cfg.device) if cfg.device is not None and move_to_device else made


def opened(name: Any, hf_model: Any, device: Any, dtype: Any) -> CkptedTransformer:
    """The model that is meant: transformers', one of ours, or what `pellucid.load` opens."""
    wanted = None if dtype is None else parse_dtype(dtype)
    if hf_model is not None:
        return from_hf(hf_model).to(device="cpu" if device is None else device, dtype=wanted)
    if not isinstance(name, CkptedTransformer):
        return load(name, device="cpu" if device is None else device, dtype="float32" if dtype is None else dtype)
    asked = {"device": None if device is None else torch.empty(0, device=device).device, "dtype": wanted}
    other = [word for word, value in asked.items() if value not in (None, getattr(name, word))]
    if other:
        raise InputError(
            f"HookedTransformer.from_pretrained: {other[0]}={asked[other[0]]}, but the model that was given is on "
            f"{name.device} in {name.dtype} and stays as it is.",
            code="hooked-unsupported",
            remedy=f"Leave {other[0]}= out, and move the model before: model.to({other[0]}=...).",
        )
    return name


def block_of(number: Any, layers: int, what: str) -> int:
    """A block counted from 0; the number of blocks stands for the end."""
    found = as_whole(number)
    if found is None or not -layers <= found <= layers:
        raise InputError(
            f"{what}={shown(number)}, expected a block from 0 to {layers}.",
            code="hooked-layer",
            remedy="Negative ones count from the end.",
        )
    return found % layers if found < 0 else found


def as_ours(given: Any) -> Any:
    """A tokenizer of ours, one of transformers' or of the tokenizers library as ours, or one of the caller's own."""
    if given is None or isinstance(given, Tokenizer):
        return given
    backend = given if isinstance(given, tokenizers.Tokenizer) else getattr(given, "backend_tokenizer", None)
    if backend is None and isinstance(cast(object, given), Tokenizes):
        return complete(given)
    if backend is None:
        raise InputError(
            f"tokenizer: {type(given).__name__} given, expected pl.Tokenizer or an object with encode and decode.",
            code="hooked-tokenizer",
            remedy="Open it with pl.Tokenizer.from_folder(folder), or with transformers.AutoTokenizer.",
        )
    return Tokenizer(type(backend).from_str(backend.to_str()))


def refuse(others: Mapping[str, Any]) -> None:
    """Refuse keywords that would change numbers."""
    for name, value in others.items():
        if value not in (None, False) and not (name in _WITHOUT_EFFECT and value in (True, 1)):
            raise InputError(
                f"HookedTransformer.from_pretrained: {name}={shown(value)} is not supported.",
                code="hooked-unsupported",
                remedy=f"Leave {name}= out.",
            )
