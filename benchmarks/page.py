"""From the JSON files of a run to `docs/benchmarks.md` and `docs/benchmarks.json`.

    python benchmarks/page.py FOLDER                          # writes into docs/
    python benchmarks/page.py FOLDER --print                  # shows the page; a quick run is only ever shown
    python benchmarks/page.py FOLDER --name benchmarks_amx    # a page for another processor

The prose of a section is the docstring of its script. A target that is missed is listed with the reason that
`reasons.toml` gives, and with where the time goes; a missed target without a reason says that there is none. What else
the reader of a page should know stands there, too.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"

SECTIONS = {
    "forward": "Forward", "graphs": "Captured graphs", "capture": "Capture", "fixed_cost": "Fixed cost",
    "corpus": "Corpora on disk", "sweep": "Patching sweeps", "startup": "Start-up",
    "generate": "Generate", "compare": "Compare", "scaling": "Scaling",
    "regression": "Regressions", "products": "Products alone", "limits": "Limits of the machine",
}  # fmt: skip
"""Script -> heading, in the order of the page."""

BUSY = 0.05
"""Share of the processors that others may use before the page warns."""

UNITS = {"seconds": "s", "exponent": "", "GB": "GB", "GiB": "GiB", "GFLOP/s": "GFLOP/s", "GB/s": "GB/s"}
"""Kinds of rows that are no ratio -> what stands behind the number."""

PAGE = "benchmarks"
"""The page that `make bench` writes."""

HEAD = """\
# Benchmarks

What pellucid costs beside what a user would pick instead, on the same work in one run. `make bench` makes an
environment with the peers, measures everything on an idle machine and writes `docs/benchmarks.md`. `make bench-quick`
takes three minutes and writes nothing. The scripts are in `benchmarks/`; each also runs alone. Every raw sample of this
page is in [{name}.json]({name}.json).
"""

RULES = """\
## How to read it

- A row is a ratio of two contenders within one run, or the share of a limit (matrix products or bytes a second) that
  was measured within the same rounds. 0.50 means half the time. Absolute times are no claim; where a target is one, it
  holds for the machine below.
- Contenders take turns, in an order that rotates; the number is the median over the rounds of the ratio within a
  round, the quartiles stand behind it.
- All use the same number of threads.
- Nobody is timed whose results were not compared first: bit for bit, or within eight times our own distance from a
  float64 run, value by value. Fast decoding must choose the likeliest tokens of a float64 run.
- Weights are random and of true size, spread so that every parameter shows in the results.
- Memory and start-up are those of fresh processes; on an accelerator, memory is that of the tensors there.

Looking leaves the logits as they were, whatever it costs:

```python
import torch
import pellucid as pl

model = pl.load()
logits, ckpts = model.run_with_ckpts("Once upon a time")  # "capture everything" below
assert torch.equal(logits, model("Once upon a time"))
```
"""

NOTHING_YET = "Nothing is measured yet: `make bench` has not been run on an idle machine.\n"


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Script, with the device behind it where that is not the processor -> its JSON."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def reasons(page: str = PAGE) -> list[dict[str, str]]:
    """Why a page's targets are missed: each has "script", "why", and parts of what its rows say."""
    return [one for one in _said("missed") if one.get("page", page) == page]


def notes(page: str) -> list[str]:
    """What else the reader of a page should know."""
    return [one["text"] + "\n" for one in _said("note") if one["page"] == page]


def _said(kind: str) -> list[dict[str, str]]:
    return tomllib.loads((HERE / "reasons.toml").read_text(encoding="utf-8")).get(kind, [])


def render(found: Mapping[str, Mapping[str, Any]], why: Sequence[Mapping[str, str]], name: str = PAGE) -> str:
    """The page.

    Args:
        found: What `results` gives.
        why: What `reasons` gives.
        name: Its own, without the ending.
    """
    head = HEAD.format(name=name)
    parts = [head, *notes(name), RULES]
    if not found:
        return "\n".join([head, NOTHING_YET, RULES])
    parts += [where(found), *warnings(found)]
    for script, heading in SECTIONS.items():
        if script in found:
            parts.append(section(script, heading, found[script], why))
    parts.append(accelerator(found))
    return "\n".join(parts).rstrip() + "\n"


def where(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The machine and the versions; those of the first script, as all ran in one go."""
    first = next(iter(found.values()))["environment"]
    rows = {
        "processor": f"{first['processor']}, {first['processors']} cores, {first['memory_bytes'] / 2**30:.0f} GiB",
        "its features": " ".join(first["features"]) + f"; torch uses {first['torch_uses']}",
        "threads": first["threads"],
        "system": f"{first['system']}, Python {first['python']}",
        "versions": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
        "numpy multiplies with": first["numpy_uses"],
        **({"accelerator": first["accelerator"]} if first["accelerator"] else {}),
    }
    lines = ["## Where", "", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*lines, ""])


def warnings(found: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """What makes the numbers doubtful."""
    busy = {
        name: one["environment"]["cores_used_by_others"]
        for name, one in found.items()
        if one["environment"]["cores_used_by_others"] > BUSY * one["environment"]["processors"]
    }
    if busy:
        worst = ", ".join(f"{cores:.2f} cores during `{name}`" for name, cores in busy.items())
        yield f"**The machine was not idle**: other processes used {worst}. Measure again before believing this.\n"
    if any(one["quick"] for one in found.values()):
        yield "**A quick run**: few rounds, small shapes.\n"
    unfinished = [name for name, one in found.items() if not one.get("finished", True)]
    if unfinished:
        yield f"**Interrupted**: {', '.join(unfinished)}; rows are missing.\n"
    machines = {
        json.dumps([one["environment"][key] for key in ("processor", "threads", "versions")]) for one in found.values()
    }
    if len(machines) > 1:
        yield "**Not one run**: the scripts ran with different processors, threads or versions.\n"


def section(name: str, heading: str, one: Mapping[str, Any], why: Sequence[Mapping[str, str]]) -> str:
    """Prose, table, misses with reasons, failures."""
    lines = [f"## {heading}", "", prose(name), "", *table(one["rows"])]
    lines += misses(name, one, why) + failures(one["failures"])
    return "\n".join([*lines, ""])


def prose(name: str) -> str:
    """The docstring of a script."""
    return ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row."""
    lines = [
        "| work | on | who | beside | who / beside | quartiles | target | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratio, kind = row["ratio"], row["kind"]
        against = row["against"] + _peak(row)
        target = (
            ""
            if row["target"] is None
            else f"{'≥' if row['target']['at_least'] else '≤'} {number(row['target']['value'], kind)}"
        )
        met = "" if row["met"] is None else "reached" if row["met"] else "**missed**"
        quartiles = f"{number(ratio['low'], kind)} to {number(ratio['high'], kind)}"
        work = row["work"] + (f" ({row['note']})" if row["note"] else "")
        cells = (work, row["shape"], row["ours"], against, number(ratio["median"], kind), quartiles, target, met)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _peak(row: Mapping[str, Any]) -> str:
    return " (peak memory)" if row["kind"] == "memory" else ""


def number(value: float, kind: str) -> str:
    """A ratio with two digits behind the point; a share in per cent; a quantity with its unit."""
    if kind == "share":
        return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"
    digits = f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"
    return f"{digits} {UNITS.get(kind, '')}".rstrip()


def misses(name: str, one: Mapping[str, Any], why: Sequence[Mapping[str, str]]) -> list[str]:
    """Each missed target with its reason, and profiles of what was timed there."""
    lines: list[str] = []
    for row in one["rows"]:
        if row["met"] is not False:
            continue
        what = f"{row['work']}, {row['shape']}".rstrip(", ")
        beside = (f" beside {row['against']}" if row["against"] else "") + _peak(row)
        lines.append(f"- **{what}, {row['ours']}{beside}**: {reason(name, row, why) or 'no reason is known yet.'}")
    if not lines:
        return []
    profiles = one["facts"].get("profiles", {})
    missed = [row for row in one["rows"] if row["met"] is False]
    shown = [key for key in profiles if any(row["shape"] in key for row in missed)]
    lines = ["Missed:", "", *lines, ""]
    if shown:
        lines += ["Where the time goes (own time of torch's operations or Python's functions):", ""]
        for key in shown:
            lines.append(f"- {key}: " + ", ".join(f"`{op}` {share:.0%}" for op, share in profiles[key]))
        lines.append("")
    return lines


def reason(name: str, row: Mapping[str, Any], why: Sequence[Mapping[str, str]]) -> str | None:
    """The first that fits a row: what it does not mention fits everything."""
    for one in why:
        parts = ("work", "shape", "ours", "against", "kind")
        if one["script"] == name and all(one.get(part, "") in row[part] for part in parts):
            return one["why"]
    return None


def failures(failed: Sequence[Mapping[str, str]]) -> list[str]:
    """Who could not be measured, and how that showed."""
    if not failed:
        return []
    return ["Not measured:", "", *(f"- {one['work']}, {one['contender']}: {one['how']}" for one in failed), ""]


def accelerator(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The same tables on an accelerator, or that there was none."""
    lines = ["## On an accelerator", ""]
    others = {name: one for name, one in found.items() if one["device"] != "cpu"}
    if not others:
        return "\n".join([*lines, "Not measured: this machine has none. [Another one has](benchmarks_cuda.md).", ""])
    lines += ["Targets are set for processors only. Start-up, compare and regressions were not measured there.", ""]
    for script, heading in SECTIONS.items():
        dtypes = {one["dtype"]: one for one in others.values() if one["name"] == script}
        if dtypes:
            lines += [f"### {heading}", ""] + ([] if script in found else [prose(script), ""])
        for dtype, one in sorted(dtypes.items(), reverse=True):
            lines += [f"In {dtype}:", "", *table(one["rows"]), *profiles(one), *failures(one["failures"])]
    return "\n".join(lines)


def profiles(one: Mapping[str, Any]) -> list[str]:
    """Where the time goes; what an accelerator's kernels leave is waiting for the processor."""
    found = one["facts"].get("profiles", {})
    if not found:
        return []
    what = (
        "Own time of Python's functions"
        if one["name"] == "fixed_cost"
        else "Kernels, by the operation that launched them"
    )
    lines = [f"{what}, as a share of the time of a run:", ""]
    for key, shares in found.items():
        lines.append(f"- {key}: " + ", ".join(f"`{op}` {share:.0%}" for op, share in shares))
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the page of the benchmarks.")
    parser.add_argument("folder", type=Path, help="where the scripts left their JSON")
    parser.add_argument("--print", action="store_true", dest="shown", help="show the page, write nothing")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes")
    parser.add_argument("--name", default=PAGE, help="the page, without the ending")
    given = parser.parse_args(arguments)
    found = results(given.folder)
    page = render(found, reasons(given.name), given.name)
    if given.shown:
        print(page)
        return 0
    if any(one["quick"] for one in found.values()):
        print("a quick run is no page: use --print", file=sys.stderr)
        return 1
    (given.docs / f"{given.name}.md").write_text(page, encoding="utf-8")
    (given.docs / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
