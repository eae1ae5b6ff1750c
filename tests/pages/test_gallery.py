"""gallery: pages on which every picture is seen, whatever it is called and whatever it holds."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from chromium import Chromium
from conftest import Run
from PIL import Image
from scenes import encoded, scene

from rn50feat import FeatureStore
from rn50feat.engines.contract import EngineOptions
from rn50feat.pages.gallery import groups_page, search_page
from rn50feat.pages.page import save
from rn50feat.searching.groups import Group, GroupImage
from rn50feat.searching.search import Hit, Result, search_stored

ONE = EngineOptions(workers=1)

NAMES = {  # and how they are shown
    "<script>document.title = 1<&script>.png": "<script>document.title = 1<&script>.png",
    "quote\"' onerror='x.png": "quote\"' onerror='x.png",
    "line\nbreak\t\x1b.png": r"line\nbreak\t\x1b.png",
    "photo\u202egpj.exe.png": r"photo\u202egpj.exe.png",
    "100% #1?.png": "100% #1?.png",
    "שלום 🦜.png": "שלום 🦜.png",
    "long" * 50 + ".png": "long" * 50 + ".png",
    os.fsdecode(b"\xff\xfe.png"): r"\xff\xfe.png",
}


@dataclass
class Figure:
    """What a page shows of one picture."""

    alt: str = ""
    href: str = ""
    picture: bytes = b""
    text: str = ""


class Page(HTMLParser):
    """The headings and figures of a page."""

    def __init__(self, pieces: Iterator[str]) -> None:
        super().__init__()
        self.source = "".join(pieces)
        self.figures: list[Figure] = []
        self.headings: list[str] = []
        self._inside: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert tag != "script"
        assert not [name for name in values if name.startswith("on") or name == "style"]
        self._inside.append(tag)
        if tag == "figure":
            self.figures.append(Figure())
        elif tag in ("h1", "h2"):
            self.headings.append("")
        elif tag == "img":
            self.figures[-1].alt = values["alt"]
            self.figures[-1].picture = base64.b64decode(values["src"].removeprefix("data:image/jpeg;base64,"))
        elif tag == "a" and "figure" in self._inside:
            self.figures[-1].href = values["href"]

    def handle_endtag(self, tag: str) -> None:
        while self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "figure" in self._inside:
            self.figures[-1].text += data
        elif self._inside and self._inside[-1] in ("h1", "h2"):
            self.headings[-1] += data


@pytest.fixture
def odd(tmp_path: Path) -> list[Hit]:
    """Hits of all kinds: odd names, pictures that are gone, changed, broken, tall, wide and tiny."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    shapes = {"tall.png": (60, 400), "wide.png": (700, 90), "tiny.png": (2, 2), "page.html": (30, 30)}
    names = [*NAMES, "gone.png", "changed.png", "broken.png", *shapes]
    for i, name in enumerate(names):
        image = Image.new("RGB", shapes.get(name, (48, 36)), (20 * i % 256, 99, 200))
        (folder / name).write_bytes(b"text" if name == "broken.png" else encoded(image, "PNG"))
    (folder / "gone.png").unlink()
    hits = [Hit(i, 1.07 - 0.07 * i, f"a folder/{n}", str(folder / n), i) for i, n in enumerate(names, 1)]
    states = {"gone.png": "missing", "changed.png": "changed"}
    return [replace(hit, state=states.get(os.path.basename(hit.path), "present")) for hit in hits]


def searched(store: FeatureStore, hits: list[Hit], metric: str = "cosine") -> Iterator[str]:
    result = Result(hits[0].path, tuple(hits))
    return search_page([result], [hits[0].location], store, k=len(hits), metric=metric, options=ONE)


def words(figure: Figure) -> str:
    return " ".join(figure.text.split())


def test_a_query_is_shown_beside_its_hits(store: FeatureStore) -> None:
    results = search_stored(["pictures/red.png", "pictures/white.png"], store, k=2)
    locations = [store.locate(result.query) for result in results]
    page = Page(search_page(results, locations, store, k=2, metric="cosine", options=ONE))
    assert page.headings == ["Similar images in out.h5", "Query 1", "Query 2"]
    assert [(figure.alt, words(figure)) for figure in page.figures] == [
        ("query 1: pictures/red.png", "pictures/red.png"),
        ("hit 1: pictures/red.png", "hit 1 score 1.0000 pictures/red.png"),
        ("hit 2: pictures/white.png", "hit 2 score 0.5774 pictures/white.png"),
        ("query 2: pictures/white.png", "pictures/white.png"),
        ("hit 1: pictures/white.png", "hit 1 score 1.0000 pictures/white.png"),
        ("hit 2: pictures/z.png", "hit 2 score 0.9901 pictures/z.png"),
    ]
    colors = [Image.open(io.BytesIO(figure.picture)).getpixel((9, 9)) for figure in page.figures]
    red, white, grey = (254, 0, 0), (255, 255, 255), (96, 96, 128)
    assert all(
        abs(a - b) < 4
        for color, wanted in zip(colors, [red, red, white, white, white, grey])
        for a, b in zip(color, wanted)
    )
    for fact in (
        f"{store.path}, 5 images",
        "random:0 (SHA-256 fafafafa…)",
        "cosine, 1 for the same direction",
        "at most 2 for each query",
        "The weights are random: good for trying things out, not for results.",
        '<rect width="57.74%"',
    ):
        assert fact in page.source
    assert page.source.count("</section>") == 2


def test_the_same_search_gives_the_same_page(store: FeatureStore, odd: list[Hit]) -> None:
    assert "".join(searched(store, odd)) == "".join(searched(store, odd))


def test_every_name_shows_as_text_and_links_to_its_file(store: FeatureStore, odd: list[Hit]) -> None:
    query, *figures = Page(searched(store, odd)).figures
    assert query.alt == f"query: a folder/{next(iter(NAMES))}"
    for hit, figure, shown in zip(odd, figures, NAMES.values()):
        assert figure.alt == f"hit {hit.rank}: a folder/{shown}"
        assert figure.text.split("\n")[-3] == f"a folder/{shown}"
        url = urlsplit(figure.href)
        assert (url.scheme, url.netloc, url.query, url.fragment) == ("file", "", "", "")
        assert unquote_to_bytes(url.path) == os.fsencode(hit.location)


def test_what_is_not_as_it_was_is_marked(store: FeatureStore, odd: list[Hit]) -> None:
    figures = {os.path.basename(hit.path): figure for hit, figure in zip(odd, Page(searched(store, odd)).figures[1:])}
    gone, changed, broken, html = (figures[name] for name in ("gone.png", "changed.png", "broken.png", "page.html"))
    assert words(gone).startswith("The file has vanished hit 9 score 0.4400 missing: the file is gone")
    assert "changed: the file has changed since it was extracted" in words(changed)
    assert changed.alt == "hit 10, changed: a folder/changed.png"
    assert words(broken).startswith("The file is not an image in a format that Pillow reads hit 11")
    assert html.picture  # a picture, but a browser would take it for a page
    assert (gone.href, broken.href, html.href) == ("", "", "")
    assert figures["tall.png"].href.endswith("/a%20folder/tall.png")


def test_a_file_that_is_named_like_a_member_is_linked_and_a_member_is_not(store: FeatureStore, tmp_path: Path) -> None:
    picture = encoded(Image.new("RGB", (48, 36)), "PNG")
    (tmp_path / "::weird.tar::x.png").write_bytes(picture)
    (tmp_path / "x.png").write_bytes(picture)
    with tarfile.open(tmp_path / "real.tar", "w") as archive:
        archive.add(tmp_path / "x.png", "x.png")
    names = ["::weird.tar::x.png", "real.tar::x.png"]
    hits = [Hit(i, 0.5, name, str(tmp_path / name), i) for i, name in enumerate(names, 1)]
    page = Page(searched(store, hits))
    assert all(figure.picture for figure in page.figures)
    assert [figure.href for figure in page.figures[1:]] == [(tmp_path / names[0]).as_uri(), ""]
    assert page.source.count('<span class="frame"><img') == 1


@pytest.mark.parametrize(("metric", "widths"), [("l2", ["50.00", "100.00"]), ("ip", ["50.00", "100.00"])])
def test_bars_of_other_metrics_are_filled_by_the_largest(store: FeatureStore, metric: str, widths: list[str]) -> None:
    hits = [Hit(1, 40.0, "a", "/a", 0), Hit(2, 80.0, "b", "/b", 1)]
    source = "".join(searched(store, hits, metric))
    assert [f'<rect width="{width}%"' in source for width in widths] == [True, True]
    assert "".join(searched(store, [replace(hits[0], score=0.0)], metric)).count('<rect width="0.00%"') == 1


def test_a_page_of_ten_hits_is_small(store: FeatureStore, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(scene(3, 1600, 1200), quality=95))
    hits = [Hit(i, 0.5, photo.name, str(photo), i) for i in range(1, 11)]
    result = Result(photo.name, tuple(hits))
    source = "".join(search_page([result], [str(photo)], store, k=10, metric="cosine", options=ONE))
    assert source.count("data:image/jpeg") == 11
    assert 50_000 < len(source) < 500_000


def members(store: FeatureStore) -> list[GroupImage]:
    found = ("red", "white", "z")
    paths = [f"pictures/{name}.png" for name in found]
    return [GroupImage(path, store.locate(path), i, 1_234_567, 1 - i / 100, i == 1) for i, path in enumerate(paths)]


def test_groups_are_shown_with_what_makes_them_one(store: FeatureStore) -> None:
    page = Page(groups_page([Group(tuple(members(store)))], store, threshold=0.9, options=ONE))
    assert page.headings == ["Near-identical images in out.h5", "Group 1: 3 images"]
    assert [(figure.alt, words(figure)) for figure in page.figures] == [
        ("group 1, image 1: pictures/red.png", "largest 1,235 kB pictures/red.png"),
        (
            "group 1, image 2: pictures/white.png",
            "similarity 0.9900 1,235 kB the same bytes as the first pictures/white.png",
        ),
        ("group 1, image 3: pictures/z.png", "similarity 0.9800 1,235 kB pictures/z.png"),
    ]
    assert "a cosine of at least 0.9 with the first image of the group" in page.source
    assert "1 group, 3 images in all." in page.source
    assert "No near-identical images." in "".join(groups_page([], store, threshold=0.9, options=ONE))


def test_groups_come_as_they_are_needed(store: FeatureStore) -> None:
    taken = []

    def stream() -> Iterator[Group]:
        for i in range(300):
            taken.append(i)
            yield Group(tuple(members(store)[:2]))

    pieces = groups_page(stream(), store, threshold=0.9, options=ONE)
    shown = 0
    for piece in pieces:
        shown += piece.count("<section")
        assert len(taken) <= shown + 3
    assert shown == 300


def test_search_writes_a_page_beside_its_results(rn50feat: Run, store: FeatureStore) -> None:
    arguments = ("search", "--stored", "pictures/red.png", "-k", "3")
    plain = rn50feat(*arguments)
    done = rn50feat(*arguments, "--html", "results.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, plain.stderr)
    source = (store.path.parent / "results.html").read_text()
    assert [figure.alt for figure in Page(iter([source])).figures][:2] == [
        "query: pictures/red.png",
        "hit 1: pictures/red.png",
    ]
    shutil.rmtree(store.path.parent / "pictures")
    assert rn50feat(*arguments, "--json", RN50FEAT_HTML="results.html").returncode == 0
    gone = (store.path.parent / "results.html").read_text()
    assert gone.count("The file has vanished") == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pictures/red.png", "Error: pictures/red.png does not end in .html: name the page to write"),
        ("out.h5", "Error: out.h5 does not end in .html"),
        ("no/such/folder/results.html", "Error: no/such/folder/results.html cannot be written: there is no folder"),
        ("a" * 300 + ".html", f"Error: {'a' * 300}.html cannot be written (File name too long): name a file in"),
    ],
)
def test_a_page_that_cannot_be_written_is_an_error_of_one_line(
    rn50feat: Run, store: FeatureStore, name: str, message: str
) -> None:
    before = {path: path.read_bytes() for path in store.path.parent.rglob("*.*") if path.is_file()}
    done = rn50feat("search", "--stored", "pictures/red.png", "--html", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(message)
    assert {path: path.read_bytes() for path in store.path.parent.rglob("*.*") if path.is_file()} == before


CONTRAST = """
(() => {
  const light = text => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    const part = v => v <= 10.31475 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    return a ? 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) : null;
  };
  const ground = e => e ? light(getComputedStyle(e).backgroundColor) ?? ground(e.parentElement) : 1;
  const texts = [...document.querySelectorAll("body *")].filter(
    e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  return Math.min(...texts.map(e => {
    const [a, b] = [light(getComputedStyle(e).color), ground(e)].sort((x, y) => x - y);
    return (b + 0.05) / (a + 0.05);
  }));
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_browser_shows_it_all(
    store: FeatureStore, odd: list[Hit], tmp_path: Path, chromium: Chromium, width: int, dark: bool
) -> None:
    path = tmp_path / "results.html"
    save(path, searched(store, odd))
    chromium.open(path, width=width, dark=dark)
    assert chromium.complaints() == []
    assert chromium.requests() == [path.as_uri()]
    assert chromium.evaluate("document.title") == "Similar images in out.h5"
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert chromium.evaluate("[...document.images].filter(i => i.naturalWidth > 0).length") == len(odd) + 1 - 2
    assert chromium.evaluate(CONTRAST) >= 4.5  # WCAG 2, AA
    ground = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(21, 21, 23)" if dark else "rgb(247, 247, 246)")
    boxes = chromium.evaluate(
        "[...document.querySelectorAll('.frame')].map(f => f.getBoundingClientRect())"
        ".map(b => Math.round(100 * b.width / b.height))"
    )
    assert set(boxes) <= {132, 133, 134}  # tall pictures do not burst their frames
    shown = chromium.evaluate("document.querySelector('.cards .path').innerText")
    assert shown == "a folder/<script>document.title = 1<&script>.png"


def test_a_screen_reader_is_told_what_there_is(
    store: FeatureStore, odd: list[Hit], tmp_path: Path, chromium: Chromium
) -> None:
    path = tmp_path / "results.html"
    results = [Result(odd[0].path, tuple(odd)), Result(odd[1].path, ())]
    locations = [odd[0].location, odd[1].location]
    save(path, search_page(results, locations, store, k=20, metric="cosine", options=ONE))
    chromium.open(path)
    spoken = chromium.spoken()
    roles = [role for role, _ in spoken]
    assert [roles.count(role) for role in ("banner", "main", "navigation")] == [1, 1, 1]
    assert [name for role, name in spoken if role == "heading"] == ["Similar images in out.h5", "Query 1", "Query 2"]
    assert [name for role, name in spoken if role == "region"] == ["Query 1", "Query 2"]
    assert ("list", "Hits of query 1") in spoken
    pictures = [name for role, name in spoken if role == "image"]
    links = [name for role, name in spoken if role == "link"]
    assert "hit 1: a folder/<script>document.title = 1<&script>.png" in pictures
    assert "hit 1: a folder/<script>document.title = 1<&script>.png" in links
    assert len(pictures) == len(odd)
    assert all(pictures)
    assert all(links)


def test_groups_in_a_browser(store: FeatureStore, tmp_path: Path, chromium: Chromium) -> None:
    path = tmp_path / "groups.html"
    save(path, groups_page([Group(tuple(members(store)))] * 7, store, threshold=0.9, options=ONE))
    for width in (320, 390, 1280):
        for dark in (False, True):
            chromium.open(path, width=width, dark=dark)
            assert chromium.complaints() == []
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
            assert chromium.evaluate(CONTRAST) >= 4.5
    assert [role for role, _ in chromium.spoken()].count("region") == 7
