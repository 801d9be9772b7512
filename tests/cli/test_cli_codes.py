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

import pytest

from following import SOURCE
from pellucid.cli import VERBS, load_verb
from pellucid.cli.shared.failures import WORDS, remedy_here
from pellucid.errors import PYTHON

Site = tuple[str, str]
"""Code and remedy."""

NO_VERB = {
    "needs an edit, a cache, a start or a tap, which no verb has":
        "cache-rows edit-kind edit-misfit edit-needs-the-text no-such-axis patch-of-a-part "
        "index-out-of-range patch-of-another-length start-at tap-kind",
    "indexes what was captured, or asks for a parameter":
        "layer-name meta-device not-captured not-of-every-block unknown-parameter",
    "takes a model, modules or a configuration made in Python":
        "changed-model compare-kind compare-no-values compare-unknown-both config-missing config-no-blocks "
        "config-wrong-type "
        "device-not-available generation-refused generation-wrong-type head-not-plain head-shape hf-attention "
        "hf-cannot-run hf-computed-weight hf-dropout hf-head hf-hooks hf-part hf-patched-forward hf-tensors "
        "hf-wrong-class no-head not-a-model reload-differs reload-raises save-raises "
        "weights-misfit",
    "takes tensors, arrays, figures or settings made in Python":
        "bandwidth component-axes corpus-above corpus-encode corpus-no-units corpus-units heatmap-centre "
        "id-out-of-range ids-dtype logits-shape mask-while-captured matrix-axes "
        "no-coefficients no-page not-a-fit not-a-readout "
        "not-a-rectangle not-a-state-dict not-an-optimizer not-auditable not-axes not-counted not-labelled "
        "not-measurable padding-side pattern-axes regressor-misfit score-axes text-kind tokens-length too-many-bins "
        "unknown-covariance",
    "multiplies factored matrices": "factors-misfit not-square",
    "is code for HookedTransformer":
        "hook-direction hook-not-computed hooked-config hooked-return-type hooked-tokenizer hooked-unsupported "
        "no-beginning patch-arguments patch-indices several-rows slice-without-length unknown-hook-point",
    "folds and centres weights": "folding-differs folding-rotated folding-without-bias",
    "attributes captured values":
        "attribution-of-some-heads attribution-target "
        "captures-without-model lens-model lens-setting "
        "lens-texts no-head-before parts-do-not-sum",
    "looks at captured values, or at a file of a trace": "no-view not-a-trace of-text-positions view-not-repeatable",
    "evaluates circuits": "circuit-choices circuit-kind circuit-scores circuit-shares not-a-circuit",
    "patches, ablates, or measures one number of a run":
        "ablate-how edit-mean-of-pattern gradient-along gradient-rules metric-kind "
        "metric-positions metric-shape metric-tokens metric-without-gradient no-texts nothing-to-normalize path-order "
        "path-through sweep-direction sweep-over sweep-part",
    "reads others' autoencoders":
        "sae-and-model sae-decode-input sae-fold sae-fold-differs sae-no-tokens",
    "draws from arrays, or opens a tokenizer, in Python":
        "colours-length not-stages of-text-positions path-not-regular text-axes tokenizer-kind vector-axes",
    "views captured values or a trace": "no-view not-a-trace view-not-repeatable",
    "reads a store, or calls what writes one with arguments made in Python": "corpus-field corpus-speed texts-kind",
    "gathers statistics of a stream": "no-series statistics-kind stream-misfit unknown-of",
    "is said by the verb in its own words before it gets there":
        "look-and-beams max-new-tokens no-bos not-finite nothing-to-draw return-sequences stream-beams path-not-found",
}  # fmt: skip
"""Why what says a remedy in Python is reached by no verb: codes, of whose other remedies the verbs may print."""

ONLY_PYTHON = {
    "the file has to be written anew, or converted":
        "format-not-supported pickle-no-state-dict pickle-unsafe tensor-not-dense weights-ambiguous weights-foreign "
        "weights-misshapen",
    "the model has to be changed, or saved anew":
        "cache-stale equal-becomes-tied overlapping-views part-of-more reload-x stored-twice tie-not-in-config "
        "tied-by-config-only two-parameters …",
}  # fmt: skip
"""Why nobody can follow a remedy at a shell, although a verb prints it; "In Python:" stands before it."""

EXCUSED = {code for table in (NO_VERB, ONLY_PYTHON) for codes in table.values() for code in codes.split()}


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


def sites_in(source: str) -> Iterator[Site]:
    """Every remedy of a module, with its code."""
    if not re.search(r"remedy=|(Problem|Kind|Foreign)\(", source):
        return
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
            codes = texts_of(given.get("code", ast.Constant("x")), named)
            yield from product(codes, texts_of(given["remedy"], named))


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
    files = SOURCE.rglob("*.py")
    return frozenset(site for path in files for site in sites_in(path.read_text(encoding="utf-8")))


def test_the_source_has_the_remedies_that_are_looked_for() -> None:
    assert len(sites()) > 350
    known = {code for code, _ in sites()}
    assert {"unknown-checkpoint", "stored-twice", "weights-foreign", "too-long", "dtype-unknown"} <= known
    source = "def f(x):\n    raise E('m', code='a-b', remedy=f'Give {x}, ' + ('pl.f' if x else 'more'))"
    assert set(sites_in(source)) == {("a-b", f"Give x, {end}") for end in ("pl.f", "more")}


def test_what_a_verb_can_reach_is_no_python() -> None:
    spoken = {(code, words) for code, remedy in sites() if (words := _python(code, remedy))}
    assert sorted(words for code, words in spoken if code not in EXCUSED) == []
    assert sorted(EXCUSED - {code for code, _ in spoken}) == [], "excuses that nothing needs"


def _python(code: str, remedy: str) -> str | None:
    """What some verb prints, if that is Python."""
    printed = {remedy_here(code, remedy, verb) for verb in ("", *VERBS)}
    return next((words for words in printed if words.startswith("In Python: ") or PYTHON.search(words)), None)


OPENING = ("run", "generate", "norms", "compare")
OF_VERBS = dict.fromkeys(
    ("beams-vocabulary", "compiler-failed", "generation-not-implemented", "kernel-tables", "no-compiler", "overflow",
     "return-sequences", "sampler-setting", "too-long"), ("generate",),
) | {"log-of-zero": ("norms",), "pattern-for-a-name": ("run",), "unknown-checkpoint": ("run",),
     "sweep-memory": ("patch",), "texts-of-unequal-length": ("patch",),
     "lens-place": ("lens",), "lens-of-another-model": ("lens",)} | dict.fromkeys(
    ("corpus-engine", "corpus-not-shared", "ray-address", "ray-lost", "ray-machine", "ray-workers"), ("capture",)
) | dict.fromkeys(
    ("sae-centring", "sae-input-scale", "sae-not-in-the-stream", "sae-place", "sae-width"),
    ("run", "attribute", "patch"),
)  # fmt: skip
"""Codes that only these verbs reach; the others are reached by all that open a model."""


@pytest.mark.parametrize("entry", WORDS)
def test_the_options_of_a_remedy_are_those_of_the_verb(entry: str) -> None:
    verb, _, code = entry.rpartition(" ")
    words = WORDS[entry]
    said = words if isinstance(words, str) else str(words[1])
    for name in (verb,) if verb else OF_VERBS.get(code, OPENING):
        known = {*(long for one in load_verb(name).params for long in one.opts), "--list", "--help"}
        assert set(re.findall(r"--[a-z-]+", said)) <= known, name
