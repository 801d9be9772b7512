"""The helpers of `transformer_lens.utils` that code for HookedTransformer calls: its words for values and slices of
them, losses and draws from logits, and what prints how likely an answer is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pellucid.check import as_number, as_whole
from pellucid.compat.hooked.hooked_factored import FactoredMatrix, composition_scores
from pellucid.errors import InputError, UnknownNameError, shown
from pellucid.numerics.nonlinear import gelu_new

if TYPE_CHECKING:
    from pellucid.compat.hooked.transformer import HookedTransformer

__all__ = [
    "FactoredMatrix", "Slice", "composition_scores", "gelu_new", "get_act_name", "get_corner", "get_device",
    "lm_accuracy", "lm_cross_entropy_loss", "remove_batch_dim", "sample_logits", "test_prompt", "to_numpy", "transpose",
]  # fmt: skip

_LAYER_TYPES = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}
_VALUES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v", "mlp_pre": "pre",
    "mlp_post": "post",
}  # fmt: skip
_PLACES = {
    **dict.fromkeys(("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"), "attn"),
    **dict.fromkeys(("pre", "post", "pre_linear"), "mlp"),
}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of a hook point.

    Args:
        name: A full name, which is returned, or a short one, such as "k", "pattern6" or "scale4ln1".
        layer: The block.
        layer_type: "attn" ("a"), "mlp" ("m"), "ln1" or "ln2", if a block has several values of that name.

    Example:
        >>> from pellucid.compat.hooked import utils
        >>> utils.get_act_name("k", 6, "a"), utils.get_act_name("pre5"), utils.get_act_name("scale4ln1")
        ('blocks.6.attn.hook_k', 'blocks.5.mlp.hook_pre', 'blocks.4.ln1.hook_scale')
        >>> utils.get_act_name("embed"), utils.get_act_name("normalized")
        ('hook_embed', 'ln_final.hook_normalized')
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnknownNameError(
            f"no such hook point: {shown(name)}.",
            code="unknown-hook-point",
            remedy="Give the name first, then the block: ('pattern', 0).",
        )
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if match := re.fullmatch(r"([a-z_]+)(\d+)([a-z]?.*)", name):
        name, layer, layer_type = match[1], match[2], match[3] or layer_type
    name = _VALUES.get(name, name)
    place = _PLACES.get(name) or _LAYER_TYPES.get(layer_type or "", layer_type or "")
    if name in ("scale", "normalized") and layer is None:
        place = place or "ln_final"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{place}{'.' if place else ''}hook_{name}"


class Slice:
    """Entries along one axis: a number drops the axis, a tuple is a range, a list chooses, None keeps everything.

    Args:
        input_slice: 3; (stop,), (start, stop) or (start, stop, step); a slice; a list, array or tensor of indices or
            of booleans; None.

    Attributes:
        mode: "int", "slice", "array" or "identity".

    Example:
        >>> import torch
        >>> from pellucid.compat.hooked.utils import Slice
        >>> Slice((1, 3)).apply(torch.arange(5)), Slice(-1).apply(torch.arange(5))
        (tensor([1, 2]), tensor(4))
    """

    def __init__(self, input_slice: Any = None) -> None:
        self.slice: Any
        if isinstance(input_slice, tuple) and 0 < len(input_slice) < 4:
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, int) and not isinstance(input_slice, bool):
            self.slice, self.mode = input_slice, "int"
        elif isinstance(input_slice, (list, Tensor, np.ndarray)) and np.asarray(input_slice).dtype.kind in "biu":
            self.slice, self.mode = np.asarray(input_slice), "array"
        elif input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        else:
            raise InputError(
                f"Slice: {shown(input_slice)} given, expected a number, a tuple, a list or None.",
                code="slice-kind",
                remedy="Give -1 for the last position, (1, 4) for a range, or [0, 2] for some.",
            )

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The chosen entries along an axis of a tensor."""
        index: list[Any] = [slice(None)] * tensor.dim()
        index[dim] = torch.as_tensor(self.slice, device=tensor.device) if self.mode == "array" else self.slice
        try:
            return tensor[tuple(index)]
        except (IndexError, TypeError) as error:
            raise InputError(
                f"Slice: {shown(self.slice)} along an axis of {tensor.size(dim)}: {error}.",
                code="slice-kind",
                remedy="Give numbers of entries that exist; negative ones count from the end.",
            ) from error

    def indices(self, max_ctx: int | None = None) -> np.ndarray[Any, Any]:
        """The indices that are chosen along an axis of this length; the length is not needed for one number."""
        if self.mode == "int":
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise InputError(
                "Slice.indices: no length, which a range or a choice needs.",
                code="slice-without-length",
                remedy="Give max_ctx=, the length of the axis.",
            )
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    def __repr__(self) -> str:
        return f"Slice({self.slice!r}, mode={self.mode!r})"

    @classmethod
    def of(cls, slice_input: Any) -> Slice:
        """A slice, which may be one already."""
        return slice_input if isinstance(slice_input, Slice) else cls(slice_input)

    @classmethod
    def unwrap(cls, slice_input: Any) -> Slice:
        """A slice that keeps its axis: one number is a choice of one."""
        if isinstance(slice_input, Slice):
            return slice_input
        return cls([slice_input] if isinstance(slice_input, int) and not isinstance(slice_input, bool) else slice_input)


def lm_cross_entropy_loss(
    logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
) -> Tensor:
    """Negative log-likelihood of the next tokens in nats.

    Args:
        logits: [B, P, V].
        tokens: [B, P].
        attention_mask: [B, P], 1 at real tokens; pads count as zero.
        per_token: Whether to return [B, P-1] instead of the mean.
    """
    logprobs = logits[..., :-1, :].log_softmax(-1).gather(-1, tokens[..., 1:, None])[..., 0]
    count: Tensor | int = logprobs.numel()
    if attention_mask is not None:
        real = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
        logprobs, count = logprobs * real, real.sum()
    return -logprobs if per_token else -logprobs.sum() / count


def lm_accuracy(logits: Tensor, tokens: Tensor, per_token: bool = False) -> Tensor:
    """Share of the next tokens that are the likeliest, or whether each is, [B, P-1]."""
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return right if per_token else right.sum() / right.numel()


def sample_logits(
    final_logits: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    tokens: Tensor | None = None,
) -> Tensor:
    """Draw ids [B] from logits [B, V], by torch's global generator; the likeliest at temperature 0.

    Args:
        final_logits: [B, V].
        top_k: Keep the likeliest so many.
        top_p: Keep the likeliest that make up this probability, the one that reaches it included; not beside top_k.
        temperature: What logits are divided by.
        freq_penalty: What each earlier occurrence of a token takes off its logit.
        tokens: [B, P], the earlier ones.

    Raises:
        InputError: If a value is outside its range.
    """
    share, penalty = as_number(1 if top_p is None else top_p), as_number(freq_penalty)
    least = as_whole(1 if top_k is None else top_k)
    heat = as_number(temperature)
    if heat is None or share is None or penalty is None or not (heat >= 0 and 0 < share <= 1 and (least or 0) >= 1):
        raise InputError(
            f"sample_logits: temperature={shown(temperature)}, top_k={shown(top_k)}, top_p={shown(top_p)}, "
            f"freq_penalty={shown(freq_penalty)}.",
            code="sampling-range",
            remedy="Give temperature 0 or more, top_k 1 or more, and top_p above 0 and at most 1.",
        )
    if temperature == 0:
        return final_logits.argmax(-1)
    logits = final_logits / temperature
    if freq_penalty > 0 and tokens is not None:
        logits = logits - freq_penalty * torch.stack([row.bincount(minlength=logits.shape[-1]) for row in tokens])
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0  # the likeliest is always kept
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return torch.distributions.Categorical(logits=logits.float()).sample()


def to_numpy(tensor: Any) -> np.ndarray[Any, Any]:
    """A tensor, list, number or array as an array."""
    return tensor.detach().cpu().numpy() if isinstance(tensor, Tensor) else np.asarray(tensor)


def get_corner(tensor: Any, n: int = 3) -> Tensor:
    """The first entries of every axis of a tensor or a factored matrix."""
    return tensor.get_corner(n) if isinstance(tensor, FactoredMatrix) else tensor[(slice(n),) * tensor.dim()]


def transpose(tensor: Tensor) -> Tensor:
    """[..., A, B] -> [..., B, A]."""
    return tensor.mT


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """[1, ...] -> [...]; a tensor of several rows as it is."""
    return tensor.squeeze(0) if tensor.shape[0] == 1 else tensor


def get_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_prompt(
    prompt: str,
    answer: str | list[str],
    model: HookedTransformer,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> None:
    """Print how likely a prompt makes an answer: its rank, logit and probability, token by token, and the top tokens.

    Args:
        prompt: What stands before the answer.
        answer: The answer, or several whose first tokens are compared.
        model: What runs.
        prepend_space_to_answer: Whether to put a space before an answer that has none.
        print_details: Whether to print more than the ranks.
        prepend_bos: Whether the prompt begins with a beginning-of-text token.
        top_k: How many likeliest tokens.
    """
    given = [answer] if isinstance(answer, str) else list(answer)
    answers = [f" {one}" if prepend_space_to_answer and not one.startswith(" ") else one for one in given]
    rows = [model.to_tokens(one, prepend_bos=False)[0].tolist() for one in answers]
    before = model.to_tokens(prompt, prepend_bos)[0].tolist()
    pieces, several = [model.tokenizer.pieces(row) for row in rows], len(rows) > 1
    if print_details:
        print("Tokenized prompt:", model.tokenizer.pieces(before))
        print(f"Tokenized answer{'s' if several else ''}:", pieces if several else pieces[0])
    rows = [row[:1] for row in rows] if several else rows
    with torch.no_grad():
        logits = model(torch.tensor([before + row for row in rows], device=model.model.device))
    ranks: list[list[tuple[str, int]]] = []
    for step in range(len(rows[0])):
        here = logits[:, len(before) + step - 1]
        order = here.argsort(-1, descending=True)
        ranks.append([
            (pieces[i][step], int((order[i] == row[step]).nonzero())) for i, row in enumerate(rows)
        ])  # fmt: skip
        if print_details:
            print(f"Performance on answer token{'s' if several else ''}:")
            for i, (piece, rank) in enumerate(ranks[-1]):
                print(f"Rank: {rank:<8} {_chance(here[i], rows[i][step])} Token: |{piece}|")
            for place in range(top_k):
                token = int(order[0, place])
                print(f"Top {place}th token. {_chance(here[0], token)} Token: |{model.tokenizer.pieces([token])[0]}|")
    print("Ranks of the answer tokens:", ranks if several else [one[0] for one in ranks])


def _chance(logits: Tensor, token: int) -> str:
    """A token's logit and probability, of logits [V]."""
    return f"Logit: {logits[token]:5.2f} Prob: {logits.softmax(-1)[token]:6.2%}"


test_prompt.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  (no test, though pytest might think so)
