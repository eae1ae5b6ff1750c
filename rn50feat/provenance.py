"""What the vectors of a store depend on.

In: the choices of a run (weights, preprocessing). Out: one frozen record that
is stored as JSON with the vectors, and compared before any two are mixed.
Precision and device are not part of it: they move a vector by rounding only,
and are recorded per run instead.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rn50feat.errors import ProvenanceError


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input; lengths in pixels.

    ``resize`` is the length of the shorter side before the central square of
    ``crop`` is cut out; ``mean`` and ``std`` are per channel, for values
    scaled to [0, 1]. ``decoding`` is scaled when large JPEGs are decoded at a
    half, quarter or eighth of their size (never below twice ``resize``), or
    exact.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear, antialiased"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: str = "RGB"
    transparency: str = "over white"
    exif: str = "applied"
    decoding: str = "scaled"


@dataclass(frozen=True)
class Provenance:
    """The network, weights and preprocessing that made a vector.

    ``weights_sha256`` is empty while it is not known yet (weights that were
    not downloaded or drawn so far); two records are then compared by name.
    ``weights_path`` says where the file lay and takes no part in comparisons.
    """

    weights: str
    weights_sha256: str = ""
    weights_path: str = field(default="", compare=False)
    network: str = "torchvision resnet50"
    layer: str = "avgpool"
    preprocessing: Preprocessing = Preprocessing()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read a record; raise `ProvenanceError` for one of another shape."""
        try:
            record = json.loads(text)
            picture = record.pop("preprocessing")
            for name in ("mean", "std"):
                picture[name] = tuple(picture[name])
            return cls(preprocessing=Preprocessing(**picture), **record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ProvenanceError(
                f"the provenance record is not one that this version reads ({error}): upgrade rn50feat"
            ) from error

    def difference(self, other: Provenance) -> tuple[str, str, str] | None:
        """Return (name, own value, other's value) of the first difference, or None."""
        own, others = self._settings(), other._settings()
        for name, value in own.items():
            if value != others[name]:
                return name, str(value), str(others[name])
        if self.weights_sha256 and other.weights_sha256:
            same = self.weights_sha256 == other.weights_sha256
        else:
            same = self.weights == other.weights
        return None if same else ("weights", self.weights_label, other.weights_label)

    def require(self, other: Provenance, *, where: str, remedy: str) -> None:
        """Raise `ProvenanceError` when `other` is not what the features in `where` were made with."""
        if difference := self.difference(other):
            name, own, others = difference
            raise ProvenanceError(f"{where} holds features with {name} {own}, you asked for {others}: {remedy}")

    def _settings(self) -> dict[str, object]:
        return {"network": self.network, "layer": self.layer, **asdict(self.preprocessing)}

    @property
    def random(self) -> bool:
        """Tell whether the weights are random: good for trying things out, not for results."""
        return self.weights.startswith("random:")

    @property
    def weights_label(self) -> str:
        """Name the weights for people: ``imagenet-v1 (SHA-256 0676ba61…)``."""
        digest = f" (SHA-256 {self.weights_sha256[:8]}…)" if self.weights_sha256 else ""
        return f"{self.weights}{digest}"
