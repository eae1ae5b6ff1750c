"""Record everything that a store's vectors depend on.

In: the choices of a run (weights, preprocessing). Out: one frozen record that
is stored as JSON with the vectors and compared before vectors are mixed.
Device and precision are not part of it, except int8: they change vectors by
rounding only and are recorded per run instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from rn50feat.durable.records import typed
from rn50feat.errors import PreprocessingError, ProvenanceError
from rn50feat.images.quantization import Quantization

UNSTATED = "unstated"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LIMITS = re.compile(f"({_NUMBER}):({_NUMBER})")
FILTERS = ("bilinear", "bicubic", "lanczos", "hamming", "box", "nearest")  # Pillow's, for `Preprocessing.filtered`
PROFILES = {"stored": "ignored", "srgb": "converted to sRGB"}  # by the name that ``--color`` takes


def value_limits(rule: str) -> tuple[float, float] | None:
    """Parse a range LOW:HIGH with LOW below HIGH; None for any other text."""
    match = _LIMITS.fullmatch(rule)
    return (float(match[1]), float(match[2])) if match and float(match[1]) < float(match[2]) else None


def interpolation(name: str) -> str:
    """Describe one of `FILTERS` as it is recorded; raise `PreprocessingError` for an unknown one."""
    if name not in FILTERS:
        raise PreprocessingError(f"there is no interpolation {name}: use one of {', '.join(FILTERS)}")
    return name if name == "nearest" else f"{name}, antialiased"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; lengths in pixels.

    ``name`` says by whose rules: torchvision's, which are also timm's;
    transformers', which rounds the place of the crop down; keras', slim's or
    caffe's. ``resize`` is the length of the shorter side before the central
    square of ``crop`` is cut out (keras squashes the image to that square
    instead).
    ``mean`` and ``std`` are per channel, in the order of ``channels``, for
    values scaled to [0, ``white``]. ``decoding`` is scaled (large JPEGs are
    decoded at 1/2, 1/4 or 1/8 of their size, but at no less than twice
    ``resize``), exact, or fast DCT (as TensorFlow decodes JPEGs). ``profile``
    says what happens to an embedded colour profile. ``value_range`` is the
    range that samples of more than 8 bits are scaled from: type (what integers
    of up to 16 bits can hold, 0 to 65535 for larger ones, 0 to 1 for floats),
    own (the image's smallest to largest), or LOW:HIGH. The defaults are
    torchvision's and apply to records from before there were other choices.
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
        """The dtype of crops: float32 if the resized image is not rounded, else uint8."""
        return "float32" if self.name in ("slim", "slim-pillow") else "uint8"

    @property
    def filtered(self) -> bool:
        """Whether Pillow resizes, with one of `FILTERS`, and the sizes, means and deviations may be any."""
        return self.name in ("torchvision", "timm", "transformers", "caffe")

    @staticmethod
    def named(name: str) -> Preprocessing:
        """Look up one of `PREPROCESSINGS` by name; raise `PreprocessingError` for an unknown one."""
        if name not in PREPROCESSINGS:
            raise PreprocessingError(f"there is no preprocessing {name}: use one of {', '.join(PREPROCESSINGS)}")
        return PREPROCESSINGS[name]

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Preprocessing:
        """Build a preprocessing from what `as_record` returned.

        Raises `PreprocessingError` for an unknown name, and TypeError or KeyError for anything else.
        """
        preprocessing = typed(cls(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])}))
        if not (0 <= preprocessing.crop <= _LARGEST and 0 <= preprocessing.resize <= _LARGEST):
            raise PreprocessingError(f"images of {preprocessing.resize} and {preprocessing.crop} pixels are too large")
        if preprocessing.name != UNSTATED:
            cls.named(preprocessing.name)  # raises for a preprocessing that this version does not know
        if preprocessing.filtered:
            preprocessing._require_sense()
        return preprocessing

    def _require_sense(self) -> None:
        """Raise `PreprocessingError` for settings with which no image can be resized or normalised."""
        interpolation(self.interpolation.removesuffix(", antialiased"))
        if not 32 <= self.crop <= self.resize <= _LARGEST:
            sizes = f"a crop of {self.crop} pixels and a resize of {self.resize}"
            raise PreprocessingError(f"{sizes} do not fit: give 32 <= crop <= resize <= {_LARGEST}")
        if len(self.mean) != 3 or not all(-self.white <= value <= self.white for value in self.mean):
            raise PreprocessingError(f"mean {self.mean}: give one or three numbers of at most {self.white:g}, white")
        if len(self.std) != 3 or not all(0 < value < inf for value in self.std):
            raise PreprocessingError(f"std {self.std}: give one or three numbers above 0")

    def changed(self, settings: dict[str, Any]) -> Preprocessing:
        """Return this preprocessing with other `settings`; raise `PreprocessingError` if they make no sense.

        torchvision's with another interpolation is timm's, which older versions
        refuse: they always interpolate torchvision's bilinearly.
        """
        if not settings:
            return self
        if not self.filtered:
            others = ", ".join(settings)
            raise PreprocessingError(
                f"the preprocessing {self.name} has a fixed {others}: start from torchvision or timm"
            )
        made = replace(self, **settings)
        if made.name == "torchvision" and made.interpolation != Preprocessing.interpolation:
            made = replace(made, name="timm", decoding="exact")
        made._require_sense()
        return made

    def as_record(self) -> dict[str, Any]:
        """Build the record that `from_record` reads.

        Later additions are left out while they have their defaults, so that
        older versions can read the record too.
        """
        record = asdict(self)
        for part in fields(self):
            if part.name in _YOUNGER and record[part.name] == part.default:
                del record[part.name]
        return record


_LARGEST = 4096  # pixels of a crop's side: a record may come from anywhere, and crops take memory
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
# By the name that ``--preprocess`` takes. timm and transformers: the defaults of `create_transform` for most of timm's
# ResNet50s, and the record of microsoft/resnet-50. caffe: the means of Detectron2's config/defaults.py, with
# torchvision's sizes. Keras: `load_img(target_size=(224, 224))` and `resnet50.preprocess_input` of
# keras.applications. slim: `preprocess_for_eval` of research/slim/preprocessing/vgg_preprocessing.py.
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
        replace(Preprocessing(), name="timm", interpolation="bicubic, antialiased", decoding="exact"),
        replace(Preprocessing(), name="transformers", interpolation="bicubic, antialiased", decoding="exact"),
        Preprocessing(
            name="caffe",
            mean=(103.53, 116.28, 123.675),
            std=(1.0, 1.0, 1.0),
            white=255.0,
            channels="BGR",
            decoding="exact",
        ),
        _SLIM,
        replace(_SLIM, name="slim-pillow", decoding="exact"),
    )
}


@dataclass(frozen=True)
class Provenance:
    """The network, weights and preprocessing that made a vector.

    ``weights_sha256`` is empty until it is known (weights that have not been
    downloaded or drawn yet); records are then compared by name.
    ``weights_path`` is where the file was, and ``weights_layout`` how its
    tensors were named, if not by torchvision's plain names; neither takes part
    in comparisons.
    ``quantization`` is None unless the network computes in int8.
    """

    weights: str
    weights_sha256: str = ""
    weights_path: str = field(default="", compare=False)
    weights_layout: str = field(default="", compare=False, kw_only=True)
    network: str = "torchvision resnet50"
    layer: str = "avgpool"
    preprocessing: Preprocessing = Preprocessing()
    quantization: Quantization | None = None

    @classmethod
    def unstated_but_for(cls, made_by: str) -> Provenance:
        """Build the record of imported features that are only described in words: all the rest is unstated."""
        blank = {"int": 0, "float": 0.0, "str": UNSTATED}
        older = (part for part in fields(Preprocessing) if part.name not in _YOUNGER)
        settings: dict[str, Any] = {part.name: blank.get(str(part.type), ()) for part in older}
        return cls(weights=UNSTATED, network=made_by, layer=UNSTATED, preprocessing=Preprocessing(**settings))

    def to_json(self) -> str:
        """Encode the record that `from_json` reads; later additions are left out while they are empty."""
        record = {**asdict(self), "preprocessing": self.preprocessing.as_record()}
        if not self.weights_layout:
            del record["weights_layout"]
        if self.quantization is None:
            del record["quantization"]
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """Read a record; raise `ProvenanceError` for one that this version does not understand."""
        try:
            record = json.loads(text)
            preprocessing = Preprocessing.from_record(record.pop("preprocessing"))
            quantization = record.pop("quantization", None)
            provenance = typed(cls(preprocessing=preprocessing, **record))
            if quantization is None:
                return provenance
            return replace(provenance, quantization=Quantization.from_record(quantization))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, PreprocessingError) as error:
            raise ProvenanceError(
                f"this version cannot read the provenance record ({error}): upgrade rn50feat"
            ) from error

    def difference(self, other: Provenance) -> tuple[str, str, str] | None:
        """Find the first difference: (name, own value, other's value), or None."""
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
        """Raise `ProvenanceError` unless the features in `where` were made with `other`."""
        if difference := self.difference(other):
            name, own, others = difference
            raise ProvenanceError(f"{where} holds features with {name} {own}, you asked for {others}: {remedy}")

    def require_same(self, other: Provenance, *, where: Path, there: Path, remedy: str) -> None:
        """Raise `ProvenanceError` unless the features in two stores, `where` and `there`, were made in the same way."""
        if difference := self.difference(other):
            name, own, others = difference
            raise ProvenanceError(f"{where} holds features with {name} {own}, {there} with {others}: {remedy}")

    def _settings(self) -> dict[str, object]:
        preprocessing = asdict(self.preprocessing)
        name = preprocessing.pop("name")
        quantization = self.quantization.label if self.quantization else "none"
        other = {"layer": self.layer, "quantization": quantization, "preprocessing": name}
        return {"network": self.network, **other, **preprocessing}

    @property
    def random(self) -> bool:
        """Whether the weights are random: good for trying things out, not for results."""
        return self.weights.startswith("random:")

    @property
    def unstated(self) -> bool:
        """Whether the vectors were imported with a description only, so that no image can be embedded the same way."""
        return self.weights == UNSTATED

    @property
    def weights_label(self) -> str:
        """The weights' name for people: ``imagenet-v1 (SHA-256 0676ba61…)``."""
        digest = f" (SHA-256 {self.weights_sha256[:8]}…)" if self.weights_sha256 else ""
        return f"{self.weights}{digest}"
