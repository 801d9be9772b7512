"""Captured CUDA graphs and torch.compile: what is left where nothing waits for Python to launch it.

A captured graph replays the launches of one run, so that exact numerics keep their bits. Everybody gets the same: a
graph of its own, and `torch.compile(mode="reduce-overhead")`, which makes one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import Call, compete, rounding  # before torch: it pins the threads
from report import Options, Report, Row, arguments

# isort: split
import torch

import pellucid as pl
from contest import Admission, Contender
from forward import SHAPES, SHORT, THEIRS, logits_of
from models import asked_for, exact_logits, some_ids

GRAPH = "captured graph"
EVERYTHING, RESIDUALS = f"pellucid, everything, {GRAPH}", f"pellucid, all residuals, {GRAPH}"


@dataclass(frozen=True)
class Replay:
    """The launches of one run, once more; gives the same tensors each time, with new numbers in them.

    Attributes:
        graph: The launches.
        out: What they write into.
        reads: What was run; it holds the weights, of which a graph only knows where they lie.
    """

    graph: torch.cuda.CUDAGraph
    out: Any
    reads: Call

    def __call__(self) -> Any:
        self.graph.replay()
        return self.out


def captured(run: Call) -> Replay:
    """Capture what `run` launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # what a first call sets up is not to be captured
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return Replay(graph, out, run)


def contenders(report: Report, hf: Any, shape: str, options: Options) -> dict[str, Contender]:
    """Everyone who runs a forward of this shape, transformers as it is first."""
    ids = some_ids(shape, device=options.device)
    exact, fast = pl.from_hf(hf), pl.from_hf(hf, numerics="fast")
    near = {"logits": rounding(exact(ids), exact_logits(exact, ids))}
    found = {
        THEIRS: Contender(lambda: hf(ids), logits_of),
        "pellucid": Contender(lambda: exact(ids), logits_of),
        f"pellucid, {GRAPH}": Contender(captured(lambda: exact(ids)), logits_of),
        f"pellucid, fast, {GRAPH}": Contender(captured(lambda: fast(ids)), logits_of, near),
        RESIDUALS: Contender(
            captured(lambda: exact.run_with_ckpts(ids, names="blocks.*.resid_*")), lambda out: {"logits": out[0]}
        ),
        EVERYTHING: Contender(captured(lambda: exact.run_with_ckpts(ids)), lambda out: {"logits": out[0]}),
    }
    others: dict[str, Callable[[], Call]] = {}
    if shape == SHORT and options.wants("compile"):
        others["pellucid, fast, torch.compile"] = lambda: compiled(fast, ids)
        others[f"{THEIRS}, torch.compile"] = lambda: compiled(hf, ids)
    others[f"{THEIRS}, {GRAPH}"] = lambda: captured(lambda: hf(ids))
    for name, build in others.items():
        try:
            found[name] = Contender(build(), logits_of, near)
        except Exception as error:
            report.fail(f"plain forward, {shape}", name, error)
    return found


def compiled(model: Any, ids: Any) -> Call:
    """A compiled model, called until it is."""
    run = torch.compile(model, mode="reduce-overhead")
    for _ in range(3):
        run(ids)
    return lambda: run(ids)


def main() -> None:
    options = arguments(__doc__)
    report = Report("graphs", options)
    if options.device == "cpu":
        report.fail("all", "everybody", "graphs are captured on an accelerator; give --device cuda")
        report.finish()
        return
    hf = asked_for(options)
    with torch.no_grad():
        for shape in SHAPES:
            if options.wants(shape) and not (options.quick and shape != SHORT):
                beside(report, hf, shape, options)
    report.finish()


def beside(report: Report, hf: Any, shape: str, options: Options) -> None:
    """One shape: to transformers as it is, to transformers with the same help, and what looking costs."""
    calls = Admission(report, f"plain forward, {shape}").admit(contenders(report, hf, shape, options))
    samples = compete(calls, rounds=options.rounds(9, quick=3), device=options.device)
    for name in calls:
        if name != THEIRS and name not in (RESIDUALS, EVERYTHING):
            report.add(Row("plain forward", shape, samples.ratio(name, THEIRS), ours=name), samples)
    for help_ in (GRAPH, "torch.compile"):
        ours, theirs = f"pellucid, fast, {help_}", f"{THEIRS}, {help_}"
        if ours in calls and theirs in calls:
            report.add(Row("plain forward", shape, samples.ratio(ours, theirs), ours=ours, against=theirs), samples)
    plain = f"pellucid, {GRAPH}"
    for work, name in (("capture all residuals", RESIDUALS), ("capture everything", EVERYTHING)):
        report.add(Row(work, shape, samples.ratio(name, plain), ours=name, against=plain), samples)


if __name__ == "__main__":
    main()
