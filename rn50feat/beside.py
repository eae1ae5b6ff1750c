"""Write files as wholes: beside their places first, into them at the end.

In: the paths of files to be. Out: open files; when all is written they take
their places, and after an error nothing has changed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedWriter
from pathlib import Path

from rn50feat.disk import DISK
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
    parts = [place.with_name(f".{place.name[:100]}.{secrets.token_hex(6)}.part") for place in places]
    try:
        with ExitStack() as files:
            yield [files.enter_context(open(part, "xb")) for part in parts]
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
            part.unlink(missing_ok=True)


def _synced(part: Path) -> Path:
    handle = os.open(part, os.O_RDWR | os.O_CLOEXEC)
    try:
        DISK.sync(handle)
    finally:
        os.close(handle)
    return part
