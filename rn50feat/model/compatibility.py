"""Check that a run's weights and preprocessing match a store.

In: the choices of a run, and the store. Out: the weights and provenance of
the run, or an error that says why its rows do not belong in the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rn50feat.errors import StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.model.weights import Choices, Weights, settle

_ANOTHER = "use another file, or --overwrite, which discards all its rows"


class Stored(Protocol):
    """The part of a `FeatureStore` that this package uses without importing it."""

    path: Path
    provenance: Provenance

    @property
    def dtype(self) -> object:
        """The dtype of its rows."""


def agree(
    old: Stored | None, choices: Choices, dtype: str | None, *, remedy: str = _ANOTHER
) -> tuple[Weights, Provenance]:
    """Determine the weights and provenance of a run that writes to `old`, or to a new store.

    Choices left open are taken from `old`. Raises `ProvenanceError` or
    `StoreError` with `remedy` for choices that differ from it, and
    `WeightsError` if the weights are not available.
    """
    agreed, provenance = settle(choices, None if old is None else old.provenance)
    require(old, provenance, remedy=remedy)
    if old is not None and dtype is not None and old.dtype != dtype:
        raise StoreError(f"{old.path} holds {old.dtype}, you asked for {dtype}: {remedy}")
    return agreed, provenance


def require(old: Stored | None, provenance: Provenance, *, remedy: str = _ANOTHER) -> None:
    """Raise `ProvenanceError` if vectors with `provenance` do not belong in `old`."""
    if old is not None:
        old.provenance.require(provenance, where=str(old.path), remedy=remedy)
