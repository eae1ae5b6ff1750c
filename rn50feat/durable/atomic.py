"""Write files as a whole or not at all: under a temporary name first, renamed at the end.

Takes the paths of files to write and yields open files; when all is written
they get their names, and after an error nothing has changed. What a killed
program leaves behind is removed by the next one that writes to the same path.
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
    """Raise `ExchangeError` if something already exists at one of `paths`."""
    for path in paths:
        if os.path.lexists(path):
            raise ExchangeError(f"{path} exists: name another file, or use --overwrite")


@contextmanager
def written(paths: Sequence[Path], *, kind: type[RN50FeatError] = ExchangeError) -> Iterator[list[BufferedWriter]]:
    """Yield an open file for each of `paths`, and move them there if the block ends without an error.

    Links are followed. Raises an error of type `kind` if they cannot be written.
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
            f"{paths[0]} cannot be written ({error.strerror or error}): name a file in an existing folder that you may"
            " write to and that has room"
        ) from error
    finally:
        for part in parts:
            with suppress(OSError):  # on a disk that fails, or has become read-only
                part.unlink(missing_ok=True)


def remove_leftovers(place: Path) -> None:
    """Remove what killed programs left next to `place`: their locks ended with them."""
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
    """Open a new file, locked until `locks` are closed; unlocked if the file system has no locks."""
    while True:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        file = os.fdopen(os.dup(handle), "wb")  # both handles share the lock, which ends with the last
        locks.callback(close, handle)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.exists():  # else another program took it for a leftover before it was locked
            return file
        file.close()


def _synced(part: Path) -> Path:
    handle = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        DISK.sync(handle)
    finally:
        close(handle)
    return part
