"""storable: what a store cannot hold is refused with a reason, and fits into the ledger."""

from __future__ import annotations

import numpy as np
import pytest

from rn50feat.errors import ArgumentError
from rn50feat.sources.reference import Reference
from rn50feat.store.storable import for_ledger, not_storable, require_storable, storable, unstorable, unstorable_row

WHOLE = bytes(16)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (Reference("a\0.jpg", 1, 1, WHOLE), "has a name that a store cannot hold"),
        (Reference("a\ud800.jpg", 1, 1, WHOLE), "has a name that a store cannot hold"),
        (Reference("a.jpg", 1 << 63, 1, WHOLE), "has a size of 9223372036854775808 bytes"),
        (Reference("a.jpg", 1, 1 << 63, WHOLE), "has a modification time outside"),
    ],
)
def test_files_that_a_store_cannot_hold_fit_into_the_ledger(reference: Reference, reason: str) -> None:
    assert (unstorable(reference) or "").startswith(reason)
    with pytest.raises(ArgumentError, match=reason):
        require_storable([reference])
    assert unstorable(for_ledger(reference)) is None


def test_a_row_needs_a_whole_digest_and_a_size() -> None:
    assert unstorable_row(Reference("a\udcff.jpg", 0, -1, WHOLE)) is None
    assert (unstorable_row(Reference("a.jpg", 1, 1, b"")) or "").startswith("came with a digest of 0 bytes, not 16")
    assert (unstorable_row(Reference("a.jpg", -1, 1, WHOLE)) or "").startswith("came with a size of -1 bytes")


def test_numbers_must_be_finite_in_the_dtype() -> None:
    rows, half = np.array([[1, 65504], [1, 65536], [1, np.nan]], np.float32), np.dtype("float16")
    assert storable(rows, half).tolist() == [True, False, False]
    assert storable(rows, np.dtype("float32")).tolist() == [True, True, False]
    assert not_storable(rows[1], half).endswith("--dtype float32")
    assert not_storable(rows[2], half) == "has features that are not finite in float16"
