"""Choose the kind of index for a store.

In: the number of rows and the memory limit. Out: a FAISS factory string, what
it will cost, and why it was chosen.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rn50feat.errors import IndexingError, size
from rn50feat.store.layout import WIDTH

FLAT = "IDMap2,Flat"
FLAT_ROWS = 50_000  # up to here a full scan takes 30 ms per query
MAX_RAM = 2_000_000_000  # bytes
VECTOR = 4 * WIDTH  # bytes of a row as float32
RABITQ_ROW = 272  # bytes: one bit per dimension, two factors, the id
WORK = 200_000_000  # bytes: a block of rows as stored, as float32 and as float32 of length 1, and its codes
SAMPLE_A_LIST = 39  # rows: with fewer, FAISS warns that centroids are poor
HELD_OUT = 200  # rows that are excluded from training to measure recall
SAMPLE = 50_000  # rows that a user's choice of index is trained on


@dataclass(frozen=True)
class Plan:
    """A kind of index for a store.

    ``sample`` is the number of rows to train on, ``size`` the expected size
    of the file and ``memory`` the memory that building takes, in bytes.
    """

    factory: str
    reason: str
    sample: int
    size: int
    memory: int


def choose(rows: int, *, max_ram: int = MAX_RAM) -> Plan:
    """Choose an index for a store of `rows` rows that can be built in `max_ram` bytes.

    Raises `IndexingError` if there is none.
    """
    flat = rows * (VECTOR + 8)
    if rows <= FLAT_ROWS and flat + WORK <= max_ram:
        return Plan(FLAT, f"a full scan is fast and exact up to {FLAT_ROWS} rows", 0, flat, flat + WORK)
    lists = _lists(rows, max_ram)
    sample = min(lists * SAMPLE_A_LIST, _trainable(rows))
    size = rows * RABITQ_ROW + lists * VECTOR
    memory = max(sample * VECTOR, rows * RABITQ_ROW) + lists * VECTOR + WORK
    if memory > max_ram:
        raise _too_large(memory, max_ram)
    reason = f"{rows} rows are too many to scan" if rows > FLAT_ROWS else "whole rows do not fit in --max-ram"
    reason += f": {RABITQ_ROW} instead of {VECTOR} bytes per row, in {lists} lists of which a query probes a few"
    return Plan(f"IVF{lists},RaBitQ", reason, sample, size, memory)


def custom(factory: str, rows: int, *, row_size: int, lists: int, trained: bool, max_ram: int = MAX_RAM) -> Plan:
    """Plan an index of the user's choice, with `row_size` bytes per row in `lists` inverted lists.

    `trained` means that it needs no training. Raises `IndexingError` if it
    cannot be built in `max_ram` bytes.
    """
    fixed = lists * VECTOR + WORK
    sample = 0 if trained else min(max(SAMPLE, lists * SAMPLE_A_LIST), _trainable(rows))
    sample = min(sample, max(1, (max_ram - fixed) // VECTOR))
    memory = max(sample * VECTOR, rows * row_size) + fixed
    if memory > max_ram:
        raise _too_large(memory, max_ram)
    return Plan(factory, "as requested", sample, rows * row_size + lists * VECTOR, memory)


def larger(factory: str, rows: int, max_ram: int) -> str:
    """Return the options for an index with larger codes than `factory`."""
    found = re.fullmatch(r"IVF(\d+),RaBitQ(\d?)", factory)
    lists = int(found[1]) if found else _lists(rows, max_ram)
    better, row = (f"IVF{lists},RaBitQ4", 1052) if found and not found[2] else (f"IVF{lists},SQfp16", VECTOR // 2 + 8)
    memory = max(rows * row, lists * SAMPLE_A_LIST * VECTOR) + lists * VECTOR + WORK
    return f"--factory {better}" + (f" --max-ram {-(-memory // 10**9)}G" if memory > max_ram else "")


def chosen_by_user(factory: str) -> str | None:
    """Return an index's factory string if a user chose it; None for one that `choose` would return."""
    return None if factory == FLAT or re.fullmatch(r"IVF\d+,RaBitQ", factory) else factory


def _lists(rows: int, max_ram: int) -> int:
    """Return about twice the square root of `rows`, as a power of 2, or fewer if the sample would not fit."""
    wanted = 1 << round(math.log2(2 * math.sqrt(max(1, rows))))
    room = max(0, max_ram - WORK) // (VECTOR * (SAMPLE_A_LIST + 1))
    return max(1, min(wanted, room, _trainable(rows) // SAMPLE_A_LIST))


def _trainable(rows: int) -> int:
    """Return the number of rows to train on at most: some are kept to measure recall."""
    return max(1, rows - max(1, min(HELD_OUT, rows // 4)))


def _too_large(memory: int, max_ram: int) -> IndexingError:
    return IndexingError(
        f"building this index takes about {size(memory)} of memory, but --max-ram allows"
        f" {size(max_ram)}: raise it, or use a smaller --factory"
    )
