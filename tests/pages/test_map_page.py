"""map_page: a map that shows every image, whatever it is called, to everyone, without a network."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

import numpy as np
import pytest
from chromium import Chromium
from conftest import Run
from PIL import Image
from scenes import encoded

from rn50feat import FeatureStore
from rn50feat.engines.contract import EngineOptions
from rn50feat.pages import map_page as module
from rn50feat.pages.map_page import map_page, spread
from rn50feat.pages.page import save
from rn50feat.searching.map_layout import lay_out
from rn50feat.searching.map_points import Points, points

NAMES = {  # and how they are shown
    "plain_name.png": "plain_name.png",
    "<!--<script>document.title = 1.png": "<!--<script>document.title = 1.png",
    "quote\"' &amp; ${x} \\.png": "quote\"' &amp; ${x} \\\\.png",
    "line\nbreak.png": r"line\nbreak.png",
    "100% #1?.png": "100% #1?.png",
    os.fsdecode(b"\xff.png"): r"\xff.png",
    "page.html": "page.html",
}


@pytest.fixture
def odd(tmp_path: Path) -> Points:
    """Points of images with odd names, in a circle; each has the next two as its neighbours."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(encoded(Image.new("RGB", (40, 30), (30 * i, 99, 200)), "PNG"))
    count = np.arange(len(NAMES))
    xy = np.stack([np.cos(count), np.sin(count)], axis=1).astype(np.float32)
    near = np.stack([(count + 1) % len(NAMES), (count + 2) % len(NAMES), -np.ones_like(count)], axis=1)
    groups, clusters = np.where(count < 2, 1, 0), (count > 3).astype(np.int64)
    return Points([f"a folder/{name}" for name in NAMES], xy, near, groups, clusters, len(NAMES))


@pytest.fixture
def page(odd: Points, store: FeatureStore, tmp_path: Path) -> Path:
    path = tmp_path / "map.html"
    save(path, map_page(odd, store, out=path, method="pca", options=EngineOptions(workers=1)))
    return path


def data(page: Path) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def decoded(text: str, kind: str) -> list[int]:
    numbers: list[int] = np.frombuffer(base64.b64decode(text), kind).tolist()
    return numbers


def test_the_page_has_all_points_and_their_addresses(page: Path, odd: Points) -> None:
    found = data(page)
    assert page.read_text().count("</script>") == 2
    assert found["names"].split("\n") == list(NAMES.values())
    assert found["folders"] == [["a folder/", "./a%20folder/", 0]]
    raw = os.fsdecode(b"\xff.png")
    assert found["odd"] == {
        "2": quote("quote\"' &amp; ${x} \\.png", safe="'"),
        "3": "line%0Abreak.png",
        str(list(NAMES).index(raw)): "%FF.png",
        "6": "",  # a browser would run it
    }
    assert np.array(decoded(found["near"], "<i4")).reshape(-1, 3).tolist() == odd.neighbours.tolist()
    places = np.array(decoded(found["xy"], "<u2")).reshape(-1, 2)
    assert (places.min(), places.max()) == (0, 65535)
    assert decoded(found["group"], "<i4") == odd.groups.tolist()
    assert sorted(i for i, _ in found["thumbs"]) == list(range(6))
    assert all(base64.b64decode(text).startswith(b"\xff\xd8") for _, text in found["thumbs"])


def test_a_full_page_has_fewer_thumbnails(
    odd: Points, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 3000)
    path = tmp_path / "map.html"
    save(path, map_page(odd, store, out=path, method="tsne", options=EngineOptions(workers=1)))
    assert 0 < len(data(path)["thumbs"]) < 6


def test_thumbnails_are_far_from_each_other_first() -> None:
    xy = np.array([[0, 0], [0.01, 0], [0.02, 0], [9, 0], [9, 9], [0, 9]], np.float32)
    assert set(spread(xy, 4)) == {0, 3, 4, 5}
    assert sorted(spread(xy, 99)) == list(range(6))
    assert sorted(spread(np.zeros((5, 2), np.float32), 3)) == [0, 1, 2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 1280, 2560])
def test_a_browser_shows_it(page: Path, chromium: Chromium, width: int, dark: bool) -> None:
    chromium.open(page, width=width, dark=dark)
    assert chromium.complaints() == []
    assert chromium.requests() == [page.as_uri()]
    assert chromium.evaluate("document.title") == "Map of out.h5"
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    colors = "new Set(new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"
    assert chromium.evaluate(colors) > 3
    assert chromium.evaluate("[paper, ink].join()") == chromium.evaluate(
        "[number(getComputedStyle(canvas).backgroundColor), getComputedStyle(canvas).color].join()"
    )


def test_a_click_shows_an_image_and_its_neighbours(page: Path, chromium: Chromium) -> None:
    chromium.open(page)
    for kind in ("pointermove", "pointerdown", "pointerup"):
        if kind == "pointerdown":
            assert chromium.evaluate("byId('hover').hidden") is False
            assert chromium.evaluate("byId('hover').innerText") == "plain_name.png"
        chromium.evaluate(
            f"canvas.setPointerCapture = () => 0; canvas.dispatchEvent(new PointerEvent('{kind}', {{pointerId: 1, "
            "clientX: canvas.getBoundingClientRect().left + screenX(0) + 3, "
            "clientY: canvas.getBoundingClientRect().top + screenY(0)}))"
        )
    assert chromium.evaluate("document.querySelector('#details .path').innerText") == "a folder/plain_name.png"
    shown = chromium.evaluate("[...document.querySelectorAll('.near button')].map(b => b.innerText)")
    assert shown == list(NAMES.values())[1:3]
    chromium.evaluate("document.querySelectorAll('.near button')[1].click()")
    assert chromium.evaluate("selected") == 2
    chromium.settle("document.querySelector('#details .whole')?.naturalWidth === 40")
    assert chromium.complaints() == []
    names = {os.fsdecode(unquote_to_bytes(urlsplit(url).path)) for url in chromium.requests()}
    assert names == {str(page), *(str(page.with_name("a folder") / name) for name in list(NAMES)[:5])}


def test_wheel_and_fingers_zoom_and_move(page: Path, chromium: Chromium) -> None:
    chromium.open(page, width=390)
    chromium.evaluate("canvas.scrollIntoView()")
    left, top = chromium.evaluate("[canvas.getBoundingClientRect().left, canvas.getBoundingClientRect().top]")

    def touch(kind: str, *places: tuple[int, int]) -> None:
        fingers = [{"x": left + x, "y": top + y, "id": i} for i, (x, y) in enumerate(places)]
        chromium.send("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    for action, check in {
        "pinch": "view.scale > 1.5 * before.scale",
        "drag": "view.x > before.x + 40 && view.scale === before.scale",
        "wheel": "view.scale < before.scale",
    }.items():
        chromium.evaluate("before = { ...view }")
        if action == "wheel":
            wheel = "new WheelEvent('wheel', {deltaY: 200, clientX: 99, clientY: 99, cancelable: true})"
            chromium.evaluate(f"canvas.dispatchEvent({wheel})")
        else:
            second = [(200, 200)] if action == "pinch" else []
            touch("touchStart", (150, 200), *second)
            for step in range(10, 80, 10):
                touch("touchMove", (150 + step * (-1 if second else 1), 200), *[(x + step, y) for x, y in second])
            touch("touchEnd")
        assert chromium.evaluate(check) is True, action
        assert chromium.evaluate("selected + pointers.size") == -1, action


def test_the_keyboard_and_the_search_reach_everything(page: Path, chromium: Chromium) -> None:
    chromium.open(page)
    chromium.evaluate("canvas.focus()")
    before = chromium.evaluate("view.scale")
    for key, check in {
        "+": f"view.scale > {before}",
        "ArrowLeft": "view.x > 0",
        "0": f"Math.abs(view.scale - {before}) < 1e-9",
        "Enter": "selected >= 0 && byId('status').textContent.includes('a folder/')",
        "Escape": "selected < 0 && byId('details').childElementCount === 0",
    }.items():
        chromium.evaluate(f"canvas.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))")
        assert chromium.evaluate(check) is True, key
    chromium.evaluate("byId('search').value = 'NAME'; byId('find').requestSubmit()")
    assert chromium.evaluate("byId('status').textContent") == "1 image found"
    assert chromium.evaluate("matches.join()") == "1,0,0,0,0,0,0"
    for by, legend in {"group": ["near-identical to others 2"], "cluster": ["cluster 1 4", "cluster 2 3"]}.items():
        chromium.evaluate(f"byId('by').value = '{by}'; byId('by').onchange()")
        assert chromium.evaluate("[...byId('legend').children].map(li => li.innerText)") == legend


def test_a_screen_reader_is_told_the_clusters(page: Path, chromium: Chromium) -> None:
    chromium.open(page)
    spoken = chromium.spoken()
    assert [name for role, name in spoken if role == "heading"] == [
        "Map of out.h5",
        "Clusters",
        "Cluster 1: 4 images",
        "Cluster 2: 3 images",
    ]
    buttons = {name for role, name in spoken if role == "button"}
    assert buttons == {"Show", "Zoom in", "Zoom out", "Show all", "Show cluster 1", "Show cluster 2"}
    assert ("application", "Map of 7 images") in spoken
    chromium.evaluate("document.querySelectorAll('[data-cluster]')[1].click()")
    assert chromium.evaluate("[4, 5, 6].every(i => screenX(i) > 0 && screenX(i) < width)") is True
    assert chromium.complaints() == []


def test_the_command_draws_extends_and_exports(rn50feat: Run, store: FeatureStore) -> None:
    done = rn50feat("map", "--html", "map.html")
    assert done.returncode == 0, done.stderr
    folder = store.path.parent
    assert done.stderr.splitlines()[:2] == [f"{folder}/out.map: 5 rows, laid out", "map.html: 5 images"]
    assert data(folder / "map.html")["names"].count("\n") == 4
    assert rn50feat("map", "--html", "map.html", "--quiet").stderr == ""
    assert rn50feat("export", "out.parquet", "--quiet").returncode == 0
    parquet = pytest.importorskip("pyarrow.parquet").read_table(folder / "out.parquet")
    layout = lay_out(store).layout
    places = np.stack([parquet["x"].to_numpy(), parquet["y"].to_numpy()], axis=1)
    assert places.tobytes() == layout.at(parquet["id"].to_numpy()).tobytes()
    assert len(points(store, layout).paths) == 5
    missing = rn50feat("map")
    assert missing.returncode == 2
    assert "Error: The page is missing: name it with --html, as in --html map.html." in missing.stderr
