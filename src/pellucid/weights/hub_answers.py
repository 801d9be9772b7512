"""What the hub answers when it does not deliver: asked once more, or told as an error that says what to do."""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pellucid.errors import NotFoundError, WeightsError, nearest, shown

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

LONGEST_WAIT = 60
"""Seconds to wait before asking again, whatever the hub asks for."""

PATIENCE = 30.0
"""Seconds of waiting after which a body must have come at `SLOWEST` at least; the library bounds single waits only."""

SLOWEST = 100.0
"""Bytes a second, a fiftieth of what the slowest mobile line carries."""

ALIASES: Mapping[str, str] = {
    "gpt2": "openai-community/gpt2",
    "gpt2-small": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Short names of the published models, and their repositories."""

_OF_THE_DISK = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOSPC, errno.EDQUOT,
    errno.ENAMETOOLONG,
})  # fmt: skip
"""Errors of the operating system that another try does not help: the cache cannot be written where it is."""


def again(request: Callable[[], T]) -> T:
    """Ask the hub, and once more after a timeout, too many requests or an error of its own: when it asks to be asked.

    A hub that asks for more than `LONGEST_WAIT` is not waited for.
    """
    from huggingface_hub import errors

    try:
        with _steady():
            return request()
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as problem:
        answer = problem.__cause__ if isinstance(problem, errors.LocalEntryNotFoundError) else problem
        if not isinstance(answer, errors.HfHubHTTPError):
            raise
        wait = _asked_to_wait(answer) or 1
        status = answer.response.status_code
        if (status not in (408, 429) and status < 500) or wait > LONGEST_WAIT:
            raise
    time.sleep(wait)
    with _steady():
        return request()


@contextmanager
def _steady() -> Generator[None]:
    """Watch the library's answers; without it a server that sends a byte a second is read for ever."""
    import huggingface_hub

    hooks = huggingface_hub.get_session().event_hooks
    hooks["request"].append(_expect)
    hooks["response"].append(_watch)
    try:
        yield
    finally:
        hooks["request"].remove(_expect)
        hooks["response"].remove(_watch)


class _Expected:
    """The seconds that a read may wait, asked for before each read: an answer whose headers drip is left in time.

    Python's sockets take whatever has an index for a number of seconds; the library's own limit is one number, which
    every byte that comes in time renews.
    """

    def __init__(self, url: str, plain: float | None) -> None:
        self._url, self._plain = url, PATIENCE if plain is None else plain
        self._until: float | None = time.monotonic() + PATIENCE

    def __index__(self) -> int:
        if self._until is not None and time.monotonic() > self._until:
            raise WeightsError(
                f"{self._url}: no whole answer came in {PATIENCE:.0f} seconds.",
                code="hub-interrupted",
                remedy=_ONCE_MORE,
            )
        return max(1, math.ceil(self._plain))

    def came(self) -> None:
        """The headers are there; how fast the body comes is watched by another rule."""
        self._until = None


def _expect(request: Any) -> None:
    """Bound the time in which all headers of the answer to a request must have come."""
    timeouts = request.extensions.get("timeout", {})
    expected = _Expected(str(request.url), timeouts.get("read"))
    request.extensions = {**request.extensions, "timeout": {**timeouts, "read": expected}}


def _watch(response: Any) -> None:
    """Put a measured reading in the place of a response's own.

    Raises, when read:
        WeightsError: If fewer than `SLOWEST` bytes a second came in `PATIENCE` seconds of waiting.
    """
    expected = response.request.extensions["timeout"]["read"]
    if isinstance(expected, _Expected):
        expected.came()
    plain = response.iter_raw

    def iter_raw(chunk_size: int | None = None) -> Iterator[bytes]:
        parts, waited, count = plain(chunk_size), 0.0, 0
        while True:
            began = time.monotonic()
            part = next(parts, None)
            waited += time.monotonic() - began
            if part is None:
                return
            count += len(part)
            if waited > PATIENCE:
                if count < SLOWEST * waited:
                    raise WeightsError(
                        f"{response.url}: the download did not complete: {count} bytes came in {waited:.0f} seconds.",
                        code="hub-interrupted",
                        remedy=_ONCE_MORE,
                    )
                waited, count = 0.0, 0
            yield part

    response.iter_raw = iter_raw


_ONCE_MORE = "Try again; what was already complete is kept, and no half file was left in its place."


def _asked_to_wait(problem: HfHubHTTPError) -> int:
    """The seconds in the answer's `Retry-After`; 0 without one, or with a date."""
    said = problem.response.headers.get("Retry-After", "").strip()
    return int(said) if said.isdecimal() and len(said) < 20 else 0


def explain(problem: Exception, repository: str, file: str, revision: str | None) -> WeightsError:
    from huggingface_hub import errors

    # Where nothing is cached, the library reports that, and what the hub answered as its cause.
    if isinstance(problem, errors.LocalEntryNotFoundError) and isinstance(
        problem.__cause__, (errors.HfHubHTTPError, errors.FileMetadataError)
    ):
        problem = problem.__cause__
    where = f"{repository}/{file} on the hub"
    if isinstance(problem, errors.GatedRepoError):
        return WeightsError(
            f"{where}: access is restricted.",
            code="hub-gated",
            remedy=f"Accept the terms at https://huggingface.co/{repository}, then log in with `hf auth login` or "
            "pass token=.",
        )
    if isinstance(problem, errors.RepositoryNotFoundError):
        hint = nearest(repository, [*ALIASES, *ALIASES.values()])
        return NotFoundError(
            f"{where}: no such repository, or a private one.",
            code="hub-not-found",
            remedy=f"{hint} If it is private, log in with `hf auth login` or pass token=.".strip(),
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return NotFoundError(
            f"{where}: no revision {shown(revision)}.",
            code="hub-no-revision",
            remedy="Give a branch, tag or commit that exists.",
        )
    if isinstance(problem, errors.HFValidationError):
        return no_such_name(repository)
    if isinstance(problem, errors.FileMetadataError):
        return WeightsError(
            f"{where}: what answered is no hub: {problem}",
            code="hub-refused",
            remedy="Unset this address (HF_ENDPOINT, endpoint=) to reach the public hub; if a login page of the "
            "network answered, log in there first.",
        )
    if isinstance(problem, errors.HfHubHTTPError) and _asked_to_wait(problem) > LONGEST_WAIT:
        return WeightsError(
            f"{where}: the hub answered {problem.response.status_code} and asks to wait {_asked_to_wait(problem)} "
            "seconds.",
            code="hub-refused",
            remedy="Try again after that time; what was already complete is kept.",
        )
    if isinstance(problem, errors.HfHubHTTPError):
        return WeightsError(
            f"{where}: the hub answered {problem}.",
            code="hub-refused",
            remedy=_without_xet(problem)
            or "Wait and try again; if it goes on, check the token and https://status.huggingface.co.",
        )
    if isinstance(problem, OSError) and problem.errno in _OF_THE_DISK:
        return WeightsError(
            f"{where}: the cache cannot be written: {problem}.",
            code="hub-cache-not-writable",
            remedy="Pass cache_dir= or set HF_HOME to a folder that you may write, on a disk with free space.",
        )
    return WeightsError(
        f"{where}: the download did not complete: {type(problem).__name__}: {problem}.",
        code="hub-interrupted",
        remedy=_without_xet(problem) or _ONCE_MORE,
    )


def _without_xet(problem: Exception) -> str:
    """What to do when the hub's storage, which mirrors and firewalls often lack, did not answer."""
    if "xet" not in str(problem).lower():
        return ""
    return "Set HF_HUB_DISABLE_XET=1 before Python starts: files are then downloaded from the hub's own address."


_ADDRESS = re.compile(
    r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?:models/)?(?P<id>[\w.\-]+(?:/[\w.\-]+)?)"
    r"(?:/(?:tree|blob|resolve|raw|commit)/(?P<revision>[^/?#]+)[^?#]*)?/?(?:[?#].*)?"
)
"""How browsers and other programs write a repository: the address of its page, or of a file's."""


def no_such_name(name: str) -> NotFoundError:
    address = _ADDRESS.fullmatch(name.strip())
    if address is not None:
        revision = address["revision"] or "main"
        given = "" if revision == "main" else f", with hub=pl.HubOptions(revision={revision!r})"
        return NotFoundError(
            f"{shown(name)}: an address, expected the id of a repository.",
            code="path-not-found",
            remedy=f"Give the id: {address['id']!r}{given}.",
        )
    return NotFoundError(
        f"{shown(name)}: no such file or folder, and not the id of a repository.",
        code="path-not-found",
        remedy=f"{nearest(name, ALIASES)} Give a path, a hub id such as 'openai-community/gpt2', or one of "
        f"{', '.join(ALIASES)}.".strip(),
    )


_INSTEAD: Mapping[str, str] = {
    "Network": "It is open already; copy.deepcopy(model) makes another.",
    "HookedTransformer": "It is open already; what it has as .model is a model of pellucid's.",
    "PreTrainedModel": "Pass a model of transformers' to pl.from_hf.",
    "Module": "Pass its tensors, pl.load(module.state_dict(), config=...), or compare it as it is, "
    "pl.compare(reference, module).",
    "Config": "It has no weights; pl.CkptedTransformer(config) draws some.",
    "PreTrainedConfig": "It has no weights; pl.CkptedTransformer(pl.{reader}.from_dict(config.to_dict())) draws some.",
    "bytes": "Pass os.fsdecode(name).",
    "IOBase": "Pass the file's name, or what it holds, such as pl.load(torch.load(file), config=...).",
}
"""Names of classes -> what to do with one of their objects in the place of a model's name."""


def no_name(given: object, reader: str = "TransformerConfig") -> NotFoundError:
    """The error for something that names no model; `reader` is the class for a configuration of transformers'."""
    names = [base.__name__.lstrip("_") for base in type(given).__mro__]
    pairs = ", or tensors by name as a mapping: dict(pairs)" if isinstance(given, (list, tuple, Iterator)) else ""
    instead = next((_INSTEAD[name] for name in names if name in _INSTEAD), f"Give a path or a hub id{pairs}.")
    return NotFoundError(
        f"{type(given).__name__} given, expected a path, an alias or the id of a repository.",
        code="path-not-found",
        remedy=instead.replace("{reader}", reader),
    )
