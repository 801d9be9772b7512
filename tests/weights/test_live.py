"""Live models that were changed after they were built: carried over to the bit, or refused by name."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2 import modeling_gpt2
from transformers.pytorch_utils import Conv1D

import pellucid as pl
from offloading import brought_back, moved_by_accelerate
from pellucid import open as opening
from pellucid.gpt2.family import GPT2
from pellucid.weights import foreign, living
from support import few_of
from weights.checkpoints import ids_for, same_logits, small_hf

D, V, N = 12, 61, 20


def linear(conv: Any) -> nn.Linear:
    """The same function as a `Conv1D`, as tools for quantising and pruning have it."""
    made = nn.Linear(*conv.weight.shape)
    with torch.no_grad():
        made.weight.copy_(conv.weight.T)
        made.bias.copy_(conv.bias)
    return made


def turn(names: str) -> Callable[[Any], None]:
    def change(hf: Any) -> None:
        for block in hf.transformer.h:
            for name in names.split():
                part, _, child = name.rpartition(".")
                setattr(block.get_submodule(part), child, linear(block.get_submodule(name)))

    return change


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Zeros(nn.Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return torch.zeros_like(x)


class ZeroAttention(nn.Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return torch.zeros_like(x), None


class AdaptedLinear(nn.Module):
    """What adapters put in the place of a matrix."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = base, nn.Linear(D, 2, bias=False), nn.Linear(2, 3 * D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Linear8bitLt(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.linear(x, self.weight.mul(127).round() / 127, self.bias)


class Halved(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return tensor / 2


class Talkative(GPT2LMHeadModel):
    """A subclass that adds to the class, and runs as it does."""

    def greet(self) -> str:
        return "hello"


class Doubled(GPT2LMHeadModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


class DoubledWhenCalled(GPT2LMHeadModel):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        out.logits = out.logits * 2
        return out


def as_class(cls: type[nn.Module]) -> Callable[[Any], None]:
    return lambda hf: setattr(hf, "__class__", cls)


def put(path: str, make: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Replace the module at a path by what `make` makes of it."""

    def change(hf: Any) -> None:
        parent, _, name = path.rpartition(".")
        owner = hf.get_submodule(parent)
        setattr(owner, name, make(hf.get_submodule(path)))

    return change


def tell(path: str, **values: Any) -> Callable[[Any], None]:
    """Set attributes of the module at a path."""

    def change(hf: Any) -> None:
        for name, value in values.items():
            setattr(hf.get_submodule(path), name, value)

    return change


def call(path: str, function: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(hf: Any) -> None:
        function(hf.get_submodule(path))

    return change


def doubling(module: Any, args: Any, out: Tensor) -> Tensor:
    return out * 2


def doubling_input(module: Any, args: Any) -> Any:
    return (args[0] * 2, *args[1:])


def drops(rate: float, kinds: str = "") -> Callable[[Any], None]:
    def change(hf: Any) -> None:
        for name, module in hf.named_modules():
            if isinstance(module, nn.Dropout) and name.endswith(kinds):
                module.p = rate

    return change


def accelerated(hf: Any) -> None:
    """As accelerate attaches its hooks."""
    module = hf.transformer.h[0].mlp
    old = module.forward
    module.forward = functools.update_wrapper(functools.partial(lambda m, x: old(x) * 1.5, module), old)


def without_last_block(hf: Any) -> None:
    hf.transformer.h = hf.transformer.h[:1]


def longer(hf: Any) -> None:
    longer = nn.Embedding(2 * N, D)
    nn.init.normal_(longer.weight)
    hf.transformer.wpe = longer


def narrower(hf: Any) -> None:
    for block in hf.transformer.h:
        c_fc, c_proj = Conv1D(7, D), Conv1D(D, 7)
        c_fc.weight, c_fc.bias = (
            nn.Parameter(t[..., :7].detach().clone()) for t in (block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        )
        c_proj.weight = nn.Parameter(block.mlp.c_proj.weight[:7].detach().clone())
        c_proj.bias = block.mlp.c_proj.bias
        block.mlp.c_fc, block.mlp.c_proj = c_fc, c_proj


def transposed_tie(hf: Any) -> None:
    """The head is the embedding's memory, the other way round."""
    hf.transformer.wte.weight = nn.Parameter(torch.randn(V, V)[:, :D].contiguous())
    hf.lm_head.weight = nn.Parameter(hf.transformer.wte.weight.detach().flatten()[: V * D].view(D, V).t())


def pad(hf: Any) -> None:
    hf.register_parameter("unused", nn.Parameter(torch.randn(3)))
    hf.transformer.h[0].attn.register_buffer("bias", torch.zeros(1, 1, N, N))  # as earlier versions kept their mask


def saves_memory(hf: Any) -> None:
    (getattr(hf, "activation_checkpointing_enable", None) or hf.gradient_checkpointing_enable)()
    hf.enable_input_require_grads()


def compiles_blocks(hf: Any) -> None:
    for i, block in enumerate(hf.transformer.h):
        hf.transformer.h[i] = torch.compile(block, backend="eager")


def shows_its_states(hf: Any) -> None:
    with torch.no_grad():
        hf(ids_for(hf), output_hidden_states=True)


def custom_attention(hf: Any) -> None:
    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("looks_ahead", attend)
    hf.config._attn_implementation = "looks_ahead"


def zero_head_bias(hf: Any) -> None:
    head = nn.Linear(D, V)
    with torch.no_grad():
        head.bias.zero_()
    head.weight = hf.transformer.wte.weight
    hf.lm_head = head


def acts(name: str, module: nn.Module) -> Callable[[Any], None]:
    """The activation of a configuration, computed by another class."""

    def change(hf: Any) -> None:
        hf.config.activation_function = name
        for block in hf.transformer.h:
            block.mlp.act = copy.deepcopy(module)

    return change


def grafted(hf: Any) -> None:
    """A block of a model that attends explicitly, in a model that makes no mask for it: it sees later tokens."""
    other = small_hf(seed=3)
    other.set_attn_implementation("eager")
    hf.transformer.h[1] = other.transformer.h[1]


def noisy(hf: Any) -> None:
    hf.transformer.wte.neftune_noise_alpha = 5.0
    hf.transformer.wte.register_forward_hook(neftune_post_forward_hook)


def mixed_dtypes(hf: Any) -> None:
    hf.bfloat16()
    for name, module in hf.named_modules():
        if "ln_" in name:
            module.float()


CARRIED: dict[str, Callable[[Any], Any]] = {
    "a square matrix as Linear": turn("attn.c_proj"),
    "all matrices as Linear": turn("attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
    "all but the square one": turn("attn.c_attn mlp.c_fc mlp.c_proj"),
    "the MLP as Linear": turn("mlp.c_fc mlp.c_proj"),
    "one matrix as Linear": put("transformer.h.1.mlp.c_fc", linear),
    "Linear without bias": put("transformer.h.0.attn.c_proj", lambda old: nn.Linear(D, D, bias=False)),
    "LayerNorm without bias": put("transformer.h.0.ln_2", lambda old: nn.LayerNorm(D, bias=False)),
    "a subclass that adds": as_class(Talkative),
    "a smaller model": without_last_block,
    "no blocks": lambda hf: setattr(hf.transformer, "h", nn.ModuleList()),
    "more positions": longer,
    "narrower MLPs": narrower,
    "more tokens": lambda hf: hf.resize_token_embeddings(V + 5, mean_resizing=False),
    "head of other memory": put("lm_head", lambda old: nn.Linear(D, V, bias=False)),
    "a head's bias of zeros": zero_head_bias,
    "torch's own GELU": acts("gelu", nn.GELU()),
    "torch's own GELU by tanh": acts("gelu_pytorch_tanh", nn.GELU(approximate="tanh")),
    "torch's own SiLU": acts("silu", nn.SiLU()),
    "ReLU in place": acts("relu", nn.ReLU(inplace=True)),
    "dropout taken out": put("transformer.drop", lambda old: nn.Identity()),
    "dropout off": drops(0.0),
    "unused tensors": pad,
    "gradient checkpointing": saves_memory,
    "compiled in place": lambda hf: hf.compile(backend="eager"),
    "compiled forward": lambda hf: setattr(hf, "forward", torch.compile(hf.forward, backend="eager")),
    "compiled blocks": compiles_blocks,
    "a block that is computed again": put("transformer.h.1", checkpoint_wrapper),
    "a part that is computed again": put("transformer.h.0.mlp", checkpoint_wrapper),
    "transformers' own hooks": shows_its_states,
    "eager attention": lambda hf: hf.set_attn_implementation("eager"),
    "backward hooks": call("transformer.h.0", lambda m: m.register_full_backward_hook(lambda *_: None)),
    "frozen": lambda hf: hf.requires_grad_(False),
    "strided": lambda hf: setattr(
        hf.transformer.h[0].mlp.c_fc.weight, "data", hf.transformer.h[0].mlp.c_fc.weight.data.t().contiguous().t()
    ),
    "a padding index": tell("transformer.wte", padding_idx=0),
    "no cache": lambda hf: setattr(hf.config, "use_cache", False),
    "tuples": lambda hf: setattr(hf.config, "return_dict", False),
    "a pad id": lambda hf: setattr(hf.config, "pad_token_id", 1),
    "norms in float32": mixed_dtypes,
    "float16": lambda hf: hf.half(),
    "bfloat16": lambda hf: hf.bfloat16(),
    "float64": lambda hf: hf.double(),
}


@pytest.mark.parametrize("name", few_of(CARRIED, *({*CARRIED} - {"compiled in place", "compiled forward"})))
def test_what_computes_the_same_is_carried_over(name: str) -> None:
    hf = small_hf()
    CARRIED[name](hf)
    model = pl.from_hf(hf)
    hf.config.return_dict = True
    with torch.no_grad():
        ids = ids_for(hf)
        ours, theirs = model(model.tokenize(ids, mask=torch.ones_like(ids))), hf(ids).logits
    if name == "float16" or "Linear" in name:  # another kernel than addmm's, which may round otherwise
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 if ours.dtype == torch.float32 else 2e-2)
    else:
        assert torch.equal(ours, theirs)
    assert float(theirs.float().std()) > 0.1


@dataclass(frozen=True)
class Refused:
    """A change, the code that it is refused with, and a word of the message."""

    change: Callable[[Any], Any]
    code: str
    word: str


REFUSED: dict[str, Refused] = {
    "norm taken out": Refused(
        put("transformer.h.0.ln_1", lambda m: nn.Identity()), "hf-part", "h.0.ln_1 is Identity, expected LayerNorm"
    ),
    "last norm taken out": Refused(put("transformer.ln_f", lambda m: nn.Identity()), "hf-part", "ln_f is Identity"),
    "RMSNorm": Refused(put("transformer.h.0.ln_1", lambda m: nn.RMSNorm(D)), "hf-part", "RMSNorm"),
    "MLP of zeros": Refused(
        put("transformer.h.1.mlp", lambda m: Zeros()), "hf-part", "h.1.mlp is Zeros, expected GPT2MLP"
    ),
    "MLP taken out": Refused(put("transformer.h.1.mlp", lambda m: nn.Identity()), "hf-part", "h.1.mlp is Identity"),
    "MLP wrapped": Refused(put("transformer.h.1.mlp", Wrapped), "hf-part", "h.1.mlp is Wrapped"),
    "MLP is None": Refused(tell("transformer.h.1", mlp=None), "hf-part", "h.1.mlp is missing"),
    "attention of zeros": Refused(
        put("transformer.h.0.attn", lambda m: ZeroAttention()), "hf-part", "h.0.attn is ZeroAttention"
    ),
    "block replaced": Refused(put("transformer.h.1", lambda m: Wrapped(nn.Identity())), "hf-part", "h.1 is Wrapped"),
    "embedding wrapped": Refused(put("transformer.wte", Wrapped), "hf-part", "wte is Wrapped, expected Embedding"),
    "positions taken out": Refused(put("transformer.wpe", lambda m: Zeros()), "hf-part", "wpe is Zeros"),
    "dropout replaced": Refused(put("transformer.drop", lambda m: Halved()), "hf-part", "drop is Halved"),
    "activation is None": Refused(tell("transformer.h.0.mlp", act=None), "hf-part", "act is missing"),
    "activation replaced": Refused(
        put("transformer.h.0.mlp.act", lambda m: nn.ReLU()), "hf-differs-from-config", "ReLU"
    ),
    "another slope": Refused(acts("leaky_relu", nn.LeakyReLU(0.3)), "hf-differs-from-config", "LeakyReLU"),
    "another GELU": Refused(acts("gelu", nn.GELU(approximate="tanh")), "hf-differs-from-config", "not gelu"),
    "activation with a parameter": Refused(acts("relu", nn.PReLU()), "hf-differs-from-config", "PReLU"),
    "noise in training": Refused(noisy, "hf-hooks", "neftune"),
    "matrix wrapped": Refused(put("transformer.h.0.mlp.c_fc", nn.Sequential), "hf-part", "c_fc is Sequential"),
    "adapter": Refused(put("transformer.h.0.attn.c_attn", AdaptedLinear), "hf-part", "AdaptedLinear"),
    "quantised class": Refused(
        put("transformer.h.0.attn.c_proj", lambda m: Linear8bitLt(D, D)), "hf-part", "Linear8bitLt"
    ),
    "base replaced": Refused(put("transformer", Wrapped), "hf-part", "transformer is Wrapped, expected GPT2Model"),
    "subclass with a forward": Refused(as_class(Doubled), "hf-part", "Doubled, whose forward"),
    "subclass with a call": Refused(as_class(DoubledWhenCalled), "hf-part", "DoubledWhenCalled"),
    "head wrapped": Refused(put("lm_head", Wrapped), "hf-head", "plain Linear"),
    "head taken out": Refused(put("lm_head", lambda m: nn.Identity()), "hf-head", "plain Linear"),
    "sharded": Refused(as_class(type("FSDPGPT2LMHeadModel", (GPT2LMHeadModel,), {})), "hf-tensors", "sharded"),
    "head quantised": Refused(put("lm_head", lambda m: Linear8bitLt(D, V)), "hf-head", "Linear8bitLt"),
    "head with a bias": Refused(put("lm_head", lambda m: nn.Linear(D, V)), "hf-head", "plain Linear"),
    "forward of a module": Refused(
        tell("transformer.h.0.mlp", forward=lambda x: x * 2), "hf-patched-forward", "h.0.mlp"
    ),
    "forward is None": Refused(tell("transformer.h.0.mlp", forward=None), "hf-patched-forward", "h.0.mlp"),
    "no configuration": Refused(tell("", config=None), "hf-part", "config is None"),
    "sparse": Refused(
        call("transformer.h.0.mlp.c_fc", lambda m: setattr(m, "weight", nn.Parameter(m.weight.data.to_sparse()))),
        "hf-tensors",
        "torch.sparse",
    ),
    "attention of no name": Refused(
        lambda hf: setattr(hf.config, "_attn_implementation_internal", "nonsense"), "hf-attention", "nonsense"
    ),
    "forward of the model": Refused(tell("", forward=lambda ids, **_: None), "hf-patched-forward", "the model"),
    "accelerate": Refused(accelerated, "hf-patched-forward", "h.0.mlp"),
    "hook on a block": Refused(
        call("transformer.h.0.mlp", lambda m: m.register_forward_hook(doubling)), "hf-hooks", "doubling"
    ),
    "hook on the model": Refused(call("", lambda m: m.register_forward_hook(lambda *_: None)), "hf-hooks", "the model"),
    "pre-hook": Refused(
        call("transformer.ln_f", lambda m: m.register_forward_pre_hook(doubling_input)), "hf-hooks", "ln_f"
    ),
    "pruned": Refused(
        call("transformer.h.0.attn.c_proj", lambda m: prune.l1_unstructured(m, "weight", 0.5)),
        "hf-computed-weight",
        "weight_mask",
    ),
    "pruned bias": Refused(
        call("transformer.h.0.mlp.c_fc", lambda m: prune.random_unstructured(m, "bias", 0.5)),
        "hf-computed-weight",
        "bias_mask",
    ),
    "weight norm": Refused(
        call("transformer.h.0.mlp.c_fc", parametrizations.weight_norm), "hf-computed-weight", "c_fc"
    ),
    "spectral norm": Refused(
        call("transformer.h.0.mlp.c_fc", parametrizations.spectral_norm), "hf-computed-weight", "c_fc"
    ),
    "old weight norm": Refused(
        call("transformer.h.0.mlp.c_fc", torch.nn.utils.weight_norm), "hf-computed-weight", "weight_g"
    ),
    "old spectral norm": Refused(
        call("transformer.h.0.mlp.c_fc", torch.nn.utils.spectral_norm), "hf-computed-weight", "weight_u"
    ),
    "parametrized": Refused(
        call("transformer.wte", lambda m: parametrize.register_parametrization(m, "weight", Halved())),
        "hf-computed-weight",
        "wte.weight",
    ),
    "epsilon": Refused(tell("transformer.h.1.ln_1", eps=1e-3), "hf-differs-from-config", "h.1.ln_1.eps is 0.001"),
    "epsilon of the configuration": Refused(
        tell(
            "", config=GPT2Config(layer_norm_epsilon=1e-3, vocab_size=V, n_positions=N, n_embd=D, n_layer=2, n_head=3)
        ),
        "hf-differs-from-config",
        "eps is 1e-05",
    ),
    "heads of the configuration": Refused(
        lambda hf: setattr(hf.config, "n_head", 6), "hf-differs-from-config", "head_dim is 4, not 2"
    ),
    "width of heads": Refused(tell("transformer.h.0.attn", head_dim=2), "hf-differs-from-config", "head_dim is 2"),
    "scaling": Refused(tell("transformer.h.0.attn", scaling=1.0), "hf-differs-from-config", "scaling is 1.0"),
    "scaling of the configuration": Refused(
        lambda hf: setattr(hf.config, "scale_attn_weights", False), "hf-differs-from-config", "scaling"
    ),
    "upcasting": Refused(
        tell("transformer.h.0.attn", reorder_and_upcast_attn=True), "hf-differs-from-config", "reorder_and_upcast_attn"
    ),
    "attention to later tokens": Refused(
        tell("transformer.h.0.attn", is_causal=False), "hf-differs-from-config", "is_causal"
    ),
    "layer numbers": Refused(tell("transformer.h.1.attn", layer_idx=0), "hf-differs-from-config", "layer_idx is 0"),
    "largest norm": Refused(tell("transformer.wte", max_norm=1.0), "hf-differs-from-config", "max_norm"),
    "gradients by frequency": Refused(
        tell("transformer.wte", scale_grad_by_freq=True), "hf-differs-from-config", "scale_grad_by_freq"
    ),
    "a block twice": Refused(
        lambda hf: hf.transformer.h.__setitem__(1, hf.transformer.h[0]),
        "hf-shared",
        "h.1 is the same module as transformer.h.0",
    ),
    "dropouts of several rates": Refused(drops(0.5, "mlp.dropout"), "hf-dropout", "resid_pdrop"),
    "block of a model with other masks": Refused(grafted, "hf-attention", "h.1.attn attends by 'eager'"),
    "attention of one's own": Refused(custom_attention, "hf-attention", "looks_ahead"),
    "int8": Refused(
        lambda hf: setattr(
            hf.transformer.h[0].mlp.c_fc, "weight", nn.Parameter(torch.zeros(D, 4 * D, dtype=torch.int8), False)
        ),
        "hf-tensors",
        "int8",
    ),
    "no gains": Refused(
        put("transformer.ln_f", lambda m: nn.LayerNorm(D, elementwise_affine=False)),
        "hf-tensors",
        "ln_f.weight is None",
    ),
    "one tensor on the meta device": Refused(
        call("transformer.h.0.mlp.c_fc", lambda m: m.to("meta")), "meta-device", "meta device"
    ),
    "another width": Refused(put("transformer.h.0.mlp.c_fc", lambda m: Conv1D(5, D)), "weights-misshapen", "c_fc"),
    "head of another vocabulary": Refused(
        put("lm_head", lambda m: nn.Linear(D, V + 1, bias=False)), "weights-misshapen", "lm_head"
    ),
    "cannot run": Refused(call("transformer.h.0.mlp.c_fc", lambda m: m.double()), "hf-cannot-run", "cannot be run"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_something_else_is_refused_by_name(name: str) -> None:
    case, hf = REFUSED[name], small_hf()
    case.change(hf)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    assert caught.value.code == case.code, str(caught.value)
    assert case.word in caught.value.message
    assert caught.value.remedy


@pytest.mark.remedy("hf-attention")
def test_a_block_of_another_model_is_carried_over_once_the_remedy_was_followed() -> None:
    hf = small_hf()
    grafted(hf)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    exec(caught.value.remedy.partition(": ")[2].rstrip("."), {"hf_model": hf})
    assert same_logits(pl.from_hf(hf), hf)
    hf.set_attn_implementation("eager")
    hf.transformer.h[1].attn.config = small_hf().config  # it takes the masks that the model makes
    assert pl.from_hf(hf).config.n_layer == 2


@pytest.mark.remedy("hf-shared")
@pytest.mark.parametrize("path", ["transformer.h.1", "transformer.h.1.attn", "transformer.h.1.mlp"])
def test_a_module_in_two_places_is_carried_over_once_the_remedy_was_followed(path: str) -> None:
    hf = small_hf()
    hf.set_submodule(path, hf.get_submodule(path.replace("1", "0")))
    with pytest.raises(pl.WeightsError, match=f"{path} is the same module") as caught:
        pl.from_hf(hf)
    exec(caught.value.remedy.partition(": ")[2].partition(". pl.")[0], {"hf_model": hf, "copy": copy})
    assert same_logits(pl.from_hf(hf), hf)


@pytest.mark.remedy("hf-tensors")
def test_a_norm_without_gains_is_carried_over_once_the_remedy_was_followed() -> None:
    hf = small_hf()
    hf.transformer.h[0].ln_1 = nn.LayerNorm(D, elementwise_affine=False)
    expected = hf(ids_for(hf)).logits
    with pytest.raises(pl.WeightsError, match=r"ln_1\.weight is None") as caught:
        pl.from_hf(hf)
    exec(caught.value.remedy.partition(" computes")[0], {"hf_model": hf, "torch": torch})
    assert torch.equal(pl.from_hf(hf)(ids_for(hf)), expected)


@pytest.mark.remedy("config-not-implemented")
def test_fields_that_do_not_apply_are_taken_out_as_the_remedy_says() -> None:
    hf = small_hf()
    hf.config.mup, hf.config.sliding_window, hf.config.is_causal = 1.0, 4, False
    with pytest.raises(pl.ConfigError, match="from_hf: config: ") as caught:
        pl.from_hf(hf)
    exec(caught.value.remedy.partition(": ")[2].rstrip("."), {"hf_model": hf})
    assert same_logits(pl.from_hf(hf), hf)


@pytest.mark.remedy("weights-misshapen")
def test_a_head_of_another_size_fits_once_the_remedy_was_followed() -> None:
    hf = small_hf()
    hf.lm_head = nn.Linear(D, V - 7, bias=False)
    with pytest.raises(pl.WeightsError, match="from_hf: weights in the layout") as caught:
        pl.from_hf(hf)
    exec(caught.value.remedy.partition(" by ")[2].partition(". ")[0], {"hf_model": hf, "n": V})
    model = pl.from_hf(hf)
    assert same_logits(model, hf)
    assert not model.config.tie_word_embeddings


def test_a_compiled_model_is_read_as_what_was_compiled() -> None:
    hf = small_hf()
    assert same_logits(pl.from_hf(torch.compile(hf, backend="eager")), hf)  # pyright: ignore[reportArgumentType]


@pytest.mark.remedy("hf-tensors")
def test_a_sharded_model_is_refused_and_gathered_by_its_remedy() -> None:
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        hf = fully_shard(small_hf(), mesh=distributed.init_device_mesh("cpu", (1,)))
        with pytest.raises(pl.WeightsError, match="sharded") as caught:
            pl.from_hf(hf)  # pyright: ignore[reportArgumentType]
        names = {"pl": pl, "get_model_state_dict": get_model_state_dict, "StateDictOptions": StateDictOptions}
        call = caught.value.remedy.partition("state_dict: ")[2].rstrip(".")
        assert same_logits(eval(call, {**names, "hf_model": hf}), small_hf())
    finally:
        distributed.destroy_process_group()


def test_parameters_that_were_one_are_noted() -> None:
    hf = small_hf()
    hf.transformer.h[1].mlp.c_fc.weight = hf.transformer.h[0].mlp.c_fc.weight
    model = pl.from_hf(hf)
    assert same_logits(model, hf)
    assert model.provenance["untied"] == "transformer.h.1.mlp.c_fc.weight from transformer.h.0.mlp.c_fc.weight"
    assert "untied" not in pl.from_hf(small_hf()).provenance


def test_a_base_model_is_read_alike() -> None:
    hf = small_hf()
    turn("attn.c_proj")(hf)
    assert torch.equal(pl.from_hf(hf.transformer)(ids_for(hf)), pl.from_hf(small_hf())(ids_for(hf)))
    hf.transformer.h[0].ln_1 = nn.Identity()
    with pytest.raises(pl.WeightsError, match=r"h\.0\.ln_1 is Identity, expected LayerNorm") as caught:
        pl.from_hf(hf.transformer)
    assert caught.value.code == "hf-part"


@pytest.mark.parametrize("name", [name for name in CARRIED if "as Linear" in name])
def test_a_turned_matrix_is_the_same_matrix(name: str) -> None:
    hf = small_hf()
    CARRIED[name](hf)
    same = pl.from_hf(small_hf()).state_dict()
    assert all(torch.equal(tensor, same[key]) for key, tensor in pl.from_hf(hf).state_dict().items())


def test_what_the_modules_are_counts_and_is_noted() -> None:
    hf = small_hf()
    without_last_block(hf)
    pad(hf)
    drops(0.25, "attn_dropout")(hf)
    model = pl.from_hf(hf)
    assert model.config.n_layer == 1
    assert model.provenance["sizes"] == "n_layer 1, configured 2"
    assert model.provenance["left_out"] == "unused"
    assert (model.config.attn_pdrop, model.config.resid_pdrop) == (0.25, 0.1)
    assert "sizes" not in pl.from_hf(small_hf()).provenance


def test_training_drops_as_the_modules_do() -> None:
    hf = small_hf()
    drops(0.0)(hf)
    hf.train()
    model, ids = pl.from_hf(hf), ids_for(hf)
    assert model.training
    assert torch.equal(model(ids), hf(ids).logits)


def test_the_head_is_tied_only_if_it_is_the_same_matrix() -> None:
    """A square embedding whose transposed view is the head shares its memory, and is another matrix."""
    hf = small_hf(vocab_size=D)
    hf.lm_head.weight = nn.Parameter(hf.transformer.wte.weight.detach().t())
    model = pl.from_hf(hf)
    assert not model.config.tie_word_embeddings
    assert same_logits(model, hf)


# What lies outside of the model


@pytest.mark.parametrize("path", ["GPT2MLP", "GPT2Attention", "GPT2Block", "GPT2Model", "GPT2LMHeadModel"])
def test_a_patched_class_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = small_hf()
    old = getattr(modeling_gpt2, path).forward

    @functools.wraps(old)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return old(*args, **kwargs)

    monkeypatch.setattr(getattr(modeling_gpt2, path), "forward", patched)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-patched-forward"


@pytest.mark.parametrize("register", [
    lambda: torch_module.register_module_forward_hook(lambda *_: None),
    lambda: torch_module.register_module_forward_pre_hook(lambda *_: None),
])  # fmt: skip
def test_hooks_of_every_module_are_refused(register: Any) -> None:
    hf, ours = small_hf(), pl.from_hf(small_hf())
    handle = register()
    try:
        with pytest.raises(pl.WeightsError, match="every module has the hook") as caught:
            pl.from_hf(hf)
        assert caught.value.code == "hf-hooks"
        with pytest.raises(pl.WeightsError) as caught:
            pl.to_hf(ours)
        assert caught.value.code == "changed-model"
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["eager_attention_forward", "sdpa"])
def test_a_replaced_attention_function_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = small_hf()
    mine = lambda *args, **kwargs: (args[2], None)  # noqa: E731
    if name == "sdpa":
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", mine)
    else:
        hf.set_attn_implementation("eager")
        monkeypatch.setattr(modeling_gpt2, name, mine)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-attention"


@pytest.mark.remedy("hf-patched-forward")
def test_functions_that_transformers_classes_call_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a function changes may lie beyond the tokens that are run at the end."""
    hf, ours = small_hf(), pl.from_hf(small_hf())
    ids = torch.arange(1, 2 * 12 + 1).view(2, 12)

    def windowed(config: Any, inputs_embeds: Tensor, *_: Any, **__: Any) -> Tensor:
        place = torch.arange(inputs_embeds.shape[1])
        back = place[:, None] - place
        return ((back >= 0) & (back < 7)).expand(len(inputs_embeds), 1, -1, -1)

    places: dict[str, tuple[Any, str]] = {
        "modeling_gpt2.create_causal_mask": (modeling_gpt2, "create_causal_mask"),
        "GPT2Attention._upcast_and_reordered_attn": (modeling_gpt2.GPT2Attention, "_upcast_and_reordered_attn"),
    }
    for said, (owner, name) in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, windowed)
            if owner is modeling_gpt2:
                with torch.no_grad():
                    assert torch.equal(hf(ids[:, :6]).logits, ours(ids[:, :6]))
                    assert not torch.allclose(hf(ids).logits, ours(ids), atol=1e-3)
            for act, given in ((pl.from_hf, hf), (pl.to_hf, ours)):
                with pytest.raises(pl.WeightsError, match=said) as caught:
                    act(given)
                assert caught.value.code == "hf-patched-forward"
        assert same_logits(pl.from_hf(hf), hf), "as in a new process"


@pytest.mark.parametrize("context", [2, 3, 4, 6, 7, 12, 20])
def test_positions_that_run_on_over_the_batch_are_noticed_in_every_context(
    context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun anew where the context ends, they are the right ones in rows as long as the context."""
    hf, old = small_hf(n_positions=context), modeling_gpt2.GPT2Model.forward

    def running_on(self: Any, input_ids: Tensor, **more: Any) -> Any:
        positions = torch.arange(input_ids.numel()).view_as(input_ids) % context
        return old(self, input_ids, **{**more, "position_ids": positions})

    monkeypatch.setattr(modeling_gpt2.GPT2Model, "forward", running_on)
    monkeypatch.setattr(foreign, "require_own_forwards", lambda *_: None)
    whole = torch.arange(2 * context).view(2, context)
    with torch.no_grad():
        assert torch.equal(hf(whole).logits, small_hf(n_positions=context)(whole).logits)
    with pytest.raises(pl.WeightsError, match=r"they first differ at ckpt_pos_embed") as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-computes-otherwise"


# Remedies, followed


def follow(name: str, hf: Any) -> Any:
    """Do what the remedy for a change says."""
    block, original = hf.transformer.h[0], small_hf()
    module = hf.get_submodule(CHANGED_AT.get(name, ""))
    if name in ("pruned", "pruned bias"):
        prune.remove(module, "bias" if "bias" in name else "weight")
    elif name == "old weight norm":
        torch.nn.utils.remove_weight_norm(module, "weight")
    elif name == "old spectral norm":
        torch.nn.utils.remove_spectral_norm(module, "weight")
    elif name in ("weight norm", "spectral norm", "parametrized"):
        parametrize.remove_parametrizations(module, "weight")
    elif name in ("forward of a module", "accelerate"):
        del block.mlp.forward
    elif name in ("hook on a block", "pre-hook"):
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    elif name == "norm taken out":
        block.ln_1 = original.transformer.h[0].ln_1
    elif name == "head taken out":
        hf.lm_head = nn.Linear(D, V, bias=False)
    elif name == "epsilon of the configuration":
        hf.config.layer_norm_epsilon = 1e-5
    elif name == "no gains":
        hf.transformer.ln_f.weight = nn.Parameter(torch.ones(D))
    elif name == "a block twice":
        hf.transformer.h[1] = copy.deepcopy(hf.transformer.h[0])
        hf.transformer.h[1].attn.layer_idx = 1
    elif name == "dropouts of several rates":
        drops(0.5, "dropout")(hf)
    elif name == "attention of one's own":
        hf.set_attn_implementation("sdpa")
    return hf


CHANGED_AT = {
    "pruned": "transformer.h.0.attn.c_proj", "pruned bias": "transformer.h.0.mlp.c_fc",
    "weight norm": "transformer.h.0.mlp.c_fc", "spectral norm": "transformer.h.0.mlp.c_fc",
    "old weight norm": "transformer.h.0.mlp.c_fc", "old spectral norm": "transformer.h.0.mlp.c_fc",
    "parametrized": "transformer.wte", "hook on a block": "transformer.h.0.mlp", "pre-hook": "transformer.ln_f",
}  # fmt: skip
FOLLOWED = (
    *sorted({*CHANGED_AT} - {"pruned", "hook on a block"}), "no gains", "a block twice",
    "attention of one's own",
    pytest.param("pruned", marks=pytest.mark.remedy("hf-computed-weight")),
    pytest.param("hook on a block", marks=pytest.mark.remedy("hf-hooks")),
    pytest.param("forward of a module", marks=pytest.mark.remedy("hf-patched-forward")),
    pytest.param("accelerate", marks=pytest.mark.remedy("hf-patched-forward")),
    pytest.param("norm taken out", marks=pytest.mark.remedy("hf-part")),
    pytest.param("head taken out", marks=pytest.mark.remedy("hf-head")),
    pytest.param("epsilon of the configuration", marks=pytest.mark.remedy("hf-differs-from-config")),
    pytest.param("dropouts of several rates", marks=pytest.mark.remedy("hf-dropout")),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_remedy_that_is_followed_helps(name: str) -> None:
    hf = small_hf()
    REFUSED[name].change(hf)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    if name in CHANGED_AT and "hook" not in name:
        assert f"get_submodule({CHANGED_AT[name]!r})" in caught.value.remedy
    assert same_logits(pl.from_hf(follow(name, hf)), hf)


@pytest.mark.remedy("hf-patched-forward")
def test_tensors_that_accelerate_keeps_elsewhere_are_brought_back_or_opened_again() -> None:
    for home, said in (("cpu", "recurse=True) brings them back"), ("meta", "open the model again without device_map")):
        with pytest.raises(pl.WeightsError) as caught:
            pl.from_hf(moved_by_accelerate(small_hf(), home))
        assert caught.value.code == "hf-patched-forward"
        assert said in caught.value.remedy
    assert same_logits(pl.from_hf(brought_back(moved_by_accelerate(small_hf(), "cpu"))), small_hf())


def _without(path: str, name: str, value: Any = None, *, gone: bool = False) -> Callable[[Any], None]:
    def change(hf: Any) -> None:
        module = hf.get_submodule(path)
        old = getattr(module, name).detach().clone()
        delattr(module, name)
        if value == "buffer":
            module.register_buffer(name, old)
        elif value == "a tensor":
            setattr(module, name, old)
        elif not gone:
            module.register_parameter(name, None)

    return change


TAKEN_OUT: dict[str, tuple[Callable[[Any], None], str]] = {
    **{
        f"{path} without a bias": (_without(f"transformer.h.1.{path}", "bias"), rf"h\.1\.{path}\.bias is None")
        for path in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    },
    **{
        f"{path} whose bias is gone": (_without(path, "bias", gone=True), rf"{path}\.bias is not there")
        for path in ("transformer.ln_f", "transformer.h.0.ln_1", "transformer.h.0.attn.c_proj")
    },
    "a gain as a buffer": (_without("transformer.ln_f", "weight", "buffer"), r"ln_f\.weight is no parameter"),
    "a bias as a tensor": (_without("transformer.ln_f", "bias", "a tensor"), r"ln_f\.bias is no parameter"),
    "an embedding as a buffer": (_without("transformer.wpe", "weight", "buffer"), r"wpe\.weight is no parameter"),
}
"""A tensor without which transformers' class does not run, or that is none of its parameters -> how it is told."""


@pytest.mark.parametrize("name", TAKEN_OUT)
def test_a_tensor_that_was_taken_out_is_named_and_the_remedy_puts_one_there(name: str) -> None:
    hf = small_hf()
    change, said = TAKEN_OUT[name]
    change(hf)
    with pytest.raises(pl.WeightsError, match=said) as caught:
        pl.from_hf(hf)
    code = caught.value.remedy.removesuffix(".").removesuffix(" adds nothing")
    code = code.removeprefix("Make it permanent first, with ").replace("): value", "); value")
    exec(code, {"hf_model": hf, "torch": torch})
    assert same_logits(pl.from_hf(hf), hf)


def test_a_layer_norm_without_bias_adds_none() -> None:
    hf = small_hf()
    hf.transformer.ln_f.bias = None
    assert same_logits(pl.from_hf(hf), hf)


# The run at the end


def doubled_mlp(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old = modeling_gpt2.GPT2MLP.forward
    monkeypatch.setattr(modeling_gpt2.GPT2MLP, "forward", lambda self, x: old(self, x) * 2)


def changed(name: str) -> Callable[[Any, pytest.MonkeyPatch], None]:
    return lambda hf, monkeypatch: REFUSED[name].change(hf)


@pytest.mark.parametrize(
    ("change", "inspection", "where"),
    [
        (doubled_mlp, (foreign, "require_own_forwards"), "blocks.0.mlp.ckpt_mlp_out"),
        (changed("epsilon"), (living, "require_as_configured"), "blocks.1.ln1.ckpt_normalized"),
        (changed("scaling"), (living, "require_as_configured"), "blocks.0.attn.ckpt_z"),
        (changed("attention to later tokens"), (living, "require_as_configured"), "blocks.0.attn.ckpt_z"),
        (changed("layer numbers"), (living, "require_as_configured"), "blocks.1.attn.ckpt_z"),
        (changed("activation replaced"), (living, "require_as_configured"), "blocks.0.mlp.ckpt_post"),
        (changed("heads of the configuration"), (living, "require_as_configured"), "blocks.0.attn.ckpt_z"),
    ],
)
def test_the_run_at_the_end_notices_what_inspection_does_not(
    change: Any, inspection: tuple[Any, str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = small_hf()
    change(hf, monkeypatch)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    assert caught.value.code != "hf-computes-otherwise", "inspection names the change itself"
    monkeypatch.setattr(*inspection, lambda *_: None)
    with pytest.raises(pl.WeightsError, match=f"they first differ at {re.escape(where)}") as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-computes-otherwise"


def test_without_the_run_a_changed_model_is_copied_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both nets are taken away: this is what they are there for."""
    hf = small_hf()
    REFUSED["scaling"].change(hf)
    monkeypatch.setattr(living, "require_as_configured", lambda *_: None)
    monkeypatch.setattr("pellucid.open.require_agreement", lambda *_: None)
    assert not same_logits(pl.from_hf(hf), hf)


def test_the_other_way_ends_with_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pl.from_hf(small_hf())
    doubled_mlp(None, monkeypatch)
    with pytest.raises(pl.WeightsError, match=r"they first differ at blocks\.0\.mlp\.ckpt_mlp_out") as caught:
        pl.to_hf(model)
    assert caught.value.code == "hf-computes-otherwise"


OURS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "hook": (lambda m: m.blocks[0].resid_mid.register_forward_hook(doubling), "blocks.0.resid_mid has a hook"),
    "hook on the model": (lambda m: m.register_forward_pre_hook(doubling_input), "the model has a hook"),
    "patch": (
        lambda m: setattr(m.blocks[1].mlp, "forward", lambda x, tap=None: x),
        "blocks.1.mlp runs another forward",
    ),
    "activation": (lambda m: setattr(m.blocks[0].mlp, "act", torch.relu), "blocks.0.mlp.act is relu"),
    "epsilon": (lambda m: setattr(m.ln_final, "eps", 0.1), "ln_final.eps is 0.1"),
    "scale": (lambda m: setattr(m.blocks[0].attn, "scale", 1.0), "blocks.0.attn.scale is 1.0"),
    "configuration": (lambda m: setattr(m, "config", m.config.replace(layer_norm_epsilon=0.1)), "eps is 1e-05"),
    "checkpoint": (lambda m: setattr(m.blocks[0].attn, "ckpt_z", nn.Dropout()), "ckpt_z is Dropout, expected Ckpt"),
    "module": (lambda m: setattr(m.blocks[1], "mlp", nn.Identity()), "blocks.1.mlp.W_in: missing"),
    "block": (lambda m: setattr(m, "blocks", m.blocks[:1]), "blocks.1.ln1.w: missing"),
}


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("name", OURS)
def test_a_changed_model_of_ours_is_refused_by_name(name: str, numerics: str) -> None:
    model = pl.from_hf(small_hf(), numerics=numerics)
    change, word = OURS[name]
    change(model)
    with pytest.raises(pl.WeightsError) as caught:
        pl.to_hf(model)
    assert caught.value.code in ("changed-model", "weights-misfit")
    assert word in caught.value.message


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize(
    "fields", [{}, {"n_layer": 0}, {"n_positions": 1, "vocab_size": 1}, {"reorder_and_upcast_attn": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_right_is_refused(attention: str, fields: dict[str, Any], dtype: torch.dtype) -> None:
    hf = small_hf(**fields).to(dtype)
    model = pl.from_hf(hf, attention=attention)
    assert set(pl.to_hf(model).state_dict()) == set(hf.state_dict())


def test_weights_that_hold_nan_are_carried_over() -> None:
    hf = small_hf()
    with torch.no_grad():
        hf.transformer.h[0].attn.c_attn.weight[1, 2] = torch.nan
        hf.transformer.wte.weight[3, 1] = torch.inf
    with pytest.warns(pl.PellucidWarning, match="not finite"):
        model = pl.from_hf(hf)
    assert pl.to_hf(model).transformer.h[0].attn.c_attn.weight.isnan().sum() == 1


def test_neither_model_is_touched(capfd: pytest.CaptureFixture[str]) -> None:
    hf = small_hf(pad_token_id=1).train()
    hooks = [hf.transformer.h[0].register_full_backward_hook(lambda *_: None)]
    hf.transformer.wte.requires_grad_(False)
    modes = {name: module.training for name, module in hf.named_modules()}
    tensors = {name: (p.data_ptr(), p._version, p.requires_grad) for name, p in hf.named_parameters()}
    config, state = hf.config.to_dict(), torch.get_rng_state()
    capfd.readouterr()
    with torch.inference_mode(False), torch.enable_grad():
        model = pl.from_hf(hf)
    pl.to_hf(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in hf.named_modules()} == modes
    assert {name: (p.data_ptr(), p._version, p.requires_grad) for name, p in hf.named_parameters()} == tensors
    assert hf.config.to_dict() == config
    assert hf.config._attn_implementation == "sdpa"
    assert len(hf.transformer.h[0]._backward_hooks) == len(hooks)
    assert all(p.grad is None for p in [*hf.parameters(), *model.parameters()])
    assert capfd.readouterr() == ("", "")


def test_the_run_copies_only_what_does_not_lie_where_torch_allocates() -> None:
    hf = small_hf()
    odd = torch.randn(D * 4 * D + 1)[1:].view(D, 4 * D)
    hf.transformer.h[0].mlp.c_fc.weight.data = odd
    own = dict(opening.bare_copy(hf, GPT2.in_transformers, "sdpa").named_parameters())
    copied = [name for name, p in hf.named_parameters() if own[name].data_ptr() != p.data_ptr()]
    assert copied == ["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(own[copied[0]], odd)
    assert same_logits(pl.from_hf(hf), hf)


@pytest.mark.parametrize("change", ["act", "eps", "scaling"])
def test_a_copy_is_of_what_runs_not_of_what_the_configuration_says(change: str):
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4))
    block = hf.transformer.h[1]
    if change == "act":
        block.mlp.act = torch.nn.ReLU()
    elif change == "eps":
        block.ln_2.eps = 0.1
    else:
        block.attn.scaling = 1.0
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-differs-from-config"
