"""From nothing to a first result: new processes that import a library, open gpt2-small from disk and give logits.

Each sample is one process, timed from outside, the interpreter's own start included. The folder holds what transformers
wrote, and stays in the page cache: what is measured is the libraries, not the disk.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import harness  # before torch: it pins the threads
from contest import BECAUSE
from first import LENS, SENTENCE
from harness import Samples, Spread, alternate, in_fresh_process
from report import FLOAT32, PROCESSOR, Options, Report, Row, arguments


def write(path: str, size: str) -> int:
    """A model and its tokenizer, as transformers writes them; gives the bytes of the weights; in a fresh process."""
    from models import reference, tokenizer

    folder = Path(path)
    reference(size).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size


def undecided(path: str) -> float:
    """How far two right programs may be apart on the sentence: see `harness.rounding`; in a fresh process."""
    import torch

    import pellucid as pl

    model = pl.load(path)
    with torch.no_grad():
        return harness.rounding(model(SENTENCE)[0, -1], model.double()(SENTENCE)[0, -1])


def timed(function: str, *values: str, keep: list[Any] | None = None) -> float:
    """Seconds that a fresh process takes, from its start to its end."""
    taken, answer = harness.timed_process("first", function, *values)
    if keep is not None:
        keep.append(answer)
    return taken


def first_results(report: Report, options: Options) -> None:
    """Time and memory until the first logits."""
    import torch

    work, shape = "import, open, logits of a sentence", options.size
    with tempfile.TemporaryDirectory() as folder:
        weights = in_fresh_process("startup", "write", folder, options.size)
        answers: dict[str, list[Any]] = {}
        samplers = {}
        for name in ("pellucid", "transformers", *(() if options.quick else (LENS,))):
            try:
                kept: list[Any] = []
                timed("result", name, folder, keep=kept)  # warms the page cache and byte code
                answers[name] = kept
                samplers[name] = partial(timed, "result", name, folder, keep=kept)
            except RuntimeError as error:
                report.fail(work, name, error)
        logits = {name: torch.tensor(kept[0]["logits"]) for name, kept in answers.items()}
        same = {name: logits[name] for name in ("transformers", "pellucid") if name in logits}
        harness.require_equal(same)
        if LENS in logits:
            pair = {"pellucid": logits["pellucid"], LENS: logits[LENS]}
            harness.require_equal(pair, within=in_fresh_process("startup", "undecided", folder), because=BECAUSE)
        samples = Samples(alternate(samplers, options.rounds(9, quick=1)))
    for against, target in (("transformers", 0.5), (LENS, 0.25)):
        if against in samples.seconds:
            ratio = samples.ratio("pellucid", against)
            report.add(Row(work, shape, ratio, options.target(target), against=against), samples)
    for name, kept in answers.items():
        stages = {stage: median(answer["stages"][stage] for answer in kept) for stage in kept[0]["stages"]}
        report.facts.setdefault("seconds of each stage", {})[name] = stages
        grown = Spread.of([answer["grown"] / weights for answer in kept])
        target = options.target(1.1) if name == "pellucid" else None
        note = "highest resident memory after the imports"
        report.add(Row(work, shape, grown, target, ours=name, against="the weights", kind="memory", note=note))


def imports(report: Report, options: Options) -> None:
    """How much longer importing pellucid takes than importing torch."""
    statements = {
        "torch": "import torch",
        "pellucid": "import pellucid; pellucid.load, pellucid.CkptedTransformer",  # names are imported at first use
        "transformers": "import torch; from transformers import AutoTokenizer, GPT2LMHeadModel",
        LENS: "from transformer_lens.model_bridge import TransformerBridge",
        "nnsight": "from nnsight import NNsight",
    }
    samplers = {}
    for name, statement in statements.items():
        try:
            timed("imported", statement)
            samplers[name] = partial(timed, "imported", statement)
        except RuntimeError as error:
            report.fail("import", name, error)
    samples = Samples(alternate(samplers, options.rounds(15, quick=1)))
    for name in list(samplers)[1:]:
        pairs = zip(samples.seconds[name], samples.seconds["torch"], strict=True)
        beyond = Spread.of([theirs - torch_alone for theirs, torch_alone in pairs])
        target = options.target(0.2) if name == "pellucid" else None
        note = "beyond a process that imports torch alone"
        report.add(Row("import", "", beyond, target, ours=name, against="", kind="seconds", note=note), samples)


def main() -> None:
    options = arguments(__doc__, PROCESSOR, FLOAT32)
    report = Report("startup", options)
    if options.wants("import") and not options.quick:
        imports(report, options)
    if options.wants("first"):
        first_results(report, options)
    report.finish()


if __name__ == "__main__":
    main()
