"""What a cron job needs: stopping, going on, pruning, limits, and being alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import h5py
import pytest
from conftest import Run, rows
from fake import FakeStart, extract
from PIL import Image
from scenes import encoded
from slow import slow, stopped
from stores import stored

import rn50feat
from rn50feat import FeatureStore
from rn50feat.cli.terminal import STOPS, signals
from rn50feat.durable import journal
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import StoreBusyError, StoreError
from rn50feat.extraction import extract as extraction
from rn50feat.store import writer
from rn50feat.store.summary import Progress
from rn50feat.store.writer import open_store

# Stopping


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_stops_after_the_batch_in_hand(shades: Path, start: FakeStart, number: int) -> None:
    with slow(shades.parent, "-") as process:
        for _ in range(2):
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
        _, errors = stopped(process, number)
    assert process.returncode == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in errors
    found = stored(shades.parent)
    assert found == {f"{i:02}.png": i for i in range(6)}
    assert FeatureStore(shades.parent / "out.h5").runs()[0]["counts"]["new"] == 6
    assert extract(shades, start).new == 14
    assert stored(shades.parent) == {f"{i:02}.png": i for i in range(20)}


def test_a_second_interrupt_stops_at_once_and_keeps_what_was_committed(shades: Path, start: FakeStart) -> None:
    with slow(shades.parent, "-", "--commit-every", "2") as process:
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        while "stopping" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.wait()  # without an end of the batch in hand
    assert process.returncode == 130
    assert stored(shades.parent) == {"00.png": 0, "01.png": 1}
    assert extract(shades, start).new == 18


def test_a_signal_stops_while_the_network_is_prepared(shades: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("START_SECONDS", "100")
    with slow(shades.parent, 0, "--json") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    found = json.loads(output)
    assert (found["stopped"], found["new"], found["seconds"] > 0) == ("SIGTERM", 0, True)
    assert "stopped by SIGTERM: run again to continue" in errors
    assert list(shades.parent.glob("out.h5*")) == []


def test_signals_that_come_in_pairs_are_no_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with signals() as should_stop:
        assert should_stop() is None
        for number in (signal.SIGXCPU, signal.SIGXCPU, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
        assert (should_stop(), ended) == ("SIGXCPU", [])
        signal.raise_signal(signal.SIGINT)
        assert ended == [130]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals() as should_stop:
            signal.raise_signal(signal.SIGHUP)
            assert should_stop() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_in_a_program_of_ones_own_undoes_the_uncommitted(
    shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = journal.JournaledFile.write

    def interrupted(self: journal.JournaledFile, data: bytes) -> int:
        signal.raise_signal(signal.SIGINT)  # inside one of HDF5's calls
        return write(self, data)

    extract(shades / "00.png", start, **{"commit_rows": 1})
    assert len(FeatureStore(shades / "out.h5")) == 1
    monkeypatch.setattr(journal.JournaledFile, "write", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests may have it ignored
    with pytest.raises(KeyboardInterrupt):
        rn50feat.extract(shades, shades / "out.h5", start=start)
    signal.signal(signal.SIGINT, handler)
    monkeypatch.undo()
    assert len(FeatureStore(shades / "out.h5")) == 1
    assert sorted(path.name for path in shades.iterdir())[-1] == "out.h5"


def test_a_time_budget_ends_at_a_commit_and_says_what_is_left(shades: Path, start: FakeStart) -> None:
    with slow(shades.parent, 0.2, "--time-budget", "0.5s", "--json") as process:
        output, errors = process.communicate()
    assert process.returncode == 0
    summary = json.loads(output.splitlines()[-1])
    assert summary["stopped"] == "time budget"
    assert summary["new"] < 20  # ten batches take two seconds at least
    assert summary["left"] == 20 - summary["new"]
    assert f"{summary['left']} images left: run again to continue" in errors
    assert extract(shades, start).new == summary["left"]


def test_a_time_budget_that_is_over_at_once_does_nothing(shades: Path, start: FakeStart) -> None:
    summary = extract(shades, start, time_budget=0)
    assert (summary.new, summary.left, start.engines) == (0, 20, [])
    assert not (shades.parent / "out.h5").exists()


def test_what_is_left_is_counted_after_the_commit_and_not_for_ever(
    shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed: list[bool] = []
    true = extraction.plan

    def watched(*arguments: object, **settings: object) -> object:
        committed.append((shades.parent / "out.h5").exists())
        return true(*arguments, **settings)

    monkeypatch.setattr(extraction, "plan", watched)
    reasons = iter([None, None, None, "time budget"])
    stopped = extract(
        shades, start, should_stop=lambda: next(reasons, "time budget"), options=EngineOptions(batch_size=1)
    )
    assert (stopped.stopped, stopped.left) == ("time budget", 20 - stopped.new)
    assert committed == [False, True]
    (record,) = FeatureStore(shades.parent / "out.h5").runs()
    assert record["counts"]["left"] == stopped.left
    monkeypatch.setattr(extraction, "COUNT_SECONDS", -1)
    assert extract(shades, start, time_budget=0).left is None


def test_commits_come_after_so_many_pictures(shades: Path, start: FakeStart) -> None:
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        seen.append(len(FeatureStore(shades.parent / "out.h5")) if (shades.parent / "out.h5").exists() else 0)

    extract(shades, start, commit_rows=6, options=EngineOptions(batch_size=2), on_progress=watch)
    assert sorted(set(seen)) == [0, 6, 12, 18]


# Being alone, and being read


def test_two_runs_at_once(shades: Path) -> None:
    with slow(shades.parent, "-") as first:
        first.stdout.readline()
        with slow(shades.parent, 0) as second:
            _, errors = second.communicate()
        assert first.poll() is None
        assert second.returncode == 75
        assert f"is in use by process {first.pid} on " in errors
        first.kill()
    # What a killed run leaves of its lock does not stop the next one.
    assert (shades.parent / "out.h5-lock").exists()
    assert extract(shades, FakeStart()).new == 20


@pytest.mark.slow
def test_search_while_extract_goes_on(shades: Path, start: FakeStart) -> None:
    """Every answer is one of the committed rows, and no reader or writer fails."""
    (shades.parent / "query.png").write_bytes((shades / "10.png").read_bytes())
    extract(shades, start)
    done = threading.Event()
    problems: list[BaseException] = []
    searches = 0

    def write() -> None:
        try:
            for turn in range(1, 200):
                if turn > 8 and searches > 5:
                    break
                for i in range(0, 20, 3):
                    color = (i, turn, 0)
                    (shades / f"{i:02}.png").write_bytes(encoded(Image.new("RGB", (9 + turn, 9), color), "PNG"))
                extract(shades, start, commit_rows=1, options=EngineOptions(batch_size=1))
        except BaseException as problem:
            problems.append(problem)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    store = FeatureStore(shades.parent / "out.h5")
    while not done.is_set():
        (result,) = rn50feat.search(shades.parent / "query.png", store, metric="l2", k=3, start=start)
        assert [Path(hit.path).name for hit in result.hits[:1]] == ["10.png"]
        assert result.hits[0].score == 0
        assert len({hit.path for hit in result.hits}) == 3
        searches += 1
    thread.join()
    assert not problems
    assert searches > 5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "READER_SECONDS", 0.01)
    monkeypatch.setattr(writer, "LAST_READER_SECONDS", 0.3)


def test_a_reader_that_stays_too_long_is_told_of(shades: Path, start: FakeStart, impatient: None) -> None:
    extract(shades, start)
    (shades / "new.png").write_bytes(encoded(Image.new("RGB", (5, 5)), "PNG"))
    with FeatureStore(shades.parent / "out.h5").reading():
        with pytest.raises(StoreBusyError, match="kept open by another program for 0 s: close it there") as caught:
            extract(shades, start)
        assert caught.value.exit_code == 1
    assert extract(shades, start).new == 1


def test_commits_are_put_off_while_a_notebook_keeps_the_store_open(
    shades: Path, start: FakeStart, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    extract(shades / "00.png", start)
    notebook = h5py.File(shades / "out.h5")
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        seen.append(notebook["ids"].shape[0] if notebook else len(FeatureStore(shades / "out.h5")))
        if progress.done.new == 10:
            notebook.close()

    summary = rn50feat.extract(
        shades, shades / "out.h5", start=start, commit_rows=1, options=EngineOptions(batch_size=1), on_progress=watch
    )
    assert summary.new == 19
    assert set(seen[:9]) == {1}
    assert seen[-1] == 20
    assert len(rows(shades / "out.h5")) == 20
    assert [record.message for record in caplog.records] == [
        f"{shades / 'out.h5'} is kept open by another program (a notebook?): commits wait until it is closed"
    ]


# Faults


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_ends_the_run_and_keeps_its_commits(
    shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Failing(journal.Disk):
        left = 40

        def write(self, handle: int, data: bytes, offset: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(code, os.strerror(code))
            super().write(handle, data, offset)

    extract(shades / "00.png", start)
    (shades / "out.h5").rename(shades.parent / "out.h5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_store.__kwdefaults__, "disk", Failing())
        with pytest.raises(StoreError, match=f"cannot be written .{os.strerror(code)}.*what was committed is safe"):
            extract(shades, start, commit_rows=4, options=EngineOptions(batch_size=2))
    committed = len(FeatureStore(shades.parent / "out.h5"))
    assert 1 <= committed < 20
    extract(shades, start)
    assert {**stored(shades.parent), "00.png": 0} == {f"{i:02}.png": i for i in range(20)}


def test_a_source_that_vanishes_halfway_is_no_failure(shades: Path, start: FakeStart) -> None:
    told: list[int] = []

    def vanish(progress: Progress) -> None:
        told.append(progress.done.new)
        if told.count(4) == 3:  # the next picture is on its way already
            shutil.rmtree(shades, ignore_errors=True)

    pictures = shades.parent / "backup"
    shutil.copytree(shades, pictures)
    summary = extract(shades, start, options=EngineOptions(batch_size=2), on_progress=vanish)
    assert (summary.new, summary.failed) == (4, 0)
    assert summary.vanished > 0
    assert FeatureStore(shades.parent / "out.h5").failures() == []
    pictures.rename(shades)
    extract(shades, start)
    assert stored(shades.parent) == {f"{i:02}.png": i for i in range(20)}


def test_a_file_that_cannot_be_read_now_is_tried_again_next_time(
    shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rn50feat.errors import SourceError
    from rn50feat.sources import contents
    from rn50feat.sources.reference import Reference

    read = contents.read

    def stale(reference: Reference) -> tuple[Reference, bytes]:
        if reference.location.endswith("07.png"):
            raise SourceError("cannot be read: Stale file handle")
        return read(reference)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "read", stale)
        assert extract(shades, start).failed == 1
    (failure,) = FeatureStore(shades.parent / "out.h5").failures()
    assert failure.reason == "cannot be read: Stale file handle"
    assert extract(shades, start).new == 1
    assert FeatureStore(shades.parent / "out.h5").failures() == []


# Telling


def test_max_failures_ends_with_4_and_keeps_the_work(rn50feat: Run, shades: Path, start: FakeStart) -> None:
    for i in range(3):
        (shades / f"bad{i}.png").write_text("no picture")
    for limit, code in (("3", 0), ("2", 4), ("14%", 0), ("12%", 4)):
        (shades.parent / "out.h5").unlink(missing_ok=True)
        with slow(shades.parent, 0, "--max-failures", limit) as process:
            _, errors = process.communicate()
        assert process.returncode == code, limit
        assert ("Error: 3 of 23 images failed, more than " in errors) == (code == 4)
        assert len(FeatureStore(shades.parent / "out.h5")) == 20


def test_max_ledger_counts_what_failed_before(shades: Path) -> None:
    (shades / "bad.png").write_text("no picture")
    for limits, code in (
        ((), 0),
        (("--max-failures", "0"), 0),
        (("--max-ledger", "1"), 0),
        (("--max-ledger", "4%"), 4),
    ):
        with slow(shades.parent, 0, *limits) as process:
            _, errors = process.communicate()
        assert process.returncode == code, limits
        message = "Error: 1 of 21 images found are in the ledger of failures, more than 4 %: see rn50feat info out.h5"
        assert (message in errors) == (code == 4)


def test_the_json_summary_is_complete(shades: Path) -> None:
    with slow(shades.parent, 0.01, "--json") as process:
        output, _ = process.communicate()
    summary = json.loads(output.splitlines()[-1])
    counts = {"found", "new", "changed", "reused", "skipped", "failed", "removed"}
    assert summary.keys() >= counts | {"images_per_second", "stages", "bottleneck"}
    assert summary["stages"].keys() == {"find", "start", "decode", "network", "write"}
    assert summary["bottleneck"] in summary["stages"]
    assert summary["images_per_second"] > 0


def test_plain_lines_where_there_is_no_terminal(shades: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rn50feat.cli import terminal

    said: list[str] = []
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "say", said.append)
    monkeypatch.setattr(terminal, "attended", lambda: False)
    with terminal.progress(quiet=False) as on_progress:
        extract(shades, FakeStart(), on_progress=on_progress)
    assert said[-1].startswith("20 images of 20 files, ")
    with terminal.progress(quiet=True) as on_progress:
        assert on_progress is None
