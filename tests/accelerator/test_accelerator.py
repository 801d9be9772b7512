"""The promises on an accelerator: run where torch sees one, skipped elsewhere.

pytest tests/accelerator
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from pellucid.fast import decoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no accelerator")

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "upcast": {"reorder_and_upcast_attn": True},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "untied": {"tie_word_embeddings": False},
    "odd": {"n_embd": 30, "n_head": 5, "activation_function": "gelu", "n_inner": 50},
    "wide heads": {"n_embd": 512, "n_head": 2, "activation_function": "relu"},
}
RAGGED = support.ragged_ids(3, 11, 7)


def pair(**fields: Any) -> tuple[pl.CkptedTransformer, Any]:
    """Ours and transformers', on the accelerator."""
    attention = fields.pop("attention", "sdpa")
    hf = support.reference(attention=attention, **fields).to(DEVICE)
    return pl.from_hf(hf), hf


def glass(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(**fields).to(DEVICE)


def numerics(model: pl.CkptedTransformer, kind: str) -> pl.CkptedTransformer:
    return pl.CkptedTransformer(model.config, copy.deepcopy(model.state_dict()), numerics=kind).eval()


def some_ids(rows: int, columns: int, vocab_size: int = support.SIZES["vocab_size"], seed: int = 0) -> Tensor:
    return support.some_ids(rows, columns, vocab_size, seed).to(DEVICE)


# Equal to transformers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("odd", ODD)
def test_exact(odd: str, attention: str, dtype: torch.dtype) -> None:
    ours, hf = pair(attention=attention, dtype=dtype, **ODD[odd])
    assert ours.device.type == DEVICE
    for rows, length in ((1, 1), (1, 16), (3, 11), (2, 37)):
        checks.exact(ours, hf, some_ids(rows, length))
    for side in ("left", "right"):
        batch = ours.tokenize(RAGGED, padding_side=side)
        checks.exact(ours, hf, batch.ids, batch)
    checks.laid_out_alike(ours, hf, some_ids(2, 11))
    checks.last_position(ours, hf, some_ids(2, 11))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpt2_small_at_true_size(dtype: torch.dtype) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    hf = support.spread(GPT2LMHeadModel(GPT2Config())).eval().to(DEVICE, dtype)
    ours = pl.from_hf(hf)
    for rows, length in ((1, 128), (4, 512), (1, 1024)):
        ids = some_ids(rows, length, 50257)
        with torch.no_grad():
            assert torch.equal(ours(ids), hf(ids).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_autocast(attention: str) -> None:
    ours, hf = pair(attention=attention)
    checks.exact(ours, hf, some_ids(2, 37), context=lambda: torch.autocast(DEVICE, dtype=torch.bfloat16))


def test_training_step() -> None:
    ours, hf = pair(**support.NO_DROPOUT, attention="eager")  # fused backward passes may sum in any order
    ids = some_ids(2, 11)
    hf.train()
    ours.train()
    hf(ids).logits.square().mean().backward()
    ours(ids).square().mean().backward()
    for i, block in enumerate(hf.transformer.h):
        assert torch.equal(ours.grad(f"blocks.{i}.mlp.W_in"), block.mlp.c_fc.weight.grad)
        assert torch.equal(ours.grad(f"blocks.{i}.attn.W_QKV"), block.attn.c_attn.weight.grad)


def test_every_checkpoint_is_that_of_the_processor() -> None:
    """In float64, where the two differ by rounding alone."""
    model = support.glass(dtype=torch.float64)
    logits, ckpts = model.run_with_ckpts(RAGGED)
    there_logits, there = copy.deepcopy(model).to(DEVICE).run_with_ckpts(RAGGED)
    mask = ckpts.batch.mask
    assert support.close(there_logits.cpu()[mask], logits[mask])
    assert list(there) == list(ckpts)
    for name, value in ckpts.items():
        assert there[name].device.type == DEVICE
        a, b = (t.transpose(1, 2) if name.endswith(("scores", "pattern")) else t for t in (there[name].cpu(), value))
        assert support.close(a[mask], b[mask]), name


@pytest.mark.parametrize("kind", ["identical", "different"])
def test_compare(kind: str) -> None:
    ours, hf = pair()
    if kind == "different":
        with torch.no_grad():
            ours.blocks[1].attn.b_O[3] += 0.5
    report = pl.compare(ours, hf, inputs=[row[:3] for row in RAGGED])
    assert report.verdict == kind


# Looking


@pytest.mark.parametrize("kind", ["exact", "fast", "bfloat16", "eager", "half"])
def test_looking(kind: str) -> None:
    plain = glass(attention="eager") if kind == "eager" else glass()
    model = {"half": plain.half, "eager": lambda: plain}.get(kind, lambda: numerics(plain, kind))()
    for inputs in (RAGGED, some_ids(2, 37)):
        checks.looking(model, inputs)
        for name in ("blocks.1.attn.ckpt_pattern", "blocks.*.ln1.ckpt_scaled", "**.ckpt_z"):
            checks.looking(model, inputs, names=name)
        checks.looking(model, inputs, names="**.ckpt_pattern", pos=[0, -1], heads=1)
    state = torch.cuda.get_rng_state()
    model.run_with_ckpts(RAGGED)
    assert torch.equal(torch.cuda.get_rng_state(), state), "looking draws random numbers"
    checks.snapshots(model, RAGGED)
    checks.snapshots_of_the_past(model, RAGGED)
    checks.stops(model, [RAGGED[1]])


def test_edits() -> None:
    edit = pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[2])
    processor, model = support.glass(dtype=torch.float64), glass(dtype=torch.float64)
    expected, _ = processor.run_with_ckpts([RAGGED[1]], edits=[edit])
    found, _ = model.run_with_ckpts([RAGGED[1]], edits=[edit])
    assert support.close(found.cpu(), expected)
    assert not support.close(found, model([RAGGED[1]]))


def test_what_was_captured_goes_on_into_everything_else(tmp_path: Path) -> None:
    model, processor = glass(), support.glass()
    rows = [support.some_ids(1, 30, seed=i)[0].tolist() for i in range(3)]
    _, ckpts = model.run_with_ckpts(rows)
    ckpts.save(tmp_path / "ckpts.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "ckpts.safetensors")
    assert all(torch.equal(again[name], value.cpu()) for name, value in ckpts.items())
    norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
    expected = pl.measure.norms(processor.run_with_ckpts(rows)[1], "attn.ckpt_attn_out", log=True)
    assert abs(norms - expected).max() < 1e-4
    assert pl.measure.autoregression(norms, lags=2, skip=1).params.shape[0] == model.config.n_layer


# Nothing waits


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_a_prepared_batch_runs_without_waiting() -> None:
    """No number is asked for on the way, so that the processor runs ahead."""
    for kind in ("exact", "fast", "bfloat16"):
        model = numerics(glass(), kind)
        for inputs in (RAGGED, some_ids(2, 11)):
            batch = model.tokenize(inputs)
            with torch.no_grad():
                model(batch)
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    model(batch)
                    model.run_with_ckpts(batch)
                finally:
                    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("ids", [[[211]], [[-1]], [list(range(65))]], ids=["beyond", "negative", "long"])
def test_bad_ids_are_an_error_and_not_the_end_of_the_process(ids: list[list[int]]) -> None:
    model = glass()
    for given in (torch.tensor(ids), torch.tensor(ids, device=DEVICE), ids):
        with pytest.raises(pl.InputError):
            model(given)
    assert torch.isfinite(model([[1, 2, 3]])).all()


def test_ids_from_elsewhere() -> None:
    model, processor = glass(), support.glass()
    with torch.no_grad():
        assert torch.equal(model(some_ids(2, 11)), model(some_ids(2, 11).cpu()))
        assert processor(some_ids(2, 11)).device.type == "cpu"


def test_no_attention_matrix_is_made() -> None:
    hf = support.reference(n_positions=1024).to(DEVICE)
    model, ids = pl.from_hf(hf), some_ids(4, 1024)
    matrix = 4 * model.config.n_head * 1024 * 1024 * 4
    with torch.no_grad():
        assert peak(lambda: model(ids)) < matrix
        assert peak(lambda: model.run_with_ckpts(ids, names="blocks.0.attn.ckpt_pattern")) > matrix


def peak(run: Callable[[], Any]) -> int:
    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


# Recorded graphs


@pytest.mark.parametrize("kind", ["exact", "fast", "bfloat16"])
def test_a_run_can_be_recorded(kind: str) -> None:
    """Replayed on other ids, it gives what a run gives, to the bit, and captures what it captures."""
    model = numerics(glass(), kind)
    ids, others = some_ids(2, 11), some_ids(2, 11, seed=5)
    static = ids.clone()
    with torch.no_grad():
        model.run_with_ckpts(ids)
        model.next_token_logits(ids)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(static)
            looked, ckpts = model.run_with_ckpts(static)
            last = model.next_token_logits(static)
        for given in (others, ids):
            static.copy_(given)
            graph.replay()
            expected, captured = model.run_with_ckpts(given)
            assert torch.equal(logits, expected)
            assert torch.equal(looked, expected)
            assert torch.equal(last, model.next_token_logits(given))
            assert all(torch.equal(ckpts[name], value) for name, value in captured.items())


def test_a_padded_batch_can_be_recorded() -> None:
    model = glass()
    batch = model.tokenize(RAGGED)
    with torch.no_grad():
        expected = model(batch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(batch)
        logits.zero_()
        graph.replay()
        assert torch.equal(logits, expected)


# Generation


def theirs(hf: Any, rows: list[list[int]], *, new: int, **options: Any) -> list[list[int]]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=DEVICE)
    torch.manual_seed(3)
    out = hf.generate(ids, attention_mask=mask, max_new_tokens=new, eos_token_id=None, pad_token_id=0, **options)
    return out[:, width:].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["greedy", "sampled", "beams"])
def test_generation_equals_transformers(way: str, dtype: torch.dtype) -> None:
    ours, hf = pair(dtype=dtype)
    said: dict[str, Any] = {
        "greedy": {"do_sample": False},
        "sampled": {"do_sample": True, "top_k": 20, "temperature": 0.8},
        "beams": {"do_sample": False, "num_beams": 3},
    }[way]
    asked: dict[str, Any] = {
        "greedy": {},
        "sampled": {"sampler": pl.Sampler(top_k=20, temperature=0.8), "seed": 3},
        "beams": {"num_beams": 3},
    }[way]
    for rows in (RAGGED, [RAGGED[1]]):
        out = ours.generate(rows, max_new_tokens=12, end_ids=(), **asked)
        found = [row[-12:].tolist() for row in out.ids]
        assert found == theirs(hf, rows, new=12, **said)


@pytest.mark.parametrize("kind", ["fast", "bfloat16"])
@pytest.mark.parametrize("options", [
    {}, {"num_beams": 3}, {"sampler": pl.Sampler(top_k=20), "seed": 3}, {"num_return_sequences": 4},
    {"names": "blocks.*.resid_post"}, {"overflow": "slide", "max_new_tokens": 60},
], ids=str)  # fmt: skip
def test_replayed_steps_give_the_tokens_of_plain_ones(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = glass()
    model = numerics(exact, kind)
    replays: list[int] = []
    plain = decoder.recorded

    def counted(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        replay = plain(run, device)
        return lambda: (replays.append(1), replay())[1]

    monkeypatch.setattr(decoder, "recorded", counted)
    asked = {"max_new_tokens": 24, "end_ids": (), **options}
    if asked.get("num_return_sequences"):
        asked["sampler"] = pl.Sampler(temperature=0.7)
        asked["seed"] = 1
    for rows in (RAGGED, [RAGGED[1]]):
        replayed = model.generate(rows, **asked)
        with monkeypatch.context() as patch:
            patch.setattr("pellucid.generate.stepper.decoder", lambda *a, **k: None)
            plain_steps = model.generate(rows, **asked)
        assert [row.tolist() for row in replayed.ids] == [row.tolist() for row in plain_steps.ids]
        a, b = (torch.nan_to_num(torch.stack(list(out.logprobs))) for out in (replayed, plain_steps))
        assert float((a - b).abs().max()) < (1e-4 if kind == "fast" else 0.1)
    assert bool(replays) == ("names" not in options)


@pytest.mark.parametrize("kind", ["fast", "bfloat16"])
def test_replays_see_a_weight_that_changes(kind: str) -> None:
    plain = glass()
    tokens = [checks.written_to_meanwhile(numerics(plain, kind), write) for write in (None, "in place", "anew")]
    assert tokens[0][:12] == tokens[1][:12]
    assert tokens[0] != tokens[1]
    assert tokens[1] == tokens[2]


def test_two_threads_generate() -> None:
    model = numerics(glass(), "fast")
    alone = [model.generate([row], max_new_tokens=30, end_ids=()).ids.tolist() for row in RAGGED]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda row: model.generate([row], max_new_tokens=30, end_ids=()).ids.tolist(), RAGGED))
    assert together == alone


# What the documentation shows, opening and keeping


def test_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accelerators.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


def test_opening_saving_and_back(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import GPT2LMHeadModel

    model = pl.load(device=DEVICE)
    with torch.no_grad():
        logits = model("Once upon a time")
        ids = model.tokenize("Once upon a time").ids
        assert torch.equal(pl.from_hf(pl.to_hf(model))(ids), logits)
        model.save_pretrained(tmp_path)
        assert torch.equal(pl.load(tmp_path, device=DEVICE)("Once upon a time"), logits)
        hf = GPT2LMHeadModel.from_pretrained(tmp_path).to(DEVICE)
        assert torch.equal(hf(ids).logits, logits)
    assert pl.audit_ties(model).after_reload.survives is True
    assert pl.count_parameters(model).unique == pl.count_parameters(pl.load()).unique
