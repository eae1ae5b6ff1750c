"""paths: one path for each place, relative where a store and its images move together."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from stores import store, values

from rn50feat import FeatureStore
from rn50feat.sources.archive import ArchiveRecord
from rn50feat.sources.reference import Reference
from rn50feat.store.paths import current, location_of, stored_path
from rn50feat.store.writer import open_store

OUT = Path("/data/features/out.h5")


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/data/features/a.jpg", "a.jpg"),
        ("/data/features/b/a.jpg", "b/a.jpg"),
        ("/data/images/a.jpg", "../images/a.jpg"),
        ("/data/a.tar::b/../c.jpg", "../a.tar::b/../c.jpg"),
        ("/data/features2/a.jpg", "../features2/a.jpg"),
        ("/mnt/images/a.jpg", "/mnt/images/a.jpg"),
        ("/a.jpg", "/a.jpg"),
        ("s3://data/features/a.jpg", "s3://data/features/a.jpg"),
    ],
)
def test_a_path_is_relative_in_and_next_to_the_folder_of_the_store(location: str, path: str) -> None:
    assert stored_path(OUT, location) == path
    assert location_of(OUT, path) == location
    assert current(OUT, path) == current(OUT, location) == path


@pytest.mark.parametrize(
    ("store", "location", "path"),
    [
        ("/features/out.h5", "/images/a.jpg", "/images/a.jpg"),
        ("/features/out.h5", "/features/a.jpg", "a.jpg"),
        ("/out.h5", "/images/a.jpg", "images/a.jpg"),
        ("/out.h5", "/a.jpg", "a.jpg"),
    ],
)
def test_what_shares_only_the_root_is_not_next_to_the_store(store: str, location: str, path: str) -> None:
    assert stored_path(Path(store), location) == path
    assert location_of(Path(store), path) == location


def test_paths_that_no_version_writes_still_lead_somewhere() -> None:
    assert location_of(Path("/features/out.h5"), "../images/a.jpg") == "/images/a.jpg"  # moved up to the root
    assert current(Path("/features/out.h5"), "../images/a.jpg") == "/images/a.jpg"
    assert current(OUT, "../features/a.jpg") == "a.jpg"
    assert location_of(OUT, "../../a.jpg") == "/data/../a.jpg"
    assert current(OUT, "../../a.jpg") == "../../a.jpg"


def as_older_versions(path: Path) -> None:
    """Give a store the absolute paths that versions before this rule stored for images next to its folder."""
    with h5py.File(path, "r+") as file:
        for name in ("paths", "failures/path", "archives/path"):
            for i, old in enumerate(file[name].asstr()[:] if name in file else ()):
                file[name][i] = location_of(path, old)
        del file.attrs["checksums"]


def test_what_an_older_version_stored_has_the_path_of_today(tmp_path: Path) -> None:
    out = store(tmp_path / "features/out.h5", [("../images/a.png", 1, 1), ("b.png", 2, 2)])
    with open_store(out) as writer:
        writer.fail(Reference(str(tmp_path / "images/bad.png"), 9, 9), "is broken")
        writer.note_archive(ArchiveRecord("../images/x.tar", 1, 1, 1, 0))
    as_older_versions(out)
    old = FeatureStore(out)
    assert old.paths() == ["../images/a.png", "b.png"] == [old.path_of(0), old.path_of(1)]
    assert old.rows_of(["../images/a.png", str(tmp_path / "images/a.png"), "a.png"]) == [0, 0, None]
    assert [old.locate(path) for path in old.paths()] == [
        str(tmp_path / "images/a.png"),
        str(tmp_path / "features/b.png"),
    ]
    assert old.references(0, 2)[0].location == str(tmp_path / "images/a.png")
    assert [failure.path for failure in old.failures()] == ["../images/bad.png"]
    assert [archive.path for archive in old.archives()] == ["../images/x.tar"]
    with open_store(out) as writer:
        writer.fail(Reference(str(tmp_path / "images/bad.png"), 9, 9), "is still broken")
        writer.note_archive(ArchiveRecord("../images/x.tar", 2, 2, 2, 0))
    assert [(failure.reason, failure.attempts) for failure in old.failures()] == [("is still broken", 2)]
    assert [archive.size for archive in old.archives()] == [2]
    with open_store(out) as writer:
        writer.clear_failures(["../images/bad.png"])
    assert old.failures() == []
    assert not old.wrong_rows(0, 2) and not old.wrong_tables()


def test_a_failure_that_is_stored_as_two_paths_is_one(tmp_path: Path) -> None:
    out = store(tmp_path / "features/out.h5", [])
    with open_store(out) as writer:
        for name in ("images/a.png", "images/b.png", "images/a.png.", "images/c.png"):
            writer.fail(Reference(str(tmp_path / name), 9, 9), "is broken")
    with h5py.File(out, "r+") as file:
        file["failures/path"][2] = str(tmp_path / "images/a.png")
        del file.attrs["checksums"]
    with open_store(out) as writer:
        writer.clear_failures(["../images/a.png"])
        writer.fail(Reference(str(tmp_path / "images/d.png"), 9, 9), "is broken")
        writer.clear_failures(["../images/c.png"])
    with open_store(out) as writer:
        writer.clear_failures(["../images/a.png"])
    assert sorted(failure.path for failure in FeatureStore(out).failures()) == ["../images/b.png", "../images/d.png"]


def test_a_store_behind_a_link_has_the_neighbours_of_its_own_folder(tmp_path: Path) -> None:
    store(tmp_path / "data/features/out.h5", [("../images/a.png", 1, 1)])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "data/features")
    linked = FeatureStore(tmp_path / "elsewhere/link/out.h5")
    assert linked.locate("../images/a.png") == str(tmp_path / "data/images/a.png")
    assert values(linked.path) == {"../images/a.png": 1}
