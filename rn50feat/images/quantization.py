"""Record how a network was quantized to 8 bits.

In: the ranges that were measured, and how rows compared with those of fp32.
Out: one frozen record, which a store keeps in its provenance. The weights and
these ranges determine the quantized network, so no other file is needed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from rn50feat.durable.records import typed


@dataclass(frozen=True)
class Quantization:
    """The ranges of a network's quantized maps, and how they were chosen and checked.

    ``calibration`` says which images they were measured on, ``calibrated`` how
    many. Of ``checked`` other images, the rows were compared with those of
    fp32: ``worst`` and ``median`` are cosines after subtracting the mean row,
    ``neighbours`` the share of the 10 nearest neighbours that are the same.
    """

    ranges: tuple[float, ...]
    calibration: str = ""
    calibrated: int = 0
    checked: int = 0
    worst: float = 1.0
    median: float = 1.0
    neighbours: float = 1.0

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Quantization:
        """Build one from what `dataclasses.asdict` returned; raise TypeError or KeyError for anything else."""
        return typed(cls(**{**record, "ranges": tuple(record["ranges"])}))

    @property
    def label(self) -> str:
        """Name it for people; two with different ranges have different names."""
        return f"int8 (ranges {hashlib.sha256(repr(self.ranges).encode()).hexdigest()[:8]}…)"

    @property
    def agreement(self) -> str:
        """Say how its rows agreed with those of fp32."""
        return (
            f"{self.checked} images also in fp32: cosine {self.worst:.4f} or more, median {self.median:.4f};"
            f" {self.neighbours:.3f} of their 10 nearest neighbours are the same"
        )
