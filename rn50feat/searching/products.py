"""Multiply queries with rows: the arithmetic of every scan.

In: query vectors in float32, and blocks of rows. Out: inner products, and the
rows' squared lengths, in float32.

For a few queries and float16, FAISS's kernels read each value once, and
convert it in a register: 0.15 s of a core for 300,000 rows and one query,
where numpy takes 3.4 s for the conversion alone. Many queries share one
conversion, and a matrix product is faster for them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Single = NDArray[np.float32]
Product = Callable[[NDArray[np.floating[Any]]], tuple[Single, Single]]
FEW = 8  # queries
# Rows from which FAISS's kernels pay for their preparation, and for the import of FAISS (30 ms).
ENOUGH, ENOUGH_TO_IMPORT = 128, 8192
with np.errstate(invalid="ignore"):  # signalling NaNs
    _SINGLE = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    _DOUBLE = _SINGLE.astype(np.float64)


def widened(rows: NDArray[np.floating[Any]], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Convert `rows` to float32 or float64, if they are not; from float16 by a table, in a third of numpy's time."""
    if rows.dtype != np.float16:
        return rows.astype(dtype, copy=False)
    bits = np.ascontiguousarray(rows).view(np.uint16)
    return np.take(_SINGLE if dtype is np.float32 else _DOUBLE, bits, mode="clip")


def product(queries: Single, dtype: np.dtype[Any], rows: int) -> Product:
    """Choose how to multiply `queries`, (m, 2048), with `rows` rows of `dtype`.

    The function returned takes a block of rows, (n, 2048), and returns
    products, (m, n), and squared lengths, (n,). Rows with NaN or infinity
    have a squared length that is not finite.
    """
    if dtype == np.float16 and len(queries) <= FEW and rows >= (ENOUGH if "faiss" in sys.modules else ENOUGH_TO_IMPORT):
        return _Scanners(queries)
    return lambda block: _by_matrix(queries, block)


def _by_matrix(queries: Single, block: NDArray[np.floating[Any]]) -> tuple[Single, Single]:
    rows = widened(block, np.float32)
    return queries @ rows.T, np.einsum("ij,ij->i", rows, rows)


class _Scanners:
    """FAISS's scanners of float16 codes: what an inverted list of rows would use."""

    def __init__(self, queries: Single) -> None:
        import faiss

        self._faiss, width = faiss, queries.shape[1]
        self._quantizer = faiss.ScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16)
        self._queries = np.ascontiguousarray(queries)
        self._zero = np.zeros(width, np.float32)
        self._products = [self._scanner(faiss.METRIC_INNER_PRODUCT, query) for query in self._queries]
        self._squares = self._scanner(faiss.METRIC_L2, self._zero)  # distances from the origin

    def _scanner(self, metric: int, query: Single) -> Any:
        scanner = self._quantizer.select_InvertedListScanner(metric, None, False, None, False)
        scanner.set_query(self._faiss.swig_ptr(query))
        return scanner

    def __call__(self, block: NDArray[np.floating[Any]]) -> tuple[Single, Single]:
        codes = np.ascontiguousarray(block).view(np.uint8).reshape(-1)
        products = np.stack([self._scan(scanner, codes, len(block), -np.inf) for scanner in self._products])
        return products, self._scan(self._squares, codes, len(block), np.inf)

    def _scan(self, scanner: Any, codes: NDArray[np.uint8], count: int, worst: float) -> Single:
        """Let a scanner keep the best of `count` rows, all of them, and put them in the order of the rows."""
        pointer, numbers = self._faiss.swig_ptr, np.arange(count)
        kept, rows = np.full(count, worst, np.float32), np.full(count, -1, np.int64)
        scanner.scan_codes(count, pointer(codes), pointer(numbers), pointer(kept), pointer(rows), count)
        values = np.full(count, np.nan, np.float32)  # what is kept is better than `worst`: no NaN
        values[rows[rows >= 0]] = kept[rows >= 0]
        return values
