"""Decide whether a run computes in int8, and measure what that takes.

In: a store, the images of a run, and its options. Out: the provenance of rows
in int8, for a new store; a store that exists keeps its precision.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import islice

from rn50feat.engines import calibration
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import ProvenanceError, SourceError
from rn50feat.images.kinds import has_image_suffix
from rn50feat.images.provenance import Provenance
from rn50feat.model.weights import Weights
from rn50feat.sources.selection import Selection
from rn50feat.store.reader import FeatureStore

LISTED = 10_000  # files among which images are chosen, evenly: the first folder alone may hold images of one kind


@dataclass(frozen=True)
class Quantizing:
    """The images on which ranges are measured, those in `folder` or else of the run, and the lowest cosine allowed."""

    selection: Selection
    folder: str | os.PathLike[str] | None
    bound: float

    def of(self, weights: Weights, provenance: Provenance, options: EngineOptions) -> Provenance:
        """Measure ranges for `provenance`; raises `DeviceError`, and `SourceError` for images that cannot be listed."""
        images = self.selection if self.folder is None else Selection(self.folder)
        if not images.can_be_read_again:
            raise SourceError(
                "int8 needs images to measure ranges on, and this list can be read only once:"
                " name a folder with --calibrate"
            )
        listed = islice(images.references(), LISTED)
        found = [reference for reference in listed if has_image_suffix(reference.location)]
        step = max(1, len(found) / calibration.IMAGES)
        chosen = [found[int(i * step)] for i in range(min(len(found), calibration.IMAGES))]
        source = "the images of the first run" if self.folder is None else os.path.abspath(self.folder)
        quantization = calibration.calibrate(chosen, weights, provenance, options, bound=self.bound, source=source)
        return replace(provenance, quantization=quantization)


def require(old: FeatureStore | None, options: EngineOptions) -> None:
    """Raise `ProvenanceError` if `options` ask for int8 and the rows of `old` are not in it, or the other way round."""
    if old is None or options.precision == "auto":
        return
    quantization = old.provenance.quantization
    if (options.precision == "int8") != (quantization is not None):
        held = quantization.label if quantization else "not int8"
        raise ProvenanceError(
            f"{old.path} holds features that are {held}, you asked for {options.precision}:"
            " leave --precision out, or use another file"
        )
