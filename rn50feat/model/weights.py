"""Find and check the weights of a network, and settle what a run's vectors depend on.

In: what ``--weights`` takes: ``imagenet-v1``, ``imagenet-v2``, a file, or
``random[:SEED]``; the other choices of a run; the record of the store. Out:
the weights and the provenance of the run, told without torch. Nothing stands
in for weights that cannot be had, and none are used as another variant's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rn50feat.durable import caches
from rn50feat.errors import MissingWeightsError, PreprocessingError, WeightsError
from rn50feat.images.provenance import PROFILES, Preprocessing, Provenance, value_limits
from rn50feat.model import tensors, variants, weight_files
from rn50feat.model.download import Told, download
from rn50feat.model.tensors import Claims, Held
from rn50feat.model.variants import TORCHVISION, Variant

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """Weights that torchvision publishes: where, how their SHA-256 begins, and the resize in pixels."""

    url: str
    sha256: str
    resize: int


# Copied from torchvision.models.ResNet50_Weights, so that naming them needs no torchvision.
PUBLISHED = {
    "imagenet-v1": Published("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61", 256),
    "imagenet-v2": Published("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "11ad3fa6", 232),
}
# V1: for near-identical pictures V2 was reported to give cosines below 0.7, V1
# above 0.95 (pytorch/vision issue 8382).
DEFAULT = "imagenet-v1"


@dataclass(frozen=True)
class Weights:
    """Weights by name: the file that holds them (or will, once downloaded), or the seed of random ones."""

    name: str
    path: Path | None = None
    seed: int = 0

    @property
    def published(self) -> Published | None:
        return PUBLISHED.get(self.name)

    @property
    def missing(self) -> bool:
        """Whether these are published weights that must be downloaded first."""
        return self.published is not None and self.path is not None and not os.path.exists(self.path)

    def require(self) -> None:
        """Raise `MissingWeightsError` for published weights that must be downloaded first."""
        if self.missing:
            error = MissingWeightsError(f"the weights {self.name} are not at {self.path}: download them first")
            error.weights = self
            raise error

    def claims(self, sha256: str = "") -> Claims:
        """Return which variants these weights may be for; published ones are known by name or SHA-256."""
        published = self.published or next((p for p in PUBLISHED.values() if sha256.startswith(p.sha256)), None)
        if published:
            return Claims((TORCHVISION,), Preprocessing(resize=published.resize))
        return Claims() if self.path is None else tensors.claims(self.path)


def find(spec: str) -> Weights:
    """Return the weights that `spec` names; raise `WeightsError` when there are none."""
    if spec in PUBLISHED:
        return Weights(spec, _download_folder() / PUBLISHED[spec].url.rpartition("/")[2])
    if match := re.fullmatch(r"random(?::(\d{1,18}))?", spec):
        seed = int(match[1] or 0)
        return Weights(f"random:{seed}", seed=seed)
    with suppress(OSError, RuntimeError):  # a circle of links; the home of a user that does not exist
        if path := weight_files.resolve(Path(spec).expanduser().resolve()):
            return Weights(path.name, path)
        if Path(spec).expanduser().is_dir():
            raise WeightsError(f"weights {spec} is a folder: name a file in it")
    known = ", ".join(PUBLISHED)
    raise WeightsError(f"weights {spec}: no such file: give {known}, random[:SEED] or the path of a file")


def _download_folder() -> Path:
    folder = caches.weights_folder()
    if folder is None:
        raise WeightsError(
            "there is no home folder to look for weights in: set TORCH_HOME to a folder, or give --weights FILE"
        )
    return folder


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a weights file, in hexadecimal; of all its parts in their order where it has several."""
    try:
        state = hashlib.sha256()
        for part in weight_files.files(path):
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    state.update(block)
        return state.hexdigest()
    except OSError as error:
        raise WeightsError(
            f"weights {path} cannot be read: {error.strerror}: mend that or name another file"
        ) from error


def require(weights: Weights, claims: Claims, variant: Variant) -> None:
    """Raise `WeightsError` when `weights`, by what they claim, are not those of `variant`."""
    if variant not in claims.variants:
        names = " or ".join(fit.name for fit in claims.variants)
        raise WeightsError(
            f"the weights {weights.name} are those of the variant {names}, not of {variant.name}:"
            " leave --variant out, or name other weights"
        )


def read(weights: Weights) -> Held:
    """Return what weights that lie in a file hold, as `tensors.read` does; raise `WeightsError`.

    Published ones that are not there raise `MissingWeightsError`.
    """
    assert weights.path is not None
    weights.require()
    held = tensors.read(weights.path)
    return replace(held, claims=weights.claims()) if weights.published else held


def fetch(
    weights: Weights, *, stop: Callable[[], str | None] = lambda: None, told: Told = lambda done, total: None
) -> None:
    """Download published weights that are not there; raise `WeightsError` when that fails.

    `told` gets the bytes that there are, and how many there will be. Raises
    `waiting.Stopped` when `stop` returns a reason.
    """
    if weights.missing and weights.published and weights.path:
        download(weights.published.url, weights.published.sha256, weights.path, stop=stop, told=told)


def with_weights(work: Callable[[], T], told: Told = lambda done, total: None) -> T:
    """Return what `work` returns, fetching the weights that it lacks, if any."""
    try:
        return work()
    except MissingWeightsError as error:
        fetch(error.weights, told=told)
    return work()


def recorded(provenance: Provenance) -> Weights:
    """Return the weights that a store was made with; raise `WeightsError` when they have moved or changed."""
    if not provenance.weights_path or provenance.weights in PUBLISHED:
        return find(provenance.weights)
    path = Path(provenance.weights_path)
    if not path.is_file():
        raise WeightsError(f"{provenance.weights_label} lay at {path} and are gone: say where with --weights FILE")
    if hash_file(path) != provenance.weights_sha256:
        raise WeightsError(
            f"{path} has changed since the store was made with {provenance.weights_label}:"
            " say where that file is now with --weights FILE"
        )
    return Weights(provenance.weights, path)


@dataclass(frozen=True)
class Choices:
    """What a user says of the vectors of a run; None leaves it to the store, or else to the weights.

    Names of weights, of a variant and of a preprocessing, whether orientation
    is applied, whether large JPEGs are decoded whole, what becomes of colour
    profiles (stored or srgb), and what numbers of more than 8 bits are taken
    over (type, own or LOW:HIGH).
    """

    weights: str | None = None
    variant: str | None = None
    preprocess: str | None = None
    exif: bool | None = None
    exact_decode: bool | None = None
    color: str | None = None
    value_range: str | None = None


def settle(choices: Choices, old: Provenance | None) -> tuple[Weights, Provenance]:
    """Return the weights and the provenance of a run, `old` being that of its store, if there is one.

    Raises `WeightsError` and `PreprocessingError` for what cannot be had.
    """
    if old is not None and old.unstated:
        raise WeightsError(
            f"the features were imported, made by {old.network}, and no picture can be computed alike:"
            " search by --stored, and extract into another store"
        )
    weights = recorded(old) if choices.weights is None and old is not None else find(choices.weights or DEFAULT)
    return weights, provenance(weights, choices, old)


def provenance(weights: Weights, choices: Choices = Choices(), old: Provenance | None = None) -> Provenance:
    """Return what vectors of `weights` depend on; the rest is as for `settle`.

    The SHA-256 stays empty for random weights and for those not downloaded
    yet, unless `old` has it. Raises `WeightsError` for a downloaded file that
    is damaged.
    """
    sha256 = hash_file(weights.path) if weights.path and os.path.exists(weights.path) else ""
    if sha256 and weights.published and not sha256.startswith(weights.published.sha256):
        raise WeightsError(
            f"{weights.path} is damaged (its SHA-256 begins with {sha256[:8]}, not {weights.published.sha256}):"
            " remove it and run again"
        )
    if old is not None and choices.variant is None and sha256 and sha256 == old.weights_sha256:
        # The store's own weights are on record; to ask the file itself takes 0.7 s where Keras wrote it.
        claims = Claims((variants.recorded(old.network),), old.preprocessing)
    else:
        claims = weights.claims(sha256)
    chosen = _variant(weights, claims, choices.variant, old)
    suggested = claims.preprocessing or Preprocessing.named(chosen.preprocessing)
    if not sha256 and old is not None and weights.name == old.weights:
        sha256 = old.weights_sha256  # the engine will tell if that is not so
    return Provenance(
        weights=weights.name,
        weights_sha256=sha256,
        weights_path=str(weights.path or ""),
        network=chosen.network,
        preprocessing=_preprocessing(suggested, choices, old.preprocessing if old else None),
    )


def _variant(weights: Weights, claims: Claims, name: str | None, old: Provenance | None) -> Variant:
    """Return the variant asked for, else that of the store where the weights fit it, else their likeliest."""
    if name is not None:
        require(weights, claims, variants.named(name))
        return variants.named(name)
    if old is not None and (before := variants.recorded(old.network)) in claims.variants:
        return before
    likeliest = claims.variants[0]
    if len(claims.variants) > 1 and likeliest is not TORCHVISION:
        others = " or ".join(other.name for other in claims.variants[1:])
        logger.warning(
            "%s may be for %s as well, and is taken for %s: --variant says otherwise",
            weights.name,
            others,
            likeliest.name,
        )
    return likeliest


def _preprocessing(suggested: Preprocessing, choices: Choices, old: Preprocessing | None) -> Preprocessing:
    """Return the preprocessing asked for by name, else the store's, else what the weights suggest, and its switches."""
    known = [preprocessing for preprocessing in (old, suggested) if preprocessing is not None]
    name, exact = choices.preprocess or known[0].name, choices.exact_decode
    chosen = next((one for one in known if one.name == name), None) or Preprocessing.named(name)
    if choices.exif is not None:
        chosen = replace(chosen, exif="applied" if choices.exif else "ignored")
    if exact is not None and name == "torchvision":
        chosen = replace(chosen, decoding="exact" if exact else "scaled")
    elif exact is False:
        raise PreprocessingError(f"the preprocessing {name} decodes pictures whole: leave --scaled-decode out")
    if choices.color is not None:
        if choices.color not in PROFILES:
            raise PreprocessingError(f"there is no color {choices.color}: give one of {', '.join(PROFILES)}")
        chosen = replace(chosen, profile=PROFILES[choices.color])
    if choices.value_range is not None:
        chosen = replace(chosen, value_range=_range(choices.value_range))
    return chosen


def _range(text: str) -> str:
    """Return a range as records have it; raise `PreprocessingError` for none."""
    if limits := value_limits(text):
        return f"{limits[0]:.15g}:{limits[1]:.15g}"
    if text not in ("type", "own"):
        raise PreprocessingError(f"there is no range {text}: give type, own, or LOW:HIGH (0:4095, say)")
    return text
