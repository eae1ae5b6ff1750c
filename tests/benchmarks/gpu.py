"""Measure on a GPU, in one call of under 4 minutes: what each part can do, and where the time of a run goes.

    python tests/benchmarks/gpu.py [--count 20000] [--json FILE]

Draws images of 500x375, and prints: the network alone by precision, batch size
and fusion; the backend; decoding on the cores; a whole run of `extract` next to
the common loop; the error of each precision. Start-up is left out everywhere.
`--device cpu` runs what it can without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import rn50feat
from rn50feat import EngineOptions, FeatureStore
from rn50feat.backends import check
from rn50feat.backends.fused import fused_on_cpu, fused_on_cuda
from rn50feat.backends.torch import TorchBackend
from rn50feat.durable import limits
from rn50feat.engines.pool import DecoderPool
from rn50feat.images.provenance import Preprocessing
from rn50feat.model import network, weights
from rn50feat.model.network import Normalized
from rn50feat.sources.location import at
from rn50feat.store.summary import Progress

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from extract import draw, loop

PLAIN = Preprocessing()
CHOSEN = weights.find("random")
DISTINCT = 64  # images that are drawn; the others are copies with other trailing bytes
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Report:
    """Prints each figure as soon as it is known, and keeps it."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._begun = time.monotonic()

    def title(self, text: str) -> None:
        print(f"\n{text}  [{time.monotonic() - self._begun:.0f} s]", flush=True)

    def add(self, name: str, value: float, unit: str) -> None:
        self.figures[name] = value
        print(f"  {name:58} {value:12.5g} {unit}", flush=True)


def images(folder: Path, count: int) -> None:
    """Write `count` JPEGs, none of which has the bytes of another."""
    draw(folder, min(DISTINCT, count), 500, 375)
    drawn = [path.read_bytes() for path in sorted(folder.iterdir())]
    for i in range(len(drawn), count):
        (folder / f"{i:06}.jpg").write_bytes(drawn[i % len(drawn)] + i.to_bytes(4, "big"))


def rate(work: Callable[[], object], count: int, device: torch.device, seconds: float) -> float:
    """Return how many images a second `work`, on `count` of them, does; the device is waited for."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        work()
        wait()
        done += count
    return done / (time.perf_counter() - begun)


def measure_network(report: Report, device: torch.device, batches: Sequence[int], seconds: float) -> None:
    """The network on crops that are on the device already."""
    report.title("the network alone, crops on the device (images/s)")
    module = network.load(CHOSEN).module
    on_cuda = device.type == "cuda"
    cases = [(name, batch) for name in DTYPES for batch in batches if name == "fp16" or batch == batches[-1]]
    for name, batch in cases if on_cuda else [("fp32", batches[0])]:
        crops = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, device=device)
        resnet = copy.deepcopy(module).to(device, DTYPES[name]).to(memory_format=torch.channels_last)
        for how, placed in (
            ("plain", resnet),
            ("fused", fused_on_cuda(resnet) if on_cuda else fused_on_cpu(resnet, DTYPES[name])),
        ):
            whole = Normalized(placed, PLAIN).to(device)
            with torch.inference_mode():
                speed = rate(lambda p=whole, c=crops: p(c), batch, device, seconds)
            report.add(f"{name}, batch {batch}, {how}", speed, "images/s")


def measure_backend(report: Report, device: str, batches: Sequence[int], seconds: float) -> None:
    """The backend as `extract` uses it: crops in the host's memory in, features out."""
    report.title("the backend, crops in the host's memory (images/s)")
    begun = time.perf_counter()
    backend = TorchBackend(network.load(CHOSEN), PLAIN, device=device, precision="auto")
    report.add("start, its check included", time.perf_counter() - begun, "s")
    print(f"  on {backend.device} in {backend.precision}, its own batch is {backend.batch_size}")
    for batch in batches:
        crops = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
        for lanes in sorted({1, backend.lanes}):
            with ThreadPoolExecutor(lanes) as threads:

                def work(t: ThreadPoolExecutor = threads, c: Any = crops, n: int = lanes) -> None:
                    list(t.map(backend.features, [c] * (4 * n)))

                speed = rate(work, 4 * lanes * batch, torch.device("cpu"), seconds)
            report.add(f"batch {batch}, {lanes} at once", speed, "images/s")


def measure_decoding(report: Report, folder: Path, seconds: float) -> None:
    """The decoding processes, without a network."""
    report.title("decoding, without a network (images/s)")
    references = [place.stat() for place in at(str(folder)).walk()]
    size = min(256, len(references))
    pool = DecoderPool(PLAIN, workers=limits.cores(), max_pixels=EngineOptions.max_megapixels * 1_000_000)
    pool.reserve(4 * size)
    try:
        waiting: list[list[Any]] = []
        given = cycle(references)
        for future in pool.decode(0, references[:size]):  # its processes have started then
            future.result()
        begun, turn, done = time.perf_counter(), 0, 0
        while time.perf_counter() - begun < seconds or waiting:
            while len(waiting) < 3 and time.perf_counter() - begun < seconds:
                waiting.append(pool.decode(turn % 4 * size, list(islice(given, size))))
                turn += 1
            if waiting:
                done += sum(len(future.result()) for future in waiting.pop(0))
        report.add(f"{pool.workers} cores", done / (time.perf_counter() - begun), "images/s")
    finally:
        pool.close()


def measure_extract(report: Report, folder: Path, out: Path, device: str, loop_count: int) -> None:
    """A whole run, from files to the store, next to the common loop; then where its time went."""
    report.title("whole runs, from files to the file of features (images/s)")
    marks: list[tuple[int, float]] = []  # images done, this process's seconds of CPU

    def note(progress: Progress) -> None:
        marks.append((progress.done.computed, time.process_time()))

    options = EngineOptions(device=device, backend="torch")
    summary = rn50feat.extract(folder, out / "out.h5", weights="random", options=options, on_progress=note)
    seconds = summary.seconds - summary.stages["start"]
    report.add("extract", summary.new / seconds, "images/s")
    report.add("start", summary.stages["start"], "s")
    module = torchvision.models.resnet50().eval().to(device)
    module.fc = torch.nn.Identity()
    paths = sorted(folder.iterdir())[:loop_count]
    for workers in sorted({2, limits.cores()}):
        took = loop(paths, out / "loop.h5", module, device, workers)
        report.add(f"common loop, {workers} workers, {len(paths)} images", len(paths) / took, "images/s")
        report.add("extract, times that", report.figures["extract"] * took / len(paths), "")
    for stage, busy in summary.stages.items():
        if stage != "start":
            report.add(f"{stage}, busy", 100 * busy / seconds, "% of the run")
    (first, begun), (last, ended) = marks[0], marks[-1]
    report.add("this process, without its children", 1e6 * (ended - begun) / max(1, last - first), "µs of CPU an image")


def measure_errors(report: Report, folder: Path, out: Path, device: str) -> None:
    report.title("worst error of a row over the rows' spread, against fp32 on the CPU with images decoded exactly")
    few = out / "few"
    few.mkdir()
    for path in sorted(folder.iterdir())[:DISTINCT]:
        os.link(path, few / path.name)

    def rows(name: str, device: str, precision: str) -> np.ndarray:
        options = EngineOptions(device=device, backend="torch", precision=precision)
        settings = {"weights": "random", "dtype": "float32", "exact_decode": True, "options": options}
        rn50feat.extract(few, out / f"{name}.h5", **settings)
        opened = FeatureStore(out / f"{name}.h5")
        with opened.reading():
            return np.concatenate([block for _, block in opened.blocks()])

    expected = rows("expected", "cpu", "fp32")
    for precision in ("fp32", "bf16", "fp16") if device != "cpu" else ("fp32", "bf16"):
        error = check.error(rows(precision, device, precision), expected)
        report.add(f"{precision}, worst error over spread", error, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="images of the whole runs")
    parser.add_argument("--device", default="cuda", help="cuda (all of them), cuda:N, or cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--loop", type=int, default=1024, help="images of the common loop")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here: nothing was measured (--device cpu tries the script itself)")
    gpus = torch.cuda.device_count() if arguments.device == "cuda" else int(arguments.device != "cpu")
    first = torch.device(arguments.device if arguments.device != "cuda" else "cuda:0")
    batches = (64, 256) if gpus else (min(32, arguments.count),)
    report = Report()
    name = torch.cuda.get_device_name(first) if gpus else "CPU"
    print(f"{gpus} x {name}, {limits.cores()} cores; torch {torch.__version__}, torchvision {torchvision.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        report.title(f"drawing {arguments.count} images")
        images(out / "images", arguments.count)
        measure_network(report, first, batches, arguments.seconds)
        measure_backend(report, arguments.device, batches, arguments.seconds)
        measure_decoding(report, out / "images", 3 * arguments.seconds)
        measure_extract(report, out / "images", out, arguments.device, min(arguments.loop, arguments.count))
        measure_errors(report, out / "images", out, arguments.device)
    if arguments.json:
        facts = {"gpus": gpus, "name": name, "cores": limits.cores(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**facts, "figures": report.figures}, indent=2))


if __name__ == "__main__":
    main()
