"""Stores in S3: the same bytes as in a folder, after kills and failures, too; and what is wrong is said."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import killed
import pellucid as pl
import support
from following import Case, follow, params
from noticed import must_be_noticed
from pellucid.corpus import intake, objects, plan

fsspec: Any = None
s3fs: Any = None
moto: Any = None

NAMES = ["blocks.1.resid_post", "blocks.2.attn.ckpt_z"]
TEXTS = support.ragged_ids(5, 2, 7, 3, 1, 12, 2, 9)
BUCKET = "glass"


@functools.cache
def shared() -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return support.glass()


@pytest.fixture(scope="module", autouse=True)
def _imported_here() -> None:
    """Every process collects all tests, and one tries these."""
    modules = {"fsspec": "fsspec", "s3fs": "s3fs", "moto": "moto.server"}
    globals().update({name: pytest.importorskip(module) for name, module in modules.items()})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a server that speaks S3."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            yield "http://{}:{}".format(*server.get_host_and_port())
        finally:
            server.stop()


@pytest.fixture
def options(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What fsspec is told, with an empty bucket, parts of a few rows, and no waits."""
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "TEXTS_IN_A_PART", 1)
    given = {"key": "a", "secret": "b", "endpoint_url": endpoint}
    files = fsspec.filesystem("s3", **given)
    if files.exists(BUCKET):
        files.rm(BUCKET, recursive=True)
    files.mkdir(BUCKET)
    return given


def captured(options: Any, path: Any = f"s3://{BUCKET}/a.zarr", texts: Any = TEXTS, **changes: Any) -> Any:
    about = {"names": NAMES, "batch_tokens": 16, "storage_options": options, **changes}
    return pl.corpus.capture(shared(), texts, path=path, **about)


def briefly(options: Any, *path: Any) -> Any:
    """The same of few parts, where it does not matter how many there are."""
    return captured(options, *path, texts=TEXTS[:2])


def objects_of(options: Any, root: str = f"{BUCKET}/a.zarr") -> dict[str, bytes]:
    """Everything under a prefix."""
    files = fsspec.filesystem("s3", **options)
    files.invalidate_cache()
    return {key.removeprefix(root): files.cat_file(key) for key in files.find(root)}


def test_the_same_as_in_a_folder(options: Any, tmp_path: Path) -> None:
    there, here = captured(options), captured(None, tmp_path / "a.zarr")
    assert there.plan.parts > 3
    folder = {f"/{path.relative_to(here.place.path)}": path.read_bytes() for path in here.place.path.rglob("*.*")
              if path.is_file()}  # fmt: skip
    assert objects_of(options) == folder
    again = pl.corpus.open(f"s3://{BUCKET}/a.zarr", storage_options=options)
    assert again.is_complete
    assert again.verify(model=shared())
    for how in ({"shuffle": False}, {"window": 20}, {}):
        a, b = (list(one.loader(5, **how)) for one in (again, here))
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x.rows, y.rows)
            assert torch.equal(x.tokens, y.tokens)
            assert all(torch.equal(x[name], y[name]) for name in NAMES)
    np.testing.assert_array_equal(again[NAMES[1]][3:7], here[NAMES[1]][3:7])


def test_a_part_is_put_in_one_request_and_then_its_entry(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = s3fs.S3FileSystem._call_s3, list[tuple[str, str]]()

    async def counting(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        asked.append((method, str(kwargs.get("Key", "")).removeprefix("a.zarr/")))
        return await plain(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
    made = captured(options)
    puts = [key for method, key in asked if method == "put_object" and "/c." in key and key.split("/")[0] in
            (*NAMES, "ledger")]  # fmt: skip
    for part in range(made.plan.parts):
        *chunks, entry = puts[3 * part : 3 * part + 3]
        assert sorted(chunks) == sorted([f"{NAMES[0]}/c.{part}.0", f"{NAMES[1]}/c.{part}.0.0"])
        assert entry == f"ledger/c.{part}.0.0"
    assert len(puts) == 3 * made.plan.parts
    assert not [method for method, _ in asked if "multipart" in method]
    asked.clear()
    captured(options)
    assert {key for method, key in asked if method == "put_object"} == {objects.WRITER}, "what is there stays"


@pytest.mark.long
def test_a_network_that_fails_now_and_then(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tries = s3fs.S3FileSystem._call_s3, Counter[Any]()

    async def failing(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        what = (method, kwargs.get("Key"))
        tries[what] += 1
        if tries[what] in (1, 2) and method in ("put_object", "get_object"):
            if tries[what] == 2:  # it arrived, and the answer was lost
                await plain(self, method, *args, **kwargs)
            raise OSError("the network is gone")
        return await plain(self, method, *args, **kwargs)

    expected = (captured(options, f"s3://{BUCKET}/whole.zarr"), objects_of(options, f"{BUCKET}/whole.zarr"))[1]
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", failing)
    made = captured(options)
    assert made.verify()
    assert sum(len(batch.rows) for batch in made.loader(5)) == made.plan.rows
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", plain)
    assert objects_of(options) == expected


@pytest.mark.long
def test_it_goes_on_after_kills_at_any_moment(options: Any) -> None:
    """While it is begun, too."""
    begun = time.monotonic()
    captured(options, f"s3://{BUCKET}/whole.zarr")
    took = time.monotonic() - begun
    expected = objects_of(options, f"{BUCKET}/whole.zarr")
    generator = random.Random(0)
    for number in range(6):
        child = killed.in_a_child(lambda: captured(options))
        time.sleep(generator.uniform(0, took / (1 if number > 2 else 3)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert captured(options).verify()
    assert objects_of(options) == expected


def _writer(options: Any, **said: Any) -> None:
    now = {"token": "other", "host": "elsewhere", "pid": 1, "until": time.time() + 60, **said}
    fsspec.filesystem("s3", **options).pipe_file(f"{BUCKET}/a.zarr/{objects.WRITER}", json.dumps(now).encode())


@pytest.mark.parametrize("begun", [False, pytest.param(True, marks=pytest.mark.long)])
def test_another_writer_is_noticed(begun: bool, options: Any) -> None:
    """On another machine while it says so from time to time, on this one while its process is there."""
    if begun:
        briefly(options)
    here = objects.atomic.HOST
    for said in ({}, {"host": here, "pid": os.getppid()}):
        _writer(options, **said)
        with pytest.raises(pl.InputError, match="another process writes") as caught:
            briefly(options)
        assert caught.value.code == "corpus-busy"
    child = killed.in_a_child(lambda: None)
    os.waitpid(child, 0)
    for said in ({"until": time.time() - 1}, {"host": here, "pid": child}, {"host": here, "until": 0}):
        _writer(options, **said)
        assert briefly(options).is_complete
        assert f"/{objects.WRITER}" not in objects_of(options)


@pytest.mark.long
def test_a_writer_says_that_it_is_there_as_long_as_it_is(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "LEASE", 0.2)
    until, renewed = list[float](), threading.Event()
    plain = objects.Objects.put
    key = f"/{objects.WRITER}"

    def slowly(self: Any, at: str, data: Any) -> None:
        if not until:
            until.append(json.loads(objects_of(options)[key])["until"])
            while json.loads(objects_of(options)[key])["until"] <= until[0]:
                time.sleep(0.01)
            renewed.set()
        plain(self, at, data)

    monkeypatch.setattr(objects.Objects, "put", slowly)
    captured(options)
    assert renewed.is_set()
    assert key not in objects_of(options)


def test_nothing_is_left_of_a_beginning_that_failed(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "CHUNK_BYTES", 64)  # so that some of it is written before the fault is met
    with pytest.raises(pl.InputError, match="text 2"):
        captured(options, texts=[[1, 2], [3], []])
    assert objects_of(options) == {}
    with pytest.raises(pl.NotFoundError, match="no store"):
        pl.corpus.open(f"s3://{BUCKET}/a.zarr", storage_options=options)
    fsspec.filesystem("s3", **options).pipe_file(f"{BUCKET}/a.zarr/notes", b"mine")
    with pytest.raises(pl.InputError) as caught:
        captured(options)
    assert caught.value.code == "not-a-corpus"
    assert objects_of(options) == {"/notes": b"mine"}


def test_a_reading_that_fails_for_good(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = briefly(options)

    async def gone(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError("the network is gone")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", gone)
    monkeypatch.setattr(objects, "TRIES", 2)
    for read in (lambda: made.chunk(NAMES[0], 0), lambda: list(made.loader(4)), made.verify, lambda: made.texts,
                 lambda: pl.corpus.open(f"s3://{BUCKET}/a.zarr", storage_options=options)):  # fmt: skip
        with pytest.raises(pl.InputError, match="after 2 tries") as caught:
            read()
        assert caught.value.code == "corpus-network"


# What is wrong is said, and what the remedy says is done


def _with_environment(options: Any) -> None:
    """The same in another process, with the keys where other programs look for them."""

    def act() -> None:
        os.environ |= {"AWS_ACCESS_KEY_ID": options["key"], "AWS_SECRET_ACCESS_KEY": options["secret"]}
        _without_keys(options)

    assert os.waitpid(killed.in_a_child(act), 0)[1] == 0
    assert pl.corpus.open(f"s3://{BUCKET}/a.zarr", storage_options=options).is_complete


def _without_keys(options: Any) -> Any:
    return briefly({"endpoint_url": options["endpoint_url"]})


def _unheard(options: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "TRIES", 1)
        once = {"retries": {"max_attempts": 1}}
        return briefly({**options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": once})


def _elsewhere(options: Any, make: bool = False) -> Any:
    if make:
        fsspec.filesystem("s3", **options).mkdir("another")
    try:
        return briefly(options, "s3://another/a.zarr")
    finally:
        if make:
            fsspec.filesystem("s3", **options).rm("another", recursive=True)


REMEDIES: dict[str, list[Case]] = {
    "corpus-access": [
        Case(_without_keys, "Give storage_options with the 'key' and 'secret'", briefly),
        Case(_without_keys, "and begin again in a new process", _with_environment),
    ],
    "corpus-bucket": [
        Case(_elsewhere, "Make the bucket first", lambda options: _elsewhere(options, make=True)),
        Case(_elsewhere, "give one that is there", briefly),
    ],
    "corpus-network": [Case(_unheard, "the endpoint_url in storage_options", briefly)],
    "corpus-address": [
        Case(lambda options: briefly(options, "s4://glass/a.zarr"), "such as 's3://bucket/acts.zarr'", briefly),
        Case(lambda options: briefly(options, Path("s3://glass/a.zarr")), "as a str: 's3://glass/a.zarr'", briefly),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_a_remedy_says(code: str, case: Case, options: Any) -> None:
    follow(code, case, options)


MUTANTS: dict[str, tuple[Any, str, Any, Any]] = {
    "nothing is asked again": (objects, "TRIES", 1, test_a_network_that_fails_now_and_then),
    "everybody is dead": (
        objects, "_is_at_work", lambda writer: False,
        lambda options, patch: test_another_writer_is_noticed(False, options),
    ),
    "what a killed call had begun stays": (
        objects.Objects, "_clear", lambda self: None, test_nothing_is_left_of_a_beginning_that_failed,
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    must_be_noticed(MUTANTS[what], options, monkeypatch, by=(pl.InputError,))
