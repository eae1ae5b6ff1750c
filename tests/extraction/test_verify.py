"""verify: it finds what is wrong with rows, datasets, files and vectors."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import fake as rn50feat_fake
import h5py
import numpy as np
import pytest
from conftest import Run
from fake import FakeStart, extract

import rn50feat
from rn50feat.errors import StoreError
from rn50feat.extraction.verify import Findings
from rn50feat.store.reader import FeatureStore


def damage(path: Path, dataset: str, row: int, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file[dataset][row] = value


@pytest.mark.parametrize(
    ("dataset", "value", "finding"),
    [
        ("features", np.nan, "row 3 .pictures/03.png. is not finite"),
        ("features", np.inf, "row 3 .pictures/03.png. is not finite"),
        ("features", 0, "row 3 .pictures/03.png. is all zero"),
        ("ids", 4, "id 4 belongs to 2 rows"),
        ("ids", 99, "ids run from 0 to 99, but the next id is 20"),
        ("paths", "pictures/04.png", "row 4 .pictures/04.png. is there twice"),
        ("paths", "../../etc/passwd", "leads elsewhere"),
    ],
)
def test_verify_finds_faults(
    rn50feat: Run, shades: Path, start: FakeStart, dataset: str, value: object, finding: str
) -> None:
    extract(shades, start)
    verify = rn50feat_verify(shades)
    assert verify.findings == []
    damage(shades.parent / "out.h5", dataset, 3, value)
    found = rn50feat_verify(shades).findings
    assert re.search(finding, found[0])
    assert found[1:] in ([], [f"row 3 ({FeatureStore(shades.parent / 'out.h5').path_of(3)}) differs from its checksum"])
    done = rn50feat("verify")
    assert done.returncode == 1
    assert done.stdout == "".join(f"{one}\n" for one in found)
    assert "fault" in done.stderr and "out.h5 --heal, which computes damaged rows again" in done.stderr


def rn50feat_verify(shades: Path, **settings: object) -> Findings:
    return rn50feat.verify(shades.parent / "out.h5", **settings)  # type: ignore[arg-type]


def test_verify_reads_every_chunk(shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(shades, start)
    block = FeatureStore.block

    def damaged(self: FeatureStore, first: int, count: int) -> np.ndarray:
        if first <= 16 < first + count:
            raise StoreError("out.h5 is damaged (Can't synchronously read data)")
        return block(self, first, count) + 1

    monkeypatch.setattr(FeatureStore, "block", damaged)
    monkeypatch.setattr(sys.modules["rn50feat.extraction.verify"], "BLOCK", 8)
    assert rn50feat_verify(shades).findings == [
        "rows 16 to 19 cannot be read: out.h5 is damaged (Can't synchronously read data)"
    ]


def test_verify_compares_the_datasets(shades: Path, start: FakeStart) -> None:
    store = shades.parent / "out.h5"
    extract(shades, start)
    with h5py.File(store, "r+") as file:
        file["size"].resize(19, axis=0)
    assert "the datasets differ in length: features 20, " in rn50feat_verify(shades).findings[0]
    with h5py.File(store, "r+") as file:
        file["size"].resize(20, axis=0)
        del file["digest"]
    assert rn50feat_verify(shades).findings == ["digest is missing"]


def test_verify_sources_hashes_the_files(shades: Path, start: FakeStart) -> None:
    extract(shades, start)
    rotten, changed, gone = shades / "05.png", shades / "06.png", shades / "07.png"
    status = rotten.stat()
    data = bytearray(rotten.read_bytes())
    data[-5] ^= 1
    rotten.write_bytes(data)
    os.utime(rotten, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(changed, (1, 1))
    gone.unlink()
    assert rn50feat_verify(shades).findings == []
    report = rn50feat_verify(shades, sources=True)
    (finding,) = report.findings
    assert "05.png) has other bytes, though the same size and time" in finding
    assert report.notes == ["20 files hashed: 1 gone, 1 changed since their rows were made"]


def test_verify_recompute_shows_vectors_that_come_out_otherwise(
    shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(shades, start)
    report = rn50feat_verify(shades, recompute=8, start=start)
    assert (report.findings, report.notes) == ([], ["8 rows computed again: at most 0.0e+00 away (relative L2)"])
    features = rn50feat_fake.FakeBackend.features
    monkeypatch.setattr(rn50feat_fake.FakeBackend, "features", lambda self, crops: features(self, crops) * 1.001)
    report = rn50feat_verify(shades, recompute=8, start=start)
    assert len(report.findings) == 8
    assert "comes out otherwise now: 1.0e-03 away" in report.findings[0]
