"""gallery: pages on which every picture is seen, whatever it is called and whatever it holds."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from chromium import Chromium
from conftest import Run
from PIL import Image
from scenes import encoded, scene
from webpages import Figure, Page

from rn50feat import FeatureStore
from rn50feat.engines.contract import EngineOptions
from rn50feat.pages import gallery
from rn50feat.pages.gallery import groups_page, search_page
from rn50feat.pages.page import save
from rn50feat.searching.groups import Group, GroupImage, Groups, Pair, PairImage
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


def searched(
    store: FeatureStore, hits: list[Hit], metric: str = "cosine", out: str = "/x/y/page.html"
) -> Iterator[str]:
    result = Result(hits[0].path, tuple(hits))
    return search_page([result], [hits[0].location], store, out=Path(out), k=len(hits), metric=metric, options=ONE)


def words(figure: Figure) -> str:
    return " ".join(figure.text.split())


def test_the_part_that_was_searched_with_is_told(store: FeatureStore) -> None:
    (result,) = search_stored(["pictures/red.png"], store, k=1)
    page = search_page([result], [""], store, out=Path("page.html"), k=1, metric="l2", box=(3, 4, 20, 10), options=ONE)
    assert "<dt>part</dt><dd>20×10 pixels of each query image, from 3,4 on</dd>" in "".join(page)


def test_a_query_is_shown_beside_its_hits(store: FeatureStore) -> None:
    results = search_stored(["pictures/red.png", "pictures/white.png"], store, k=2)
    locations = [store.locate(result.query) for result in results]
    page = Page(search_page(results, locations, store, out=Path("page.html"), k=2, metric="cosine", options=ONE))
    assert page.headings == ["Similar images in out.h5", "Query 1", "Query 2"]

    def size(name: str) -> str:
        return f"size {store.path.with_name('pictures').joinpath(f'{name}.png').stat().st_size} bytes"

    assert [(figure.alt, words(figure)) for figure in page.figures] == [
        ("query 1: pictures/red.png", f"{size('red')} pixels 40×30 pictures/red.png"),
        ("hit 1: pictures/red.png", f"hit 1 score 1.000000 {size('red')} pixels 40×30 pictures/red.png"),
        ("hit 2: pictures/white.png", f"hit 2 score 0.577350 {size('white')} pixels 40×30 pictures/white.png"),
        ("query 2: pictures/white.png", f"{size('white')} pixels 40×30 pictures/white.png"),
        ("hit 1: pictures/white.png", f"hit 1 score 1.000000 {size('white')} pixels 40×30 pictures/white.png"),
        ("hit 2: pictures/z.png", f"hit 2 score 0.990148 {size('z')} pixels 40×30 pictures/z.png"),
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
        "from 0.577350, the lowest score, to 1.000000",
        '<rect width="0.00%"',
        '<rect width="97.',
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
        assert figure.path == f"a folder/{shown}"
        url = urlsplit(figure.href)
        assert (url.scheme, url.netloc, url.query, url.fragment) == ("file", "", "", "")
        assert unquote_to_bytes(url.path) == os.fsencode(hit.location)


def test_what_is_not_as_it_was_is_marked(store: FeatureStore, odd: list[Hit]) -> None:
    figures = {os.path.basename(hit.path): figure for hit, figure in zip(odd, Page(searched(store, odd)).figures[1:])}
    gone, changed, broken, html = (figures[name] for name in ("gone.png", "changed.png", "broken.png", "page.html"))
    assert words(gone).startswith("The file has vanished hit 9 score 0.440000 missing: the file is gone")
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
    assert page.source.count('class="whole"') == 2  # the query and the first hit


@pytest.mark.parametrize(("metric", "full"), [("l2", 50), ("cosine", 20)])
def test_bars_start_at_the_lowest_score_shown(store: FeatureStore, metric: str, full: int) -> None:
    hits = [Hit(i, score, "a", "/a", i) for i, score in enumerate((-0.25, 0.0, 0.25))]
    source = "".join(searched(store, hits, metric))
    assert re.findall(r'<rect width="(.*?)%', source) == [f"{i * full}.00" for i in range(3)]
    assert '<rect width="100.00%"' in "".join(searched(store, hits[:1], "l2"))


def test_a_page_of_ten_hits_is_small(store: FeatureStore, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(scene(3, 1600, 1200), quality=95))
    hits = [Hit(i, 0.5, photo.name, str(photo), i) for i in range(1, 11)]
    result = Result(photo.name, tuple(hits))
    source = "".join(
        search_page([result], [str(photo)], store, out=tmp_path / "p.html", k=10, metric="cosine", options=ONE)
    )
    assert source.count("data:image/jpeg") == 11
    assert 50_000 < len(source) < 500_000


def members(store: FeatureStore) -> list[GroupImage]:
    found = ("red", "white", "z")
    paths = [f"pictures/{name}.png" for name in found]
    return [
        GroupImage(path, store.locate(path), i, 1_234_567, 1 - i / 100, i == 1, kept="" if i else "first")
        for i, path in enumerate(paths)
    ]


def grouped(store: FeatureStore, groups: Groups, out: str = "/x/y/page.html") -> Iterator[str]:
    return groups_page(groups, store, out=Path(out), threshold=0.9, options=ONE)


def test_groups_are_shown_with_what_makes_them_one(store: FeatureStore) -> None:
    page = Page(grouped(store, Groups([Group(tuple(members(store)))])))
    assert page.headings == ["Near-identical images in out.h5", "Group 1: 3 images, 2.47 MB reclaimable"]
    shown = [re.sub(r"size \d+ bytes pixels 40×30", "FILE", words(figure)) for figure in page.figures]
    assert list(zip([figure.alt for figure in page.figures], shown)) == [
        ("group 1, image 1: pictures/red.png", "first FILE pictures/red.png"),
        (
            "group 1, image 2: pictures/white.png",
            "similarity 0.990000 the same bytes as the first FILE pictures/white.png",
        ),
        ("group 1, image 3: pictures/z.png", "similarity 0.980000 FILE pictures/z.png"),
    ]
    assert re.findall(r'<rect width="(.*?)%', page.source) == ["100.00", "50.00", "0.00"]
    for fact in (
        "a cosine of at least 0.9 with the first image of the group",
        "<dt>groups</dt><dd>1</dd>",
        "<dt>images</dt><dd>3</dd>",
        "<dt>reclaimable</dt><dd>2.47 MB</dd>",
    ):
        assert fact in page.source
    assert "No near-identical images." in "".join(grouped(store, Groups()))


def test_a_page_of_groups_has_contents_and_a_limit(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    three = Group(tuple(members(store)))
    page = Page(grouped(store, Groups([three, three])))
    assert [target for target in page.targets if target.startswith("title")] == ["title-1", "title-2"]
    assert "note" not in page.source.partition("Groups")[2]
    monkeypatch.setattr(gallery, "MOST_IMAGES", 5)
    pairs = [Pair(0.95, (PairImage("a", "/a", 1, 9, 2), PairImage("b", "/b", 2, 9, 3)))]
    page = Page(grouped(store, Groups([three] * 4, pairs)))
    assert len(page.figures) == 5 + 2
    assert "The page has the first 5 images, in 2 groups, and none of the other 2 groups: --csv" in page.source
    assert "<dt>images</dt><dd>12</dd>" in page.source
    assert [target for target in page.targets if target.startswith("title")] == ["title-1", "title-2", "title-2"]
    assert all(f'id="{target}"' in page.source for target in page.targets)


def test_a_page_of_many_images_has_small_ones(store: FeatureStore, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encoded(scene(3, 640, 480), quality=95))
    member = GroupImage("photos/some_name.jpg", str(photo), 1, 99, 1.0, False)
    images = [len("".join(grouped(store, Groups([Group((member,) * number)])))) / number for number in (200, 201)]
    assert images[0] > 2 * images[1]
    assert images[1] < 5_000  # so 1,000 have less than 5 MB


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


def test_an_image_opens_large_in_place(store: FeatureStore, tmp_path: Path, chromium: Chromium) -> None:
    path = tmp_path / "results.html"
    results = search_stored(["pictures/red.png"], store, k=5)
    save(path, search_page(results, [store.locate("pictures/red.png")], store, out=path, k=5, metric="cosine"))
    red = (tmp_path / "pictures/red.png").as_uri()
    for width in (390, 2560):
        chromium.open(path, width=width)
        assert chromium.requests() == [path.as_uri()]  # large images are not loaded ahead
        chromium.evaluate("document.querySelector('a.frame').click()")
        whole = "document.querySelector('figure:target .whole')"
        chromium.settle(f"{whole}.complete && {whole}.naturalWidth")
        assert chromium.evaluate(f"{whole}.naturalWidth") == 40
        assert chromium.requests() == [path.as_uri(), red]
        box = chromium.evaluate("document.querySelector('figure:target').getBoundingClientRect().toJSON()")
        assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, width, 900)
        shown = chromium.evaluate("document.querySelector('figure:target figcaption').innerText")
        assert re.search(r"date\s+20\d\d-\d\d-\d\d \d\d:\d\d UTC", shown)
        assert "Open the file" in shown
        chromium.evaluate("document.querySelector('figure:target .close').click()")
        assert chromium.evaluate("document.querySelector('figure:target')") is None
        assert chromium.complaints() == []
    cards = chromium.evaluate("document.querySelector('.cards').getBoundingClientRect().right")
    assert cards > 2400  # a wide screen is used


def test_a_path_is_copied_as_a_whole(store: FeatureStore, odd: list[Hit], tmp_path: Path, chromium: Chromium) -> None:
    save(tmp_path / "page.html", searched(store, odd))
    chromium.open(tmp_path / "page.html")
    assert chromium.evaluate("getComputedStyle(document.querySelector('figcaption .path')).userSelect") == "all"


def test_a_screen_reader_is_told_what_there_is(
    store: FeatureStore, odd: list[Hit], tmp_path: Path, chromium: Chromium
) -> None:
    path = tmp_path / "results.html"
    results = [Result(odd[0].path, tuple(odd)), Result(odd[1].path, ())]
    locations = [odd[0].location, odd[1].location]
    save(path, search_page(results, locations, store, out=path, k=20, metric="cosine", options=ONE))
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
    save(path, grouped(store, Groups([Group(tuple(members(store)))] * 7)))
    for width in (320, 390, 1280):
        for dark in (False, True):
            chromium.open(path, width=width, dark=dark)
            assert chromium.complaints() == []
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
            assert chromium.evaluate(CONTRAST) >= 4.5
    assert [role for role, _ in chromium.spoken()].count("region") == 7
