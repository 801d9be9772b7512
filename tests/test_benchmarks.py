"""The benchmarks keep their rules: alternating, pinned, equal before timed; and the page says what the JSON says."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import support

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
PEERS = {"transformer_lens", "nnsight", "torchlens"}


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by their bare names, which must not stay importable for other tests."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in SCRIPTS:  # a folder of tests may have the same name
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in SCRIPTS:
            del sys.modules[name]


@pytest.fixture
def harness() -> Any:
    import harness

    return harness


@pytest.fixture
def report(tmp_path: Path) -> Any:
    """A report that goes nowhere near docs/."""
    from report import Options, Report

    return Report("made_up", Options(out=tmp_path))


# Scripts


@pytest.mark.long
def test_every_script_imports_without_the_peers() -> None:
    """In one fresh process, in which importing a peer fails: peers are imported where they are used.

    So does importing pytest, which their environment lacks.
    """
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        f"for name in {[*sorted(PEERS), 'pytest']!r}: sys.modules[name] = None\n"
        f"for name in {SCRIPTS!r}: __import__(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def late_harness(source: str) -> bool:
    """Whether a script imports torch, directly or by ours, before the harness has pinned the threads."""
    heavy = {"torch", "pellucid", "models", "contest", "limits", "capture", "numpy", "statsmodels"}
    for node in ast.parse(source).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        roots = {name.split(".")[0] for name in names}
        if roots & {"harness"}:
            return False
        if roots & heavy:
            return True
    return False


@pytest.mark.parametrize("name", SCRIPTS)
def test_threads_are_pinned_before_torch_is_imported(name: str) -> None:
    assert not late_harness((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"))


def test_a_late_pin_is_noticed() -> None:
    assert late_harness("import torch\nfrom harness import compete\n")
    assert late_harness("from models import reference\nimport harness\n")
    assert not late_harness("import json\nimport harness\nimport torch\n")


def test_threads_are_those_that_the_environment_asks_for() -> None:
    program = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import harness; print(harness.THREADS)"
    for wanted in ("1", "2"):
        env = {**os.environ, "OMP_NUM_THREADS": wanted}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == wanted


def test_every_script_has_a_section_and_is_run() -> None:
    import bench
    import page

    runnable = {name for name in SCRIPTS if "def main()" in (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")}
    assert runnable == set(page.SECTIONS) == {*bench.SCRIPTS, *bench.ON_ACCELERATORS}
    assert bench.SCRIPTS[0] == "limits"


# Rounds


def test_everyone_runs_in_every_round_and_the_order_rotates(harness: Any) -> None:
    seen: list[str] = []
    samplers = {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "abc"}
    taken = harness.alternate(samplers, 4)
    assert [sorted(seen[i : i + 3]) for i in range(0, 12, 3)] == [list("abc")] * 4
    assert [seen[i] for i in range(0, 12, 3)] == list("abca"), "nobody is always first"
    assert taken == {name: [float(i + 1) for i, one in enumerate(seen) if one == name] for name in "abc"}


def test_a_ratio_is_taken_within_rounds(harness: Any) -> None:
    samples = harness.Samples({"ours": [1.0, 10.0, 3.0], "theirs": [2.0, 20.0, 6.0]})
    assert samples.ratio("ours", "theirs") == harness.Spread(0.5, 0.5, 0.5)
    disturbed = harness.Samples({"ours": [1.0, 1.0, 9.0], "theirs": [2.0, 2.0, 2.0]})
    assert disturbed.ratio("ours", "theirs").median == 0.5, "one disturbed round does not move a median"
    assert disturbed.fastest(["ours", "theirs"]) == "ours"
    with pytest.raises(ValueError, match="argument"):
        harness.Samples({"ours": [1.0], "theirs": [1.0, 2.0]}).ratio("ours", "theirs")


def test_short_calls_are_repeated_equally_often(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    counts = {"quick": 0, "slow": 0}

    def call(name: str) -> None:
        counts[name] += 1

    samples = harness.compete({name: lambda name=name: call(name) for name in counts}, rounds=3, at_least=1e-3)
    assert samples.repeats > 1
    assert counts == dict.fromkeys(counts, 2 + 3 * samples.repeats)


def test_an_accelerator_is_waited_for(harness: Any) -> None:
    waited: list[int] = []
    harness._seconds(lambda: None, 2, lambda: waited.append(1))
    assert len(waited) == 2, "before the clock starts and before it stops"


# Equality


def test_equal_bits_pass_and_one_bit_does_not(harness: Any) -> None:
    a = torch.randn(4, 5)
    b = a.clone()
    b[2, 3] = torch.nextafter(b[2, 3], torch.tensor(9.0))
    assert harness.require_equal({"a": a, "same": a.clone()}) == 0.0
    with pytest.raises(harness.ResultsDifferError, match="b and a differ"):
        harness.require_equal({"a": a, "b": b})
    assert 0 < harness.require_equal({"a": a, "b": b}, within=1e-3, because="one bit") < 1e-3


@pytest.mark.parametrize(
    "wrong", [torch.full((3,), torch.nan), torch.zeros(4), torch.ones(3, dtype=torch.float64), torch.ones(3) * 1.1]
)
def test_what_is_not_equal_is_refused(harness: Any, wrong: torch.Tensor) -> None:
    with pytest.raises(harness.ResultsDifferError):
        harness.require_equal(
            {"a": torch.ones(3), "b": wrong.clone() if wrong.dtype != torch.float64 else wrong + 1e-9}
        )


def test_a_tolerance_needs_its_reason(harness: Any) -> None:
    with pytest.raises(AssertionError, match="reason"):
        harness.require_equal({"a": torch.ones(1), "b": torch.ones(1)}, within=1.0)


@pytest.fixture
def small() -> Any:
    """A small model of ours, and transformers' with the same weights."""
    pytest.importorskip("transformers")
    import support

    return support.pair()


def contender(run: Any, bounds: Any = None) -> Any:
    from contest import Contender

    return Contender(run, lambda out: out, bounds)


def test_a_peer_that_differs_or_fails_is_left_out_and_named(report: Any) -> None:
    from contest import Admission

    one = {"logits": torch.ones(3)}

    def broken() -> Any:
        raise OSError("no such file")

    runs = {"pellucid": lambda: one, "wrong": lambda: {"logits": torch.zeros(3)}, "broken": broken,
            "poor": lambda: {"other": torch.ones(3)}, "right": lambda: one}  # fmt: skip
    admitted = Admission(report, "work").admit({name: contender(run) for name, run in runs.items()})
    assert list(admitted) == ["pellucid", "right"]
    assert [failure["contender"] for failure in report.failures] == ["wrong", "broken", "poor"]
    assert "OSError: no such file" in report.failures[1]["how"]
    assert report.facts["compared"]["work"]["right"]["numbers"] == 3


def test_ours_that_differs_stops_everything(report: Any, harness: Any) -> None:
    from contest import Admission

    runs = {"transformers": lambda: {"logits": torch.ones(3)}, "pellucid, fast": lambda: {"logits": torch.zeros(3)}}
    with pytest.raises(harness.ResultsDifferError):
        Admission(report, "work").admit({name: contender(run) for name, run in runs.items()})


def test_bounds_tell_rounding_from_a_wrong_epsilon(small: Any, report: Any, harness: Any) -> None:
    """Eager attention sums in another order and passes; a LayerNorm's epsilon of 1e-6 does not."""
    import pellucid as pl
    from contest import Admission, agreement, captured_bounds

    model, hf = small
    ids = torch.arange(24).view(1, 24)
    with torch.no_grad():
        logits, ckpts = model.run_with_ckpts(ids)
        bounds = captured_bounds(model, ids, ckpts)
        expected = {**ckpts, "logits": logits}
        eager = pl.from_hf(hf, attention="eager")
        epsilon = pl.CkptedTransformer(model.config.replace(layer_norm_epsilon=1e-6), model.state_dict()).eval()
        runs = {
            name: (lambda one=one: one.run_with_ckpts(ids)) for name, one in (("eager", eager), ("epsilon", epsilon))
        }
        found = {name: {**run()[1], "logits": run()[0]} for name, run in runs.items()}
    assert set(bounds) == set(expected)
    result = agreement(expected, found["eager"], contender(None, bounds), at_least=50)
    assert result["values"] == len(model.ckpt_names) + 1
    with pytest.raises(harness.ResultsDifferError):
        agreement(expected, found["epsilon"], contender(None, bounds))
    with pytest.raises(harness.ResultsDifferError, match="shown by both"):
        agreement(expected, {"logits": logits}, contender(None, bounds), at_least=2)
    assert Admission(report, "work").compared == {}


def test_scores_are_compared_where_they_are_visible(harness: Any) -> None:
    """Each library writes another number where the mask is; a wrong visible score is still seen."""
    from contest import agreement

    ours = torch.tensor([[0.5, torch.finfo(torch.float32).min]])
    theirs = torch.tensor([[0.5, -torch.inf]])
    assert agreement({"s": ours}, {"s": theirs}, contender(None))["largest difference"] == 0.0
    with pytest.raises(harness.ResultsDifferError):
        agreement({"s": ours}, {"s": theirs + 0.25}, contender(None))


def test_names_of_peers_lead_to_ours() -> None:
    from peers import LENS_AROUND, LENS_NAMES, NNSIGHT_NAMES, SHOWN_BY_NNSIGHT
    from pellucid.schema import select

    known = support.schema(12)
    assert set(LENS_NAMES.values()) == set(known.in_blocks)
    assert set(LENS_AROUND.values()) == set(known.around)
    assert set(NNSIGHT_NAMES.values()) < set(known.in_blocks)
    assert len(select(SHOWN_BY_NNSIGHT, support.schema(12).names)) == 12 * (len(NNSIGHT_NAMES) + 4) + 2


def test_texts_that_are_not_greedy_are_refused(small: Any, report: Any, harness: Any, monkeypatch: Any) -> None:
    import generate

    model, hf = small
    monkeypatch.setattr(generate, "PROMPT", 8)
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        right = {"transformers": generate.theirs(hf, ids, 6), "pellucid": generate.ours(model, ids, 6)}
        generate.check(report, right, dict.fromkeys(right, model))
        text = right["pellucid"]()
        wrong = text.clone()
        wrong[0, -1] = (wrong[0, -1] + 1) % model.config.vocab_size
        with pytest.raises(harness.ResultsDifferError, match="other ids"):
            generate.check(report, {**right, "pellucid": lambda: wrong}, dict.fromkeys(right, model))
        fast = {"transformers": right["transformers"], "pellucid, fast": lambda: wrong}
        with pytest.raises(harness.ResultsDifferError, match="nats behind"):
            generate.check(report, fast, dict.fromkeys(fast, model))
        peer = {"transformers": right["transformers"], generate.STATIC: lambda: wrong}
        generate.check(report, peer, dict.fromkeys(peer, model))
    assert list(peer) == ["transformers"], "a peer is left out and named"
    assert report.failures[0]["contender"] == generate.STATIC
    assert text.shape == (1, 14)


def test_a_comparison_of_unlike_models_is_not_timed(small: Any, harness: Any) -> None:
    import compare

    model, hf = small
    ids = torch.arange(8).view(1, 8)
    assert compare.identical(model, hf, ids)
    other = model.__class__(model.config, {name: value.clone() for name, value in model.state_dict().items()}).eval()
    with torch.no_grad():
        other.blocks[1].mlp.W_in[3, 3] += 0.01
    with pytest.raises(harness.ResultsDifferError, match="two copies"):
        compare.identical(other, hf, ids)


# Numbers


def test_growth_finds_the_exponent() -> None:
    from compare import exponents, growth
    from harness import Samples

    sizes = {"a": 1.0, "b": 3.0, "c": 10.0}
    assert growth([1, 3, 10], [5 * x**1.5 for x in (1, 3, 10)]) == pytest.approx(1.5)
    rounds = {name: [2 * x, 7 * x] for name, x in sizes.items()}
    assert exponents(Samples(rounds), sizes).median == pytest.approx(1.0)


def test_a_share_is_of_what_is_possible() -> None:
    from harness import Samples
    from limits import share

    samples = Samples({"ours": [2.0], "limit": [1.0]})
    assert share(samples, "ours", 300, "limit", 200).median == pytest.approx(0.75)


def test_operations_are_those_that_torch_counts(small: Any) -> None:
    """torch counts explicit attention whole; ours counts the half below the diagonal, as the fused kernel runs it."""
    from torch.utils.flop_counter import FlopCounterMode

    import pellucid as pl
    from models import products

    eager = pl.from_hf(small[1], attention="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        eager(torch.arange(32).view(1, 32))
    above = 2 * eager.config.n_layer * eager.config.n_embd * 32 * 32  # half of 4 n_layer d P^2
    assert products(eager.config, 1, 32) == counted.get_total_flops() - above


def test_reading_reads_everything() -> None:
    """Every way to read, but the ones that only compare, gives the sum; none is a shortcut."""
    from limits import large_pages, readers

    flat = large_pages(1 << 20)
    flat.copy_(torch.arange(len(flat)) % 7)
    ways = readers(flat)
    whole = flat.double().sum()
    assert torch.isclose(ways["sum"]().double(), whole)
    assert torch.isclose(ways["sums of halves"]().double().sum(), whole)
    assert torch.isclose(ways["matrix times vector"]().double().sum(), whole)
    assert torch.isclose(ways["dot with itself"]().double(), flat.double().square().sum(), rtol=1e-5)
    flat[-1] = 9.0
    assert ways["max"]() == 9.0


def test_memory_at_its_highest_is_seen() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import memory\n"
        "def call():\n    kept = bytearray(64 << 20)\n    del kept\n    return bytearray(8 << 20)\n"
        "print(memory.peak_bytes(call))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 60 << 20 < int(done.stdout) < 80 << 20


def test_memory_that_was_freed_before_is_not_missed() -> None:
    """Small blocks stay with the allocator when they are freed, and a call that fills them again must show."""
    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import memory\n"
        "if sys.argv[1:]: memory.give_back = lambda: None\n"
        "def blocks(): return [bytes(5000) for _ in range(8000)]\n"
        "kept = blocks(); last = bytes(5000); del kept\n"
        "print(memory.peak_bytes(blocks))"
    )
    right, wrong = (
        int(subprocess.run([sys.executable, "-c", program, *mutant], capture_output=True, check=True).stdout)
        for mutant in ([], ["mutant"])
    )
    assert 35 << 20 < right < 60 << 20
    assert wrong < 35 << 20, "the mutant, which does not give memory back first, misses some"


def test_fresh_processes_write_byte_code(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ours, which runs from its source, would be compiled for every sample, and the installed peers would not."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    writes = "import sys; assert not sys.dont_write_bytecode"
    harness.in_fresh_process("first", "imported", writes)
    assert subprocess.run([sys.executable, "-c", writes], capture_output=True, check=False).returncode == 1


def test_fresh_processes_report_what_went_wrong(harness: Any) -> None:
    assert harness.in_fresh_process("first", "imported", "import json") is None
    seconds, _ = harness.timed_process("first", "imported", "import time; time.sleep(0.2)")
    assert seconds > 0.2, "timed from outside"
    with pytest.raises(RuntimeError, match="ModuleNotFoundError: No module named 'nowhere'"):
        harness.in_fresh_process("first", "imported", "import nowhere")


# The page


def made_up(**changes: Any) -> dict[str, Any]:
    """The JSON of a script that reached one target and missed another."""

    def row(work: str, median: float, target: float, met: bool) -> dict[str, Any]:
        ratio = {"median": median, "low": median - 0.01, "high": median + 0.01}
        aim = {"value": target, "at_least": False}
        return {"work": work, "shape": "1x8", "ratio": ratio, "target": aim, "met": met, **row_of_ours}

    row_of_ours = {"ours": "pellucid", "against": "transformers", "kind": "time", "note": ""}
    share = {**row("plain forward", 0.612, 0.0, True), "kind": "share", "target": None, "met": None}
    environment = {"processor": "P9", "processors": 2, "memory_bytes": 2**33, "features": ["fma"], "torch_uses": "AVX2",
                   "threads": 2, "system": "Linux", "python": "3.11", "versions": {"torch": "2.13"}, "numpy_uses": "b",
                   "accelerator": None, "cores_used_by_others": 0.01}  # fmt: skip
    return {
        "name": "forward", "quick": False, "device": "cpu", "dtype": "float32", "seconds": 1.0,
        "environment": environment | changes.pop("environment", {}),
        "rows": [row("plain forward", 0.954, 1.0, True), row("last only", 0.75, 0.68, False), share],
        "failures": [{"work": "w", "contender": "torchlens", "how": "OSError: gone"}],
        "facts": {"profiles": {"last only, 1x8": [["addmm", 0.7]]}}, "samples": {}, **changes,
    }  # fmt: skip


def test_the_page_says_what_was_measured() -> None:
    import page

    text = page.render({"forward": made_up()}, [])
    assert "| plain forward | 1x8 | pellucid | transformers | 0.95 | 0.94 to 0.96 | ≤ 1.00 | reached |" in text
    assert "| last only | 1x8 | pellucid | transformers | 0.75 | 0.74 to 0.76 | ≤ 0.68 | **missed** |" in text
    assert "| 61% | 60% to 62% |" in text
    assert "- w, torchlens: OSError: gone" in text
    assert "`addmm` 70%" in text, "a miss is shown with where the time goes"
    assert "Not measured: this machine has none." in text
    assert "not idle" not in text
    assert "A quick run" not in text


def test_a_missed_target_is_never_without_a_word() -> None:
    import page

    why = [{"script": "forward", "work": "last", "why": "the head is a third."}]
    assert "no reason is known yet" in page.render({"forward": made_up()}, [])
    explained = page.render({"forward": made_up()}, why)
    assert "**last only, 1x8, pellucid beside transformers**: the head is a third." in explained
    assert "no reason" not in explained
    for other in (
        {"script": "capture"},
        {"work": "first"},
        {"shape": "4x512"},
        {"ours": "fast"},
        {"against": "nnsight"},
        {"kind": "memory"},
    ):
        assert "no reason" in page.render({"forward": made_up()}, [{**why[0], **other}])


def test_the_page_warns() -> None:
    import page

    busy = page.render({"forward": made_up(environment={"cores_used_by_others": 0.4})}, [])
    assert "**The machine was not idle**: other processes used 0.40 cores during `forward`" in busy
    assert "**A quick run**" in page.render({"forward": made_up(quick=True)}, [])
    two = {"forward": made_up(), "capture": made_up(environment={"threads": 1})}
    assert "**Not one run**" in page.render(two, [])
    halted = page.render({"forward": {**made_up(), "finished": False}}, [])
    assert "**Interrupted**: forward" in halted
    assert "Interrupted" not in page.render({"forward": {**made_up(), "finished": True}}, [])


def test_what_was_measured_before_an_interruption_stays(
    report: Any, harness: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import page
    from report import Row

    samples = harness.Samples({"pellucid": [1.0], "transformers": [2.0]})
    report.add(Row("plain forward", "1x8", samples.ratio("pellucid", "transformers")), samples)
    assert "pellucid / transformers: 0.500" in capsys.readouterr().out
    halted = page.results(tmp_path)["made_up"]
    assert len(halted["rows"]) == len(halted["samples"]) == 1
    assert not halted["finished"]
    report.finish()
    assert page.results(tmp_path)["made_up"]["finished"]
    assert not capsys.readouterr().out


def test_results_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bench

    (tmp_path / "forward.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit):
        bench.main(["--quick", "--out", str(tmp_path)])
    assert "it holds results already" in capsys.readouterr().err
    assert (tmp_path / "forward.json").read_text(encoding="utf-8") == "{}"


def test_a_script_refuses_what_it_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from report import FLOAT32, PROCESSOR, arguments

    for option in (["--device", "cuda"], ["--dtype", "bfloat16"]):
        monkeypatch.setattr("sys.argv", ["script", *option])
        assert arguments("All.") is not None
        with pytest.raises(SystemExit):
            arguments("Some.", PROCESSOR, FLOAT32)


def test_a_small_share_keeps_its_digits() -> None:
    import page

    assert [page.number(share, "share") for share in (0.654, 0.0996, 0.0042)] == ["65%", "10.0%", "0.4%"]


def test_an_accelerator_has_its_own_table() -> None:
    import page

    device = made_up(device="cuda", environment={"accelerator": "H"})
    half = made_up(device="cuda", dtype="bfloat16", environment={"accelerator": "H"})
    text = page.render({"forward": made_up(), "forward-cuda": device, "forward-cuda-bfloat16": half}, [])
    assert "Targets are set for processors only." in text
    assert "Not measured: this machine has none." not in text
    assert text.index("## Forward") < text.index("### Forward") < text.index("In float32:") < text.index("In bfloat16:")
    assert "| accelerator | H |" in page.render({"forward-cuda": device}, [])
    assert "launched them, as a share of the time of a run:\n\n- last only, 1x8: `addmm` 70%" in text
    fixed = made_up(name="fixed_cost", device="cuda")
    assert "Python's functions, as a share" in page.render({"fixed_cost-cuda": fixed}, [])


def test_an_accelerator_is_measured_in_both_dtypes(harness: Any, tmp_path: Path) -> None:
    from report import Options, Report

    for device, dtype, stem in (
        ("cpu", "float32", "forward"), ("cuda", "float32", "forward-cuda"), ("cpu", "bfloat16", "forward-bfloat16"),
        ("cuda", "bfloat16", "forward-cuda-bfloat16"),
    ):  # fmt: skip
        Report("forward", Options(out=tmp_path, device=device, dtype=dtype)).finish()
        written = json.loads((tmp_path / f"{stem}.json").read_text(encoding="utf-8"))
        assert (written["name"], written["device"], written["dtype"]) == ("forward", device, dtype)


def test_models_are_made_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from models import asked_for, reference
    from report import Options

    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    fields = {"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 16, "bos_token_id": 0, "eos_token_id": 0}
    made, half = reference(**fields), asked_for(Options(dtype="bfloat16"), **fields)
    assert half.dtype == torch.bfloat16
    assert torch.equal(made.transformer.wpe.weight.bfloat16(), half.transformer.wpe.weight)


def test_a_quick_run_is_never_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import page

    (tmp_path / "json").mkdir()
    at = tmp_path / "json" / "forward.json"
    at.write_text(json.dumps(made_up(quick=True)), encoding="utf-8")
    assert page.main([str(at.parent), "--docs", str(tmp_path)]) == 1
    assert not (tmp_path / "benchmarks.md").exists()
    assert page.main([str(at.parent), "--docs", str(tmp_path), "--print"]) == 0
    assert "## Forward" in capsys.readouterr().out
    at.write_text(json.dumps(made_up()), encoding="utf-8")
    assert page.main([str(at.parent), "--docs", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8")) == {"forward": made_up()}


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "docs").glob("benchmarks*.json"))])
def test_a_committed_page_is_made_from_the_committed_json(name: str) -> None:
    import page

    found = json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))
    assert not any(one["quick"] for one in found.values())
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert text == page.render(found, page.reasons(name), name), "python benchmarks/page.py FOLDER writes both"
    assert "no reason is known yet" not in text


def test_reasons_and_notes_belong_to_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import page

    said = """
        [[missed]]
        page = "other"
        script = "forward"
        why = "of the other"
        [[missed]]
        script = "forward"
        why = "of any"
        [[note]]
        page = "other"
        text = "Look twice."
    """
    (tmp_path / "reasons.toml").write_text(said, encoding="utf-8")
    (tmp_path / "forward.py").write_text('"""Forwards."""', encoding="utf-8")
    monkeypatch.setattr(page, "HERE", tmp_path)
    mine, other = (page.render({"forward": made_up()}, page.reasons(n), n) for n in ("benchmarks", "other"))
    assert "of any" in mine
    assert "Look twice." not in mine
    assert "of the other" in other
    assert "Look twice." in other
    assert "[other.json](other.json)" in other


def test_a_missed_target_says_whether_it_is_memory() -> None:
    import page

    memory = {**made_up()["rows"][1], "work": "capture", "kind": "memory"}
    text = page.render({"forward": made_up(rows=[memory])}, [])
    assert "**capture, 1x8, pellucid beside transformers (peak memory)**" in text


def test_a_report_writes_what_the_page_reads(report: Any, harness: Any, tmp_path: Path) -> None:
    import page
    from report import Row, Target

    samples = harness.Samples({"pellucid": [0.9, 1.0, 1.1], "transformers": [2.0, 2.0, 2.0]})
    report.add(Row("plain forward", "1x8", samples.ratio("pellucid", "transformers"), Target(0.4)), samples)
    report.add(Row("speed", "1x8", samples.ratio("transformers", "pellucid"), Target(1.5, at_least=True)), samples)
    report.fail("plain forward", "nnsight", ValueError("a\n b"))
    report.finish()
    written = page.results(tmp_path)["made_up"]
    assert [row["met"] for row in written["rows"]] == [False, True]
    assert written["samples"]["plain forward, 1x8"]["seconds"]["pellucid"] == [0.9, 1.0, 1.1]
    assert written["failures"][0]["how"] == "ValueError: a b"
    assert written["environment"]["threads"] == harness.THREADS
    assert "| 0.50 |" in page.render({"forward": written}, [])


def test_targets_are_for_processors() -> None:
    from report import Options

    assert Options().target(1.0) is not None
    assert Options(device="cuda").target(1.0) is None
    assert Options(dtype="bfloat16").target(1.0) is None
    assert Options().rounds(31, quick=3) == 31
    assert Options(device="cuda").rounds(31, quick=3) == 9
    assert Options(only=("wards",)).wants("forwards")
    assert not Options(only=("back",)).wants("forwards")
