"""Tensors that are not weights of a model: what each of them is, and whether the model computes the same without it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.errors import WeightsError, printable, some
from pellucid.family.families import one_of_them


@dataclass(frozen=True)
class Foreign:
    """Tensors of another kind of model, told by their names."""

    pattern: str  # what the names match
    what: str  # the end of the sentence "holds ..."
    remedy: str  # how to get what this library reads

    def has(self, name: str) -> bool:
        """Whether a tensor's name is one of these."""
        return re.search(self.pattern, name) is not None


_MERGE = (
    "Merge them with PEFT: model = PeftModel.from_pretrained(base, folder).merge_and_unload(), then save that model. "
    "Prompts and prefixes cannot be merged: open the base model, without them."
)
_FAMILIES = "ONE OF THE FAMILIES"
"""Stands in a remedy for the registered families, which are not read for a table."""

_PLAIN = f"Use the weights of {_FAMILIES} as its authors describe it."
_CONVERT = "Convert the weights to a folder as transformers writes it, and open that."

TENSORFLOW_REMEDY = (
    "transformers 4 converts it (its module convert_gpt2_original_tf_checkpoint_to_pytorch); or open "
    "openai-community/gpt2, which holds the same weights."
)

DEEPSPEED_REMEDY = (
    "Join its parts with the script that DeepSpeed put beside them: python zero_to_fp32.py folder folder/joined, and "
    "put config.json there."
)

MEGATRON_REMEDY = (
    "transformers 4 converts them (its script convert_megatron_gpt2_checkpoint.py); open the folder that it writes."
)

ADAPTERS = Foreign(
    r"lora_|(^|[._])lora([._]|$)|hada_w|lokr_|\.ia3_|oft_[rRsS]|vera_lambda|hra_u|fourierft_|ln_tuning_|shira_"
    r"|(^|\.)(bone|miss|road|waveft|delora|gralora|c3a|vblora|trainable_tokens|adaption)_|prompt_encoder"
    r"|modules_to_save|\.original_module\.|prompt_embeddings|prefix_encoder|(^|[._])adapters?([._]|$)",
    "adapters (PEFT) that are not merged into the weights",
    _MERGE,
)
"""What changes every matrix that it lies beside."""

QUANTIZED = Foreign(
    r"qweight|qzeros|(^|\.)g_idx$|absmax|_amax$|quant_map|quant_state|\.SCB$|weight_format$|\.weight_scale|_scale_inv$"
    r"|(^|[._])(weight|input|output|activation|act|[qkv])_(\w+_)?scale$"
    r"|(^|\.)scale_(weight|input)$|(attn|proj|fc|linear|dense|head)\.scale$|^scaled_fp8$"
    r"|(^|\.)(scales|biases|codes|codebooks|W_q|dense_weights|row_offsets)$|_(blocks|scales)$|\.weight\._data$"
    r"|zero_point|_packed_params|\.weight_packed$|nested_absmax",
    "quantized weights (GPTQ, AWQ, bitsandbytes, FP8 with scales or torch's own)",
    "Give the weights from before they were quantized; or dequantize them with transformers: "
    "model = AutoModelForCausalLM.from_pretrained(folder); model.dequantize().save_pretrained(other).",
)

MEGATRON = Foreign(
    r"query_key_value|language_model\.(embedding|encoder|transformer)|self_attention\.linear_qkv",
    "the names of Megatron-LM or GPT-NeoX, whose heads are interleaved",
    MEGATRON_REMEDY,
)

KINDS = (
    ADAPTERS,
    QUANTIZED,
    Foreign(
        r"(^|\.)fp32_flat_groups|(^|\.)single_partition_of_fp32|^exp_avg(_sq)?$|^state\.\d+\.exp_avg",
        "the state of an optimizer, without a model", "Give the file of the model that was saved beside it.",
    ),
    Foreign(
        r"_?flat_param(_\d+)?$|flat_param_",
        "parts of FSDP, in which the weights lie flattened",
        "Save the full state dict: FullStateDictConfig in FSDP.state_dict_type, then torch.save.",
    ),
    Foreign(
        r"parametrizations\.|(^|\.)weight_(orig|mask|g|v)$|(^|\.)bias_(orig|mask)$",
        "weights that are computed from others (torch's parametrizations, pruning or weight norm)",
        "Make them permanent before saving: torch.nn.utils.prune.remove(module, 'weight'), or "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight').",
    ),
    Foreign(r"cross_?attention|ln_cross_attn|q_attn", "cross-attention, which is not implemented", _PLAIN),
    Foreign(
        r"rotary|inv_freq|(^|\.)alibi|(^|\.)slopes$|rel_pos|relative_",
        "other position embeddings than the model's, which are not implemented",
        _PLAIN,
    ),
    Foreign(r"^(token_embd|blk|output_norm)\.", "GGUF's names", _CONVERT),
    Foreign(
        r"^(model/)?(h\d+|ln_f)/|^model/w[tp]e$", "the names of OpenAI's TensorFlow release",
        TENSORFLOW_REMEDY,
    ),
    MEGATRON,
    Foreign(
        r"\.kernel$|(^|\.)w[tp]e\.embedding$|\.scale$", "Flax's names and order of axes",
        "transformers 4 converts it: GPT2LMHeadModel.from_pretrained(folder, from_flax=True).save_pretrained(other).",
    ),
    Foreign(
        r"self_attn\.[qkv]_proj|attn\.attention\.|encoder\.layer\.\d+|attention\.self\.|\.attn\.[qkv]_proj|experts\.",
        "the layers of another architecture", f"Give the weights of {_FAMILIES}; no other is read.",
    ),
)  # fmt: skip
"""Every kind of weights whose names are known and that is not read."""

_HEADS = re.compile(
    r"(^|\.)(score|classifier|classification_head|qa_outputs|multiple_choice_head|v_head|value_head|reward_head|"
    r"reward_model_head|critic_head|regression_head|summary|mc_head|cls_head|rank_head|pooler)\b"
)
_BLOCK = re.compile(r"(^|\.)(h|blocks|layers?)\.\d+\.")
_MASKS = re.compile(
    r"(^|\.)att(n|ention)\.(bias|masked_bias|mask|IGNORE|tril|causal_mask)$|(^|\.)(position_ids|causal_mask|mask)$"
)


def kind_of(names: Iterable[str]) -> tuple[Foreign, list[str]] | None:
    """The first kind of foreign weights that these names belong to, and those names; None for none."""
    short = [name for name in names if len(name) < 1000]
    for kind in KINDS:
        found = [name for name in short if kind.has(name)]
        if found:
            return kind, found
    return None


def refuse_foreign(names: Iterable[str]) -> None:
    """Refuse weights of another kind by what they are."""
    found = kind_of(names)
    if found is not None:
        kind, those = found
        raise WeightsError(
            f"weights: hold {kind.what}: {listed(those, 3)}.",
            code="weights-foreign",
            remedy=kind.remedy.replace(_FAMILIES, one_of_them()),
        )


_PACKED = {getattr(torch, "float4_e2m1fn_x2", None)}
"""Two numbers in a byte, which are no more than indices of scales."""


def refuse_numbers(weights: Mapping[str, Tensor], how: str) -> None:
    """Refuse weights that are no floating-point numbers: in eight bits and without their scales they are others."""
    others = {name: t.dtype for name, t in weights.items() if not t.is_floating_point() or t.dtype in _PACKED}
    said = listed([f"{name} is {dtype}" for name, dtype in others.items()], 3)
    if any(dtype.itemsize == 1 and dtype != torch.bool for dtype in others.values()):
        raise WeightsError(f"weights: hold {QUANTIZED.what}: {said}.", code="weights-foreign", remedy=QUANTIZED.remedy)
    if others:
        raise WeightsError(
            f"weights: {said}, expected floating point.",
            code="weights-misshapen",
            remedy="If these are the numbers themselves, convert them: pl.load({name: tensor.real.float() for name, "
            f"tensor in tensors.items()}}, config=...), with tensors = {how}.",
        )


def refuse_empty(weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights without numbers, which a process of ZeRO-3 saves when the numbers lie with all of them."""
    found = [name for name, tensor in weights.items() if tensor.shape == (0,) != expected[name]]
    if found:
        raise WeightsError(
            f"weights: {listed(found, 3)} hold no numbers: this file was saved by one of several processes "
            "(DeepSpeed's ZeRO-3), and the numbers are in the parts beside it.",
            code="weights-foreign",
            remedy=f"{DEEPSPEED_REMEDY} Or save again with stage3_gather_16bit_weights_on_model_save.",
        )


def harmless(name: str, tensor: Tensor) -> str | None:
    """Why a tensor may be left out without changing the language model; None if it may not."""
    if _HEADS.search(name) and not _BLOCK.search(name):
        return "a head for another task"
    if _MASKS.search(name) and is_mask(tensor):
        return "a causal mask, or positions, which are computed"
    if tensor.numel() == 0:
        return "no numbers"
    if tensor.numel() == 1 and not (tensor.is_floating_point() or tensor.is_complex()):
        return "a whole number, such as a count of steps"
    if name.endswith(("bias", ".b", "b_U")) and not bool(tensor.any()):
        return "a bias of zeros"
    return None


def is_mask(tensor: Tensor) -> bool:
    """Whether a tensor is the causal mask, the number that it masks with, or positions from 0 on."""
    if tensor.numel() == 1 and tensor.dim() < 2:
        return True
    flat = tensor.reshape(-1)
    if bool((flat.double() == torch.arange(flat.numel())).all()):
        return True
    square = tensor.reshape(-1, tensor.shape[-1])
    if square.shape[0] != square.shape[1]:
        return False
    lower = torch.ones(square.shape, dtype=torch.bool).tril()
    if tensor.dtype.is_floating_point and bool((square[lower] == 0).all()):  # added to the scores
        return bool((square[~lower] <= -1e4).all())
    return torch.equal(square != 0, lower) and bool((square[lower] == 1).all())


def reason_of(name: str) -> str:
    """What a tensor is known to be, in brackets, for a list of names; "" if its name says nothing."""
    if name.endswith("lm_head.bias"):
        return " (the head is not a plain linear map without bias)"
    if _MASKS.search(name):
        return " (a mask that is not the causal one)"
    found = kind_of([name])
    return "" if found is None else f" ({found[0].what})"


def described(left_out: Mapping[str, str]) -> str:
    """What was left out, and why, in one line: reason by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return printable("; ".join(f"{some(names, 1)} ({why})" for why, names in reasons.items()))


def listed(items: Sequence[str], most: int = 12, separator: str = ", ") -> str:
    """Names in one line: no more of them and no longer ones than a reader can take in."""
    cut = [item if len(item) <= 200 else f"{item[:120]} ... {item[-60:]}" for item in items[:most]]
    rest = len(items) - most
    return printable(separator.join(cut) + (f"{separator}and {rest} more" if rest > 0 else ""))
