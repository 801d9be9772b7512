"""Parts made by Ray's processes: the bytes of one process, however many there are and whichever of them die."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.corpus import plan, ray_workers

ray: Any = None
cluster_utils: Any = None

NAMES = ["blocks.1.resid_post", "blocks.0.mlp.ckpt_pre"]
LENGTHS = (5, 2, 7, 3, 1, 12, 2, 9, 4, 6)
TEXTS = [*support.ragged_ids(*LENGTHS), *support.ragged_ids(*LENGTHS)]


@pytest.fixture(scope="module", autouse=True)
def _imported_here() -> None:
    """Every process collects all tests, and one tries these."""
    modules = {"ray": "ray", "cluster_utils": "ray.cluster_utils"}
    globals().update({name: pytest.importorskip(module) for name, module in modules.items()})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One Ray for all tests here, which stays when `capture` has joined it; nodes can be added and removed."""
    about = {"num_cpus": 2, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    about["_system_config"] = {"worker_niceness": 0}  # else whatever runs beside the tests comes first
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=about)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PART_BYTES", 1)
        patch.setattr(plan, "TEXTS_IN_A_PART", 1)
        path = tmp_path_factory.mktemp("one") / "whole.zarr"
        assert captured(path, engine="local").plan.parts > 6
    return path


@pytest.fixture
def begun(whole: Path, tmp_path: Path) -> Path:
    """The same, of which no part is there yet."""
    path = tmp_path / "begun.zarr"
    shutil.copytree(whole, path)
    for name in ("ledger", *NAMES):
        for chunk in (path / name).glob("c.*"):
            chunk.unlink()
    return path


def captured(path: Any, model: Any = None, **changes: Any) -> Any:
    about = {"names": NAMES, "batch_tokens": 16, "engine": "ray", **changes}
    return pl.corpus.capture(support.glass() if model is None else model, TEXTS, path=path, **about)


class FailedTaskError(Exception):
    """What Ray's error of a task holds."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def in_this_process() -> Any:
    """What the library calls of Ray, without processes: all begin, and of what they are given the last is done first.

    What would go from one process to another is pickled as Ray does it.
    """

    def sent(value: Any) -> Any:
        return ray.cloudpickle.loads(ray.cloudpickle.dumps(value))

    def begun(made: type, *given: Any) -> Any:
        worker = made(*map(sent, given))

        def asked(name: str) -> Any:
            return SimpleNamespace(remote=lambda *piece: functools.partial(getattr(worker, name), *map(sent, piece)))

        return SimpleNamespace(begin=asked("begin"), do=asked("do"))

    def wait(tasks: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        *others, ended = sorted(tasks, key=lambda task: task.func.__name__ == "begin")
        return [ended], others

    def get(task: Any) -> Any:
        try:
            return sent(task())
        except Exception as error:
            raise FailedTaskError(sent(error)) from error

    return SimpleNamespace(
        is_initialized=lambda: True, nodes=lambda: [{"Alive": True, "Resources": {"CPU": 2}}], put=lambda held: held,
        remote=lambda **_: lambda made: SimpleNamespace(remote=functools.partial(begun, made)),
        wait=wait, get=get, kill=lambda worker: None,
        exceptions=SimpleNamespace(RayTaskError=FailedTaskError, RayError=OSError),
    )  # fmt: skip


@pytest.fixture
def processes(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Ray with its processes, or what does all of it in this one."""
    if request.param == "of Ray":
        request.getfixturevalue("cluster")
        yield ray
        return
    here = in_this_process()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_workers, "need", lambda *_: here)
        yield here


by_all_processes = pytest.mark.parametrize(
    "processes", support.few_of(["this one", "of Ray"], "this one"), indirect=True
)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a store; what a process that is just being killed has begun is removed by a later call."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".part")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def elsewhere(act: Callable[[Any], Any]) -> pl.CkptedTransformer:
    """A model that does something in each of its runs, in every process but this one."""
    model, here = support.glass(), os.getpid()

    def hook(module: Any, given: Any, value: Any) -> Any:
        return act(value) if os.getpid() != here else None

    model.blocks[0].mlp.register_forward_hook(hook)
    return model


def test_one_of_two_processes_is_killed(cluster: Any, whole: Path, begun: Path, tmp_path: Path) -> None:
    """In the midst of a part, when others are whole; the bytes are those of one process, which can go on, too."""
    killed, ledger = tmp_path / "killed", begun / "ledger"

    def kill(value: Any) -> None:
        if not killed.exists() and len(list(ledger.glob("c.*"))) >= 2:
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    store = captured(begun, elsewhere(kill), workers=2)
    assert killed.exists()
    assert store.is_complete
    assert content(begun) == content(whole)
    assert ray.is_initialized(), "a Ray that was there stays"
    kept = (begun / "ledger" / "c.1.0.0").stat().st_mtime_ns
    for part in (0, 2, 5):
        (begun / "ledger" / f"c.{part}.0.0").unlink()
    captured(begun, engine="local")
    assert content(begun) == content(whole)
    assert (begun / "ledger" / "c.1.0.0").stat().st_mtime_ns == kept, "what is whole is not made again"


@pytest.mark.long
def test_packed_parts_are_those_of_one_process(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "TEXTS_IN_A_PART", 4)
    about = {"packing": True, "batch_tokens": 40}
    alone = captured(tmp_path / "one.zarr", engine="local", **about)
    assert alone.plan.parts > 2
    assert alone.plan.saved_rows > 3
    assert captured(tmp_path / "two.zarr", workers=2, **about).verify()
    assert content(tmp_path / "two.zarr") == content(tmp_path / "one.zarr")


@pytest.mark.long
@pytest.mark.remedy("ray-lost")
def test_a_part_that_kills_every_process(
    cluster: Any, whole: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried as often as is allowed; what is whole is kept, and another engine goes on."""
    monkeypatch.setattr(ray_workers, "TRIES", 2)
    ledger, tries = begun / "ledger", tmp_path / "tries"

    def kill(value: Any) -> None:
        if len(list(ledger.glob("c.*"))) >= 2 and value.numel() < 1000:  # not the sample at the beginning
            with tries.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(pl.InputError, match="piece 2 ended its process, 2 times") as caught:
        captured(begun, elsewhere(kill), workers=1)
    assert tries.read_text() == "xx"
    assert caught.value.code == "ray-lost"
    assert len(pl.corpus.open(begun).parts) == 2
    captured(begun, engine="local")
    assert content(begun) == content(whole)


@pytest.mark.long
@pytest.mark.remedy("ray-machine")
def test_a_process_that_rounds_otherwise(cluster: Any, begun: Path) -> None:
    with pytest.raises(pl.InputError, match="the same run gives other bits") as caught:
        captured(begun, elsewhere(lambda value: value * (1 + 2**-20)), workers=1)
    assert caught.value.code == "ray-machine"
    assert not pl.corpus.open(begun).parts
    assert captured(begun, engine="local").is_complete


@pytest.mark.long
@pytest.mark.remedy("corpus-not-shared")
def test_a_store_that_others_do_not_see(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(pl.InputError, match="finds nothing or another folder") as caught:
        captured(f"memory://{tmp_path.name}/a.zarr", workers=1)
    assert caught.value.code == "corpus-not-shared"
    assert captured(f"memory://{tmp_path.name}/a.zarr", engine="local").is_complete


@by_all_processes
def test_control_c(processes: Any, whole: Path, begun: Path) -> None:
    plain, kill, waited, killed = processes.wait, processes.kill, [], []

    def wait(*args: Any, **about: Any) -> Any:
        waited.append(args)
        if len(waited) == 4:
            raise KeyboardInterrupt
        return plain(*args, **about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "wait", wait)
        patch.setattr(processes, "kill", lambda worker: (killed.append(worker), kill(worker)))
        with pytest.raises(KeyboardInterrupt, match="keeps what is whole"):
            captured(begun, workers=1)
    assert len(killed) == 1, "no process stays"
    assert 0 < len(pl.corpus.open(begun).parts) < pl.corpus.open(whole).plan.parts
    captured(begun, engine="local")
    assert content(begun) == content(whole)


@pytest.mark.parametrize("fact", ["torch", "processor", "device", "sample"])
def test_what_would_give_other_bits_is_not_begun(fact: str) -> None:
    model, begun = support.glass(), list[int]()
    job = SimpleNamespace(begin=lambda: begun.append(1))
    there = {**ray_workers.machine_of(model), "sample": ray_workers.sample_of(model)}
    ray_workers.Worker(model, job, there, there.pop("sample"), "").begin()
    assert begun == [1]
    changed = {**there, "sample": ray_workers.sample_of(model), fact: "another"}
    said = "the same run gives other bits" if fact == "sample" else f"{fact} is .*, not 'another'"
    with pytest.raises(pl.InputError, match=said) as caught:
        ray_workers.Worker(model, job, changed, changed.pop("sample"), "").begin()
    assert caught.value.code == "ray-machine"
    assert begun == [1]


@pytest.mark.long
@pytest.mark.remedy("ray-workers")
def test_more_threads_than_any_computer_has(cluster: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(pl.InputError, match=r"has 3 processors.*the largest has 2") as caught:
            captured(tmp_path / "a.zarr")
        assert caught.value.code == "ray-workers"
        assert "torch.set_num_threads(2)" in caught.value.remedy
        torch.set_num_threads(2)
        assert captured(tmp_path / "b.zarr").is_complete
    finally:
        torch.set_num_threads(threads)


@pytest.mark.remedy("corpus-engine")
def test_engines_that_cannot_be(tmp_path: Path) -> None:
    for about, said in (({"engine": "spark"}, "'local' or 'ray'"), ({"engine": "local", "workers": 2}, "workers=2")):
        with pytest.raises(pl.InputError, match=said) as caught:
            captured(tmp_path / "a.zarr", **about)
        assert caught.value.code == "corpus-engine"
        assert not list(tmp_path.iterdir())
    with pytest.raises(pl.InputError, match="workers=0"):
        captured(tmp_path / "a.zarr", workers=0)
    assert captured(tmp_path / "a.zarr", engine="local").is_complete


@pytest.mark.remedy("ray-address")
def test_a_ray_that_is_not_there(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**about: Any) -> None:
        assert about.get("address") != "local"
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    with pytest.raises(pl.InputError, match=r"cannot be reached at '192\.0\.2\.9:6379': nobody answers") as caught:
        captured(begun)
    assert caught.value.code == "ray-address"
    assert captured(begun, engine="local").is_complete


@pytest.mark.parametrize(
    "case", ["none", "begun here", "begun in TMPDIR", "somebody else's", "it has ended", "one of its own", "elsewhere"]
)
def test_which_ray_is_joined(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs takes no number of processors; one that has ended is not waited for."""
    asked = list[dict[str, Any]]()
    if case == "begun in TMPDIR":
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("TMPDIR" if case == "begun in TMPDIR" else "RAY_TMPDIR", str(tmp_path))
    if case == "somebody else's":
        monkeypatch.setattr(os, "getuid", lambda mine=os.getuid: mine() + 1)
    monkeypatch.setenv("RAY_ADDRESS", {"one of its own": "local", "elsewhere": "192.0.2.9:6379"}.get(case, ""))
    monkeypatch.setenv(ray_workers.USAGE, "0")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if case != "it has ended":  # else the port stays taken, and refuses
            server.listen()
        if case != "none":
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}\n")
        ray_workers._start(SimpleNamespace(init=lambda **about: asked.append(about)), 3)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = {"address": "local", "num_cpus": 3, "include_dashboard": False}
    assert asked == [quiet if case in ("begun here", "begun in TMPDIR", "elsewhere") else {**own, **quiet}]


@pytest.mark.long
def test_a_node_that_is_removed(cluster: Any, whole: Path, begun: Path) -> None:
    """A process on it was in the midst of a part; it begins anew elsewhere."""
    ledger = begun / "ledger"
    node = cluster.add_node(num_cpus=4)
    there = node.node_id

    waiting = begun.with_name("waiting")

    def wait(value: Any) -> None:
        """Processes on the node never end their part; others leave them one, however late they begin."""
        import time

        if value.numel() >= 1000 or not list(ledger.glob("c.*")):  # the sample at the beginning
            return
        if ray.get_runtime_context().get_node_id() == there:
            waiting.touch()
            time.sleep(600)
        while not waiting.exists():
            time.sleep(0.01)

    plain, removed = ray.wait, []

    def watch(*given: Any, **about: Any) -> Any:
        while not (found := plain(*given, **about, timeout=0.1))[0]:
            if not removed and waiting.exists():
                removed.append(cluster.remove_node(node, allow_graceful=False))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "wait", watch)
        captured(begun, elsewhere(wait), workers=5)
    assert removed
    assert content(begun) == content(whole)


# Statistics


def statistics() -> list[Any]:
    return [
        pl.measure.Moments("resid_post"),
        pl.measure.Covariance("attn.ckpt_z"),
        pl.measure.Quantiles("resid_post", of="norm"),
        pl.measure.Autoregression("attn.ckpt_attn_out", lags=1, log=True),
    ]


@by_all_processes
@pytest.mark.parametrize("workers", support.few_of([1, 2], 2))
def test_a_stream_gives_the_bits_of_one_process(processes: Any, tmp_path: Path, workers: int) -> None:
    """Also where it goes on after a text that could not be run; the error says which."""
    model, texts = support.glass(), [*TEXTS[:9], TEXTS[5], TEXTS[0]]
    alone = pl.measure.stream(model, texts, statistics(), batch_size=2)
    about: dict[str, Any] = {"batch_size": 2, "checkpoint": pl.measure.Saving(tmp_path / "state", every_texts=2)}
    wrong = [*texts[:7], [1] * 99]
    with pytest.raises(pl.InputError, match="stream, texts 6 to 7") as caught:
        pl.measure.stream(model, wrong, statistics(), **about, engine="ray", workers=workers)
    assert caught.value.code == "too-long"
    kept = pl.measure.stream(model, texts[:6], statistics(), batch_size=2, checkpoint=tmp_path / "six")
    assert (tmp_path / "state").read_bytes() == (tmp_path / "six").read_bytes(), "what came before it is kept"
    assert kept.texts == 6
    gathered = pl.measure.stream(model, texts, statistics(), **about, engine="ray", workers=1)
    assert (gathered.texts, gathered.digest) == (alone.texts, alone.digest)
    for ours, theirs in zip(gathered.statistics, alone.statistics, strict=True):
        a, b = ours.state(), theirs.state()
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert value.tobytes() == b[key].tobytes(), (ours.spec, key)


def _from_behind(self: Any, ckpts: Any, texts: range) -> None:
    """Merge as if the later batch had come first."""
    for statistic, gathered in zip(self._statistics, ckpts, strict=True):
        before = statistic.fresh()
        before.merge(statistic)
        statistic.about, statistic._held = {}, None
        statistic.merge(gathered)
        statistic.merge(before)


def _forgetting(self: Any, left: Any, before: float, plain: Any = ray_workers.Workers._next) -> Any:
    self._again.clear()
    return plain(self, left, before)


def _unchecked() -> type:
    class Unchecked(ray_workers.Worker):
        def begin(self) -> None:
            self._job.begin()

    return Unchecked


MUTANTS: dict[str, tuple[Any, str, Any, Callable[..., None]]] = {
    "what was lost is forgotten": (ray_workers.Workers, "_next", _forgetting, test_one_of_two_processes_is_killed),
    "batches are merged in another order": (
        sys.modules[pl.measure.stream.__module__].Merging, "take", _from_behind,
        test_a_stream_gives_the_bits_of_one_process,
    ),
    "bits are not compared": (ray_workers, "Worker", _unchecked(), test_a_process_that_rounds_otherwise),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, cluster: Any, whole: Path, begun: Path, tmp_path: Path) -> None:
    owner, name, broken, check = MUTANTS[what]
    given = {"cluster": cluster, "processes": ray, "whole": whole, "begun": begun, "tmp_path": tmp_path, "workers": 2}
    must_be_noticed((owner, name, broken, check), *(given[name] for name in inspect.signature(check).parameters))
