"""Greedy generation, gpt2-small's shape: a prompt of 32 tokens and 128 new ones, against transformers.

Exact numerics must give transformers' ids. Where numbers are rounded otherwise, every token must be the likeliest of a
float64 run over the same text and weights, but for differences of the size of the rounding: two tokens that near to
each other have no right order. Decoding reads every weight once for each token, so that its limit is the bandwidth of
memory, measured within the same rounds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from harness import Call, ResultsDifferError, Samples, Spread, compete  # before torch: it pins the threads
from report import Options, Report, Row, arguments

# isort: split
import torch
from torch import Tensor

import pellucid as pl
from limits import best_reader, multiplies_bfloat16
from models import asked_for, some_ids

PROMPT, NEW = 32, 128
THEIRS, EXACT, FAST = "transformers", "pellucid", "pellucid, fast"
STATIC = "transformers, static cache, compiled"
THEIRS_HALF, HALF = "transformers, bfloat16 weights", "pellucid, fast, bfloat16 weights"
LIMIT = "reading the weights"

TARGETS = {1: {EXACT: 1.0, FAST: 0.5, HALF: 0.35}, 8: {EXACT: 0.8, FAST: 0.3}}
"""Rows -> contender -> time as a share of transformers' in float32."""


def theirs(hf: Any, ids: Tensor, new: int, **options: Any) -> Callable[[], Tensor]:
    """transformers' own `generate`, which ends no text early."""
    said = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0, **options}
    mask = torch.ones_like(ids)
    return lambda: hf.generate(ids, attention_mask=mask, **said)


def ours(model: pl.CkptedTransformer, ids: Tensor, new: int) -> Callable[[], Tensor]:
    """Ours."""
    return lambda: model.generate(ids, max_new_tokens=new, end_ids=()).ids


def regret(logits: Tensor, text: Tensor) -> float:
    """By how many nats the chosen tokens are less likely than the likeliest, at most.

    Args:
        logits: [B, P, V], of a run over the text.
        text: [B, P], prompt and continuation.
    """
    before = logits[:, PROMPT - 1 : -1]
    chosen = before.gather(-1, text[:, PROMPT:, None]).squeeze(-1)
    return float((before.amax(-1) - chosen).max())


def check(report: Report, calls: dict[str, Callable[[], Tensor]], models: dict[str, pl.CkptedTransformer]) -> None:
    """Refuse to time texts that are not the greedy ones.

    What rounding leaves undecided is twice the distance of a plain run's logits, in the dtype of the weights, from
    those of a float64 run over the same text and weights: each of two tokens may be off by so much. With bfloat16
    weights the prompt runs in bfloat16 on both sides, and ours decodes with sums in float32.

    Args:
        report: Keeps by how much the texts fall behind.
        calls: Contender -> its run.
        models: Contender -> ours with the weights that it generates with.
    """
    texts = {name: call() for name, call in calls.items()}
    if EXACT in texts and not torch.equal(texts[EXACT], texts[THEIRS]):
        raise ResultsDifferError("exact numerics: other ids than transformers'")
    twice = {id(model): copy.deepcopy(model).double() for model in models.values()}
    rows, behind = len(texts[THEIRS]), report.facts.setdefault("nats behind the likeliest token, at most", {})
    for name, text in texts.items():
        exact = twice[id(models[name])](text)
        bound = 2 * float((models[name](text).double() - exact).abs().max())
        found = behind[f"{name}, batch {rows}"] = regret(exact, text)
        if found <= bound:
            continue
        differs = ResultsDifferError(f"{name}: {found:.3g} nats behind the likeliest token; rounding is {bound:.3g}")
        if name != STATIC:
            raise differs
        report.fail("generate", name, differs)  # a peer's way that nobody else is held against is left out
        del calls[name]


def with_static_cache(report: Report, hf: Any, ids: Tensor, new: int) -> dict[str, Callable[[], Tensor]]:
    """What transformers' users turn to on an accelerator: a cache of fixed size, for which `generate` compiles."""
    run = theirs(hf, ids, new, cache_implementation="static")
    try:
        for _ in range(2):
            run()
    except Exception as error:
        report.fail("generate", STATIC, error)
        return {}
    return {STATIC: run}


def batch(report: Report, hf: Any, rows: int, options: Options) -> None:
    """Every contender on so many rows."""
    ids, new = some_ids(f"{rows}x{PROMPT}", device=options.device), 16 if options.quick else NEW
    exact, fast = pl.from_hf(hf), pl.from_hf(hf, numerics="fast")
    halves = copy.deepcopy(hf).bfloat16()
    half = pl.from_hf(halves, numerics="fast")
    calls = {THEIRS: theirs(hf, ids, new), EXACT: ours(exact, ids, new), FAST: ours(fast, ids, new)}
    models = {THEIRS: exact, EXACT: exact, FAST: exact}
    if rows == 1 and multiplies_bfloat16(options.device):
        calls |= {THEIRS_HALF: theirs(halves, ids, new), HALF: ours(half, ids, new)}
        models |= {THEIRS_HALF: half, HALF: half}
    if rows == 1 and options.device != "cpu":
        calls |= with_static_cache(report, hf, ids, new)
        models[STATIC] = exact
    check(report, calls, models)
    everyone: dict[str, Call] = dict(calls)
    read = {name: best_reader(weights_read(model, ids, new), options.device)[0]
            for name, model in ((FAST, fast), (HALF, half)) if name in calls}  # fmt: skip
    read[THEIRS] = read[FAST]  # the same bytes
    first = {THEIRS: theirs(hf, ids, 1), FAST: ours(fast, ids, 1), HALF: ours(half, ids, 1)}
    for name, reading in read.items():
        everyone |= {f"{name}, first token": first[name], f"{LIMIT}, {name}": reading}
    samples = compete(everyone, rounds=options.rounds(9, quick=2), warm_up=0, device=options.device)
    shape = f"{rows}x{PROMPT}+{new}"
    for name, target in TARGETS[rows].items():
        if name not in calls:
            continue
        ratio = samples.ratio(name, THEIRS)
        report.add(Row("generate", shape, ratio, options.target(target), ours=name), samples)
    for name, against in ((HALF, THEIRS_HALF), (STATIC, THEIRS), (FAST, STATIC)):
        if name in calls and against in calls:
            report.add(Row("generate", shape, samples.ratio(name, against), ours=name, against=against), samples)
    for name in (FAST, HALF, THEIRS):
        if name in calls:
            target = options.target(0.75, at_least=True) if rows == 1 and name == FAST else None
            reached = bandwidth(samples, name, new - 1)
            note = f"{new - 1} steps; the prompt and the first token are left out"
            against = "memory bandwidth"
            report.add(
                Row("decode", shape, reached, target, ours=name, against=against, kind="share", note=note), samples
            )
    for name in (EXACT, FAST, THEIRS) if options.device == "cpu" else ():  # thousands of kernels take long to count
        report.profile(f"{shape}, {name}", calls[name])


def weights_read(model: pl.CkptedTransformer, ids: Tensor, new: int) -> int:
    """Bytes that a step reads: those prepared for the kernels, or the weights as they are."""
    return pl.estimate_generation(model, ids, max_new_tokens=new).prepared or pl.count_parameters(model).bytes


def bandwidth(samples: Samples, name: str, steps: int) -> Spread:
    """Weights read a second while decoding, as a share of what reading alone reaches, round by round."""
    whole, first = samples.seconds[name], samples.seconds[f"{name}, first token"]
    limit = samples.seconds[f"{LIMIT}, {name}"]
    return Spread.of([read * steps / (a - b) for a, b, read in zip(whole, first, limit, strict=True)])


def main() -> None:
    options = arguments(__doc__)
    report = Report("generate", options)
    with torch.no_grad():
        hf = asked_for(options)
        for rows in (1, 8):
            if options.wants(f"batch {rows}") and not (options.quick and rows == 8):
                batch(report, hf, rows, options)
    report.finish()


if __name__ == "__main__":
    main()
