"""What the vectors of a store depend on.

In: the choices of a run (weights, preprocessing). Out: one frozen record that
is stored as JSON with the vectors, and compared before any two are mixed.
Precision and device are not part of it: they move a vector by rounding only,
and are recorded per run instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rn50feat.durable.records import typed
from rn50feat.errors import PreprocessingError, ProvenanceError

UNSTATED = "unstated"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LIMITS = re.compile(f"({_NUMBER}):({_NUMBER})")
PROFILES = {"stored": "ignored", "srgb": "converted to sRGB"}  # by name, as ``--color`` takes it


def value_limits(rule: str) -> tuple[float, float] | None:
    """Return the numbers of a range that is given as LOW:HIGH, None for any other text."""
    match = _LIMITS.fullmatch(rule)
    return (float(match[1]), float(match[2])) if match and float(match[1]) < float(match[2]) else None


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input; lengths in pixels.

    ``resize`` is the length of the shorter side before the central square of
    ``crop`` is cut out (keras squashes the picture to that square instead);
    ``mean`` and ``std`` are per channel, in the order of ``channels``, for
    values scaled to [0, ``white``]. ``decoding`` is scaled when large JPEGs
    are decoded at a half, quarter or eighth of their size (never below twice
    ``resize``), exact, or fast DCT as TensorFlow decodes JPEGs. ``profile``
    is what becomes of an embedded colour profile, ``value_range`` what numbers
    of more than 8 bits are taken over: type (what integers of up to 16 bits
    can hold, 0 to 65535 for larger ones, 0 to 1 for floats), own (the image's
    smallest to its largest), or LOW:HIGH. The defaults are torchvision's,
    also of records made before there were others.
    """

    name: str = "torchvision"
    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear, antialiased"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    white: float = 1.0
    channels: str = "RGB"
    transparency: str = "over white"
    exif: str = "applied"
    decoding: str = "scaled"
    profile: str = "ignored"
    value_range: str = "type"

    @property
    def crop_dtype(self) -> str:
        """The dtype of crops: float32 where the resized picture is not rounded, else uint8."""
        return "float32" if self.name in ("slim", "slim-pillow") else "uint8"

    @staticmethod
    def named(name: str) -> Preprocessing:
        """Return one of `PREPROCESSINGS`; raise `PreprocessingError` for a name that is not among them."""
        if name not in PREPROCESSINGS:
            raise PreprocessingError(f"there is no preprocessing {name}: give one of {', '.join(PREPROCESSINGS)}")
        return PREPROCESSINGS[name]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preprocessing:
        """Return what `dataclasses.asdict` made a record of.

        Raises `PreprocessingError` for a name that is not known, and TypeError or KeyError for another shape.
        """
        found = typed(cls(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])}))
        if not (0 <= found.crop <= _LARGEST and 0 <= found.resize <= _LARGEST):
            raise PreprocessingError(f"images of {found.resize} and {found.crop} pixels are too large")
        if found.name != UNSTATED:
            cls.named(found.name)  # what goes by another name is done in a way that this version does not know
        return found

    def as_record(self) -> dict[str, Any]:
        """Return what `from_record` reads.

        Settings that are younger than others are left out where they have
        their defaults, so that older versions read the record too.
        """
        record = asdict(self)
        for part in fields(self):
            if part.name in _YOUNGER and record[part.name] == part.default:
                del record[part.name]
        return record


_LARGEST = 4096  # pixels of a crop's side: a record may come from anywhere, and memory is made for crops
_YOUNGER = ("profile", "value_range")
_SLIM = Preprocessing(
    name="slim",
    interpolation="bilinear of TensorFlow 1, not rounded",
    mean=(123.68, 116.78, 103.94),
    std=(1.0, 1.0, 1.0),
    white=255.0,
    transparency="dropped",
    exif="ignored",
    decoding="fast DCT",
)
# By name, as ``--preprocess`` takes it. Keras: `load_img(target_size=(224, 224))` and `resnet50.preprocess_input`
# of keras.applications. slim: `preprocess_for_eval` of research/slim/preprocessing/vgg_preprocessing.py.
PREPROCESSINGS = {
    preprocessing.name: preprocessing
    for preprocessing in (
        Preprocessing(),
        Preprocessing(
            name="keras",
            resize=224,
            interpolation="nearest",
            mean=(103.939, 116.779, 123.68),
            std=(1.0, 1.0, 1.0),
            white=255.0,
            channels="BGR",
            transparency="dropped",
            exif="ignored",
            decoding="exact",
        ),
        _SLIM,
        replace(_SLIM, name="slim-pillow", decoding="exact"),
    )
}


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

    @classmethod
    def unstated_but_for(cls, made_by: str) -> Provenance:
        """Return what is known of features of which there are only words: everything else is unstated."""
        blank = {"int": 0, "float": 0.0, "str": UNSTATED}
        older = (part for part in fields(Preprocessing) if part.name not in _YOUNGER)
        picture: dict[str, Any] = {part.name: blank.get(str(part.type), ()) for part in older}
        return cls(weights=UNSTATED, network=made_by, layer=UNSTATED, preprocessing=Preprocessing(**picture))

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "preprocessing": self.preprocessing.as_record()})

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read a record; raise `ProvenanceError` for one of another shape."""
        try:
            record = json.loads(text)
            return typed(cls(preprocessing=Preprocessing.from_record(record.pop("preprocessing")), **record))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PreprocessingError) as error:
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
        preprocessing = asdict(self.preprocessing)
        name = preprocessing.pop("name")
        return {"network": self.network, "layer": self.layer, "preprocessing": name, **preprocessing}

    @property
    def random(self) -> bool:
        """Tell whether the weights are random: good for trying things out, not for results."""
        return self.weights.startswith("random:")

    @property
    def unstated(self) -> bool:
        """Tell whether the vectors were imported with words alone: no picture can be embedded alike."""
        return self.weights == UNSTATED

    @property
    def weights_label(self) -> str:
        """Name the weights for people: ``imagenet-v1 (SHA-256 0676ba61…)``."""
        digest = f" (SHA-256 {self.weights_sha256[:8]}…)" if self.weights_sha256 else ""
        return f"{self.weights}{digest}"
