"""The viewer's server: on this machine only, for pages that it made itself.

Another site that the browser shows can send requests here, too, and may even have a name that leads to this machine
(DNS rebinding). So a request must name this machine as its host, and everything but reading must carry the token of
this launch, which only the page knows; both are checked before a body is read. There is no CORS.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any

from pellucid.check import require_whole
from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.names.calls import named_arguments
from pellucid.run.model import CkptedTransformer
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.text.batch import Inputs
from pellucid.viewer.routes import LARGEST_REQUEST, Routes
from pellucid.viewer.tabs import Tabs

TEXT = "Lily and Tom went to the park. Tom gave a ball to"
"""What is shown first, if nothing else was asked for."""

PORT = 8600
"""Where the server is if no port is asked for; or at one of the next that is free."""

_TRIED = 20
_USUAL = 80
"""The port that browsers leave out of a host's name."""

_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY", "cache-control": "no-store",
}  # fmt: skip

Scope = MutableMapping[str, Any]


class Server:
    """A server that runs in a thread, beside whatever else the process does, until `stop` is called.

    Attributes:
        url: Its address; open it in a browser on this machine.

    Example:
        >>> import pellucid as pl
        >>> server = pl.serve(pl.load(), port=0)
        >>> server.url.startswith("http://127.0.0.1:")
        True
        >>> server.stop()
    """

    def __init__(self, tabs: Tabs, sockets: list[socket.socket]) -> None:
        uvicorn = need("uvicorn", "pellucid serve")
        self.port = int(sockets[0].getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/"
        self._tabs, self._token = tabs, secrets.token_urlsafe(32)
        app = _guarded(Routes(tabs, self._token).application(), self._token, self.port)
        config = uvicorn.Config(
            app, log_config=None, log_level="error", access_log=False, lifespan="off", server_header=False, ws="none",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._ended = threading.Event()
        run = self._server.serve(sockets=sockets)
        self._thread = threading.Thread(target=self._serve, args=(run,), name="pellucid serve", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def __repr__(self) -> str:
        return f"Server at {self.url}" + ("" if self._thread.is_alive() else ", stopped")

    def _serve(self, run: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run(run)
        finally:
            self._ended.set()

    def wait(self) -> None:
        """Return once the server has stopped."""
        # Python 3.11 takes a thread for ended whose join was interrupted, and `stop` would not wait for it. Without an
        # end, Control-C is not seen on every system.
        while not self._ended.wait(0.2):
            pass

    def stop(self) -> None:
        """Stop, and return once the port is free."""
        self._tabs.cancel()  # else a stream would be cut off in the middle, with a traceback
        self._server.should_exit = True
        self._ended.wait()
        self._thread.join()


@named_arguments()
def serve(
    model: CkptedTransformer, text: Inputs = TEXT, *, port: int | None = None, sae: SparseAutoencoder | None = None
) -> Server:
    """Serve the viewer on this machine, in a thread: it returns at once, also beside a notebook's running loop.

    Args:
        model: What runs.
        text: What is shown first.
        port: Where; 0 for any free port, None for 8600 or one of the next that is free.
        sae: An autoencoder, whose features the screen of neurons then shows in their place.

    Raises:
        InputError: If the port is taken, or the text cannot be viewed.
        MissingExtraError: starlette and uvicorn are not installed.

    Example:
        >>> import pellucid as pl
        >>> server = pl.serve(pl.load(), "Once upon a time", port=0)
        >>> server.stop()
    """
    need("starlette", "pellucid serve")
    need("uvicorn", "pellucid serve")
    sockets = _sockets(port)
    try:
        return Server(Tabs(model, text, sae), sockets)
    except BaseException:
        for one in sockets:
            one.close()
        raise


def _sockets(port: int | None) -> list[socket.socket]:
    """Sockets on both loopback addresses, as far as this machine has them."""
    wanted = PORT if port is None else require_whole("serve: port", port, at_most=65535)
    last = wanted if port is not None else wanted + _TRIED - 1
    problem = OSError()
    for number in range(wanted, last + 1):
        try:
            return _at(number)
        except OSError as refusal:
            problem = refusal
    which = f"port {wanted}" if wanted == last else f"each of the ports {wanted} to {last}"
    why = "is taken" if problem.errno == errno.EADDRINUSE else f"cannot be opened: {problem.strerror}"
    raise InputError(
        f"serve: {which} {why}.", code="port-taken", remedy="Give another port; 0 stands for any that is free."
    ) from problem


def _at(port: int) -> list[socket.socket]:
    first = socket.socket(socket.AF_INET)
    try:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", port))
        first.listen(64)  # a port that is bound but not listened at would be handed out twice
    except OSError:
        first.close()
        raise
    found = [first]
    if socket.has_ipv6:
        second = socket.socket(socket.AF_INET6)
        try:
            second.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            second.bind(("::1", first.getsockname()[1]))
            found.append(second)
        except OSError:
            second.close()
    return found


def _guarded(app: Any, token: str, port: int) -> Any:
    """An application behind the checks that come before a body is read."""
    names = ("127.0.0.1", "localhost", "[::1]")
    hosts = {f"{name}:{port}" for name in names} | set(names if port == _USUAL else ())

    async def guarded(scope: Scope, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = _refusal(scope["method"], headers, hosts, token)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in _HEADERS.items())]
            await send(message)

        if refusal is None:
            await app(scope, receive, with_headers)
            return
        status, code, said = refusal
        remedy = _INSTEAD.get(code, "Open the address that it printed.")
        body = json.dumps({"error": {"code": code, "message": said, "remedy": remedy}}).encode()
        listed = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await with_headers({"type": "http.response.start", "status": status, "headers": listed})
        await with_headers({"type": "http.response.body", "body": body})

    return guarded


_INSTEAD = {
    "method": "Ask with GET, or with POST and a JSON object.", "size": "Give a shorter text.",
    "length": "Send the body whole, with its Content-Length.",
}  # fmt: skip
"""Code of a refusal -> what to do, where it is not that another page asks."""


def _refusal(method: str, headers: dict[str, str], hosts: set[str], token: str) -> tuple[int, str, str] | None:
    """Status, code and sentence for a request that is not answered; None for one that is."""
    if headers.get("host", "").lower() not in hosts:
        return 421, "host", "This server answers under the names of this machine alone."
    origin = headers.get("origin")
    if origin is not None and origin.lower().removeprefix("http://") not in hosts:
        return 403, "origin", "Another site's page asked, and this server answers its own pages alone."
    if method in ("GET", "HEAD"):
        return None
    if method != "POST":
        return 405, "method", "This server answers GET and POST."
    if not hmac.compare_digest(headers.get("x-pellucid-token", "").encode(), token.encode()):
        return 403, "token", "The request has no token of this launch."
    length = headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in headers:  # in pieces it may be longer than it says
        return 411, "length", "The request does not say how long it is."
    if int(length) > LARGEST_REQUEST:
        return 413, "size", f"The request is larger than {LARGEST_REQUEST} bytes."
    return None
