"""Every error that a verb can reach has a remedy for the command line: of each place that raises one, what is printed.

The remedies are read off the source, with stand-ins for what is only known when it is raised, and put into
the words of the command line. One that is still Python has to be excused: by `NO_VERB` if no verb gets there, or by
`ONLY_PYTHON`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest

from following import SOURCE
from pellucid.cli import VERBS
from pellucid.cli.shared.remedies import PYTHON, WORDS, remedy_here

Site = tuple[str, str, str]
"""Module, code and remedy."""

NO_VERB = {
    "needs an edit, a cache, a start or a tap, which no verb has":
        "run/edit run/edit_tap run/region run/cache run/span run/model:tap-kind",
    "indexes what was captured, or asks for a parameter": "run/activations parameters gpt2/model:unknown-parameter",
    "takes a model, modules or a configuration made in Python":
        "part gpt2/config:config-missing gpt2/config:config-wrong-type agreement open ties/change ties/saving "
        "weights/exchange weights/foreign weights/live weights/load:config-wrong-type prove/sides",
    "takes tensors, arrays, figures or settings made in Python":
        "ties/audit:not-auditable ties/subject text/tokenizer text/ids text/batching html/page plot/canvas "
        "plot/heatmaps plot/patterns plot/summaries plot/inputs:not-labelled plot/inputs:no-such-axis "
        "measure/autoregression measure/groups measure/series measure/distributions generate/verbs weights/building",
    "gathers statistics of a stream": "measure/stream measure/fit corpus/saving",
    "is said by the verb before it gets there":
        "generate/loop generate/beams generate/file_settings:max-new-tokens plot/inputs:not-finite "
        "plot/inputs:nothing-to-draw",
    "is reached by check alone, which has its own words for it": "exercises/learner_file",
}  # fmt: skip
"""Why no verb gets to these modules, or to this code of a module."""

ONLY_PYTHON = {
    "pickle-no-state-dict": "the file has to be written anew", "pickle-unsafe": "the file has to be written anew",
    "tensor-not-dense": "the file has to be written anew", "weights-ambiguous": "one of several models is chosen",
    "weights-foreign": "the file has to be converted", "format-not-supported": "the file has to be converted",
    "ties/problems": "the model is changed or saved anew; what a line in config.json mends is no Python",
}  # fmt: skip
"""Codes that verbs reach, or modules, whose remedies nobody can follow at a shell; "In Python:" stands before them."""


def texts_of(node: ast.AST, named: Mapping[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """Every text that an expression may be, with `…` for what the source does not say."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.FormattedValue) and not isinstance(node.value, ast.IfExp):
        return ["…"]
    if isinstance(node, ast.FormattedValue):
        return texts_of(node.value, named, depth)
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body, named, depth), *texts_of(node.orelse, named, depth)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts_of(value, named, depth)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = (texts_of(side, named, depth) for side in (node.left, node.right))
        return ["".join(pair) for pair in product(*sides)]
    if isinstance(node, ast.JoinedStr):
        # A value after `=` is a list, as that of ignore_config is; any other is a word.
        whole = ["".join(parts) for parts in product(*(texts_of(value, named, depth) for value in node.values))]
        return [text.replace("=…", "=['x']").replace("…", "x") for text in whole]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return texts_of(node.func.value, named, depth)  # such as f"...".strip()
    if isinstance(node, ast.Name) and node.id in named and depth < 2:
        return [text for value in named[node.id] for text in texts_of(value, named, depth + 1)]
    return ["…"]


def sites_in(module: str, source: str) -> Iterator[Site]:
    """Every remedy of a module, with its code."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(inner): node for node in functions for inner in ast.walk(node)}  # the innermost is walked last
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given: dict[str | None, ast.expr] = {keyword.arg: keyword.value for keyword in node.keywords}
        kind = getattr(node.func, "id", "")
        if kind == "Problem" and len(node.args) > 2:
            given |= {"code": node.args[0], "remedy": node.args[2]}
        elif kind.endswith(("Kind", "Foreign")) and node.args:
            code = ast.Constant("weights-foreign" if kind == "Foreign" else "format-not-supported")
            given |= {"code": code, "remedy": node.args[-1]}
        if "remedy" in given:
            named = {**assigned(tree.body), **assigned(list(ast.walk(inside.get(id(node), ast.Pass()))))}
            codes = texts_of(given.get("code", ast.Constant("…")), named)
            yield from ((module, *pair) for pair in product(codes, texts_of(given["remedy"], named)))


def assigned(nodes: Sequence[ast.AST]) -> dict[str, list[ast.expr]]:
    """What these statements assign to each name."""
    found = defaultdict[str, list[ast.expr]](list)
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id].append(node.value)
    return found


@cache
def sites() -> frozenset[Site]:
    """Every remedy of the source."""
    files = {path.relative_to(SOURCE).with_suffix("").as_posix(): path for path in SOURCE.rglob("*.py")}
    return frozenset(site for name, path in files.items() for site in sites_in(name, path.read_text(encoding="utf-8")))


def excuse(module: str, code: str) -> str | None:
    """Which entry of the tables excuses a place that speaks Python."""
    excused = {entry for entries in NO_VERB.values() for entry in entries.split()}
    return next((entry for entry in (f"{module}:{code}", module, code) if entry in {*excused, *ONLY_PYTHON}), None)


def test_the_source_has_the_remedies_that_are_looked_for() -> None:
    assert len(sites()) > 350
    known = {code for _, code, _ in sites()}
    assert {"unknown-checkpoint", "stored-twice", "weights-foreign", "too-long", "dtype-unknown"} <= known
    source = "def f(x):\n    raise E('m', code='a-b', remedy=f'Give {x}, ' + ('pl.f' if x else 'more'))"
    assert set(sites_in("m", source)) == {("m", "a-b", f"Give x, {end}") for end in ("pl.f", "more")}


def test_what_a_verb_can_reach_is_no_python() -> None:
    spoken = {(module, code, words) for module, code, remedy in sites() if (words := _python(code, remedy))}
    assert sorted(site for site in spoken if excuse(*site[:2]) is None) == []
    used = {excuse(module, code) for module, code, _ in spoken}
    tables = {entry for entries in NO_VERB.values() for entry in entries.split()} | set(ONLY_PYTHON)
    assert sorted(tables - used) == [], "excuses that nothing needs"


def _python(code: str, remedy: str) -> str | None:
    """What some verb prints, if that is Python."""
    printed = {remedy_here(code, remedy, verb) for verb in ("", *VERBS)}
    return next((words for words in printed if words.startswith("In Python: ") or PYTHON.search(words)), None)


OPENING = ("run", "generate", "norms", "compare")
OF_VERBS = dict.fromkeys(
    ("beams-vocabulary", "compiler-failed", "generation-not-implemented", "kernel-tables", "no-compiler", "overflow",
     "return-sequences", "sampler-setting", "too-long"), ("generate",),
) | {"log-of-zero": ("norms",), "pattern-for-a-name": ("run",), "unknown-checkpoint": ("run",)}  # fmt: skip
"""Codes that only these verbs reach; the others are reached by all that open a model."""


@pytest.mark.parametrize("entry", WORDS)
def test_the_options_of_a_remedy_are_those_of_the_verb(entry: str, cli: Any) -> None:
    verb, _, code = entry.rpartition(" ")
    words = WORDS[entry]
    said = words if isinstance(words, str) else str(words[1])
    for name in (verb,) if verb else OF_VERBS.get(code, OPENING):
        known = {*re.findall(r"--[a-z-]+", cli(name, "--help").stdout), "--list", "--help"}
        assert set(re.findall(r"--[a-z-]+", said)) <= known, name
