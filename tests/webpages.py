"""Parse a page of images: its headings, figures and links."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser


@dataclass
class Figure:
    """What a page shows of one picture, small, and its file's address."""

    name: str
    alt: str = ""
    href: str = ""
    picture: bytes = b""
    text: str = ""
    path: str = ""


class Page(HTMLParser):
    """The headings and figures of a page, and the places that its links lead to."""

    def __init__(self, pieces: Iterator[str]) -> None:
        super().__init__()
        self.source = "".join(pieces)
        self.figures: list[Figure] = []
        self.headings: list[str] = []
        self.targets: list[str] = []
        self._inside: list[tuple[str, str]] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert tag != "script"
        assert not [name for name in values if name.startswith("on") or name == "style"]
        if tag in ("meta", "wbr", "img"):
            self._image(values) if tag == "img" else None
            return
        self._inside.append((tag, values.get("class", "")))
        if tag == "figure":
            self.figures.append(Figure(values["id"]))
        elif tag in ("h1", "h2"):
            self.headings.append("")
        elif tag == "a" and values["href"].startswith("#"):
            self.targets.append(values["href"][1:])
        elif tag == "a":
            self.figures[-1].href = values["href"]

    def _image(self, values: dict[str, str]) -> None:
        if values.get("class") == "whole":  # which only a large one shows
            assert (values["loading"], values["alt"]) == ("lazy", "")
        else:
            self.figures[-1].alt = values["alt"]
            self.figures[-1].picture = base64.b64decode(values["src"].removeprefix("data:image/jpeg;base64,"))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        classes = {name for _, name in self._inside}
        if "figure" in {tag for tag, _ in self._inside} and not classes & {"close", "large"}:
            self.figures[-1].text += data
            self.figures[-1].path += data if "path" in classes else ""
        elif self._inside and self._inside[-1][0] in ("h1", "h2"):
            self.headings[-1] += data
