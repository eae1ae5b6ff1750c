"""allowance: all processes together stay within the budget."""

from __future__ import annotations

import pytest

from rn50feat.engines import allowance


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_all_processes_together_stay_within_the_budget(workers: int) -> None:
    for available in (1 << 32, 1 << 34, 1 << 38):
        share, whole = allowance.shares(workers, 200_000_000, available)
        assert share <= whole <= allowance.needed(200_000_000)
        assert workers * share + whole <= available or share == allowance.LEAST
    assert allowance.shares(workers, 1, None) == (allowance.needed(1),) * 2
