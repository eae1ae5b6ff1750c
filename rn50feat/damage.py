"""Tell of a damaged store.

In: a block that reads or writes HDF5. Out: a `StoreError` in place of whatever
HDF5 and numpy raise there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rn50feat.errors import StoreError

REMEDY = "restore it from a backup, or delete it and extract anew"


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Tell of a store that is not what this program wrote: HDF5 and numpy raise many things on one."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"{path} is damaged ({reason}): {REMEDY}") from error
