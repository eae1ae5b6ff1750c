"""Count what a run did, for people, programs and the store's own record.

In: what a write session counts as it goes. Out: a `Summary`, as JSON and as
the record of the run in the store, and the `Progress` of a run on its way.
"""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

from rn50feat import __version__
from rn50feat.errors import TooManyFailuresError, invocation
from rn50feat.store.damage import Malformed

Limit = tuple[float, bool]  # a number, and whether it is a percentage
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "h5py")
EXTRAS = ("openvino", "simplejpeg", "pillow-heif")  # in use where they are installed


@dataclass(frozen=True)
class MovedFrom:
    """Images that look moved: how many, and the prefixes of their locations before and now."""

    images: int
    old: str
    new: str


@dataclass
class Summary:
    """What a run did, in files.

    ``stages`` has the seconds for which each stage was busy (they overlap),
    ``stopped`` the reason why a run ended early, and ``left`` how many images
    it left undone, where that is known.
    """

    new: int = 0
    changed: int = 0
    reused: int = 0  # copies and moved files, which needed no network
    moved: int = 0  # of the reused ones, those that kept their rows, under a new path
    unchanged: int = 0
    recomputed: int = 0  # of the new and changed ones, those that int8 cannot represent
    damaged: int = 0  # among the new, changed and reused ones
    failed: int = 0
    failed_before: int = 0  # not tried again
    ignored: int = 0  # no images
    appledouble: int = 0  # of the ignored ones, macOS metadata: ._x.jpg
    linked: list[str] = field(default_factory=list)  # links out of the sources, and their targets; the first hundred
    excluded: int = 0  # folders and files excluded by a pattern
    vanished: int = 0  # gone between their listing and their reading
    removed: int = 0  # rows pruned
    compacted: int = 0  # bytes freed by rewriting the store without its holes
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    left: int | None = None
    int8: str | None = None  # how rows in int8 agreed with those of fp32, where this run checked that
    moved_from: MovedFrom | None = None  # where most images were, as copies of missing ones suggest

    @property
    def found(self) -> int:
        """How many images there were."""
        return self.new + self.changed + self.reused + self.unchanged + self.failed + self.failed_before

    @property
    def computed(self) -> int:
        """How many images went through the network."""
        return self.new + self.changed

    @property
    def files(self) -> int:
        """How many files were dealt with."""
        return self.found + self.ignored + self.excluded + self.vanished

    @property
    def bottleneck(self) -> str | None:
        """The stage that was busy longest, apart from the start of the engine; None when nothing was computed."""
        busy = {name: seconds for name, seconds in self.stages.items() if name != "start"}
        return max(busy, key=busy.__getitem__) if self.computed and busy else None

    @property
    def images_per_second(self) -> float:
        """Images computed per second, not counting the start of the engine."""
        seconds = self.seconds - self.stages.get("start", 0.0)
        return self.computed / seconds if seconds > 0 else 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that a block takes to a stage."""
        begun = time.monotonic()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - begun

    def beyond(self, failures: Limit | None, ledger: Limit | None, store: Path) -> list[TooManyFailuresError]:
        """Return an error for each limit that was exceeded.

        `failures` limits the failures among the images that this run tried,
        `ledger` all images found that are in the ledger, tried again or not.
        """
        counted = [
            (failures, self.failed, self.computed + self.failed, "images failed"),
            (ledger, self.failed + self.failed_before, self.found, "images found are in the ledger of failures"),
        ]
        return [
            TooManyFailuresError(
                f"{count} of {whole} {what}, more than {limit[0]:g}{' %' if limit[1] else ''}:"
                f" see {invocation('info', store, '--failures')}"
            )
            for limit, count, whole, what in counted
            if limit is not None and count > (whole * limit[0] / 100 if limit[1] else limit[0])
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and what follows from them, ready for JSON."""
        return {
            "found": self.found,
            **asdict(self),
            "skipped": self.unchanged + self.failed_before,
            "images_per_second": round(self.images_per_second, 2),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "bottleneck": self.bottleneck,
        }


@dataclass(frozen=True)
class Progress:
    """How far a run is: what it has done, out of how many files (None while they are being counted).

    ``phase`` says what it is busy with when that is not the images.
    """

    done: Summary
    total: int | None
    phase: str = ""


class Machine(Protocol):
    """What computes the rows of a run: an engine."""

    backend: str
    device: str
    precision: str


@dataclass
class RunRecord:
    """What the store's record says of a run besides its counts; ``facts`` add to it, or replace what it says."""

    command: str
    machine: Machine | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def as_dict(self, summary: Summary, *, ended: bool) -> dict[str, Any]:
        """Return the record with the counts of `summary`, ready for JSON."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        versions = {"rn50feat": __version__, "python": platform.python_version()}
        extras = {name: version for name in EXTRAS if (version := _version(name))}
        return {
            "command": self.command,
            "started": self.started.isoformat(timespec="seconds"),
            "ended": now if ended else None,
            "host": socket.gethostname(),
            "backend": self.machine and self.machine.backend,
            "device": self.machine and self.machine.device,
            "precision": self.machine and self.machine.precision,
            "versions": {**versions, **{name: _version(name) for name in PACKAGES}, **extras},
            "counts": {name: value for name, value in summary.as_dict().items() if name != "compacted"},  # done later
            **self.facts,
        }


def _version(package: str) -> str | None:
    """Return the version of a package; None if another one, such as pillow-simd, replaces it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_run(text: bytes) -> bool:
    """Check whether `parse_run` accepts the record of a run."""
    try:
        parse_run(text)
    except Malformed:
        return False
    return True


_RUN: dict[str, Any] = {
    "started": str,
    "ended": (str, NoneType),
    "device": (str, NoneType),
    "precision": (str, NoneType),
    "counts": dict,
}


def parse_run(text: bytes) -> dict[str, Any]:
    """Parse the record of a run; raise `Malformed` if it lacks values or has wrong types."""
    try:
        record: dict[str, Any] = json.loads(text)
        fits = all(isinstance(record[name], kinds) for name, kinds in _RUN.items())
        fits = fits and isinstance(record.get("command", ""), str)
        fits = fits and isinstance(record["counts"].get("images_per_second", 0), (int, float, NoneType))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("a run's record is malformed or incomplete") from error
    if not fits:
        raise Malformed("a run's record has values of the wrong type")
    return record
