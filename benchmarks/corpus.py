"""Values of a whole corpus on disk: six residual checkpoints captured while they are written, and read again.

The plain forward runs the same batches to the same block. The loop with `torch.save` is what one writes without a
library: a hook on each block, a file for each batch; with nnsight the values come from a trace, and safetensors writes
them. SAELens caches one checkpoint of rows of equal length, and so does pellucid beside it; it needs another version of
TransformerLens than the other peers, and so an environment of its own. All write to the same disk, which a flush at the
end of each sample waits for. Reading is with a cold cache:
before each sample the system is told to forget the files, and `dd` reads the same ones.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness  # before torch: it pins the threads
import pellucid as pl
from models import reference
from report import FLOAT32, Options, Report, Row, Target, arguments

BLOCKS = (0, 1, 2, 3, 4, 5)
NAMES = [f"blocks.{block}.resid_post" for block in BLOCKS]
BATCH_TOKENS = 2048


def texts_of(count: int) -> list[list[int]]:
    """Rows of ids of 16 to 128 tokens."""
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 129, (count,), generator=generator).tolist()
    return [torch.randint(0, 50257, (length,), generator=generator).tolist() for length in lengths]


def batches_of(store: pl.corpus.Store) -> Iterator[list[list[int]]]:
    """The batches that the store was made with."""
    for part in range(store.plan.parts):
        for batch in store.corpus.batches(part):
            yield [store.tokens[span.start : span.stop].tolist() for span in batch]


class Places:
    """A new folder for each sample: removing the one before would be timed, too. All go at the end, some 4 GB."""

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self.last: dict[str, Path] = {}  # contender -> where its last sample is

    def new(self, name: str) -> Path:
        """An empty folder for a contender."""
        self.last[name] = Path(tempfile.mkdtemp(dir=self._beside))
        return self.last[name]

    def bytes_of(self, name: str) -> int:
        """Bytes of a contender's last sample."""
        return sum(path.stat().st_size for path in self.last[name].rglob("*") if path.is_file())


def flushed(folder: Path) -> None:
    """Wait until the disk has what is in a folder, as a store does for each of its files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def looped(hf: Any, batches: list[Any], places: Places) -> Callable[[], None]:
    """Hooks, and a file for each batch."""
    import torch

    def run() -> None:
        kept: dict[str, Any] = {}
        keep = lambda name: lambda module, given, out: kept.update({name: whole(out)})  # noqa: E731
        blocks = [hf.transformer.h[block] for block in BLOCKS]
        hooks = [block.register_forward_hook(keep(name)) for block, name in zip(blocks, NAMES, strict=True)]
        folder = places.new("loop with torch.save")
        for number, (ids, mask) in enumerate(batches):
            with torch.no_grad():
                hf.transformer(ids, attention_mask=mask)
            torch.save({name: value[mask.bool()] for name, value in kept.items()}, folder / f"{number}.pt")
        for hook in hooks:
            hook.remove()
        flushed(folder)

    return run


def traced(hf: Any, batches: list[Any], places: Places) -> Callable[[], None]:
    """nnsight, and a safetensors file for each batch."""
    import torch
    from nnsight import NNsight
    from safetensors.torch import save_file

    model = NNsight(hf)

    def run() -> None:
        folder = places.new("nnsight, safetensors")
        for number, (ids, mask) in enumerate(batches):
            with torch.no_grad(), model.trace(ids, attention_mask=mask) as tracer:
                cache = tracer.cache(modules=[model.transformer.h[block] for block in BLOCKS])
            values = {}
            for block, name in zip(BLOCKS, NAMES, strict=True):
                values[name] = whole(cache[f"model.transformer.h.{block}"].output)[mask.bool()].contiguous()
            save_file(values, folder / f"{number}.safetensors")
        flushed(folder)

    return run


def whole(out: Any) -> Any:
    """What a block gives, whether alone or first of several."""
    return out[0] if isinstance(out, tuple) else out


def padded(rows: list[list[int]]) -> tuple[Any, Any]:
    """Ids and mask, pads on the left."""
    import torch

    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids, mask


def writing(report: Report, options: Options, folder: Path) -> None:
    """Tokens a second and bytes."""
    import torch

    hf = reference(options.size)
    model, texts = pl.from_hf(hf), texts_of(16 if options.quick else 128)
    first = pl.corpus.capture(model, texts, NAMES, folder / "first.zarr", batch_tokens=BATCH_TOKENS)
    rows, work = list(batches_of(first)), f"capture {len(NAMES)} residual checkpoints to disk"
    batches, places = [padded(batch) for batch in rows], Places(folder)

    def capture() -> None:
        pl.corpus.capture(model, texts, NAMES, places.new("pellucid"), batch_tokens=BATCH_TOKENS)

    def forward() -> None:
        with torch.no_grad():
            for batch in rows:
                model.run_with_ckpts(batch, names=NAMES[-1:], stop_at=NAMES[-1])

    calls: dict[str, Callable[[], None]] = {"pellucid": capture, "plain forward": forward}
    calls["loop with torch.save"] = looped(hf, batches, places)
    try:
        calls["nnsight, safetensors"] = traced(hf, batches, places)
        calls["nnsight, safetensors"]()
    except Exception as error:  # a peer's own
        calls.pop("nnsight, safetensors", None)
        report.fail(work, "nnsight, safetensors", error)
    samples = harness.compete(calls, rounds=options.rounds(5, quick=3), at_least=0.0)
    shape = f"{first.plan.rows:,} tokens"
    speed = samples.ratio("plain forward", "pellucid")
    note = "tokens a second as a share of a forward to the same block, which keeps its last value alone"
    aim = Target(0.95, at_least=True)
    report.add(Row(work, shape, speed, aim, against="plain forward", kind="share", note=note), samples)
    for peer in ("loop with torch.save", "nnsight, safetensors"):
        if peer in calls:
            report.add(Row(work, shape, samples.ratio("pellucid", peer), against=peer), samples)
            share = harness.Spread.of([places.bytes_of("pellucid") / places.bytes_of(peer)])
            report.add(Row("bytes on disk", shape, share, against=peer, kind="size"))


LENGTH, AT_ONCE = 128, 16
"""Tokens of each row that SAELens caches, and rows that run at once."""


def cached_by_saelens(hf: Any, rows: list[list[int]], places: Places) -> Callable[[], None]:
    """SAELens' own store of one checkpoint, made by its runner with the very model that the others run."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
    from sae_lens.load_model import HookedProxyLM

    place, width = f"transformer.h.{BLOCKS[-1]}", int(hf.config.n_embd)
    cache_activations_runner.load_model = lambda **about: HookedProxyLM(hf, None, hook_names=[place])
    half = max(len(rows) // AT_ONCE // 2, 1) * AT_ONCE * LENGTH  # tokens of a shard

    def run() -> None:
        folder = places.new("SAELens")
        about = CacheActivationsRunnerConfig(
            dataset_path="", model_name="", model_batch_size=AT_ONCE, hook_name=place, d_in=width, shuffle=False,
            training_tokens=len(rows) * LENGTH, context_size=LENGTH, prepend_bos=False, streaming=False, device="cpu",
            new_cached_activations_path=str(folder), buffer_size_gb=half * width * 4 / 1e9,
        )  # fmt: skip
        made = CacheActivationsRunner(about, override_dataset=Dataset.from_dict({"tokens": rows})).run()
        assert len(made) == len(rows)
        flushed(folder)

    return run


def beside_saelens(report: Report, options: Options, folder: Path) -> None:
    """One checkpoint of rows of equal length, as SAELens caches it."""
    import torch

    hf, work = reference(options.size), "capture one residual checkpoint to disk"
    model, name, places = pl.from_hf(hf), NAMES[-1], Places(folder)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(
        0, 50257, (2 * AT_ONCE if options.quick else 4 * AT_ONCE, LENGTH), generator=generator
    ).tolist()

    def capture() -> None:
        pl.corpus.capture(model, rows, name, places.new("pellucid"), batch_tokens=AT_ONCE * LENGTH)

    try:
        cache = cached_by_saelens(hf, rows, places)
        cache()
    except Exception as error:  # a peer's own
        report.fail(work, "SAELens", error)
        return
    capture()
    from datasets import load_from_disk

    theirs = torch.tensor(load_from_disk(str(places.last["SAELens"]))[f"transformer.h.{BLOCKS[-1]}"][:]).flatten(0, 1)
    ours = torch.from_numpy(pl.corpus.open(places.last["pellucid"])[name][:])
    difference = float((theirs - ours).abs().max() / theirs.abs().max())
    assert difference < 1e-5, f"SAELens' values are {difference:.1e} apart, which is more than rounding"
    samples = harness.compete({"pellucid": capture, "SAELens": cache}, rounds=options.rounds(5, quick=3), at_least=0.0)
    shape = f"{len(rows):,} x {LENGTH}"
    report.add(Row(work, shape, samples.ratio("pellucid", "SAELens"), against="SAELens"), samples)
    share = harness.Spread.of([places.bytes_of("pellucid") / places.bytes_of("SAELens")])
    report.add(Row("bytes on disk of one checkpoint", shape, share, against="SAELens", kind="memory"))


def forgotten(files: list[Path]) -> None:
    """Tell the system that nobody needs these files in its cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(report: Report, options: Options, folder: Path) -> None:
    """The loader beside `dd`, each on a cold cache."""
    import time

    store = pl.corpus.open(folder / "first.zarr")
    files = [path for name in NAMES for path in sorted((folder / "first.zarr" / name).glob("c.*"))]

    def timed(read: Callable[[], Any]) -> float:
        forgotten(files)
        begun = time.perf_counter()
        read()
        return time.perf_counter() - begun

    def load() -> None:
        for _ in store.loader(4096, seed=0, window=store.plan.part_rows):
            pass

    def dd() -> None:
        for path in files:
            subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)

    taken = harness.alternate({"pellucid": lambda: timed(load), "dd": lambda: timed(dd)}, options.rounds(7, quick=3))
    samples = harness.Samples(taken, 1)
    note = "bytes a second as a share of dd's, shuffled within a window of one part, all checkpoints of each row"
    report.add(
        Row("read mini-batches, cold cache", f"{store.plan.nbytes / 2**20:.0f} MiB", samples.ratio("dd", "pellucid"),
            Target(0.6, at_least=True), against="dd", kind="share", note=note), samples,
    )  # fmt: skip


def main() -> None:
    options = arguments(__doc__, ("cpu",), FLOAT32)
    report = Report("corpus", options)
    with tempfile.TemporaryDirectory() as folder:
        writing(report, options, Path(folder))
        beside_saelens(report, options, Path(folder))
        reading(report, options, Path(folder))
    report.finish()


if __name__ == "__main__":
    main()
