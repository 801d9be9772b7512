"""A learner's whole file, or the code cells of a notebook: which exercises are in it, and what the check of each says.

The file is the learner's own program, so it is run like one: in a process of its own, where whatever it prints,
changes, ends or never ends stays.
"""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import io
import json
import linecache
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid.errors import InputError, NotFoundError, printable, shown
from pellucid.exercises.kv_cache import check_cache
from pellucid.exercises.modules import check_attention, check_block, check_gpt2
from pellucid.exercises.result import NAMES, CheckResult, last_line
from pellucid.exercises.sampling import CHECKS
from pellucid.exercises.starter_notebook import place_in, script_of

_CACHE = "cache"
EXERCISES: Mapping[str, tuple[tuple[str, ...], Callable[..., CheckResult]]] = {
    "attention": (("UnidirectionalAttention",), check_attention),
    "block": (("GPT2Block",), check_block),
    "gpt2": (("GPT2",), check_gpt2),
    _CACHE: (("make_cache", "Cache"), check_cache),
    **CHECKS,
}
"""Exercise -> the names under which it is looked for in a file, the course's first, and its check."""


@dataclass(frozen=True)
class Answer:
    """One exercise of a file."""

    exercise: str  # a key of `EXERCISES`
    name: str  # what it is called in the file, or would be
    state: str  # "right", "wrong" or "open"
    result: CheckResult | None = None  # what the check said; None while it is open


Said = str | Answer | InputError
"""The key of an exercise that is begun, its answer, or why the file cannot be checked."""

TIME_LIMIT = 300.0
"""Seconds that a file, and each exercise in it, may take unless told otherwise; right answers take a few."""


def checked_apart(
    path: Path, exercise: str | None = None, hint: int | None = None, time_limit: float = TIME_LIMIT
) -> list[Answer]:
    """Run a file and check what is in it, in a Python process of its own, with which it can do what it likes.

    Args:
        path: A Python file, or a notebook.
        exercise: A key of `EXERCISES`, for one alone; None for all.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.
        time_limit: Seconds for running the file, and again for each exercise. One that takes longer is wrong, and
            the others are checked without it.

    Raises:
        NotFoundError: If there is no such file.
        InputError: If it is no Python, raises, ends the process, or does not end.
    """
    parsed(path, program_of(path))
    left = [*EXERCISES] if exercise is None else [exercise]
    found: list[Answer] = []
    while left:
        found += _apart(path, left, hint, time_limit)
        left = left[left.index(found[-1].exercise) + 1 :]
    return found


def answers(path: Path, wanted: Sequence[str], hint: int | None, started: Callable[[str], None]) -> Iterator[Answer]:
    """The answers to some exercises, each as soon as it is there; `started` is told before each is checked."""
    source = program_of(path)
    blank = blank_names(parsed(path, source))
    with _run(path, source) as names:
        for key in wanted:
            started(key)
            yield _answer(key, names, blank, hint)


def _answer(key: str, names: Mapping[str, Any], blank: Mapping[str, bool], hint: int | None) -> Answer:
    known, check = EXERCISES[key]
    name = next((one for one in known if one in names), known[0])
    needed = ("GPT2", name) if key == _CACHE else (name,)
    if any(names.get(one) is None or blank.get(one, False) for one in needed):
        return Answer(key, name, "open")
    try:
        result = check(*(names[one] for one in needed), hint=hint)
    except InputError as error:  # what has the name is no class or function
        result = CheckResult(key, passed=False, mistake=error.message, kind=NAMES).hinted(hint)
    return Answer(key, name, "right" if result else "wrong", result)


def program_of(path: Path) -> str | bytes:
    if not path.is_file():
        raise NotFoundError(
            f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}.",
            code="path-not-found",
            remedy="Give the file that holds your answers; exercises.starter(path) writes one to begin with.",
        )
    try:
        text = path.read_bytes()
        return script_of(text) if path.suffix == ".ipynb" else text
    except ValueError as error:
        raise InputError(
            f"{path}: not a notebook: {error}.",
            code="file-not-python",
            remedy="Give a Python file, or a notebook as Jupyter saves it.",
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}.",
            code="path-unreadable",
            remedy="Give a file that you may read.",
        ) from error


def parsed(path: Path, source: str | bytes) -> ast.Module:
    try:
        return ast.parse(source, str(path))
    except SyntaxError as error:
        line = error.lineno
        place = f"line {line}" if isinstance(source, bytes) or not line else place_in(source, line)
        where = f", {place}" if line else ""
        text = f": {printable((error.text or '').strip(), 200)}" if error.text else ""
        said = f"{type(error).__name__}: {error.msg}{text}"
    except ValueError as error:  # null bytes
        where, said = "", str(error)
    raise InputError(f"{path}{where}: {said}.", code="file-not-python", remedy="Correct the line, and check again.")


def blank_names(module: ast.Module) -> dict[str, bool]:
    """Name of each function and class of a module -> whether nothing is written in it yet; of a class, in `forward`."""
    found: dict[str, bool] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = _is_blank(node)
        elif isinstance(node, ast.ClassDef):
            methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            forward = [one for one in methods if one.name == "forward"] or methods
            found[node.name] = all(_is_blank(one) for one in forward) and (bool(methods) or not node.bases)
    return found


def _is_blank(function: ast.FunctionDef) -> bool:
    return all(
        isinstance(node, (ast.Pass, ast.Raise, ast.Assert))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or ast.unparse(node) == "super().__init__()"
        for node in function.body
    )


@contextlib.contextmanager
def _run(path: Path, source: str | bytes) -> Generator[dict[str, Any]]:
    """The names that a program defines; its folder can be imported from until its answers are checked."""
    module, folder = ModuleType(path.stem), path.parent
    module.__file__ = str(path)
    search, package = [str(folder)], list[str]()
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():  # relative imports mean this package
        package.insert(0, folder.name)
        folder = folder.parent
    if package:
        module.__package__ = ".".join(package)
        search.append(str(folder))
    if isinstance(source, str):  # a notebook's: lines of it are shown, and Jupyter has one more function
        linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
        vars(module)["display"] = lambda *_: None
    hidden = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    sys.path[:0] = search
    try:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
        except (Exception, SystemExit) as error:  # whatever the learner's file raises
            raise InputError(
                f"{path}: it raises while it is run: {last_line(error)}.",
                code="file-raises",
                remedy="Run it with python first; lines that only try things out go below "
                "`if __name__ == '__main__':`.",
            ) from error
        yield dict(vars(module))
    finally:
        for one in search:
            with contextlib.suppress(ValueError):  # the file took it away
                sys.path.remove(one)
        if hidden is None:
            sys.modules.pop(path.stem, None)
        else:
            sys.modules[path.stem] = hidden


def exercise_named(name: str) -> str:
    """The key of an exercise, given by its key or by the name of its class or function."""
    found = next((key for key, (names, _) in EXERCISES.items() if name in (key, *names)), None)
    if found is None:
        raise InputError(
            f"{shown(name)}: not an exercise of the course.",
            code="unknown-exercise",
            remedy=f"Give one of {', '.join(EXERCISES)}.",
        )
    return found


def _apart(path: Path, wanted: Sequence[str], hint: int | None, time_limit: float) -> list[Answer]:
    """The answers that one process gives; the last of them may be one that did not end."""
    with tempfile.TemporaryDirectory() as folder:
        out, hung, err = Path(folder) / "answers", Path(folder) / "hung.txt", Path(folder) / "err.txt"
        asked = (str(path.resolve()), list(wanted), hint, time_limit, str(out), str(hung))
        code = f"from {__name__} import answer_to; answer_to(*{asked!r})"
        code += "; import os; os._exit(0)"  # threads that the file has started are not waited for
        with err.open("wb") as errors:
            ended = subprocess.run(  # what asks for input would wait for it unseen, and read that of a shell's loop
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                check=False,
            )  # fmt: skip
        said = _read(out, wanted)
        complaint, stuck = (
            file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else "" for file in (err, hung)
        )
    last = said[-1] if said else None
    if isinstance(last, InputError):
        raise last
    how = f"with {f'code {ended.returncode}' if ended.returncode >= 0 else signal.Signals(-ended.returncode).name}"
    how += f" ({printable(complaint.splitlines()[-1], 200)})" if complaint else ""
    if stuck and last is None:
        raise InputError(
            f"{path}: running it did not end within {time_limit:g} s{_where(path, stuck)}.",
            code="file-endless",
            remedy="Look for a loop that does not end there; if it only takes long, give --time-limit more seconds, or "
            "put what the answers do not need below `if __name__ == '__main__':`.",
        )
    if last is None:
        raise InputError(
            f"{path}: the process that ran it ended {how} and without a result.",
            code="file-raises",
            remedy="Run the file with python, and see what ends it.",
        )
    given = [one for one in said if isinstance(one, Answer)]
    if isinstance(last, Answer):
        return given
    words = f"it did not end within {time_limit:g} s{_where(path, stuck)}" if stuck else f"it ended the process, {how}"
    kind = "it does not end" if stuck else "it ends the process"
    written, names = blank_names(parsed(path, program_of(path))), EXERCISES[last][0]
    name = next((one for one in names if one in written), last)
    return [*given, Answer(last, name, "wrong", CheckResult(last, passed=False, mistake=words, kind=kind))]


def _read(out: Path, wanted: Sequence[str]) -> list[Said]:
    """What the other process has written, as far as it came; what the learner's code wrote among it is passed over."""
    said: list[Said] = []
    for line in out.read_bytes().split(b"\n") if out.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            said.append(_said(json.loads(line), wanted))
    return said


def _said(row: Any, wanted: Sequence[str]) -> Said:
    """One line of it; raises something if it is none that the other process writes."""
    match row:
        case {"error": [message, code, remedy]}:
            return InputError(str(message), code=str(code), remedy=str(remedy))
        case {"begun": key} if key in wanted:
            return key
        case {"answer": [key, name, result]} if key in wanted:
            found = None if result is None else _result(result)
            return Answer(key, str(name), "open" if found is None else "right" if found else "wrong", found)
        case _:
            raise ValueError(row)


def _result(row: dict[str, Any]) -> CheckResult:
    passed = row.pop("passed") is True
    several: dict[str, Any] = {key: tuple(map(str, row.pop(key))) for key in ("proved", "notes", "others")}
    texts: dict[str, Any] = {key: value if value is None else str(value) for key, value in row.items()}
    return CheckResult(passed=passed, **several, **texts)


def _where(path: Path, stuck: str) -> str:
    """The innermost line of the learner's in a traceback of `faulthandler`, as words."""
    lines = re.findall(r'File "(.*)", line (\d+) in (\S+)', stuck)
    found = next(((line, name) for file, line, name in lines if Path(file).name == path.name), None)
    return "" if found is None else f" (in {found[1]}, line {found[0]})"


def answer_to(path: str, wanted: Sequence[str], hint: int | None, time_limit: float, out: str, hung: str) -> None:
    """What the other process does: check, and write as lines of JSON each exercise, its answer, or the error.

    A watchdog ends the process when the file, or one exercise, takes too long, and leaves a traceback in `hung`.
    """
    with open(hung, "w", encoding="utf-8") as traceback, open(out, "a", encoding="utf-8", buffering=1) as lines:

        def say(**what: object) -> None:
            lines.write("\n" + json.dumps(what) + "\n")  # whatever the learner's code has left on a line

        def start(key: str) -> None:
            say(begun=key)
            faulthandler.dump_traceback_later(time_limit, exit=True, file=traceback)

        try:
            faulthandler.dump_traceback_later(time_limit, exit=True, file=traceback)
            for answer in answers(Path(path), wanted, hint, start):
                faulthandler.cancel_dump_traceback_later()
                say(answer=[answer.exercise, answer.name, None if answer.result is None else asdict(answer.result)])
        except InputError as error:
            say(error=[error.message, error.code, error.remedy])
        faulthandler.cancel_dump_traceback_later()
