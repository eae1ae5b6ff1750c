"""Distinguish a damaged store from everything else that can go wrong with one.

In: a block that calls HDF5 with valid arguments. Out: a `StoreError` for a
file that HDF5 cannot read or that does not match the layout. Too little
memory and too few file handles are reported as such, and this program's own
bugs keep their traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rn50feat.durable.disk import advice
from rn50feat.errors import DamagedStoreError, OutOfMemoryError, StoreError, invocation

LAST_REMEDY = (
    "restore it from a backup; without one, move it away and extract again, which recomputes every image but cannot"
    " bring back rows that were imported or whose images are gone"
)


class Malformed(Exception):
    """A file does not match the layout; to be raised inside `reporting_damage`."""


H5PY_ERRORS = (OSError, RuntimeError, LookupError, ValueError, Malformed)  # what reading a damaged file may raise


def remedy(path: Path) -> str:
    """Say what to do about a store whose attributes can be read, but not all of its datasets."""
    saving = invocation("compact", path, "--to", "NEW.h5")
    return f"restore it from a backup; without one, {saving} saves what can be read"


@contextmanager
def reporting_damage(path: Path, fix: str = "") -> Iterator[None]:
    """Turn HDF5's errors on a broken file, and `Malformed`, into `DamagedStoreError`; leave other errors alone.

    `fix` is what to do, `remedy` by default.
    """
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(path) from error
    except Malformed as error:
        raise damaged(path, str(error), fix) from error
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        if not _raised_by_h5py(error):
            raise
        reason = " ".join(str(error).split()).strip("'\"") or type(error).__name__  # str(KeyError) has quotes
        if "memory allocation failed" in reason:
            raise _out_of_memory(path) from error
        if isinstance(error, OSError) and error.errno:
            raise StoreError(f"{path} cannot be read ({os.strerror(error.errno)}): {advice(error)}") from error
        raise damaged(path, reason, fix) from error


def damaged(path: Path, reason: str, fix: str = "") -> DamagedStoreError:
    """Build the error for a store that is damaged for `reason`; `fix` is what to do, `remedy` by default."""
    return DamagedStoreError(f"{path} is damaged ({reason}): {fix or remedy(path)}")


def wrong_row(path: Path, image: str) -> DamagedStoreError:
    """Return the error for a row that differs from its checksum."""
    return DamagedStoreError(
        f"the row of {image} in {path} is damaged: run rn50feat extract on its sources with --heal, which computes it"
        " again"
    )


def wrong_table(path: Path, name: str) -> DamagedStoreError:
    """Return the error for a small table that differs from its checksum."""
    return DamagedStoreError(
        f"what {path} holds in {name} is damaged: run rn50feat extract on its sources, which repairs it"
    )


def _out_of_memory(path: Path) -> OutOfMemoryError:
    return OutOfMemoryError(f"not enough memory for {path}: close other programs, or raise the limit")


def _raised_by_h5py(error: BaseException) -> bool:
    """Check whether an error was raised inside h5py; errors of the same types from elsewhere are bugs."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in Path(trace.tb_frame.f_code.co_filename).parts
