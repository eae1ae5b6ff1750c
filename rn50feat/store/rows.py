"""Convert a selection of rows to row numbers, by numpy's rules.

In: an int, a slice, a list or array of ints, or a mask, and the number of
rows. Out: row numbers from 0 on, or a `RowError` that says what is wrong.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat import errors
from rn50feat.errors import ArgumentError, RowError


def row_numbers(rows: Any, count: int, where: object) -> NDArray[np.int64]:
    """Return the numbers of the rows, out of `count`, that ``array[rows]`` would select.

    They are int64 of shape () for an int, and (n,) for a list, a slice or a
    mask of shape (count,). Negative numbers count from the end. Raises
    `RowError`, which is an `IndexError`, for rows that `where` does not have
    and for anything that is not a selection.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count), dtype=np.int64)
    try:
        numbers = np.asarray(rows)
    except ValueError as error:  # lists of different lengths
        raise _no_selection(rows) from error
    if numbers.dtype == bool:
        if numbers.shape != (count,):
            held = errors.count(count, "row")
            raise RowError(f"{where} has {held}, the mask has shape {numbers.shape}: use one value per row")
        return np.flatnonzero(numbers)
    if numbers.dtype.kind not in "iu" and (numbers.size or numbers.dtype == object):
        raise _no_selection(rows)
    outside = (numbers < -count) | (numbers >= count)
    if outside.any():
        raise _no_row(int(numbers[outside].flat[0]), count, where)
    numbers = numbers.astype(np.int64)
    return np.where(numbers < 0, numbers + count, numbers)


def row_number(row: Any, count: int, where: object) -> int:
    """Return the number, from 0 on, of one row, which may be negative; raise `RowError` as `row_numbers` does."""
    try:
        number = operator.index(row)
    except TypeError as error:
        raise RowError(f"{_shown(row)} is not a row number: use an integer") from error
    if isinstance(row, bool):
        raise RowError(f"{row} is not a row number: use an integer")
    if not -count <= number < count:
        raise _no_row(number, count, where)
    return number % count


def span(first: Any, rows: Any) -> slice:
    """Build the slice of at most `rows` rows from `first` on; raise `ArgumentError` for negative numbers."""
    try:
        start, length = operator.index(first), operator.index(rows)
    except TypeError as error:
        raise ArgumentError(
            f"{first!r} and {rows!r} must be integers: give the first row and the number of rows"
        ) from error
    if start < 0 or length < 0:
        raise ArgumentError(f"there are no {length} rows from row {start} on: use numbers of at least 0")
    return slice(start, start + length)


def _no_row(number: int, count: int, where: object) -> RowError:
    last = f", 0 to {count - 1}" if count > 1 else ""
    return RowError(f"{where} has no row {number}: it has {errors.count(count, 'row')}{last}")


def _no_selection(rows: Any) -> RowError:
    return RowError(f"{_shown(rows)} cannot select rows: use integers, a slice or a mask of bools")


def _shown(value: Any) -> str:
    return " ".join(repr(value).split())[:60]
