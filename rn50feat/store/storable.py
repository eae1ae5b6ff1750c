"""Check whether a store can hold a file's record and features.

In: a `Reference`, or rows of features. Out: whether they can be stored, and
the ledger's reason if not. A file that cannot be stored fails by itself; it
does not stop the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ArgumentError, StoreError
from rn50feat.sources.reference import Reference

if TYPE_CHECKING:
    from rn50feat.store.reader import FeatureStore

_NUMBERS = np.iinfo(np.int64)
_DIGEST = 16  # bytes
_UNSTORABLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the other surrogates stand for bytes of a name


def unstorable(reference: Reference) -> str | None:
    """Return the ledger's reason if a store cannot hold a file's name, size or time, else None."""
    if text_for_ledger(reference.location) != reference.location:
        return "has a name that a store cannot hold (a NUL, or half a character of UTF-16): rename it"
    if reference.size > _NUMBERS.max:
        return f"has a size of {reference.size} bytes, more than a store can hold: check where it comes from"
    if not _NUMBERS.min <= reference.mtime_ns <= _NUMBERS.max:
        return "has a modification time outside what a store can hold, 1677-09-22 to 2262-04-11: touch it"
    return None


def unstorable_row(reference: Reference) -> str | None:
    """Check like `unstorable`, and also that the file was read properly."""
    if len(reference.digest) != _DIGEST:
        return f"came with a digest of {len(reference.digest)} bytes, not {_DIGEST}: try again with --retry-failed"
    if reference.size < 0:
        return f"came with a size of {reference.size} bytes: try again with --retry-failed"
    return unstorable(reference)


def require_storable(references: Iterable[Reference]) -> None:
    """Raise `ArgumentError` for the first of `references` that a store cannot hold."""
    for reference in references:
        if (fault := unstorable_row(reference)) is not None:
            raise ArgumentError(f"{reference.location} {fault}")


def for_ledger(reference: Reference) -> Reference:
    """Make a file storable in the ledger: escape its name, and clip its size and time."""
    size, mtime_ns = (min(max(number, _NUMBERS.min), _NUMBERS.max) for number in (reference.size, reference.mtime_ns))
    return replace(reference, location=text_for_ledger(reference.location), size=int(size), mtime_ns=int(mtime_ns))


def text_for_ledger(text: str) -> str:
    r"""Escape what a store cannot hold: NULs as ``\x00``, and surrogates that stand for no byte as ``\ud800``."""
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match[0]):x}" if ord(match[0]) else r"\x00", text)


def storable(features: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> Any:
    """Check whether each row (the last axis) is finite in `dtype`, which ends at 65504 for float16."""
    with np.errstate(over="ignore"):
        return np.isfinite(features.astype(dtype)).all(axis=-1)


def not_storable(row: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> str:
    """Return the ledger's reason for a row that is not `storable`."""
    remedy = ": use a new store with --dtype float32" if np.isfinite(row).all() else ""
    return f"has features that are not finite in {dtype}{remedy}"


def settle_dtype(old: FeatureStore | None, asked: str | None, offered: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype of a store that takes rows from elsewhere; `offered` has the dtypes of their files, by name.

    That is `old`'s, else what is `asked` for, else float16 where nothing
    wider is offered. Raises `StoreError` where digits would be lost unasked,
    or `old` differs from what is asked for.
    """
    wide = next((name for name, dtype in offered.items() if dtype.itemsize > 2), None)
    if old is None:
        return np.dtype(asked or ("float16" if wide is None else "float32"))
    if asked is not None and old.dtype != asked:
        raise StoreError(f"{old.path} holds {old.dtype}, you asked for {asked}: use another file")
    if asked is None and wide is not None and old.dtype == np.float16:
        raise StoreError(
            f"{wide} holds {offered[wide]}, {old.path} float16: give --dtype float16 to round, or use another file"
        )
    return old.dtype


def require_rows(references: Sequence[Reference], features: NDArray[np.floating[Any]], shape: tuple[int, ...]) -> None:
    """Raise `ArgumentError` for features of another shape, and for files that a store cannot hold."""
    given = np.asarray(features)
    if given.shape != shape or given.dtype.kind not in "fiu":
        raise ArgumentError(
            f"features of shape {given.shape} and dtype {given.dtype} do not fit {len(references)} images:"
            f" use numbers of shape {shape}"
        )
    require_storable(references)
