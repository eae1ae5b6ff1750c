"""exact: a scan in blocks is one product, whatever rows are damaged."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from vectors import clusters, filled

import rn50feat
from rn50feat.errors import DamagedStoreError
from rn50feat.extraction.verify import verify
from rn50feat.searching.exact import scan
from rn50feat.searching.search import search_stored
from rn50feat.store.reader import FeatureStore
from rn50feat.store.writer import create_store, open_store


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_scan_in_blocks_equals_one_product(
    tmp_path: Path, metric: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50feat.images.provenance import Provenance
    from rn50feat.sources.reference import Reference

    rng = np.random.default_rng(1)
    features = rng.gamma(0.5, 1.0, (700, 2048)).astype(dtype)
    features[500] = features[3]  # a tie
    features[5] = 0  # no direction
    references = [Reference(str(tmp_path / f"{i}"), i, i, i.to_bytes(16, "big")) for i in range(len(features))]
    with create_store(tmp_path / "out.h5", Provenance("random:0", "00"), np.dtype(dtype)) as writer:
        writer.append(references[:10], features[:10])
    with open_store(tmp_path / "out.h5") as writer:
        writer.append(references[10:], features[10:])
    store = FeatureStore(tmp_path / "out.h5")
    queries = np.concatenate([features[[3, 77]].astype(np.float32), rng.gamma(0.5, 1, (3, 2048)).astype(np.float32)])
    exact = features.astype(np.float64)
    if metric == "l2":
        scores = -np.linalg.norm(exact[None] - queries[:, None], axis=2)
    else:
        scores = queries @ exact.T
        if metric == "cosine":
            lengths = np.linalg.norm(exact, axis=1)
            scores = scores / np.linalg.norm(queries, axis=1)[:, None] / np.where(lengths, lengths, 1)
    blocks = FeatureStore.blocks
    monkeypatch.setattr(FeatureStore, "blocks", lambda self, rows: blocks(self, 64))
    found = scan(queries, [np.empty(0, np.int64)] * 5, store, 20, metric)
    for (rows, given), expected in zip(found, scores):
        order = np.argsort(-expected, kind="stable")[:20]
        assert metric == "l2" or (np.diff(given) <= 0).all()
        np.testing.assert_allclose(np.abs(given), np.abs(expected[order]), rtol=1e-5, atol=1e-5)
        assert set(rows) == set(order)
    assert found[0][0][:2].tolist() == [3, 500]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_damaged_rows_are_no_hits_and_crowd_out_none(tmp_path: Path, metric: str, dtype: str, indexed: bool) -> None:
    store = filled(tmp_path / "out.h5", clusters(30), dtype)
    if indexed:
        rn50feat.index(store, metric=metric)
    with h5py.File(store.path, "r+") as file:
        features = file["features"][:]
        features[3], features[4], features[5, 7], features[6, 7] = np.nan, np.inf, -np.inf, np.inf
        signalling = (np.uint16, 0x7D01) if dtype == "float16" else (np.uint32, 0x7F800001)
        features[7].view(signalling[0])[...] = signalling[1]
        file["features"][...] = features
    assert sum("is not finite" in finding for finding in verify(store).findings) == 5
    (result,) = search_stored(["00000.jpg"], store, k=25, metric=metric)
    assert {hit.id for hit in result.hits} == set(range(30)) - {3, 4, 5, 6, 7}
    assert all(np.isfinite(hit.score) for hit in result.hits)
    assert len(search_stored(["00000.jpg"], store, k=3, metric=metric)[0].hits) == 3
    with pytest.raises(DamagedStoreError, match="the row of 00003.jpg in .*out.h5 is damaged: run rn50feat extract"):
        search_stored(["00003.jpg"], store, metric=metric)
