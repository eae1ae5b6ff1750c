"""Choose the ranges of a network in 8 bits, and check its rows.

In: references to images, and a network's provenance. Out: a `Quantization`.
Half of the images serve to measure ranges; rows of the other half are compared
with those of fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable import limits
from rn50feat.engines.contract import EngineOptions
from rn50feat.engines.local import loader, require_for_int8
from rn50feat.engines.pool import DecoderPool
from rn50feat.errors import DeviceError
from rn50feat.images.provenance import Provenance
from rn50feat.images.quantization import Quantization
from rn50feat.model.weights import Weights
from rn50feat.sources.reference import Reference

IMAGES = 512
FEWEST = 32
BOUND = 0.98  # cosine; measured: 0.992 at least on 1,400 images, drawings, noise and flat colours among them


def calibrate(
    references: Sequence[Reference],
    weights: Weights,
    provenance: Provenance,
    options: EngineOptions,
    *,
    bound: float = BOUND,
    source: str,
) -> Quantization:
    """Measure ranges on every other image, and compare int8 rows of the rest with fp32's.

    `source` says in the record where the images are from. Raises `DeviceError`
    if a row's cosine is below `bound`, if there are fewer than `FEWEST` sound
    images, or if this machine cannot compute in int8.
    """
    require_for_int8(options)
    from rn50feat.backends.int8 import Int8Backend, Maxima
    from rn50feat.backends.openvino import OpenVinoBackend

    crops = _crops(references, provenance, options)
    if len(crops) < FEWEST:
        raise DeviceError(
            f"int8 needs at least {FEWEST} readable images to measure ranges on, and found {len(crops)} in {source}:"
            " name a folder with more of them with --calibrate"
        )
    load = cache(loader(weights, provenance))
    measured, checked = crops[::2], crops[1::2]
    ranges = Maxima(provenance, load).ranges(measured)
    quantization = Quantization(ranges, source, len(measured), len(checked))
    exact = OpenVinoBackend(provenance, load, precision="fp32", few=True).features(checked)
    rows = Int8Backend(replace(provenance, quantization=quantization), load, few=True).features(checked)
    cosines = centred_cosines(rows, exact)
    worst, median = float(cosines.min()), float(np.median(cosines))
    quantization = replace(quantization, worst=worst, median=median, neighbours=agreement(rows, exact))
    if not worst >= bound:
        raise DeviceError(
            f"int8 is not close enough to fp32 ({quantization.agreement}) for --int8-bound {bound:g}:"
            " use --precision auto, or lower the bound"
        )
    return quantization


def unchecked(
    references: Sequence[Reference], weights: Weights, provenance: Provenance, options: EngineOptions, *, source: str
) -> Quantization:
    """Measure ranges on `references`, to find out how fast the network is with them; otherwise like `calibrate`."""
    require_for_int8(options)
    from rn50feat.backends.int8 import Maxima

    crops = _crops(references, provenance, options)
    return Quantization(Maxima(provenance, loader(weights, provenance)).ranges(crops), source, len(crops))


def centred_cosines(
    rows: NDArray[np.float32], exact: NDArray[np.float32], mean: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Compute the cosine of each row with the exact one, both (n, 2048), after subtracting `mean`, or the exact one."""
    mean = exact.mean(axis=0) if mean is None else mean
    rows, exact = rows - mean, exact - mean
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(exact, axis=1)
    cosines: NDArray[np.float32] = (rows * exact).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


def agreement(rows: NDArray[np.float32], exact: NDArray[np.float32], count: int = 10) -> float:
    """Compute the share of each row's `count` nearest neighbours, by cosine, that it also has among exact rows."""
    count = min(count, len(rows) - 1)
    shared = (len(set(a) & set(b)) for a, b in zip(_nearest(rows, count), _nearest(exact, count)))
    return sum(shared) / (count * len(rows))


def _nearest(rows: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1)[:, :count]


def _crops(
    references: Sequence[Reference], provenance: Provenance, options: EngineOptions
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Decode the images that can be."""
    pool = DecoderPool(
        provenance.preprocessing,
        workers=options.workers or limits.cores(),
        max_pixels=options.max_megapixels * 1_000_000,
        slots=max(1, len(references)),
    )
    try:
        outcomes = [outcome for portion in pool.decode(0, references) for outcome in portion.result()]
        return np.array(pool.crops[[isinstance(outcome, Reference) for outcome in outcomes]])
    finally:
        pool.close()
