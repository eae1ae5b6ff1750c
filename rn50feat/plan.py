"""Decide what a run must do with each file.

In: references, and the catalogue of the store. Out: a `Step` for each. A file
is opened only when the store does not know it by path, size and time; it is
hashed only when its size is that of a picture in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rn50feat import images, sources
from rn50feat.catalogue import Catalogue
from rn50feat.errors import SourceError
from rn50feat.sources import Reference
from rn50feat.store import stored_path


class Verdict(Enum):
    """What is to be done with a file."""

    UNCHANGED = "its row stands"
    TOUCHED = "its row stands, with a new time"
    COPY = "its features are those of another row"
    COMPUTE = "it goes through the network"
    FAILED_BEFORE = "it failed, and has not changed"
    IGNORED = "it is no picture"
    MISSING = "it is listed, but not there"


@dataclass(frozen=True)
class Step:
    """A file, what to do with it, its own row (None for a new picture) and the row that it is a copy of."""

    verdict: Verdict
    reference: Reference
    row: int | None = None
    twin: int | None = None


def plan(
    references: Iterable[Reference], store: Path, catalogue: Catalogue, *, retry_failed: bool, hashing: bool = True
) -> Iterator[Step]:
    """Yield a step for each of `references`, by what `catalogue` knows of the store at `store`.

    Without `hashing` no file is read whole, and copies are not told from new pictures.
    """
    for reference in references:
        path = stored_path(store, reference.location)
        row = catalogue.row(path)
        if row is not None and catalogue.unchanged(row, reference):
            yield Step(Verdict.UNCHANGED, reference, row)
        elif catalogue.failed_before(path, reference) and not retry_failed:
            yield Step(Verdict.FAILED_BEFORE, reference, row)
        elif reference.size < 0:
            yield Step(Verdict.MISSING, reference, row)
        elif row is None and path not in catalogue.failures and not _is_picture(reference):
            yield Step(Verdict.IGNORED, reference)
        elif not hashing or not catalogue.may_hold_copy(reference.size):
            yield Step(Verdict.COMPUTE, reference, row)
        else:
            yield _hashed(reference, row, catalogue)


def _hashed(reference: Reference, row: int | None, catalogue: Catalogue) -> Step:
    """Tell a copy of a known picture from one that must be computed."""
    try:
        reference = sources.digest(reference)
    except SourceError:  # the engine will meet the same error, and report it
        return Step(Verdict.COMPUTE, reference, row)
    if row is not None and catalogue.digest(row) == reference.digest:
        return Step(Verdict.TOUCHED, reference, row)
    twin = catalogue.row_of_copy(reference.digest)
    return Step(Verdict.COMPUTE if twin is None else Verdict.COPY, reference, row, twin)


def _is_picture(reference: Reference) -> bool:
    if images.named_as_picture(reference.location):
        return True
    try:
        return images.holds_picture(sources.head(reference))
    except SourceError:  # it cannot be read, and its name does not say picture
        return False
