"""relocate: a store and images that move, together or apart, keep one row for each image."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from fake import FakeStart
from stores import store, values
from trees import COUNT, extract, ids, moved

import rn50feat
from rn50feat import FeatureStore, relocate, verify
from rn50feat.errors import ArgumentError
from rn50feat.sources.archive import ArchiveRecord
from rn50feat.store.writer import open_store


def test_a_tree_that_moves_as_a_whole_keeps_its_rows(tree: Path, start: FakeStart) -> None:
    extract(tree / "images", tree / "features/out.h5", start)
    before = ids(tree / "features/out.h5")
    there = moved(tree)
    summary = extract(there / "images", there / "features/out.h5", start)
    assert (summary.unchanged, summary.failed_before, summary.found) == (COUNT, 1, COUNT + 1)
    assert ids(there / "features/out.h5") == {
        location.replace(str(tree), str(there)): number for location, number in before.items()
    }
    assert len(start.seen) == COUNT + 1


def test_a_store_of_an_older_version_keeps_its_rows_where_it_is(tree: Path, start: FakeStart) -> None:
    out = tree / "features/out.h5"
    extract(tree / "images", out, start)
    before = ids(out)
    with h5py.File(out, "r+") as file:
        for name in ("paths", "failures/path"):
            for i, path in enumerate(file[name].asstr()[:]):
                file[name][i] = str(tree / path.removeprefix("../"))
        del file.attrs["checksums"]
    summary = extract(tree / "images", out, start)
    assert (summary.unchanged, summary.failed_before, summary.found) == (COUNT, 1, COUNT + 1)
    assert ids(out) == before
    summary = rn50feat.extract(tree / "images", out, prune=True, retry_failed=True, start=start)
    assert (summary.unchanged, summary.failed, summary.removed) == (COUNT, 1, 0)
    assert [failure.attempts for failure in FeatureStore(out).failures()] == [2]


@pytest.mark.parametrize("doubled", [False, True])
def test_images_that_moved_keep_their_rows(tree: Path, start: FakeStart, doubled: bool) -> None:
    out = tree / "features/out.h5"
    extract(tree / "images", out, start)
    before, commits = ids(out), len(FeatureStore(out).history())
    images = moved(tree, "images") / "images"
    if doubled:
        assert extract(images, out, start).reused == COUNT
        assert len(FeatureStore(out)) == 2 * COUNT
    planned = relocate(tree / "images", images, out)
    assert (planned.rows, planned.failures, planned.removed, planned.left) == (COUNT, not doubled, doubled * COUNT, 0)
    assert (planned.missing, planned.still, planned.applied) == (0, 0, False)
    assert planned.example == (str(tree / "images/even/00.png"), str(images / "even/00.png"))
    assert len(FeatureStore(out)) == (2 if doubled else 1) * COUNT  # nothing has changed yet
    assert relocate(tree / "images", images, out, apply=True) == replace(planned, applied=True)
    assert ids(out) == {str(images / Path(old).relative_to(tree / "images")): number for old, number in before.items()}
    assert [failure.path for failure in FeatureStore(out).failures()] == [str(images / "broken.png")]
    assert doubled or len(FeatureStore(out).history()) == commits + 1
    run = FeatureStore(out).runs()[-1]
    assert run["relocated"] == [str(tree / "images"), str(images)]
    assert (run["counts"]["moved"], run["counts"]["removed"]) == (COUNT, doubled * COUNT)
    assert not verify(out, sources=True).findings
    summary = extract(images, out, start)
    assert (summary.unchanged, summary.failed_before, summary.found) == (COUNT, 1, COUNT + 1)
    assert len(start.seen) == COUNT + 1 + doubled  # the broken one


def test_a_store_that_moved_alone_finds_its_images(tree: Path, start: FakeStart) -> None:
    extract(tree / "images", tree / "features/out.h5", start)
    before = ids(tree / "features/out.h5")
    out = moved(tree, "features") / "features/out.h5"
    done = relocate(out.parent.parent / "images", tree / "images", out, apply=True)
    assert (done.rows, done.failures, done.missing) == (COUNT, 1, 0)
    assert ids(out) == before
    assert extract(tree / "images", out, start).unchanged == COUNT


def file(path: Path, mtime: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"123456789")
    os.utime(path, ns=(mtime, mtime))
    return str(path)


def test_of_two_images_the_one_whose_file_is_there_has_the_row(tmp_path: Path) -> None:
    here, there = tmp_path / "old", tmp_path / "new"
    rows = [(f"{here}/{name}.png", 1, i) for i, name in enumerate("abcd", 1)]
    rows += [(f"{there}/{name}.png", 2, 10 + i) for i, name in enumerate("abcd", 1)]
    out = store(tmp_path / "s/t/out.h5", rows)
    file(there / "a.png", 2)  # the new image: the row in the old place has lost its file
    file(there / "b.png", 1)  # the old image, which the row in the new place is too new for
    file(here / "c.png", 1)  # both images exist
    file(there / "c.png", 2)
    planned = relocate(here, there, out)  # and of d, no file can be found
    assert (planned.rows, planned.removed, planned.left, planned.missing, planned.still) == (1, 2, 2, 1, 1)
    relocate(here, there, out, apply=True)
    assert values(out) == {
        f"{there}/a.png": 11,
        f"{there}/b.png": 2,
        f"{there}/c.png": 13,
        f"{here}/c.png": 3,
        f"{there}/d.png": 14,
        f"{here}/d.png": 4,
    }
    assert not verify(out).findings


def test_of_two_rows_with_the_same_bytes_a_damaged_one_goes(tmp_path: Path) -> None:
    out = store(tmp_path / "s/t/out.h5", [("/old/a.png", 1, 1), ("/old/b.png", 1, 2), ("/new/a.png", 3, 1)])
    with h5py.File(out, "r+") as opened:
        opened["features"][0, 7] += 1
    relocate("/old", "/new", out, apply=True)
    assert values(out) == {"/new/a.png": 1, "/new/b.png": 2}
    assert not verify(out).findings
    assert sorted(FeatureStore(out).column("ids").tolist()) == [1, 2]


def test_whole_names_match_and_archives_take_their_members_along(tmp_path: Path) -> None:
    rows = [
        ("/x/a.tar::i/1.png", 5, 1),
        ("/x/a.tar.gz/2.png", 5, 2),
        ("/x/ab.png", 5, 3),
        ("/b/a.tar::i/4.png", 5, 4),
    ]
    out = store(tmp_path / "s/t/out.h5", rows)
    with open_store(out) as writer:
        for i, name in enumerate(("/x/a.tar", "/b/a.tar", "/x/b.tar")):
            writer.note_archive(ArchiveRecord(name, 9, i, 1, 0))
    done = relocate("/x/a.tar", "/y/b.tar", out, apply=True)
    assert (done.rows, done.archives, done.missing) == (1, 1, 1)
    assert set(values(out)) == {"/y/b.tar::i/1.png", "/x/a.tar.gz/2.png", "/x/ab.png", "/b/a.tar::i/4.png"}
    assert {archive.path for archive in FeatureStore(out).archives()} == {"/y/b.tar", "/b/a.tar", "/x/b.tar"}
    with pytest.raises(ArgumentError, match="/y/c is not the name of an archive, but /y/b.tar is one"):
        relocate("/y/b.tar", "/y/c", out)
    relocate("/y", "/x", out, apply=True)  # where a newer record is
    assert {(archive.path, archive.mtime_ns) for archive in FeatureStore(out).archives()} == {
        ("/x/b.tar", 2),
        ("/b/a.tar", 1),
    }


def test_a_prefix_that_matches_nothing_is_an_error_that_names_what_there_is(tmp_path: Path) -> None:
    out = store(tmp_path / "s/t/out.h5", [("/mnt/a/x/1.png", 1, 1), ("/mnt/a/y/2.png", 1, 2), ("/mnt/b/3.png", 1, 3)])
    with pytest.raises(ArgumentError, match="out.h5 has nothing in /mnt/a/xx: it has images in /mnt/a, /mnt/b: name "):
        relocate("/mnt/a/xx", "/y", out)
    with pytest.raises(ArgumentError, match="/mnt/a/ and /mnt/a are the same place: name"):
        relocate("/mnt/a/", "/mnt/a", out)
    with pytest.raises(ArgumentError, match="the old or the new place is empty: name it"):
        relocate("", "/mnt/a", out)


def test_prefixes_may_lie_in_each_other(tmp_path: Path) -> None:
    out = store(tmp_path / "s/t/out.h5", [("/a/1.png", 1, 1), ("/a/b/1.png", 1, 2), ("/c.png", 1, 3)])
    relocate("/a", "/a/b", out, apply=True)
    assert values(out) == {"/a/b/1.png": 1, "/a/b/b/1.png": 2, "/c.png": 3}
    relocate("/a/b", "/a", out, apply=True)
    assert values(out) == {"/a/1.png": 1, "/a/b/1.png": 2, "/c.png": 3}
    relocate("/", "/mnt", out, apply=True)
    assert values(out) == {"/mnt/a/1.png": 1, "/mnt/a/b/1.png": 2, "/mnt/c.png": 3}
    assert not verify(out).findings


def test_a_link_that_stands_for_the_images_is_no_obstacle(tree: Path, start: FakeStart) -> None:
    out = tree / "features/out.h5"
    extract(tree / "images", out, start)
    images = moved(tree, "images") / "images"
    (tree / "images").symlink_to(images)
    assert relocate(f"{tree}/images/even/", images / "even", out).rows == COUNT / 2
