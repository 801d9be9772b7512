"""Files are written whole, to wherever a name leads, and a killed writer's leftovers go."""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
from killed import at_every_step
from noticed import must_be_noticed
from pellucid import atomic


def write(folder: Path, **contents: bytes) -> None:
    atomic.write_folder(folder, [(name, lambda part, c=c: part.write_bytes(c)) for name, c in contents.items()])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_in_dev_is_written_into():
    """As a shell's `>(command)` and `/dev/stdout` are given."""
    read, out = os.pipe()
    atomic.write_file(Path("/dev/fd") / str(out), lambda path: path.write_bytes(b"whole"))
    os.close(out)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"whole"


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(tmp_path, pipe=b"whole" * 100_000)  # more than a pipe holds
    reader.join(timeout=5)
    assert read == [b"whole" * 100_000]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_pipe_that_nobody_reads_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(atomic, "READER_STARTS", 0.0)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(pl.WeightsError, match="nobody reads this pipe") as caught:
        write(tmp_path, pipe=b"whole")
    assert caught.value.code == "path-not-writable"


def test_what_a_link_points_to_is_written(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there/real")
    (tmp_path / "again").symlink_to("link")
    (tmp_path / "nowhere").symlink_to("there/new")
    write(tmp_path, again=b"new", nowhere=b"first")
    assert [(tmp_path / name).is_symlink() for name in ("link", "again", "nowhere")] == [True] * 3
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "there").iterdir()) == [
        ("new", b"first"),
        ("real", b"new"),
    ]
    assert len(list(tmp_path.iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    for shared in ("blobs", "snapshots"):
        (tmp_path / shared).mkdir()
    (tmp_path / "blobs" / "0a").write_bytes(b"of every revision")
    (tmp_path / "snapshots" / "config.json").symlink_to("../blobs/0a")
    with pytest.raises(pl.WeightsError, match="a link into the hub's cache"):
        atomic.write_text(tmp_path / "snapshots" / "config.json", "new")
    assert (tmp_path / "blobs" / "0a").read_bytes() == b"of every revision"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(pl.WeightsError, match="Too many levels"):
        write(tmp_path, loop=b"new")


@pytest.mark.parametrize(("name", "fits"), [("n" * 250, True), ("ü" * 127, True), ("n" * 255, True),
                                            ("n" * 256, False)])  # fmt: skip
def test_every_name_that_the_disk_holds(name: str, fits: bool, tmp_path: Path):
    if fits:
        write(tmp_path, **{name: b"whole"})
        assert (tmp_path / name).read_bytes() == b"whole"
        return
    for folder, file in ((tmp_path / name, "file"), (tmp_path, name)):
        with pytest.raises(pl.WeightsError) as caught:
            write(folder, **{file: b"whole"})
        assert caught.value.code == "path-not-writable"
    assert list(tmp_path.iterdir()) == []


SAVERS: dict[str, Callable[[pl.CkptedTransformer, Path], object]] = {
    "save_pretrained": lambda model, path: model.save_pretrained(path),
    "the tokenizer": lambda model, path: model.tokenizer.save(path),
    "save_hf": lambda model, path: pl.save_hf(pl.to_hf(model), path),
    "captures": lambda model, path: model.run_with_ckpts("One day")[1].save(path),
    "a cache": lambda model, path: pl.KeyValueCache(model.config).save(path),
    "an alignment": lambda model, path: pl.compare(model, model, inputs=[[1, 2, 3]]).alignment.save(path),
    "a starter": lambda model, path: pl.exercises.starter(path),
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_a_folder_that_may_not_be_looked_into(
    save: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, plain = pl.load(), os.stat

    def denied(path: Any, **options: Any) -> os.stat_result:
        if isinstance(path, (str, Path)) and str(path).startswith(f"{tmp_path}/"):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, **options)

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(pl.WeightsError, match="cannot be written: Permission denied") as caught:
        save(model, tmp_path / "it")
    assert caught.value.code == "path-not-writable"
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path):
    write(tmp_path, first=b"old", second=b"old")
    with files_of_at_most(1000), pytest.raises(pl.WeightsError, match="File too large"):
        write(tmp_path, first=b"new", second=b"n" * 2000)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"first": b"old", "second": b"old"}


def test_a_file_that_cannot_be_begun_leaves_nothing(tmp_path: Path):
    with files_of_at_most(1000), pytest.raises(pl.WeightsError, match="File too large"):
        atomic.Begun(tmp_path / "file", 2000)
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_utf8_has_not_is_written(tmp_path: Path):
    atomic.write_text(tmp_path / "text", "half of a pair: \ud800.")
    assert (tmp_path / "text").read_text("utf-8") == "half of a pair: ?."


def test_two_writers_of_one_file_leave_one_of_both(tmp_path: Path):
    path, failed = tmp_path / "same", []

    def keep_writing(content: bytes) -> None:
        try:
            for _ in range(60):
                write(tmp_path, same=content)
        except pl.PellucidError as error:
            failed.append(error)

    contents = [bytes([number]) * 200_000 for number in range(2)]
    writers = [threading.Thread(target=keep_writing, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert not path.exists() or path.read_bytes() in contents
    assert not failed
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_are_renamed_by_one_writer_at_a_time(tmp_path: Path):
    busy, met = threading.Lock(), []

    def slowly() -> list[str]:
        met.append(busy.acquire(blocking=False))
        time.sleep(0.02)
        if met[-1]:
            busy.release()
        return []

    writers = [
        threading.Thread(
            target=lambda: atomic.write_folder(tmp_path, [("a", Path.touch), ("b", Path.touch)], outdated=slowly)
        )
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert met == [True] * 4


def test_a_saver_that_never_ends_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(atomic, "LONGEST_WAIT", 0.0)
    with atomic.alone(tmp_path), pytest.raises(pl.WeightsError, match="another process"):
        write(tmp_path, file=b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_every_step_leaves_old_or_new_and_the_next_writer_cleans_up(tmp_path: Path):
    write(tmp_path, file=b"old")
    seen, left = [], 0
    for _ in at_every_step(lambda: write(tmp_path, file=b"new")):
        seen.append((tmp_path / "file").read_bytes())
        left += len(list(tmp_path.iterdir())) - 1
        write(tmp_path, file=b"old")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert set(seen) == {b"old", b"new"}
    assert seen == sorted(seen, reverse=True)
    assert left > 3


def test_what_a_living_writer_has_begun_stays(tmp_path: Path):
    began: list[Path] = []

    def meanwhile(part: Path) -> None:
        part.write_bytes(b"whole")
        began.append(part)
        write(tmp_path, other=b"another writer's")
        assert part.exists()

    atomic.write_file(tmp_path / "file", meanwhile)
    foreign = began[0].with_name(re.sub(r"(?<=^\.pellucid-)[0-9a-f]{8}", "0" * 8, began[0].name))
    foreign.write_bytes(b"of another machine")
    (tmp_path / ".pellucid-notes.part").write_bytes(b"mine")
    write(tmp_path, file=b"new")
    assert foreign.exists()
    os.utime(foreign, (0, time.time() - atomic.OLD - 1))
    write(tmp_path, file=b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pellucid-notes.part", "file", "other"]


def test_a_folder_that_a_killed_process_left_goes(tmp_path: Path):
    def begin() -> None:
        with atomic.temporary_folder(tmp_path) as folder:
            (folder / "weights").write_bytes(b"many")
            os.replace(folder / "weights", folder / "moved")

    left = [len(list(tmp_path.iterdir())) for _ in at_every_step(begin)]
    assert left == [1, 1], "each beginning removed what the one before it left"
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_nothing_go(tmp_path: Path):
    def fail(part: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(pl.WeightsError, match="No space left"):
        atomic.write_file(tmp_path / "new" / "deeper" / "file", fail)
    assert list(tmp_path.iterdir()) == []


def _in_place(part: Path, place: Path) -> None:
    place.write_bytes(part.read_bytes())
    os.replace(part, place)


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "two writers share a name": (
        atomic, "_temporary", lambda folder: folder / f".pellucid-{os.getpid()}.part",
        test_two_writers_of_one_file_leave_one_of_both,
    ),
    "a link is replaced": (atomic, "_place", lambda path: path, test_what_a_link_points_to_is_written),
    "writers are not kept apart": (
        atomic, "alone", lambda folder: nullcontext(),
        test_files_that_belong_together_are_renamed_by_one_writer_at_a_time,
    ),
    "leftovers stay": (
        atomic, "remove_leftovers", lambda folder: None,
        test_a_kill_at_every_step_leaves_old_or_new_and_the_next_writer_cleans_up,
    ),
    "everybody is dead": (atomic, "is_running", lambda pid: False, test_what_a_living_writer_has_begun_stays),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, tmp_path: Path):
    must_be_noticed(MUTANTS[name], tmp_path, by=[pl.WeightsError])
