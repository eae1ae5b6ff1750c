"""What a run did: the counts and times that people, programs and the store's own record get.

In: what `extract` counts as it goes. Out: a `Summary`, as words by `report`,
as JSON, and as the record of the run in the store.
"""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rn50feat import __version__
from rn50feat.errors import TooManyFailuresError
from rn50feat.extraction.plan import Step, Verdict

if TYPE_CHECKING:
    from rn50feat.engines.contract import Engine

Limit = tuple[float, bool]  # a number, and whether it is a percentage
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "h5py")
EXTRAS = ("openvino", "simplejpeg", "pillow-heif")  # in use where they are installed


@dataclass
class Summary:
    """What a run did, in files.

    ``stages`` are the seconds for which each stage was busy (they overlap),
    ``left`` is how many pictures a run that was stopped left undone, where
    that is known, and ``stopped`` why it was.
    """

    new: int = 0
    changed: int = 0
    reused: int = 0  # copies and moved files, which took the features of another row
    unchanged: int = 0
    damaged: int = 0  # among the new, changed and reused ones
    failed: int = 0
    failed_before: int = 0  # not tried again
    ignored: int = 0  # no pictures
    appledouble: int = 0  # of the ignored ones, metadata of macOS: ._x.jpg
    linked: list[str] = field(default_factory=list)  # links out of the sources, and where to; the first hundred
    excluded: int = 0  # folders and files that a pattern leaves out
    vanished: int = 0  # gone between their listing and their reading
    removed: int = 0  # rows pruned
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None
    left: int | None = None

    @property
    def found(self) -> int:
        """How many pictures there were."""
        return self.new + self.changed + self.reused + self.unchanged + self.failed + self.failed_before

    @property
    def computed(self) -> int:
        """How many pictures went through the network."""
        return self.new + self.changed

    @property
    def files(self) -> int:
        """How many files were dealt with."""
        return self.found + self.ignored + self.excluded + self.vanished

    @property
    def bottleneck(self) -> str | None:
        """The stage that was busy for longest once the engine had started, None when nothing was computed."""
        busy = {name: seconds for name, seconds in self.stages.items() if name != "start"}
        return max(busy, key=busy.__getitem__) if self.computed and busy else None

    @property
    def images_per_second(self) -> float:
        """The pictures computed a second, the engine's start left out."""
        seconds = self.seconds - self.stages.get("start", 0.0)
        return self.computed / seconds if seconds > 0 else 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to that of a stage."""
        begun = time.monotonic()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.monotonic() - begun

    def beyond(self, failures: Limit | None, ledger: Limit | None, store: Path) -> list[TooManyFailuresError]:
        """Return an error for each limit that was passed.

        `failures` limits those of this run, among the images that it tried;
        `ledger` all images found that are in the ledger, those that were not
        tried again included.
        """
        counted = [
            (failures, self.failed, self.computed + self.failed, "images failed"),
            (ledger, self.failed + self.failed_before, self.found, "images found are in the ledger of failures"),
        ]
        return [
            TooManyFailuresError(
                f"{count} of {whole} {what}, more than {limit[0]:g}{' %' if limit[1] else ''}:"
                f" see rn50feat info {store} --failures"
            )
            for limit, count, whole, what in counted
            if limit is not None and count > (whole * limit[0] / 100 if limit[1] else limit[0])
        ]

    def count(self, step: Step) -> None:
        """Count a file that needs no network, and what is known of an archive's members."""
        self.unchanged += step.verdict in (Verdict.UNCHANGED, Verdict.TOUCHED)
        self.failed_before += step.verdict is Verdict.FAILED_BEFORE
        self.ignored += step.verdict in (Verdict.IGNORED, Verdict.APPLEDOUBLE)
        self.appledouble += step.verdict is Verdict.APPLEDOUBLE
        self.excluded += step.verdict is Verdict.EXCLUDED
        if step.known is not None:
            self.unchanged += len(step.known.rows)
            self.failed_before += step.known.failed
            self.ignored += step.known.others

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
    """How far a run is: what it did so far, of how many files (None while they are being counted).

    ``phase`` says what it is busy with where that is not the images.
    """

    done: Summary
    total: int | None
    phase: str = ""


def _version(package: str) -> str | None:
    """Return the version of a package, None where another one (pillow-simd, say) stands in for it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def record(
    summary: Summary, started: datetime, engine: Engine | None, *, ended: bool, command: str = "extract", **more: Any
) -> dict[str, Any]:
    """Return the record of a run of `command`, as the store keeps it; `more` adds to it, or replaces."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"rn50feat": __version__, "python": platform.python_version()}
    extras = {name: version for name in EXTRAS if (version := _version(name))}
    return {
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "ended": now if ended else None,
        "host": socket.gethostname(),
        "backend": engine and engine.backend,
        "device": engine and engine.device,
        "precision": engine and engine.precision,
        "versions": {**versions, **{name: _version(name) for name in PACKAGES}, **extras},
        "counts": summary.as_dict(),
        **more,
    }
