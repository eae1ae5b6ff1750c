"""Many nights with one store: whatever happens on the way, its rows are those of the images in the end.

``SOAK_NIGHTS`` is the number of nights, ``SOAK_SEED`` chooses what happens in them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.durable.disk import Disk
from rn50feat.engines.contract import EngineOptions
from rn50feat.errors import IndexingError, StoreError
from rn50feat.searching import index_file
from rn50feat.searching.search import search_stored
from rn50feat.sources.selection import Selection
from rn50feat.store import shrinking
from rn50feat.store.compact import compact
from rn50feat.store.shrinking import shrink
from rn50feat.store.writer import create_store, open_store

pytestmark = pytest.mark.slow

NIGHTS, SEED = int(os.environ.get("SOAK_NIGHTS", "30")), int(os.environ.get("SOAK_SEED", "0"))
Files = dict[str, tuple[bytes, int]]


class Clock(datetime):
    """A clock that is set forwards and back."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.ahead


@dataclass
class BadDisk(Disk):
    """A disk on which a run is killed before its change number `kill`, or that is full from number `full` on.

    A kill is what the disk holds at that moment: the run goes on, and what it does is undone afterwards.
    """

    folder: Path
    kill: int = 0
    full: int = 0
    changes: int = 0
    left: Files | None = None

    def _note(self, grows: bool = False) -> None:
        self.changes += 1
        if self.changes == self.kill:
            self.left = files(self.folder)
        if grows and 0 < self.full <= self.changes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path: Path) -> int:
        self._note(grows=True)
        return super().create(path)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        self._note(grows=True)
        super().write(handle, data, offset)

    def truncate(self, handle: int, length: int) -> None:
        self._note()
        super().truncate(handle, length)

    def rename(self, old: Path, new: Path) -> None:
        self._note()
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        self._note()
        super().remove(path)

    def sync(self, handle: int) -> None:
        """Do without: no power cut is played here."""


def files(folder: Path) -> Files:
    """Return the store and its companions, with their times."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.is_file() and not path.name.endswith("-lock")
    }


def put_back(kept: Files, folder: Path) -> None:
    for name in files(folder).keys() - kept.keys():
        (folder / name).unlink()
    for name, (content, mtime_ns) in kept.items():
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(mtime_ns, mtime_ns))


@dataclass(frozen=True)
class Row:
    """A row, without its features: they are compared with the image of its digest."""

    id: int
    size: int
    mtime_ns: int
    digest: bytes


@dataclass
class Album:
    """A folder of images that a family changes by day; every image has a colour of its own, by which it is known."""

    folder: Path
    rng: random.Random
    colours: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)
    count: int = 0

    def images(self) -> list[Path]:
        return sorted(
            path for path in self.folder.rglob("*.png") if "@eaDir" not in path.parts and path not in self.broken
        )

    def paint(self, path: Path) -> None:
        self.count += 1
        colour = (1 + self.count % 250, 1 + self.count // 250 % 250, self.rng.randrange(250))
        data = encoded(Image.new("RGB", (self.rng.randint(4, 9), 8), colour), "PNG")
        self.colours[hashlib.blake2b(data, digest_size=16).digest()] = colour
        self.write(path, data)

    def write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.touch(path)

    def touch(self, path: Path) -> None:
        """Give a file the time that the clock shows, and no other file has."""
        self.count += 1
        time_ns = int(Clock.now().timestamp()) * 10**9 + self.count
        os.utime(path, ns=(time_ns, time_ns))

    def new(self) -> Path:
        self.count += 1
        return self.folder / self.rng.choice(("", "é", "b", "b/c")) / f"{self.count}.png"

    def some(self, most: int) -> list[Path]:
        return self.rng.sample(images, min(most, len(images))) if (images := self.images()) else []

    def day(self) -> None:
        """Change something, or nothing at all."""
        happenings: list[Callable[[], object]] = [
            lambda: [self.paint(self.new()) for _ in range(self.rng.randint(1, 12))],
            lambda: [self.paint(path) for path in self.some(4)],
            lambda: [self.touch(path) for path in self.some(3)],
            lambda: [self.write(self.new(), path.read_bytes()) for path in self.some(3)],
            lambda: [path.unlink() for path in self.some(8)] if len(self.images()) > 30 else None,
            lambda: [path.rename(self.new_place()) for path in self.some(20)],
            self.rename_folder,
            self.swap,
            self.spoil,
            self.mend,
            lambda: self.paint(self.folder / "b/@eaDir" / f"{self.count}.png"),
            lambda: setattr(Clock, "ahead", timedelta(days=self.rng.randint(-12_000, 36_000))),
        ]
        for happening in self.rng.sample(happenings, self.rng.randint(0, 4)):
            happening()

    def new_place(self) -> Path:
        place = self.new()
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def rename_folder(self) -> None:
        folders = sorted({path.parent for path in self.images()} - {self.folder, self.folder / "b"})
        if folders:
            self.count += 1
            self.rng.choice(folders).rename(self.folder / f"folder {self.count}")
            self.broken = {path for path in self.folder.rglob("*.png") if path.read_bytes() == b"no image"}

    def swap(self) -> None:
        """Let two images change places, as when they are numbered anew."""
        if len(pair := self.some(2)) == 2:
            between = self.folder / "between"
            for old, new in ((pair[0], between), (pair[1], pair[0]), (between, pair[1])):
                old.rename(new)

    def spoil(self) -> None:
        for path in [self.new(), *self.some(1)]:
            self.write(path, b"no image")
            self.broken.add(path)

    def mend(self) -> None:
        for path in sorted(self.broken)[:2]:
            self.broken.remove(path)
            self.paint(path)


@dataclass
class Keeper:
    """Runs the nights, and compares the store with the album after each."""

    home: Path
    album: Album
    rng: random.Random
    monkeypatch: pytest.MonkeyPatch
    before: dict[str, Row] = field(default_factory=dict)
    meaning: dict[int, bytes] = field(default_factory=dict)  # of every id that was ever committed
    backup: bytes = b""
    worst: float = 0.0  # size of the file in sizes of a copy without holes
    full: bool = False  # whether the disk was, in the last night
    ends: dict[str, int] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.home / "out.h5"

    def run(self, **faults: int) -> str:
        """Run a night like the README's; return how it ended."""
        disk = BadDisk(self.home, **faults)
        self.full = False
        with self.monkeypatch.context() as patch:
            for function in (create_store, open_store, shrink, index_file.save, index_file.remove_leftovers):
                patch.setitem(function.__kwdefaults__, "disk", disk)
            if self.rng.random() < 0.2:
                patch.setattr(shrinking, "WASTE", -1)  # rewrite the store whatever its size
            end = self._run()
        self.full = 0 < disk.full <= disk.changes  # a store that cannot be rewritten then is no reason to fail
        if disk.left is not None:
            put_back(disk.left, self.home)
            return "killed"
        return end

    def _run(self) -> str:
        try:
            rn50feat.extract(
                Selection(self.album.folder), self.store, weights="random", start=FakeStart(), prune=True,
                prune_limit=100, commit_rows=5, options=EngineOptions(batch_size=4),
            )  # fmt: skip
            self.index()
        except (StoreError, IndexingError) as error:
            assert "cannot be written (No space left on device)" in str(error)
            return "full"
        return "done"

    def index(self) -> None:
        try:
            rn50feat.index(self.store, metric="l2")
        except IndexingError as error:
            if "--rebuild" not in str(error):
                raise
            rn50feat.index(self.store, metric="l2", rebuild=True)  # what is advised after a backup was restored

    def restore(self) -> None:
        """Put a backup of the store alone in its place, whatever lies next to it."""
        self.store.write_bytes(self.backup)
        store = FeatureStore(self.store)
        self.meaning = {number: digest for number, digest in self.meaning.items() if number < store.next_id}
        self.before = self.rows()

    def rows(self) -> dict[str, Row]:
        """Return the rows by path, after comparing each with its image's colour."""
        if not self.store.exists():
            return {}
        store = FeatureStore(self.store)
        with store.reading():
            columns = [store.column(name).tolist() for name in ("ids", "size", "mtime_ns")]
            digests = [digest.tobytes() for digest in store.column("digest")]
            found = dict(zip(store.paths(), map(Row, *columns, digests)))
            assert len(found) == len(store), "a path is there twice"
            features = store.block(0, len(store))[:, :3]
            assert features.tolist() == [list(self.album.colours[digest]) for digest in digests]
        assert len(set(columns[0])) == len(found), "an id is there twice"
        return found

    def check(self, *, complete: bool) -> None:
        """Compare the store with the album, all of it after a night that was `complete`."""
        now, images = self.rows(), self.expected()
        for path, row in self.before.items():
            if path in images and images[path].digest == row.digest:
                assert path in now and now[path].digest == row.digest, f"the row of {path} is lost"
        for path, row in now.items():
            assert self.meaning.setdefault(row.id, row.digest) == row.digest, f"{path} has an id that was another's"
        before, self.before = self.before, now
        if complete:
            self.check_moves(before, now)
            broken = {path.relative_to(self.home).as_posix() for path in self.album.broken}
            # An image that was overwritten by something unreadable keeps its row, next to its entry in the ledger.
            assert {path: replace(row, id=0) for path, row in now.items() if path not in broken} == images
            assert {failure.path for failure in FeatureStore(self.store).failures()} == broken
            self.check_rest(now)
            self.check_size()

    def check_moves(self, before: dict[str, Row], now: dict[str, Row]) -> None:
        """Check that images that moved have kept their ids: of those with the same bytes, as many as can be."""
        for digest in {row.digest for row in now.values()}:
            gone = {row.id for path, row in before.items() if row.digest == digest and not (self.home / path).exists()}
            new = {row.id for path, row in now.items() if row.digest == digest and path not in before}
            assert len(gone & new) == min(len(gone), len(new)), "an image that moved has another id"

    def check_size(self) -> None:
        """Compare the size of the file with a copy without holes."""
        if not self.full:
            copy = compact(self.store, self.home / "copy.h5")
            copy.path.unlink()
            self.worst = max(self.worst, self.store.stat().st_size / copy.after)
            assert self.worst <= 1.2

    def check_rest(self, now: dict[str, Row]) -> None:
        assert rn50feat.verify(self.store).findings == []
        for path in self.rng.sample(sorted(now), 3):
            (result,) = search_stored([path], self.store, metric="l2", k=1)
            assert now[result.hits[0].path].digest == now[path].digest, f"the index does not find {path}"
        names = {"out.h5", "out.h5-lock", "out.faiss", "out.faiss.json", "out.faiss-lock", "pictures"}
        assert {path.name for path in self.home.iterdir()} <= names

    def expected(self) -> dict[str, Row]:
        found = {}
        for path in self.album.images():
            status, data = path.stat(), path.read_bytes()
            digest = hashlib.blake2b(data, digest_size=16).digest()
            found[path.relative_to(self.home).as_posix()] = Row(0, status.st_size, status.st_mtime_ns, digest)
        return found

    def night(self, *, calm: bool) -> None:
        kind = "calm" if calm else self.rng.choice(("calm", "calm", "kill", "kill", "full", "restore"))
        faults = {kind: self.rng.randint(1, 150)} if kind in ("kill", "full") else {}
        if kind == "restore" and self.backup:
            self.restore()
        end = self.run(**faults)
        self.check(complete=end == "done")
        self.ends[end] = self.ends.get(end, 0) + 1
        if self.store.exists() and self.rng.random() < 0.2:
            self.backup = self.store.read_bytes()


def test_a_store_lives_through_many_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for name, module in sys.modules.items() if name.startswith("rn50feat.")]:
        if getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(Clock, "ahead", timedelta())
    rng = random.Random(SEED)
    album = Album(tmp_path / "pictures", rng)
    for _ in range(40):
        album.paint(album.new())
    keeper = Keeper(tmp_path, album, rng, monkeypatch)
    for night in range(1, NIGHTS + 1):
        album.day()
        keeper.night(calm=night == NIGHTS)
    print(
        f"{NIGHTS} nights: {keeper.ends}, {len(keeper.before)} rows, {keeper.store.stat().st_size} bytes,"
        f" at worst {keeper.worst:.3f} times a copy"
    )
    assert NIGHTS < 30 or min(keeper.ends.get(end, 0) for end in ("done", "killed", "full")) > 0
