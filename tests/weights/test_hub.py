"""The hub, as a stand-in on this machine: what is downloaded, what is kept, and how each failure is told."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import pellucid as pl
import support
from pellucid.weights import hub, hub_answers
from weights.checkpoints import hf_dict, same_logits, small_hf

NEXT_COMMIT = "fedcba0987654321fedcba0987654321fedcba09"
COMMIT = "1234567890abcdef1234567890abcdef12345678"
REPOSITORY = "someone/small"


class StandIn(ThreadingHTTPServer):
    """Answers HEAD and GET of /{repository}/resolve/{revision}/{file} as the hub does.

    Attributes:
        files: What the repository holds.
        refuse: A function from a file's name to (status, headers), or None to serve it.
        cut: Names whose body ends in the middle.
        pace: Bytes of a body at a time, and the seconds after each; all at once if None.
        header_pace: The seconds after each byte of the headers; all at once if 0.
        etags: What is said of a file's content, where it is not its SHA-256.
        requests: Method and file of every request so far.
        token: What the last request was signed with.
        main: The commit that the branch is at.
        headers: What goes with every file beside what the hub always sends.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.refuse: Callable[[str], tuple[int, dict[str, str]] | None] = lambda name: None
        self.cut: set[str] = set()
        self.pace: tuple[int, float] | None = None
        self.header_pace = 0.0
        self.closing = threading.Event()
        self.etags: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.token: str | None = None
        self.main = COMMIT
        self.headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def flush_headers(self) -> None:
        if not self.server.header_pace:
            return super().flush_headers()
        headers, self._headers_buffer = b"".join(self._headers_buffer), []
        for byte in headers:
            self.wfile.write(bytes([byte]))
            if self.server.closing.wait(self.server.header_pace):
                return None
        return None

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            size, wait = self.server.pace or (len(body) or 1, 0.0)
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                self.server.closing.wait(wait)
                if self.server.closing.is_set():
                    return

    def do_HEAD(self) -> None:
        parts = self.path.split("?")[0].split("/")
        repository, revision, name = "/".join(parts[1:3]), parts[4] if len(parts) > 4 else "", "/".join(parts[5:])
        self.server.requests.append((self.command, name))
        self.server.token = self.headers.get("Authorization")
        refused = self.server.refuse(name)
        if refused is not None:
            self.answer(*refused)
        elif repository != REPOSITORY or parts[3] != "resolve":
            self.answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in ("main", COMMIT, NEXT_COMMIT):
            self.answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        elif name not in self.server.files:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self.serve(name, self.server.files[name], self.server.main if revision == "main" else revision)

    do_GET = do_HEAD

    def serve(self, name: str, body: bytes, commit: str) -> None:
        headers = {
            "ETag": self.server.etags.get(name, f'"{hashlib.sha256(body).hexdigest()}"'),
            "X-Repo-Commit": commit,
            "X-Linked-Size": str(len(body)),
            **self.server.headers,
        }
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].split("-")[0])
        if self.command == "GET" and name in self.server.cut:
            headers["Content-Length"] = str(len(body) - start)
            self.answer(200 if not start else 206, headers, body[start : start + max(1, len(body) // 3)])
            self.close_connection = True
        else:
            self.answer(200, headers, body)


@pytest.fixture(scope="module")
def hf() -> Any:
    return small_hf()


@pytest.fixture(scope="module")
def published(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published")
    hf.save_pretrained(folder)
    bundled = Path(pl.__file__).parent / "bundled" / "tokenizer.json"
    tensors = {name: tensor.contiguous() for name, tensor in hf_dict(hf).items()}
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: tensors[name] for name in part}, folder / f"shard-{number}.safetensors")
    weight_map = {name: f"shard-{int(name not in names[:9])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"tokenizer.json": bundled.read_bytes()}


@pytest.fixture
def server(published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with StandIn() as stand_in:
        stand_in.files = {name: published[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}
        thread = threading.Thread(target=stand_in.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield stand_in
        stand_in.closing.set()
        stand_in.shutdown()
        thread.join()


def options(server: StandIn, cache: Path, **fields: Any) -> hub.HubOptions:
    return hub.HubOptions(endpoint=server.url, cache_dir=cache, token="secret", **fields)


def refused(server: StandIn, cache: Path, name: str = REPOSITORY, **fields: Any) -> pl.WeightsError:
    with pytest.raises(pl.WeightsError) as caught:
        hub.locate(name, options(server, cache, **fields))
    assert caught.value.remedy
    assert not [path for path in cache.rglob("snapshots/*/*") if path.stat().st_size == 0]
    return caught.value


def test_a_repository_is_downloaded_and_loads(server: StandIn, hf: Any, tmp_path: Path) -> None:
    model = pl.load(REPOSITORY, hub=options(server, tmp_path))
    assert same_logits(model, hf)
    assert model.tokenizer is not None
    assert COMMIT in model.provenance["source"]
    folder = hub.locate(REPOSITORY, options(server, tmp_path))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_vocabulary_is_downloaded_with_its_added_tokens(server: StandIn, tmp_path: Path) -> None:
    del server.files["tokenizer.json"]
    server.files["vocab.json"] = json.dumps({"a": 0, "b": 1}).encode()
    server.files["merges.txt"] = b"#version: 0.2\n"
    server.files["added_tokens.json"] = json.dumps({"<sep>": 2}).encode()
    model = pl.load(REPOSITORY, hub=options(server, tmp_path))
    assert model.tokenizer is not None
    assert model.tokenizer.encode("a<sep>b") == [0, 2, 1]


def test_a_cached_repository_costs_no_download_and_needs_no_network(server: StandIn, hf: Any, tmp_path: Path) -> None:
    folder = hub.locate(REPOSITORY, options(server, tmp_path))
    server.requests.clear()
    assert hub.locate(REPOSITORY, options(server, tmp_path)) == folder
    assert all(method == "HEAD" for method, _ in server.requests)
    server.requests.clear()
    assert hub.locate(REPOSITORY, options(server, tmp_path, offline=True)) == folder
    assert server.requests == []
    gone = hub.HubOptions(endpoint="http://127.0.0.1:9", cache_dir=tmp_path)
    assert hub.locate(REPOSITORY, gone) == folder


def test_all_files_are_of_one_commit_although_the_branch_moves_on(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Handler.serve

    def move_on(self: Handler, name: str, body: bytes, commit: str) -> None:
        serve(self, name, body, commit)
        if self.command == "GET":
            self.server.main = NEXT_COMMIT

    monkeypatch.setattr(Handler, "serve", move_on)
    model = pl.load(REPOSITORY, hub=options(server, tmp_path))
    assert server.main == NEXT_COMMIT
    assert same_logits(model, hf)
    assert COMMIT in model.provenance["source"]
    assert [path.name for path in tmp_path.glob("models--*/snapshots/*")] == [COMMIT]


def test_read_config_downloads_one_file(server: StandIn, hf: Any, tmp_path: Path) -> None:
    assert hub.read_config(REPOSITORY, options(server, tmp_path))["n_embd"] == hf.config.n_embd
    assert {name for _, name in server.requests} == {"config.json"}


def test_shards_are_downloaded_when_there_is_no_single_file(
    server: StandIn, published: dict[str, bytes], hf: Any, tmp_path: Path
) -> None:
    del server.files["model.safetensors"]
    server.files |= {name: data for name, data in published.items() if "shard" in name or "index" in name}
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)
    del server.files["shard-1.safetensors"]
    error = refused(server, tmp_path / "other")
    assert (error.code, "shard-1.safetensors" in str(error)) == ("shard-missing", True)


def test_an_index_that_leaves_the_folder_downloads_nothing_more(server: StandIn, tmp_path: Path) -> None:
    del server.files["model.safetensors"]
    server.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "../../evil"}}).encode()
    assert refused(server, tmp_path).code == "index-unsafe-path"
    assert not any("evil" in name for _, name in server.requests)


def test_the_alias_and_the_endpoint_of_the_environment(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setitem(hub.ALIASES, "gpt2-small", REPOSITORY)  # type: ignore[arg-type]
    folder = hub.locate("gpt2-small", hub.HubOptions(cache_dir=tmp_path))
    assert folder.name == COMMIT
    assert server.requests


def status(code: int, error: str | None = None) -> Callable[[str], tuple[int, dict[str, str]]]:
    return lambda name: (code, {} if error is None else {"X-Error-Code": error, "X-Error-Message": error})


@pytest.mark.parametrize(
    ("name", "refuse", "kind", "code"),
    [
        ("someone/else", None, pl.NotFoundError, "hub-not-found"),
        (REPOSITORY, status(403, "GatedRepo"), pl.WeightsError, "hub-gated"),
        (REPOSITORY, status(401, "RepoNotFound"), pl.NotFoundError, "hub-not-found"),
        (REPOSITORY, status(404, "EntryNotFound"), pl.NotFoundError, "hub-no-config"),
        (REPOSITORY, status(403), pl.WeightsError, "hub-refused"),
        (REPOSITORY, status(418), pl.WeightsError, "hub-refused"),
        (REPOSITORY, status(500), pl.NotFoundError, "hub-unreachable"),
    ],
)
def test_what_the_hub_refuses(
    server: StandIn,
    tmp_path: Path,
    name: str,
    refuse: Any,
    kind: type[pl.WeightsError],
    code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits before it asks a broken hub again
    server.refuse = refuse or server.refuse
    error = refused(server, tmp_path, name)
    assert isinstance(error, kind)
    assert error.code == code
    assert "secret" not in str(error)


def test_a_repository_without_weights(server: StandIn, tmp_path: Path) -> None:
    del server.files["model.safetensors"]
    assert refused(server, tmp_path).code == "hub-no-weights"


def test_an_unknown_revision(server: StandIn, tmp_path: Path) -> None:
    error = refused(server, tmp_path, revision="v9")
    assert isinstance(error, pl.NotFoundError)
    assert (error.code, "v9" in str(error)) == ("hub-no-revision", True)


def test_offline_and_not_cached(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(server, tmp_path, offline=True).code == "hub-offline"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(server, tmp_path).code == "hub-offline"
    with pytest.raises(pl.NotFoundError, match="switched off"):
        hub.read_config(REPOSITORY, options(server, tmp_path))
    assert server.requests == []


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(pl.NotFoundError, match="cannot be reached") as caught:
        hub.locate("gpt2-smal", hub.HubOptions(endpoint="http://127.0.0.1:9", cache_dir=tmp_path))
    assert caught.value.code == "hub-unreachable"
    assert "gpt2-small" in caught.value.remedy


@pytest.mark.remedy("hub-interrupted")
def test_a_connection_cut_midway_leaves_no_half_file(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its attempts
    server.cut = {"model.safetensors"}
    error = refused(server, tmp_path)
    assert error.code == "hub-interrupted"
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))
    assert not [
        path for path in tmp_path.rglob("blobs/*") if path.suffix != ".incomplete" and path.stat().st_size > 1e5
    ]
    server.cut = set()
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


@pytest.mark.remedy("hub-interrupted")
def test_a_server_that_drips_is_left_and_a_slow_line_is_not(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes before the library's own limit; what counts is how much comes in a while."""
    monkeypatch.setattr(hub_answers, "PATIENCE", 0.2)
    server.pace = (1, 0.02)
    error = refused(server, tmp_path)
    assert error.code == "hub-interrupted"
    assert re.search(r"/config\.json: the download did not complete: \d+ bytes came in 0 seconds", error.message)
    assert not list(tmp_path.rglob("snapshots/*/config.json"))
    server.pace = (8000, 0.02)  # a wait for every 8,000 bytes, many times as long as the patience in all
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


def test_headers_that_drip_are_left_as_well(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_answers, "PATIENCE", 0.3)
    server.header_pace = 0.02  # hundreds of bytes: each in time, all of them late
    assert refused(server, tmp_path).code == "hub-unreachable"
    server.header_pace = 0.0
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)
    server.header_pace = 0.02  # what is cached needs no answer
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


def test_headers_that_drip_in_the_middle_of_a_download_interrupt_it(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_answers, "PATIENCE", 0.3)

    def drips(name: str) -> None:
        server.header_pace = 0.02 if name == "model.safetensors" else 0.0

    server.refuse = drips
    error = refused(server, tmp_path)
    assert error.code == "hub-interrupted"
    assert re.search(r"model\.safetensors: no whole answer came in 0 seconds", error.message)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b/c",
        "./nowhere",
        "/nowhere",
        "~/nowhere",
        "weights.safetensors",
        "x/ckpt.pt",
        "a\0b",
        "a..b",
        "a b",
        "-x/y",
        "http://x/y",
    ],
)
def test_what_cannot_be_a_repository_is_not_looked_for(server: StandIn, tmp_path: Path, name: str) -> None:
    error = refused(server, tmp_path, name)
    assert isinstance(error, pl.NotFoundError)
    assert error.code == "path-not-found"
    assert server.requests == []


@pytest.mark.remedy("path-not-found")
@pytest.mark.parametrize(
    ("address", "revision"),
    [
        ("https://huggingface.co/{}", None),
        pytest.param("https://huggingface.co/{}/tree/main", None, marks=pytest.mark.long),
        ("https://huggingface.co/{}/blob/main/model.safetensors?download=true", None),
        pytest.param("http://www.huggingface.co/{}/", None, marks=pytest.mark.long),
        ("https://huggingface.co/models/{}#files", None),
        pytest.param("huggingface.co/{}", None, marks=pytest.mark.long),
        pytest.param("hf.co/{}", None, marks=pytest.mark.long),
        ("hf://{}", None),
        ("https://huggingface.co/{}/resolve/" + NEXT_COMMIT + "/config.json", NEXT_COMMIT),
    ],
)
def test_an_address_is_no_id_and_the_id_is_given(
    address: str, revision: str | None, server: StandIn, hf: Any, tmp_path: Path
) -> None:
    error = refused(server, tmp_path, address.format(REPOSITORY))
    assert (error.code, server.requests) == ("path-not-found", [])
    said = re.fullmatch(r"Give the id: '(.*?)'(?:, with hub=pl\.HubOptions\(revision='(.*)'\))?\.", error.remedy)
    assert said is not None
    assert said.groups() == (REPOSITORY, revision)
    assert same_logits(pl.load(said[1], hub=options(server, tmp_path, revision=said[2])), hf)


@pytest.mark.parametrize("address", ["https://hf.co/gpt2", "hf.co/gpt2", "huggingface.co/gpt2/tree/main"])
def test_an_alias_in_an_address(address: str, server: StandIn, tmp_path: Path) -> None:
    assert refused(server, tmp_path, address).remedy == "Give the id: 'gpt2'."


def test_a_path_object_is_never_taken_for_a_repository(server: StandIn, tmp_path: Path) -> None:
    with pytest.raises(pl.NotFoundError) as caught:
        hub.locate(Path(REPOSITORY), options(server, tmp_path))
    assert caught.value.code == "path-not-found"
    assert server.requests == []


def test_an_existing_path_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.locate("gpt2") == Path("gpt2")
    assert hub.locate(tmp_path) == tmp_path
    assert os.listdir(tmp_path / "gpt2") == []


@pytest.mark.remedy("config-not-found")
def test_read_config_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(pl.NotFoundError) as caught:
        hub.read_config(tmp_path)
    assert caught.value.code == "config-not-found"
    (tmp_path / "config.json").write_text('{"n_embd": 3}')
    assert hub.read_config(tmp_path) == {"n_embd": 3}


@pytest.mark.remedy("hub-corrupted")
@pytest.mark.parametrize(
    ("name", "offline"),
    support.few_of(
        itertools.product(("model.safetensors", "config.json", "tokenizer.json"), (False, True)),
        *((name, False) for name in ("model.safetensors", "config.json", "tokenizer.json")),
        ("model.safetensors", True),
    ),
)
def test_a_flipped_bit_in_the_cache_is_noticed_and_the_remedy_works(
    name: str, offline: bool, server: StandIn, hf: Any, tmp_path: Path
) -> None:
    if name == "config.json":  # as git names a file that is stored in the repository itself
        body = server.files[name]
        server.etags[name] = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    blob = (hub.locate(REPOSITORY, options(server, tmp_path)) / name).resolve()
    damaged = bytearray(blob.read_bytes())
    damaged[-9] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(pl.WeightsError, match="digest") as caught:
        pl.load(REPOSITORY, hub=options(server, tmp_path, offline=offline))
    assert caught.value.code == "hub-corrupted"
    Path(caught.value.remedy.split("'")[1]).unlink()
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


def test_the_content_of_the_cache_is_read_once(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computing digests is stopped after the first load: the second still opens, and a changed file is noticed."""
    hub.locate(REPOSITORY, options(server, tmp_path))
    counted: list[str] = []
    plain = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: (counted.append(given[1]), plain(*given))[1])
    for offline in (False, True):
        assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path, offline=offline)), hf)
    assert counted == []
    blob = (hub.locate(REPOSITORY, options(server, tmp_path)) / "model.safetensors").resolve()
    before = blob.stat()
    blob.write_bytes(blob.read_bytes())
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))  # as tools do that copy what they change
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)
    assert counted == ["sha256"]


@pytest.mark.parametrize("status", [408, 429, 503])
def test_the_hub_is_waited_for_as_long_as_it_asks_but_not_for_ever(
    status: int, server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    answers = iter([(status, {"Retry-After": "7"})])
    server.refuse = lambda name: next(answers, None)
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path / "a")), hf)
    assert waited[:1] == [7]
    waited.clear()
    server.refuse = lambda name: (status, {"Retry-After": "100000"}) if name == "model.safetensors" else None
    error = refused(server, tmp_path / "b")
    assert error.code == "hub-refused"
    assert "asks to wait 100000 seconds" in error.message
    assert waited == []


def test_a_bit_flipped_on_the_way_is_noticed(server: StandIn, tmp_path: Path) -> None:
    body = bytearray(server.files["model.safetensors"])
    server.etags["model.safetensors"] = hashlib.sha256(body).hexdigest()
    body[-9] ^= 1
    server.files["model.safetensors"] = bytes(body)
    assert refused(server, tmp_path).code == "hub-corrupted"


@pytest.mark.parametrize("etag", ["../../../../evil", "/tmp/evil-of-a-hub", "a/b", "..", ""])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_name_that_leads_out_of_the_cache_is_refused(etag: str, name: str, server: StandIn, tmp_path: Path) -> None:
    server.etags[name] = f'"{etag}"'
    error = refused(server, tmp_path / "a" / "b" / "c")
    assert error.code == "hub-refused"
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]
    assert not Path("/tmp/evil-of-a-hub").exists()


def test_an_error_of_the_hubs_own_is_tried_once_more(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    failed: set[str] = set()

    def refuse(name: str) -> tuple[int, dict[str, str]] | None:
        if name in failed:
            return None
        failed.add(name)
        return 503, {}

    server.refuse = refuse
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


# Remedies, followed


def known_only(server: StandIn, error: str, code: int) -> None:
    """The repository is shown to those who send the token alone."""
    server.refuse = lambda name: None if server.token == "Bearer secret" else status(code, error)(name)


@pytest.mark.parametrize(
    ("error", "answer", "code", "said"),
    [
        pytest.param("RepoNotFound", 401, "hub-not-found", "pass token=", marks=pytest.mark.remedy("hub-not-found")),
        pytest.param("GatedRepo", 403, "hub-gated", "pass token=", marks=pytest.mark.remedy("hub-gated")),
    ],
)
def test_a_token_opens_what_is_closed(
    error: str, answer: int, code: str, said: str, server: StandIn, hf: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    known_only(server, error, answer)
    without = replace(options(server, tmp_path), token=None)
    with pytest.raises(pl.WeightsError) as caught:
        hub.locate(REPOSITORY, without)
    assert (caught.value.code, said in caught.value.remedy) == (code, True)
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)
    monkeypatch.setenv("HF_TOKEN", "secret")  # what the command line says
    assert same_logits(pl.load(REPOSITORY, hub=replace(without, cache_dir=tmp_path / "other")), hf)


@pytest.mark.remedy("hub-no-weights")
def test_a_cache_without_weights_is_completed_once_the_network_is_allowed(
    server: StandIn, hf: Any, tmp_path: Path
) -> None:
    weights = server.files.pop("model.safetensors")
    assert "allow the network once" in refused(server, tmp_path).remedy
    server.files["model.safetensors"] = weights
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


@pytest.mark.remedy("hub-no-config")
def test_a_repository_of_something_else(server: StandIn, hf: Any, tmp_path: Path) -> None:
    server.refuse = status(404, "EntryNotFound")
    assert "as transformers writes it" in refused(server, tmp_path).remedy
    server.refuse = lambda name: None
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


@pytest.mark.remedy("hub-no-revision")
def test_a_revision_that_exists(server: StandIn, hf: Any, tmp_path: Path) -> None:
    assert "that exists" in refused(server, tmp_path, revision="v9").remedy
    for revision in ("main", COMMIT):
        assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path, revision=revision)), hf)


@pytest.mark.remedy("hub-refused")
def test_another_try_helps(server: StandIn, hf: Any, tmp_path: Path) -> None:
    server.refuse = status(403)
    assert "try again" in refused(server, tmp_path).remedy
    server.refuse = lambda name: None
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


@pytest.mark.remedy("hub-refused")
@pytest.mark.parametrize("headers", [{}, {"ETag": '"0f"'}, {"X-Repo-Commit": COMMIT}], ids=str)
def test_a_page_in_the_place_of_the_hub_is_no_hub(headers: dict[str, str], server: StandIn, tmp_path: Path) -> None:
    """The login page of a network answers every address."""
    server.refuse = lambda name: (200, {"Content-Type": "text/html", **headers})
    error = refused(server, tmp_path)
    assert error.code == "hub-refused"
    assert "what answered is no hub" in error.message
    assert "Unset this address (HF_ENDPOINT, endpoint=)" in error.remedy


@pytest.mark.remedy("hub-refused")
def test_a_mirror_without_the_hubs_storage(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror hands the hub's headers on, and has no route for the tokens that they point to."""
    pytest.importorskip("hf_xet")
    server.headers = {
        "X-Xet-Hash": "c" * 64,
        "Link": f'<{server.url}/api/models/someone/xet-read-token>; rel="xet-auth"',
    }
    server.refuse = lambda name: None if name else (404, {"X-Error-Code": "EntryNotFound"})
    error = refused(server, tmp_path)
    assert (error.code, "404" in error.message) == ("hub-refused", True)
    assert "Set HF_HUB_DISABLE_XET=1" in error.remedy
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # as read when Python starts
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)


@pytest.mark.remedy("hub-offline")
def test_the_network_is_allowed_again(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "Unset HF_HUB_OFFLINE" in refused(server, tmp_path).remedy
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path)), hf)
    hf.save_pretrained(tmp_path / "folder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same_logits(pl.load(tmp_path / "folder"), hf)


@pytest.mark.remedy("hub-unreachable")
def test_a_mirror_is_asked_where_the_hub_is_not_reached(
    server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(pl.NotFoundError) as caught:
        hub.locate(REPOSITORY, hub.HubOptions(endpoint="http://127.0.0.1:9", cache_dir=tmp_path))
    assert "set HF_ENDPOINT to a mirror" in caught.value.remedy
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert same_logits(pl.load(REPOSITORY, hub=hub.HubOptions(cache_dir=tmp_path)), hf)


@pytest.mark.remedy("hub-cache-not-writable")
def test_another_cache_is_written(server: StandIn, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pl.WeightsError) as caught:
        hub.locate(REPOSITORY, options(server, tmp_path / "file"))
    assert caught.value.code == "hub-cache-not-writable"
    assert "Pass cache_dir=" in caught.value.remedy
    assert same_logits(pl.load(REPOSITORY, hub=options(server, tmp_path / "folder")), hf)
