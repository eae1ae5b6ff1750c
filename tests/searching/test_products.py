"""products: both ways to multiply give what float64 gives."""

from __future__ import annotations

import numpy as np
import pytest
from vectors import hard

from rn50feat.searching import products


@pytest.mark.parametrize("queries", [1, products.FEW, products.FEW + 1])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_products_and_squared_lengths(dtype: str, queries: int) -> None:
    rows = next(hard(300)).astype(dtype)
    rows[7], rows[8], rows[9] = 0, 6e4, 6e-8
    several = rows[:queries].astype(np.float32)
    multiply = products.product(several, rows.dtype, products.ENOUGH_TO_IMPORT)
    found, squares = multiply(rows)
    exact = rows.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    np.testing.assert_allclose(squares, lengths**2, rtol=1e-5)
    assert (np.abs(found - several.astype(np.float64) @ exact.T) <= 1e-5 * lengths * lengths[:queries, None]).all()


@pytest.mark.parametrize("queries", [1, products.FEW + 1])
def test_a_damaged_row_has_no_length(queries: int) -> None:
    rows = next(hard(40))
    rows[3, 5], rows[4, 5], rows[5, 5] = np.nan, np.inf, -np.inf
    multiply = products.product(rows[:1].repeat(queries, 0).astype(np.float32), rows.dtype, products.ENOUGH_TO_IMPORT)
    with np.errstate(invalid="ignore"):
        found, squares = multiply(rows)
    assert np.flatnonzero(~np.isfinite(squares)).tolist() == [3, 4, 5]
    assert found.shape == (queries, 40)


def test_float16_is_widened_as_numpy_does() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 2048)
    with np.errstate(invalid="ignore"):
        for dtype in (np.float32, np.float64):
            np.testing.assert_array_equal(products.widened(every, dtype), every.astype(dtype))
