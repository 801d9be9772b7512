"""What a run costs beside its arithmetic: a model so small that names, hooks and calls are most of the time.

12 blocks of width 64 and 8 tokens; what a library does for each checkpoint is all that there is to measure.
"""

from __future__ import annotations

from harness import compete  # before torch: it pins the threads
from report import Report, Row, arguments

# isort: split
import torch

import pellucid as pl
from capture import INSIDE, capturing
from contest import Admission, Contender, captured_bounds
from models import asked_for, bridge, eager, some_ids, traced
from peers import LENS, NNSIGHT, lens_run, lens_values, nnsight_run, nnsight_values

FIELDS = {"n_embd": 64, "n_head": 4, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
SHAPE = "1x8"
COMPUTED = (*INSIDE, "ckpt_scaled")
"""What is computed beside the fused path when it is looked at."""


def main() -> None:
    options = arguments(__doc__)
    report = Report("fixed_cost", options)
    with torch.no_grad():
        hf = asked_for(options, **FIELDS)
        model, ids = pl.from_hf(hf), some_ids(SHAPE, FIELDS["vocab_size"], options.device)
        passing = [name for name in model.ckpt_names if not name.endswith(COMPUTED)]
        bounds = captured_bounds(model, ids, model.run_with_ckpts(ids)[1])
        lens, module = bridge(hf), traced(eager(hf))
        everyone = {
            "plain forward": Contender(lambda: model(ids), lambda out: {"logits": out}),
            "transformers": Contender(lambda: hf(ids), lambda out: {"logits": out.logits}),
            "pellucid": capturing(model, ids),
            "pellucid, what passes by": capturing(model, ids, passing),
        }
        calls = Admission(report, f"plain, {SHAPE}").admit(everyone)
        peers = {
            "pellucid": capturing(model, ids),
            LENS: Contender(lens_run(lens, ids), lens_values, bounds),
            NNSIGHT: Contender(nnsight_run(module, ids), nnsight_values, bounds),
        }
        calls |= Admission(report, f"capture everything, {SHAPE}").admit(peers, at_least=60)
        samples = compete(calls, rounds=options.rounds(31, quick=3), at_least=0.1, device=options.device)
        for work, ours, against, target in (
            ("plain forward", "plain forward", "transformers", 0.7),
            ("capture everything that passes by", "pellucid, what passes by", "plain forward", 1.15),
            ("capture everything", "pellucid", "plain forward", 1.6),
            ("capture everything", "pellucid", LENS, None),
            ("capture everything", "pellucid", NNSIGHT, None),
        ):
            if ours in calls and against in calls:
                aim = None if target is None else options.target(target)
                report.add(Row(work, SHAPE, samples.ratio(ours, against), aim, ours=ours, against=against), samples)
        report.facts["seconds of a plain forward"] = samples.time("plain forward").median
        for name in ("plain forward", "pellucid", "pellucid, what passes by"):
            report.profile(f"{SHAPE}, {name}", calls[name], python=True)
    report.finish()


if __name__ == "__main__":
    main()
