"""Show a store as a map: its images as points that one can zoom, search and click.

Takes the `Points` of a store, and yields the pieces of one HTML page, whose
script is map.js. Some images have a thumbnail within the page; of the others, a
browser loads the file, if it is on the reader's machine.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import count
from rn50feat.escape import as_text
from rn50feat.images.decoding import has_image_suffix
from rn50feat.pages.cards import link, marked
from rn50feat.pages.page import page, style
from rn50feat.pages.thumbnails import SMALL, thumbnails
from rn50feat.searching.map_points import Points
from rn50feat.sources.presence import readable
from rn50feat.store.reader import FeatureStore

LARGEST = 24_000_000  # bytes of a page: with as many thumbnails as there is room for
MOST_THUMBNAILS = 3000
_SIDE = 65535  # of the square that has all points
_UNRESERVED = "!'()*"  # with quote's own, what JavaScript's encodeURIComponent leaves as it is
_EXAMPLES = 3  # names and folders of a cluster


def map_page(
    points: Points,
    store: FeatureStore,
    *,
    out: Path,
    method: str,
    check: bool = False,
    options: EngineOptions = EngineOptions(),
) -> Iterator[str]:
    """Yield a map of `store`, laid out by `method`, which is written to `out`.

    Images in remote storage are read only if `check` is set.
    """
    shown = len(points.paths)
    facts = [("store", f"{store.path}, {count(len(store), 'image')}"), ("weights", store.provenance.weights_label)]
    facts += [("layout", {"pca": "PCA", "tsne": "t-SNE"}[method])]

    def body() -> Iterator[str]:
        if store.provenance.random:
            yield '<p class="note">The weights are random: good for trying things out, not for results.</p>\n'
        if shown < points.total:
            yield f'<p class="note">The map has {shown:,} of {points.total:,} images, evenly chosen.</p>\n'
        yield _FRAME.replace("SHOWN", f"{shown:,}")
        yield from _clusters(points)
        yield from _data(points, store, Path(os.path.realpath(out)), check, options)

    return page(
        f"Map of {store.path.name}",
        body(),
        facts=facts,
        css=style("map.css"),
        images="data: file: 'self'",
        script=style("map.js"),
    )


_FRAME = """<noscript><p class="note">The map needs JavaScript. The list of clusters below does not.</p></noscript>
<div class="map">
<div class="tools">
<form id="find" role="search"><label>Search <input type="search" id="search" placeholder="part of a path"></label>
<button>Show</button></form>
<label>Colour <select id="by"><option value="folder">folder</option><option value="source">source</option>
<option value="group">near-identical</option><option value="cluster">cluster</option></select></label>
<label><input type="checkbox" id="images" checked> Images</label>
<span><button type="button" id="in" aria-label="Zoom in">+</button>
<button type="button" id="out" aria-label="Zoom out">&minus;</button>
<button type="button" id="all">Show all</button></span>
<span id="status" role="status"></span>
</div>
<div class="stage">
<canvas id="canvas" tabindex="0" role="application" aria-label="Map of SHOWN images" aria-describedby="keys"></canvas>
<p id="keys" class="spoken">Arrow keys move, plus and minus zoom, 0 shows all, and Enter opens the image at the centre.
The clusters are listed below.</p>
<div id="hover" hidden></div>
</div>
<aside aria-label="Colours and image"><ul id="legend" role="list" aria-label="Colours"></ul>
<section id="details" aria-label="Image"></section></aside>
</div>
"""


def _clusters(points: Points) -> Iterator[str]:
    """List the clusters, with what is in them."""
    yield '<section class="clusters" aria-labelledby="clusters"><h2 id="clusters">Clusters</h2>\n<ol role="list">\n'
    for number in range(int(points.clusters.max()) + 1):
        members = np.flatnonzero(points.clusters == number)
        if not len(members):
            continue
        paths = [points.paths[i] for i in members.tolist()]
        folders = Counter(os.path.dirname(path) for path in paths).most_common(_EXAMPLES)
        centre = np.square(points.xy[members] - points.xy[members].mean(axis=0)).sum(axis=1).argsort(kind="stable")
        names = ", ".join(marked(os.path.basename(paths[i])) for i in centre[:_EXAMPLES].tolist())
        listed = ", ".join(f"{marked(f'{folder}/')} {size:,}" for folder, size in folders)
        yield f"<li><h3>Cluster {number + 1}: {count(len(members), 'image')}</h3>\n"
        yield f"<p>{listed}<br>such as {names}</p>\n"
        yield f'<button type="button" data-cluster="{number}">Show cluster {number + 1}</button></li>\n'
    yield "</ol>\n</section>\n"


def _data(points: Points, store: FeatureStore, out: Path, check: bool, options: EngineOptions) -> Iterator[str]:
    """Yield what map.js reads: one JSON object, with thumbnails until the page is full."""
    about = json.dumps(_described(points, store, out)).replace("<", "\\u003c")
    yield f'<script type="application/json" id="data">{about[:-1]}, "thumbs": ['
    room, separator = LARGEST - len(about), ""
    chosen = [i for i in spread(points.xy, 2 * MOST_THUMBNAILS) if has_image_suffix(points.paths[i])]
    places = {i: readable(store.locate(points.paths[i]), check=check) for i in chosen}
    shown = [(i, location) for i, location in places.items() if location][:MOST_THUMBNAILS]
    with closing(thumbnails((location for _, location in shown), options, side=SMALL)) as made:
        for (i, _), thumbnail in zip(shown, made):
            entry = f'{separator}[{i},"{base64.b64encode(thumbnail.jpeg).decode()}"]'
            room -= len(entry)
            if room < 0:
                break
            if thumbnail.jpeg:
                yield entry
                separator = ","
    yield "]}</script>\n"


def _described(points: Points, store: FeatureStore, out: Path) -> dict[str, Any]:
    """Describe all points: arrays as Base64 of little-endian numbers, and names with what makes up their addresses."""
    low, high = points.xy.min(axis=0), points.xy.max(axis=0)
    scale = _SIDE / max(float((high - low).max()), 1e-30)
    square = np.rint((points.xy - (low + high) / 2) * scale + _SIDE / 2).clip(0, _SIDE)
    folders: dict[str, int] = {}
    sources: dict[str, int] = {}
    described: list[list[Any]] = []
    numbers, names, odd = np.empty(len(points.paths), np.int32), [], {}
    for i, path in enumerate(points.paths):
        folder, slash, name = path.rpartition("/")
        url, quoted = link(store.locate(path), out), quote(os.fsencode(name), safe=_UNRESERVED)
        if folder + slash not in folders:
            folders[folder + slash] = len(folders)
            source = sources.setdefault(_source(folder + slash), len(sources))
            described.append([as_text(folder + slash), None, source])
        numbers[i] = folders[folder + slash]
        names.append(as_text(name))
        if not url or not has_image_suffix(name):  # a browser would run a file with a name such as x.html
            odd[i] = ""
        elif described[numbers[i]][1] is None:
            described[numbers[i]][1] = url[: len(url) - len(quote(os.fsencode(name)))]
        if names[-1] != name and i not in odd:
            odd[i] = quoted
    return {
        "k": points.neighbours.shape[1],
        "xy": _base64(square, "<u2"),
        "near": _base64(points.neighbours, "<i4"),
        "group": _base64(points.groups, "<i4"),
        "cluster": _base64(points.clusters, "<i4"),
        "folder": _base64(numbers, "<i4"),
        "folders": described,
        "sources": [as_text(source) for source in sources],
        "names": "\n".join(names),
        "odd": odd,
    }


def _source(folder: str) -> str:
    """Return the part of a stored folder that its source probably had: its first part, or two of them after a start."""
    parts = folder.split("/")
    return "/".join(parts[: 3 if folder.startswith(("/", "../")) else 5 if "://" in folder else 1])


def _base64(numbers: NDArray[Any], kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers, kind).tobytes()).decode()


def spread(xy: NDArray[np.float32], most: int) -> list[int]:
    """Choose `most` points, far from each other first: one in each cell of grids that become finer."""
    low = xy.min(axis=0)
    unit = (xy - low) / max(float((xy.max(axis=0) - low).max()), 1e-30)
    chosen: dict[int, None] = {}
    cells = 2
    while len(chosen) < min(most, len(xy)) and cells <= 4096:
        place = np.minimum((unit * cells).astype(np.int64), cells - 1)
        _, first = np.unique(place[:, 0] * cells + place[:, 1], return_index=True)
        chosen |= dict.fromkeys(first.tolist())
        cells *= 2
    return (list(chosen) + [i for i in range(len(xy)) if i not in chosen][:most])[:most]
