"""page: names show as text, a page is one whole file, and nothing else is ever replaced by one."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import Chromium

from rn50feat.errors import PageError
from rn50feat.pages.page import escape, page, save, style, target


class Text(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>alert(1)</script>.png", "<script>alert(1)</script>.png"),
        ("\"quoted\" & 'so' &lt;.png", "\"quoted\" & 'so' &lt;.png"),
        ("line\nbreak\t\r\x00\x1b[31m.png", r"line\nbreak\t\r\x00\x1b[31m.png"),
        ("photo\u202egpj.exe\u2066\u200f\u061c", r"photo\u202egpj.exe\u2066\u200f\u061c"),
        ("C1\x9b, soft\xad, none\u200b, lines\u2028\u2029", r"C1\u009b, soft\u00ad, none\u200b, lines\u2028\u2029"),
        (os.fsdecode(b"\xff\xfe.png"), r"\xff\xfe.png"),
        ("\ud800 alone", r"\ud800 alone"),
        (r"back\xff", r"back\\xff"),
        ("naïve Привет שלום 写真 👩‍💻 \xa0", "naïve Привет שלום 写真 👩‍💻 \xa0"),
    ],
)
def test_names_show_as_text(name: str, shown: str) -> None:
    source = f'<p title="{escape(name)}">{escape(name)}</p>'
    assert Text(source).tags == ["p"]
    assert Text(source).text == shown
    source.encode()


def test_a_page_lets_in_its_own_style_and_nothing_else() -> None:
    source = "".join(page("<b>Title", ["<p>one</p>", "<p>two</p>"], facts=[("k", "<i>3")], css="p { margin: 0 }"))
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', source)[1]
    sheet = re.search(r"<style>(.*?)</style>", source, re.DOTALL)[1]
    assert sheet == style("page.css") + "p { margin: 0 }"
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}';")
    assert re.search(r"<title>(.*?)</title>", source)[1] == "&lt;b&gt;Title"
    assert '<dl class="facts">\n<div><dt>k</dt><dd>&lt;i&gt;3</dd></div>\n</dl>' in source
    assert '<main id="content" tabindex="-1">\n<p>one</p><p>two</p></main>' in source
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert "facts" not in re.sub("<style>.*</style>", "", "".join(page("Title", [])), flags=re.DOTALL)


def test_a_page_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.html"
    save(path, ["old"])

    def breaking() -> Iterator[str]:
        yield "new"
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(path, breaking())
    assert path.read_text() == "old"
    save(path, ["new", "er\n"])
    assert path.read_bytes() == b"newer\n"
    assert os.listdir(tmp_path) == ["results.html"]


def test_a_page_behind_a_link_is_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.html").symlink_to("sub/real.html")
    save(tmp_path / "link.html", ["page"])
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "sub/real.html").read_text() == "page"


def test_nothing_but_a_page_is_replaced(tmp_path: Path) -> None:
    for name, content in {"out.h5": b"rows", "coast.jpg": b"picture"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PageError, match=f"{name} does not end in .html: name the page"):
            save(tmp_path / name, ["page"])
        assert (tmp_path / name).read_bytes() == content
    (tmp_path / "folder.html").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "device.html").symlink_to("/dev/null")
    for name in ("folder.html", "pipe.html", "device.html"):
        with pytest.raises(PageError, match=f"{name} is not a regular file: name another"):
            target(tmp_path / name)


def test_a_page_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PageError, match="there is no folder .*/none: create it, or name another"):
        target(tmp_path / "none/results.html")
    with pytest.raises(PageError, match=r"cannot be written \(File name too long\)"):
        save(tmp_path / ("a" * 300 + ".html"), ["page"])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PageError, match=r"results.html cannot be written \(Permission denied\): name a file in"):
        target(tmp_path / "results.html")
    assert os.listdir(tmp_path) == []


def test_a_browser_runs_and_fetches_nothing(tmp_path: Path, chromium: Chromium) -> None:
    """Even where a name had not been escaped: the content security policy stands behind it."""
    outside = "http://127.0.0.1:9/x"
    hostile = f"""<script>document.title = "run"</script><script src="{outside}.js"></script>
        <img src="{outside}.png" onerror="document.title = 'run'"><p style="background: url({outside}.gif)">text</p>
        <link rel="stylesheet" href="{outside}.css"><iframe src="{outside}.html"></iframe>"""
    save(tmp_path / "hostile.html", page("Title", [hostile]))
    chromium.open(tmp_path / "hostile.html")
    assert chromium.evaluate("document.title") == "Title"
    assert chromium.requests() == [(tmp_path / "hostile.html").as_uri()]
    assert len(chromium.complaints()) >= 6
    save(tmp_path / "plain.html", page("Title", ["<p>text</p>"]))
    chromium.open(tmp_path / "plain.html")
    assert chromium.complaints() == []
    assert chromium.evaluate("getComputedStyle(document.body).maxWidth") == "1280px"


def test_the_keyboard_reaches_the_content_first(tmp_path: Path, chromium: Chromium) -> None:
    save(tmp_path / "page.html", page("Title", ['<p><a href="#x">link</a></p>']))
    chromium.open(tmp_path / "page.html")
    chromium.press("Tab")
    assert chromium.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert chromium.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    chromium.press("Enter")
    chromium.press("Tab")
    assert chromium.evaluate("document.activeElement.textContent") == "link"
    assert chromium.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
