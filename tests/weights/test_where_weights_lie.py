"""One model, saved as trainers and wrappers save it: under any key, behind any prefix, with anything beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)

import pellucid as pl
from weights.checkpoints import (
    config_of,
    hf_dict,
    hooked_dict,
    nanogpt_dict,
    own_dict,
    same_logits,
    save_folder,
    save_nanogpt,
    small_hf,
)

HF = small_hf()
"""Read by every test here, written by none."""
Dict = dict[str, Any]


def under(prefix: str, base: Dict | None = None) -> Dict:
    return {prefix + name: tensor for name, tensor in (base or hf_dict(HF)).items()}


def bare(prefix: str) -> Dict:
    """The model without its head."""
    return {
        prefix + name.removeprefix("transformer."): tensor.clone()
        for name, tensor in hf_dict(HF).items()
        if name != "lm_head.weight"
    }


def inside(segment: str) -> Dict:
    """Wrapped blocks and modules: the segment stands behind every number and before every last word."""
    wrapped: Dict = {}
    for name, tensor in hf_dict(HF).items():
        parts = name.split(".")
        at = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), 1)
        wrapped[".".join([*parts[:at], segment, *parts[at:-1], segment, parts[-1]])] = tensor
    return wrapped


def modules(tensors: Dict) -> Dict:
    """A mapping for every module, one within the other."""
    tree: Dict = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tensor
    return tree


def masks(size: int, dtype: torch.dtype) -> Dict:
    mask = torch.ones(size, size).tril().view(1, 1, size, size).to(dtype)
    return {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(2)} | {
        f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)
    }


OPTIMIZER: Dict = {
    "state": {i: {"exp_avg": tensor, "step": 5} for i, tensor in enumerate(hf_dict(HF).values())},
    "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1]}],
}
NAMED: Dict = {"state": {name: {"exp_avg": tensor} for name, tensor in hf_dict(HF).items()}}

READ: dict[str, Callable[[], Any]] = {
    **{
        f"under {key}": lambda key=key: {key: hf_dict(HF), "optimizer": OPTIMIZER, "step": 5}
        for key in ("module", "state", "model_state_dict", "params", "weights", "net", "anything at all")
    },
    "two levels down": lambda: {"a": {"b": hf_dict(HF), "n": 3}, "epoch": 2},
    "in a list": lambda: {"models": [hf_dict(HF)]},
    "optimizer with names": lambda: {"model": hf_dict(HF), "optimizer": NAMED, "optim": {"exp_avg": hf_dict(HF)}},
    "one dict under two keys": lambda: dict.fromkeys(("model", "state_dict"), hf_dict(HF)),
    "equal dicts": lambda: {"model": hf_dict(HF), "state_dict": hf_dict(HF)},
    "whole numbers among the tensors": lambda: {**hf_dict(HF), "_step": 7, "lr": 0.1, "name": "x", "none": None},
    "optimizer among the tensors": lambda: {**hf_dict(HF), "optimizer": OPTIMIZER},
    "a mapping for every module": lambda: modules(hf_dict(HF)),
    "the same under a key": lambda: {"net": modules(hf_dict(HF)), "step": torch.tensor(3)},
    **{
        f"behind {prefix}": lambda prefix=prefix: under(prefix)
        for prefix in (
            "model.", "_module.", "_forward_module.", "base_model.model.", "_fsdp_wrapped_module.", "lm.model.",
            "pretrained_model.", "gpt2.", "transformer.", "module.gpt.lm.", "_orig_mod.model._orig_mod.", "a.b.c.d.",
        )
    },
    "base model behind a prefix": lambda: {
        "gpt2." + name.removeprefix("transformer."): tensor for name, tensor in hf_dict(HF).items()
    },
    "its head without the prefix": lambda: {
        "lm_head.weight": HF.lm_head.weight.detach(),
        **{"gpt2." + name.removeprefix("transformer."): tensor for name, tensor in hf_dict(HF).items()},
    },
    **{
        f"inside {segment}": lambda segment=segment: inside(segment)
        for segment in (
            "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module",
            "_fsdp_wrapped_module._fpw_module", "_original_module",
        )
    },
    "behind language_model.": lambda: under("language_model."),
    "model twice, once without its head": lambda: {**under("model."), **bare("backbone.")},
    "model twice, one of them bare": lambda: {**under("model."), **bare("")},
    "model twice, with wrappers": lambda: {**hf_dict(HF), **under("module.")},
    "model twice, with heads": lambda: {**under("model."), **under("transformer.model.")},
    "gamma and beta": lambda: {
        n.replace("ln_1.weight", "ln_1.gamma").replace("ln_f.bias", "ln_f.beta"): t for n, t in hf_dict(HF).items()
    },
    "nanoGPT's behind a prefix": lambda: under("model.", nanogpt_dict(HF)),
    "HookedTransformer's behind a prefix": lambda: under("model.", hooked_dict(HF)),
    "ours behind a prefix": lambda: under("net.", own_dict(HF)),
    "value head": lambda: {**hf_dict(HF), "v_head.summary.weight": torch.ones(1, 12)},
    "reward head behind a prefix": lambda: {**under("model."), "value_head.weight": torch.ones(1, 12)},
    "another part of a larger model": lambda: {**under("gpt."), "clip_project.model.0.weight": torch.ones(3, 4)},
    "bias of zeros": lambda: {**hf_dict(HF), "lm_head.bias": torch.zeros(61)},
    "masks": lambda: {**hf_dict(HF), **masks(20, torch.uint8)},
    "masks of a longer context": lambda: {**hf_dict(HF), **masks(64, torch.bool)},
    "positions": lambda: {**hf_dict(HF), "transformer.position_ids": torch.arange(20)[None]},
    "masks that are added": lambda: {
        **hf_dict(HF), "transformer.h.0.attn.mask": torch.full((20, 20), float("-inf")).triu(1),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("door", ["file", "memory"])
def test_the_model_is_found(case: str, door: str, tmp_path: Path) -> None:
    content = READ[case]()
    if door == "file":
        torch.save(content, tmp_path / "weights.pt")
        content = tmp_path / "weights.pt"
    assert same_logits(pl.load(content, config=config_of(HF)), HF)


def test_what_is_given_twice_is_said_to_be() -> None:
    model = pl.load({**under("model."), **bare("")}, config=config_of(HF))
    assert model.provenance["left_out"] == "h.0.attn.c_attn.bias and 27 more (the same weights once more)"


@pytest.mark.parametrize("case", [case for case in READ if case.startswith(("behind", "inside", "value", "masks"))])
def test_prefixes_are_found_in_safetensors_too(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in READ[case]().items()}, path)
    assert same_logits(pl.load(path, config=config_of(HF)), HF)


def lora(name: str = "transformer.h.0.attn.c_attn") -> Dict:
    return {f"{name}.lora_A.default.weight": torch.ones(2, 12), f"{name}.lora_B.default.weight": torch.ones(36, 2)}


def unmerged() -> Dict:
    return {
        f"base_model.model.{name}".replace("c_attn.", "c_attn.base_layer."): tensor
        for name, tensor in hf_dict(HF).items()
    }


def other() -> Dict:
    return {name: tensor + 1 for name, tensor in hf_dict(HF).items()}


def eighths(dtype: torch.dtype = torch.float8_e4m3fn) -> dict[str, Tensor]:
    """Matrices of eight bits, everything else as it is."""
    return {name: t.to(dtype) if t.dim() == 2 else t for name, t in hf_dict(HF).items()}


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "averages beside the model": (lambda: {"model": hf_dict(HF), "ema": other()}, "weights-ambiguous", "'ema'"),
    "two behind prefixes": (
        lambda: {**under("policy."), **under("reference.", other())}, "weights-ambiguous", "'reference.'",
    ),
    "one behind a prefix beside one without": (
        lambda: {**hf_dict(HF), **under("ema.", other())}, "weights-ambiguous", "'ema.'",
    ),
    "twice, and one tensor differs": (
        lambda: {**under("model."), **bare(""), "h.0.ln_1.bias": torch.ones(12)}, "weights-ambiguous", "'model.'",
    ),
    "twice with wrappers, and one tensor differs": (
        lambda: {**hf_dict(HF), "module.transformer.ln_f.bias": torch.ones(12)}, "weights-ambiguous", "ln_f.bias",
    ),
    "adapter that is not merged": (lambda: {**unmerged(), **lora()}, "weights-foreign", "lora_A"),
    "adapter alone": (lambda: under("base_model.model.", lora()), "weights-foreign", "adapters"),
    "adapter beside the model": (lambda: {"model": hf_dict(HF), "adapter": lora()}, "weights-foreign", "adapters"),
    "adapter under a name of its own": (
        lambda: {"model": hf_dict(HF), "lora": {"h.0.a": torch.ones(2, 12)}}, "weights-foreign", "lora.h.0.a",
    ),
    "prompt": (lambda: {**hf_dict(HF), "prompt_embeddings": torch.ones(3, 12)}, "weights-foreign", "prompt_embeddings"),
    "GPTQ": (lambda: {"transformer.h.0.attn.c_attn.qweight": torch.ones(3, 4).int()}, "weights-foreign", "quantized"),
    "bitsandbytes": (
        lambda: {**hf_dict(HF), "transformer.h.0.mlp.c_fc.SCB": torch.ones(4)}, "weights-foreign", "quantized",
    ),
    **{
        f"FP8 with {name}": (lambda name=name: {**eighths(), name: torch.tensor(0.5)}, "weights-foreign", "quantized")
        for name in (
            *(f"transformer.h.0.attn.c_attn.{scale}" for scale in (
                "weight_scale", "weight_scale_inv", "input_scale", "activation_scale", "output_scale", "scale_weight",
                "weight_amax", "scale", "weight_global_scale",
            )),
            "transformer.h.0.attn.k_scale", "scaled_fp8",
        )
    },
    "packed halves of bytes": (
        lambda: {
            **hf_dict(HF), "transformer.h.0.mlp.c_fc.weight": torch.ones(12, 48).byte().view(torch.float4_e2m1fn_x2),
        },
        "weights-foreign", "quantized",
    ),
    "FSDP's flat parameters": (lambda: {"_fsdp_wrapped_module._flat_param": torch.ones(99)}, "weights-foreign", "FSDP"),
    "pruned": (
        lambda: {**hf_dict(HF), "transformer.h.0.mlp.c_fc.weight_mask": torch.ones(4)}, "weights-foreign", "prune",
    ),
    "Megatron": (
        lambda: {"model": {"language_model": {"embedding": {"word_embeddings": {"weight": torch.ones(9, 4)}}}}},
        "weights-foreign", "Megatron",
    ),
    "OpenAI's": (lambda: {"model/h0/attn/c_attn/w": torch.ones(1, 12, 36)}, "weights-foreign", "TensorFlow"),
    "Flax's": (lambda: modules({"transformer.h.0.attn.c_attn.kernel": torch.ones(36, 12)}), "weights-foreign", "Flax"),
    "another architecture": (
        lambda: {"model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4)}, "weights-foreign", "another architecture",
    ),
    "a mask of a window": (
        lambda: {**hf_dict(HF), "transformer.h.0.attn.bias": torch.ones(1, 1, 20, 20).tril().triu(-3)},
        "weights-unexplained", "not the causal one",
    ),
    "one bias lost": (
        lambda: {n: t for n, t in hf_dict(HF).items() if n != "transformer.h.1.mlp.c_fc.bias"},
        "weights-missing", "h.1.mlp.c_fc.bias",
    ),
    "the last bias lost": (
        lambda: {n: t for n, t in hf_dict(HF).items() if n != "transformer.ln_f.bias"}, "weights-missing", "ln_f.bias",
    ),
    "a layer lost": (
        lambda: under("model.", {n: t for n, t in hf_dict(HF).items() if ".h.1." not in n}),
        "weights-missing", "h.1.ln_1",
    ),
    "no tensors": (lambda: {"a": {"b": 3}}, "pickle-no-state-dict", "dict of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("door", ["file", "memory"])
def test_what_is_not_one_model_is_refused_by_name(case: str, door: str, tmp_path: Path) -> None:
    make, code, said = REFUSED[case]
    content = make()
    if door == "file":
        torch.save(content, tmp_path / "weights.pt")
        content = tmp_path / "weights.pt"
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(content, config=config_of(HF))
    assert caught.value.code == code, str(caught.value)
    assert said in str(caught.value)


@pytest.mark.remedy("weights-ambiguous")
def test_the_remedies_for_several_models_choose_one(tmp_path: Path) -> None:
    path, config = tmp_path / "weights.pt", config_of(HF)
    scope = {"pl": pl, "torch": torch, "path": path, "config": config}
    contents = (
        {"model": other(), "ema": other(), "x": hf_dict(HF)}, {**under("b.", other()), **under("a.")},
        [hf_dict(HF), other()], {7: hf_dict(HF), 8: other()},
    )  # fmt: skip
    for content in contents:
        torch.save(content, path)
        with pytest.raises(pl.WeightsError) as caught:
            pl.load(path, config=config)
        call = caught.value.remedy.split("such as ")[-1].split("of them: ")[-1].split(", with ")[0].rstrip(".")
        call = call.replace("config=...", "config=config").replace("['model']", "['x']")
        model = eval(call, {**scope, "tensors": torch.load(path)})
        assert same_logits(model, HF)


@pytest.mark.parametrize("kind", [GPT2DoubleHeadsModel, GPT2ForSequenceClassification, GPT2ForTokenClassification])
def test_a_folder_with_another_head_gives_the_language_model(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = kind(HF.config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    made.save_pretrained(tmp_path)
    model = pl.load(tmp_path)
    assert same_logits(model, GPT2LMHeadModel.from_pretrained(tmp_path).eval())
    assert "a head for another task" in model.provenance["left_out"]


def test_what_was_left_out_is_named(tmp_path: Path) -> None:
    model = pl.load({"net": {**under("gpt."), "score.weight": torch.ones(2, 12), "other.w": torch.ones(1)}, "step": 3},
                    config=config_of(HF))  # fmt: skip
    assert model.provenance["key"] == "net"
    assert model.provenance["beside"] == "step"
    assert model.provenance["left_out"] == (
        "score.weight (a head for another task); other.w (not under the language model's prefix)"
    )
    assert model.provenance["source"] == "a state dict in memory"
    plain = pl.load(save_folder(tmp_path, {**hf_dict(HF), **masks(20, torch.float32)}, HF))
    assert not {"key", "beside", "left_out", "zeros"} & set(plain.provenance)


def test_biases_that_no_block_has_are_zeros(tmp_path: Path) -> None:
    hf = small_hf()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith(("c_attn.bias", "ln_1.bias")):
                parameter.zero_()
    tensors = {name: t for name, t in hf_dict(hf).items() if not name.endswith(("c_attn.bias", "ln_1.bias"))}
    folder = save_folder(tmp_path, tensors, hf)
    model = pl.load(folder)
    assert same_logits(model, hf)
    assert same_logits(model, GPT2LMHeadModel.from_pretrained(folder).eval())
    assert "blocks.{i}.ln1.b" in model.provenance["zeros"]


def test_a_state_dict_in_memory_is_copied() -> None:
    tensors = hf_dict(HF)
    model = pl.load(tensors, config=config_of(HF))
    for tensor in tensors.values():
        tensor.zero_()
    assert same_logits(model, HF)
    live = small_hf()
    again = pl.load(live.state_dict(), config=config_of(HF))
    with torch.no_grad():
        again.embed.W_E.zero_()
    assert same_logits(pl.from_hf(live), HF)
    with pytest.raises(pl.ConfigError) as caught:
        pl.load(tensors)
    assert caught.value.code == "config-needed"
    assert (
        pl.CkptedTransformer.from_pretrained(hf_dict(HF), config=HF.config.to_dict(), dtype="float64").dtype
        == torch.float64
    )


def test_nanogpts_own_configuration_is_read_in_memory_too(tmp_path: Path) -> None:
    hf = small_hf(activation_function="gelu")
    content = torch.load(save_nanogpt(tmp_path / "ckpt.pt", hf))
    assert same_logits(pl.load(content), hf)
    assert pl.load(content).provenance["beside"].startswith("optimizer")


def test_tensors_share_no_memory_with_what_they_were_expanded_from() -> None:
    tensors: dict[str, Tensor] = {**hf_dict(HF), "transformer.wte.weight": torch.ones(1, 12).expand(61, 12)}
    with pytest.raises(pl.WeightsError, match="expanded") as caught:
        pl.load(tensors, config=config_of(HF))
    assert caught.value.code == "tensor-not-dense"
    name = "transformer.wte.weight"
    assert pl.load({n: t.contiguous() for n, t in tensors.items()}, config=config_of(HF)).embed.W_E.shape == (61, 12), (
        name
    )


class Sharded(Tensor):
    """The part of a tensor that one process has, as torch.distributed keeps it."""

    def full_tensor(self) -> Tensor:
        return self.as_subclass(Tensor)


def test_tensors_of_which_a_process_has_a_part_are_called_sharded() -> None:
    tensors = {name: tensor.as_subclass(Sharded) for name, tensor in hf_dict(HF).items()}
    with pytest.raises(pl.WeightsError, match="is sharded") as caught:
        pl.load(tensors, config=config_of(HF))
    assert "tensor.full_tensor()" in caught.value.remedy
    assert same_logits(pl.load({name: t.full_tensor() for name, t in tensors.items()}, config=config_of(HF)), HF)


EIGHTHS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@pytest.mark.parametrize("dtype", EIGHTHS, ids=str)
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_numbers_of_eight_bits_are_read_as_transformers_reads_them(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors = eighths(dtype)
    if kind == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    HF.config.save_pretrained(tmp_path)
    theirs = type(HF).from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = pl.load(tmp_path)
    assert same_logits(model, theirs)
    assert not same_logits(model, HF)
    assert str(dtype).removeprefix("torch.") in model.provenance["stored_dtype"]


def test_an_adapter_without_a_configuration_is_called_one(tmp_path: Path) -> None:
    """Else a configuration would be asked for, with which it is no more of a model."""
    save_file(lora("base_model.model.transformer.h.0.attn.c_attn"), tmp_path / "adapter_model.safetensors")
    with pytest.raises(pl.WeightsError, match="adapters") as caught:
        pl.load(tmp_path / "adapter_model.safetensors")
    assert caught.value.code == "weights-foreign"
