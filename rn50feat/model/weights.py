"""Find and check the weights of a network, and determine a run's provenance.

In: what ``--weights`` takes (``imagenet-v1``, ``imagenet-v2``, a file, or
``random[:SEED]``), the other choices of a run, and the store's record. Out:
the weights and the provenance of the run, without importing torch. Missing
weights are never replaced by others, nor used for another variant.
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
from rn50feat.images import settings
from rn50feat.images.provenance import PROFILES, Preprocessing, Provenance, value_limits
from rn50feat.model import records, tensors, variants, weight_files
from rn50feat.model.download import OnDownload, download
from rn50feat.model.tensors import Claims, Held
from rn50feat.model.variants import TORCHVISION, Variant

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """Weights published by torchvision: their URL, the first digits of their SHA-256, and the resize in pixels."""

    url: str
    sha256: str
    resize: int


# Copied from torchvision.models.ResNet50_Weights, so that naming them needs no torchvision.
PUBLISHED = {
    "imagenet-v1": Published("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61", 256),
    "imagenet-v2": Published("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "11ad3fa6", 232),
}
# V1 because V2 was reported to give cosines below 0.7 for near-identical
# images, V1 above 0.95 (pytorch/vision issue 8382).
DEFAULT = "imagenet-v1"


@dataclass(frozen=True)
class Weights:
    """Weights by name: their file (which may have to be downloaded first), or the seed of random ones."""

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
        """Find the variants that these weights may be for; published ones are recognised by name or SHA-256."""
        published = self.published or next((p for p in PUBLISHED.values() if sha256.startswith(p.sha256)), None)
        if published:
            return Claims((TORCHVISION,), Preprocessing(resize=published.resize))
        return Claims() if self.path is None else tensors.claims(self.path)


def find(spec: str) -> Weights:
    """Find the weights that `spec` names; raise `WeightsError` if there are none."""
    if spec in PUBLISHED:
        return Weights(spec, _download_folder() / PUBLISHED[spec].url.rpartition("/")[2])
    if match := re.fullmatch(r"random(?::(\d{1,18}))?", spec):
        seed = int(match[1] or 0)
        return Weights(f"random:{seed}", seed=seed)
    with suppress(OSError, RuntimeError):  # a loop of links; the home folder of an unknown user
        if path := weight_files.resolve(Path(spec).expanduser().resolve()):
            return Weights(path.name, path)
        if Path(spec).expanduser().is_dir():
            raise WeightsError(f"weights {spec} is a folder: name a file in it")
    known = ", ".join(PUBLISHED)
    raise WeightsError(f"weights {spec}: no such file: use {known}, random[:SEED] or the path of a file")


def _download_folder() -> Path:
    folder = caches.weights_folder()
    if folder is None:
        raise WeightsError(
            "there is no home folder to look for weights in: set TORCH_HOME to a folder, or use --weights FILE"
        )
    return folder


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a weights file, in hexadecimal, over all its parts in order if it has several."""
    try:
        state = hashlib.sha256()
        for part in weight_files.files(path):
            with open(part, "rb") as file:
                while block := file.read(1 << 20):
                    state.update(block)
        return state.hexdigest()
    except OSError as error:
        raise WeightsError(
            f"weights {path} cannot be read ({error.strerror}): fix that, or use another file"
        ) from error


def require(weights: Weights, claims: Claims, variant: Variant) -> None:
    """Raise `WeightsError` if `weights`, going by their `claims`, are not for `variant`."""
    if variant not in claims.variants:
        names = " or ".join(fit.name for fit in claims.variants)
        raise WeightsError(
            f"the weights {weights.name} are for the variant {names}, not {variant.name}:"
            " leave --variant out, or use other weights"
        )


def read(weights: Weights) -> Held:
    """Read weights from their file, as `tensors.read` does; raises `WeightsError`.

    Published weights that are not downloaded yet raise `MissingWeightsError`.
    """
    assert weights.path is not None
    weights.require()
    held = tensors.read(weights.path)
    return replace(held, claims=weights.claims()) if weights.published else held


def fetch(
    weights: Weights,
    *,
    stop: Callable[[], str | None] = lambda: None,
    on_download: OnDownload = lambda done, total: None,
) -> None:
    """Download published weights if they are missing; raise `WeightsError` if that fails.

    `on_download` gets (bytes done, bytes in total). Raises `waiting.Stopped`
    when `stop` returns a reason.
    """
    if weights.missing and weights.published and weights.path:
        published = weights.published
        download(published.url, published.sha256, weights.path, stop=stop, on_download=on_download)


def with_weights(work: Callable[[], T], on_download: OnDownload = lambda done, total: None) -> T:
    """Call `work` and return its result; if weights are missing, download them and call it again."""
    try:
        return work()
    except MissingWeightsError as error:
        fetch(error.weights, on_download=on_download)
    return work()


def recorded(provenance: Provenance) -> Weights:
    """Find the weights that a store was made with; raise `WeightsError` if they have moved or changed."""
    if not provenance.weights_path or provenance.weights in PUBLISHED:
        return find(provenance.weights)
    path = Path(provenance.weights_path)
    if not path.is_file():
        raise WeightsError(f"{provenance.weights_label} is no longer at {path}: name the file with --weights FILE")
    if hash_file(path) != provenance.weights_sha256:
        raise WeightsError(
            f"{path} has changed since the store was made with {provenance.weights_label}:"
            " name the original file with --weights FILE"
        )
    return Weights(provenance.weights, path)


@dataclass(frozen=True)
class Choices:
    """A user's choices for the vectors of a run; None leaves one to the store, or else to the weights.

    The names of the weights, the variant and the preprocessing; whether to
    apply the orientation; whether to decode large JPEGs in full; what to do
    with colour profiles (stored or srgb); and the range that samples of more
    than 8 bits are scaled from (type, own or LOW:HIGH).
    """

    weights: str | None = None
    variant: str | None = None
    preprocess: str | None = None
    exif: bool | None = None
    exact_decode: bool | None = None
    color: str | None = None
    value_range: str | None = None


def settle(choices: Choices, old: Provenance | None) -> tuple[Weights, Provenance]:
    """Determine the weights and provenance of a run; `old` is the provenance of its store, if there is one.

    Raises `WeightsError` or `PreprocessingError` for choices that are not
    possible.
    """
    if old is not None and old.unstated:
        raise WeightsError(
            f"the features were imported, made by {old.network}, and no image can be embedded the same way:"
            " search with --stored, and extract into another store"
        )
    weights = recorded(old) if choices.weights is None and old is not None else find(choices.weights or DEFAULT)
    return weights, provenance(weights, choices, old)


def provenance(weights: Weights, choices: Choices = Choices(), old: Provenance | None = None) -> Provenance:
    """Determine the provenance of vectors made with `weights`; the rest is as for `settle`.

    The SHA-256 stays empty for random weights and for those not downloaded
    yet, unless `old` has it. Raises `WeightsError` for a damaged download.
    """
    sha256 = hash_file(weights.path) if weights.path and os.path.exists(weights.path) else ""
    if sha256 and weights.published and not sha256.startswith(weights.published.sha256):
        raise WeightsError(
            f"{weights.path} is damaged (its SHA-256 begins with {sha256[:8]}, not {weights.published.sha256}):"
            " delete it and run again"
        )
    if old is not None and choices.variant is None and sha256 and sha256 == old.weights_sha256:
        # The store records this for its own weights; reading it from a Keras file takes 0.7 s.
        claims = Claims((variants.recorded(old.network),), old.preprocessing, old.weights_layout)
    else:
        claims = weights.claims(sha256)
    chosen = _variant(weights, claims, choices.variant, old)
    name, changes = settings.parse(choices.preprocess) if choices.preprocess else (None, {})
    suggested = claims.preprocessing
    if suggested is None and weights.path and not weights.published and name is None and old is None:
        suggested = records.preprocessing(weights.path, claims.own)
    known = [one for one in (old.preprocessing if old else None, suggested) if one is not None]
    known.append(Preprocessing.named(name or chosen.preprocessing))
    base = next(one for one in known if name in (None, one.name))
    if not sha256 and old is not None and weights.name == old.weights:
        sha256 = old.weights_sha256  # the engine raises an error if that is wrong
    return Provenance(
        weights=weights.name,
        weights_sha256=sha256,
        weights_path=str(weights.path or ""),
        weights_layout=claims.layout,
        network=chosen.network,
        preprocessing=_adjusted(base.changed(changes), choices),
        quantization=old.quantization if old else None,
    )


def _variant(weights: Weights, claims: Claims, name: str | None, old: Provenance | None) -> Variant:
    """Choose the requested variant, else the store's if the weights fit it, else the likeliest for the weights."""
    if name is not None:
        require(weights, claims, variants.named(name))
        return variants.named(name)
    if old is not None and (before := variants.recorded(old.network)) in claims.variants:
        return before
    likeliest = claims.variants[0]
    if len(claims.variants) > 1 and likeliest is not TORCHVISION:
        others = " or ".join(other.name for other in claims.variants[1:])
        logger.warning(
            "%s may also be for %s; assuming %s: choose another with --variant",
            weights.name,
            others,
            likeliest.name,
        )
    return likeliest


def _adjusted(chosen: Preprocessing, choices: Choices) -> Preprocessing:
    """Apply the choices other than --preprocess to a preprocessing."""
    exact = choices.exact_decode
    if choices.exif is not None:
        chosen = replace(chosen, exif="applied" if choices.exif else "ignored")
    if exact is not None and chosen.filtered:
        chosen = replace(chosen, decoding="exact" if exact else "scaled")
    elif exact is False:
        raise PreprocessingError(
            f"the preprocessing {chosen.name} always decodes images in full: leave --scaled-decode out"
        )
    if choices.color is not None:
        if choices.color not in PROFILES:
            raise PreprocessingError(f"there is no color {choices.color}: use one of {', '.join(PROFILES)}")
        chosen = replace(chosen, profile=PROFILES[choices.color])
    if choices.value_range is not None:
        chosen = replace(chosen, value_range=_range(choices.value_range))
    return chosen


def _range(text: str) -> str:
    """Normalise a range as it is recorded; raise `PreprocessingError` for anything else."""
    if limits := value_limits(text):
        return f"{limits[0]:.15g}:{limits[1]:.15g}"
    if text not in ("type", "own"):
        raise PreprocessingError(f"there is no range {text}: use type, own or LOW:HIGH, for example 0:4095")
    return text
