"""What a kill or a power cut leaves of a store, noted before every change on the disk."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fake import FakeStart

import rn50feat
from rn50feat import EngineOptions
from rn50feat.durable import journal

Files = dict[str, bytes]


@dataclass(frozen=True)
class Snapshot:
    """What a crash before one system call leaves, and which commits it may show."""

    files: Files
    commits: range


@dataclass
class SnapshotDisk(journal.Disk):
    """A disk that notes, before each call that changes it, what a kill and what a power cut would leave.

    A kill leaves everything that was written. A power cut leaves what was
    synced, or the names of before or after with any mixture of old and new
    pages: `mixtures` of them are drawn.
    """

    folder: Path
    mixtures: int = 1
    pattern: str = "out.h5*"
    snapshots: list[Snapshot] = field(default_factory=list)
    commits: int = 0
    durable_commits: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(0)
        self._names = self._current_names()
        self._synced = {path.stat().st_ino: path.read_bytes() for path in self.folder.glob(self.pattern)}

    def note(self) -> None:
        names = self._current_names()
        now = {inode: (self.folder / name).read_bytes() for name, inode in names.items()}
        killed = {name: now[inode] for name, inode in names.items()}
        self.snapshots.append(Snapshot(killed, range(self.commits, self.commits + 1)))
        either = range(self.durable_commits, self.commits + 1)
        synced = {name: self._synced.get(inode, b"") for name, inode in self._names.items()}
        self.snapshots.append(Snapshot(synced, either))
        for _ in range(self.mixtures):
            chosen = self._rng.choice((self._names, names))
            contents = {inode: self._synced.get(inode, b"") for inode in chosen.values()}
            mixed = {name: self._mix(contents[i], now.get(i, contents[i])) for name, i in chosen.items()}
            self.snapshots.append(Snapshot(mixed, either))

    def _current_names(self) -> dict[str, int]:
        return {
            path.name: path.stat().st_ino for path in self.folder.glob(self.pattern) if not path.name.endswith("-lock")
        }

    def _mix(self, old: bytes, new: bytes) -> bytes:
        pages = range(0, max(len(old), len(new)), journal.PAGE)
        return b"".join(self._rng.choice((old, new))[at : at + journal.PAGE].ljust(0) for at in pages)

    def create(self, path: Path) -> int:
        self.note()
        return super().create(path)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        self.note()
        super().write(handle, data, offset)

    def truncate(self, handle: int, length: int) -> None:
        self.note()
        super().truncate(handle, length)

    def sync(self, handle: int) -> None:
        self.note()
        super().sync(handle)
        self._synced[os.fstat(handle).st_ino] = os.pread(handle, 1 << 30, 0)

    def rename(self, old: Path, new: Path) -> None:
        self.note()
        super().rename(old, new)
        self.commits += 1

    def remove(self, path: Path) -> None:
        self.note()
        super().remove(path)
        self.commits += path.name.endswith("-journal")

    def sync_folder(self, folder: Path) -> None:
        self.note()
        super().sync_folder(folder)
        self._names = self._current_names()
        self.durable_commits = self.commits


def digests(files: Files) -> frozenset[tuple[str, bytes]]:
    return frozenset((name, hashlib.blake2b(data).digest()) for name, data in files.items())


def distinct(snapshots: list[Snapshot]) -> Iterator[Snapshot]:
    seen = set()
    for snapshot in snapshots:
        if (content := (digests(snapshot.files), snapshot.commits)) not in seen:
            seen.add(content)
            yield snapshot


def extract(folder: Path, **settings: bool) -> None:
    rn50feat.extract(
        folder / "pictures", folder / "out.h5", weights="random", start=FakeStart(), commit_rows=2,
        options=EngineOptions(batch_size=2), **settings,
    )  # fmt: skip
