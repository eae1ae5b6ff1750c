"""Measure the peak memory of `extract` on large photographs, over all its processes.

    python tests/benchmarks/memory.py [--pictures 1000] [--backend torch]

Pictures of 12 megapixels, of 40 different contents, go through the real
network; the peak after a tenth of them is printed beside that of the whole.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import rn50feat
from rn50feat.store.summary import Progress

sys.path.insert(0, str(Path(__file__).parent.parent))
from scenes import encoded, scene


def draw(folder: Path, count: int) -> None:
    """Draw pictures of 4000x3000 with the grain of photographs, about 4 MB each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        if i < 40:
            pixels = np.asarray(scene(i, 4000, 3000)).astype(np.int16) + rng.normal(0, 6, (3000, 4000, 1)).astype(
                np.int16
            )
            (folder / f"{i:05}.jpg").write_bytes(
                encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), quality=90)
            )
        else:
            os.link(folder / f"{i % 40:05}.jpg", folder / f"{i:05}.jpg")


def resident() -> int:
    """Return the resident memory of this process and its children, in bytes; shared pages count for each."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if os.getpid() in (int(path.name), parent):
                total += int(path.joinpath("statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    count, options = arguments.pictures, rn50feat.EngineOptions(backend=arguments.backend)
    peaks: dict[str, int] = {"first tenth": 0, "all": 0}
    done = 0

    def watch() -> None:
        while True:
            peaks["all"] = max(peaks["all"], resident())
            if done < count / 10:
                peaks["first tenth"] = peaks["all"]
            time.sleep(0.05)

    def tell(progress: Progress) -> None:
        nonlocal done
        done = progress.done.computed

    with tempfile.TemporaryDirectory() as name:
        draw(Path(name, "pictures"), count)
        threading.Thread(target=watch, daemon=True).start()
        summary = rn50feat.extract(
            Path(name, "pictures"), Path(name, "out.h5"), weights="random", options=options, on_progress=tell
        )
    print(f"{summary.new} pictures of 12 megapixels in {summary.seconds:.0f} s")
    for part, peak in peaks.items():
        print(f"peak over {part:11} {peak / 1e6:8.0f} MB")


if __name__ == "__main__":
    main()
