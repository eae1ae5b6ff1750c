"""Choose the kind of index for a store.

In: how many rows there are, and how much memory may be used. Out: a FAISS
factory string, what it will take, and why it was chosen.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rn50feat.errors import IndexingError, size
from rn50feat.store.layout import WIDTH

FLAT = "IDMap2,Flat"
FLAT_ROWS = 50_000  # up to here a whole scan takes 30 ms a query
MAX_RAM = 2_000_000_000  # bytes
VECTOR = 4 * WIDTH  # bytes of a row as float32
RABITQ_ROW = 272  # bytes: one bit a dimension, two factors, the id
WORK = 200_000_000  # bytes: a block of rows as stored, as float32 and as float32 of length 1, and its codes
SAMPLE_A_LIST = 39  # rows: with fewer, FAISS warns that centroids are poor
HELD_OUT = 200  # rows, kept out of the training, that recall is measured with
SAMPLE = 50_000  # rows that a kind of the user's choice is trained on


@dataclass(frozen=True)
class Plan:
    """A kind of index for a store.

    ``sample`` is how many rows it is trained on, ``size`` the expected
    length of its file and ``memory`` that of what building takes, in bytes.
    """

    factory: str
    reason: str
    sample: int
    size: int
    memory: int


def choose(rows: int, *, max_ram: int = MAX_RAM) -> Plan:
    """Return the kind of index for a store of `rows` rows that can be built in `max_ram` bytes.

    Raises `IndexingError` when none can.
    """
    flat = rows * (VECTOR + 8)
    if rows <= FLAT_ROWS and flat + WORK <= max_ram:
        return Plan(FLAT, f"up to {FLAT_ROWS} rows a scan of all is fast and exact", 0, flat, flat + WORK)
    lists = _lists(rows, max_ram)
    sample = min(lists * SAMPLE_A_LIST, _trainable(rows))
    size = rows * RABITQ_ROW + lists * VECTOR
    memory = max(sample * VECTOR, rows * RABITQ_ROW) + lists * VECTOR + WORK
    if memory > max_ram:
        raise _too_large(memory, max_ram)
    reason = f"{rows} rows are too many to scan" if rows > FLAT_ROWS else "whole rows do not fit in --max-ram"
    reason += f": {RABITQ_ROW} bytes a row instead of {VECTOR}, in {lists} lists of which a query looks into a few"
    return Plan(f"IVF{lists},RaBitQ", reason, sample, size, memory)


def custom(factory: str, rows: int, *, row_size: int, lists: int, trained: bool, max_ram: int = MAX_RAM) -> Plan:
    """Return the plan for a kind of the user's choice: `row_size` bytes a row in `lists` inverted lists.

    `trained` says that it needs no training. Raises `IndexingError` when it
    cannot be built in `max_ram` bytes.
    """
    fixed = lists * VECTOR + WORK
    sample = 0 if trained else min(max(SAMPLE, lists * SAMPLE_A_LIST), _trainable(rows))
    sample = min(sample, max(1, (max_ram - fixed) // VECTOR))
    memory = max(sample * VECTOR, rows * row_size) + fixed
    if memory > max_ram:
        raise _too_large(memory, max_ram)
    return Plan(factory, "as you asked", sample, rows * row_size + lists * VECTOR, memory)


def asked_for(factory: str) -> str | None:
    """Return the kind of an index if a user asked for it, None for one that `choose` gives."""
    return None if factory == FLAT or re.fullmatch(r"IVF\d+,RaBitQ", factory) else factory


def _lists(rows: int, max_ram: int) -> int:
    """Return about twice the root of `rows`, as a power of 2, if the sample for that fits."""
    wanted = 1 << round(math.log2(2 * math.sqrt(max(1, rows))))
    room = max(0, max_ram - WORK) // (VECTOR * (SAMPLE_A_LIST + 1))
    return max(1, min(wanted, room, _trainable(rows) // SAMPLE_A_LIST))


def _trainable(rows: int) -> int:
    """Return how many rows may be trained on: some stay out, to measure with."""
    return max(1, rows - max(1, min(HELD_OUT, rows // 4)))


def _too_large(memory: int, max_ram: int) -> IndexingError:
    return IndexingError(
        f"building this index takes about {size(memory)} of memory, and --max-ram allows"
        f" {size(max_ram)}: raise it, or give a smaller --factory"
    )
