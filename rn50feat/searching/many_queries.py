"""Find the best rows for many queries at once.

In: query vectors, and a store's rows block by block. Out: a `Best` for each
query. `blocks` multiplies each block with all queries. The pairs that may
belong to the best are multiplied again in float32, and those that are still
within the error of the last place are scored by `scores` in the end. So the
results are the same for any precision of the products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching import blocks
from rn50feat.searching.best import Best, Rows
from rn50feat.searching.blocks import Bounds
from rn50feat.searching.rounded import NO_PLACES, Numbers, Places, Precision, centre_of, rounded
from rn50feat.searching.scores import Vectors, tolerance

_NEARNESSES = 1 << 23  # of a block: 16 MB in bfloat16
_WAITING = 256  # rows that wait to be scored, for each query
_SAMPLE = 32  # one in so many numbers of a row makes up its key, a sum with these factors
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, 65)], np.uint64)
_TOGETHER = 4096  # rows to read together, for one query or several


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query and a row, all of shape (p,), and the range of their nearness."""

    queries: Places
    rows: Rows
    low: Numbers
    high: Numbers

    def __getitem__(self, chosen: NDArray[np.bool_] | Places) -> _Pairs:
        return _Pairs(self.queries[chosen], self.rows[chosen], self.low[chosen], self.high[chosen])

    def by_query(self) -> tuple[_Pairs, Places]:
        """Order pairs by query, and those of a query by what they reach at least; return them and their places."""
        order = np.lexsort((-self.low, self.queries))
        pairs = self[order]
        return pairs, np.arange(len(order)) - np.searchsorted(pairs.queries, pairs.queries)

    def __add__(self, other: _Pairs) -> _Pairs:
        return _Pairs(
            np.concatenate([self.queries, other.queries]),
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.low, other.low]),
            np.concatenate([self.high, other.high]),
        )


def most(k: int) -> int:
    """Return how many queries to treat at once: 51 MB in both precisions, and what waits for each of them."""
    return max(16, min(4096, (1 << 20) // k))


def size_of_blocks(queries: int) -> int:
    """Return how many rows to compare with this number of queries at once."""
    return max(1024, min(4096, _NEARNESSES // queries))


class ManyQueries:
    """The best rows for each of many queries so far."""

    def __init__(
        self,
        queries: Vectors,
        own: Sequence[Rows],
        k: int,
        metric: str,
        precision: Precision,
        ids: Rows,
        read: Callable[[Rows], Vectors],
    ) -> None:
        """Look for the `k` best rows for `queries`, (m, 2048), without their `own`.

        `ids` are those of all rows of the store, and `read` reads the features of some.
        """
        self._metric, self._k, self._ids, self._read = metric, k, ids, read
        self._centre = centre_of(queries, metric)
        self._rounded = self._fine = rounded(queries, metric, precision, centre=self._centre, queries=True)
        if precision != "fp32":
            self._fine = rounded(queries, metric, "fp32", centre=self._centre, queries=True)
        self._precision, self._room = precision, None
        self._bests = [Best(query, k, metric) for query in queries]
        self._lows = np.full((len(queries), k), -np.inf)  # what the k best rows reach at least
        self._limits = np.full(len(queries), -np.inf)  # what other rows have to reach
        self._own = np.concatenate([np.empty(0, np.int64), *own])
        self._whose = np.repeat(np.arange(len(queries)), [len(rows) for rows in own])
        self._enough = k + max(map(len, own), default=0)  # equal rows that matter
        self._waiting = _Pairs(*np.empty((2, 0), np.int64), *np.empty((2, 0)))

    @property
    def unclear(self) -> Places:
        """The queries that have no products, and so find nothing."""
        return self._rounded.unclear

    def look_at(self, numbers: Rows, features: Vectors) -> None:
        """Compare all queries with the rows `numbers`, ascending, and their `features`, (n, 2048)."""
        rows = rounded(features, self._metric, self._precision, centre=self._centre, room=self._room)
        self._room = rows.values if self._room is None else self._room
        surplus = _surplus(features, self._ids[numbers], self._enough)
        rows.leave_out(surplus)
        products = blocks.multiply(self._rounded, rows)
        self._exclude_own(products, numbers)
        bounds = Bounds(self._rounded, rows, self._metric)
        self._begin(products, bounds)
        i, j = np.divmod(np.flatnonzero(blocks.reached(products, bounds.least(self._limits))), len(numbers))
        found = _Pairs(i, j, *bounds.ranges(blocks.at(products, i, j), i))
        found = found[found.high >= self._limits[i]]
        if self._precision != "fp32":
            many = (np.bincount(found.queries, minlength=len(self._bests)) > self._k)[found.queries]
            found = found[~many] + self._refined(found[many], features)
        self._learn(found)
        queries = np.setdiff1d(np.arange(len(self._bests)), self.unclear)
        i, j = (part.reshape(-1) for part in np.meshgrid(queries, np.setdiff1d(rows.unclear, surplus)))
        unknown = np.full(len(i), np.inf)
        found += _Pairs(i, j, -unknown, unknown)[~self._is_own(i, numbers[j])]
        self._wait(_Pairs(found.queries, numbers[found.rows], found.low, found.high))

    def bests(self) -> list[Best]:
        """Score what is left, and return the best rows of each query."""
        self._settle(np.ones(len(self._bests), bool))
        return self._bests

    def _exclude_own(self, products: Any, numbers: Rows) -> None:
        places = np.minimum(np.searchsorted(numbers, self._own), len(numbers) - 1)
        here = numbers[places] == self._own
        products[self._whose[here], places[here]] = -np.inf

    def _is_own(self, queries: Places, rows: Rows) -> NDArray[np.bool_]:
        stride = 1 + max(rows.max(initial=0), self._own.max(initial=0))
        return np.isin(queries * stride + rows, self._whose * stride + self._own)

    def _begin(self, products: Any, bounds: Bounds) -> None:
        """Set limits for queries that have none: what the k-th row of this block reaches at least."""
        new = np.flatnonzero(self._limits == -np.inf)
        if len(new) and products.shape[1] >= self._k:
            last = blocks.largest(products[new], self._k)
            some = np.isfinite(last)
            low, _ = bounds.ranges(last[some], new[some])
            self._limits[new[some]] = low - 2 * tolerance(low)

    def _refined(self, found: _Pairs, features: Vectors) -> _Pairs:
        """Multiply pairs again in float32, and return those that reach their limits."""
        ranges = blocks.sharper(self._fine, features, found.queries, found.rows, self._metric, self._centre)
        refined = _Pairs(found.queries, found.rows, *ranges)
        return refined[refined.high >= self._limits[found.queries]]

    def _learn(self, found: _Pairs) -> None:
        """Raise the limits by what rows reach that were found."""
        if not len(found.rows):
            return
        found, place = found.by_query()
        best = place < self._k
        some, number = np.unique(found.queries, return_inverse=True)
        new = np.full((len(some), self._k), -np.inf)
        new[number[best], place[best]] = found.low[best]
        both = np.concatenate([self._lows[some], new], axis=1)
        self._lows[some] = both = np.partition(both, self._k, axis=1)[:, self._k :]
        last = both.min(axis=1)
        self._limits[some] = np.maximum(self._limits[some], last - 2 * tolerance(last))

    def _wait(self, found: _Pairs) -> None:
        """Keep pairs until they are scored: the fewer, the more limits have risen; but not too many of a query."""
        self._waiting += found
        self._waiting = self._waiting[self._waiting.high >= self._limits[self._waiting.queries]]
        counts = np.bincount(self._waiting.queries, minlength=len(self._bests))
        self._settle(counts > _WAITING + 4 * self._k)

    def _settle(self, chosen: NDArray[np.bool_]) -> None:
        """Score what waits of the `chosen` queries: the rows that seem best first, and then those that still may be."""
        settled = chosen[self._waiting.queries]
        pairs, self._waiting = self._waiting[settled], self._waiting[~settled]
        pairs, place = pairs.by_query()
        self._score(pairs[place < self._k])
        rest = pairs[place >= self._k]
        self._score(rest[rest.high >= self._limits[rest.queries]])

    @np.errstate(invalid="ignore", over="ignore")  # from damaged rows
    def _score(self, pairs: _Pairs) -> None:
        """Score pairs, which are ordered by query."""
        which, starts = np.unique(pairs.queries, return_index=True)
        bounds = [*starts.tolist(), len(pairs.rows)]
        for first, last in _groups(bounds):
            wanted, places = np.unique(pairs.rows[bounds[first] : bounds[last]], return_inverse=True)
            features, ids = self._read(wanted), self._ids[wanted]
            for one in range(first, last):
                some = places[bounds[one] - bounds[first] : bounds[one + 1] - bounds[first]]
                best = self._bests[which[one]]
                best.add(wanted[some], ids[some], features[some])
                self._limits[which[one]] = max(self._limits[which[one]], best.limit)


def _groups(bounds: list[int]) -> Iterator[tuple[int, int]]:
    """Divide queries, of which each has the rows between two `bounds`, into groups with `_TOGETHER` rows."""
    first = 0
    for last in range(1, len(bounds)):
        if last == len(bounds) - 1 or bounds[last + 1] - bounds[first] > _TOGETHER:
            yield first, last
            first = last


def _surplus(features: Vectors, ids: Rows, enough: int) -> Places:
    """Return the places of rows that equal `enough` others with lower ids: they cannot be hits.

    Without this, a thousand copies in each block would have to be scored for each of them.
    """
    bits = features.view(f"u{features.itemsize}")
    keys = bits[:, ::_SAMPLE].astype(np.uint64) @ _FACTORS[: -(-bits.shape[1] // _SAMPLE)]
    values, counts = np.unique(keys, return_counts=True)
    surplus = [NO_PLACES]
    for value in values[counts > enough]:
        alike = np.flatnonzero(keys == value)
        alike = alike[np.argsort(ids[alike])]
        equal = (bits[alike] == bits[alike[0]]).all(axis=1)
        surplus.append(alike[equal][enough:])
    return np.concatenate(surplus)
