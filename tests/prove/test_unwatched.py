"""What is judged is what the caller runs: without hooks, on the caller's own modules, and on ids that show more."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from course import course, new_gelu
from rights import RIGHTS
from test_untouched import same, state
from torch import Tensor, nn

import pellucid as pl
import support

SMALL = {"vocab_size": 53, "n_positions": 64, "n_embd": 24, "n_layer": 1, "n_head": 4}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


# Programs that compute something else while hooks are on


def encoder(model: pl.CkptedTransformer, activation: Any) -> nn.Module:
    """torch's encoder layers with an even number of heads and an activation of torch, which its fused path takes."""
    made = RIGHTS["torch"](model)
    for i, layer in enumerate(made.layers):
        fused = nn.TransformerEncoderLayer(24, 4, 96, 0.1, activation=activation, batch_first=True, norm_first=True)
        fused.load_state_dict(layer.state_dict())
        made.layers[i] = fused
    return made.eval()


def test_a_fused_path_is_judged_and_not_the_watched_one(small: pl.CkptedTransformer) -> None:
    """With nn.GELU("tanh") torch's fused layers compute the erf GELU: that is what the caller gets."""
    erf = support.glass(**SMALL, activation_function="gelu")
    program = encoder(small, nn.GELU("tanh"))
    with torch.no_grad():
        caller = program(IDS)
        assert (caller - erf(IDS)).abs().max() < 1e-4 < (caller - small(IDS)).abs().max()
    report = pl.compare(small, program, IDS)
    assert report.verdict == "different", report
    assert "activation function gelu instead of gelu_new" in str(report.first_divergence)
    assert "without instruments the program computes something else" in " ".join(report.notes)
    right = pl.compare(erf, program, IDS)
    assert right.verdict == "equivalent", right
    assert "with gradients enabled the program computes something else" in " ".join(right.notes)
    assert [row.name for row in right.checkpoints] == ["logits"]


def test_another_rounding_is_not_identical() -> None:
    model = support.glass(**SMALL, activation_function="gelu")
    program = encoder(model, nn.GELU())
    report = pl.compare(model, program, IDS)
    assert report.verdict == "equivalent"
    assert "without instruments the program rounds in another way" in " ".join(report.notes)
    assert report.coverage["mlp.ckpt_post"] == (1, 1)
    wrong = pl.compare(support.glass(**SMALL), program, IDS)
    assert wrong.first_divergence is not None
    assert wrong.first_divergence.where == "blocks.0.mlp.ckpt_post"
    assert "gelu instead of gelu_new" in (wrong.first_divergence.cause or "")


class Depending(nn.Module):
    """Multiplies the logits by a factor that depends on the state around it."""

    def __init__(self, inner: nn.Module, odd: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.inner, self.odd = inner, odd

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids)
        return out * 1.01 if self.odd(self) else out


def hooked(module: nn.Module) -> bool:
    return any(child._forward_hooks for child in module.modules())


@pytest.mark.parametrize("watched", [True, False])
def test_a_forward_that_asks_for_hooks(watched: bool, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Depending(course(small), lambda module: hooked(module) is watched), IDS)
    assert report.verdict == ("equivalent" if watched else "different"), report


class InThread(nn.Module):
    """What it holds runs in a thread of its own, as the replicas of nn.DataParallel do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.inner, given).result()


def cast(model: pl.CkptedTransformer) -> nn.Module:
    """The course's program, which rounds to float32 before its head."""
    made = course(model)
    made.ln.register_forward_hook(lambda _, given, out: out.float().to(out))
    return made


def test_parts_that_run_in_other_threads_are_not_accused(small: pl.CkptedTransformer) -> None:
    """In a float64 run they are float64, too, though nothing that is set for a thread is set for theirs."""
    for mistake, verdict in (("", "equivalent"), ("erf gelu", "different")):
        part = course(small, mistake)
        for block in part.blocks:
            block.linear1 = InThread(block.linear1)
        for program in (InThread(course(small, mistake)), part):
            report = pl.compare(small, program, IDS)
            assert report.verdict == verdict, report
            assert verdict == "equivalent" or "gelu instead of gelu_new" in str(report.first_divergence)
    narrow = pl.compare(small, InThread(cast(small)), IDS)
    assert narrow.verdict == "inconclusive", narrow
    assert "computes in threads of its own" in " ".join(narrow.notes)


def test_gradients_and_modes(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Depending(course(small), lambda _: torch.is_grad_enabled()), IDS)
    assert report.verdict == "equivalent"
    assert "with gradients enabled the program computes something else, by 0.01" in " ".join(report.notes)
    assert not pl.compare(small, Depending(course(small), lambda _: not torch.is_grad_enabled()), IDS)
    assert pl.compare(small, Depending(course(small), lambda module: module.training).train(), IDS)
    assert not pl.compare(small, Depending(course(small), lambda module: not module.training).train(), IDS)


def test_traced_programs(small: pl.CkptedTransformer, recwarn: pytest.WarningsRecorder) -> None:
    traced = torch.jit.trace(RIGHTS["einsum"](small), IDS, check_trace=False)
    report = pl.compare(small, traced, IDS)
    assert report.verdict == "equivalent", report
    assert "judged by its logits" in " ".join(report.notes)
    assert report.sensitivity == {}
    wrong = torch.jit.trace(course(small, "eps 1e-6"), IDS, check_trace=False)
    assert not pl.compare(small, wrong, IDS)


@pytest.mark.parametrize(("wrong", "verdict"), [("", "equivalent"), ("eps 1e-6", "different")])
def test_compiled_programs(wrong: str, verdict: str) -> None:
    model = support.glass(**SMALL)
    compiled = torch.compile(course(model, wrong), backend="eager")
    assert pl.compare(model, compiled, IDS).verdict == verdict


# Programs that a deep copy is not


class Closing(nn.Module):
    """minGPT's blocks: the MLP is a closure over modules that a deep copy would share with the caller."""

    class Block(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.ln1, self.ln2, self.attn = block.ln1, block.ln2, block.attn
            self.mlp = nn.ModuleDict({"up": block.linear1, "down": block.linear2, "dropout": nn.Dropout(0.5)})
            m = self.mlp
            self.mlpf = lambda x: m["dropout"](m["down"](new_gelu(m["up"](x))))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.ln1(x))
            return x + self.mlpf(self.ln2(x))

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        made = course(model)
        self.words, self.places, self.end = made.token_embedding, made.pos_embedding, made.ln
        self.blocks = nn.ModuleList(self.Block(block) for block in made.blocks)

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        x = self.words(ids) + self.places(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.end(x) @ self.words.weight.T, None


def wrapped(model: pl.CkptedTransformer) -> nn.Module:
    """Forwards that are replaced on the instance, by closures and by partials, as wrappers for devices do it."""
    made = course(model)
    for block in made.blocks:
        for child in (block.attn, block.ln1, block.linear1):
            before = child.forward
            child.forward = functools.partial(lambda *given, module, inner: inner(*given), module=child, inner=before)
        inner = block.attn.forward
        block.attn.forward = lambda *given, inner=inner: inner(*given)
    return made


class Merging(nn.Module):
    """An adapter that writes into its parameters when the mode changes."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner = course(model)
        head = self.inner.token_embedding
        head.__class__ = type("Merged", (nn.Embedding,), {"train": self.merge})

    @staticmethod
    def merge(module: nn.Embedding, mode: bool = True) -> nn.Module:
        if mode != module.training:
            module.weight.data *= 0.5 if mode else 2.0
        return nn.Module.train(module, mode)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    support.few_of(
        itertools.product((Closing, wrapped), (torch.float32, torch.bfloat16, torch.float64)),
        (Closing, torch.float32), (wrapped, torch.float64),
    ),
)  # fmt: skip
def test_closures_and_patched_forwards(kind: Any, dtype: torch.dtype, small: pl.CkptedTransformer) -> None:
    made, reference = kind(small).train(), support.glass(**SMALL).to(dtype)
    before = state(made)
    report = pl.compare(reference, made, IDS)
    assert report.verdict == "equivalent", report
    assert report.coverage["mlp.ckpt_pre"] == (1, 1)
    assert same(before, state(made))


def test_what_is_written_into_is_the_caller_s_no_more(small: pl.CkptedTransformer) -> None:
    made = Merging(small).train()  # holds half of what it computes with when it evaluates
    assert torch.equal(made.inner.token_embedding.weight, small.embed.W_E / 2)
    before = state(made)
    report = pl.compare(small, made, IDS)
    assert same(before, state(made))
    assert report.verdict == "equivalent", report


class Lists(nn.Module):
    """Keeps what it saw in a list and in a mapping, and holds something that cannot be copied."""

    def __init__(self, model: pl.CkptedTransformer, *, raises: bool = False) -> None:
        super().__init__()
        self.inner, self.raises = course(model), raises
        self.seen: list[Tensor] = []
        self.lengths = {"last": 0}
        self.stream = (number for number in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        self.seen.append(ids)
        self.lengths["last"] = ids.size(1)
        if self.raises:
            raise ValueError("in the middle")
        return self.inner(ids) + 0.0 * len(self.seen)


@pytest.mark.parametrize("raises", [False, True])
def test_lists_and_mappings_stay(raises: bool, small: pl.CkptedTransformer) -> None:
    made = Lists(small, raises=raises).train()
    held = made.seen, made.lengths, made.stream
    before = state(made)
    assert bool(pl.compare(small, made, IDS)) is not raises
    assert same(before, state(made))
    assert (made.seen, made.lengths, made.stream) == ([], {"last": 0}, held[2])
    assert made.seen is held[0]


# Programs that take ids in another way


class Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.inner(input_ids)


class Batched(Named):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(batch, dict)
        assert batch["attention_mask"].shape == batch["input_ids"].shape
        return self.inner(batch["input_ids"])


class Refusing(Named):
    def forward(self, ids: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise IndexError("no such thing")


@pytest.mark.parametrize("kind", [Named, Batched])
def test_ids_by_name_and_in_a_mapping(kind: type[Named], small: pl.CkptedTransformer) -> None:
    assert pl.compare(small, kind(course(small)), IDS).verdict == "equivalent"
    report = pl.compare(small, kind(course(small, "no mask")), IDS)
    assert "no causal mask" in str(report.first_divergence)


def test_a_program_that_takes_nothing_is_said_so(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Refusing(course(small)), IDS)
    assert report.verdict == "inconclusive"
    assert "IndexError: no such thing" in " ".join(report.notes)


# What a short row does not show


class OverTheBatch(nn.Module):
    """Positions that run on from row to row."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner = course(model)

    def forward(self, ids: Tensor) -> Tensor:
        inner = self.inner
        places = torch.arange(ids.numel()).view(ids.shape).clamp(max=63)
        x = inner.blocks(inner.token_embedding(ids) + inner.pos_embedding(places))
        return inner.ln(x) @ inner.token_embedding.weight.T


def windowed(model: pl.CkptedTransformer) -> nn.Module:
    """Attention that sees 32 tokens."""

    def attention(self: Any, x: Tensor, cache: Any = None) -> Tensor:
        parts = self.qkv_proj(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        far = torch.arange(x.size(1))[:, None] - torch.arange(x.size(1))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=(far >= 0) & (far < 32))
        return self.output_proj(z.transpose(1, 2).flatten(2))

    made = course(model)
    for block in made.blocks:
        block.attn.__class__ = type("Windowed", (type(block.attn),), {"forward": attention})
    return made


class Forgetful(OverTheBatch):
    """Wrong at the last of its positions."""

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids)
        return torch.cat([out[:, :63], out[:, 63:] * 2], 1)


@pytest.mark.parametrize(
    ("build", "where"),
    [(OverTheBatch, "ckpt_pos_embed"), (windowed, "blocks.0.attn.ckpt_z"), (Forgetful, "logits")],
)
def test_a_probe_shows_what_the_inputs_hide(build: Any, where: str, small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, build(small), IDS[:1])
    assert report.verdict == "different", report
    assert report.first_divergence is not None
    assert report.first_divergence.where == where
    assert "shown on a probe of " in report.first_divergence.detail
    assert "ids, not on the inputs given" in report.first_divergence.detail


def test_a_program_that_takes_no_probe_is_not_accused(small: pl.CkptedTransformer) -> None:
    made = course(small)
    made.register_forward_pre_hook(lambda module, given: (given[0].view(2, 7),))
    report = pl.compare(small, made, IDS)
    assert report.verdict == "equivalent"
    assert "a probe of 2 x 63 ids could not be run" in " ".join(report.notes)


class Keeping(nn.Module):
    """A program that adds what it computed before to what it computes now, as an old cache would."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.before = inner, 0.0

    def forward(self, ids: Tensor) -> Tensor:
        out = self.inner(ids)
        given, self.before = out + self.before, 1e-3 * out.detach()
        return given


def test_a_program_that_keeps_something_is_right_only_once(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Keeping(course(small)), IDS)
    assert report.verdict == "different"
    assert "run once more, after other runs" in str(report.first_divergence)
    assert pl.compare(small, course(small), IDS)


class Writing(nn.Module):
    """Changes the ids that it is given, before it reads them or when they were read, or the targets beside them."""

    def __init__(self, model: pl.CkptedTransformer, when: str) -> None:
        super().__init__()
        self.model, self.when = pl.to_hf(model), when

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        if self.when == "before":
            input_ids[:, 0] = 0
        labels[:, :2] = -100  # which is usual
        logits = self.model(input_ids).logits
        if self.when == "after":
            input_ids.clamp_(max=3)
        return logits


@pytest.mark.parametrize(("when", "says"), [("before", "its own relative error"), ("after", "writes into the ids")])
def test_no_program_shares_its_ids_with_the_reference(when: str, says: str, small: pl.CkptedTransformer) -> None:
    """Else both run on what the program made of them, and agree."""
    ids = IDS.clone()
    report = pl.compare(small, Writing(small, when), ids)
    assert report.verdict == "different", report
    assert says in str(report.first_divergence)
    assert torch.equal(ids, IDS)


def test_targets_are_the_program_s_to_change(small: pl.CkptedTransformer) -> None:
    assert pl.compare(small, Writing(small, "never"), IDS)
