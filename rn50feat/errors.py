"""Define every error that a user can fix, and its exit code.

The library raises the leaves of this tree, and the command line turns each of
them into one ``Error:`` line::

    RN50FeatError                exit code 1
    ├── SourceError              a source folder or file that cannot be used
    │   ├── VanishedError        a file that was there when its folder was listed
    │   ├── TooLargeError        a file with more bytes than any image that is allowed
    │   └── DamagedError         an archive, or bytes in one, that are damaged
    ├── ImageError               one image that cannot be decoded (a ledger entry, not an exit)
    ├── WeightsError             weights that are missing, damaged or not a ResNet50's
    │   └── MissingWeightsError  published weights that must be downloaded first
    ├── PreprocessingError       a preprocessing that this machine lacks, or that does not allow an option
    ├── DeviceError              a device or precision that this machine lacks
    ├── LimitError               a limit of the process, its container or machine that is too low
    ├── ClusterError             a Ray cluster that cannot be reached or used
    ├── StoreError               a store that cannot be read or written
    │   ├── ProvenanceError      a store whose features have another provenance
    │   ├── DamagedStoreError    a store that is damaged
    │   ├── OutOfMemoryError     too little memory to read or write a store (a MemoryError)
    │   ├── StoreBusyError       a store that another program keeps open
    │   ├── StoreLockedError     75: another run holds the store
    │   ├── RowError             a row that a store does not have (an IndexError)
    │   └── ArgumentError        an argument that does not fit a store (a ValueError)
    ├── IndexingError            an index that cannot be built or used
    │   └── HistoryError         an index whose ids are from another history of its store
    ├── ExchangeError            features that cannot be exported or imported
    ├── QueryError               a search that cannot be answered
    ├── PruneError               rows that were not removed, as a precaution
    ├── VerifyError              a store with faults
    ├── PageError                an HTML page that cannot be written
    ├── OutputError              results that cannot be printed
    ├── TooManyFailuresError     4: more failures than --max-failures or --max-ledger allows
    └── SeveralErrors            a run that failed in several ways: the highest of their codes

A message names the thing, the cause and the fix.
"""

import shlex
from collections.abc import Sequence
from typing import Any


class RN50FeatError(Exception):
    """Base of all errors that the user can fix; ``summary`` is what a run committed before the error, if any."""

    exit_code = 1
    summary: Any = None


class SourceError(RN50FeatError):
    """A source folder or file cannot be used."""


class VanishedError(SourceError):
    """A file is gone that was there when its folder was listed."""


class TooLargeError(SourceError):
    """A file or archive member has more bytes than any image may have; the message is the ledger's reason."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"has {size:,} bytes, more than an image may have ({most:,}): raise --max-megapixels")


class DamagedError(SourceError):
    """An archive, or the bytes of a member, are damaged; the message is the ledger's reason."""


class ImageError(RN50FeatError):
    """One image cannot be decoded; the message is the ledger's reason."""


class WeightsError(RN50FeatError):
    """Weights are missing, damaged, or not a ResNet50's."""


class MissingWeightsError(WeightsError):
    """Published weights, in ``weights``, are not on this machine yet: `weights.fetch` downloads them."""

    weights: Any = None


class PreprocessingError(RN50FeatError):
    """A preprocessing is not available here, or not with the options given."""


class DeviceError(RN50FeatError):
    """This machine lacks the device or the precision asked for."""


class LimitError(RN50FeatError):
    """A limit of this process, its container or its machine (open files, memory) is too low."""


class ClusterError(RN50FeatError):
    """A Ray cluster cannot be reached, or its nodes cannot do the work."""


class StoreError(RN50FeatError):
    """A store cannot be found, read or written."""


class ProvenanceError(StoreError):
    """A store holds features of another network, weights or preprocessing."""


class DamagedStoreError(StoreError):
    """A store is damaged: HDF5 cannot read it, or something is missing from it."""


class OutOfMemoryError(StoreError, MemoryError):
    """There is too little memory to read or write a store."""


class StoreBusyError(StoreError):
    """Another program keeps a store open, or is writing to it, for too long."""


class StoreLockedError(StoreError):
    """Another run holds the store."""

    exit_code = 75


class RowError(StoreError, IndexError):
    """A store does not have the rows asked for."""


class ArgumentError(StoreError, ValueError):
    """An argument does not fit a store: nothing was read or written."""


class IndexingError(RN50FeatError):
    """A store's index cannot be built, or cannot be searched with."""


class HistoryError(IndexingError):
    """An index has seen commits that its store has not: their ids may mean different rows."""


class ExchangeError(RN50FeatError):
    """Features cannot be exported to a file or database, or imported from a file."""


class QueryError(RN50FeatError):
    """A search cannot be answered."""


class PruneError(RN50FeatError):
    """Rows were not removed, because that looks like a mistake; the rest of the run was done."""


class VerifyError(RN50FeatError):
    """A store has faults."""


class PageError(RN50FeatError):
    """An HTML page cannot be written."""


class OutputError(RN50FeatError):
    """Results cannot be written to standard output."""


class TooManyFailuresError(RN50FeatError):
    """More images failed than the user allows."""

    exit_code = 4


class SeveralErrors(RN50FeatError):
    """A run failed in several ways, listed in ``errors``; its exit code is the highest of theirs."""

    def __init__(self, errors: Sequence[RN50FeatError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors
        vars(self)["exit_code"] = max(error.exit_code for error in errors)


def raise_all(errors: Sequence[RN50FeatError]) -> None:
    """Raise the one error in `errors`, or `SeveralErrors`; do nothing if it is empty."""
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)


def invocation(command: str, *words: object) -> str:
    """Write a command as a shell takes it: rn50feat index 'my store.h5' --rebuild."""
    return shlex.join(["rn50feat", command, *map(str, words)])


def count(number: int, thing: str, things: str | None = None) -> str:
    """Format a number with its noun, as in 1 row or 2 rows; `things` is an irregular plural."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def size(length: float) -> str:
    """Format a number of bytes, as in 2.5 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while length >= 1000 and len(units) > 1:
        length /= 1000
        del units[0]
    return f"{length:.3g} {'byte' if length == 1 and units[0] == 'bytes' else units[0]}"
