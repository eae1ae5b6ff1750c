"""Measure the page of ``map`` in Chromium, without a GPU, beside the loop that draws a dot at a time.

    python tests/benchmarks/map.py [--images 100000]

The images are in folders, 200 pictures that repeat, so that the page is full
of thumbnails. It is opened from the disk; then it is moved and zoomed in each
frame, at 1280x900. The loop fills a square of a canvas for each point.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rn50feat import FeatureStore
from rn50feat.pages.map_page import map_page
from rn50feat.pages.page import save
from rn50feat.searching.map_points import NEIGHBOURS, Points, clusters

sys.path.insert(0, str(Path(__file__).parent.parent))
from chromium import Chromium
from machine import processor
from scenes import encoded, scene
from stores import store

PICTURES = 200
IN_A_FOLDER = 500
FRAMES = 60
LOOP = """<canvas id="canvas" width="1280" height="900"></canvas><script>
const context = document.getElementById("canvas").getContext("2d"), points = [];
for (let i = 0; i < COUNT; i++) points.push([1280 * Math.random(), 900 * Math.random(), `hsl(${i % 360} 50% 50%)`]);
let left = 0;
function move() {
  context.clearRect(0, 0, 1280, 900);
  left += 1;
  for (const [x, y, color] of points) { context.fillStyle = color; context.fillRect(x + left % 9, y, 2, 2); }
}
</script>"""


def pictures(folder: Path, number: int) -> list[str]:
    """Fill `folder` with images, and return their paths as a store next to it has them."""
    drawn = [folder / f"{i}.jpg" for i in range(PICTURES)]
    folder.mkdir()
    for seed, path in enumerate(drawn):
        path.write_bytes(encoded(scene(seed), quality=88))
    paths = []
    for i in range(number):
        path = folder / f"folder {i // IN_A_FOLDER:04}" / f"photograph_{i:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        os.link(drawn[i % PICTURES], path)
        paths.append(str(path.relative_to(folder.parent)))
    return paths


def described(paths: list[str]) -> Points:
    """Place images in 40 clouds; each has some of the same cloud as its neighbours."""
    rng, number = np.random.default_rng(0), len(paths)
    cloud = np.sort(rng.integers(40, size=number))
    xy = (8 * rng.normal(size=(40, 2))[cloud] + rng.normal(size=(number, 2))).astype(np.float32)
    near = np.clip(np.arange(number)[:, None] + rng.integers(-50, 50, (number, NEIGHBOURS)), 0, number - 1)
    return Points(paths, xy, near, np.where(np.arange(number) % 10, 0, cloud + 1), clusters(xy), number)


def frames(browser: Chromium, move: str) -> float:
    """Return the frames per second while `move` runs in each of them."""
    loop = f"(now) => {{ if (!left--) return done(now - begun); {move}; requestAnimationFrame(step); }}"
    script = f"new Promise((done) => {{ let left = {FRAMES}; const begun = performance.now(), step = {loop};"
    script += " requestAnimationFrame(step); })"
    answer = browser.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    return 1000 * FRAMES / float(answer["result"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    print(f"{processor()}, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder, page, loop = Path(name), Path(name, "map.html"), Path(name, "loop.html")
        points = described(pictures(folder / "images", arguments.images))
        begun = time.perf_counter()
        save(page, map_page(points, FeatureStore(store(folder / "out.h5", [("a.jpg", 1, 1)])), out=page, method="pca"))
        print(f"written in {time.perf_counter() - begun:.1f} s, {page.stat().st_size / 1e6:.1f} MB")
        loop.write_text(LOOP.replace("COUNT", str(arguments.images)))
        browser = Chromium(folder / "profile")
        try:
            browser.open(page)  # the first page also starts the browser
            begun = time.perf_counter()
            browser.open(page)
            browser.settle("drawn.length > 0")
            print(f"opened, with the first thumbnails, in {time.perf_counter() - begun:.2f} s")
            rates = {
                "moved": frames(browser, "pan(2, 1)"),
                "zoomed": frames(browser, "zoom(1.02)"),
                "moved without thumbnails": frames(browser, "byId('images').checked = false; pan(-2, -1)"),
            }
            browser.open(loop)
            theirs = frames(browser, "move()")
        finally:
            browser.close()
    for what, rate in rates.items():
        print(f"{what:26}{rate:6.1f} frames/s, {rate / theirs:.1f} times the loop")
    print(f"{'a dot at a time':26}{theirs:6.1f} frames/s")


if __name__ == "__main__":
    main()
