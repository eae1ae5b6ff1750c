"""recall: the cheapest way to search that reaches the target, measured with rows that do not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vectors import filled, hard

import rn50feat
from rn50feat import FeatureStore
from rn50feat.searching import exact, index_plan, recall
from rn50feat.searching.nearest import Nearest, open_index


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return filled(tmp_path / "out.h5", next(hard(3000)), "float16")


def measured(store: FeatureStore) -> float:
    """Return the recall@10 of rows that the index was not tuned with."""
    rows = np.arange(0, len(store), 15)
    own = [rows[i : i + 1] for i in range(len(rows))]
    with store.reading():
        queries = store.features(rows)
        found = Nearest(store, "cosine", open_index(store)).find(queries, own, 10)
        truth = exact.scan(queries, own, store, 10, "cosine")
    return float(np.mean([(scores >= true[-1] - 1e-6).sum() / 10 for (_, scores), (_, true) in zip(found, truth)]))


def test_candidates_and_lists_are_tuned_together(store: FeatureStore) -> None:
    facts = rn50feat.index(store, factory="IVF64,RaBitQ", target_recall=0.95).facts
    assert facts.recall is not None and facts.recall >= 0.95 and not facts.short
    assert facts.candidates in recall.CANDIDATES and facts.nprobe is not None and facts.nprobe < 64
    assert measured(store) == pytest.approx(facts.recall, abs=0.04)


def test_a_shortfall_is_told(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "CANDIDATES", (12,))
    done = rn50feat.index(store, factory="IVF16,RaBitQ")
    facts = done.facts
    assert facts.short and facts.recall is not None
    assert done.advice.endswith(f"rn50feat index {store.path} --rebuild --factory IVF16,RaBitQ4")
    assert measured(store) > facts.recall - 0.06  # more, where ties ask for more candidates


def test_the_cheapest_point_that_surely_reaches_the_target_is_chosen() -> None:
    def point(cost: float, reached: float, error: float = 0.001) -> recall._Point:
        return recall._Point(8, 100, cost, reached, error)

    cheap, unsure, sure, dear = point(1, 0.9), point(2, 0.9805), point(3, 0.983), point(4, 1.0)
    assert recall._choose([cheap, unsure, sure, dear], 0.98) is sure
    assert recall._choose([cheap, unsure], 0.98) is unsure
    assert recall._choose([cheap, point(5, 0.9005)], 0.98) is cheap


def test_the_advice_for_more_recall_is_right(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "CANDIDATES", (30,))
    found = []
    for factory in ("IVF16,RaBitQ", "IVF16,RaBitQ4", "IVF16,SQfp16"):
        done = rn50feat.index(store, factory=factory, rebuild=True)
        found.append(done.facts.recall or 0)
        larger = index_plan.larger(factory, 3000, index_plan.MAX_RAM)
        assert not done.advice or (f"--factory {larger}" if larger else "search --exact") in done.advice
    assert found == sorted(found) and found[-1] > 0.98
