"""Separate a damaged store from everything else that can go wrong with one.

In: a block that calls HDF5 with arguments known to be good. Out: a
`StoreError` for a file that HDF5 cannot read, or that lacks what the layout
says; a lack of memory or of file handles is reported as such, and a bug of
this program stays what it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rn50feat.durable.disk import advice
from rn50feat.errors import DamagedStoreError, OutOfMemoryError, StoreError

REMEDY = (
    "restore it from a backup; without one, move it away and extract again, which computes every image anew, but cannot"
    " bring back rows that were imported or whose images are gone"
)


class Malformed(Exception):
    """A file holds something else than the layout says; for use inside `damage_told`."""


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Report what HDF5 raises on a broken file, and `Malformed`, as damage; leave all other errors alone."""
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(path) from error
    except Malformed as error:
        raise damaged(path, str(error)) from error
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        if not _raised_by_h5py(error):
            raise
        reason = " ".join(str(error).split()).strip("'\"") or type(error).__name__  # a KeyError comes in quotes
        if "memory allocation failed" in reason:
            raise _out_of_memory(path) from error
        if isinstance(error, OSError) and error.errno:
            raise StoreError(f"{path} cannot be read ({os.strerror(error.errno)}): {advice(error)}") from error
        raise damaged(path, reason) from error


def damaged(path: Path, reason: str) -> DamagedStoreError:
    """Return the error for a store that is damaged in some way."""
    return DamagedStoreError(f"{path} is damaged ({reason}): {REMEDY}")


def _out_of_memory(path: Path) -> OutOfMemoryError:
    return OutOfMemoryError(f"there is not enough memory for {path}: close other programs, or raise the limit")


def _raised_by_h5py(error: BaseException) -> bool:
    """Check whether an error was raised inside h5py: the same types from anywhere else are bugs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in Path(trace.tb_frame.f_code.co_filename).parts
