"""Turn the tensors of a Keras or slim file into those of torchvision's ResNet50.

In: what a file holds and what it must hold. Out: float32 arrays under
torchvision's names and in its layout. A file that lacks a tensor, has one too
many or one of another shape is refused, before anything of it is read.
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
    """Return the tensors of `variant` from those found in the file `path`, by their names there.

    Convolutions become OIHW, the classifier (1000, 2048), and the biases before
    batch norms are subtracted from the means. Raises `WeightsError` naming the
    first tensor that is missing, misshapen or one too many.
    """
    classifier = any(name.rpartition("/")[0] == scope + names.CLASSIFIER[variant] for name in found)
    expected = names.expected(variant, classifier=classifier, scope=scope)
    if fault := _fault(found, expected):
        raise WeightsError(f"{path} is not {_ORIGIN[variant]}: {fault}: give a file of that network's weights")
    tensors: dict[str, Array] = {}
    for tensor in expected:
        stored = found[tensor.source]
        value = stored.read()
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {shown_name(stored.name)} holds values that are not finite: fetch it again")
        if tensor.subtracted:
            with np.errstate(over="ignore"):  # of a damaged file; the network refuses what is not finite
                tensors[tensor.name] -= value
        else:
            tensors[tensor.name] = np.ascontiguousarray(_arranged(tensor.name, value))
    return Translated(variant, tensors)


def _arranged(name: str, value: Array) -> Array:
    """Return a tensor in torch's layout."""
    if name == "fc.weight":
        return value.reshape(-1, names.CLASSES).T  # slim's is a convolution of 1x1
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


def _fault(found: Mapping[str, Stored], expected: list[Expected]) -> str | None:
    """Describe the first tensor that is missing, has the wrong shape or is one too many; None if all are right."""
    for tensor in expected:
        stored = found.get(tensor.source)
        if stored is None:
            return f"{tensor.source} is missing"
        if stored.shape != tensor.shape:
            return f"{shown_name(stored.name)} has shape {stored.shape}, not {tensor.shape}"
    known = {tensor.source for tensor in expected}
    surplus = [stored.name for name, stored in found.items() if name not in known]
    return f"{shown_name(surplus[0])} is one too many" if surplus else None


def shown_name(name: str) -> str:
    """Return a name from a file as it can stand in a message of one line."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."
