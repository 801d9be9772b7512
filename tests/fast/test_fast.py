"""Decoding by kernels of our own: the same tokens, values within float32 rounding, and what is left to torch."""

from __future__ import annotations

import copy
import itertools
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pellucid.fast import compiled, decoder
from pellucid.generate import stepper as stepping
from pellucid.gpt2 import kernels

CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "odd": {"n_embd": 30, "n_head": 5, "n_layer": 2, "activation_function": "gelu", "n_inner": 50, "vocab_size": 97},
    "wide": {"n_embd": 64, "n_head": 4, "n_inner": 64, "vocab_size": 256, "activation_function": "gelu_pytorch_tanh"},
    "one head": {"n_embd": 16, "n_head": 1, "activation_function": "relu", "scale_attn_weights": False},
    "heads of one": {"n_embd": 8, "n_head": 8, "n_layer": 1, "activation_function": "silu"},
    "no blocks": {"n_layer": 0},
    "quick": {"activation_function": "quick_gelu", "scale_attn_by_inverse_layer_idx": True, "layer_norm_epsilon": 1e-3},
}  # fmt: skip
LENGTHS = {"one": (6,), "two": (3, 3), "padded": (9, 2, 5), "nine": (4,) * 9, "many": tuple(range(1, 20))}

LAST_BITS = 1e-6
"""Eight times the spacing of float32: what a value may be off by where torch's own happens to be right."""


def fast_of(model: pl.CkptedTransformer, dtype: torch.dtype = torch.float32) -> pl.CkptedTransformer:
    return pl.CkptedTransformer(model.config, copy.deepcopy(model.state_dict()), numerics="fast").eval().to(dtype)


def steps(model: pl.CkptedTransformer, rows: list[list[int]], count: int = 12) -> tuple[Any, list[list[int]]]:
    out = model.generate(rows, max_new_tokens=count, names=None, end_ids=())
    return out.ckpts, [row.tolist() for row in out.ids]


def distance(a: pl.ActivationCkpts, b: pl.ActivationCkpts) -> dict[str, float]:
    """Name -> largest distance at real tokens, relative to the largest value."""
    found: dict[str, float] = {}
    for name, value in a.items():
        mask = a.batch.mask
        if name.endswith(("scores", "pattern")):
            mask = (mask[:, :, None] & mask[:, None, :]).tril()[:, None].expand_as(value)
        gap = (value.double() - b[name].double())[mask].abs().max()
        found[name] = float(gap / value.double()[mask].abs().max().clamp(min=1e-9))
    return found


def configurations() -> Iterator[Any]:
    """Each with pads; those that any number of rows could break, with each number of them."""
    for config, (name, lengths) in itertools.product(CONFIGS, LENGTHS.items()):
        every_run = name == "padded" or config == "odd" or (config, name) == ("heads of one", "many")
        yield pytest.param(config, lengths, marks=[] if every_run else [pytest.mark.long], id=f"{config}-{name}")


@pytest.mark.parametrize(("config", "lengths"), [*configurations()])
def test_every_value_is_as_near_to_float64_as_torchs_own(config: str, lengths: tuple[int, ...]) -> None:
    exact, double = (support.glass(dtype=dtype, **CONFIGS[config]) for dtype in (torch.float32, torch.float64))
    rows = support.ragged_ids(*lengths, vocab_size=exact.config.vocab_size)
    (truth, ids), (torchs, torch_ids), (ours, our_ids) = (steps(m, rows) for m in (double, exact, fast_of(exact)))
    assert ids == torch_ids == our_ids
    off, torch_off = distance(truth, ours), distance(truth, torchs)
    assert not {name: gap for name, gap in off.items() if not gap < 4 * (torch_off[name] + LAST_BITS)}


@pytest.mark.parametrize("options", [
    {"num_beams": 3}, {"sampler": pl.Sampler(top_k=20), "seed": 3}, {"num_beams": 2, "num_return_sequences": 2},
    {"sampler": pl.Sampler(temperature=0.7), "seed": 1, "num_return_sequences": 4}, {"overflow": "slide"},
], ids=str)  # fmt: skip
def test_every_way_of_decoding(options: dict[str, Any]) -> None:
    exact = support.glass()
    rows = support.ragged_ids(50, 44) if "overflow" in options else support.ragged_ids(6, 3)
    a, b = (m.generate(rows, max_new_tokens=16, end_ids=(11,), **options) for m in (exact, fast_of(exact)))
    assert [row.tolist() for row in a.ids] == [row.tolist() for row in b.ids]


def test_looking_does_not_change_a_bit() -> None:
    fast = fast_of(support.glass())
    free = fast.generate([[1, 2, 3], [4, 5]], max_new_tokens=10)
    for names in (None, "blocks.*.resid_post", "blocks.1.attn.ckpt_pattern"):
        seen = fast.generate([[1, 2, 3], [4, 5]], max_new_tokens=10, names=names)
        assert torch.equal(torch.stack(list(free.logprobs)), torch.stack(list(seen.logprobs)))


def test_bfloat16_weights_are_read_as_they_are() -> None:
    """Weights in bfloat16, sums in float32: as near to float64 on the rounded weights as float32 is."""
    exact = support.glass()
    half = fast_of(exact, torch.bfloat16)
    rounded = {name: tensor.bfloat16().double() for name, tensor in exact.state_dict().items()}
    truth = pl.CkptedTransformer(exact.config, rounded).eval()
    ids = support.some_ids(3, 9)
    cache = pl.KeyValueCache(half.config, 3, 20)
    runner = decoder.decoder(half, 3)
    assert runner is not None
    for column in range(9):
        cache.open(torch.ones(3, 1, dtype=torch.bool))
        logits, _ = runner.step(ids[:, column], torch.full((3,), column), cache)
    with torch.no_grad():
        expected = truth(ids)[:, -1]
    assert (logits - expected).abs().max() < 1e-4
    out = half.generate([[1, 2, 3]], max_new_tokens=5, names="blocks.*.resid_post")
    assert out.ckpts is not None
    assert out.ckpts["blocks.0.resid_post"].dtype == torch.bfloat16
    assert out.ckpts["blocks.0.resid_post"].shape == (1, 8, 48)


# The prepared copy


def test_a_write_into_a_parameter_is_noticed() -> None:
    fast = fast_of(support.glass())
    before = fast.generate([[1, 2, 3]], max_new_tokens=8)
    assert kernels.prepared(fast) is kernels.prepared(fast)
    with torch.no_grad():
        fast.blocks[1].attn.W_O[2].zero_()
    after = fast.generate([[1, 2, 3]], max_new_tokens=8)
    exact = pl.CkptedTransformer(fast.config, fast.state_dict()).eval()
    expected = exact.generate([[1, 2, 3]], max_new_tokens=8)
    assert (after.logprobs - expected.logprobs).abs().max() < 1e-4
    assert not torch.equal(before.logprobs, after.logprobs)


def test_refresh_after_a_write_that_nobody_counts() -> None:
    fast = fast_of(support.glass())
    before = fast.generate([[1, 2, 3]], max_new_tokens=8)
    fast.blocks[0].mlp.W_out.data.mul_(3.0)
    fast.refresh()
    after = fast.generate([[1, 2, 3]], max_new_tokens=8)
    expected = pl.CkptedTransformer(fast.config, fast.state_dict()).eval().generate([[1, 2, 3]], max_new_tokens=8)
    assert (after.logprobs - expected.logprobs).abs().max() < 1e-4
    assert not torch.equal(before.logprobs, after.logprobs)


def test_memory_is_stated_beforehand() -> None:
    fast = fast_of(support.glass())
    stated = pl.estimate_generation(fast, support.ragged_ids(5, 9), max_new_tokens=7, rows_each=2)
    assert stated.prepared == kernels.prepared(fast).nbytes == kernels.bytes_needed(fast)
    assert stated.cache == pl.KeyValueCache.bytes_needed(fast.config, 4, 16)
    exact = support.glass()
    assert pl.estimate_generation(exact, [[1]]).prepared == 0
    pages = [kept for kept in kernels.prepared(fast).kept if isinstance(kept, torch.Tensor)]
    assert pages[0].numel() == stated.prepared


def test_the_copy_goes_with_the_model() -> None:
    fast = fast_of(support.glass())
    kernels.prepared(fast)
    count = len(kernels._PREPARED)
    again = copy.deepcopy(fast)
    del fast
    assert len(kernels._PREPARED) == count - 1
    again.generate([[1, 2]], max_new_tokens=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_kernels_write_into_memory_of_their_own_dtype(dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    fast, default = fast_of(support.glass()), torch.get_default_dtype()
    expected = fast.generate([[1, 2], [3]], max_new_tokens=4, names="resid_post")
    request.addfinalizer(lambda: torch.set_default_dtype(default))
    torch.set_default_dtype(dtype)
    out = fast.generate([[1, 2], [3]], max_new_tokens=4, names="resid_post")
    assert [row.tolist() for row in out.ids] == [row.tolist() for row in expected.ids]
    assert out.ckpts is not None
    assert expected.ckpts is not None
    assert torch.equal(out.ckpts.stack("resid_post"), expected.ckpts.stack("resid_post"))


# What is left to torch


@pytest.mark.parametrize(
    "change",
    ["edit", "hook", "training", "rows", "activation", "float64", "patched", "replaced", "other eps", "other act"],
)
def test_what_the_kernels_do_not_do(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"activation_function": "mish"} if change == "activation" else {}
    fast = fast_of(support.glass(**config, **support.NO_DROPOUT))
    if change == "float64":
        fast = fast.double()
    calls: list[int] = []
    step = kernels.Decoder.step
    monkeypatch.setattr(kernels.Decoder, "step", lambda *args: calls.append(1) or step(*args))
    plain = support.ragged_ids(*([3] * (40 if change == "rows" else 2)))
    options: dict[str, Any] = {}
    if change == "edit":
        options["edits"] = pl.Edit.zero("blocks.0.attn.ckpt_z", heads=0)
    if change == "hook":
        seen: list[torch.Size] = []
        fast.blocks[1].mlp.ckpt_post.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    if change == "training":
        fast.train()
    block = fast.blocks[1]
    if change == "patched":
        block.mlp.forward = lambda x, tap=None: x * 0.5
    if change == "replaced":
        block.attn.ckpt_z = torch.nn.Dropout(0.0)
        block.attn.forward = lambda x, **_: (x, None)
    if change == "other eps":
        block.ln2.eps = 0.5
    if change == "other act":
        block.mlp.act = torch.relu
    fast.generate(plain, max_new_tokens=4, **options)
    assert not calls
    if change == "hook":
        assert len(seen) == 4
    fast_of(support.glass()).generate([[1, 2]], max_new_tokens=3)
    assert len(calls) == 2


# The compiler


QUICKER = tuple("-O0" if flag.startswith("-O") else flag for flag in compiled.FLAGS)
"""Quicker to compile, slower to run."""


@pytest.fixture
def _nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "FLAGS", QUICKER)
    compiled.library.cache_clear()
    yield
    compiled.library.cache_clear()


@pytest.mark.remedy("no-compiler")
@pytest.mark.usefixtures("_nothing_built")
def test_no_compiler_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = fast_of(support.glass())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(pl.NumericsError) as caught:
        fast.generate([[1, 2]], max_new_tokens=3)
    assert caught.value.code == "no-compiler"
    assert "numerics='exact'" in caught.value.remedy
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pl.NumericsError, match=r"no C\+\+ compiler"):
        fast.generate([[1, 2]], max_new_tokens=3)
    support.glass().generate([[1, 2]], max_new_tokens=3)
    monkeypatch.undo()
    monkeypatch.setenv("CXX", "g++")
    fast.generate([[1, 2]], max_new_tokens=3)


@pytest.mark.remedy("compiler-failed")
@pytest.mark.usefixtures("_nothing_built")
def test_another_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "old-compiler"
    old.write_text("#!/bin/sh\necho 'error: too old' >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    with pytest.raises(pl.NumericsError) as caught:
        compiled.library(kernels.SOURCE)
    assert "in CXX, such as g++" in caught.value.remedy
    monkeypatch.setenv("CXX", "g++")
    compiled.library(kernels.SOURCE)


@pytest.mark.usefixtures("_nothing_built")
def test_a_compiler_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {", encoding="utf-8")
    monkeypatch.setattr(kernels, "SOURCE", broken)
    with pytest.raises(pl.NumericsError) as caught:
        compiled.library(kernels.SOURCE)
    assert caught.value.code == "compiler-failed"
    assert "error" in caught.value.message
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.remedy("kernel-cache")
@pytest.mark.usefixtures("_nothing_built")
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "file"))
    with pytest.raises(pl.NumericsError) as caught:
        compiled.library(kernels.SOURCE)
    assert caught.value.code == "kernel-cache"
    assert "in PELLUCID_CACHE" in caught.value.remedy
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "folder"))
    compiled.library(kernels.SOURCE)


@pytest.mark.usefixtures("_nothing_built")
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled.library(kernels.SOURCE)
    (built,) = (tmp_path / "cache").rglob("*.so")
    compiled.library.cache_clear()
    monkeypatch.setattr(compiled, "_build", lambda *_: pytest.fail("compiled again"))
    compiled.library(kernels.SOURCE)
    assert built.is_file()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of one kind")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is the compiler that says so")
@pytest.mark.parametrize("processor", support.few_of(["x86-64", "x86-64-v3", "x86-64-v4"], "x86-64-v3"))
def test_vectors_are_no_wider_than_registers(processor: str) -> None:
    """Wider ones live in memory: with AVX2, kernels for AVX512 took four times transformers' time."""
    flags = [flag for flag in compiled.FLAGS if not flag.startswith("-march")]
    command = ["g++", *flags, f"-march={processor}", "-O0", "-Werror=psabi", "-S", "-o", "-", str(kernels.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Mutants: each check must fail on kernels or preparations that are broken


def near_to_float64(config: str = "tied") -> None:
    test_every_value_is_as_near_to_float64_as_torchs_own(config, LENGTHS["padded"])


def source_with(tmp: Path, old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    def breaks(patch: pytest.MonkeyPatch) -> None:
        text = kernels.SOURCE.read_text(encoding="utf-8")
        assert text.count(old) == 1, "the mutant has nothing to change"
        broken = tmp / "decode.cpp"
        broken.write_text(text.replace(old, new), encoding="utf-8")
        patch.setattr(kernels, "SOURCE", broken)

    return breaks


SOURCE_MUTANTS = {  # name -> (what stands in the source, what stands there instead, the configuration that shows it)
    "every row has the first one's pads": ("mask = cache.mask + size_t(row)", "mask = cache.mask + size_t(0)", "tied"),
    "the scale is forgotten": ("* scale : hidden", "* 1.0f : hidden", "tied"),
    "the newest key is forgotten": ("length = cache.length + 1", "length = cache.length", "tied"),
    "biases are forgotten": ("bias ? load(bias + from + n * LANES) : Vector{}", "Vector{}", "tied"),
    "every part of a block is the first": ("load(row + n * LANES)", "load(row)", "odd"),
    "variance without centring": ("load(x + i) - mean;", "load(x + i);", "tied"),
    "epsilon is forgotten": ("squares / width + eps", "squares / width", "quick"),
    "GELU is a sigmoid": ("1.5957691216f * (v + 0.044715f * v * v * v)", "1.702f * v", "tied"),
    "the erf is coarse": ("1.061405429f", "1.061f", "odd"),
    "the residual is not added to": ("x[size_t(m) * d + j] += room.out", "x[size_t(m) * d + j] = room.out", "tied"),
}  # fmt: skip


@pytest.mark.usefixtures("_nothing_built")
@pytest.mark.parametrize("name", support.few_of(SOURCE_MUTANTS, "the newest key is forgotten"))
def test_broken_kernels_are_noticed(name: str, tmp_path: Path) -> None:
    old, new, config = SOURCE_MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        source_with(tmp_path, old, new)(patch)
        with pytest.raises(AssertionError):
            near_to_float64(config)


@pytest.mark.parametrize(
    ("defined", "processor"), support.few_of([("__AVX512F__", "x86-64-v3"), ("__AVX__", "x86-64")], "__AVX512F__")
)
def test_vectors_that_are_too_wide_are_noticed(
    defined: str, processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_with(tmp_path, f"defined({defined})", "1")(monkeypatch)
    with pytest.raises(AssertionError, match="changes the ABI"):
        test_vectors_are_no_wider_than_registers(processor)


def test_a_conversion_drops_what_was_prepared() -> None:
    model = fast_of(support.glass())
    model.generate([[1, 2, 3]], max_new_tokens=2)
    assert model in kernels._PREPARED
    model.half().float()
    assert model not in kernels._PREPARED


def never_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pl.CkptedTransformer, "_apply", torch.nn.Module._apply)


def never_outdated(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernels, "state_of", lambda model: ())


def never_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pellucid.generate.generating.forget", lambda model: None)


def a_hook_runs() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_what_the_kernels_do_not_do("hook", patch)


def hooks_are_not_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(decoder, "has_native_hooks", lambda modules: False)
    patch.setattr(stepping, "has_native_hooks", lambda modules: False)


@pytest.mark.parametrize(("breaks", "check"), [
    (never_outdated, test_a_write_into_a_parameter_is_noticed),
    (never_dropped, test_a_conversion_drops_what_was_prepared),
    (never_forgotten, test_refresh_after_a_write_that_nobody_counts),
    (hooks_are_not_seen, a_hook_runs),
])  # fmt: skip
def test_broken_preparations_are_noticed(breaks: Callable[[Any], None], check: Callable[[], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises(AssertionError):
            check()


def test_masked_scores_of_decoded_columns_hold_the_least_number_of_the_dtype():
    model = support.glass(numerics="fast", dtype=torch.bfloat16)
    out = model.generate([[1, 2, 3], [4]], max_new_tokens=3, names="**.ckpt_scores", end_ids=())
    assert out.ckpts is not None
    for scores in out.ckpts.values():
        assert scores.dtype == torch.bfloat16
        assert torch.isfinite(scores).all()


def test_compiled_kernels_that_were_cut_off_are_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(compiled, "FLAGS", QUICKER)
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    built = tmp_path / "pellucid" / f"decode-{compiled._fingerprint(kernels.SOURCE, compiled._compiler())}.so"
    built.parent.mkdir()
    built.write_bytes(b"cut off")
    assert compiled.library.__wrapped__(kernels.SOURCE)
    assert built.stat().st_size > 1000


def test_no_home_for_compiled_kernels(monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PELLUCID_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(pl.NumericsError) as caught:
        compiled.library.__wrapped__(kernels.SOURCE)
    assert caught.value.code == "kernel-cache"
