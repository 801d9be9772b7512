"""`HookedTransformer`: its calls, on a model of pellucid's.

The numbers are the model's own: nothing is folded or centred unless asked for.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pellucid.compat.folding import fold
from pellucid.compat.hooked.activation_cache import ActivationCache
from pellucid.compat.hooked.hook_tap import HookPoint, points_of
from pellucid.compat.hooked.hooked_texts import HookedGeneration
from pellucid.compat.hooked.settings import (
    HookedTransformerConfig,
    as_ours,
    block_of,
    described,
    fresh,
    opened,
    refuse,
)
from pellucid.compat.hooked.stacked_weights import StackedWeights, tree
from pellucid.compat.hooked.utils import lm_cross_entropy_loss
from pellucid.errors import InputError, shown, warn
from pellucid.names.calls import named_arguments
from pellucid.run.model import CkptedTransformer
from pellucid.tap import Chain, StopAfter, Stopped, Tap
from pellucid.text.tokenizer import Tokenizer

ReturnType = Literal["logits", "loss", "both"] | None


class HookedTransformer(HookedGeneration, StackedWeights):
    """A model under HookedTransformer's names.

    Args:
        cfg: A model of pellucid's, or a configuration of which a fresh one is made.
        tokenizer: For texts; the model's own if None.
        default_padding_side: "right" or "left".

    Attributes:
        model: The model.
        cfg: What it is, and which values beside the usual ones are computed.

    Example:
        >>> from pellucid.compat.hooked import HookedTransformer
        >>> model = HookedTransformer.from_pretrained_no_processing("bundled")
        >>> logits, cache = model.run_with_cache("Once upon a time")
        >>> logits.shape, cache["pattern", 0].shape
        (torch.Size([1, 5, 4096]), torch.Size([1, 4, 5, 5]))
    """

    def __init__(
        self,
        cfg: CkptedTransformer | HookedTransformerConfig | dict[str, Any],
        tokenizer: Tokenizer | None = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
        *,
        b_U: Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(cfg, CkptedTransformer):
            self.model, self.cfg = cfg, described(cfg)
        else:
            self.cfg = HookedTransformerConfig.unwrap(cfg)
            self.model = fresh(self.cfg, move_to_device=move_to_device)
        if tokenizer is not None:
            self.model.tokenizer = as_ours(tokenizer)
        if default_padding_side is not None:
            self.default_padding_side = self._side(default_padding_side)
        self.hook_dict = {name: HookPoint(name) for names in points_of(self.model.schema).values() for name in names}
        self.hook_dict["unembed.hook_out"] = HookPoint("unembed.hook_out")
        weight = self.model.unembed.W_U
        bias = weight.new_zeros(weight.shape[1]) if b_U is None else b_U
        for name, module in tree(self.model, self.hook_dict, bias).items():
            self.add_module(name, module)

    @classmethod
    @named_arguments()
    def from_pretrained(
        cls,
        model_name: Any,
        fold_ln: bool | None = None,
        center_writing_weights: bool | None = None,
        center_unembed: bool | None = None,
        refactor_factored_attn_matrices: bool | None = None,
        *,
        fold_value_biases: bool | None = None,
        hf_model: Any = None,
        device: str | torch.device | None = None,
        tokenizer: Any = None,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        dtype: str | torch.dtype | None = None,
        **others: Any,
    ) -> Self:
        """Open a model. Weights are left as they are unless a keyword asks for folding or centring.

        Args:
            model_name: What `pellucid.load` takes, or a model of pellucid's, which stays as it is.
            fold_ln: Whether to fold gains and biases of norms into the matrices that read them.
            center_writing_weights: Whether to centre what writes into the stream.
            center_unembed: Whether to centre the head, which moves all logits of a token by the same number.
            refactor_factored_attn_matrices: Whether each head's factors are made orthogonal, see `pellucid.fold`.
            fold_value_biases: Whether to move value biases into `b_O`.
            hf_model: A transformers model to take instead.
            device: Where to put a model that is opened; the processor if None.
            tokenizer: Ours, or one of transformers'; the model's own if None.
            default_prepend_bos: Whether texts begin with a beginning-of-text token; True if None.
            default_padding_side: "right" if None.
            dtype: As for `pellucid.load`: float32 if None, of `hf_model` its own.
            **others: Further keywords of HookedTransformer's; those that would change numbers are refused.

        Raises:
            InputError: If a keyword is not supported, with the reason.

        Warns:
            PellucidWarning: Folding and centring, which HookedTransformer does by default, were not asked for.
        """
        asked = {"fold_ln": fold_ln, "center_writing_weights": center_writing_weights,
                 "center_unembed": center_unembed, "fold_value_biases": fold_value_biases,
                 "refactor_factored_attn_matrices": refactor_factored_attn_matrices}  # fmt: skip
        if all(value is None for value in asked.values()):
            warn(
                "HookedTransformer.from_pretrained: the weights are left as they are; HookedTransformer itself folds "
                "and centres them by default, and some of its values differ then. Pass fold_ln=True, "
                "center_writing_weights=True, center_unembed=True and fold_value_biases=True for that, or call "
                "from_pretrained_no_processing."
            )
        refuse(others)
        model = opened(model_name, hf_model, device, dtype)
        wanted = [name for name, value in asked.items() if value]
        bias = None
        if wanted:
            folded = fold(model, **{name: bool(value) for name, value in asked.items()})
            model, bias = folded.model, folded.b_U
        hooked = cls(model, as_ours(tokenizer), default_padding_side=default_padding_side, b_U=bias)
        if fold_ln:
            hooked.cfg.normalization_type = f"{hooked.cfg.normalization_type}Pre"
        if default_prepend_bos is not None:
            hooked.cfg.default_prepend_bos = default_prepend_bos
        return hooked

    @classmethod
    @named_arguments()
    def from_pretrained_no_processing(cls, model_name: Any, **options: Any) -> Self:
        """Open a model with its weights as they are. Options as for `from_pretrained`."""
        return cls.from_pretrained(model_name, fold_ln=False, **options)

    def forward(
        self,
        input: Any,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        start_at_layer: int | None = None,
        tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: Any = None,
    ) -> Any:
        """Run the model with the hooks that are set.

        Args:
            input: A text, texts or ids [B, P]; with `start_at_layer`, the stream [B, P, D] that enters that block.
            return_type: "logits" [B, P, V], "loss" in nats, "both", or None.
            loss_per_token: Whether the loss is [B, P-1] instead of its mean.
            prepend_bos: Whether texts begin with a beginning-of-text token; `cfg.default_prepend_bos` if None.
            padding_side: Where shorter texts are filled up.
            start_at_layer: The first block to run.
            tokens: Ids [B, P] of a run that starts at a block, for the loss.
            attention_mask: [B, P], 1 at real tokens.
            stop_at_layer: The first block not to run; the stream that would enter it is returned.
            past_kv_cache: Not supported.

        Raises:
            InputError: If an argument is not supported, or an input cannot be run.
        """
        if past_kv_cache is not None:
            raise InputError(
                "HookedTransformer: past_kv_cache= is not supported.",
                code="hooked-unsupported",
                remedy="Call model.generate, which keeps keys and values, or model.model(ids, "
                "cache=pl.KeyValueCache(model.model.config)).",
            )
        layers = self.cfg.n_layers
        start = None if start_at_layer is None else block_of(start_at_layer, layers, "start_at_layer")
        stop = None if stop_at_layer is None else block_of(stop_at_layer, layers, "stop_at_layer")
        if start is not None and stop is None and tokens is None and return_type in ("loss", "both"):
            raise InputError(
                f"HookedTransformer: return_type={return_type!r} of a run that starts at a block, whose tokens are not "
                "known.",
                code="hooked-return-type",
                remedy="Give tokens=, the ids [B, P] of which the loss is; or return_type='logits'.",
            )
        if start is None:
            ids = self._ids(input, prepend_bos, padding_side)
        else:
            ids = torch.zeros(input.shape[:2], dtype=torch.long, device=input.device) if tokens is None else tokens
        mask = self.mask_of(ids, padding_side, prepend_bos) if attention_mask is None else attention_mask
        batch = self.model.tokenize(ids, mask=mask)
        begin = None if start is None else (f"blocks.{start}.resid_pre", input)
        if stop is not None:
            return self._until(batch, begin, stop)
        logits = self._logits(batch, self.hooks_tap(), start_at=begin)
        if return_type == "logits":
            return logits
        if return_type is None:
            return None
        masked = attention_mask if attention_mask is not None or bool(mask.all()) else mask
        loss = self.loss_fn(logits, batch.ids, masked, per_token=loss_per_token)
        if return_type == "loss":
            return loss
        if return_type == "both":
            return logits, loss
        raise InputError(
            f"HookedTransformer: return_type={shown(return_type)}, expected 'logits', 'loss', 'both' or None.",
            code="hooked-return-type",
            remedy="Give one of these.",
        )

    def loss_fn(
        self, logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
    ) -> Tensor:
        """Mean negative log-likelihood of the next tokens in nats, or that of each, [B, P-1]."""
        return lm_cross_entropy_loss(logits, tokens.to(logits.device), attention_mask, per_token)

    def run_with_cache(
        self, *model_args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **options: Any
    ) -> tuple[Any, Any]:
        """Run the model and keep its values; further arguments as for `HookedRootModule.run_with_cache`.

        Args:
            *model_args: As for a run.
            return_cache_object: Whether to return an `ActivationCache` instead of a dictionary.
            remove_batch_dim: Whether to take the only row of each value.
            **options: `names_filter`, `pos_slice`, `incl_bwd` and the others, and arguments of the run by name.

        Returns:
            What the run returned, and the values.
        """
        out, kept = super().run_with_cache(*model_args, **options)
        cache = ActivationCache(kept, self)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return out, cache if return_cache_object else cache.cache_dict

    def input_to_embed(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """The stream that enters the first block [B, P, D], the ids, None, and the mask if there are pads."""
        ids = self._ids(input, prepend_bos, padding_side)
        mask = self.mask_of(ids, padding_side, prepend_bos)
        stream = self.forward(ids, stop_at_layer=0, attention_mask=mask)
        return stream, ids, None, None if bool(mask.all()) else mask

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model, as torch does."""
        moved = super().to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = self.model.device, self.model.dtype
        return moved

    def _until(self, batch: Any, begin: Any, stop: int) -> Tensor:
        """The stream that enters a block, without running it or the hooks on what enters it."""
        inner = self.cfg.n_layers
        name = f"blocks.{stop}.resid_pre" if stop < inner else f"blocks.{inner - 1}.resid_post"
        held, hooks = _Holding(name), self.hooks_tap()
        hooked: list[Tap] = [] if hooks is None else [hooks]
        ends: list[Tap] = [held, StopAfter(name)]
        with contextlib.suppress(Stopped):
            self.model(batch, tap=Chain([*ends, *hooked] if stop < inner else [*hooked, *ends]), start_at=begin)
        return held.value


class _Holding:
    """The tap that keeps one value."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.value = torch.empty(0, device="cpu")

    def wants(self, name: str) -> bool:
        return name == self._name

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.value = value
        return value
