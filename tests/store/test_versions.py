"""Stores of earlier versions, in versions/: each can be read, searched, checked, extended, merged and compacted."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore, duplicates, export, extract, merge, verify
from rn50feat.cli.description import describe
from rn50feat.engines.contract import Engine, EngineOptions
from rn50feat.errors import StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.model.weights import Weights
from rn50feat.searching.search import search_stored
from rn50feat.store.compact import compact

FIXTURES = sorted((Path(__file__).parent / "versions").glob("*.h5.gz"))
NAMES = ["images/coast.jpg", "images/hills.jpg", "images/ridge.jpg"]


class Start(FakeStart):
    """Start an engine that has the weights of the store."""

    def __call__(self, weights: Weights, provenance: Provenance, options: EngineOptions) -> Engine:
        super().__call__(weights, provenance, options)
        self.engines[-1].weights_sha256 = provenance.weights_sha256 or ""
        return self.engines[-1]


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name.removesuffix(".h5.gz"))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store of three images and a failure, as it was written."""
    path = tmp_path / "out.h5"
    path.write_bytes(gzip.decompress(request.param.read_bytes()))
    return path


def test_this_version_has_one() -> None:
    assert f"{rn50feat.__version__}.h5.gz" in [path.name for path in FIXTURES], "see versions/README.md"


def test_it_is_read_searched_and_exported(old: Path) -> None:
    before = old.read_bytes()
    opened = FeatureStore(old)
    assert sorted(opened.paths()) == NAMES
    assert opened.dtype == np.float16 and opened.column("ids").tolist() == [0, 1, 2]
    assert [Path(failure.path).name for failure in opened.failures()] == ["broken.jpg"]
    assert (describe(opened)["rows"], len(opened.runs()), opened.damage(), opened.archives()) == (3, 1, {}, [])
    first = search_stored([NAMES[0]], old, k=3)[0].hits[0]
    assert first.path == NAMES[0] and first.score == pytest.approx(1, abs=1e-3)
    assert verify(old).findings == []
    assert len(duplicates(old, threshold=0.01)) == 1
    assert export(old, old.with_suffix(".npy")) == 3
    assert old.read_bytes() == before


def test_it_is_extended_merged_and_compacted(old: Path) -> None:
    features = FeatureStore(old).features(slice(None))
    (old.parent / "images").mkdir()
    (old.parent / "images/new.png").write_bytes(encoded(Image.new("RGB", (9, 9), "red"), "PNG"))
    assert extract(old.parent / "images", old, start=Start()).new == 1
    opened = FeatureStore(old)
    assert sorted(opened.paths()) == sorted([*NAMES, "images/new.png"]) and opened.has_checksums
    assert np.array_equal(opened.features(slice(3)), features)
    assert merge([old], old.parent / "all.h5").new == 4
    assert merge([compact(old, old.parent / "copy.h5").path], old).unchanged == 4
    assert compact(old).rows == 4
    for name in ("out.h5", "all.h5", "copy.h5"):
        assert verify(old.parent / name).findings == []


def test_a_store_of_a_later_version_is_refused(old: Path) -> None:
    with h5py.File(old, "r+") as file:
        file.attrs["schema"] = 2
    for act in (lambda: FeatureStore(old), lambda: extract(old.parent, old), lambda: compact(old)):
        with pytest.raises(StoreError, match="out.h5 has schema 2, but this version reads 1: upgrade rn50feat"):
            act()
