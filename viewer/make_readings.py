"""Writes the readings as the viewer shows them, from docs/readings: `python viewer/make_readings.py`.

Formulas become MathML and figures are inside, so the pages need no network. tests/viewer/test_viewer_readings.py runs
it again and compares.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt

import pellucid as pl

DOCS = Path(__file__).parents[1] / "docs"
OUT = Path(pl.__file__).parent / "viewer" / "static" / "readings.json"

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
_HELD = "HELD{}HELD"
"""What stands for a formula while Markdown is read, which would take its underlines for emphasis."""


def made() -> list[dict[str, str]]:
    """Slug, title and HTML of each reading, in the order of the index."""
    slugs = re.findall(r"\(readings/(\w+)\.md\)", (DOCS / "readings.md").read_text(encoding="utf-8"))
    return [_reading(slug) for slug in slugs]


def _reading(slug: str) -> dict[str, str]:
    text = (DOCS / "readings" / f"{slug}.md").read_text(encoding="utf-8")
    title = text.split("\n", 1)[0].removeprefix("# ")
    text = re.sub(r"^<!--.*?-->\n", "", text, flags=re.DOTALL | re.MULTILINE)
    formulas: list[str] = []

    def held(found: re.Match[str]) -> str:
        made = convert(found[1] or found[2], display="block" if found[1] else "inline")
        formulas.append(re.sub(' xmlns="[^"]*"', "", made))  # within HTML it is known
        return _HELD.format(len(formulas) - 1)

    code = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)  # what is code holds no formula
    text = "".join(part if number % 2 else _FORMULA.sub(held, part) for number, part in enumerate(code))
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    html = re.sub(_HELD.format(r"(\d+)"), lambda found: formulas[int(found[1])], html)
    html = re.sub(r"<(/?)h2>", r"<\1h3>", html).replace("h1>", "h2>")
    html = re.sub(r'<img src="figures/([\w.]+)"', _inside, html)
    return {
        "slug": slug,
        "title": title,
        "html": re.sub(r'<a href="([^"#][^"]*)">(.*?)</a>', _link, html, flags=re.DOTALL),
    }


def _inside(found: re.Match[str]) -> str:
    picture = (DOCS / "readings" / "figures" / found[1]).read_bytes()
    return f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}"'


def _link(found: re.Match[str]) -> str:
    """A link to another reading, or to a screen by its question, opens it; other pages are not in the package."""
    other = re.fullmatch(r"(\w+)\.md", found[1])
    if other:
        return f'<a href="#" data-reading="{other[1]}">{found[2]}</a>'
    if found[1] == "../viewer.md#what-it-shows":
        return f'<a href="#" data-screen="{_screens()[" ".join(found[2].split())]}">{found[2]}</a>'
    return found[2]


@functools.cache
def _screens() -> dict[str, str]:
    """Question -> id of the viewer's screens."""
    table = (Path(__file__).parent / "src" / "screens.ts").read_text(encoding="utf-8")
    return {question: name for name, question in re.findall(r'id: "(\w+)",.*?question: "([^"]*)"', table, re.DOTALL)}


if __name__ == "__main__":
    OUT.write_text(json.dumps(made(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
