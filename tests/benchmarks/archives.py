"""Measure `extract` on pictures in tar shards beside the unpacked folder, and compare the rows.

    python tests/benchmarks/archives.py [--count 1000] [--shards 10] [--rounds 3]

Draws the pictures. Both take turns; start-up is left out, medians of the
rounds are compared, and then a run over the shards in which nothing changed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import rn50feat

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import rows
from extract import draw
from packing import tar


def seconds(source: Path, out: Path) -> float:
    """Run `extract`; return its seconds without those of starting the engine."""
    summary = rn50feat.extract(source, out, weights="random", overwrite=True)
    return summary.seconds - summary.stages["start"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, shards = Path(name, "folder"), Path(name, "shards")
        draw(folder, arguments.count, 500, 375)
        shards.mkdir()
        size = -(-arguments.count // arguments.shards)
        pictures = sorted(folder.iterdir())
        for i in range(arguments.shards):
            part = pictures[i * size : (i + 1) * size]
            tar(shards / f"shard-{i:03}.tar", ((path.name, path.read_bytes()) for path in part))
        times: dict[str, list[float]] = {"folder": [], "shards": []}
        for _ in range(arguments.rounds):
            for kind in (folder, shards):
                times[kind.name].append(seconds(kind, Path(name, f"{kind.name}.h5")))
        median = {kind: statistics.median(values) for kind, values in times.items()}
        print(f"{arguments.count} pictures, medians of {arguments.rounds} rounds")
        for kind, value in median.items():
            print(f"  {kind:7} {arguments.count / value:8.1f} images/s")
        print(f"  shards at {median['folder'] / median['shards']:.3f} of the folder's speed")
        unpacked, packed = rows(Path(name, "folder.h5")), rows(Path(name, "shards.h5"))
        same = [bool((row == packed_row).all()) for row, packed_row in zip(unpacked.values(), packed.values())]
        print(f"  {sum(same)} of {len(same)} rows equal")
        begun = time.perf_counter()
        summary = rn50feat.extract(shards, Path(name, "shards.h5"))
        print(f"  {summary.unchanged} unchanged in {time.perf_counter() - begun:.3f} s")


if __name__ == "__main__":
    main()
