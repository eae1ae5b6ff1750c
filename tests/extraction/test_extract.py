"""extract: what a run does with new, known, changed, copied and broken files, with a fake engine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import rows
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import ProvenanceError, SourceError, StoreError, StoreLockedError
from rn50feat.sources import contents
from rn50feat.sources.reference import Reference
from rn50feat.store.summary import Summary

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def extract(pictures: Path, start: FakeStart, **settings: object) -> Summary:
    return rn50feat.extract(pictures, pictures.parent / "out.h5", start=start, **{"weights": "random", **settings})


def color(store: Path, path: str) -> tuple[int, ...]:
    return tuple(int(value) for value in rows(store)[path][:3])


def test_every_picture_gets_its_own_row_in_sorted_order(pictures: Path, start: FakeStart) -> None:
    summary = extract(pictures, start)
    store = FeatureStore(pictures.parent / "out.h5")
    names = ["red.png", "sub/blue.png", "sub/green.png", "white.png", "z.png"]
    assert store.paths() == [f"pictures/{name}" for name in names]
    assert [tuple(row[:3]) for _, block in store.blocks() for row in block] == [
        RED, BLUE, GREEN, (255, 255, 255), (96, 96, 128),
    ]  # fmt: skip
    assert (summary.found, summary.new) == (5, 5)
    assert store.column("ids").tolist() == [0, 1, 2, 3, 4]
    assert store.dtype == np.float32


def test_unchanged_files_are_not_read_and_no_engine_starts(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    for path in pictures.rglob("*.png"):
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)  # a reader would notice
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    summary = extract(pictures, start)
    assert (summary.unchanged, summary.new, len(start.engines)) == (5, 0, 1)


def test_a_changed_file_replaces_its_row_under_a_new_id(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    (pictures / "red.png").write_bytes(encoded(Image.new("RGB", (50, 50), "yellow"), "PNG"))
    summary = extract(pictures, start)
    store = pictures.parent / "out.h5"
    assert (summary.changed, summary.unchanged, len(FeatureStore(store))) == (1, 4, 5)
    assert color(store, "pictures/red.png") == (255, 255, 0)
    assert FeatureStore(store).column("ids").tolist() == [5, 1, 2, 3, 4]


def test_moved_and_copied_files_reuse_their_features(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    shutil.copy(pictures / "red.png", pictures / "copy.png")
    (pictures / "sub/blue.png").rename(pictures / "moved.png")
    summary = extract(pictures, start)
    store = pictures.parent / "out.h5"
    assert (summary.reused, summary.new, len(start.engines)) == (2, 0, 1)
    assert color(store, "pictures/copy.png") == RED
    assert color(store, "pictures/moved.png") == BLUE


def test_a_touched_file_keeps_its_row_and_id(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    shutil.copy(pictures / "red.png", pictures / "copy.png")
    extract(pictures, start)
    for name in ("red.png", "copy.png"):
        os.utime(pictures / name, (1, 1))
    assert extract(pictures, start).unchanged == 6
    assert FeatureStore(pictures.parent / "out.h5").column("ids").tolist() == [0, 1, 2, 3, 4, 5]
    assert len(start.engines) == 1


def test_a_file_overwritten_by_a_copy_of_another_takes_its_features(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    shutil.copy(pictures / "sub/green.png", pictures / "red.png")
    os.utime(pictures / "red.png", (1, 1))
    summary = extract(pictures, start)
    assert (summary.reused, len(start.engines)) == (1, 1)
    assert color(pictures.parent / "out.h5", "pictures/red.png") == GREEN


def test_a_broken_picture_is_tried_again_only_when_it_changed_or_on_demand(pictures: Path, start: FakeStart) -> None:
    (pictures / "bad.png").write_text("no picture")
    assert extract(pictures, start).failed == 1
    assert extract(pictures, start).failed_before == 1
    store = pictures.parent / "out.h5"
    (failure,) = FeatureStore(store).failures()
    assert (failure.path, failure.attempts) == ("pictures/bad.png", 1)
    assert "not an image" in failure.reason
    assert extract(pictures, start, retry_failed=True).failed == 1
    assert FeatureStore(store).failures()[0].attempts == 2
    (pictures / "bad.png").write_bytes(encoded(Image.new("RGB", (9, 9), "red"), "PNG"))
    assert extract(pictures, start).new == 1
    assert FeatureStore(store).failures() == []
    assert color(store, "pictures/bad.png") == RED


def test_the_ledger_stays_in_order_when_one_of_many_is_mended(pictures: Path, start: FakeStart) -> None:
    for i in range(4):
        (pictures / f"bad{i}.png").write_text(f"no picture {i}")
    extract(pictures, start)
    for i in (1, 3):
        (pictures / f"bad{i}.png").write_bytes(encoded(Image.new("RGB", (9, 9 + i), "red"), "PNG"))
    assert extract(pictures, start).new == 2
    failures = FeatureStore(pictures.parent / "out.h5").failures()
    assert {failure.path for failure in failures} == {"pictures/bad0.png", "pictures/bad2.png"}
    assert extract(pictures, start, retry_failed=True).failed == 2


def test_what_is_a_picture_is_told_by_content(pictures: Path, start: FakeStart) -> None:
    picture = (pictures / "red.png").read_bytes()
    (pictures / "no_suffix").write_bytes(picture)
    (pictures / "picture.txt").write_bytes(picture[:-1] + b"\x82")
    (pictures / "notes.txt").write_text("BM, P5 and #define are how these lines begin")
    (pictures / "empty.jpg").touch()
    summary = extract(pictures, start)
    assert (summary.new, summary.ignored, summary.failed) == (7, 1, 1)


def test_pipes_and_dangling_links_are_never_opened(pictures: Path, start: FakeStart) -> None:
    os.mkfifo(pictures / "pipe.png")
    (pictures / "dangling.png").symlink_to("nowhere")
    (pictures / "circle").symlink_to(pictures)
    assert extract(pictures, start).found == 5


def test_overwrite_starts_anew(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    store = pictures.parent / "out.h5"
    old = FeatureStore(store).id
    (pictures / "red.png").unlink()
    assert extract(pictures, start, overwrite=True).new == 4
    assert (len(FeatureStore(store)), FeatureStore(store).id == old) == (4, False)


def test_overwrite_leaves_the_old_store_until_there_is_something_new(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    before = (pictures.parent / "out.h5").read_bytes()
    empty = pictures.parent / "empty"
    empty.mkdir()
    with pytest.raises(SourceError, match="no image"):
        rn50feat.extract(empty, pictures.parent / "out.h5", weights="random", overwrite=True, start=start)
    assert (pictures.parent / "out.h5").read_bytes() == before


def test_another_provenance_is_refused_with_both_values(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    with pytest.raises(ProvenanceError, match="weights random:0.*you asked for random:7: use another file, or"):
        extract(pictures, start, weights="random:7")
    with pytest.raises(ProvenanceError, match="exif applied, you asked for ignored"):
        extract(pictures, start, exif=False)
    with pytest.raises(StoreError, match="float32, you asked for float16"):
        extract(pictures, start, dtype="float16")
    assert extract(pictures, start, weights=None).unchanged == 5


def test_weights_that_turn_out_to_be_others_are_refused(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(pictures, start)
    monkeypatch.setattr("fake.FakeBackend.__init__.__defaults__", ("0b" * 32,))
    (pictures / "new.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
    with pytest.raises(ProvenanceError, match="fafafafa.*0b0b0b0b"):
        extract(pictures, start)
    assert len(FeatureStore(pictures.parent / "out.h5")) == 5


def test_half_precision_that_cannot_hold_a_value_is_a_failure(pictures: Path, start: FakeStart) -> None:
    def large(self: object, crops: np.ndarray) -> np.ndarray:
        return np.where(crops.reshape(len(crops), -1)[:, :1] > 200, 1e5, 1.0) * np.ones((1, 2048), np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fake.FakeBackend.features", large)
        summary = extract(pictures, start, dtype="float16")
    assert (summary.new, summary.failed) == (3, 2)
    store = FeatureStore(pictures.parent / "out.h5")
    assert "not finite in float16: use a new store with --dtype float32" in store.failures()[0].reason
    assert store.dtype == np.float16


def test_sources_that_overlap_count_once(pictures: Path, start: FakeStart) -> None:
    sources = [pictures, pictures / "sub", pictures / "red.png", pictures.parent / "pictures/../pictures"]
    assert rn50feat.extract(sources, pictures.parent / "out.h5", weights="random", start=start).new == 5


def test_a_picture_far_from_the_stores_folder_is_stored_absolute(pictures: Path, start: FakeStart) -> None:
    store = pictures / "sub/more/out.h5"
    store.parent.mkdir()
    (store.parent / "blue.png").write_bytes((pictures / "sub/blue.png").read_bytes())
    rn50feat.extract(pictures, store, weights="random", start=start)
    paths = FeatureStore(store).paths()
    assert paths[0] == str(pictures / "red.png")
    assert {"blue.png", "../blue.png", "../green.png"} < set(paths)
    assert all((store.parent / path).exists() for path in paths)


def test_names_of_all_kinds_survive(pictures: Path, start: FakeStart) -> None:
    names = [
        "a b.png",
        "quote'\".png",
        "line\nbreak.png",
        "tab\t.png",
        "🦜.png",
        os.fsdecode(b"\xff\xfe.png"),
        "\\x.png",
    ]
    for i, name in enumerate(names):
        (pictures / name).write_bytes(encoded(Image.new("RGB", (9, 9), (i, i, i)), "PNG"))
    extract(pictures, start)
    stored = rows(pictures.parent / "out.h5")
    for i, name in enumerate(names):
        assert stored[f"pictures/{name}"][0] == i
    assert extract(pictures, start).unchanged == 12


def test_a_store_in_use_is_left_alone(pictures: Path, start: FakeStart) -> None:
    from rn50feat.durable.lock import run_lock

    store = pictures.parent / "out.h5"
    with run_lock(store), pytest.raises(StoreLockedError, match=f"process {os.getpid()} on "):
        extract(pictures, start)
    assert not store.exists()
    assert extract(pictures, start).new == 5
    assert sorted(path.name for path in pictures.parent.iterdir()) == ["out.h5", "pictures"]


def test_a_file_that_is_no_store_is_left_alone(pictures: Path, start: FakeStart) -> None:
    store = pictures.parent / "out.h5"
    store.write_text("my notes")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="not an HDF5 file"):
            extract(pictures, start, overwrite=overwrite)
    assert store.read_text() == "my notes"


def test_an_error_leaves_the_last_commit(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    before = (pictures.parent / "out.h5").read_bytes()
    (pictures / "new.png").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rn50feat.store.writer.StoreWriter.record", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract(pictures, start)
    assert (pictures.parent / "out.h5").read_bytes() == before
    assert extract(pictures, start).new == 1


def test_each_run_leaves_its_record(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    extract(pictures, start)
    first, second = FeatureStore(pictures.parent / "out.h5").runs()
    assert (first["device"], first["counts"]["new"]) == ("cpu", 5)
    assert (second["device"], second["counts"]["unchanged"]) == (None, 5)
    assert first["versions"]["rn50feat"] == rn50feat.__version__


def test_progress_counts_every_file(pictures: Path, start: FakeStart) -> None:
    (pictures / "notes.txt").write_text("no picture")
    told: list[int] = []
    extract(pictures, start, on_progress=lambda progress: told.append(progress.done.found + progress.done.ignored))
    assert told[-1] == 6
    assert told == sorted(told)


def test_a_picture_that_is_as_it_was_again_leaves_the_ledger(pictures: Path, start: FakeStart) -> None:
    extract(pictures, start)
    path = pictures / "red.png"
    status, data = path.stat(), path.read_bytes()
    path.write_text("broken for a while")
    assert extract(pictures, start).failed == 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert extract(pictures, start).unchanged == 5
    assert FeatureStore(pictures.parent / "out.h5").failures() == []


FAR_FUTURE, FAR_PAST = 10_413_792_000 * 10**9, -(9_500_000_000 * 10**9)  # the years 2300 and 1668
OUTSIDE = "has a modification time outside what a store can hold, 1677-09-22 to 2262-04-11: touch it"


@pytest.mark.parametrize("mtime_ns", [FAR_FUTURE, FAR_PAST])
def test_a_file_whose_time_a_store_cannot_hold_costs_that_file_only(
    pictures: Path, start: FakeStart, mtime_ns: int
) -> None:
    store = pictures.parent / "out.h5"
    odd = pictures / "red.png"
    (pictures / "notes.txt").write_text("no picture")
    for path in (odd, pictures / "notes.txt"):
        os.utime(path, ns=(0, mtime_ns))
        if path.stat().st_mtime_ns != mtime_ns:
            pytest.skip("this file system holds no such times either")
    summary = extract(pictures, start)
    assert (summary.new, summary.failed, len(rows(store))) == (4, 1, 4)
    (entry,) = FeatureStore(store).failures()
    assert (entry.path, entry.reason) == ("pictures/red.png", OUTSIDE)
    summary = extract(pictures, start)  # not tried again, as any file that failed
    assert (summary.unchanged, summary.failed, summary.failed_before) == (4, 0, 1)
    assert extract(pictures, start, retry_failed=True).failed == 1
    os.utime(odd)
    assert extract(pictures, start).new == 1
    assert FeatureStore(store).failures() == []
    os.utime(odd, ns=(0, mtime_ns))  # a file with a row, whose bytes are the same: the row stays
    assert (extract(pictures, start).failed, len(rows(store))) == (1, 5)
    assert (extract(pictures, start, prune=True).failed_before, len(rows(store))) == (1, 5)
    assert rn50feat.verify(store).findings == []


def test_an_archive_whose_time_a_store_cannot_hold_costs_that_archive_only(pictures: Path, start: FakeStart) -> None:
    packed = shutil.make_archive(str(pictures / "more"), "zip", pictures, "sub")
    os.utime(packed, ns=(0, FAR_FUTURE))
    summary = extract(pictures, start)
    assert (summary.new, summary.failed) == (5, 1)
    (entry,) = FeatureStore(pictures.parent / "out.h5").failures()
    assert (entry.path, entry.reason) == ("pictures/more.zip", OUTSIDE)
    assert extract(pictures, start).failed_before == 1
    os.utime(packed)
    assert extract(pictures, start).reused == 2


def test_a_time_that_changes_while_a_run_reads_costs_that_file_only(
    pictures: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = contents.read

    def meddled(reference: Reference) -> tuple[Reference, bytes]:
        if reference.location.endswith("red.png"):
            os.utime(reference.location, ns=(0, FAR_FUTURE))
        return read(reference)

    monkeypatch.setattr(contents, "read", meddled)
    assert (extract(pictures, start).new, extract(pictures, start).failed_before) == (4, 1)


def test_names_that_no_file_has_are_an_error_in_one_line(pictures: Path, start: FakeStart) -> None:
    for name in ("a\0b.png", "\ud800.png"):
        with pytest.raises(SourceError, match="name an existing folder or image"):
            rn50feat.extract([name], pictures.parent / "out.h5", start=start)
        with pytest.raises(StoreError, match="name a file for the store"):
            FeatureStore(f"{name}.h5")


@pytest.mark.parametrize("kind", ["folder", "file", "replaced"])
def test_a_store_that_is_moved_during_a_run_is_told_as_that(
    pictures: Path, tmp_path: Path, start: FakeStart, kind: str
) -> None:
    folder = tmp_path / "stores"
    folder.mkdir()
    store = folder / "out.h5"
    rn50feat.extract(pictures / "red.png", store, weights="random", start=start)
    saved = store.read_bytes()

    def move(progress: object) -> None:
        if kind == "folder" and folder.exists():
            folder.rename(tmp_path / "moved")
        elif kind == "file" and store.exists():
            store.rename(folder / "moved.h5")
        elif kind == "replaced":
            (folder / "copy").write_bytes(saved)
            (folder / "copy").rename(store)

    with pytest.raises(StoreError) as caught:
        rn50feat.extract(pictures, store, start=start, commit_rows=1, on_progress=move)
    assert "renamed, replaced or removed" in str(caught.value)
    assert "run again" in str(caught.value)
    left = {"folder": tmp_path / "moved/out.h5", "file": folder / "moved.h5", "replaced": store}[kind]
    assert len(FeatureStore(left)) == 1
