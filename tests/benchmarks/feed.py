"""Measure what a run costs besides its network, for each image: a GPU is as busy as this lets it be.

    python tests/benchmarks/feed.py [FOLDER] [--copies 10] [--rounds 3] [--workers 1]

A whole run of `extract`, with a network that costs nothing, over the images of
FOLDER, several times with other trailing bytes; without FOLDER, 100 of 500x375
are drawn. Prints the CPU time of the decoding processes and of the main
process, start-up left out, the best of the rounds, next to Pillow's decoder
and resize alone, and the images/s that so many cores would feed.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import rn50feat
from rn50feat.engines import local
from rn50feat.engines.contract import EngineOptions
from rn50feat.store.summary import Progress

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from extract import draw
from machine import processor


class Nothing:
    """A network that costs nothing: one row for all images."""

    name, device, precision, weights_sha256 = "nothing", "cpu", "fp16", "0" * 64
    batch_size, lanes, recomputed = 256, 2, 0

    def __init__(self) -> None:
        self._rows = np.random.default_rng(0).random((self.batch_size, 2048), np.float32)

    def features(self, crops: np.ndarray) -> np.ndarray:
        return self._rows[: len(crops)]


class Meter:
    """Takes the CPU time of this process and of its children, from the first batch to the last."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float, float]] = []
        self._own = 0.0  # what the measuring itself took of this process's time

    def note(self, progress: Progress) -> None:
        done = progress.done.computed
        if not self.marks or done > self.marks[-1][0]:
            begun = time.process_time()
            self.marks.append((done, begun - self._own, children()))
            self._own += time.process_time() - begun

    def costs(self) -> tuple[float, float]:
        """Return the seconds of this process and of its children for each image."""
        (first, own, theirs), (last, own_then, theirs_then) = self.marks[0], self.marks[-1]
        return (own_then - own) / (last - first), (theirs_then - theirs) / (last - first)


def children() -> float:
    """Return the CPU seconds that living children of this process have taken."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == os.getpid():
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def run(folder: Path, out: Path, workers: int) -> tuple[float, float]:
    meter = Meter()

    def start(weights: Any, provenance: Any, options: EngineOptions, **settings: Any) -> local.LocalEngine:
        return local.engine(Nothing, provenance.preprocessing, options)

    options = EngineOptions(workers=workers)
    arguments = {"weights": "random", "overwrite": True, "start": start, "options": options}
    rn50feat.extract(folder, out, on_progress=meter.note, **arguments)
    return meter.costs()


def pillow(paths: list[Path]) -> float:
    """Return the seconds that Pillow alone takes for an image: decoding, and one resize to the crop."""
    blobs = [path.read_bytes() for path in paths[:100]]
    begun = time.process_time()
    for blob in blobs:
        image = Image.open(io.BytesIO(blob)).convert("RGB")
        side = min(image.size)
        image.resize((224, 224), Image.Resampling.BILINEAR, box=(0, 0, side * 7 / 8, side * 7 / 8))
    return (time.process_time() - begun) / len(blobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given = arguments.folder or Path(scratch, "drawn")
        if arguments.folder is None:
            draw(given, 100, 500, 375)
        paths = sorted(path for path in given.rglob("*") if path.is_file())
        whole = Path(scratch, "whole")
        whole.mkdir()
        for i in range(arguments.copies):
            for path in paths:
                content = path.read_bytes() + i.to_bytes(4, "big") * (i > 0)
                (whole / f"{path.stem}-{i}{path.suffix}").write_bytes(content)
        costs = [run(whole, Path(scratch, "out.h5"), arguments.workers) for _ in range(arguments.rounds)]
        own, theirs = (1e3 * min(column) for column in zip(*costs))
        alone = 1e3 * min(pillow(paths) for _ in range(arguments.rounds))
    print(f"{len(paths)} images, {arguments.copies} times each; {processor()}; best of {arguments.rounds} rounds")
    print(f"  decoding processes  {theirs:7.3f} ms of a core an image = {theirs / alone:.2f} of Pillow's {alone:.3f}")
    print(f"  main process        {own:7.3f} ms of a core an image")
    print(f"  16 cores would feed {min(16e3 / (theirs + own), 1e3 / own):7.0f} images/s")


if __name__ == "__main__":
    main()
