"""index_plan: what is chosen fits the memory that is allowed, and says why."""

from __future__ import annotations

import pytest

from rn50feat.errors import IndexingError
from rn50feat.searching.index_plan import MAX_RAM, Plan, choose, custom


def test_small_stores_get_a_flat_index() -> None:
    plan = choose(1000)
    assert (plan.factory, plan.sample, plan.size) == ("IDMap2,Flat", 0, 1000 * 8200)
    assert choose(50_000).factory == "IDMap2,Flat"


@pytest.mark.parametrize(("rows", "lists"), [(50_001, 512), (200_000, 1024), (1_000_000, 2048), (4_000_000, 4096)])
def test_large_stores_get_inverted_lists_of_bits(rows: int, lists: int) -> None:
    plan = choose(rows)
    assert plan.factory == f"IVF{lists},RaBitQ"
    assert plan.sample == 39 * lists
    assert (plan.size - lists * 8192) / rows < 400
    assert plan.memory <= MAX_RAM
    assert "too many to scan" in plan.reason


def test_what_does_not_fit_whole_is_compressed_and_less_memory_means_fewer_lists() -> None:
    plan = choose(40_000, max_ram=400_000_000)
    assert plan.factory == "IVF512,RaBitQ"
    assert "do not fit in --max-ram" in plan.reason
    small = choose(200_000, max_ram=300_000_000)
    assert 100 < int(small.factory[3:].partition(",")[0]) < 1024
    assert small.memory <= 300_000_000
    with pytest.raises(IndexingError, match="takes about 27.* GB of memory, but --max-ram allows 2 GB: raise it"):
        choose(100_000_000)


def test_a_kind_of_the_users_choice_is_trained_on_what_fits() -> None:
    plan = custom("IVF64,SQ8", 200_000, row_size=2056, lists=64, trained=False)
    assert plan == Plan("IVF64,SQ8", "as requested", 50_000, 200_000 * 2056 + 64 * 8192, plan.memory)
    assert custom("Flat", 200_000, row_size=8200, lists=0, trained=True).sample == 0
    assert custom("IVF64,SQ8", 100, row_size=2056, lists=64, trained=False).sample == 75
    assert custom("x", 10**5, row_size=100, lists=64, trained=False, max_ram=3 * 10**8).sample < 12_500
    with pytest.raises(IndexingError, match="8.4 GB of memory"):
        custom("Flat", 1_000_000, row_size=8200, lists=0, trained=True)
