"""Choose the kind of index for a store.

In: the number of rows and the memory limit. Out: a FAISS factory string, what
it will cost, and why it was chosen.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from rn50feat.errors import IndexingError, size
from rn50feat.store.layout import WIDTH

FLAT = "IDMap2,Flat"
FLAT_ROWS = 50_000  # up to here a scan takes 0.1 s per query, and loading an index as long
MAX_RAM = 2_000_000_000  # bytes
VECTOR = 4 * WIDTH  # bytes of a row as float32
HALF = 2 * WIDTH  # bytes of a row of the sample that a RaBitQ index is trained on
RABITQ_ROW = 272  # bytes: one bit per dimension, two factors, the id
GROWTH = 2  # lists in memory grow by doubling, so that up to half of their space is unused
ID = 8  # bytes
# From here on, a graph finds the lists to probe: of 8,192, the nearest 64 take 1.8 ms per query instead of 5.6 with all
# centroids, of 16,384, 2.3 instead of 13. Of 4,096, it is 1.0 instead of 1.4: not worth the few lists that it misses.
GRAPH_LISTS = 8192
WORK = 200_000_000  # bytes: a block of rows as stored, as float32 and as float32 of length 1, and its codes
SAMPLE_A_LIST = 39  # rows: with fewer, FAISS warns that centroids are poor
HELD_OUT = 200  # rows that are excluded from training to measure recall
LEAST_PART = 50_000  # rows
# Kinds whose codes are whole rows. What comes before the lists, such as PCA64, would shorten them.
_WHOLE = re.compile(r"(IDMap2?,)?(IVF\d+(_HNSW\d+)?,)?(Flat|SQfp16|(HNSW|NSG)\d+(,Flat)?)")
SAMPLE = 50_000  # rows that a user's choice of index is trained on


@dataclass(frozen=True)
class Plan:
    """A kind of index for a store.

    ``sample`` is the number of rows to train on, ``size`` the expected size
    of the file and ``memory`` the memory that building takes, in bytes. The
    index is built in parts of ``part`` rows.
    """

    factory: str
    reason: str
    sample: int
    size: int
    memory: int
    part: int


def choose(rows: int, *, max_ram: int = MAX_RAM) -> Plan:
    """Choose an index for a store of `rows` rows that can be built in `max_ram` bytes.

    Raises `IndexingError` if there is none.
    """
    flat = rows * (VECTOR + ID)
    if rows <= FLAT_ROWS and flat + WORK <= max_ram:
        return Plan(FLAT, f"a full scan is fast and exact up to {FLAT_ROWS} rows", 0, flat, flat + WORK, rows)
    lists = _lists(rows, max_ram)
    factory = f"IVF{lists}_HNSW32,RaBitQ" if lists >= GRAPH_LISTS else f"IVF{lists},RaBitQ"
    reason = f"{rows} rows are too many to scan" if rows > FLAT_ROWS else "whole rows do not fit in --max-ram"
    reason += f": {RABITQ_ROW} instead of {VECTOR} bytes per row, in {lists} lists of which a query probes a few"
    sample = min(lists * SAMPLE_A_LIST, _trainable(rows))
    return _bounded(Plan(factory, reason, sample, 0, 0, rows), rows, RABITQ_ROW, HALF, lists, max_ram, divisible=True)


def custom(
    factory: str,
    rows: int,
    *,
    row_size: int,
    sample_row: int,
    lists: int,
    trained: bool,
    divisible: bool,
    max_ram: int = MAX_RAM,
) -> Plan:
    """Plan an index of the user's choice, with `row_size` bytes per row in `lists` inverted lists.

    `trained` means that it needs no training, on rows of `sample_row` bytes,
    and `divisible` that it can be built in parts. Raises `IndexingError` if it
    cannot be built in `max_ram` bytes.
    """
    sample = 0 if trained else min(max(SAMPLE, lists * SAMPLE_A_LIST), _trainable(rows))
    sample = min(sample, max(1, (max_ram - WORK - 2 * lists * VECTOR) // sample_row))
    plan = Plan(factory, "as requested", sample, 0, 0, rows)
    return _bounded(plan, rows, row_size, sample_row, lists, max_ram, divisible=divisible)


def _bounded(
    plan: Plan, rows: int, row_size: int, sample_row: int, lists: int, max_ram: int, *, divisible: bool
) -> Plan:
    """Complete `plan` so that building it takes at most `max_ram` bytes; raise `IndexingError` if it cannot."""
    fixed, growth = WORK + lists * VECTOR, GROWTH if lists else 1
    part = part_rows(rows, row_size, lists, max_ram) if divisible else rows
    training, adding = plan.sample * sample_row + lists * VECTOR, part * row_size * growth + rows * (ID + 1)
    memory = fixed + max(training, adding, rows * 2 * ID)  # at the end, recall is measured with two copies of the ids
    if memory > max_ram:
        raise _too_large(memory, max_ram)
    return replace(plan, size=rows * row_size + lists * VECTOR, memory=memory, part=part)


def part_rows(rows: int, row_size: int, lists: int, max_ram: int) -> int:
    """Return how many of `rows` rows in `lists` lists fit in `max_ram` bytes at once, but at least `LEAST_PART`."""
    room = max_ram - WORK - lists * VECTOR - rows * (ID + 1)
    return min(rows, max(LEAST_PART, room // (row_size * GROWTH)))


def larger(factory: str, rows: int, max_ram: int) -> str | None:
    """Return a factory string for an index with larger codes than `factory`; None if its codes are whole rows."""
    if _WHOLE.fullmatch(factory):
        return None
    found = re.fullmatch(r"(IVF\d+(?:_HNSW32)?),RaBitQ(\d?)", factory)
    lists = found[1] if found else f"IVF{_lists(rows, max_ram)}"
    return f"{lists}," + ("RaBitQ4" if found and not found[2] else "SQfp16")


def chosen_by_user(factory: str) -> str | None:
    """Return an index's factory string if a user chose it; None for one that `choose` would return."""
    return None if factory == FLAT or re.fullmatch(r"IVF\d+(_HNSW32)?,RaBitQ", factory) else factory


def _lists(rows: int, max_ram: int) -> int:
    """Return about twice the square root of `rows`, as a power of 2, or fewer if the sample would not fit."""
    wanted = 1 << round(math.log2(2 * math.sqrt(max(1, rows))))
    room = max(0, max_ram - WORK) // (HALF * SAMPLE_A_LIST + 2 * VECTOR)
    return max(1, min(wanted, room, _trainable(rows) // SAMPLE_A_LIST))


def _trainable(rows: int) -> int:
    """Return the number of rows to train on at most: some are kept to measure recall."""
    return max(1, rows - max(1, min(HELD_OUT, rows // 4)))


def _too_large(memory: int, max_ram: int) -> IndexingError:
    return IndexingError(
        f"building this index takes about {size(memory)} of memory, but --max-ram allows"
        f" {size(max_ram)}: raise it, or use a smaller --factory"
    )
