"""The documentation is true: its examples run, its outputs are what is printed, its links lead somewhere.

`docs/refresh.py` says what a page may hold, and rewrites the outputs that change with the bundled weights.
"""

from __future__ import annotations

import doctest
import functools
import importlib
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
from pellucid.prove.copies import deep_copy

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path[:0] = [str(DOCS), str(DOCS / "figures")]

import make_plots  # noqa: E402
import measure_same_model as same  # noqa: E402
import refresh  # noqa: E402

PAGES = {path.name: path for path in refresh.PAGES}

WITHOUT_EXAMPLE = {
    "architecture.md": "it describes the source; there is nothing to type",
    "cli.md": "its examples are command lines; tests/cli runs them",
    "glossary.md": "it explains words",
    "versions.md": "it lists what was run; there is nothing to type",
}
"""Page -> why it has no python block that is run."""

SLOW = ("attribution.md", "compare.md", "corpus.md", "measure.md", "plot.md")
"""Pages whose examples take seconds: `make check` leaves them to `make test`."""

SOURCE = Path(pl.__file__).parent
MODULES = {
    ".".join(part for part in path.relative_to(SOURCE.parent).with_suffix("").parts if part != "__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name != "__main__.py"  # importing it runs the command line
}
WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]


OPENING = ("pellucid.open", "weights.md", "README.md")
"""Examples that are about opening a model: the others may copy the bundled one, which takes half of the time."""


bundled_model = functools.cache(pl.load)
"""It, as it was read."""


def another() -> pl.CkptedTransformer:
    """A copy of it that may be changed, with the same tokenizer: to copy that is to write and read its whole file."""
    return deep_copy(bundled_model(), {})


def tokenizer_now() -> dict[str, Any]:
    """All that the shared tokenizer holds."""
    return {**vars(bundled_model().tokenizer), "_backend": bundled_model().tokenizer._backend.to_str()}


TOKENIZER = functools.cache(tokenizer_now)
"""It, as it was read."""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """A working directory of its own, a copy of the bundled model, and no network."""
    plain = pl.load
    case = getattr(request.node, "callspec", None)
    if case is None or case.params.get("name") not in OPENING:
        monkeypatch.setattr(pl, "load", lambda *a, **o: plain(*a, **o) if a or o else another())

    def refuse(*_: Any) -> None:
        raise AssertionError("an example of the documentation opened a network connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = TOKENIZER()
    yield
    assert tokenizer_now() == before, "an example has changed the tokenizer that all of them share"


def page_of(text: str) -> refresh.Page:
    """A page that a test makes up."""
    return refresh.Page("made_up.md", text)


# Examples


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow_page) if n in SLOW else n for n in PAGES])
def test_examples_run_and_print_what_the_page_says(name: str) -> None:
    page, sizes = refresh.Page.read(PAGES[name]), dict[str, list[int]]()

    def see(file: str, figure: Any) -> None:
        figure.set_dpi(make_plots.DOTS)
        sizes[file] = list(figure.canvas.get_width_height(physical=True))

    make_plots.run(page, see)
    assert not page.wrong_outputs(), "\n".join([*page.wrong_outputs(), "python docs/refresh.py rewrites outputs"])
    if PAGES[name] in make_plots.PAGES:
        assert set(sizes) == set(re.findall(r"\]\(figures/(\S+)\)", page.text)), "each is drawn by the block above it"
        for file, size in sizes.items():
            kept = (PAGES[name].parent / "figures" / file).read_bytes()
            assert size == [int.from_bytes(kept[at : at + 4]) for at in (16, 20)], file


@pytest.mark.parametrize("name", PAGES)
def test_every_page_has_an_example(name: str) -> None:
    has_example = bool(refresh.Page.read(PAGES[name]).examples())
    assert has_example or WITHOUT_EXAMPLE.get(name), f"{name} has no python block that is run"
    assert not (has_example and name in WITHOUT_EXAMPLE), f"{name} has an example: take it off the list"


@pytest.mark.parametrize("name", PAGES)
def test_python_blocks_are_run_or_say_why_not(name: str) -> None:
    for block in refresh.Page.read(PAGES[name]).blocks():
        assert block.language != "pycon", f"{name}:{block.line}: write `python`, which is run"
        if block.comment.startswith("not run"):
            assert block.is_shown_only, f"{name}:{block.line}: `not run` without a reason"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```python\nassert 1 == 2\n```\n", "made_up.md:2: AssertionError"),
        ("intro\n\n```python\nx = 1\n```\n\n```python\ny\n```\n", "made_up.md:8: NameError"),
        ("```python\n>>> 1 + 1\n3\n```\n", "Expected:\n    3\nGot:\n    2"),
        ("```python\n>>> 1 / 0\n0\n```\n", "ZeroDivisionError"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
        ("```python\nx = (\n```\n", "SyntaxError"),
        ("```python\nx = 1\n", "never closed"),
        ("<!-- refresh -->\n```text\n1\n```\n", "no python block above"),
        (
            '```python\nimport socket\nwith socket.socket() as s:\n    s.connect(("127.0.0.1", 9))\n```\n',
            "network connection",
        ),
    ],
)
def test_a_wrong_example_is_noticed(text: str, says: str) -> None:
    with pytest.raises(refresh.WrongExample) as caught:
        page_of(text).run()
    assert says in str(caught.value)


def test_a_wrong_output_is_noticed_and_rewritten() -> None:
    text = "```python\nprint(6 * 7)\nprint('x')\n```\n\n<!-- refresh -->\n```text\n41\n```\nafter\n"
    page = page_of(text)
    page.run()
    assert page.wrong_outputs() == ["made_up.md:8: the page says\n41\nbut the example prints\n42\nx\n"]
    again = page_of(page.refreshed())
    assert again.text == text.replace("41", "42\nx")
    again.run()
    assert not again.wrong_outputs()


def test_the_sign_of_a_zero_is_no_wrong_output() -> None:
    for printed, right in (("-0.00  1.0", True), ("-0.01  1.0", False), (" 0.00 -1.0", False)):
        page = page_of(f"```python\nprint({printed!r})\n```\n\n<!-- refresh -->\n```text\n 0.00  1.0\n```\n")
        page.run()
        assert bool(page.wrong_outputs()) is not right, printed


def test_blocks_of_a_page_share_names_and_pages_do_not() -> None:
    page = page_of(
        "```python\na = 1\n```\n\n```python\n>>> a\n1\n>>> b = 2\n```\n\n```python\nassert a + b == 3\n```\n"
    )
    page.run()
    with pytest.raises(refresh.WrongExample, match="NameError"):
        page_of("```python\na\n```\n").run()


def test_a_block_that_is_only_shown_is_not_run() -> None:
    page = page_of("<!-- not run: needs the network -->\n```python\n1 / 0\n```\n")
    page.run()
    assert not page.examples()


def test_every_module_can_be_imported() -> None:
    for name in MODULES:
        importlib.import_module(name)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    for test in tests:
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)


# Links and names


def prose(text: str) -> str:
    """A page without its blocks and inline code."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> Iterator[str]:
    """The relative targets of a page's links and images."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(text: str) -> set[str]:
    """What can stand behind `#`: GitHub's form of the headings."""
    headings = re.findall(
        r"^#+ +(.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """Targets that are not there."""
    broken = []
    for target in links(text):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if there != path and not there.exists():
            broken.append(target)
        elif anchor:
            page = text if there == path else there.read_text(encoding="utf-8")
            broken += [target] if anchor not in anchors(page) else []
    return broken


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert not broken_links(PAGES[name], PAGES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((DOCS / "readings").glob("*.md")), ids=lambda path: path.stem)
def test_a_reading_names_the_checkpoints_that_it_speaks_of(path: Path) -> None:
    """In its first paragraph, each of them a point of the schema; it has a picture, and something to try."""
    text = path.read_text(encoding="utf-8")
    front = text.split("\n\n")[1]
    assert front.startswith("Checkpoints: `")
    schema = pl.load().schema
    assert set(re.findall(r"`([^`]+)`", front)) <= set(schema.kinds)
    assert re.search(r"!\[[^\]]+\]\(figures/\w+\.png\)", text)
    assert "## Try\n\n- **In the viewer:** " in text
    assert "\n- **In Python:** " in text
    assert f"](readings/{path.name})" in PAGES["readings.md"].read_text(encoding="utf-8")
    assert len(prose(text).split()) <= 1500, "ten minutes"
    formulas = " ".join(re.findall(r"\$\$?[^$]+\$", prose(text)))
    simple = {"frac", "sum", "sqrt", "cdot", "le", "approx", "pi", "epsilon", "ell", "tanh"}
    assert set(re.findall(r"\\([a-zA-Z]+)", formulas)) <= simple, "what every renderer knows"


def test_a_broken_link_is_noticed() -> None:
    text = "# A heading\n[a](index.md) [b](nowhere.md) [c](#a-heading) [d](#nowhere) [e](index.md#nowhere) `[f](g)`\n"
    assert broken_links(DOCS / "made_up.md", text) == ["nowhere.md", "#nowhere", "index.md#nowhere"]


def test_every_page_is_in_the_overview_and_the_overview_in_the_readme() -> None:
    pages = {path.name for path in DOCS.glob("*.md")}
    listed = set(links(PAGES["index.md"].read_text(encoding="utf-8")))
    assert pages - {"index.md"} == {link for link in listed if not link.startswith("../")}
    notebooks = {f"../examples/{path.name}" for path in (ROOT / "examples").glob("*.ipynb")}
    assert notebooks <= listed
    assert "docs/index.md" in set(links(PAGES["README.md"].read_text(encoding="utf-8")))


def test_pages_without_example_exist() -> None:
    assert set(WITHOUT_EXAMPLE) <= set(PAGES)


def test_every_public_name_is_documented() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    absent = [name for name in pl.__all__ if not re.search(rf"(?<![\w]){re.escape(name)}(?!\w)", text)]
    assert not absent, f"in pl.__all__, but on no page: {absent}"


def test_every_pl_name_in_the_documentation_exists() -> None:
    for name, path in PAGES.items():
        for used in set(re.findall(r"\bpl\.(\w+)", path.read_text(encoding="utf-8"))):
            assert hasattr(pl, used), f"{name} speaks of pl.{used}"


def test_every_checkpoint_and_parameter_is_documented() -> None:
    checkpoints = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    model = pl.load()
    table = {re.sub(r"^blocks\.\d+\.", "", name) for name in model.ckpt_names}
    assert len(table) == 17 + 4
    assert [name for name in table if f"| `{name}` |" not in checkpoints] == []
    named = (DOCS / "model.md").read_text(encoding="utf-8")
    assert {name.rsplit(".", 1)[-1] for name in model.parameter_names} <= set(re.findall(r"\w+", named))


def test_codes_of_errors_are_those_of_the_source() -> None:
    page = PAGES["errors.md"].read_text(encoding="utf-8")
    assert refresh.with_codes(page) == page, "python docs/refresh.py rewrites the table"
    assert {"unknown-checkpoint", "empty-text"} <= {code for group in refresh.codes().values() for code in group}


def test_the_tables_of_checkpoints_are_those_of_the_schema() -> None:
    page = PAGES["checkpoints.md"].read_text(encoding="utf-8")
    assert refresh.with_points(page) == page, "python docs/refresh.py rewrites the tables"
    assert refresh.with_points(page.replace("| queries |", "| something else |")) == page


# The figure


@pytest.mark.slow_page
def test_the_figure_can_be_drawn_again(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_figure", DOCS / "figures" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.main(["--out", str(tmp_path / "glass.png")]) == 0
    drawn, kept = (path.read_bytes() for path in (tmp_path / "glass.png", DOCS / "figures" / "glass.png"))
    assert drawn.startswith(b"\x89PNG")
    assert drawn[16:24] == kept[16:24], "width and height in pixels"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine: apt-get install chromium")
def test_the_picture_of_the_viewer_can_be_taken_again(tmp_path: Path) -> None:
    script, out = DOCS / "figures" / "make_viewer.py", tmp_path / "viewer.png"
    subprocess.run([sys.executable, str(script), "--out", str(out)], check=True)
    taken, kept = out.read_bytes(), (DOCS / "figures" / "viewer.png").read_bytes()
    assert taken[16:24] == kept[16:24], "width and height in pixels"
    assert len(taken) > len(kept) / 2, "an empty page is a tenth of it"


# What same_model.md states is measured again


MEASURED = ("bundled model", "random, `reorder_and_upcast_attn`")
"""Models of the page that every run measures again; `make test-all` measures the others, too."""


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.long)])
def measured(request: pytest.FixtureRequest) -> same.Measured:
    """The tables of same_model.md, by the quick mode of its script."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "some":
            patch.setattr(same, "MODELS", {name: same.MODELS[name] for name in MEASURED})
        found = same.measure(quick=True)
        assert len(found.cells) == 2 * len(same.MODELS)
    return found


@pytest.mark.slow_page
def test_the_table_is_what_is_measured(measured: same.Measured) -> None:
    stated = same.rows(same.between_markers(PAGES["same_model.md"].read_text(encoding="utf-8")))
    for key, cells in measured.cells.items():
        assert [*key, *cells] in stated
        assert set(cells) <= {"equal", "not run"}
    claims = [row for row in stated if row[1] in same.ATTENTION]
    assert len(claims) == 2 * len(same.MODELS) + 2, "the model of GPT-2 small's size is left out of the quick mode"
    assert all(set(row[2:]) <= {"equal", "not run"} for row in claims)
    assert sum(row.count("not run") for row in claims) == 1 + 2 * 3  # transformers raises; too large for a quick look


@pytest.mark.slow_page
def test_distances_are_what_is_measured(measured: same.Measured) -> None:
    stated = same.rows(same.between_markers(PAGES["same_model.md"].read_text(encoding="utf-8")))
    for run, cells in measured.distances.items():
        (row,) = [row for row in stated if row[0] == run]
        for cell, there in zip(cells, row[1:], strict=True):
            assert (cell == "equal") == (there == "equal"), run
            if cell != "equal":
                assert 0.01 < float(cell) / float(there) < 100, run


def test_the_table_would_show_a_wrong_model(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pl.from_hf

    def wrong(*args: Any, **options: Any) -> pl.CkptedTransformer:
        model = right(*args, **options)
        model.blocks[2].ln2.eps *= 10
        return model

    monkeypatch.setattr(pl, "from_hf", wrong)
    assert str(same.measure_cell("random, 4 layers", "sdpa", same.DTYPES[0], (7,))) != "equal"
