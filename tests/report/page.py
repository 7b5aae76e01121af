"""Reading a page as a person would: what stands in it, and what it would fetch."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """The visible text of an HTML page, its tags, and its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self.styles: list[str] = []
        self.feed(html)
        self.close()

    @property
    def text(self) -> str:
        """The text with single spaces."""
        return " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        (self.styles if self.tags and self.tags[-1] == "style" and not self.styles else self.pieces).append(data)
