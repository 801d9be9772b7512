"""The server, asked as a browser asks it: who is answered, what the answers hold, and how it starts and stops."""

from __future__ import annotations

import asyncio
import base64
import functools
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from watched_page import Watched

import llamas
import pellucid as pl
from following import Case, follow, params
from pellucid.cli import app, load_verb
from pellucid.errors import PYTHON, elsewhere
from pellucid.viewer import Trace, answers, serving, tabs
from pellucid.viewer.routes import WORDS
from pellucid.viewer.tabs import MOST_SESSIONS, Session, Tabs
from pellucid.weights.hub import BUNDLED

TEXT = "Once upon a time"
Open = Callable[..., Watched]


@pytest.fixture(scope="module")
def model() -> pl.CkptedTransformer:
    return pl.load()


@pytest.fixture(scope="module")
def server(model: pl.CkptedTransformer) -> Iterator[serving.Server]:
    started = pl.serve(model, TEXT, port=0)
    yield started
    started.stop()


class Client:
    """A browser's tab, without the browser."""

    def __init__(self, port: int, session: str = "a", host: str = "127.0.0.1") -> None:
        self.port, self.session, self.host = port, session, host

    @functools.cached_property
    def token(self) -> str:
        page = self.ask("GET", "/")[1].decode()
        return json.loads(page.split('id="pellucid-server">')[1].split("</script>")[0])["token"]

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers
        connection.close()
        return found

    def post(self, verb: str, /, **asked: Any) -> tuple[int, bytes]:
        body = json.dumps(asked).encode()
        status, content, _ = self.ask(
            "POST", f"/api/{verb}", body, X_Pellucid_Token=self.token, X_Pellucid_Session=self.session
        )
        return status, content

    def json(self, verb: str, /, *, expect: int = 200, **asked: Any) -> Any:
        status, content = self.post(verb, **asked)
        assert status == expect, content
        return json.loads(content)


@pytest.fixture(scope="module")
def token(server: serving.Server) -> str:
    return Client(server.port).token


@pytest.fixture
def client(server: serving.Server, token: str) -> Client:
    made = Client(server.port)
    made.token = token
    return made


def test_the_page_is_strict_about_what_it_loads(client: Client) -> None:
    status, page, headers = client.ask("GET", "/")
    assert status == 200
    assert "default-src 'none'; script-src 'self'; connect-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    assert b"<title>Once upon a time" in page
    assert client.ask("GET", "/viewer.js")[0] == 200
    assert json.loads(client.ask("GET", "/api/info")[1])["model"]["name"] == "bundled"
    assert isinstance(json.loads(client.ask("GET", "/api/examples")[1]), list)
    assert isinstance(json.loads(client.ask("GET", "/api/readings")[1]), list)
    assert client.ask("GET", "/api/examples/nothing")[0] == 404
    assert client.ask("GET", "/static/../../__init__.py")[0] == 404


@pytest.mark.parametrize("path", ["run", "generate", "values", "cancel", "edit", "compare", "nothing"])
@pytest.mark.parametrize("token", ["", "wrong", "é"])
def test_a_post_without_the_token_is_refused_before_its_body_is_read(client: Client, path: str, token: str) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        head = f"POST /api/{path} HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Length: 200000\r\n"
        connection.sendall(f"{head}X-Pellucid-Token: {token}\r\n\r\n".encode("latin-1"))
        assert connection.recv(100).split()[1] == b"403"  # none of the body was sent


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{}", "127.0.0.1", "127.0.0.1.evil.example:{}", "0.0.0.0:{}", ""]
)
def test_a_foreign_host_is_refused(client: Client, host: str) -> None:
    for method in ("GET", "POST"):
        given = host.format(client.port)
        status, body, _ = client.ask(method, "/", b"", Host=given, X_Pellucid_Token=client.token)
        assert status in (400, 421), given
        assert client.token.encode() not in body


def test_only_its_own_pages_are_answered(client: Client) -> None:
    for origin, expected in (("http://evil.example", 403), ("null", 403), (f"http://127.0.0.1:{client.port}", 200)):
        token = client.token
        status, _, headers = client.ask("POST", "/api/cancel", b"{}", Origin=origin, X_Pellucid_Token=token)
        assert status == expected, origin
        assert "access-control-allow-origin" not in headers
    for host in ("localhost", "LOCALHOST", "[::1]"):
        assert client.ask("GET", "/api/info", Host=f"{host}:{client.port}")[0] == 200
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert client.ask(method, "/api/run", X_Pellucid_Token=client.token)[0] == 405


BAD: list[tuple[bytes, int, str]] = [
    *((body, 400, "request-field") for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"{}", b'{"text": 3}')),
    (b'{"text": ""}', 400, "empty-text"),
    (b'{"ids": ["a"]}', 400, "ids-dtype"),
    (b'{"ids": [999999]}', 400, "id-out-of-range"),
    (b'{"text": "a", "edits": 3}', 400, "request-field"),
    (b'{"text": "a", "edits": [{"how": "explode"}]}', 400, "request-field"),
    (b'{"text": "a", "edits": [{"how": "zero", "name": "nowhere"}]}', 400, "unknown-checkpoint"),
    (b'{"text": "a", "target": "two words"}', 400, "not-one-token"),
    (json.dumps({"text": "a b c " * 200}).encode(), 400, "too-long"),
    (b'{"text": "\\ud800"}', 400, "text-kind"),
    (b"x" * 300_000, 413, "size"),
]


@pytest.mark.parametrize(("body", "status", "code"), BAD)
def test_bad_requests_say_what_is_wrong(client: Client, body: bytes, status: int, code: str) -> None:
    given, content, _ = client.ask("POST", "/api/run", body, X_Pellucid_Token=client.token)
    error = json.loads(content)["error"]
    assert (given, error["code"]) == (status, code)
    assert error["message"]
    assert error["remedy"]
    assert "short" in error["remedy"].lower() or code not in ("size", "too-long")


def test_a_body_in_pieces_cannot_be_longer_than_it_says(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        head = f"POST /api/run HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nX-Pellucid-Token: {client.token}\r\n"
        connection.sendall(f"{head}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n".encode())
        assert connection.recv(100).split()[1] == b"411"


def test_a_browser_that_goes_away_before_its_body_is_whole(client: Client, logged: list[Any]) -> None:
    for path in ("run", "generate"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
            head = f"POST /api/{path} HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nX-Pellucid-Token: {client.token}\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    assert client.post("run", text=TEXT)[0] == 200
    assert logged == []


FIELDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("lens", {}, "request-field", "a token's id or its text"),
    ("lens", {"token": [" Tom"]}, "request-field", "a token's id or its text"),
    ("lens", {"token": " Tom", "layer": 9}, "request-field", "from -4 to 3"),
    ("lens", {"token": " Tom", "layer": "x"}, "request-field", "from -4 to 3"),
    ("lens", {"token": " Tom", "layer": 1, "pos": 99}, "request-field", "from -4 to 3"),
    ("attribution", {"token": " Tom", "pos": 99}, "request-field", "from -4 to 3"),
    ("attribution", {"token": " Tom", "minus": {}}, "request-field", "a token's id or its text"),
    ("values", {}, "request-field", "the name of a checkpoint"),
    ("values", {"name": "blocks.0.resid_pre", "pos": [99]}, "index-out-of-range", "entries that exist"),
    ("compare", {}, "request-field", "a path or the id of a repository"),
    ("sample", {"seed": 10**30}, "seed", "Give a whole number from -9223372036854775808 to"),
    ("sample", {"seed": "x"}, "seed", "Leave it out"),
    ("generate", {"text": "Once", "seed": 10**30}, "seed", "Give a whole number from -9223372036854775808 to"),
    ("generate", {"text": "Once", "max_new_tokens": 10**9}, "too-long", "at most 255"),
    ("sample", {"frequency_penalty": 1e308}, "sampler-setting", "Give a frequency_penalty that is"),
    ("generate", {"text": "Once", "temprature": 1}, "request-field", "frequency_penalty, ids, max_new_tokens, oth"),
    ("values", {"name": "blocks.0.resid_pre", "head": 1}, "request-field", "the fields heads, name, plain, pos."),
    ("edit", {"edits": [{"how": "zero", "name": "attn.ckpt_z", "heads": [1]}]}, "request-field", "group, head, how"),
    ("cancel", {"all": True}, "request-field", "Send an empty object."),
]


@pytest.mark.parametrize(("verb", "asked", "code", "remedy"), FIELDS)
def test_a_field_that_cannot_be_used_is_named(
    client: Client, verb: str, asked: dict[str, Any], code: str, remedy: str
) -> None:
    client.session = "nobody"  # it looks at the first text, of four tokens
    error = client.json(verb, expect=400, **asked)["error"]
    assert error["code"] == code
    assert remedy in error["remedy"]


class Read(dict[str, Any]):
    """A request that remembers which of its fields were looked for."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


PATCHED: dict[str, Any] = {"edits": [{"name": "resid_pre", "layer": 1, "how": "patch"}], "other": TEXT}
WHOLE: dict[str, dict[str, Any]] = {
    "run": {"text": TEXT, **PATCHED},
    "edit": PATCHED,
    "values": {"name": "blocks.0.resid_pre"},
    "lens": {"token": " Tom", "layer": 1},
    "attribution": {"token": " Tom", "minus": " Lily"},
    "generate": {"text": TEXT, "max_new_tokens": 1, **PATCHED},
    "sample": {},
    "pca": {"name": "ckpt_embed"},
    "tsne": {"name": "ckpt_embed"},
    "compare": {"other": "bundled"},
    "cancel": {},
}


def test_the_fields_of_a_request_are_those_that_are_read(
    model: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Tabs(model, TEXT)
    monkeypatch.setattr(answers, "compare_models", lambda *_, **__: SimpleNamespace(to_json=lambda: "{}"))
    monkeypatch.setattr(answers, "audit_ties", lambda _: SimpleNamespace(what=""))
    monkeypatch.setattr(answers, "load", lambda *_, **__: model)
    for verb, answer in {**answers.POSTS, "generate": answers.tokens}.items():
        asked = Read(WHOLE[verb])
        answer(kept, Session(), asked)
        assert asked.read == tabs.FIELDS[verb], verb
    assert set(WHOLE) == {*answers.POSTS, "generate"} == set(tabs.FIELDS)


def test_a_run_that_cannot_be_shown_leaves_the_tab_where_it_was(client: Client) -> None:
    client.post("run", text=TEXT)
    client.json("run", expect=400, text="Once upon", target="two words")
    assert client.json("values", name="blocks.0.resid_pre")["shape"][0] == 4


def test_a_run_and_its_exact_values(client: Client, model: pl.CkptedTransformer) -> None:
    text = "Lily and Tom went to the park."
    status, content = client.post("run", text=text, target=" Tom")
    trace = Trace.from_bytes(content)
    logits, ckpts = model.run_with_ckpts(text)
    assert logits is not None
    assert (status, trace.header["target"]["text"]) == (200, " Tom")
    assert (trace["prediction.logits"].data == logits[0, -1].numpy()).all()
    found = client.json("values", name="blocks.2.attn.ckpt_pattern", pos=[1, 3], heads=[2])
    data = np.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])
    assert (data == ckpts["blocks.2.attn.ckpt_pattern"][0, 2:3, [1, 3]].numpy()).all()
    assert client.json("values", expect=400, name="blocks.9.resid_pre")["error"]["code"] == "unknown-checkpoint"
    status, content = client.post(
        "run", ids=trace.header["tokens"][0]["id"] and [t["id"] for t in trace.header["tokens"]]
    )
    assert Trace.from_bytes(content).header["text"] == text


def test_two_tabs_do_not_disturb_each_other(server: serving.Server, model: pl.CkptedTransformer) -> None:
    first, second, third = (Client(server.port, name) for name in ("one", "two", "new"))
    first.post("run", text="Once upon")
    second.post("run", text="Lily went home and slept")
    shapes = [tab.json("values", name="blocks.0.resid_pre")["shape"] for tab in (first, second, third)]
    assert [shape[0] for shape in shapes] == [
        model.tokenize(t).ids.size(1) for t in ("Once upon", "Lily went home and slept", TEXT)
    ]
    for number in range(MOST_SESSIONS):
        another = Client(server.port, f"more {number}")
        another.token = first.token
        another.json("cancel")
    refused = first.json("values", expect=400, name="blocks.0.resid_pre")
    assert refused["error"]["code"] == "tab-forgotten", "it would be told numbers of another text"
    first.post("run", text="Once upon")
    assert first.json("values", name="blocks.0.resid_pre")["shape"] == shapes[0]


def test_tabs_make_room_for_large_runs(model: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Tabs(model, TEXT)
    answers.run(kept, kept.session("one"), {"text": TEXT})
    monkeypatch.setattr(tabs, "MOST_KEPT", kept.session("one").nbytes)
    assert kept.session("two").run is None
    assert not kept.session("one").forgotten, "it fits"
    answers.run(kept, kept.session("two"), {"text": "Once"})
    kept.session("three")
    assert [kept.session(name).forgotten for name in ("one", "two")] == [True, False]


def test_the_lens_of_any_token_and_its_parts(client: Client, model: pl.CkptedTransformer) -> None:
    client.post("run", text=TEXT)
    found = client.json("lens", token=" Lily", layer=2, pos=1)
    _, ckpts = model.run_with_ckpts(TEXT)
    lens = pl.lens.logit(ckpts)
    assert found["rank"][1:] == lens.rank(" Lily").values[:, 0].tolist()
    assert np.allclose(found["logprob"][1:], lens.logprobs(" Lily").values[:, 0])
    token = model.tokenizer.token_id(" Lily") if model.tokenizer else 0
    assert abs(sum(found["parts"]["values"]) - float(lens.logits(2)[0, 1, token])) < 1e-4
    assert not any(name.startswith("blocks.3") for name in found["parts"]["of"])
    split = client.json("attribution", token=" Lily", minus=" there", pos=2)
    parts = pl.attribution.direct(ckpts, (" Lily", " there"), by="head")
    assert (split["of"], split["components"]) == (parts.component.values.tolist(), parts.values[:, 0, 2].tolist())
    heads = [value for name, value in zip(split["of"], split["components"], strict=True) if "attn[" in name]
    assert np.allclose(np.asarray(split["sources"]).sum(-1).ravel(), heads)


def test_an_edit_beside_that_of_another_head(client: Client, model: pl.CkptedTransformer) -> None:
    client.post("run", text=TEXT)
    edit = {"name": "attn.ckpt_z", "layer": 2, "head": 1, "how": "zero"}
    found = client.json("edit", edits=[edit])
    with torch.no_grad():
        plain = model(TEXT)[0, -1].double().log_softmax(-1)
        runs = {
            h: model.run(TEXT, edits=pl.Edit.zero("blocks.2.attn.ckpt_z", heads=h))[0, -1].double() for h in range(4)
        }
    control = found["effects"]["control"]
    for head, effect in ((1, found["effects"]), (control["head"], control)):
        changed = runs[head].log_softmax(-1)
        assert abs(effect["kl"] - float((plain.exp() * (plain - changed)).sum())) < 1e-5
        first, second = effect["tokens"]
        assert abs(effect["logit_difference"][1] - float(runs[head][first] - runs[head][second])) < 1e-4
    assert control["head"] != 1
    trace = Trace.from_bytes(base64.b64decode(found["trace"]))
    assert trace.header["edits"][0]["python"] == "pl.Edit.zero('blocks.2.attn.ckpt_z', heads=1)"
    plain_z = client.json("values", name="blocks.2.attn.ckpt_z", plain=True)
    assert np.frombuffer(base64.b64decode(plain_z["data"]), "<f4").reshape(plain_z["shape"])[:, 1].any()
    assert client.json("values", name="blocks.2.attn.ckpt_z", heads=[1]) != plain_z
    patch = {"name": "resid_pre", "layer": 3, "pos": -1, "how": "patch"}
    patched = client.json("edit", edits=[patch], other="Lily and Tom went to the park", control=False)
    _, other = model.run_with_ckpts("Lily and Tom went to the park")
    expected = model.run(TEXT, edits=pl.Edit.patch("blocks.3.resid_pre", other, pos=-1))[0, -1]
    assert (
        Trace.from_bytes(base64.b64decode(patched["trace"]))["prediction.logits"].data == expected.detach().numpy()
    ).all()
    assert client.json("edit", expect=400, edits=[patch])["error"]["code"] == "request-field"


def test_several_edits_are_judged_together_and_each_alone(client: Client, model: pl.CkptedTransformer) -> None:
    client.post("run", text=TEXT)
    block = [{"name": name, "layer": 1, "how": "zero"} for name in ("attn.ckpt_attn_out", "mlp.ckpt_mlp_out")]
    neuron = {"name": "mlp.ckpt_post", "layer": 3, "neuron": 7, "how": "mean"}
    patch = {"name": "attn.ckpt_z", "layer": 0, "head": 2, "how": "patch", "other": "Lily and Tom went"}
    asked = [{**one, "group": group} for group, one in ((0, block[0]), (0, block[1]), (1, neuron), (2, patch))]
    effects = client.json("edit", edits=asked)["effects"]
    with torch.no_grad():
        plain = model(TEXT)[0, -1].double().log_softmax(-1)
        _, other = model.run_with_ckpts("Lily and Tom went")
        names = ["blocks.1.attn.ckpt_attn_out", "blocks.1.mlp.ckpt_mlp_out"]
        changes = [
            [pl.Edit.zero(names)],
            [pl.Edit.mean_ablate("blocks.3.mlp.ckpt_post", neurons=7)],
            [pl.Edit.patch("blocks.0.attn.ckpt_z", other, heads=2)],
        ]
        runs = [
            model.run(TEXT, edits=edits)[0, -1].double().log_softmax(-1)
            for edits in ([one for (one,) in changes], *changes)
        ]
    kls = [float((plain.exp() * (plain - run)).sum()) for run in runs]
    assert [one["kl"] for one in (effects, *effects["each"])] == pytest.approx(kls, rel=1e-3, abs=1e-6)
    assert "control" not in effects["each"][0]
    assert effects["each"][1]["control"]["neuron"] not in (7, None)
    assert effects["each"][2]["control"]["head"] != 2
    assert set(effects["control"]) >= {"head", "neuron"}


def events(content: bytes) -> list[tuple[str, Any]]:
    return [
        (lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: ")))
        for lines in (part.split("\n") for part in content.decode().strip().split("\n\n"))
    ]


def test_a_generation_is_streamed_with_its_stages(client: Client, model: pl.CkptedTransformer) -> None:
    how: dict[str, Any] = {
        "temperature": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.7,
        "seed": 5,
    }
    _, content = client.post("generate", text=TEXT, max_new_tokens=6, **how)
    *made, (kind, done) = events(content)
    sampler = pl.Sampler(temperature=0.8, top_k=20, repetition_penalty=1.2, frequency_penalty=0.7)
    expected = model.generate(TEXT, max_new_tokens=6, sampler=sampler, seed=5)
    assert [one["id"] for _, one in made] == torch.as_tensor(expected.ids[0]).tolist()[4:]
    assert (kind, done) == ("done", {"cancelled": False})
    names = ["model", "repetition_penalty", "frequency_penalty", "temperature", "top_k"]
    assert [stage["name"] for stage in made[0][1]["stages"]] == names
    assert made[0][1]["stages"][-1]["kept"] == 20
    client.post("run", text=TEXT)
    drawn = client.json("sample", **how)
    assert drawn == client.json("sample", **how)
    assert drawn["id"] in drawn["stages"][-1]["ids"]
    assert client.json("generate", expect=400, text=TEXT, temperature=-1)["error"]["code"] == "sampler-setting"
    assert client.json("generate", expect=400, text="")["error"]["code"] == "empty-text"
    _, content = client.post("generate", text=TEXT, max_new_tokens=1, temperature=2**64)
    assert events(content)[-1][0] == "done", "a number of any size is one"


def test_an_error_that_is_not_ours_in_a_generation_is_said(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(*_: Any) -> Iterator[Any]:
        raise OverflowError("int too large to convert to float")
        yield

    monkeypatch.setattr(answers, "tokens", breaking)
    _, content = client.post("generate", text=TEXT)
    assert [(kind, said["code"]) for kind, said in events(content)] == [("error", "request-field")]


ONWARDS: dict[str, tuple[dict[str, Any], Callable[[pl.ActivationCkpts, pl.ActivationCkpts], list[pl.Edit]]]] = {
    "an MLP is zero at every token, also at those that come": (
        {"name": "mlp.ckpt_mlp_out", "layer": 0, "how": "zero"},
        lambda _, __: [pl.Edit.zero("blocks.0.mlp.ckpt_mlp_out")],
    ),
    "an MLP has its mean over the text, also at those that come": (
        {"name": "mlp.ckpt_mlp_out", "layer": 0, "how": "mean"},
        lambda plain, _: [pl.Edit.mean_ablate("blocks.0.mlp.ckpt_mlp_out", plain)],
    ),
    "one position is changed, and no other": (
        {"name": "resid_pre", "layer": 0, "pos": -1, "how": "zero"},
        lambda _, __: [pl.Edit.zero("blocks.0.resid_pre", pos=3)],
    ),
    "the tokens of the text have a second one's values": (
        {"name": "resid_pre", "layer": 2, "how": "patch", "other": "Lily and Tom went"},
        lambda _, other: [pl.Edit.patch("blocks.2.resid_pre", other, pos=range(4))],
    ),
}


@pytest.mark.parametrize("name", ONWARDS)
def test_an_edited_run_is_continued_by_the_edited_model(client: Client, model: pl.CkptedTransformer, name: str) -> None:
    edit, made = ONWARDS[name]
    runs = [model.run_with_ckpts(text)[1] for text in (TEXT, "Lily and Tom went")]
    expected = model.generate(TEXT, max_new_tokens=8, edits=made(*runs)).new_ids[0].tolist()
    assert expected != model.generate(TEXT, max_new_tokens=8).new_ids[0].tolist(), "the edit changes what follows"
    _, content = client.post("generate", text=TEXT, max_new_tokens=8, temperature=0, edits=[edit])
    assert [said["id"] for kind, said in events(content) if kind == "token"] == expected


def test_a_generation_ends_when_it_is_cancelled_or_its_reader_goes_away(client: Client) -> None:
    body = json.dumps({"text": TEXT, "max_new_tokens": 240, "temperature": 1.0}).encode()
    headers = {"X-Pellucid-Token": client.token, "X-Pellucid-Session": client.session}
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("POST", "/api/generate", body, headers)
    answer = connection.getresponse()
    begun = answer.readline()
    assert begun.startswith(b"event: token")
    assert client.json("cancel") == {"cancelled": True}
    rest = begun + answer.read()
    assert events(rest)[-1] == ("done", {"cancelled": True})
    assert len(events(rest)) < 240
    connection.request("POST", "/api/generate", body, headers)
    connection.getresponse().readline()
    connection.close()
    assert client.post("run", text=TEXT)[0] == 200, "the model is free again"


def test_stopping_ends_a_generation_as_cancelling_does(model: pl.CkptedTransformer, logged: list[Any]) -> None:
    started = pl.serve(model, TEXT, port=0)
    client = Client(started.port)
    body = json.dumps({"text": TEXT, "max_new_tokens": 240, "temperature": 1.0}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
    connection.request("POST", "/api/generate", body, {"X-Pellucid-Token": client.token})
    answer = connection.getresponse()
    begun = answer.readline()
    started.stop()
    assert events(begun + answer.read())[-1] == ("done", {"cancelled": True})
    connection.close()
    assert logged == []


def test_components_of_any_checkpoint(client: Client, bundled: pl.CkptedTransformer) -> None:
    text = "Lily and Tom went to the park."
    client.post("run", text=text)
    for name in ("blocks.1.attn.ckpt_z", "blocks.0.mlp.ckpt_post"):
        found = client.json("pca", name=name)
        vectors = bundled.run_with_ckpts(text)[1][name][0].flatten(1).double()
        u, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        np.testing.assert_allclose(np.abs(found["points"]), (u * s)[:, :3].abs(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found["shares"], (s.square() / s.square().sum())[:3], rtol=1e-9)
        np.testing.assert_allclose(found["norms"], vectors.norm(dim=1), rtol=1e-12)
    assert client.json("pca", expect=400, name="blocks.1.attn.ckpt_pattern")["error"]["code"] == "request-field"


def test_neighbours_and_another_model(client: Client, bundled: pl.CkptedTransformer) -> None:
    text = "Lily and Tom went to the park. Tom ran home."
    client.post("run", text=text)
    found = client.json("tsne", name="blocks.1.resid_post", perplexity=3, seed=1)
    vectors = bundled.run_with_ckpts(text)[1]["blocks.1.resid_post"][0].double()
    manifold = pytest.importorskip("sklearn.manifold")
    again = manifold.TSNE(perplexity=3, random_state=1, init="pca").fit_transform(vectors.numpy())
    np.testing.assert_allclose(found["points"], again, rtol=1e-3, atol=1e-3)
    assert client.json("tsne", expect=400, name="blocks.1.attn.ckpt_pattern")["error"]["code"] == "request-field"
    compared = client.json("compare", other="bundled")
    assert compared["report"]["verdict"] == "identical"
    assert compared["ties"]


def test_after_hf_the_other_is_a_model_of_transformers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    compared: list[str] = []

    def compare(*sides: Any, inputs: Any) -> Any:
        compared.extend(type(side).__name__ for side in sides)
        return SimpleNamespace(to_json=lambda: "{}")

    monkeypatch.setattr(answers, "compare_models", compare)
    client.post("run", text=TEXT)
    ties = client.json("compare", other="hf:bundled")["ties"]
    assert compared == ["CkptedTransformer", "GPT2LMHeadModel"]
    assert ["GPT2LMHeadModel" in tie["what"] for tie in ties] == [False, True]


@pytest.mark.long
def test_the_model_is_compared_with_transformers_own_run(client: Client) -> None:
    pytest.importorskip("transformers")
    client.post("run", text=TEXT)
    compared = client.json("compare", other="hf:bundled")
    assert compared["report"]["verdict"] == "identical"
    assert ["GPT2LMHeadModel" in tie["what"] for tie in compared["ties"]] == [False, True]


PATCH = {"name": "attn.ckpt_z", "layer": 1, "how": "patch", "other": "Once"}
ON_THE_PAGE: list[tuple[str, str, dict[str, Any], str, dict[str, Any]]] = [
    ("hub-offline", "compare", {"other": "nowhere/at-all"}, "a folder or a file on this machine", {"other": "bundled"}),
    ("config-needed", "compare", {"other": "alone.safetensors"}, "Put the config.json", {"other": "alone.safetensors"}),
    ("empty-text", "run", {"text": ""}, "Write some text.", {"text": TEXT}),
    ("no-tokenizer", "run", {"text": TEXT}, "Write token ids in its place, such as 1 2 3", {"text": "1 2 3"}),
    ("no-tokenizer", "lens", {"token": " a"}, "Write token ids in its place, such as 1 2 3", {"token": "3"}),
    ("too-long", "generate", {"ids": [5] * 256, "max_new_tokens": 1}, "Go back to an earlier token",
     {"ids": [5] * 9, "max_new_tokens": 1}),
    ("patch-of-another-length", "edit", {"edits": [PATCH]}, "at one token alone", {"edits": [{**PATCH, "pos": 0}]}),
    ("unknown-checkpoint", "values", {"name": "nowhere"}, "The atlas lists", {"name": "blocks.3.resid_pre"}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "verb", "asked", "remedy", "instead"), ON_THE_PAGE)
def test_a_remedy_can_be_followed_on_the_page(
    code: str, verb: str, asked: dict[str, Any], remedy: str, instead: dict[str, Any], client: Client,
    model: pl.CkptedTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(answers, "compare_models", lambda *_, **__: SimpleNamespace(to_json=lambda: "{}"))
    shutil.copyfile(BUNDLED / "model.safetensors", "alone.safetensors")
    if code == "no-tokenizer":
        monkeypatch.setattr(model, "tokenizer", None)
        client.session = code
        client.post("run", text="1, 2 3")
    error = client.json(verb, expect=400, **asked)["error"]
    assert error["code"] == code
    assert remedy in error["remedy"]
    assert not PYTHON.search(error["remedy"])
    if code == "config-needed":
        shutil.copyfile(BUNDLED / "config.json", "config.json")
    assert client.post(verb, **instead)[0] == 200


def test_a_model_of_another_type_is_compared_at_a_shell(client: Client, tmp_path: Path) -> None:
    """It is a LLaMA in all but its name; what the page says is typed, and the two are compared."""
    pytest.importorskip("transformers")
    folder, config = tmp_path / "relative", tmp_path / "llama.json"
    llamas.reference().save_pretrained(folder)
    (folder / "config.json").rename(config)
    fields = json.loads(config.read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**fields, "model_type": "mistral"}), encoding="utf-8")
    error = client.json("compare", expect=400, other=str(folder))["error"]
    said = "`pellucid compare` takes --config with a copy of its config.json that has 'model_type': 'llama'."
    assert (error["code"], said in error["remedy"]) == ("config-model-type", True), error
    typed = ["compare", str(folder), str(folder), "--config", str(config), "--ids", "1,2"]
    assert CliRunner().invoke(app, typed).exit_code == 0


@pytest.mark.parametrize("words", WORDS.values())
def test_the_options_that_the_page_names_are_those_of_the_verbs(words: str | tuple[str, Any]) -> None:
    said = elsewhere("pass ignore_config=['a'], or allow the network once", words)
    for verb, option in re.findall(r"`pellucid (\w+)` takes (--[\w-]+)", said):
        assert option in {long for one in load_verb(verb).params for long in one.opts}


def has_ipv6() -> bool:
    """Whether this machine has the other loopback address."""
    with socket.socket(socket.AF_INET6) as trial, suppress(OSError):
        trial.bind(("::1", 0))
        return True
    return False


def test_it_runs_beside_a_loop_and_on_both_loopback_addresses(model: pl.CkptedTransformer) -> None:
    async def notebook() -> tuple[int, int]:
        started = pl.serve(model, TEXT, port=0)
        try:
            statuses = [await asyncio.to_thread(lambda: Client(started.port).ask("GET", "/api/info")[0])]
            if has_ipv6():
                statuses.append(await asyncio.to_thread(lambda: Client(started.port, host="::1").ask("GET", "/")[0]))
        finally:
            started.stop()
        return statuses[0], statuses[-1]

    with ThreadPoolExecutor(1) as thread:  # a loop runs in this one if it has opened a browser
        assert thread.submit(asyncio.run, notebook()).result() == (200, 200)


def test_a_port_that_is_taken(
    model: pl.CkptedTransformer, server: serving.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PORT", server.port)
    second = pl.serve(model, TEXT)
    assert second.port > server.port
    assert Client(second.port).ask("GET", "/api/info")[0] == 200
    second.stop()
    assert repr(second) == f"Server at {second.url}, stopped"
    again = pl.serve(model, TEXT, port=second.port)  # the port is free at once
    again.stop()
    with pytest.raises(pl.InputError, match=f"port {server.port} is taken"):
        pl.serve(model, TEXT, port=server.port)
    for wrong in (-1, 70_000, "8600", True):
        with pytest.raises(pl.InputError):
            pl.serve(model, TEXT, port=wrong)  # pyright: ignore[reportArgumentType]


def test_the_port_that_browsers_do_not_name(model: pl.CkptedTransformer) -> None:
    with suppress(pl.InputError):  # a port below 1024 may be the system's
        started = pl.serve(model, TEXT, port=80)
        try:
            statuses = [Client(80).ask("GET", "/api/info", Host=host)[0] for host in ("127.0.0.1", "127.0.0.1:80")]
        finally:
            started.stop()
        assert statuses == [200, 200]


def test_the_served_page_works_in_a_browser(server: serving.Server, opened: Open) -> None:
    watched = opened(SimpleNamespace(as_uri=lambda: server.url))
    assert watched.page.locator(".token").all_inner_texts() == ["Once", "␣upon", "␣a", "␣time"]
    watched.page.locator("#pellucid-text").fill("Lily went")
    watched.page.keyboard.press("Enter")
    watched.page.get_by_text("␣went", exact=True).wait_for()
    assert watched.page.locator(".token").count() == 2


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Control-C interrupts this process and those that it starts, though a shell's background job ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_command_line_says_where_and_stops_clean() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", "--no-open", "--port", "0", "--text", "Once upon"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(line.removeprefix("http://127.0.0.1:").removesuffix("/\n"))
    assert b"<title>Once upon" in Client(port).ask("GET", "/")[1]
    taken = CliRunner().invoke(app, ["serve", "--no-open", "--port", str(port)])
    assert (taken.exit_code, taken.stdout) == (4, "")
    assert "port-taken" in taken.stderr
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest) == (130, "")
    assert "Traceback" not in said


@pytest.mark.usefixtures("interruptible")
def test_a_server_whose_wait_was_interrupted_stops_before_the_call_returns(model: pl.CkptedTransformer) -> None:
    server = pl.serve(model, TEXT, port=0)
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        server.wait()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        Client(server.port).ask("GET", "/")


def test_a_browser_is_opened_unless_it_is_told_not_to(
    model: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = SimpleNamespace(url="http://127.0.0.1:1/", port=serving.PORT, wait=list, stop=list)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(pl, "load", lambda *_, **__: model)
    monkeypatch.setattr(pl, "serve", lambda *_, **__: served)
    for words, expected in ((["--no-open"], []), ([], [served.url])):
        done = CliRunner().invoke(app, ["serve", *words])
        assert (done.exit_code, done.stdout, opened) == (0, f"{served.url}\n", expected)


def _taken(here: Any) -> None:
    pl.serve(here.model, TEXT, port=here.server.port)


def _anywhere(here: Any) -> None:
    pl.serve(here.model, TEXT, port=0).stop()


def _asked(here: Any, **asked: Any) -> None:
    answers.run(here.tabs, Session(), asked)


def _looked(here: Any, first: Callable[[Tabs, Session], Any]) -> None:
    """A tab is looked at after as many others as are kept."""
    kept = Tabs(here.model, TEXT)
    for number in range(MOST_SESSIONS + 1):
        kept.session(str(number))
    session = kept.session("0")
    first(kept, session)
    kept.run_of(session, {})


def _again(kept: Tabs, session: Session) -> None:
    answers.run(kept, session, {"text": TEXT})


REMEDIES: dict[str, list[Case]] = {
    "tab-forgotten": [Case(lambda h: _looked(h, lambda *_: None), "Run the text", lambda h: _looked(h, _again))],
    "port-taken": [Case(_taken, "0 stands for any that is free", _anywhere)],
    "request-field": [Case(lambda h: _asked(h, text=3), "Send a text", lambda h: _asked(h, text=TEXT))],
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_a_remedy_helps(code: str, case: Case, model: pl.CkptedTransformer, server: serving.Server) -> None:
    follow(code, case, SimpleNamespace(model=model, server=server, tabs=Tabs(model, TEXT)))
