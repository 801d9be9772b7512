"""Patching every residual stream, block by block and position by position: a sweep, and the loops that it stands for.

The loops run the model once for each of the patches: pellucid's own with `Edit.patch`, TransformerLens'
`patching.get_act_patch_resid_pre`, and nnsight's with an assignment in a trace, as its documentation patches. The sweep
equals its own loop first; the metric is the difference of two logits of the last token. All are given the clean run's
values beforehand, but for the sweep, which runs the clean text itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import Call, compete
from report import Options, Report, Row, arguments

# isort: split
import torch
from torch import Tensor

import pellucid as pl
from contest import Admission, Contender
from models import asked_for, bridge, some_ids, traced
from peers import LENS, NNSIGHT, nnsight_run

RIGHT, WRONG = 262, 500
METRIC = pl.metrics.logit_difference(RIGHT, WRONG)
WORK = "patch the residual stream at every block and position"


def swept(model: pl.CkptedTransformer, clean: Tensor, corrupted: Tensor) -> Call:
    """The sweep, from two texts to its result."""
    return lambda: pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC)


def looped(model: pl.CkptedTransformer, clean: Tensor, corrupted: Tensor) -> Call:
    """A whole run for each patch."""
    values, batch = model.run_with_ckpts(clean, names="resid_pre")[1], model.tokenize(corrupted)

    def patched(layer: int, pos: int) -> Tensor:
        edit = pl.Edit.patch(f"blocks.{layer}.resid_pre", values, pos=pos)
        return METRIC(model.run(batch, edits=edit), batch)[0]

    layers, columns = range(model.config.n_layer), range(batch.shape[1])
    return lambda: torch.stack([torch.stack([patched(layer, pos) for pos in columns]) for layer in layers])


def lens_looped(lens: Any, clean: Tensor, corrupted: Tensor) -> Call:
    """TransformerLens' own sweep."""
    from transformer_lens import patching

    cache = lens.run_with_cache(clean)[1]

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, RIGHT] - logits[0, -1, WRONG]

    return lambda: patching.get_act_patch_resid_pre(lens, corrupted, cache, metric)


def nnsight_looped(model: Any, clean: Tensor, corrupted: Tensor) -> Call:
    """A trace for each patch, which puts a value of the clean run into a block's input."""
    cache, blocks = nnsight_run(model, clean)(), model.transformer.h
    places = ["drop", *(f"h.{i}" for i in range(len(blocks) - 1))]
    outputs = [cache[f"model.transformer.{place}"].output for place in places]
    values = [value[0] if isinstance(value, tuple) else value for value in outputs]

    def patched(layer: int, pos: int) -> Tensor:
        with model.trace(corrupted):
            blocks[layer].input[:, pos] = values[layer][:, pos]
            logits = model.lm_head.output[0, -1].save()
        return logits[RIGHT] - logits[WRONG]

    columns = range(corrupted.shape[1])
    return lambda: torch.stack([torch.stack([patched(layer, pos) for pos in columns]) for layer in range(len(blocks))])


def beside_loops(report: Report, hf: Any, shape: str, options: Options) -> None:
    """Ratios of the loops' time to the sweep's, with exact and with fast numerics."""
    clean, corrupted = some_ids(shape), some_ids(shape)
    corrupted[0, shape_columns(shape) // 4] = RIGHT
    model, fast = pl.from_hf(hf), pl.from_hf(hf, numerics="fast")
    true = torch.as_tensor(swept(model.double(), clean, corrupted)().values)
    model = pl.from_hf(hf)
    within = {"effects": 8 * float((looped(model, clean, corrupted)().double() - true).abs().max())}
    everyone: dict[str, Callable[[], Contender]] = {
        "pellucid": lambda: Contender(swept(model, clean, corrupted), array, within),
        "pellucid, fast": lambda: Contender(swept(fast, clean, corrupted), array, within),
        "pellucid, a loop": lambda: Contender(looped(model, clean, corrupted), tensor, within),
        LENS: lambda: Contender(lens_looped(bridge(hf), clean, corrupted), tensor, within),
        NNSIGHT: lambda: Contender(nnsight_looped(traced(hf), clean, corrupted), tensor, within),
    }
    contenders: dict[str, Contender] = {}
    for name, build in everyone.items():
        try:
            contenders[name] = build()
        except Exception as error:
            report.fail(WORK, name, error)
    calls = Admission(report, f"{WORK}, {shape}").admit(contenders)
    samples = compete(calls, rounds=options.rounds(5, quick=2), device=options.device, warm_up=0)
    for against, least in (("pellucid, a loop", 8.0), (LENS, 3.0), (NNSIGHT, 3.0)):
        for ours in ("pellucid", "pellucid, fast"):
            if against in calls:
                target = options.target(least, at_least=True)
                report.add(Row(WORK, shape, samples.ratio(against, ours), target, ours=against, against=ours), samples)
    report.profile(f"{WORK}, {shape}, pellucid", calls["pellucid"])


def array(result: Any) -> dict[str, Tensor]:
    return {"effects": torch.as_tensor(result.values)}


def tensor(result: Tensor) -> dict[str, Tensor]:
    return {"effects": result.double()}


def shape_columns(shape: str) -> int:
    return int(shape.split("x")[1])


def main() -> None:
    options = arguments(__doc__)
    report = Report("sweep", options)
    with torch.no_grad():
        beside_loops(report, asked_for(options), "1x16", options)
    report.finish()


if __name__ == "__main__":
    main()
