"""Say what a store cannot hold, of a file or of its features.

In: a `Reference`, or rows of features. Out: whether they can be stored, and
the ledger's reason where they cannot. What one file cannot have stored costs
that file, not the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ArgumentError
from rn50feat.sources.sources import Reference

_NUMBERS = np.iinfo(np.int64)
_DIGEST = 16  # bytes
_NOT_HELD = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the other surrogates stand for bytes of a name


def unstorable(reference: Reference) -> str | None:
    """Return the ledger's reason when a store cannot hold the name, size or time of a file, else None."""
    if text_for_ledger(reference.location) != reference.location:
        return "has a name that a store cannot hold (a NUL, or half a character of UTF-16): rename it"
    if reference.size > _NUMBERS.max:
        return f"has a size of {reference.size} bytes, more than a store can hold: look at where it comes from"
    if not _NUMBERS.min <= reference.mtime_ns <= _NUMBERS.max:
        return "has a modification time outside what a store can hold, 1677-09-22 to 2262-04-11: touch it"
    return None


def unstorable_row(reference: Reference) -> str | None:
    """Return what `unstorable` does, and a reason for a file that was not read as it should be."""
    if len(reference.digest) != _DIGEST:
        return f"came with a digest of {len(reference.digest)} bytes, not {_DIGEST}: try again with --retry-failed"
    if reference.size < 0:
        return f"came with a size of {reference.size} bytes: try again with --retry-failed"
    return unstorable(reference)


def require_storable(references: Iterable[Reference]) -> None:
    """Raise `ArgumentError` for the first of `references` that can have no row."""
    for reference in references:
        if (fault := unstorable_row(reference)) is not None:
            raise ArgumentError(f"{reference.location} {fault}")


def for_ledger(reference: Reference) -> Reference:
    """Return a file as its ledger entry can name it: what cannot be held is spelled out, or the nearest number."""
    size, mtime_ns = (min(max(number, _NUMBERS.min), _NUMBERS.max) for number in (reference.size, reference.mtime_ns))
    return replace(reference, location=text_for_ledger(reference.location), size=int(size), mtime_ns=int(mtime_ns))


def text_for_ledger(text: str) -> str:
    r"""Return `text` as a store can hold it: NULs become ``\x00``, and surrogates that stand for no byte ``\ud800``."""
    return _NOT_HELD.sub(lambda match: f"\\u{ord(match[0]):x}" if ord(match[0]) else r"\x00", text)


def storable(features: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> Any:
    """Check for each row, the last axis, whether all its values are finite in `dtype`; float16 ends at 65504."""
    with np.errstate(over="ignore"):
        return np.isfinite(features.astype(dtype)).all(axis=-1)


def not_storable(row: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> str:
    """Return the ledger's reason for a row that is not `storable`."""
    remedy = ": a new store with --dtype float32 holds them" if np.isfinite(row).all() else ""
    return f"has features that are not finite in {dtype}{remedy}"
