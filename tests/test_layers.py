"""Imports point downward: `architecture` in one table, read off the source and enforced."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import pellucid
from pellucid.family.json_config import Config

PACKAGE = Path(pellucid.__file__).parent

LAYERS: dict[str, int] = {
    "_version": 0, "errors": 0, "check": 0, "extras": 0, "atomic": 0, "schema": 0, "tap": 0, "numerics": 0,
    "names": 0, "family": 0, "fast.compiled": 0, "html.listing": 0,
    "weights.hub": 0, "weights.hub_answers": 0, "weights.manifests": 0, "weights.foreign": 0,
    "weights.living": 0,
    "gpt2": 1, "llama": 1, "neox": 1, "generate.generation_settings": 1,
    "text": 2, "weights": 2, "run.cache": 2, "fast": 2,
    "run": 3, "metrics": 3,
    "generate": 4, "corpus": 4, "measure": 4,
    "plot": 5, "run.model": 5, "run.cost": 5,
    "open": 6, "html": 6, "prove": 6, "ties": 6, "exercises": 6,  # these open what is given as a path
    "patching": 6, "attribution": 6, "lens": 6, "heads": 6, "circuits": 6, "sae": 6, "viewer": 7,
    "corpus.identity": 6, "corpus.store": 6, "corpus.loader": 6, "corpus.writing": 6,
    "corpus.activity": 6,
    "compat": 7, "reproduce": 7,
    "": 7,  # the public names
    "cli": 8, "__main__": 8,
}  # fmt: skip
"""Module or package (the longest that matches) -> layer; a module imports from its own layer or lower ones."""

HEAVY = {"transformers", "matplotlib", "xarray", "statsmodels", "pandas", "scipy", "huggingface_hub"}
"""Optional or slow: imported where they are used, never at the head of a module."""


parsed = functools.cache(ast.parse)


@dataclass(frozen=True)
class Import:
    """One import of our own package or of a heavy one."""

    module: str
    imports: str
    line: int
    in_function: bool
    for_types_only: bool


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every import in a module's source, relative ones resolved."""
    yield from _walk(module, parsed(source), in_function=False, for_types_only=False)


def _walk(module: str, node: ast.AST, *, in_function: bool, for_types_only: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):  # which holds no import
            continue
        function = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        typing = for_types_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(module, alias.name, child.lineno, in_function, for_types_only)
        elif isinstance(child, ast.ImportFrom):
            if child.level:
                yield Import(module, "relative", child.lineno, in_function, for_types_only)
                continue
            for alias in child.names:
                yield Import(module, f"{child.module}.{alias.name}", child.lineno, in_function, for_types_only)
        yield from _walk(module, child, in_function=function, for_types_only=typing)


def own(name: str, modules: Iterable[str]) -> str | None:
    """The module of ours that an imported dotted name leads to, without the package's name; None for others'."""
    if name != "pellucid" and not name.startswith("pellucid."):
        return None
    inner = name.removeprefix("pellucid").removeprefix(".")
    while inner and inner not in modules:
        inner = inner.rpartition(".")[0]
    return inner


def layer(module: str) -> int | None:
    """The layer of a module, by the longest entry of the table that is it or holds it."""
    if module == "":
        return LAYERS[""]
    while module and module not in LAYERS:
        module = module.rpartition(".")[0]
    return LAYERS[module] if module else None


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the rules, one line each; `sources` maps modules (without the package's name) to their text."""
    found: list[str] = []
    edges: dict[str, set[str]] = {module: set() for module in sources}
    for module, source in sources.items():
        if layer(module) is None:
            found.append(f"{module}: not in the table of layers")
            continue
        for at in imports_of(module, source):
            where = f"{module or '__init__'}:{at.line}"
            if at.imports == "relative":
                found.append(f"{where} imports relatively")
            heavy = at.imports.split(".")[0] in HEAVY
            if heavy and not at.in_function and not at.for_types_only:
                found.append(f"{where} imports {at.imports} at the head of the module")
            target = own(at.imports, sources)
            if target is None:
                continue
            if at.in_function:
                found.append(f"{where} imports {at.imports} inside a function")
            if at.for_types_only:
                continue
            if (layer(target) or 0) > (layer(module) or 0):
                found.append(f"{where} imports upward: {target or '__init__'} (layer {layer(target)})")
            edges[module].add(target)
    return found + [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """One cycle of imports for each module that a search finds again."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                if target != module:
                    visit(target, [*path, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    return found


def sources() -> dict[str, str]:
    """Every module of the package."""
    # The public names are listed in the stub beside `__init__.py`, which imports them at their first use.
    files = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {
        ".".join(p for p in parts if p != "__init__"): path.read_text(encoding="utf-8") for parts, path in files.items()
    }


def test_imports_point_downward() -> None:
    assert violations(sources()) == []


def test_every_module_is_read() -> None:
    found = sources()
    assert {"", "errors", "run.model", "run.edit", "weights.hub", "weights"} <= set(found)
    assert len(found) == len(list(PACKAGE.rglob("*.py")))


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("errors", "from pellucid.run.model import CkptedTransformer", "imports upward: run.model"),
        ("errors", "import pellucid.run.model", "imports upward: run.model"),
        ("errors", "from pellucid.run import model", "imports upward: run.model"),
        ("errors", "import pellucid", "imports upward: __init__"),
        ("schema", "from pellucid import TransformerConfig", "imports upward: __init__"),
        ("schema", "if True:\n    from pellucid.run.edit import Edit", "imports upward: run.edit"),
        ("run.model", "def f():\n    from pellucid.errors import InputError", "inside a function"),
        ("run.model", "class A:\n    def f(self):\n        import pellucid.errors", "inside a function"),
        ("run.model", "from . import errors", "relatively"),
        ("run.model", "import transformers", "at the head"),
        ("run.model", "from matplotlib import pyplot", "at the head"),
        ("extras", "from pellucid.tap import Tap", "cycle: extras -> tap -> extras"),
        ("somewhere", "", "not in the table"),
        ("gpt2.attention", "from pellucid.weights import layouts", "imports upward"),
    ],
)
def test_the_check_notices(module: str, source: str, complaint: str) -> None:
    package = {"": "", "errors": "", "schema": "", "run.model": "", "run": "", "run.edit": "", "gpt2.attention": "",
               "extras": "", "tap": "import pellucid.extras", "weights": "", "weights.layouts": ""}  # fmt: skip
    assert violations(package) == []
    found = violations({**package, module: source})
    assert any(complaint in line for line in found), found


def test_what_is_allowed() -> None:
    package = {
        "": "from pellucid.run.model import CkptedTransformer",
        "errors": "import json",
        "run.model": "from pellucid.errors import InputError\nif TYPE_CHECKING:\n    import xarray",
        "run": "", "run.edit": "from pellucid.run.activations import ActivationCkpts\ndef f():\n    import xarray",
        "run.activations": "if TYPE_CHECKING:\n    from pellucid.run.edit import Edit",
    }  # fmt: skip
    assert violations(package) == []


def classes_twice(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Public classes of one name, with the modules that have them.

    Verbs of the command line are named after what is typed, `compat` after other libraries, and each family has its
    Attention and its MLP.
    """
    families = {module.removesuffix(".family") for module in sources if module.endswith(".family")}
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        if module in ("cli.verbs", "cli.studies") or module.startswith("compat."):
            continue
        for node in parsed(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    rooms = {name: {module.split(".", maxsplit=1)[0] for module in modules} for name, modules in found.items()}
    return {name: modules for name, modules in found.items() if len(modules) > 1 and rooms[name] - families}


def test_a_class_s_name_has_one_meaning() -> None:
    assert classes_twice(sources()) == {}
    row = "class Row:\n    pass\nclass _Own:\n    pass\n"
    assert classes_twice({"schema": row, "run.model": row}) == {"Row": ["schema", "run.model"]}
    of_families = {"gpt2.family": "", "gpt2.model": row, "llama.family": "", "llama.model": row}
    assert classes_twice({**of_families, "cli.verbs": row}) == {}
    assert classes_twice({**of_families, "schema": row})


def files_twice(modules: Iterable[str]) -> dict[str, list[str]]:
    """File names that occur twice, but for a family's own files and the verbs of the command line."""
    modules = set(modules)
    families = {module.removesuffix(".family") for module in modules if module.endswith(".family")}
    found: dict[str, list[str]] = {}
    for module in sorted(modules):
        room, _, name = module.rpartition(".")
        if name != "__main__" and room not in {*families, "cli", "cli.work"}:
            found.setdefault(name, []).append(module)
    # what holds modules is a room, not a file
    rooms = {module.rpartition(".")[0] for module in modules}
    return {name: held for name, held in found.items() if len(set(held) - rooms) > 1}


def test_a_file_s_name_has_one_meaning() -> None:
    assert files_twice(sources()) == {}
    assert files_twice({"run.region", "plot.region", "plot"}) == {"region": ["plot.region", "run.region"]}
    assert files_twice({"gpt2.family", "gpt2.model", "llama.family", "llama.model", "check", "cli.work.check"}) == {}


MAY_KNOW_GPT2 = ("gpt2", "exercises")
"""Rooms that may: the family's own, and the course's exercises, which are GPT-2's by nature."""

REGISTRATION = "family.families"
"""Names where the family is, in a string, so it is imported when somebody asks for it."""

OF_GPT2 = {field.name for field in dataclasses.fields(pellucid.TransformerConfig)} - {
    name for name in {*vars(Config), *Config.__annotations__} if not name.startswith("_")
}  # fmt: skip
"""Fields of GPT-2's configuration that the configurations of other families need not have."""


def knowledge_of_gpt2(module: str, source: str) -> list[str]:
    """Where a module imports from the family, or reads a field of its configuration."""
    if module.split(".", maxsplit=1)[0] in MAY_KNOW_GPT2:
        return []
    found = [
        f"{module}:{at.line} imports {at.imports}"
        for at in imports_of(module, source)
        if at.imports.startswith("pellucid.gpt2")
    ]
    if "pellucid.gpt2" not in source and "config." not in source:
        return found
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Constant) and str(node.value).startswith("pellucid.gpt2") and module != REGISTRATION:
            found.append(f"{module}:{node.lineno} names {node.value}")
        if isinstance(node, ast.Attribute) and node.attr in OF_GPT2:
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if of == "config":
                found.append(f"{module}:{node.lineno} reads config.{node.attr}")
    return found


def test_only_the_family_knows_gpt2() -> None:
    assert [line for module, source in sources().items() for line in knowledge_of_gpt2(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("run.model", "from pellucid.gpt2.config import TransformerConfig"),
        ("weights.load", "from pellucid import gpt2\nfrom pellucid.gpt2 import layouts"),
        ("family.families", "from pellucid.gpt2.config import TransformerConfig"),
        ("weights.load", "build = later('pellucid.gpt2.model', 'build')"),
        ("text.batching", "def check(self):\n    return self.config.n_positions"),
        ("measure.head_scores", "last = model.config.n_layer - 1"),
        ("run.cache", "def f(config):\n    return config.n_head"),
    ],
)
def test_knowledge_of_gpt2_is_noticed(module: str, source: str) -> None:
    assert knowledge_of_gpt2(module, source)
    assert knowledge_of_gpt2("gpt2.model", source) == []
