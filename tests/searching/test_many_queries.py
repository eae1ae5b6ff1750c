"""many_queries: many queries at once find what each finds alone in float64, in any precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from vectors import clusters, filled, hard

from rn50feat import FeatureStore
from rn50feat.searching import exact, many_queries, rounded
from rn50feat.searching.scores import METRICS, in_order, score

NONE = np.empty(0, np.int64)


@pytest.fixture(params=["bf16", "fp32"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force a precision, whatever this processor prefers."""
    if request.param == "bf16" and not rounded._adds_in_float32():
        pytest.skip("torch adds bfloat16 in bfloat16 here, and the program never uses it")
    monkeypatch.setattr(rounded, "fastest", lambda pairs: request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MANY", 1)
    monkeypatch.setattr(many_queries, "size_of_blocks", lambda queries: 300)


def check(store: FeatureStore, queries: NDArray[np.generic], own: list[NDArray[np.int64]], metric: str, k: int) -> None:
    """Compare hits and scores with those of all rows in float64."""
    ids, features = store.column("ids"), store.features(slice(None))
    found = exact.scan(queries, own, store, k, metric)
    for query, excluded, (rows, scores) in zip(queries, own, found):
        others = np.setdiff1d(np.arange(len(ids)), excluded)
        with np.errstate(invalid="ignore", over="ignore"):
            truth = score(query, features[others], metric)
        others, truth = others[np.isfinite(truth)], truth[np.isfinite(truth)]
        order, truth = in_order(truth, ids[others], metric)
        assert rows.tolist() == others[order][:k].tolist()
        assert scores.tolist() == truth[:k].tolist()


def both(rows: int, seed: int = 0) -> NDArray[np.float16]:
    return np.concatenate(list(hard(rows, seed)))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hard_rows(tmp_path: Path, metric: str, dtype: str, precision: str) -> None:
    store = filled(tmp_path / "out.h5", both(1000).astype(np.float32), dtype)
    rows = np.arange(0, 1000, 61)
    check(store, store.features(rows), [rows[i : i + 1] for i in range(len(rows))], metric, 10)
    check(store, both(7, seed=1), [NONE] * 7, metric, 1)


@pytest.mark.parametrize("metric", METRICS)
def test_copies_tie_by_id(tmp_path: Path, metric: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_queries, "_WAITING", 4)
    rng = np.random.default_rng(3)
    features = both(900)
    copies = rng.choice(900, 180, replace=False)
    features[copies] = features[7]
    features[copies[::9]] = np.nextafter(features[7], np.float16(1))  # near, but no copies
    store = filled(tmp_path / "out.h5", features.astype(np.float32), "float16")
    rows = np.concatenate([copies[:8], np.arange(0, 900, 150)])
    check(store, store.features(rows), [rows[i : i + 1] for i in range(len(rows))], metric, 25)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_lengths_of_all_sizes_and_damaged_rows(tmp_path: Path, metric: str, dtype: str, precision: str) -> None:
    rng = np.random.default_rng(5)
    features = clusters(700).astype(np.float64)
    features *= 10 ** rng.uniform(-3, 4.5, (700, 1)) / np.linalg.norm(features, axis=1, keepdims=True)
    features[::9] *= -1
    features = features.astype(dtype)
    features[5:9] = 0
    features[20], features[21], features[22, 3], features[23, 4] = np.nan, np.inf, -np.inf, np.nan
    if dtype == "float32":
        features[30:33] *= np.float32(1e-37) / np.abs(features[30:33]).max()
        features[33:36] *= np.float32(1e30) / np.abs(features[33:36]).max()
    store = filled(tmp_path / "out.h5", np.ones_like(features), dtype)
    import h5py

    with h5py.File(store.path, "r+") as file:
        file["features"][...] = features
    rows = np.concatenate([np.arange(0, 10), np.arange(24, 33), np.arange(40, 700, 97)])
    check(store, store.features(rows), [rows[i : i + 1] for i in range(len(rows))], metric, 5)
    check(store, store.features(rows[:7]), [NONE] * 7, metric, 700)
    rows = np.arange(19, 40)  # among them damaged ones, and some that are too long for products
    found = exact.scan(store.features(rows), [NONE] * len(rows), store, 3, metric)
    assert [len(hits) for hits, _ in found[1:5]] == [0] * 4
    assert all(len(hits) == 3 for hits, _ in found[5:])
