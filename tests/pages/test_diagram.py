"""diagram: the page of a network is whole, and says in words what it draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import Chromium
from click.testing import Result

from rn50feat.model.structure import structure
from rn50feat.model.variants import VARIANTS
from rn50feat.pages import diagram, page


class Page(HTMLParser):
    """What a screen reader would hear of a page, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.roles: list[str | None] = []
        self.tags: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        held = dict(attributes)
        self.tags[tag] += 1
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        if "id" in held:
            self.ids.append(held["id"] or "")
        self.named += [held[name] or "" for name in ("aria-labelledby", "aria-describedby") if name in held]
        if tag == "svg":
            self.roles.append(held.get("role"))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", VARIANTS)
def test_the_page_is_whole_and_says_in_words_what_it_draws(name: str) -> None:
    found = structure(VARIANTS[name])
    text = "".join(diagram.pieces(found))
    heard = Page(text)
    assert heard.open == []
    assert len(heard.ids) == len(set(heard.ids))
    assert set(heard.named) <= set(heard.ids)
    assert set(heard.roles) == {"img"}
    assert heard.tags["script"] == 0
    assert heard.tags["title"] == heard.tags["svg"] + 1
    assert heard.tags["desc"] == heard.tags["svg"] == (9 if name != "slim" else 12)
    for block in found.blocks:
        assert all(f">{layer.name}</th>" in text for layer in block.layers)
    assert f"{found.parameters:,}" in text
    assert f"{found.multiply_adds / 1e9:.3f} G" in text


def test_model_html_writes_a_page_and_nothing_else(here: Callable[..., Result], tmp_path: Path) -> None:
    done = here("model", "--html", "network.html")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "network.html: figures of torchvision resnet50\n")
    assert (tmp_path / "network.html").read_text() == "".join(diagram.pieces(structure(VARIANTS["torchvision"])))
    wrong = here("model", "--html", "missing/network.html")
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (1, 1)


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_browser_shows_the_page_whole(chromium: Chromium, tmp_path: Path, width: int) -> None:
    path = tmp_path / "slim.html"
    page.save(path, diagram.pieces(structure(VARIANTS["slim"])))
    chromium.open(path, width=width)
    chromium.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert chromium.complaints() == []
    assert chromium.requests() == [path.as_uri()]
    spoken = chromium.spoken()
    drawn = [name for role, name in spoken if role == "image"]
    assert len(drawn) == 12
    assert "conv2_x, block 3: bottleneck with identity shortcut" in drawn
    assert ("columnheader", "role of a 1×1") in spoken
