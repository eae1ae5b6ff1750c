"""Convert the tensors of a Keras or slim file to those of torchvision's ResNet50.

In: the tensors that a file holds and those that it must hold. Out: float32
arrays under torchvision's names and in its layout. A file with a missing,
unexpected or misshapen tensor is refused before any tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files import names
from rn50feat.model.weight_files.names import Expected, Naming, Shape

Array = NDArray[np.float32]

_ORIGIN = {
    "keras": "the ResNet50 of keras.applications",
    "keras-old": "the ResNet50 of Keras up to 2.2.4",
    "slim": "slim's resnet_v1_50",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name and shape there, and the function that reads it."""

    name: str
    shape: Shape
    read: Callable[[], Array]


@dataclass(frozen=True)
class Translated:
    """The tensors of a file under torchvision's names, and which of the published networks they belong to."""

    variant: str
    tensors: dict[str, Array]


def translate(path: Path, variant: Naming, found: Mapping[str, Stored], *, scope: str = "") -> Translated:
    """Convert the tensors found in the file `path`, by their names there, to those of `variant`.

    Convolutions become OIHW, the classifier (1000, 2048), and biases before
    batch norms are subtracted from the means. Raises `WeightsError` naming the
    first tensor that is missing, unexpected, misshapen or not finite.
    """
    classifier = any(name.rpartition("/")[0] == scope + names.CLASSIFIER[variant] for name in found)
    expected = names.expected(variant, classifier=classifier, scope=scope)
    if fault := _fault(found, expected):
        raise WeightsError(f"{path} is not {_ORIGIN[variant]} ({fault}): use a weights file of that network")
    tensors: dict[str, Array] = {}
    for tensor in expected:
        stored = found[tensor.source]
        value = stored.read()
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {shown_name(stored.name)} has NaN or infinite values: download it again")
        if tensor.subtracted:
            with np.errstate(over="ignore"):  # from a damaged file; the network refuses values that are not finite
                tensors[tensor.name] -= value
        else:
            tensors[tensor.name] = np.ascontiguousarray(_arranged(tensor.name, value))
    return Translated(variant, tensors)


def _arranged(name: str, value: Array) -> Array:
    """Rearrange a tensor in torch's layout."""
    if name == "fc.weight":
        return value.reshape(-1, names.CLASSES).T  # slim's is a convolution of 1x1
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


def _fault(found: Mapping[str, Stored], expected: list[Expected]) -> str | None:
    """Describe the first tensor that is missing, unexpected or misshapen; None if there is none."""
    for tensor in expected:
        stored = found.get(tensor.source)
        if stored is None:
            return f"{tensor.source} is missing"
        if stored.shape != tensor.shape:
            return f"{shown_name(stored.name)} has shape {stored.shape}, not {tensor.shape}"
    known = {tensor.source for tensor in expected}
    surplus = [stored.name for name, stored in found.items() if name not in known]
    return f"{shown_name(surplus[0])} is unexpected" if surplus else None


def shown_name(name: str) -> str:
    """Escape and shorten a name from a file for a message of one line."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."
