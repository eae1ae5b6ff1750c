"""Measure the Ray engine beside the local one, on this machine, in one run.

    python tests/benchmarks/ray_engine.py [FOLDER] [--pictures 400] [--rounds 3]

Without FOLDER, landscapes of 500x375 are drawn. Each round runs `extract`
with both engines, the Ray one on a cluster of this machine. Rates are from
the engine's first picture to its last; what it takes to start and to leave an
engine is told beside them. Of a round's two rates, the ratio is compared; on
a machine that does other things, too, that of the processor time tells more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from extract import draw

import rn50feat
from rn50feat.engines import local, ray
from rn50feat.engines.contract import Engine, StartEngine


class Timed:
    """A `StartEngine` and the engine that it starts.

    ``times`` are those of its start, of its first and last picture, and of its
    end; ``processor`` the seconds of processor time between these pictures.
    """

    def __init__(self, start: StartEngine) -> None:
        self._start = start

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        begun = time.perf_counter()
        self._engine: Engine = self._start(*arguments, **settings)
        self.times = [begun, time.perf_counter()]
        self.processor = -processor_seconds()
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __enter__(self) -> Timed:
        return self

    def __exit__(self, *error: object) -> None:
        self.processor += processor_seconds()
        self.times.append(time.perf_counter())
        self._engine.__exit__(*error)
        self.times.append(time.perf_counter())


def processor_seconds() -> float:
    """Return the processor time that this process and all that descend from it have had so far."""
    used: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(path.parent.name)
        used[pid] = int(fields[11]) + int(fields[12])
        children.setdefault(int(fields[1]), []).append(pid)
    family = [os.getpid()]
    for member in family:
        family += children.get(member, [])
    return sum(used.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name, "pictures")
        if arguments.folder is None:
            draw(folder, arguments.pictures, 500, 375)
        weights = Path(name, "random.pth")  # a file: its compiled network is kept
        save_random(weights)
        found: dict[str, list[tuple[float, ...]]] = {"local": [], "ray": []}
        for _ in range(arguments.rounds):
            for kind, start in (("local", local.start), ("ray", partial(ray.start, address="local"))):
                timed = Timed(start)
                summary = rn50feat.extract(
                    folder, Path(name, "out.h5"), weights=str(weights), overwrite=True, start=timed
                )
                begun, ready, done, left = timed.times
                cost = 1000 * timed.processor / summary.new
                found[kind].append((summary.new / (done - ready), cost, ready - begun, left - done))
    print(f"{summary.new} pictures; medians of {arguments.rounds} rounds")
    for kind, measured in found.items():
        rate, cost, started, ended = (statistics.median(column) for column in zip(*measured))
        print(
            f"  {kind:5} {rate:6.1f} images/s, {cost:5.1f} ms of processor time a picture,"
            f" {started:.1f} s to start, {ended:.1f} s to end"
        )
    for what, column in (("rates", 0), ("processor times", 1)):
        ratios = sorted(ours[column] / theirs[column] for ours, theirs in zip(found["ray"], found["local"]))
        print(f"  {what}, ray / local {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")


def save_random(path: Path) -> None:
    """Write the weights ``random:0`` to a file."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), path)


if __name__ == "__main__":
    main()
