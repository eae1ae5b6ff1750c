"""Count pairs of different images that are taken for one: of drawn scenes, each with the most similar other one.

    python tests/benchmarks/false_pairs.py [--scenes 10000] [--weights FILE]

Draws the scenes, extracts them, and compares the pixels of each with those of
its nearest neighbour, as `duplicates --verify` does with candidates. Every
relation that is found is wrong. Takes 0.2 s of a core for a pair.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

from PIL import Image

import rn50feat
from rn50feat import FeatureStore
from rn50feat.searching.alignment import compare
from rn50feat.searching.search import search_stored

sys.path.insert(0, str(Path(__file__).parent.parent))
from edits import view
from scenes import encoded, scene

SIZES = [(320, 240), (480, 360), (240, 180), (640, 480)]
FIRST = 100_000  # seed


def draw(place: tuple[Path, int]) -> None:
    folder, number = place
    picture = scene(FIRST + number, *SIZES[number % len(SIZES)])
    (folder / f"{number:05}.jpg").write_bytes(encoded(picture, quality=90))


def related(pair: tuple[str, str]) -> str | None:
    first, second = (view(Image.open(path)) for path in pair)
    return compare(first, second).relation


def nearest(store: FeatureStore) -> set[tuple[str, str]]:
    """Pair each image with the one that is most similar to it."""
    paths = store.paths()
    results = search_stored(paths, store, k=1, exclude_self=True)
    pairs = {tuple(sorted((path, result.hits[0].path))) for path, result in zip(paths, results)}
    return {(store.locate(first), store.locate(second)) for first, second in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--weights", default="random")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Pool(len(os.sched_getaffinity(0))) as pool:
        folder, path = Path(name, "scenes"), Path(name, "scenes.h5")
        folder.mkdir()
        pool.map(draw, [(folder, number) for number in range(arguments.scenes)], chunksize=50)
        rn50feat.extract(folder, path, weights=arguments.weights)
        pairs = nearest(FeatureStore(path))
        found = Counter(pool.imap_unordered(related, pairs, chunksize=20))
    print(f"{found.pop(None, 0)} of {len(pairs)} pairs, each of a scene and the most similar one, are not related")
    print(*(f"{count} {relation}" for relation, count in found.items()), sep="\n")


if __name__ == "__main__":
    main()
