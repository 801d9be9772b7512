"""Run the examples of the documentation, and rewrite the outputs that depend on the bundled model's weights.

    python docs/refresh.py            # outputs, measured tables and the figure
    python docs/refresh.py --check    # outputs only, change nothing, exit 1 where one is not what the page says

An example that fails is shown, its page is left alone, and the exit code is 1.

What a page holds:

- a `python` block with `>>> ` prompts is a doctest: its output is compared;
- a `python` block without prompts is run, and the blocks of one page share their names;
- a `text` block below `<!-- refresh -->` is what the `python` block above it prints; it is rewritten here;
- a `python` block below `<!-- not run: REASON -->` is only shown.
"""

# ruff: noqa: T201 (a script that prints)

from __future__ import annotations

import argparse
import ast
import contextlib
import doctest
import functools
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("readings/*.md")))

CODES_PAGE = DOCS / "errors.md"
CODES_BEGIN, CODES_END = "<!-- codes: begin -->", "<!-- codes: end -->"
POINTS_PAGE = DOCS / "checkpoints.md"
POINTS_BEGIN, POINTS_END = "<!-- points: begin -->", "<!-- points: end -->"

_FENCE = re.compile(r"^```(\w*)\s*$")
_COMMENT = re.compile(r"^<!--\s*(.*?)\s*-->$")


class WrongExample(AssertionError):  # noqa: N818 (it is the failure of an example)
    """An example that does not run, or that prints something else than its page says."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What stands behind the opening fence.
        code: The lines between the fences.
        line: Number of the first of them, from 1.
        comment: Content of the HTML comment directly above, or "".
    """

    language: str
    code: str
    line: int
    comment: str

    @property
    def is_doctest(self) -> bool:
        """Whether its output stands in it."""
        return bool(re.search(r"^>>> ", self.code, flags=re.MULTILINE))

    @property
    def is_shown_only(self) -> bool:
        """Whether the page says that, and why, it is not run."""
        return re.match(r"not run: \w+", self.comment) is not None

    @property
    def is_output(self) -> bool:
        """Whether it is what the block above prints."""
        return self.language == "text" and self.comment == "refresh"


@dataclass
class Page:
    """A page of the documentation, and what its examples print."""

    name: str
    text: str
    outputs: dict[Block, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Page:
        """Read a page from a file."""
        return cls(path.name, path.read_text(encoding="utf-8"))

    def blocks(self) -> Iterator[Block]:
        """Every fenced block, from the top."""
        lines = self.text.splitlines()
        start: int | None = None
        language = ""
        for number, line in enumerate(lines):
            if start is None and (match := _FENCE.match(line)):
                start, language = number, match[1]
            elif start is not None and line == "```":
                above = _COMMENT.match(lines[start - 1]) if start else None
                code = "".join(f"{one}\n" for one in lines[start + 1 : number])
                yield Block(language, code, start + 2, above[1] if above else "")
                start = None
        if start is not None:
            raise WrongExample(f"{self.name}:{start + 1}: this block is never closed")

    def examples(self) -> list[Block]:
        """The python blocks that are run."""
        return [block for block in self.blocks() if block.language == "python" and not block.is_shown_only]

    def run(self, after: Callable[[Block, dict[str, Any]], None] = lambda block, names: None) -> None:
        """Run the examples in one namespace, from the top, and note what refreshed outputs should be.

        Args:
            after: Called after each example, with it and with the names that it leaves.

        Raises:
            WrongExample: One raises, or a doctest prints something else.
        """
        names: dict[str, Any] = {"__name__": "__main__"}
        printed: str | None = None
        for block in self.blocks():
            if block.is_output:
                if printed is None:
                    raise WrongExample(f"{self.name}:{block.line}: an output, but no python block above it")
                self.outputs[block], printed = printed, None
            elif block.language == "python" and not block.is_shown_only:
                printed = self._run_doctest(block, names) if block.is_doctest else self._run_plain(block, names)
                after(block, names)
        close_figures()

    def wrong_outputs(self) -> list[str]:
        """A line for each output that is not what was printed; `run` comes first."""
        return [
            f"{self.name}:{block.line}: the page says\n{block.code}but the example prints\n{printed}"
            for block, printed in self.outputs.items()
            if unsigned(block.code) != unsigned(printed)
        ]

    def refreshed(self) -> str:
        """The text of the page with every output as it was printed."""
        lines = self.text.splitlines(keepends=True)
        for block, printed in reversed(self.outputs.items()):
            height = block.code.count("\n")
            lines[block.line - 1 : block.line - 1 + height] = [printed]
        return "".join(lines)

    def _run_plain(self, block: Block, names: dict[str, Any]) -> str:
        source = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(source, self.name, "exec", dont_inherit=True), names)
        except Exception as error:
            raise WrongExample(f"{self.name}:{block.line}: {type(error).__name__}: {error}") from error
        return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())

    def _run_doctest(self, block: Block, names: dict[str, Any]) -> str:
        test = doctest.DocTestParser().get_doctest(block.code, names, self.name, self.name, block.line - 1)
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        runner.run(test, out=said.append, clear_globs=False)
        names.update(test.globs)
        if runner.failures:
            raise WrongExample("".join(said))
        return ""


def close_figures() -> None:
    """Close the figures of a page, which pyplot keeps in a program that uses it."""
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@functools.cache
def unsigned(printed: str) -> str:
    """An output without the signs of its zeros, which are rounding and differ from machine to machine."""
    return re.sub(r"\s*-?(?=0\.0+(?![\d.]))", " ", printed)


@functools.cache
def codes() -> dict[str, list[str]]:
    """Error class -> the codes that it is raised with, read off the source."""
    found: dict[str, set[str]] = {}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "src" / "pellucid").rglob("*.py"))]
    constants = {name.id: node.value for tree in trees for node in tree.body if isinstance(node, ast.Assign)
                 for name in node.targets if isinstance(name, ast.Name)}  # fmt: skip
    nodes = _calls_and_functions(trees)
    helpers = {f.name: f for f in nodes if isinstance(f, ast.FunctionDef) and _code_at(f)}
    for node in nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        name, given = node.func.id, [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if name in helpers:  # the class is an argument, or what it returns
            given += node.args[_code_at(helpers[name]) :][:1]
            given = given or _default_code(helpers[name])
            named = [keyword.value for keyword in node.keywords if keyword.arg == "error"]
            defaults = helpers[name].args.kw_defaults
            classes = [a.id for a in (*named, *node.args, *defaults, helpers[name].returns) if isinstance(a, ast.Name)]
            name = next((each for each in classes if each.endswith("Error")), name)
        given = [one for each in given for one in (_branches(each) if isinstance(each, ast.IfExp) else [each])]
        for value in (constants.get(each.id, each) if isinstance(each, ast.Name) else each for each in given):
            if name.endswith("Error") and isinstance(value, ast.Constant):
                found.setdefault(name, set()).add(str(value.value))
    return {name: sorted(found[name]) for name in sorted(found)}


_LEAVES = {int, str, type(None), ast.Name, ast.Constant, ast.Load, ast.Store}
"""What stands in a node and holds no call."""


def _calls_and_functions(trees: Iterable[ast.AST]) -> list[ast.AST]:
    """Those of all trees: `ast.walk` takes four times as long, two seconds of `make check`."""
    todo, found = [*trees], list[ast.AST]()
    for node in todo:
        if isinstance(node, (ast.Call, ast.FunctionDef)):
            found.append(node)
        for value in vars(node).values():
            kind = type(value)
            if kind is list:
                todo += [one for one in value if isinstance(one, ast.AST)]
            elif kind not in _LEAVES and isinstance(value, ast.AST):
                todo.append(value)
    return found


def _branches(choice: ast.expr) -> list[ast.expr]:
    """What a conditional expression may be."""
    return [*_branches(choice.body), *_branches(choice.orelse)] if isinstance(choice, ast.IfExp) else [choice]


def _code_at(function: ast.FunctionDef) -> int:
    """The place of a function's parameter `code`, behind all others if it is by keyword; 0 where it has none."""
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return names.index("code") if "code" in names else 0


def _default_code(function: ast.FunctionDef) -> list[ast.expr]:
    by_keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [default for argument, default in by_keyword if argument.arg == "code" and default is not None]


def with_codes(page: str) -> str:
    """The page of errors with the table of codes as the source has them."""
    rows = [f"| `{name}` | {', '.join(f'`{code}`' for code in group)} |" for name, group in codes().items()]
    table = "\n".join(["| raised as | codes |", "| --- | --- |", *rows])
    before, after = page.partition(CODES_BEGIN)[0], page.partition(CODES_END)[2]
    return f"{before}{CODES_BEGIN}\n{table}\n{CODES_END}{after}"


def with_points(page: str) -> str:
    """The page of checkpoints with its tables as the schema of each family has them."""
    from pellucid.family.families import FAMILIES
    from pellucid.schema import shape_by_letters

    tables = list[str]()
    for family in FAMILIES:
        schema = family.schema_of({"layer": 1})
        tables.append(f"### {family.config.about.family}")
        for title, points in (("name", schema.before), ("`blocks.i.`", schema.block), ("name", schema.after)):
            rows = [f"| {title} | shape | value | what it is | unit |", "| --- | --- | --- | --- | --- |"]
            for point in points:
                meaning = point.meaning + ("" if point.computed == "always" else "; computed when watched")
                shape = shape_by_letters(point.axes)
                shape = shape if point.heads == "head" else shape.replace("H", "G")
                rows.append(f"| `{point.name}` | `{shape}` | `{point.equation}` | {meaning} | {point.unit} |")
            tables.append("\n".join(rows))
    before, after = page.partition(POINTS_BEGIN)[0], page.partition(POINTS_END)[2]
    return "\n\n".join([f"{before}{POINTS_BEGIN}", *tables, f"{POINTS_END}{after}"])


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """A temporary working directory, with the network switched off for hub look-ups."""
    here, offline = Path.cwd(), os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
            if offline is None:
                del os.environ["HF_HUB_OFFLINE"]
            else:
                os.environ["HF_HUB_OFFLINE"] = offline


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the documentation's examples and rewrite their outputs.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where an output is not right")
    parser.add_argument("--outputs-only", action="store_true", help="leave the measured tables and the figure alone")
    given = parser.parse_args(arguments)
    wrong = failed = 0
    for path in PAGES:
        page = Page.read(path)
        try:
            with elsewhere():
                page.run()
        except WrongExample as error:
            failed += 1
            print(error, file=sys.stderr)
            continue
        for line in page.wrong_outputs():
            wrong += 1
            print(line, file=sys.stderr)
        if not given.check and page.refreshed() != page.text:
            path.write_text(page.refreshed(), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: rewritten", file=sys.stderr)
    for path, made_anew in ((CODES_PAGE, with_codes), (POINTS_PAGE, with_points)):
        page = path.read_text(encoding="utf-8")
        if made_anew(page) != page:
            wrong += 1
            if given.check:
                print(f"{path.name}: a table is not that of the source", file=sys.stderr)
            else:
                path.write_text(made_anew(page), encoding="utf-8")
    if not given.check and not given.outputs_only:
        for script in ("measure_same_model.py", "figures/make.py", "figures/make_plots.py"):
            subprocess.run([sys.executable, DOCS / script], check=True)
    return 1 if failed or (given.check and wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
