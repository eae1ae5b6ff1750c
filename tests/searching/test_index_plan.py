"""index_plan: what is chosen fits the memory that is allowed, and says why."""

from __future__ import annotations

import pytest

from rn50feat.errors import IndexingError
from rn50feat.searching.index_plan import LEAST_PART, MAX_RAM, Plan, choose, custom, larger


def test_small_stores_get_a_flat_index() -> None:
    plan = choose(1000)
    assert (plan.factory, plan.sample, plan.size) == ("IDMap2,Flat", 0, 1000 * 8200)
    assert choose(50_000).factory == "IDMap2,Flat"


@pytest.mark.parametrize(("rows", "lists"), [(50_001, 512), (200_000, 1024), (2_000_000, 2048), (4_000_000, 4096)])
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


@pytest.mark.parametrize(("rows", "lists"), [(10_000_000, 8192), (100_000_000, 10_219)])
def test_what_does_not_fit_at_once_is_built_in_parts_with_a_graph_of_lists(rows: int, lists: int) -> None:
    plan = choose(rows)
    assert plan.factory == f"IVF{lists}_HNSW32,RaBitQ"
    assert plan.sample == 39 * lists
    assert plan.memory <= MAX_RAM and LEAST_PART < plan.part < rows
    assert plan.size == rows * 272 + lists * 8192


def test_ids_must_fit_in_memory() -> None:
    with pytest.raises(IndexingError, match=r"takes about 16.3 GB of memory, but --max-ram allows 2 GB: raise it"):
        choose(1_000_000_000)


def test_a_kind_of_the_users_choice_is_trained_on_what_fits() -> None:
    def planned(factory: str, rows: int, row_size: int, *, lists: int = 64, trained: bool = False, **rest: int) -> Plan:
        divisible = bool(lists)
        return custom(
            factory, rows, row_size=row_size, sample_row=8192, lists=lists, trained=trained, divisible=divisible, **rest
        )

    plan = planned("IVF64,SQ8", 200_000, 2056)
    assert plan == Plan("IVF64,SQ8", "as requested", 50_000, 200_000 * 2056 + 64 * 8192, plan.memory, 200_000)
    assert planned("Flat", 200_000, 8200, lists=0, trained=True).sample == 0
    assert planned("IVF64,SQ8", 100, 2056).sample == 75
    assert planned("IVF64,SQ8", 10**5, 100, max_ram=3 * 10**8).sample < 12_500
    assert LEAST_PART < planned("IVF64,SQ8", 5_000_000, 2056).part < 500_000
    with pytest.raises(IndexingError, match="8.41 GB of memory"):
        planned("Flat", 1_000_000, 8200, lists=0, trained=True)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("IVF1024,RaBitQ", "IVF1024,RaBitQ4"),
        ("IVF8192_HNSW32,RaBitQ4", "IVF8192_HNSW32,SQfp16"),
        ("IVF64,PQ16", "IVF1024,SQfp16"),
        ("IVF64,SQfp16", None),
        ("IDMap2,Flat", None),
        ("Flat", None),
        ("HNSW32", None),
        ("HNSW32,Flat", None),
        ("IVF64_HNSW32,Flat", None),
        ("PCA64,IVF16,Flat", "IVF1024,SQfp16"),
        ("HNSW32,SQ8", "IVF1024,SQfp16"),
    ],
)
def test_larger_codes_end_with_whole_rows(factory: str, expected: str | None) -> None:
    assert larger(factory, 300_000, MAX_RAM) == expected
