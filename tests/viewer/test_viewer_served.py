"""The page with a server behind it: what it asks, with which headers, and what it shows of the answers.

The server here is a stand-in that remembers what it was asked.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from watched_page import Watched, rows_of
from written_traces import VIEWER, WORDS, numbers, page_of, written

if TYPE_CHECKING:
    from playwright.sync_api import Browser

POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data: blob:; form-action 'none'"


class Asked(BaseHTTPRequestHandler):
    """One request. What every POST brought is kept in `posts`."""

    posts: ClassVar[list[tuple[str, str, str, Any]]] = []

    def do_GET(self) -> None:
        if self.path == "/":
            source = json.dumps({"token": "the token", "base": ""})
            page = page_of(written(without=["attention.q", "neurons.p", "atlas"]), script="", policy="", server=source)
            self.answer(page.replace("<script></script>", '<script src="/viewer.js"></script>').encode(), "text/html")
        elif self.path == "/viewer.js":
            self.answer(VIEWER.read_bytes(), "text/javascript")
        elif self.path == "/api/examples":
            example = {"id": "cat", "text": "A| cat", "look_for": "The cat."}
            self.answer(json.dumps([example]).encode(), "application/json")
        else:
            self.answer(b"[]", "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token, session = self.headers["X-Pellucid-Token"], self.headers["X-Pellucid-Session"]
        self.posts.append((self.path, token, session, body))
        if self.path == "/api/run":
            self.ran(body)
        elif self.path == "/api/sample":
            self.answer(json.dumps({"id": 7, "text": WORDS[7]}).encode(), "application/json")
        elif self.path == "/api/generate":
            self.stream()
        elif self.path == "/api/values":
            name = body["name"]
            attention = name[-1] in "qk"
            array = numbers(written())["attention." + name[-1] if attention else "atlas." + name]
            array = array[1] if attention else array[body.get("pos", slice(None))].astype("f4")
            data = base64.b64encode(array.tobytes()).decode()
            said = {"shape": array.shape, "dtype": "float32", "data": data}
            self.answer(json.dumps(said).encode(), "application/json")
        elif self.path in ("/api/pca", "/api/tsne"):
            of = 3 if self.path == "/api/pca" else 2
            points = [[at * 1.5 + axis for axis in range(of)] for at in range(len(WORDS))]
            said = {"points": points, "shares": [0.5, 0.25, 0.125], "norms": [2.0 + at for at in range(len(WORDS))]}
            self.answer(json.dumps(said).encode(), "application/json")
        else:
            self.answer(b"{}", "application/json")

    def ran(self, body: dict[str, Any]) -> None:
        if body.get("text") == "":
            said = {"code": "empty-text", "message": "the text is empty", "remedy": "Give a text of some tokens."}
            self.answer(json.dumps({"error": said}).encode(), "application/json", 422)
        else:
            words = [WORDS[i] for i in body["ids"]] if "ids" in body else body["text"].split("|")
            self.answer(written(words), "application/octet-stream")

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for at in (1, 2):
            said = json.dumps({"id": at, "text": WORDS[at], "stages": []})
            self.wfile.write(f"event: token\ndata: {said}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"event: done\ndata: {}\n\n")

    def answer(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(browser: Browser) -> Iterator[Any]:
    """Tabs of a page that a stand-in serves; at the end nothing was asked of any other machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    Asked.posts.clear()
    tabs: list[Watched] = []

    def open_tab(state: str = "") -> Watched:
        tabs.append(Watched(browser, 1280, 900, "light"))
        tabs[-1].go(f"http://127.0.0.1:{server.server_port}/{state}")
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.close()
        assert tab.requests == []
        assert [fault for fault in tab.faults if "422" not in fault] == []
    server.shutdown()
    thread.join()
    server.server_close()


def answered(tab: Watched, count: int) -> None:
    """Wait until this many requests were made, and all are answered."""
    for _ in range(200):
        if len(Asked.posts) >= count:
            break
        tab.page.wait_for_timeout(20)
    assert len(Asked.posts) >= count, Asked.posts
    tab.wait("!document.querySelector('.notice').textContent")


def tokens(tab: Watched) -> list[str]:
    return [shown.replace("␣", " ").replace("⏎", "\n") for shown in tab.page.locator(".token").all_inner_texts()]


def test_a_text_is_run_and_two_tabs_have_sessions_of_their_own(served: Any) -> None:
    first, second = served(), served()
    for tab, text in ((first, "One| two"), (second, "Three| four| five")):
        tab.page.get_by_label("A text of your own").fill(text)
        tab.page.get_by_role("button", name="Run").click()
        tab.wait(f"document.querySelectorAll('.token').length === {len(text.split('|'))}")
    assert tokens(first) == ["One", " two"]
    assert tokens(second) == ["Three", " four", " five"]
    (_, one, session, _), (_, two, other, _) = Asked.posts
    assert one == two == "the token"
    assert session != other


def test_an_error_of_the_server_is_shown_with_its_remedy(served: Any) -> None:
    tab = served()
    tab.page.get_by_label("A text of your own").fill("")
    tab.page.get_by_role("button", name="Run").click()
    tab.page.wait_for_selector("[role=alert] .fault")
    assert tab.page.locator(".fault").inner_text().startswith("the text is empty Give a text of some tokens.")
    assert tokens(tab) == WORDS


def test_a_token_is_drawn_appended_and_gone_back_from(served: Any) -> None:
    tab = served("#prediction?temperature=0.5&seed=3")
    tab.page.get_by_role("button", name="Draw", exact=True).click()
    tab.page.get_by_role("button", name="Append it").click()
    tab.wait(f"document.querySelectorAll('.token').length === {len(WORDS) + 1}")
    assert tokens(tab) == [*WORDS, WORDS[7]]
    sampled, run = Asked.posts
    assert sampled[3] == {
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 1,
        "repetition_penalty": 1,
        "frequency_penalty": 0,
        "seed": 3,
    }
    assert run[3] == {"ids": [*range(len(WORDS)), 7]}
    tab.page.locator(".token").nth(3).click()
    tab.page.get_by_role("button", name="Go back to").click()
    tab.wait("document.querySelectorAll('.token').length === 4")
    tab.page.locator(".draw .controls button").filter(has_text="…").first.click()
    tab.wait(f"document.querySelectorAll('.token').length === {len(WORDS)}")


def test_a_continuation_is_streamed_and_then_run(served: Any) -> None:
    tab = served("#prediction")
    tab.page.get_by_role("button", name="Continue by 20 tokens").click()
    tab.wait(f"document.querySelectorAll('.token').length === {len(WORDS) + 2}")
    assert tokens(tab) == [*WORDS, *WORDS[1:3]]


def test_queries_and_keys_that_the_page_lacks_are_asked_for(served: Any) -> None:
    tab = served("#attention?layer=1&head=1&q=5")
    tab.page.wait_for_selector("text=divides its attention")
    assert {post[3]["name"] for post in Asked.posts} == {"blocks.1.attn.ckpt_q", "blocks.1.attn.ckpt_k"}
    assert len(Asked.posts) == 2
    found = numbers(written())
    products = found["attention.k"][1, :, 1].astype("f8") @ found["attention.q"][1, 5, 1].astype("f8")
    rows = rows_of(tab, "How ‘␣was’ divides its attention")[1:]
    assert [float(row[2]) for row in rows] == pytest.approx(products.tolist(), rel=1e-9)


def test_neurons_that_the_page_lacks_are_asked_for(served: Any) -> None:
    tab = served("#neurons?layer=1&neuron=3&q=5")
    answered(tab, 6)
    rows = rows_of(tab, "Neuron 1.3 along the text")
    found = numbers(written())
    before, after = (found[f"atlas.blocks.1.mlp.ckpt_{name}"].astype(float) for name in ("pre", "post"))
    assert rows[0][2:] == ["mlp.ckpt_pre", "mlp.ckpt_post"]
    assert [[float(cell) for cell in row[2:]] for row in rows[1:]] == np.stack([before, after], -1)[:, 3].tolist()
    strong = rows_of(tab, "The strongest neurons at ‘␣was’")[1:]
    post = np.stack([found[f"atlas.blocks.{layer}.mlp.ckpt_post"][5] for layer in (0, 1)]).astype(float)
    assert [float(row[2]) for row in strong] == sorted(post.ravel(), key=abs, reverse=True)
    asked = {(post[3]["name"], str(post[3].get("pos"))) for post in Asked.posts}
    assert len(asked) == len(Asked.posts)  # nothing is asked for twice


def test_an_example_is_run_where_what_is_asked_later_is_answered(served: Any) -> None:
    tab = served()
    tab.page.get_by_label("Start from").select_option("cat")
    tab.wait("document.querySelectorAll('.token').length === 2")
    assert [(post[0], post[3]) for post in Asked.posts] == [("/api/run", {"text": "A| cat"})]


def test_vectors_of_any_checkpoint_and_their_map_are_asked_for(served: Any) -> None:
    name = "blocks.1.attn.ckpt_z"
    tab = served(f"#embeddings?place={name}&shade=norm")
    answered(tab, 1)
    head, *rows = rows_of(tab, f"Principal components of {name}")
    assert [[float(cell) for cell in row[2:5]] for row in rows] == [
        [i * 1.5, i * 1.5 + 1, i * 1.5 + 2] for i in range(9)
    ]
    assert [float(row[head.index("norm")]) for row in rows] == [2.0 + i for i in range(9)]
    tab.page.get_by_role("combobox", name="Place by").select_option("tsne")
    tab.page.get_by_role("spinbutton", name="Seed").fill("7")
    tab.page.get_by_role("spinbutton", name="Seed").press("Enter")
    answered(tab, 3)
    head, *rows = rows_of(tab, f"t-SNE of {name}")
    assert head[2:4] == ["tsne1", "tsne2"]
    assert [float(row[3]) for row in rows] == [i * 1.5 + 1 for i in range(9)]
    asked = [(post[0], post[3]) for post in Asked.posts]
    # Nine tokens have at most a perplexity of (9 - 1) / 3; the field takes whole numbers.
    mapped = [{"name": name, "perplexity": 2, "seed": seed} for seed in (0, 7)]
    assert asked == [("/api/pca", {"name": name}), *(("/api/tsne", each) for each in mapped)]
