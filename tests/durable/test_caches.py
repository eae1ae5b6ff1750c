"""The cache of compiled networks limits itself, and is nowhere for a user without a home."""

from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path

import pytest
from conftest import Run

from rn50feat.durable import caches
from rn50feat.errors import WeightsError
from rn50feat.model import weights
from rn50feat.store.reader import FeatureStore

DAY = 86400


@pytest.fixture
def blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Nine compiled networks of a kilobyte each; the i-th was used i days ago, the last two 40 and 41 days ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/rn50feat").mkdir(parents=True)
    paths = [caches.compiled_path(f"{i}") for i in range(9)]
    for days, path in zip([0, 1, 2, 3, 4, 5, 6, 40, 41], paths):
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - days * DAY,) * 2)
    return paths


def test_the_networks_used_last_are_kept(blobs: list[Path]) -> None:
    (blobs[0].parent / "notes.txt").write_text("not ours")
    caches.use(blobs[3])
    assert [path for path, _ in caches.compiled()] == [blobs[3], *blobs[:3], *blobs[4:6]]
    assert (blobs[0].parent / "notes.txt").exists()


def test_what_was_not_used_for_a_month_goes_unless_it_is_used_now(blobs: list[Path]) -> None:
    for path in blobs[1:7]:
        path.unlink()
    caches.use(blobs[8])
    assert [path for path, _ in caches.compiled()] == [blobs[8], blobs[0]]


def test_info_shows_where_the_cache_is_and_how_big(rn50feat: Run, store: FeatureStore, blobs: list[Path]) -> None:
    folder = blobs[0].parent
    assert f"cache          9 compiled networks (9 kB) in {folder}\n" in rn50feat("info").stdout
    cache = json.loads(rn50feat("info", "--json").stdout)["cache"]
    assert cache == {"folder": str(folder), "networks": 9, "bytes": 9000}


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert (caches.compiled_path("x"), caches.compiled()) == (None, [])
    with pytest.raises(
        WeightsError, match="there is no home folder .*: set TORCH_HOME to a folder, or use --weights FILE"
    ):
        weights.find("imagenet-v1")
    assert weights.find("random").path is None
    monkeypatch.setenv("TORCH_HOME", "/somewhere")
    assert str(weights.find("imagenet-v1").path).startswith("/somewhere/hub/checkpoints/")
