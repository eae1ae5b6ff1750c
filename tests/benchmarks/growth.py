"""Measure how much larger than its contents a store becomes in years of nights.

    python tests/benchmarks/growth.py [--images 96] [--nights 365] [--replaced 2]

Each night half of the images are renamed and some are replaced by new ones; a
run with `--prune` follows, with a fake network. Prints the size of the store's
file after its worst night, compared with the copy that `compact --to` makes,
how often a run rewrote the store, and the time per run.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from fake import FakeStart

import rn50feat
from rn50feat.store.compact import compact


def paint(folder: Path, number: int) -> None:
    colour = (number % 256, number // 256 % 256, number // 65536)
    Image.new("RGB", (8, 8), colour).save(folder / f"a long name as cameras give it {number:06}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--replaced", type=int, default=2)
    arguments = parser.parse_args()
    rng, seconds, worst, rewritten = random.Random(0), [], (0.0, 0, 0, 0), 0
    with tempfile.TemporaryDirectory() as name:
        folder, store, fresh = Path(name, "images"), Path(name, "out.h5"), Path(name, "fresh.h5")
        folder.mkdir()
        for number in range(arguments.images):
            paint(folder, number)
        for night in range(arguments.nights + 1):
            begun = time.perf_counter()
            summary = rn50feat.extract(folder, store, weights="random", start=FakeStart(), prune=True, force=True)
            seconds.append(time.perf_counter() - begun)
            rewritten += summary.compacted > 0
            size, least = os.path.getsize(store), compact(store, fresh, overwrite=True).after
            worst = max(worst, (size / least, night, size, least))
            files = sorted(folder.iterdir())
            for path in rng.sample(files, len(files) // 2):
                path.rename(path.with_name(f"{night} {path.name.split(' ', 1)[-1]}"))
            for path in rng.sample(sorted(folder.iterdir()), arguments.replaced):
                path.unlink()
                number += 1
                paint(folder, number)
    ratio, night, size, least = worst
    print(
        f"{arguments.images} images, {arguments.nights} nights: at worst {size} bytes, {ratio:.3f} times a fresh copy"
        f" ({least}), in night {night}; rewritten {rewritten} times; a run takes"
        f" {1000 * statistics.median(seconds[1:]):.0f} ms (median), {1000 * max(seconds[1:]):.0f} at most"
    )


if __name__ == "__main__":
    main()
