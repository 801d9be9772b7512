"""Ray's processes, each with the model: they are given one piece of work at a time, and what one loses another does.

A piece of work (a part of a store, a batch of texts) gives the same bits wherever it is done and however often. So
nobody has to find out how far a process came that died: its piece is simply given to another one.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pellucid.check import require_one_of, require_whole
from pellucid.corpus.sink import CapturingModel
from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.numerics.quickest import VARIABLE, library_of_most, one_library
from pellucid.run.origin import execution_of

USAGE = "RAY_USAGE_STATS_ENABLED"
SET_BY_RAY = (USAGE, "PYTHONBREAKPOINT")
"""Variables of the environment that are as before when a Ray that was started here has ended."""

LOCAL = "local"
"""The address by which a Ray is started, whatever runs."""

TRIES = 3
"""How often a piece of work may be lost with the process that did it."""

SAMPLE_ROWS, SAMPLE_TOKENS = 4, 256
"""The rows that every process runs first, and the most tokens of each."""


@dataclass(frozen=True)
class Engine:
    """Who does the work."""

    kind: str  # "local" or "ray"
    workers: int | None  # ray's processes; None for as many as fit

    @classmethod
    def of(cls, by: str, kind: Any, workers: Any) -> Engine:
        """Read the arguments `engine` and `workers`."""
        require_one_of(f"{by}: engine", kind, ("local", "ray"), code="corpus-engine")
        count = None if workers is None else require_whole("workers", workers, at_least=1)
        if count is not None and kind == "local":
            raise InputError(
                f"{by}: workers={count} with engine='local', which works in this process alone.",
                code="corpus-engine",
                remedy="Give engine='ray', too, or leave workers out.",
            )
        return cls(kind, count)


class Job(Protocol):
    """What is done with a piece of work; it is sent to the processes."""

    def begin(self) -> None:
        """Called once in each process; raises an error if the work cannot be done there."""
        ...

    def __call__(self, model: CapturingModel, piece: Any, /) -> Any:
        """Do one piece of work."""
        ...


def machine_of(model: Any) -> dict[str, Any]:
    """Facts of a process on which the last bits of products depend."""
    device = getattr(model, "device", torch.device("cpu"))
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
    }


def sample_of(model: CapturingModel) -> str:
    """The SHA-256 of what leaves the last block for a few rows, by which a process that rounds otherwise is known."""
    sizes = model.schema.sizes
    rows = (
        torch.arange(SAMPLE_ROWS * min(SAMPLE_TOKENS, sizes["n_ctx"]), device="cpu").reshape(SAMPLE_ROWS, -1)
        % sizes["d_vocab"]
    )
    last = f"blocks.{sizes['layer'] - 1}.resid_post"
    _, ckpts = model.run_with_ckpts(rows, names=last, stop_at=last)
    value = ckpts[last].detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(value.view(torch.uint8).numpy().data).hexdigest()


def library_of(model: Any) -> str:
    """The library that takes the products of fast numerics, which each process would measure; "" in exact ones."""
    exact = execution_of(model).get("numerics", "exact") == "exact"
    return "" if exact else library_of_most(lambda: sample_of(model))


class Worker:
    """What Ray runs in a process."""

    def __init__(self, model: CapturingModel, job: Job, machine: dict[str, Any], sample: str, library: str) -> None:
        self._model, self._job, self._machine, self._sample = model, job, machine, sample
        torch.set_num_threads(machine["threads"])
        if library:
            os.environ[VARIABLE] = library

    def begin(self) -> None:
        """Raise an error unless this process gives the bits of the one that began the work."""
        here = machine_of(self._model)
        what = [
            f"{fact} is {here[fact]!r}, not {there!r}" for fact, there in self._machine.items() if here[fact] != there
        ]
        if not what and sample_of(self._model) != self._sample:
            what = ["the same run gives other bits"]
        if what:
            raise InputError(
                f"ray: the computer {platform.node()} rounds otherwise than this one: {'; '.join(what)}.",
                code="ray-machine",
                remedy="Use computers of one kind with one version of torch, or engine='local'.",
            )
        self._job.begin()

    def do(self, piece: Any) -> Any:
        """Do one piece of work."""
        return self._job(self._model, piece)


@dataclass
class _Task:
    """A piece of work, or the beginning of a process."""

    number: int | None = None  # which piece; None for the beginning of a process
    piece: Any = None  # what is done
    losses: int = 0  # how often it was lost

    def lost(self, why: Exception) -> None:
        """Count a loss; raise an error if that is one too many."""
        self.losses += 1
        if self.losses < TRIES:
            return
        what = "a process ended as it began" if self.number is None else f"piece {self.number} ended its process"
        raise InputError(
            f"ray: {what}, {self.losses} times, at last: {why}",
            code="ray-lost",
            remedy="Most often memory is short, or a computer has another pellucid: give fewer workers, or use "
            "engine='local'. What is whole is kept.",
        ) from why


class Workers:
    """Does pieces of work in Ray's processes.

    Args:
        model: What they run; Ray copies it once to each node.
        job: What is done with a piece.
        count: How many processes; None for as many as have processors, each as many as it has threads.
    """

    def __init__(self, model: Any, job: Job, count: int | None) -> None:
        self._model, self._job, self._count = model, job, count
        self._free: list[Any] = []
        self._running: dict[Any, tuple[Any, _Task]] = {}
        self._again: deque[_Task] = deque()
        self._given = 0

    def results(self, pieces: Iterable[Any], ahead: int | None = None) -> Generator[tuple[Any, Any]]:
        """Yield every piece with what was made of it, in their order; a piece is read when a process is free.

        At most `ahead` pieces for each process are begun while the first one is not done; None for any number.
        """
        library = library_of(self._model)
        with one_library(library):
            machine, sample = machine_of(self._model), sample_of(self._model)
        with joined(self._count, machine["threads"]) as (ray, count):
            held = ray.put(self._model)
            kind = ray.remote(num_cpus=machine["threads"], num_gpus=int(machine["device"] != "cpu"))(Worker)
            begin = lambda task: self._begin(kind.remote(held, self._job, machine, sample, library), task)  # noqa: E731
            try:
                for _ in range(count):
                    begin(_Task())
                yield from self._in_order(ray, begin, enumerate(pieces), math.inf if ahead is None else ahead * count)
            finally:
                for worker in [*self._free, *(worker for worker, _ in self._running.values())]:
                    ray.kill(worker)

    def _in_order(
        self, ray: Any, begin: Callable[[_Task], None], left: Iterator[tuple[int, Any]], ahead: float
    ) -> Generator[tuple[Any, Any]]:
        """Give work to whoever is free, and yield what comes back as soon as all before it was."""
        done: dict[int, tuple[Any, Any]] = {}
        failed: dict[int, Any] = {}
        first = 0
        while True:
            while self._free and (task := self._next(left, first + ahead)) is not None:
                worker = self._free.pop()
                self._running[worker.do.remote(task.piece)] = worker, task
            if first in done:
                yield done.pop(first)
                first += 1
                continue
            if first in failed:
                raise _cause(failed[first]) from failed[first]
            if all(task.number is None for _, task in self._running.values()) and self._free:
                return  # nothing is left, and who is about to begin is not waited for
            (ended,), _ = ray.wait(list(self._running), num_returns=1)
            worker, task = self._running.pop(ended)
            try:
                result = ray.get(ended)
            except ray.exceptions.RayTaskError as error:
                self._free.append(worker)
                if task.number is None:
                    raise _cause(error) from error
                failed[task.number], ahead = error, 0  # raised in its turn, as one process would
                continue
            except ray.exceptions.RayError as error:  # the process, its node or its result is gone
                ray.kill(worker)
                task.lost(error)
                begin(_Task() if task.number is not None else task)
                if task.number is not None:
                    self._again.append(task)
                continue
            self._free.append(worker)
            if task.number is not None:
                done[task.number] = task.piece, result

    def _begin(self, worker: Any, task: _Task) -> None:
        self._running[worker.begin.remote()] = worker, task

    def _next(self, left: Iterator[tuple[int, Any]], before: float) -> _Task | None:
        """What was lost, else what is new, if that is not too far ahead."""
        if self._again:
            return self._again.popleft()
        found = next(left, None) if self._given < before else None
        if found is None:
            return None
        self._given += 1
        return _Task(*found)


def _cause(error: Any) -> Exception:
    """What was raised in a process, as it was there."""
    return error.cause if isinstance(error.cause, Exception) else error


@contextmanager
def joined(count: int | None, threads: int) -> Generator[tuple[Any, int]]:
    """Ray, and the number of processes: one that runs is joined, else one is started and stopped at the end."""
    ray = need("ray", "engine='ray'")
    if ray.is_initialized():
        yield ray, _fitting(ray, count, threads)
        return
    with _as_it_was():
        try:
            _start(ray, threads * (count or max(1, (os.cpu_count() or 1) // threads)))
            yield ray, _fitting(ray, count, threads)
        finally:
            ray.shutdown()


@contextmanager
def _as_it_was() -> Generator[None]:
    """Undo what Ray changes in this process; RAY_AUTH_MODE stays, since Ray would remember the half of it."""
    handler, before = signal.getsignal(signal.SIGTERM), {name: os.environ.get(name) for name in SET_BY_RAY}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _start(ray: Any, processors: int) -> None:
    """Join the Ray at RAY_ADDRESS, else the one that `ray start` began on this computer, else start one."""
    address = os.environ.get("RAY_ADDRESS") or _begun_here() or LOCAL
    own = {"address": LOCAL, "num_cpus": processors, "include_dashboard": False} if address == LOCAL else {}
    os.environ.setdefault(USAGE, "0")
    try:
        ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"ray: cannot be {f'reached at {address!r}' if not own else 'started'}: {error}",
            code="ray-address",
            remedy="Set RAY_ADDRESS=local to work on this computer alone, start Ray there, or use engine='local'.",
        ) from error


def _folder_of_ray() -> Path:
    """Where Ray keeps its files, by its own rule."""
    set_by = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    otherwise = tempfile.gettempdir() if os.name == "nt" else "/tmp"
    return Path(next((os.environ[name] for name in set_by if name in os.environ), otherwise)) / "ray"


def _begun_here() -> str | None:
    """Where the Ray answers that this user's `ray start` began; for one that has ended Ray itself looks for minutes.

    A folder for temporary files is everybody's, and a Ray that is joined is given the model and the texts.
    """
    written = _folder_of_ray() / "ray_current_cluster"
    with suppress(OSError, ValueError):
        if os.name != "nt" and written.lstat().st_uid != os.getuid():
            return None
        address = written.read_text().strip()
        host, _, port = address.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return address
    return None


def _fitting(ray: Any, count: int | None, threads: int) -> int:
    """How many processes to begin; those for which there is no room yet begin when there is."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    fit = sum(processors // threads for processors in found)
    if not fit:
        raise InputError(
            f"ray: no computer of it has {threads} processors, one for each of torch's threads; "
            f"the largest has {max(found, default=0)}.",
            code="ray-workers",
            remedy=f"Call torch.set_num_threads({max(found, default=1) or 1}) before a store is begun, or use "
            "engine='local'.",
        )
    return fit if count is None else count
