"""Measure on the user's own images where the time of a run goes.

In: a folder. Out: a `Benchmark`: the rate of each stage alone and of all of
them together, the slowest stage, and what would help.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.backends.contract import Backend
from rn50feat.durable import limits
from rn50feat.engines import calibration, local
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import ImageError, SourceError
from rn50feat.extraction.cost import Cost, cost
from rn50feat.images import decoding
from rn50feat.images.least_work import least_work
from rn50feat.images.provenance import Preprocessing, Provenance
from rn50feat.model.weights import Weights, find, provenance, with_weights
from rn50feat.sources.contents import read
from rn50feat.sources.reference import Reference
from rn50feat.sources.selection import Selection

SECONDS = 4.0  # for each stage; the network's first batches are left out


@dataclass(frozen=True)
class Benchmark:
    """Rates in images per second; ``listing`` in files per second, ``decoding`` for one core.

    ``cost`` is known on a CPU. ``left_out`` images cannot be read or decoded, and count in no rate.
    """

    pictures: int
    left_out: int
    cores: int
    backend: str
    device: str
    precision: str
    listing: float
    reading: float
    decoding: float
    network: float
    together: float
    bottleneck: str
    advice: str
    cost: Cost | None


def bench(
    folder: str | os.PathLike[str],
    *,
    count: int = 256,
    weights: str = "random",
    options: EngineOptions = EngineOptions(),
) -> Benchmark:
    """Measure the stages of `extract` on the first `count` images below `folder`.

    The network's rate does not depend on its weights, so random ones will do.
    Raises `SourceError` when there is no image, or none that can be decoded.
    """
    begun = time.perf_counter()
    found = list(islice(Selection(folder).references(), 10_000))
    listing = len(found) / (time.perf_counter() - begun)
    references = [reference for reference in found if decoding.has_image_suffix(reference.location)][:count]
    if not references:
        raise SourceError(_no_image(folder))
    chosen = find(weights)
    origin = provenance(chosen)
    contents, reading = _read(references)

    def decode(content: tuple[Reference, bytes]) -> str:
        try:
            _decoded(content, origin.preprocessing, options.max_megapixels * 1_000_000)
        except ImageError as error:
            return str(error)
        return ""

    sound = _sound(contents, decode, folder)
    decoded = _rate(decode, sound)
    backend = with_weights(lambda: _backend(chosen, origin, options, [reference for reference, _ in sound]))
    size = options.batch_size or backend.batch_size
    crops = _crops(sound, origin.preprocessing, size)
    with ThreadPoolExecutor(backend.lanes) as threads:
        batches = [crops] * backend.lanes

        def compute(_: None) -> None:
            list(threads.map(backend.features, batches))

        compute(None)
        network = size * backend.lanes * _rate(compute, [None])
    with local.engine(lambda: backend, origin.preprocessing, options) as engine:
        together = _together(engine, [reference for reference, _ in sound])
    stages = {"reading": reading, "decoding": decoded * limits.cores(), "network": network}
    bottleneck = min(stages, key=stages.__getitem__)
    return Benchmark(
        pictures=len(sound),
        left_out=len(references) - len(sound),
        cores=limits.cores(),
        backend=backend.name,
        device=backend.device,
        precision=backend.precision,
        listing=listing,
        reading=reading,
        decoding=decoded,
        network=network,
        together=together,
        bottleneck=bottleneck,
        advice=_advice(bottleneck, backend.name, backend.device),
        cost=_cost(backend, sound, origin.preprocessing, {**stages, "decoding": decoded, "together": together}),
    )


def _decoded(content: tuple[Reference, bytes], preprocessing: Preprocessing, max_pixels: int) -> NDArray[Any]:
    reference, data = content
    suffix = os.path.splitext(reference.location)[1]
    return decoding.decode(data, preprocessing, suffix=suffix, max_pixels=max_pixels).crop


def _crops(sound: list[tuple[Reference, bytes]], preprocessing: Preprocessing, size: int) -> NDArray[Any]:
    """Decode a batch of `size` images, with copies if there are fewer: in int8, the time depends on what they show."""
    crops = (_decoded(content, preprocessing, sys.maxsize) for content in sound[:size])
    return np.stack(list(islice(cycle(crops), size)))


def _backend(weights: Weights, origin: Provenance, options: EngineOptions, references: Sequence[Reference]) -> Backend:
    """Prepare the network; in int8, with ranges measured on `references`."""
    if options.precision == "int8":
        chosen = references[: calibration.IMAGES]
        ranges = calibration.unchecked(chosen, weights, origin, options, source="the images of a benchmark")
        origin = replace(origin, quantization=ranges)
    return local.backend(weights, origin, options)


def _cost(
    backend: Backend, sound: list[tuple[Reference, bytes]], preprocessing: Preprocessing, rates: dict[str, float]
) -> Cost | None:
    """Compare the rates with the least work; None on a GPU, which has another measure."""
    if backend.device != "cpu":
        return None
    from rn50feat.backends.multiplication import least_seconds  # imports torch

    def shrink(content: tuple[Reference, bytes]) -> None:
        suffix = os.path.splitext(content[0].location)[1]
        least_work(content[1], preprocessing, suffix=suffix, max_pixels=sys.maxsize)

    multiply = least_seconds(backend.precision, budget=SECONDS / 4)
    return cost(cores=limits.cores(), shrinking=_rate(shrink, sound), multiply=multiply, **rates)


def _no_image(folder: str | os.PathLike[str]) -> str:
    if os.path.isfile(folder):
        return f"{folder} is no image or folder, and bench reads no archives or lists: name a folder of images"
    return f"{folder} holds no image among its first 10,000 files: name a folder that does"


def _read(references: list[Reference]) -> tuple[list[tuple[Reference, bytes]], float]:
    """Return the bytes of the images, and the files read per second: from the cache, if they were there."""
    begun, contents = time.perf_counter(), []
    for reference in references:
        try:
            contents.append(read(reference))
        except SourceError:
            continue
    return contents, len(contents) / (time.perf_counter() - begun)


def _sound(
    contents: list[tuple[Reference, bytes]],
    decode: Callable[[tuple[Reference, bytes]], str],
    folder: str | os.PathLike[str],
) -> list[tuple[Reference, bytes]]:
    """Return the images for which `decode` returns no error; raise `SourceError` where there are none."""
    with ThreadPoolExecutor(limits.cores()) as threads:
        reasons = list(threads.map(decode, contents))
    sound = [content for content, reason in zip(contents, reasons) if not reason]
    if not sound:
        why = f"the first one {reasons[0]}" if reasons else "none can be read"
        raise SourceError(f"{folder} holds no image that can be decoded ({why}): name a folder that does")
    return sound


def _rate(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Return how many times per second `work` runs, on `items` in turn."""
    begun, done = time.perf_counter(), 0
    for item in cycle(items):
        work(item)
        done += 1
        if time.perf_counter() - begun > SECONDS:
            break
    return done / (time.perf_counter() - begun)


def _together(engine: local.LocalEngine, references: list[Reference]) -> float:
    """Return the images per second of the whole engine, from its first batch on."""
    stop = time.perf_counter() + 3 * SECONDS
    first = 0.0
    done = 0

    def stream() -> Iterator[Reference]:
        for reference in cycle(references):
            if time.perf_counter() > stop:
                return
            yield reference

    for batch in engine.embed(stream()):
        if first:
            done += len(batch.references)
        first = first or time.perf_counter()
        last = time.perf_counter()
    return done / (last - first) if done else 0.0


def _advice(bottleneck: str, backend: str, device: str) -> str:
    """Say what would help most."""
    if bottleneck == "network" and device == "cpu":
        faster = "" if backend == "openvino" else "pip install 'rn50feat[openvino]', "
        return f"{faster}a GPU, or more cores"
    return {
        "network": "a faster GPU, or several machines",
        "decoding": "more cores, or smaller images: 512 pixels are enough",
        "reading": "a faster disk or network; copies of the images on a local disk",
    }[bottleneck]
