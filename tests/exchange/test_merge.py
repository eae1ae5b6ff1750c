"""merge: every row of every store once, under the names that lead there from the new one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import Result
from conftest import Run
from fake import FakeStart
from stores import PROVENANCE, store, values

import rn50feat
from rn50feat import FeatureStore, Selection, Shard, merge
from rn50feat.durable.lock import run_lock
from rn50feat.errors import ProvenanceError, StoreError
from rn50feat.extraction.verify import verify
from rn50feat.sources.reference import Reference
from rn50feat.store import snapshot, writer
from rn50feat.store.session import WriteSession
from rn50feat.store.summary import Progress
from rn50feat.store.writer import open_store


def test_paths_are_told_from_the_new_stores_folder(tmp_path: Path) -> None:
    a = store(tmp_path / "a/a.h5", [("1.jpg", 1, 1), ("/elsewhere/2.jpg", 1, 2)])
    b = store(tmp_path / "b/b.h5", [("1.jpg", 1, 3), (str(tmp_path / "a/4.jpg"), 1, 4)])
    summary = merge([a, b], tmp_path / "out.h5")
    assert values(tmp_path / "out.h5") == {"a/1.jpg": 1, "/elsewhere/2.jpg": 2, "b/1.jpg": 3, "a/4.jpg": 4}
    assert (summary.new, summary.found) == (4, 4)
    assert FeatureStore(tmp_path / "out.h5").column("ids").tolist() == [0, 1, 2, 3]
    assert not verify(tmp_path / "out.h5").findings
    merge([tmp_path / "out.h5"], tmp_path / "a/deep.h5")
    assert values(tmp_path / "a/deep.h5") == {
        "1.jpg": 1,
        "/elsewhere/2.jpg": 2,
        "../b/1.jpg": 3,
        "4.jpg": 4,
    }


def test_shares_merge_to_what_one_run_gives(pictures: Path, start: FakeStart) -> None:
    (pictures / "bad.png").write_text("no picture")
    folder = pictures.parent
    shares = [folder / f"share{number}.h5" for number in (1, 2, 3)]
    for number, share in enumerate(shares, 1):
        selection = Selection(pictures, shard=Shard(number, 3))
        if next(selection.references(), None):
            rn50feat.extract(selection, share, weights="random", start=start)
    rn50feat.extract(pictures, folder / "whole.h5", weights="random", start=start)
    merge([share for share in shares if share.exists()], folder / "out.h5")
    whole, merged = FeatureStore(folder / "whole.h5"), FeatureStore(folder / "out.h5")
    assert values(merged.path) == values(whole.path)
    facts = [{r.location: r for r in one.references(0, len(one))} for one in (merged, whole)]
    assert facts[0] == facts[1]
    assert merged.failures() == whole.failures()
    assert rn50feat.extract(pictures, merged.path, start=start).unchanged == 5


@pytest.mark.parametrize("order", [1, -1])
def test_of_one_picture_the_newest_file_has_its_row(tmp_path: Path, order: int) -> None:
    a = store(tmp_path / "a.h5", [("same.jpg", 1, 1), ("old.jpg", 1, 2), ("new.jpg", 9, 3), ("tie.jpg", 5, 4)])
    b = store(tmp_path / "b.h5", [("same.jpg", 1, 1), ("old.jpg", 2, 5), ("new.jpg", 8, 6), ("tie.jpg", 5, 7)])
    summary = merge([a, b][::order], tmp_path / "out.h5")
    tie = 4 if order == 1 else 7
    assert values(tmp_path / "out.h5") == {"same.jpg": 1, "old.jpg": 5, "new.jpg": 3, "tie.jpg": tie}
    assert (summary.new, summary.unchanged) == (4, 4)


def test_merging_again_costs_what_is_new(tmp_path: Path) -> None:
    a = store(tmp_path / "a.h5", [(f"{i}.jpg", 1, i + 1) for i in range(5)])
    b = store(tmp_path / "b.h5", [(f"b{i}.jpg", 1, i + 1) for i in range(5)])
    merge([a, b], tmp_path / "out.h5")
    with open_store(a) as writer:
        newer = Reference(str(tmp_path / "0.jpg"), 9, 2, bytes(15) + b"\x63")
        writer.replace(0, newer, np.full(2048, 99, np.float32))
        writer.touch(1, Reference(str(tmp_path / "1.jpg"), 9, 7, (2).to_bytes(16, "big")))
    store(b, [("b5.jpg", 1, 6)])
    summary = merge([a, b], tmp_path / "out.h5")
    assert (summary.new, summary.changed, summary.unchanged) == (1, 1, 9)
    merged = FeatureStore(tmp_path / "out.h5")
    assert values(merged.path)["0.jpg"] == 99
    assert sorted(merged.column("ids")) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert merged.references(1, 1)[0].mtime_ns == 7
    summary = merge([a, b], tmp_path / "out.h5")
    assert (summary.new, summary.changed, summary.unchanged) == (0, 0, 11)
    assert [run["command"] for run in merged.runs()] == ["merge"] * 3
    assert merged.runs()[0]["precision"] == "fp32"


def test_a_merge_keeps_what_the_new_store_has_of_its_own(tmp_path: Path) -> None:
    out = store(tmp_path / "out.h5", [("own.jpg", 1, 1), ("newer.jpg", 9, 2), ("older.jpg", 1, 3)])
    a = store(tmp_path / "a.h5", [("newer.jpg", 5, 4), ("older.jpg", 5, 5), ("a.jpg", 1, 6)])
    merge([a], out)
    assert values(out) == {"own.jpg": 1, "newer.jpg": 2, "older.jpg": 5, "a.jpg": 6}


def test_the_ledgers_come_along_where_no_row_is_as_new(tmp_path: Path) -> None:
    a = store(tmp_path / "a.h5", [("good.jpg", 5, 1), ("broke.jpg", 5, 2)])
    b = store(tmp_path / "b.h5", [("other.jpg", 5, 3)])
    with open_store(b) as writer:
        for name, mtime in (("good.jpg", 4), ("broke.jpg", 6), ("bad.jpg", 1), ("away.jpg", -1), ("good.jpg", -1)):
            writer.fail(Reference(str(tmp_path / name), mtime, mtime), f"is broken as of {mtime}")
        writer.fail(Reference(str(tmp_path / "bad.jpg"), 1, 1), "is broken as of 1")
    for expected in (3, 0):
        assert merge([a, b], tmp_path / "out.h5").failed == expected
    found = {f.path: (f.reason, f.mtime_ns, f.attempts) for f in FeatureStore(tmp_path / "out.h5").failures()}
    assert found == {
        "broke.jpg": ("is broken as of 6", 6, 1),
        "bad.jpg": ("is broken as of 1", 1, 2),
        "away.jpg": ("is broken as of -1", -1, 1),
    }
    store(tmp_path / "c.h5", [("bad.jpg", 3, 9)])
    merge([tmp_path / "c.h5"], tmp_path / "out.h5")
    assert {failure.path for failure in FeatureStore(tmp_path / "out.h5").failures()} == {"broke.jpg", "away.jpg"}


def test_another_provenance_is_refused_with_both_values(tmp_path: Path) -> None:
    a, b = store(tmp_path / "a.h5", [("1.jpg", 1, 1)]), store(tmp_path / "b.h5", [], weights_sha256="0b" * 32)
    c = store(tmp_path / "c.h5", [], layer="fc")
    for other, message in ((b, r"a.h5 holds .*5e5e5e5e.*b.h5 with .*0b0b0b0b"), (c, "layer avgpool, .*c.h5 with fc")):
        with pytest.raises(ProvenanceError, match=message):
            merge([a, other], tmp_path / "out.h5")
        with pytest.raises(ProvenanceError, match="merge only stores of one provenance"):
            merge([other], a)
    assert not (tmp_path / "out.h5").exists()
    d = store(tmp_path / "d.h5", [("2.jpg", 1, 2)], weights_sha256="")  # a SHA-256 that is not known yet
    merge([d, a], tmp_path / "out.h5")
    assert FeatureStore(tmp_path / "out.h5").provenance == PROVENANCE


def test_float32_is_rounded_only_on_demand(tmp_path: Path) -> None:
    a = store(tmp_path / "a.h5", [("1.jpg", 1, 1)], dtype="float16")
    b = store(tmp_path / "b.h5", [("2.jpg", 1, 2049)])
    merge([a, b], tmp_path / "wide.h5")
    assert FeatureStore(tmp_path / "wide.h5").dtype == np.float32
    assert values(tmp_path / "wide.h5") == {"1.jpg": 1, "2.jpg": 2049}
    merge([a], tmp_path / "half.h5")
    assert FeatureStore(tmp_path / "half.h5").dtype == np.float16
    with pytest.raises(StoreError, match=r"b.h5 holds float32, .*half.h5 float16: give --dtype float16 to round"):
        merge([b], tmp_path / "half.h5")
    with pytest.raises(StoreError, match="holds float16, you asked for float32"):
        merge([b], tmp_path / "half.h5", dtype="float32")
    merge([b], tmp_path / "half.h5", dtype="float16")
    assert values(tmp_path / "half.h5") == {"1.jpg": 1, "2.jpg": 2048}


def test_rows_that_float16_cannot_hold_are_failures(tmp_path: Path) -> None:
    a = store(tmp_path / "a.h5", [("1.jpg", 1, 1), ("2.jpg", 1, 70_000), ("3.jpg", 1, 0)])
    summary = merge([a], tmp_path / "out.h5", dtype="float16")
    assert (summary.new, summary.failed) == (1, 2)
    reasons = {failure.path: failure.reason for failure in FeatureStore(tmp_path / "out.h5").failures()}
    assert reasons == {
        "2.jpg": "has features that are not finite in float16: use a new store with --dtype float32",
        "3.jpg": "has features that are all zero",
    }


def test_a_store_is_not_merged_into_itself(tmp_path: Path) -> None:
    a = store(tmp_path / "a.h5", [("1.jpg", 1, 1)])
    (tmp_path / "link.h5").symlink_to("a.h5")
    with pytest.raises(StoreError, match="is among the stores to merge into it"):
        merge([tmp_path / "link.h5"], a)
    with pytest.raises(StoreError, match="nothing to merge"):
        merge([], a)


def test_a_merge_that_is_stopped_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK", 10)
    a = store(tmp_path / "a.h5", [(f"{i}.jpg", 1, i + 1) for i in range(35)])
    stops = iter([None, None, "SIGTERM"])
    summary = merge([a], tmp_path / "out.h5", should_stop=lambda: next(stops))
    assert (summary.stopped, summary.new, len(FeatureStore(tmp_path / "out.h5"))) == ("SIGTERM", 20, 20)
    assert merge([a], tmp_path / "out.h5").new == 15
    assert len(values(tmp_path / "out.h5")) == 35


def test_an_error_on_the_way_leaves_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK", 10)
    monkeypatch.setitem(WriteSession.__init__.__kwdefaults__, "commit_rows", 10)
    a = store(tmp_path / "a.h5", [(f"{i}.jpg", 1, i + 1) for i in range(35)])

    def move(progress: Progress) -> None:
        if progress.done.new == 20:
            with open_store(a) as writer:
                writer.remove(np.array([30]))

    with pytest.raises(StoreError, match=r"a.h5 changed while it was read .* try again"):
        merge([a], tmp_path / "out.h5", on_progress=move)
    assert len(values(tmp_path / "out.h5")) == 30
    assert merge([a], tmp_path / "out.h5").new == 4


def test_commits_of_a_merge_are_put_off_while_a_notebook_keeps_the_store_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "BLOCK", 10)
    monkeypatch.setitem(WriteSession.__init__.__kwdefaults__, "commit_rows", 10)
    monkeypatch.setattr(writer, "READER_SECONDS", 0.01)
    a = store(tmp_path / "a.h5", [(f"{i}.jpg", 1, i + 1) for i in range(35)])
    out = store(tmp_path / "out.h5", [("old.jpg", 1, 1)])
    notebook = h5py.File(out)

    def close(progress: Progress) -> None:
        if progress.done.new == 30:
            assert len(FeatureStore(out)) == 1
            notebook.close()

    assert merge([a], out, on_progress=close).new == 35
    assert len(FeatureStore(out)) == 36
    assert [record.message for record in caplog.records] == [
        f"{out} is kept open by another program (a notebook?): commits wait until it is closed"
    ]


KILLED = """
import os, signal, sys
from rn50feat import merge
from rn50feat.store import snapshot
from rn50feat.store.session import WriteSession
snapshot.BLOCK = WriteSession.__init__.__kwdefaults__["commit_rows"] = 10
def die(progress):
    if progress.done.new == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
merge(["a.h5"], "out.h5", on_progress=die)
"""


def test_a_merge_that_is_killed_loses_no_commit_and_goes_on(tmp_path: Path) -> None:
    a = store(tmp_path / "a.h5", [(f"{i}.jpg", 1, i + 1) for i in range(35)])
    for new, committed in ((10, 10), (20, 30)):
        done = subprocess.run([sys.executable, "-c", KILLED, str(new)], cwd=tmp_path)
        assert done.returncode == -signal.SIGKILL
        assert len(values(tmp_path / "out.h5")) == committed
    assert merge([a], tmp_path / "out.h5").new == 5
    assert values(tmp_path / "out.h5") == values(a)
    assert not verify(tmp_path / "out.h5").findings


def test_rows_may_be_appended_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BLOCK", 2)
    a = store(tmp_path / "a.h5", [(f"{i}.jpg", 1, i + 1) for i in range(5)])
    late = iter(range(5, 100))

    def add(progress: Progress) -> None:
        number = next(late)
        store(a, [(f"{number}.jpg", 1, number + 1)])

    merge([a], tmp_path / "out.h5", on_progress=add)
    assert len(FeatureStore(a)) > 5
    assert set(values(tmp_path / "out.h5")) == {f"{i}.jpg" for i in range(5)}


def test_the_command_line(rn50feat: Run, tmp_path: Path) -> None:
    a, b = store(tmp_path / "a.h5", [("1.jpg", 1, 1)]), store(tmp_path / "b.h5", [("2.jpg", 1, 2)])
    done = rn50feat("merge", a, b, "out.h5", "--json")
    assert (done.returncode, json.loads(done.stdout)["new"]) == (0, 2)
    assert done.stderr.startswith("out.h5: 2 new, in ")
    assert "merge: 2 new" in rn50feat("info", "out.h5").stdout
    assert rn50feat("merge", a, b, "out.h5", "--quiet").stderr == ""
    with run_lock(tmp_path / "out.h5"):
        assert rn50feat("merge", a, "out.h5").returncode == 75
    assert rn50feat("merge", "out.h5").returncode == 2
    done = rn50feat("merge", "none.h5", "new.h5")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none.h5: No such file or directory" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5", "out.h5"]


def test_what_other_programs_have_added_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, here: Callable[..., Result]
) -> None:
    path = store(tmp_path / "a.h5", [("1.jpg", 1, 1)])
    with h5py.File(path, "r+") as file:
        file["labels"], file.attrs["author"] = [3], "somebody"
    merge([path], tmp_path / "out.h5")
    left = [f"{path}: labels", f"{path}: @author"]
    message = f"not merged, since other programs have added it: {', '.join(left)}"
    assert [record.message for record in caplog.records] == [message]
    assert json.loads(here("merge", "a.h5", "again.h5", "--json").stdout)["left_out"] == left
