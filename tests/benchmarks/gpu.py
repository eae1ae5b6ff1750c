"""Measure on a GPU, in one call of under 8 minutes: what each part can do, and where the time of a run goes.

    python tests/benchmarks/gpu.py [--count 32768] [--json FILE]

Draws pictures of 500x375, and prints: copies to and from the device; the
network alone by precision, batch size, fusion and graph; decoding on the cores
and on the GPU; whole runs of `extract` beside the common loop; the cosines
between precisions and decoders; and a profile of the best run. Start-up is
left out everywhere. `--device cpu` runs what it can of it without a GPU.
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
from rn50feat import EngineOptions, FeatureStore, limits, network, weights
from rn50feat.backends import cuda
from rn50feat.backends.fused import Fused, fused
from rn50feat.backends.torch import TorchBackend
from rn50feat.engines import gpu_decoder, local
from rn50feat.engines.gpu_decoder import GpuDecoder
from rn50feat.network import Normalized
from rn50feat.places import sources
from rn50feat.provenance import Preprocessing

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from extract import draw, loop

PLAIN = Preprocessing()
CHOSEN = weights.find("random")
DISTINCT = 64  # pictures that are drawn; the others are copies with other trailing bytes
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


def pictures(folder: Path, count: int) -> None:
    """Write `count` JPEGs, none of which has the bytes of another."""
    draw(folder, min(DISTINCT, count), 500, 375)
    drawn = [path.read_bytes() for path in sorted(folder.iterdir())]
    for i in range(len(drawn), count):
        (folder / f"{i:06}.jpg").write_bytes(drawn[i % len(drawn)] + i.to_bytes(4, "big"))


def rate(work: Callable[[], object], count: int, device: torch.device, seconds: float) -> float:
    """Return how many pictures a second `work`, on `count` of them, does; the device is waited for."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        work()
        wait()
        done += count
    return done / (time.perf_counter() - begun)


def measure_copies(report: Report, device: torch.device, seconds: float) -> None:
    report.title("copies, a batch of 256 crops")
    size = 256 * 224 * 224 * 3
    there = torch.zeros(size, dtype=torch.uint8, device=device)
    for name, here in (
        ("pinned", torch.zeros(size, dtype=torch.uint8, pin_memory=True)),
        ("pageable", torch.zeros(size, dtype=torch.uint8)),
    ):
        report.add(f"to the device, {name}", rate(lambda h=here: there.copy_(h), size, device, seconds) / 1e9, "GB/s")
        report.add(f"from the device, {name}", rate(lambda h=here: h.copy_(there), size, device, seconds) / 1e9, "GB/s")


def placed(module: torch.nn.Module, dtype: torch.dtype, device: torch.device, *, fuse: bool) -> torch.nn.Module:
    resnet = copy.deepcopy(module).to(device, dtype).to(memory_format=torch.channels_last)
    example = torch.zeros(1, 3, 64, 64, dtype=dtype, device=device).to(memory_format=torch.channels_last)
    return Normalized(fused(resnet, example) if fuse else resnet, PLAIN).to(device)


def captured(module: torch.nn.Module, crops: torch.Tensor) -> Callable[[], object]:
    """Return what replays a graph of `module` on `crops`."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            module(crops)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = module(crops)
    graph.kept = output  # type: ignore[attr-defined]
    return graph.replay


def measure_network(report: Report, device: torch.device, batches: Sequence[int], seconds: float) -> None:
    """The network on crops that are on the device already."""
    report.title("the network alone, crops on the device (images/s)")
    module = network.load(CHOSEN).module
    on_cuda = device.type == "cuda"
    cases = [(name, batch) for name in DTYPES for batch in batches if name == "fp16" or batch == batches[-1]]
    for name, batch in cases if on_cuda else [("fp32", batches[0])]:
        crops = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, device=device)
        for fuse in (False, True):
            for benchmark in (False, True) if on_cuda and batch == batches[-1] else (False,):
                cuda.BENCHMARK = benchmark
                with torch.inference_mode(), cuda.settings():
                    part = placed(module, DTYPES[name], device, fuse=fuse)
                    if fuse and not isinstance(part.module, Fused):
                        print(f"  {name}: the library has no fused convolutions")
                        continue
                    how = f"{name}, batch {batch}, {'fused' if fuse else 'plain'}{', algorithms tried' * benchmark}"
                    report.add(how, rate(lambda p=part, c=crops: p(c), batch, device, seconds), "images/s")
                    if on_cuda:
                        report.add(f"{how}, graph", rate(captured(part, crops), batch, device, seconds), "images/s")
    cuda.BENCHMARK = False


def measure_backend(report: Report, device: str, batches: Sequence[int], seconds: float) -> None:
    """The backend as `extract` uses it: crops in the host's memory in, features out."""
    report.title("the backend, crops in the host's memory (images/s)")
    backend = TorchBackend(network.load(CHOSEN), PLAIN, device=device, precision="auto")
    print(f"  on {backend.device} in {backend.precision}, its own batch is {backend.batch_size}")
    for batch in batches:
        crops = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
        for lanes in sorted({1, backend.lanes}):
            with ThreadPoolExecutor(lanes) as threads:

                def work(t: ThreadPoolExecutor = threads, c: Any = crops, n: int = lanes) -> None:
                    list(t.map(backend.features, [c] * (4 * n)))

                speed = rate(work, 4 * lanes * batch, torch.device("cpu"), seconds)
            report.add(f"batch {batch}, {lanes} at once", speed, "images/s")


def measure_decoding(report: Report, folder: Path, device: str, seconds: float) -> None:
    """The decoders without a network."""
    report.title("decoding, without a network (images/s)")
    references = list(sources.references([str(folder)]))
    size = min(256, len(references))
    pool = local._pool(PLAIN, EngineOptions())
    try:
        report.add(f"{pool.workers} cores", drain(pool.decode, references, size, 2, seconds), "images/s")
        for processes in (1, 2, 4) if device != "cpu" else (1,):
            gpu_decoder.PROCESSES = processes
            gpu = GpuDecoder(pool, [device], PLAIN, max_pixels=10**9, share=False)
            try:
                gpu.wait_until_ready()
                speed = drain(gpu.decode, references, size, processes + 1, seconds)
                report.add(f"{processes} processes on {device}", speed, "images/s")
            finally:
                gpu.stop()
        gpu_decoder.PROCESSES = 2
    finally:
        pool.close()
    encoded = [torch.from_numpy(np.fromfile(each.location, np.uint8)) for each in references[:size]]
    work = lambda: torchvision.io.decode_jpeg(encoded, device=device)  # noqa: E731
    report.add(
        f"torchvision's decode_jpeg alone on {device}", rate(work, size, torch.device(device), seconds), "images/s"
    )


def drain(decode: Any, references: list[Any], size: int, depth: int, seconds: float) -> float:
    """Return the pictures a second of a decoder that has `depth` requests at a time."""
    waiting: list[list[Any]] = []
    pictures = cycle(references)
    for future in decode(0, references[:size]):  # its processes have started then
        future.result()
    begun, given, done = time.perf_counter(), 0, 0
    while time.perf_counter() - begun < seconds or waiting:
        while len(waiting) < depth and time.perf_counter() - begun < seconds:
            waiting.append(decode(given % 8 * size, list(islice(pictures, size))))
            given += 1
        if waiting:
            done += sum(len(future.result()) for future in waiting.pop(0))
    return done / (time.perf_counter() - begun)


def measure_extract(report: Report, folder: Path, out: Path, device: str, loop_count: int) -> dict[str, Any]:
    """Whole runs, from files to the store; return the stages of the best."""
    report.title("whole runs, from files to the file of features (images/s)")
    best: dict[str, Any] = {"rate": 0.0}
    decoders = ("cpu", "gpu", "auto") if device != "cpu" else ("cpu",)
    for decoder in decoders:
        options = EngineOptions(device=device, backend="torch", decoder=decoder)
        marks: list[tuple[int, float]] = []  # pictures done, this process's seconds of CPU

        def tell(progress: rn50feat.summary.Progress, marks: list[tuple[int, float]] = marks) -> None:
            marks.append((progress.done.computed, time.process_time()))

        summary = rn50feat.extract(folder, out / f"{decoder}.h5", weights="random", options=options, on_progress=tell)
        seconds = summary.seconds - summary.stages["start"]
        report.add(f"extract, decoder {decoder}", summary.new / seconds, "images/s")
        if summary.new / seconds > best["rate"]:
            (first, begun), (last, ended) = marks[0], marks[-1]
            best = {"rate": summary.new / seconds, "decoder": decoder, "seconds": seconds, "stages": summary.stages}
            best["own"] = (ended - begun) / max(1, last - first)
    module = torchvision.models.resnet50().eval().to(device)
    module.fc = torch.nn.Identity()
    paths = sorted(folder.iterdir())[:loop_count]
    for workers in sorted({2, limits.cores()}):
        seconds = loop(paths, out / "loop.h5", module, device, workers)
        report.add(f"common loop, {workers} workers, {len(paths)} pictures", len(paths) / seconds, "images/s")
    name = f"common loop, 2 workers, {len(paths)} pictures"
    report.add("ratio of the best to the common loop", best["rate"] / report.figures[name], "")
    return best


def measure_cosines(report: Report, folder: Path, out: Path, device: str) -> None:
    report.title("cosines with rows computed in fp32 from pictures decoded exactly on the cores (the lowest)")
    few = out / "few"
    few.mkdir()
    for path in sorted(folder.iterdir())[:DISTINCT]:
        os.link(path, few / path.name)

    def rows(name: str, exact: bool = False, **options: str) -> np.ndarray:
        store = out / f"{name}.h5"
        engine = EngineOptions(device=device, backend="torch", **options)
        rn50feat.extract(few, store, weights="random", dtype="float32", exact_decode=exact, options=engine)
        opened = FeatureStore(store)
        with opened.reading():
            return np.concatenate([block for _, block in opened.blocks()])

    exact = rows("exact", exact=True, precision="fp32", decoder="cpu")
    on_cuda = device != "cpu"
    for precision in ("fp32", "bf16", "fp16") if on_cuda else ("fp32", "bf16"):
        for decoder in ("cpu", "gpu") if on_cuda else ("cpu",):
            found = rows(f"{precision}-{decoder}", precision=precision, decoder=decoder)
            cosines = (exact * found).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
            report.add(f"{precision}, decoder {decoder}", float(cosines.min()), "")


def tell_profile(report: Report, best: dict[str, Any], gpus: int) -> None:
    """Say what the best run's time went into, and what limits it."""
    report.title(f"where the time of the best run went (decoder {best['decoder']}, {best['seconds']:.1f} s)")
    for stage, seconds in best["stages"].items():
        if stage != "start":
            report.add(f"{stage}, busy", 100 * seconds / best["seconds"], "% of the run")
    report.add("this process, without its children", 1e6 * best["own"], "µs of CPU a picture")
    alone = max((v for k, v in report.figures.items() if "at once" in k), default=0.0)
    report.add("of the backend's own rate", best["rate"] / alone if alone else 0.0, "")
    busiest = max((s for s in best["stages"] if s != "start"), key=best["stages"].__getitem__)
    print(f"  {gpus} GPUs, {limits.cores()} cores: {busiest} was busy longest")
    print("  decode: the mean of the cores' processes; network: the mean of its lanes, waiting for the device included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=32768, help="pictures of the whole runs")
    parser.add_argument("--device", default="cuda", help="cuda (all of them), cuda:N, or cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--loop", type=int, default=1024, help="pictures of the common loop")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here: nothing was measured (--device cpu tries the script itself)")
    gpus = torch.cuda.device_count() if arguments.device == "cuda" else int(arguments.device != "cpu")
    first = torch.device(arguments.device if arguments.device != "cuda" else "cuda:0")
    batches = (32, 64, 128, 256, 512) if gpus else (min(32, arguments.count),)
    report = Report()
    name = torch.cuda.get_device_name(first) if gpus else "CPU"
    print(f"{gpus} x {name}, {limits.cores()} cores; torch {torch.__version__}, torchvision {torchvision.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        report.title(f"drawing {arguments.count} pictures")
        pictures(out / "pictures", arguments.count)
        if gpus:
            measure_copies(report, first, arguments.seconds / 2)
        measure_network(report, first, batches, arguments.seconds)
        measure_backend(report, arguments.device, batches, arguments.seconds)
        if gpus > 1:
            measure_backend(report, "cuda:0", batches[-2:], arguments.seconds)
        measure_decoding(report, out / "pictures", str(first), 3 * arguments.seconds)
        best = measure_extract(report, out / "pictures", out, arguments.device, min(arguments.loop, arguments.count))
        measure_cosines(report, out / "pictures", out, arguments.device)
        tell_profile(report, best, gpus)
    if arguments.json:
        facts = {"gpus": gpus, "name": name, "cores": limits.cores(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**facts, "figures": report.figures, "best": best}, indent=2))


if __name__ == "__main__":
    main()
