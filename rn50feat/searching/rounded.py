"""Prepare vectors for products of many with many: rounded, and with a measure of what that changed.

In: vectors. Out: `Rounded`, in bfloat16 where the processor is fast at it, else
in float32. `blocks` multiplies them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rn50feat.backends.contract import cpu_has_bf16
from rn50feat.searching.products import widened

Precision = Literal["bf16", "fp32"]
Places = NDArray[np.int64]
Numbers = NDArray[np.float64]
Single = NDArray[np.float32]
NO_PLACES: Places = np.empty(0, np.int64)
# Products from which bfloat16 pays for the import of torch, 2 s of a core: each takes 28 ns less.
_ENOUGH_TO_IMPORT = 100_000_000
COLUMNS = 32  # additional ones: six are used, and products of a multiple of 32 columns are fast
_PARTS = 3  # numbers in bfloat16 that add up to one in float32
_PIECE = 60  # rows to convert at once: 0.5 MB in float32 stay in a cache
_ALONE = 15  # rows to convert by one call: for 32,768 values or more, torch wakes other threads, which then wait busily
_HUGE = 1e18  # length from which squares in float32 may overflow
TINY = 1e-30  # squared lengths below are not accurate
SUM = 1e-5  # error of a squared length in float32: 8e-6 if all roundings of a sum in 16 lanes added up


@lru_cache
def _adds_in_float32() -> bool:
    """Check that products in bfloat16 are added in float32: added in bfloat16, 2048 times 1/256 would be 1, not 8."""
    import torch

    ones = torch.ones((64, 2048), dtype=torch.bfloat16)
    return bool((torch.mm(ones, (ones / 256).T) == 8).all())


def fastest(pairs: int) -> Precision:
    """Choose the precision in which this processor multiplies `pairs` of vectors with the least work."""
    worth = "torch" in sys.modules or pairs >= _ENOUGH_TO_IMPORT
    return "bf16" if worth and cpu_has_bf16() and _adds_in_float32() else "fp32"


@dataclass(frozen=True)
class Rounded:
    """Vectors for products: (n, 2048 + `COLUMNS`) in torch's bfloat16 or numpy's float32; of length 1 for cosines.

    ``lengths`` (n,) are at least theirs, and ``moved`` (n,) at least the distances by which rounding moved them.
    ``unclear`` lists vectors without a direction, for cosines, or that are too long for products otherwise: theirs are
    -inf, as are those of damaged vectors.
    """

    values: Any
    lengths: Numbers
    moved: Numbers
    unclear: Places
    column: int  # is added to all products of a vector

    def __getitem__(self, places: Places) -> Rounded:
        """Select some of the vectors."""
        return Rounded(self.values[places], self.lengths[places], self.moved[places], NO_PLACES, self.column)

    def leave_out(self, places: Places) -> None:
        """Make the products of the vectors at `places` -inf."""
        self.values[places, self.column] = -np.inf


@np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore")
def rounded(
    vectors: NDArray[np.floating[Any]],
    metric: str,
    precision: Precision,
    *,
    centre: Single | None,
    queries: bool = False,
    room: Any = None,
) -> Rounded:
    """Prepare `vectors`, (n, 2048), for products by `metric`, as `queries` or as the rows that these meet.

    `centre` is that of `centre_of`, the same for both. Uses `room`, the values of vectors that are no longer needed,
    if that is large enough: fresh memory takes time.
    """
    count, width = vectors.shape
    enough = room is not None and len(room) >= count
    values = room[:count] if enough else _empty((count, width + COLUMNS), precision)
    values[:, width:] = 0
    lengths, moved, squares = np.empty(count), np.zeros(count), np.empty(count)
    wide, kept = np.empty((2, _PIECE, width), np.float32)
    for start in range(0, count, _PIECE):
        part = slice(start, min(start + _PIECE, count))
        size = part.stop - start
        piece = _widen(vectors[part], wide[:size], precision)
        lengths[part] = _prepare(piece, vectors[part], metric)
        if centre is not None:
            piece -= centre
        if precision == "fp32":
            values[part, :width] = rounded = piece
        else:
            rounded = _round(piece, values[part, :width], kept[:size])
            piece -= rounded
            moved[part] = np.sqrt(_squares(piece))
        squares[part] = _squares(rounded)
    damaged = ~np.isfinite(lengths)
    unclear = np.flatnonzero((lengths == 0 if metric == "cosine" else lengths >= _HUGE) & ~damaged)
    moved = moved * (1 + SUM) + np.sqrt(squares) * 2.0**-23 + TINY
    if metric == "cosine":
        moved += SUM  # by rounding the length
    column, ones = (width, width + _PARTS) if queries else (width + _PARTS, width)
    values[:, ones : ones + _PARTS] = 1
    _add(values[:, column : column + _PARTS], -squares / 2 if metric != "ip" else np.zeros(count))
    made = Rounded(values, np.sqrt(squares) * (1 + SUM) + moved, moved, unclear, column)
    made.leave_out(np.concatenate([np.flatnonzero(damaged), unclear]))
    return made


@np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore")
def centre_of(queries: NDArray[np.floating[Any]], metric: str) -> Single | None:
    """Return the mean of `queries`, (2048,), on which vectors are centred: rounding moves short vectors less.

    Distances do not depend on it. With random weights all cosines are above 0.999, and without it all rows of a store
    are in doubt. Inner products have none.
    """
    if metric == "ip":
        return None
    total = np.zeros(queries.shape[1])
    for start in range(0, len(queries), _PIECE):
        piece = widened(queries[start : start + _PIECE], np.float32).copy()
        _prepare(piece, queries[start : start + _PIECE], metric)
        total += piece.sum(axis=0, dtype=np.float64)
    return (total / max(1, len(queries))).astype(np.float32)


def _squares(rows: Single) -> Single:
    squares: Single = np.einsum("ij,ij->i", rows, rows)
    return squares


def _empty(shape: tuple[int, int], precision: Precision) -> Any:
    if precision == "fp32":
        return np.empty(shape, np.float32)
    import torch

    return torch.empty(shape, dtype=torch.bfloat16)


def _widen(vectors: NDArray[np.floating[Any]], into: Single, precision: Precision) -> Single:
    """Convert a few vectors to float32; torch, if it is used anyway, is four times as fast as a table."""
    if precision == "fp32" or not vectors.flags.writeable:  # torch warns of the latter
        into[:] = widened(vectors, np.float32)
        return into
    import torch

    source, target = torch.from_numpy(vectors), torch.from_numpy(into)
    for start in range(0, len(vectors), _ALONE):
        target[start : start + _ALONE].copy_(source[start : start + _ALONE])
    return into


def _round(piece: Single, into: Any, kept: Single) -> Single:
    """Round `piece` into a part of the values, and return in `kept` what it became."""
    import torch

    source, result = torch.from_numpy(piece), torch.from_numpy(kept)
    for start in range(0, len(piece), _ALONE):
        part = slice(start, start + _ALONE)
        into[part].copy_(source[part])
        result[part].copy_(into[part])
    return kept


def _prepare(piece: Single, vectors: NDArray[np.floating[Any]], metric: str) -> Numbers:
    """Return the lengths of `piece`, made of `vectors`. Scale it to length 1 for cosines, and clear damaged vectors."""
    squares = _squares(piece).astype(np.float64)
    usual = squares.min() > TINY and squares.max() < _HUGE**2
    if not usual:
        squares = np.square(vectors, dtype=np.float64).sum(axis=1)
    lengths: Numbers = np.sqrt(squares)
    if metric == "cosine":
        piece *= (1 / lengths).astype(np.float32)[:, None]
    if not usual:
        if metric == "cosine":  # 1 / length may be infinite
            piece[:] = vectors / np.where(lengths > 0, lengths, 1)[:, None]
        else:
            piece[lengths >= _HUGE] = 0
        piece[~np.isfinite(lengths)] = 0
    return lengths


def _add(columns: Any, numbers: Numbers) -> None:
    """Write numbers as sums of parts, each of which meets a 1 of another vector."""
    for part in range(_PARTS):
        if isinstance(columns, np.ndarray):
            columns[:, part] = numbers
            numbers = numbers - columns[:, part]
        else:
            import torch

            columns[:, part] = torch.from_numpy(numbers)
            numbers = numbers - columns[:, part].double().numpy()
