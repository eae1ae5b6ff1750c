"""Multiply blocks of rows with many queries, and say how far the results may be off.

In: queries and blocks of rows. Out: products of all pairs, and for each a range
that holds its nearness: the cosine, the inner product, or the Euclidean
distance with a minus, so that higher is nearer.

Vectors are rounded to bfloat16 where the processor is fast at it (AMX, AVX-512
BF16): on a Xeon with AMX, 1,024 queries and 4,096 rows take 20 ms of a core in
bfloat16, and 128 ms in float32. Rounding moves a point by a distance that is
measured, and changes its distance from another point by no more than both
moved. The product is half of the squared distance, by additional columns: small
where two points are near, so it is precise there even in bfloat16. In a hub of 5,000 rows with a
cosine of 0.99 to each other, this leaves up to 164 rows in doubt; the bound of
a plain product (the residue's length times the other's) leaves 3,954.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rn50feat.searching.rounded import SUM, TINY, Numbers, Places, Rounded, Single, rounded

_TERMS = 512  # that a product in float32 adds up at once: 1.3 times the work of all at once, a quarter of the error
# Pairs are multiplied one by one (1 µs each), but for queries with this share of all rows a matrix product is faster
# (40 ns), if there are enough: waking the threads of BLAS takes some ms.
_DENSE, _DENSE_PAIRS = 0.05, 16_384
_PAIRS = 128  # to multiply one by one: 1 MB of each side stays in the cache
_LEAST = np.float32(-3e38)  # below all products but those of rows that are left out


def multiply(queries: Rounded, rows: Rounded) -> Any:
    """Multiply all of `queries` with all of `rows`: (m, n), in float32, or in bfloat16 for vectors in that."""
    if not isinstance(queries.values, np.ndarray):
        return queries.values @ rows.values.T
    products = np.zeros((len(queries.values), len(rows.values)), np.float32)
    for start in range(0, queries.values.shape[1], _TERMS):
        terms = slice(start, start + _TERMS)
        products += queries.values[:, terms] @ rows.values[:, terms].T
    return products


class Bounds:
    """What products of `queries` with a block of `rows` say about the nearness of a pair."""

    def __init__(self, queries: Rounded, rows: Rounded, metric: str) -> None:
        self._metric = metric
        precise = isinstance(queries.values, np.ndarray)
        self._half = 2.0**-22 if precise else 2.0**-8  # relative error of a rounded product
        width = queries.values.shape[1]
        # Each addition rounds a sum, and no sum of some terms is larger than those of the lengths.
        rounding = (_TERMS + width / _TERMS if precise else width) * 2.0**-24 + SUM
        longest, moved = float(rows.lengths.max(initial=0)), float(rows.moved.max(initial=0))
        if metric == "ip":
            self._off = queries.lengths * moved + queries.moved * longest + rounding * queries.lengths * longest
        else:
            self._off = rounding * (queries.lengths + longest) ** 2 / 2
        self._off += TINY
        self._moved = queries.moved + moved

    def least(self, limits: Numbers) -> Single:
        """Return the lowest product of each query, (m,), for which the nearness may reach its limit."""
        if self._metric == "ip":
            products = limits - self._off
        else:
            distances = np.sqrt(np.maximum(0, 2 - 2 * limits)) if self._metric == "cosine" else np.maximum(0, -limits)
            products = -((distances + self._moved) ** 2) / 2 - self._off
        products -= 1.01 * self._half * np.abs(products)
        return np.asarray(np.maximum(products, _LEAST), np.float32)

    def enough(self, limits: Numbers) -> Single:
        """Return the product of each query, (m,), from which a cosine surely reaches its limit."""
        distances = np.sqrt(np.maximum(0, 2 - 2 * limits)) - self._moved
        products = self._off - distances**2 / 2
        products += 3 * self._half * np.abs(products)
        return np.asarray(np.where(distances > 0, products, np.inf), np.float32)

    def ranges(self, products: Numbers, i: Places) -> tuple[Numbers, Numbers]:
        """Return the lowest and the highest nearness for `products` (p,) of the queries `i` (p,)."""
        off = self._off[i] + 1.01 * self._half * np.abs(products)
        if self._metric == "ip":
            return products - off, products + off
        furthest = np.sqrt(np.maximum(0, 2 * (off - products))) + self._moved[i]
        nearest = np.maximum(0, np.sqrt(np.maximum(0, -2 * (off + products))) - self._moved[i])
        if self._metric == "cosine":
            return 1 - furthest**2 / 2, 1 - nearest**2 / 2
        return -furthest, -nearest


def sharper(
    queries: Rounded,
    features: NDArray[np.floating[Any]],
    i: Places,
    j: Places,
    metric: str,
    centre: Single | None,
) -> tuple[Numbers, Numbers]:
    """Multiply the pairs (i, j) of `queries` and `features` in float32, and return the ranges of their nearness."""
    wanted, j = np.unique(j, return_inverse=True)
    rows = rounded(features[wanted], metric, "fp32", centre=centre)
    dense = np.bincount(i, minlength=len(queries.values)) > _DENSE * len(wanted)
    products, those = np.empty(len(j)), dense[i]
    if those.sum() < _DENSE_PAIRS:
        those[:] = False
    else:
        some = np.flatnonzero(dense)
        products[those] = multiply(queries[some], rows)[np.searchsorted(some, i[those]), j[those]]
    products[~those] = multiply_pairs(queries, rows, i[~those], j[~those])
    return Bounds(queries, rows, metric).ranges(products, i)


def multiply_pairs(queries: Rounded, rows: Rounded, i: Places, j: Places) -> Single:
    """Multiply only the pairs (i, j), both (p,), of vectors in float32."""
    parts = [slice(start, start + _PAIRS) for start in range(0, len(i), _PAIRS)]
    products = [np.einsum("ij,ij->i", queries.values[i[part]], rows.values[j[part]]) for part in parts]
    return np.concatenate([np.empty(0, np.float32), *products])


def reached(products: Any, least: Single) -> NDArray[np.bool_]:
    """Check which products, (m, n), are at least `least`, (m,)."""
    if isinstance(products, np.ndarray):
        return np.asarray(products >= least[:, None])
    if (least < 0).all():  # the bits of negative numbers ascend as the numbers fall; those of positive ones are lower
        highest = (least.view(np.uint32) >> 16).astype(np.uint16) + 1
        return np.asarray(_bits(products) <= highest[:, None])
    return np.asarray(products.float().numpy() >= least[:, None])


def largest(products: Any, k: int) -> Numbers:
    """Return the `k`-th largest product of each query, (m,), out of (m, n)."""
    numbers = products.copy() if isinstance(products, np.ndarray) else products.float().numpy()
    numbers.partition(numbers.shape[1] - k, axis=1)
    return np.asarray(numbers[:, -k], np.float64)


def at(products: Any, i: Places, j: Places) -> Numbers:
    """Return the products of the pairs (i, j)."""
    if isinstance(products, np.ndarray):
        return products[i, j].astype(np.float64)
    return (_bits(products)[i, j].astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _bits(products: Any) -> NDArray[np.uint16]:
    import torch

    bits: NDArray[np.uint16] = products.view(torch.int16).numpy().view(np.uint16)
    return bits
