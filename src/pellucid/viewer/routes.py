"""What the server answers at each of its addresses; who may ask is decided before (`serving`)."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

from pellucid._version import __version__
from pellucid.errors import InputError, PellucidError, Words, elsewhere
from pellucid.extras import need
from pellucid.generate.generation import Token
from pellucid.viewer import answers, views
from pellucid.viewer.container import Trace
from pellucid.viewer.tabs import FIELDS, MOST_SESSIONS, Session, Tabs, misread, refuse_unknown
from pellucid.viewer.traces import traced

LARGEST_REQUEST = 1 << 18
"""Bytes of a request."""

_BINARY = "application/octet-stream"
_UNUSABLE = (TypeError, ValueError, OverflowError, IndexError, RuntimeError)
"""What Python and torch say of numbers that are too large, or of another kind."""


class Routes:
    """The answers to requests, each a method; starlette calls them.

    Args:
        tabs: The model, and what each tab ran last.
        token: What this launch's page holds and sends with each request.
    """

    def __init__(self, tabs: Tabs, token: str) -> None:
        self._tabs, self._token = tabs, token
        self._first = traced(tabs.first, None, answers.SERVED, tabs.sae)
        self._of = need("starlette.responses", "serve")
        self._gone = need("starlette.requests", "serve").ClientDisconnect
        self._in_thread: Any = need("starlette.concurrency", "serve").run_in_threadpool

    def application(self) -> Any:
        """All routes, as an application of ASGI."""
        route = need("starlette.routing", "serve").Route
        return need("starlette.applications", "serve").Starlette(
            routes=[
                route("/", self.page), route("/viewer.js", self.script), route("/api/info", self.info),
                route("/api/examples", self.examples), route("/api/examples/{name}", self.example),
                route("/api/readings", self.readings), route("/api/generate", self.generate, methods=["POST"]),
                route("/api/{name}", self.post, methods=["POST"]),
            ]
        )  # fmt: skip

    async def page(self, _: Any) -> Any:
        return self._of.HTMLResponse(views.served(self._token, self._first))

    async def script(self, _: Any) -> Any:
        return self._of.Response(views.script(), media_type="text/javascript")

    async def info(self, _: Any) -> Any:
        model = self._first.header["model"]
        limits = {"tokens": model["sizes"].get("n_ctx"), "request": LARGEST_REQUEST, "sessions": MOST_SESSIONS}
        has = importlib.util.find_spec("sklearn") is not None
        return self._of.JSONResponse({"model": model, "pellucid": __version__, "limits": limits, "tsne": has})

    async def examples(self, _: Any) -> Any:
        listed = [{key: value for key, value in one.items() if key != "trace"} for one in views.examples()]
        return self._of.JSONResponse(listed)

    async def example(self, request: Any) -> Any:
        content = next((o["trace"] for o in views.examples() if o["id"] == request.path_params["name"]), None)
        if content is None:
            return self._nothing("no such example")
        return self._of.Response(base64.b64decode(content), media_type=_BINARY)

    async def readings(self, _: Any) -> Any:
        return self._of.Response(views.readings() or "[]", media_type="application/json")

    async def post(self, request: Any) -> Any:
        """Everything that is answered at once."""
        name = request.path_params["name"]
        if name not in answers.POSTS:
            return self._nothing(f"no /api/{name}")
        try:
            session, body = await self._asked(request, name)
            found = await self._in_thread(self._answer, name, session, body)
        except PellucidError as fault:
            return self._said(fault)
        if isinstance(found, Trace):
            return self._of.Response(found.to_bytes(), media_type=_BINARY)
        return self._of.JSONResponse(found)

    async def generate(self, request: Any) -> Any:
        """A stream of tokens, one event each."""
        try:
            session, body = await self._asked(request, "generate")
            tokens = await self._in_thread(self._begun, session, body)
        except PellucidError as fault:
            return self._said(fault)
        except _UNUSABLE as problem:
            return self._said(_unusable(problem))
        return self._of.StreamingResponse(self._events(session, tokens), media_type="text/event-stream")

    def _begun(self, session: Session, body: dict[str, Any]) -> Iterator[Token]:
        with self._tabs.lock:
            return answers.tokens(self._tabs, session, body)

    async def _events(self, session: Session, tokens: Iterator[Token]) -> AsyncGenerator[str]:
        def following() -> Token | None:
            with self._tabs.lock:
                return next(tokens, None)

        cancelled = session.cancelled
        try:
            while not cancelled.is_set():
                token = await self._in_thread(following)
                if token is None:
                    break
                yield _event("token", answers.told(self._tabs.model, token))
            yield _event("done", {"cancelled": cancelled.is_set()})
        except (PellucidError, *_UNUSABLE) as problem:
            yield _event("error", _content(problem if isinstance(problem, PellucidError) else _unusable(problem)))

    def _answer(self, name: str, session: Session, body: dict[str, Any]) -> Any:
        if name == "cancel":  # what is cancelled may hold the lock
            return answers.cancel(self._tabs, session, body)
        with self._tabs.lock:
            try:
                return answers.POSTS[name](self._tabs, session, body)
            except _UNUSABLE as problem:
                raise _unusable(problem) from problem

    async def _asked(self, request: Any, name: str) -> tuple[Session, dict[str, Any]]:
        """Which tab asks, and for what."""
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError, self._gone) as problem:
            raise misread("the request", "no JSON", "a JSON object") from problem
        if not isinstance(body, dict):
            raise misread("the request", body, "a JSON object")
        refuse_unknown(name, body, FIELDS[name])
        return self._tabs.session(request.headers.get("x-pellucid-session", "")[:64]), body

    def _said(self, fault: PellucidError) -> Any:
        return self._of.JSONResponse({"error": _content(fault)}, 400)

    def _nothing(self, message: str) -> Any:
        return self._of.JSONResponse({"error": {"code": "path", "message": message, "remedy": ""}}, 404)


def _event(kind: str, content: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n"


def _content(fault: PellucidError) -> dict[str, str]:
    return {"code": fault.code, "message": fault.message, "remedy": elsewhere(fault.remedy, WORDS.get(fault.code))}


def _unusable(problem: BaseException) -> InputError:
    return misread("the request", str(problem), "fields of the right kind and size")


_BESIDE = "Put the config.json of these weights beside them, or compare at a shell: `pellucid compare` takes --config."


def _at_a_shell(found: re.Match[str]) -> str:
    """Fields to ignore, or one that a configuration should have, as options of a command."""
    ignored = " ".join(f"--ignore-config {name}" for name in re.findall(r"[\w.]+", found[1] or ""))
    other = f"--config with a copy of its config.json that has {found[2]}"
    return f"compare at a shell: `pellucid compare` takes {ignored or other}"


def _room(found: re.Match[str]) -> str:
    full = found[1] == "0"
    return "Go back to an earlier token, or write a shorter text." if full else f"Ask for at most {found[1]}."


_CONFIGURED = (r"pass (?:ignore_config=\[(.*?)\]|config=\{(.*?)\})", _at_a_shell)

WORDS: Mapping[str, Words] = {
    "attribution-not-finite": "Open a model whose weights are finite.",
    "config-model-type": _CONFIGURED,
    "config-needed": _BESIDE,
    "config-not-found": _BESIDE,
    "config-not-implemented": _CONFIGURED,
    "empty-text": "Write some text.",
    "head-missing": (r"or tie_word_embeddings=true", "or set tie_word_embeddings to true in its config.json"),
    "hub-no-weights": (
        r"or allow the network once .*",
        "or complete the cache at a shell: `pellucid run Hello -m NAME` downloads what is missing.",
    ),
    "hub-offline": "Check the spelling, or give a folder or a file on this machine. Nothing is downloaded here: run "
    "`pellucid run Hello -m NAME` at a shell first, and then compare again.",
    "no-tokenizer": "Write token ids in its place, such as 1 2 3; or start the server with a tokenizer: "
    "`pellucid serve` takes --tokenizer tokenizer.json.",
    "no-such-axis": (r"Leave \w+= out, or choose", "Choose"),
    "patch-of-another-length": "Give a second text of as many tokens, or patch at one token alone.",
    "text-kind": "Leave out what is half a character.",
    "text-not-encoded": "Leave these characters out.",
    "too-long": (r"Ask for at most (\d+) .*", _room),
    "unknown-checkpoint": (r"`model\.ckpt_names` lists.*", "The atlas lists them all."),
    "view-too-large": "Give a shorter text.",
}  # fmt: skip
"""Code of an error -> what is said on the page: what can be done in its fields and lists, or at a shell."""
