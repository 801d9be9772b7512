"""What all tests share: determinism, the models that are built once, and the tokenizer of GPT-2."""

import functools
import gc
import gzip
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# The models of the tests are small: threads would cost more than they give, and starve each other on busy machines. For
# programs that tests start, too: torch reads this as it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests start many interpreters, and each compiles all it imports where none may keep what it compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis.internal.conjecture import providers  # noqa: E402

import pellucid as pl  # noqa: E402
from pellucid.prove.copies import seed  # noqa: E402

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS / "conformance")]

# Collecting the tests makes millions of objects that stay: looking through them again and again would take seconds.
gc.disable()

pytest.register_assert_rewrite("checks", "support")

import following  # noqa: E402
import support  # noqa: E402

torch.set_num_threads(1)

# Hypothesis would read every module that is loaded for constants to try, in each worker: three seconds, and other
# examples whenever another test came before.
providers._get_local_constants = lambda: providers._local_constants


def pytest_sessionstart(session: pytest.Session) -> None:
    """Of a test that passes, a worker tells of its call only: six messages for each of ten thousand take seconds."""
    for word in ("start", "finish", "report"):
        for hook in getattr(session.config.hook, f"pytest_runtest_log{word}").get_hookimpls():
            if type(hook.plugin).__name__ == "WorkerInteractor":  # of pytest-xdist, in its workers
                hook.function = functools.partial(_told, hook.function)


def _told(tell: Callable[[Any], None], *given: Any) -> None:
    if len(given) == 1 and (given[0].when == "call" or not given[0].passed):  # a report; others are names and places
        tell(given[0])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of parameters that are combined, try each value once; the combinations are left to `make test-all`.

    Several `parametrize` of a test, and fixtures with parameters, would be tried in every combination. Where each of
    these is a rule of its own, the test is marked `every_pair`.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if hasattr(item, "callspec") and not {"long", "every_pair"} & {mark.name for mark in item.iter_markers()}:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        values = {case: (*enumerate(case.callspec._idlist),) for case in cases}  # a name for each `parametrize`
        tried: Counter[tuple[int, str]] = Counter()
        while new := [case for case in values if not all(tried[value] for value in values[case])]:
            # beside a value that is new, those that were tried least, so that a short list meets a long one evenly
            tried.update(values.pop(min(new, key=lambda case: sum(tried[value] for value in values[case]))))
        for case in values:
            case.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Set aside what stays until the end: statsmodels collects garbage in each call, and would look through it all.

    A little garbage stays, too: to find it would take most of a second in each process.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)  # Python's own 700 objects are few beside what a test makes
    gc.enable()


@pytest.fixture(autouse=True)
def _the_process_stays_as_it_was() -> Iterator[None]:
    """Every test starts from the same state of torch's generator, and leaves the process as it was.

    A learner's file brings its folder to the path of modules, the command line a hook for errors, and a figure stays
    open; and torch compiles one function only so often in a process, for whatever model, and then runs it as it is.
    """
    seed(0)
    grad, path, hook = torch.is_grad_enabled(), list(sys.path), sys.excepthook
    yield
    torch.set_grad_enabled(grad)
    sys.path[:], sys.excepthook = path, hook
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def _a_remedy_that_is_followed_was_met(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that says which remedy it follows has to meet the error."""
    codes = {code for mark in request.node.iter_markers("remedy") for code in mark.args}
    if not codes:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, following.codes_met(patch) as met:
        yield
    assert codes <= met, f"never met: {sorted(codes - met)}"


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What is logged meanwhile, in the place of `caplog`, whose plugin is left out (pyproject.toml)."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    every = logging.Logger.manager.loggerDict.values()
    ends = [logging.getLogger(), *(one for one in every if isinstance(one, logging.Logger) and not one.propagate)]
    for one in ends:
        one.addHandler(handler)
    yield records
    for one in ends:
        one.removeHandler(handler)


@pytest.fixture(scope="session")
def glass() -> pl.CkptedTransformer:
    """The small evaluating model that tests read from; whoever changes a model builds one of their own."""
    return support.glass()


@pytest.fixture(scope="session")
def glass64() -> pl.CkptedTransformer:
    """The same model in float64."""
    return support.glass(dtype=torch.float64)


@pytest.fixture
def tiny() -> pl.CkptedTransformer:
    """A model of two small blocks, each test's own to change."""
    return support.glass(vocab_size=50, n_positions=16, n_embd=24, n_layer=2)


@pytest.fixture(scope="session")
def bundled() -> pl.CkptedTransformer:
    """The bundled model; read only."""
    return pl.load()


@pytest.fixture(scope="session")
def gpt2_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with GPT-2's own vocab.json and merges.txt, unpacked."""
    folder = tmp_path_factory.mktemp("gpt2_tokenizer")
    for packed in (TESTS / "data" / "gpt2_tokenizer").glob("*.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(scope="session")
def gpt2_tokenizer(gpt2_tokenizer_folder: Path) -> pl.Tokenizer:
    """GPT-2's own tokenizer."""
    tokenizer = pl.Tokenizer.from_folder(gpt2_tokenizer_folder)
    assert tokenizer is not None
    return tokenizer
