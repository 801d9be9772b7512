"""Whether HTML is well formed, for every page that the tests look at."""

from __future__ import annotations

from html.parser import HTMLParser


class Balanced(HTMLParser):
    """Fails on tags that are closed in another order than they were opened."""

    void = frozenset({"meta", "link", "br", "rect", "img", "source"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag, tag


def balanced(html: str) -> bool:
    parser = Balanced()
    parser.feed(html)
    return not parser.open
