"""Reads a page as a browser would, far enough to be tested without one."""

import re
from html.parser import HTMLParser

_VOID = frozenset(("meta", "link", "br", "hr", "img", "input"))


class Page(HTMLParser):
    """What stands in a page.

    Attributes:
      ids: every id, in order.
      links: every href and src.
      headings: (level, text) in order.
      classes: text of the elements of each class, tags left out.
      labels: every aria-label.
      tags: how often each element occurs.
      unclosed: elements that are open at the end.
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.classes: dict[str, list[str]] = {}
        self.labels: list[str] = []
        self.tags: dict[str, int] = {}
        self.unclosed: list[str] = []
        self._open: list[tuple[str, list[str], list[str]]] = []
        self.feed(html)
        self.close()
        self.unclosed = [tag for tag, _, _ in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.ids += [given["id"]] if "id" in given else []
        self.labels += [given["aria-label"]] if "aria-label" in given else []
        self.links += [given[n] for n in ("href", "src", "xlink:href") if n in given]
        if tag not in _VOID:
            self._open.append((tag, given.get("class", "").split(), []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def handle_endtag(self, tag: str) -> None:
        name, classes, text = self._open.pop()
        assert name == tag, f"</{tag}> ends <{name}>"
        content = " ".join("".join(text).split())
        for found in classes:
            self.classes.setdefault(found, []).append(content)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), content))
