"""Decide what to do with each file.

In: references, and the catalogue of the store. Out: a `Step` for each file,
and for each member of an archive. A file is opened only when the store does
not know it by path, size and time, and hashed only when an image in the store
has the same size. An archive that has not changed is not opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from rn50feat.errors import DamagedError, SourceError
from rn50feat.extraction.catalogue import Catalogue, KnownArchive
from rn50feat.extraction.moves import Moves
from rn50feat.images import decoding, kinds
from rn50feat.sources import contents
from rn50feat.sources.archive import Archive, ArchiveRecord, is_compressed_whole
from rn50feat.sources.exclusion import Excluded
from rn50feat.sources.location import at
from rn50feat.sources.reference import Reference
from rn50feat.sources.selection import Found
from rn50feat.sources.tars import COMPRESSED
from rn50feat.store.paths import stored_path
from rn50feat.store.reader import FailureRecord
from rn50feat.store.storable import for_ledger, unstorable


class Verdict(Enum):
    """What to do with a file."""

    UNCHANGED = "its row stays"
    TOUCHED = "its row stays, with a new time"
    MOVED = "its row stays, with a new path and time"
    COPY = "its features are those of another row"
    COMPUTE = "it goes through the network"
    FAILED_BEFORE = "it failed, and has not changed"
    IGNORED = "it is no image"
    APPLEDOUBLE = "it is macOS metadata of another file"
    EXCLUDED = "a pattern excludes it"
    PACKED = "an archive compressed as a whole"
    MISSING = "it is listed, but does not exist"
    KNOWN = "an archive that has not changed"
    OPENED = "an archive, whose members follow"
    UNSTORABLE = "a store cannot hold its name, size or time"
    UNREADABLE = "an archive that cannot be read this time"
    LISTED = "an archive, after all its members, except those behind a fault"


@dataclass(frozen=True)
class Step:
    """A file, what to do with it, its row (None for a new image) and the row that it is a copy of.

    For an archive: what is ``known`` about it, the number of ``members`` that
    follow, its ``fault``, a ``doubt`` about its names, or the ``record`` for
    the store. For an excluded file: the ``pattern``, and no size or time.
    """

    verdict: Verdict
    reference: Reference
    row: int | None = None
    twin: int | None = None
    known: KnownArchive | None = None
    members: int = 0
    fault: str = ""
    doubt: str = ""
    record: ArchiveRecord | None = None
    pattern: str = ""


def plan(
    found: Iterable[Found],
    store: Path,
    catalogue: Catalogue,
    *,
    again: Callable[[FailureRecord], bool],
    hashing: bool = True,
    rule: Callable[[str], str | None] = lambda member: None,
    moves: Moves | None = None,
) -> Iterator[Step]:
    """Yield a step for each file that was `found`, by what `catalogue` knows about the store at `store`.

    `again` decides which failures to try again although their files have not
    changed. Without `hashing`, no file is read whole, and copies count as new
    images. `rule` returns the pattern that excludes a member of an archive,
    and `moves` recognises images that moved, if given.
    """
    known = partial(_step, store=store, catalogue=catalogue, again=again, hashing=hashing, moves=moves)

    def step(member: Reference) -> Step:
        pattern = rule(member.location)
        return known(member) if pattern is None else _excluded(Excluded(member.location, pattern))

    for file in found:
        if isinstance(file, Excluded):
            yield _excluded(file)
        elif isinstance(file, Reference):
            yield known(file)
        elif file.reference.size >= 0 and unstorable(file.reference) is None:
            yield from _archive(file, stored_path(store, file.reference.location), catalogue, again, step)
        else:
            yield known(file.reference, wanted=True)


def _excluded(found: Excluded) -> Step:
    return Step(Verdict.EXCLUDED, Reference(found.location, -1, -1), pattern=found.pattern)


def _step(
    reference: Reference,
    *,
    store: Path,
    catalogue: Catalogue,
    again: Callable[[FailureRecord], bool],
    hashing: bool,
    moves: Moves | None,
    wanted: bool = False,
) -> Step:
    if (fault := unstorable(reference)) is not None:
        return _unstorable(reference, fault, store, catalogue, again, wanted=wanted)
    path = stored_path(store, reference.location)
    row = catalogue.row(path)
    if row is not None and catalogue.unchanged(row, reference):
        return Step(Verdict.UNCHANGED, reference, row)
    failure = catalogue.failure(path, reference)
    if row is None and _is_appledouble(reference, known=path in catalogue.failures):
        return Step(Verdict.APPLEDOUBLE, reference)
    if failure is not None and not again(failure):
        return Step(Verdict.FAILED_BEFORE, reference, row)
    if reference.size < 0:
        return Step(Verdict.MISSING, reference, row)
    if is_compressed_whole(reference.location):
        return Step(Verdict.PACKED, reference, row, fault=COMPRESSED)
    if row is None and path not in catalogue.failures and not _is_image(reference):
        return Step(Verdict.IGNORED, reference)
    if not hashing or not catalogue.may_hold_copy(reference.size):
        return Step(Verdict.COMPUTE, reference, row)
    step = _hashed(reference, row, catalogue, moves)
    if (fault := unstorable(step.reference)) is not None:  # it changed after it was listed
        return _unstorable(step.reference, fault, store, catalogue, again)
    return step


def _unstorable(
    reference: Reference,
    fault: str,
    store: Path,
    catalogue: Catalogue,
    again: Callable[[FailureRecord], bool],
    *,
    wanted: bool = False,
) -> Step:
    """Return the step of a file that cannot have a row, or not as it is now: an entry in the ledger.

    A file that is neither `wanted`, nor known, nor an image is ignored.
    """
    entry = for_ledger(reference)
    path = stored_path(store, entry.location)
    row = catalogue.row(path)
    if (failure := catalogue.failure(path, entry)) and not again(failure):
        return Step(Verdict.FAILED_BEFORE, entry, row)
    wanted = wanted or row is not None or path in catalogue.failures
    if not wanted and not _is_image(reference):
        return Step(Verdict.IGNORED, entry)
    return Step(Verdict.UNSTORABLE, entry, row, fault=fault)


def _archive(
    archive: Archive,
    path: str,
    catalogue: Catalogue,
    again: Callable[[FailureRecord], bool],
    step: Callable[[Reference], Step],
) -> Iterator[Step]:
    """Yield the steps of an archive: one if all members are known, else `OPENED`, one per member, and `LISTED`."""
    reference = archive.reference
    known, failed = catalogue.archive(path, reference), catalogue.failure(path, reference)
    if known is not None and not (failed and again(failed)) and not _worth_opening(known, again):
        yield Step(Verdict.KNOWN, reference, known=known)
        if failed:
            yield Step(Verdict.FAILED_BEFORE, reference)
        return
    counts: Counter[Verdict] = Counter()
    try:
        listing = archive.listing()
    except DamagedError as error:
        fault = str(error)
    except SourceError as error:
        yield Step(Verdict.UNREADABLE, reference, fault=str(error))
        return
    else:
        fault = listing.fault
        yield Step(Verdict.OPENED, reference, members=len(listing.members), doubt=listing.doubt)
        for member in archive.members():
            yield (one := step(member))
            counts[one.verdict] += 1
    others = counts.pop(Verdict.IGNORED, 0) + counts.pop(Verdict.APPLEDOUBLE, 0)
    record = ArchiveRecord(path, reference.size, reference.mtime_ns, counts.total(), others)
    yield Step(Verdict.LISTED, reference, fault=fault, record=record)


def _worth_opening(known: KnownArchive, again: Callable[[FailureRecord], bool]) -> bool:
    """Check whether a failed member may succeed now, or is one that early versions took for an image."""
    return any(again(failure) or kinds.named_as_appledouble(failure.path) for failure in known.failures)


def _is_appledouble(reference: Reference, *, known: bool) -> bool:
    """Check whether a new file is macOS metadata of another one.

    Its name decides first where reading it costs something: on every run for
    a file in the ledger, and in remote storage.
    """
    unlikely = not kinds.named_as_appledouble(reference.location)
    if reference.size < 0 or (unlikely and (known or at(reference.location).needs_network)):
        return False
    if unlikely and not decoding.has_image_suffix(reference.location):
        return False  # its content is checked anyway
    try:
        return kinds.is_appledouble(contents.head(reference))
    except SourceError:
        return False


def _hashed(reference: Reference, row: int | None, catalogue: Catalogue, moves: Moves | None) -> Step:
    """Return the step of a file after hashing it: touched, moved, a copy of a known image, or to be computed."""
    try:
        reference = contents.digest(reference)
    except SourceError:  # the engine meets the same error, and reports it
        return Step(Verdict.COMPUTE, reference, row)
    if row is not None and catalogue.digest(row) == reference.digest:
        return Step(Verdict.TOUCHED, reference, row)
    if (twin := catalogue.row_of_copy(reference.digest)) is None:
        return Step(Verdict.COMPUTE, reference, row)
    if row is None and moves and (moved := moves.origin(reference.digest)) is not None:
        return Step(Verdict.MOVED, reference, moved)
    return Step(Verdict.COPY, reference, row, twin)


def _is_image(reference: Reference) -> bool:
    if decoding.has_image_suffix(reference.location):
        return True
    if at(reference.location).needs_network and os.path.splitext(reference.location)[1]:
        return False  # not read: every run would pay for that again
    try:
        return decoding.has_image_signature(contents.head(reference))
    except SourceError:  # it cannot be read, and its name is not that of an image
        return False
