"""todo and changes: the engine's stream only plans, changes are written beside it, and a few of them wait at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import rows
from fake import FakeEngine, FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import EngineOptions, FeatureStore
from rn50feat.engines.contract import Batch, Engine
from rn50feat.extraction import todo
from rn50feat.sources.reference import Reference
from rn50feat.store.session import WriteSession
from rn50feat.store.summary import Summary


class Watched(FakeEngine):
    """An engine that looks ahead by three images, and tells when it is taking one."""

    taking = False

    def embed(self, references: Iterable[Reference]) -> Iterator[Batch]:
        waiting, ahead = iter(references), []
        while True:
            while len(ahead) < 3:
                Watched.taking = True
                reference = next(waiting, None)
                Watched.taking = False
                if reference is None:
                    break
                ahead.append(reference)
            if not ahead:
                return
            yield from super().embed([ahead.pop(0)])


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> FakeStart:
    """Start `Watched` engines; fail where one takes an image and something is written."""

    class Start(FakeStart):
        def __call__(self, weights: Any, provenance: Any, options: EngineOptions) -> Engine:
            self.engines.append(Watched(provenance.preprocessing, 1))
            return self.engines[-1]

    write = WriteSession._open

    def watched(self: WriteSession) -> Any:
        assert not Watched.taking
        return write(self)

    monkeypatch.setattr(WriteSession, "_open", watched)
    return Start()


def image(path: Path, red: int) -> None:
    path.write_bytes(encoded(Image.new("RGB", (9, 9), (red, 1, 0)), "PNG"))


@pytest.fixture
def folder(tmp_path: Path, start: FakeStart) -> Path:
    """A folder of twelve images with a store."""
    path = tmp_path / "images"
    path.mkdir()
    for i in range(12):
        image(path / f"{i:02}.png", i)
    extract(path, start)
    return path


def extract(folder: Path, start: FakeStart, **settings: Any) -> Summary:
    return rn50feat.extract(folder, folder.parent / "out.h5", weights="random", start=start, **settings)


def mix(folder: Path) -> None:
    """Touch, copy, mend, break and add images, all of them in turn."""
    for i in range(0, 12, 2):
        os.utime(folder / f"{i:02}.png", (i, 1))
        shutil.copy(folder / f"{i:02}.png", folder / f"{i:02}copy.png")
        (folder / f"{i:02}broken.png").write_text(f"broken {i}")
        image(folder / f"{i:02}new.png", 100 + i)


@pytest.mark.parametrize("portion", [1, 3, 10_000])
def test_changes_are_written_beside_the_stream_in_portions(
    folder: Path, start: FakeStart, portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(todo, "PORTION", portion)
    waiting: list[int] = []
    look = todo.Todo._next

    def counted(self: todo.Todo) -> Reference | None:
        image = look(self)
        waiting.append(len(self.changes))
        return image

    monkeypatch.setattr(todo.Todo, "_next", counted)
    mix(folder)
    summary = extract(folder, start)
    assert (summary.unchanged, summary.reused, summary.new, summary.failed) == (12, 6, 6, 6)
    assert max(waiting) == min(portion, max(waiting))
    found = {Path(path).name: int(row[0]) for path, row in rows(folder.parent / "out.h5").items()}
    assert found == {f"{i:02}.png": i for i in range(12)} | {
        f"{i:02}{name}.png": i + more for i in range(0, 12, 2) for name, more in (("copy", 0), ("new", 100))
    }
    assert len(FeatureStore(folder.parent / "out.h5").failures()) == 6
    assert extract(folder, start).unchanged == 24
    assert len(start.engines) == 2


def test_a_copy_whose_original_was_replaced_in_this_run_is_computed(folder: Path, start: FakeStart) -> None:
    shutil.copy(folder / "00.png", folder / "zz.png")
    image(folder / "00.png", 200)
    for i in range(3):  # the engine looks ahead by three
        image(folder / f"new{i}.png", 100 + i)
    summary = extract(folder, start)
    assert (summary.changed, summary.new, summary.reused) == (1, 4, 0)
    found = {Path(path).name: int(row[0]) for path, row in rows(folder.parent / "out.h5").items()}
    assert (found["00.png"], found["zz.png"]) == (200, 0)


def test_a_run_with_changes_alone_starts_no_engine_and_may_be_stopped(folder: Path, start: FakeStart) -> None:
    for i in range(12):
        os.utime(folder / f"{i:02}.png", (1, 1))
        shutil.copy(folder / f"{i:02}.png", folder / f"{i:02}copy.png")
    reasons = iter([None] * 12)
    stopped = extract(folder, start, should_stop=lambda: next(reasons, "SIGTERM"))
    assert (stopped.unchanged, stopped.reused, stopped.stopped) == (6, 6, "SIGTERM")
    done = extract(folder, start)
    assert (done.unchanged, done.reused, len(start.engines)) == (18, 6, 1)
    assert len(rows(folder.parent / "out.h5")) == 24


def test_a_new_store_takes_what_was_met_before_its_first_image(tmp_path: Path, start: FakeStart) -> None:
    listed = tmp_path / "list"
    image(tmp_path / "red.png", 7)
    listed.write_text("\n".join([*(f"missing{i}.png" for i in range(5)), str(tmp_path / "red.png")]))
    selection = rn50feat.Selection([], listing=listed)
    summary = rn50feat.extract(selection, tmp_path / "out.h5", weights="random", start=start)
    assert (summary.new, summary.failed) == (1, 5)
    assert len(FeatureStore(tmp_path / "out.h5").failures()) == 5
