"""Write files as wholes: next to their places first, into them at the end.

In: the paths of files to be. Out: open files; when all is written they take
their places, and after an error nothing has changed. What a killed program
left next to a place is removed by the next one that writes there.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedWriter
from pathlib import Path

from rn50feat.durable.disk import DISK, close
from rn50feat.errors import ExchangeError, RN50FeatError


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise `ExchangeError` where there is something already."""
    for path in paths:
        if os.path.lexists(path):
            raise ExchangeError(f"{path} exists: name another file, or give --overwrite")


@contextmanager
def written(paths: Sequence[Path], *, kind: type[RN50FeatError] = ExchangeError) -> Iterator[list[BufferedWriter]]:
    """Yield an open file for each of `paths`, which become these files when the block has ended without an error.

    Links are followed. Raises an error of `kind` when they cannot be written.
    """
    places = [Path(os.path.realpath(path)) for path in paths]
    parts = [place.with_name(f"{_stem(place)}{secrets.token_hex(6)}.part") for place in places]
    try:
        with ExitStack() as locks:
            for place in places:
                remove_leftovers(place)
            with ExitStack() as files:
                yield [files.enter_context(_created(part, locks)) for part in parts]
            for part, place in zip(parts, places):
                DISK.rename(_synced(part), place)
            DISK.sync_folder(places[0].parent)
    except OSError as error:
        raise kind(
            f"{paths[0]} cannot be written ({error.strerror or error}): name a file where there is room, in a folder"
            " that exists and that you may write to"
        ) from error
    finally:
        for part in parts:
            with suppress(OSError):  # on a disk that fails, or that takes no change
                part.unlink(missing_ok=True)


def remove_leftovers(place: Path) -> None:
    """Remove what programs that were killed left next to `place`: their locks ended with them."""
    leftover = re.compile(re.escape(_stem(place)) + r"[0-9a-f]{12}\.part")
    with suppress(OSError):
        for entry in sorted(os.scandir(place.parent), key=lambda entry: entry.name):
            if leftover.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_unlocked(Path(entry.path))


def _stem(place: Path) -> str:
    return f".{place.name[:100]}."


def _remove_unlocked(part: Path) -> None:
    handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
    finally:
        close(handle)


def _created(part: Path, locks: ExitStack) -> BufferedWriter:
    """Open a new file, locked until `locks` are closed; without a lock where the file system has none."""
    while True:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        file = os.fdopen(os.dup(handle), "wb")  # the lock is of both, and ends with the last
        locks.callback(close, handle)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.exists():  # else it was taken for a leftover before it was locked
            return file
        file.close()


def _synced(part: Path) -> Path:
    handle = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        DISK.sync(handle)
    finally:
        close(handle)
    return part
