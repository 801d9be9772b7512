"""The page that `pellucid demo` ends with: what the bundled model is, and what can be seen in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import pellucid as pl
from pellucid import atomic
from pellucid.errors import MissingExtraError
from pellucid.extras import need
from pellucid.html.page import InnerPage, Page, Picture, PlainTable, Section, Text
from pellucid.viewer import views

AT = "attn.ckpt_attn_out"
BEGINNING, LENGTH, HEADS = "Once upon a time", 120, 16
"""How the model's story begins, how many tokens follow, and how many of them the picture of the heads shows."""
LOOKED_AT = "Lily and Tom went to the park. Tom gave a ball to"
RELEASE = "required"
"""The card's column for those who publish the model."""
CARD = Path(pl.__file__).parent / "bundled" / "README.md"


def write_page(model: pl.CkptedTransformer, path: Path) -> None:
    """Write the page of the bundled model."""
    atomic.write_text(path, page_of(model, CARD.read_text(encoding="utf-8")).render())


def page_of(model: pl.CkptedTransformer, card: str) -> Page:
    """A page about a model that comes with a card in Markdown: a view, card, proof, ties, norms, regression, heads."""
    story = model.generate(BEGINNING, max_new_tokens=LENGTH, end_ids=())
    report = _if_installed(lambda: pl.compare(model, pl.to_hf(model), inputs=story.texts[0]))
    sections = [
        *_if_installed(lambda: [_look(model)], [_missing("Look inside")]),
        *card_sections(card),
        *_proof(report),
        *_ties(pl.audit_ties(model)),
        *_if_installed(lambda: list(_measured(model, story)), [_missing("Norms, regression, heads")]),
    ]
    equal = report is not None and report.verdict == "identical"
    verdict = "identical to transformers" if equal else "pellucid"
    words = f"The bundled model: {pl.count_parameters(model).unique:,} parameters, every value of it named."
    return Page("GPT-2 made of glass", verdict, True if equal else None, words, sections)


def _look(model: pl.CkptedTransformer) -> Section:
    note = "One text's run, to look at: every head, what each block would say next, and who wrote the answer."
    return InnerPage("Look inside", pl.view(model, LOOKED_AT).html(views.examples()), note)


def card_sections(markdown: str) -> Iterator[Section]:
    """What a card says first, its table of figures, and its samples."""
    parts = {name.strip(): body for name, _, body in (part.partition("\n") for part in markdown.split("\n## "))}
    title, summary = next(iter(parts.items()))
    yield Text(_paragraph(summary.split("\n\n")[0] or summary), title.lstrip("# "))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in parts["Figures"].splitlines() if "|" in line
    ]
    kept = [number for number, title in enumerate(rows[0]) if title != RELEASE]
    shown = [tuple(row[number] for number in kept) for row in (rows[0], *rows[2:])]
    yield PlainTable("Its measurements, on text that it was not trained on", shown[0], shown[1:])
    for number, line in enumerate(line for line in parts["Samples"].split("\n\n") if line.startswith(">")):
        yield Text(_paragraph(line.replace("\n>", "\n")).lstrip("> "), "Samples, not picked" if number == 0 else "")


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _proof(report: pl.ComparisonReport | None) -> Iterator[Section]:
    if report is None:
        yield _missing("The same model as transformers'?", "hf")
        return
    yield Text(f"{report.verdict}: {report.summary}", "The same model as transformers'?")
    yield from (section for section in report.page().sections if section.kind == "heat")


def _ties(audit: pl.TieAudit) -> Iterator[Section]:
    facts = audit.facts()
    yield PlainTable(
        "Which weights are shared, and what saving does to them",
        ("", ""),
        [
            ("parameters", facts["parameters"]), ("bytes, opened as float32", facts["bytes"]),
            *((f"shared by {len(group.names)} names", ", ".join(group.names)) for group in audit.groups),
            ("after saving and loading", audit.after_reload.reason),
            ("problems", "none" if not audit.problems else "; ".join(p.message for p in audit.problems)),
        ],
    )  # fmt: skip


def _measured(model: pl.CkptedTransformer, story: pl.Generation) -> Iterator[Section]:
    """Figures of the model's own story."""
    whole = torch.cat([story.rows[0].prompt, story.rows[0].new])[None]
    _, ckpts = model.run_with_ckpts(whole, names=f"blocks.*.{AT}")
    norms = pl.measure.norms(ckpts, AT, log=True)
    fit = pl.measure.autoregression(norms, lags=2, skip=1)
    whose = f"Of {norms.sizes['pos']} tokens: {BEGINNING!r} and what the model wrote then; the first one is left out."
    yield _picture("What attention adds, by layer", lambda: pl.plot.norms(norms, skip=1), whose)
    yield _picture(
        "Is a token's norm predicted by those before it?", lambda: pl.plot.autoregression(fit),
        "Coefficients of y[t] = const + lag1 y[t-1] + lag2 y[t-2] with 95 % bands; filled: p < 0.05.",
    )  # fmt: skip
    _, ckpts = model.run_with_ckpts(whole[:, :HEADS], names="blocks.*.attn.ckpt_pattern")
    patterns = ckpts.to_xarray()["attn.ckpt_pattern"].isel(batch=0)
    tokens = ckpts.batch.strings[0]
    yield _picture(
        "Every head", lambda: pl.plot.attention_grid(patterns, tokens=tokens), "A row for each query, a column a key."
    )


def _picture(title: str, draw: Callable[[], Any], note: str) -> Picture:
    light, dark = (_svg(draw, name) for name in ("light", "dark"))
    return Picture(title, light, dark, f"A figure: {title}", note)


def _svg(draw: Callable[[], Any], theme: str) -> str:
    matplotlib = need("matplotlib", "pellucid demo")
    with pl.plot.theme(theme), matplotlib.rc_context({"svg.hashsalt": "pellucid", "svg.fonttype": "path"}):
        figure = draw().get_figure()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _if_installed(make: Callable[[], Any], otherwise: Any = None) -> Any:
    try:
        return make()
    except MissingExtraError:
        return otherwise


def _missing(title: str, extra: str = "stats") -> Text:
    return Text(f"Not here: pip install 'pellucid[{extra}]' brings what it needs.", title)
