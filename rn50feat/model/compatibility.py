"""Agree with a store on weights and preprocessing.

In: what a run asks for, and the store. Out: the weights and the provenance of
the run, or an error that says why its rows do not belong there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rn50feat.errors import StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.model.weights import Choices, Weights, settle

_ANOTHER = "use another file, or --overwrite, which discards all its rows"


class Stored(Protocol):
    """What this package needs of a `FeatureStore`, which it does not import."""

    path: Path
    provenance: Provenance

    @property
    def dtype(self) -> object:
        """The dtype of its rows."""


def agree(
    old: Stored | None, choices: Choices, dtype: str | None, *, remedy: str = _ANOTHER
) -> tuple[Weights, Provenance]:
    """Return the weights and provenance of a run that is to write to `old`, or to a new store.

    What is not said is as in `old`. Raises `ProvenanceError` or `StoreError`
    when what is said differs from it, with `remedy`, and `WeightsError`.
    """
    agreed, provenance = settle(choices, None if old is None else old.provenance)
    require(old, provenance, remedy=remedy)
    if old is not None and dtype is not None and old.dtype != dtype:
        raise StoreError(f"{old.path} holds {old.dtype}, you asked for {dtype}: {remedy}")
    return agreed, provenance


def require(old: Stored | None, provenance: Provenance, *, remedy: str = _ANOTHER) -> None:
    """Raise `ProvenanceError` when vectors of `provenance` do not belong in `old`."""
    if old is not None:
        old.provenance.require(provenance, where=str(old.path), remedy=remedy)
