"""Walk a folder of this machine.

In: its location. Out: a stream of what lies below it, in sorted order, with
no more than the folders on the way in memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)


def walk(location: str, warn: bool, enters: Callable[[str], bool]) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below the folder at `location` that is no folder, or one that `enters` says not to enter.

    Links to folders are followed, but never into a folder that is being
    walked already. Folders that cannot be listed are passed over, and warned
    of if `warn` says so.
    """
    trail: dict[tuple[int, int], Iterator[os.DirEntry[str]]] = {}  # folder -> what is left of it
    below: str | None = location
    while below or trail:
        if below:
            trail.setdefault(*_list(below, warn))  # a folder on the trail already is not entered again
            below = None
        identity = next(reversed(trail))
        for entry in trail[identity]:
            if is_folder(entry) and enters(entry.path):
                below = entry.path
                break
            yield entry
        else:
            del trail[identity]


def _list(folder: str, warn: bool) -> tuple[tuple[int, int], Iterator[os.DirEntry[str]]]:
    """Return the device and inode of a folder, and its entries in sorted order."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if warn:
            logger.warning("%s cannot be listed (%s): its pictures are passed over", folder, error.strerror)
        return (-1, -1), iter(())
    return (status.st_dev, status.st_ino), iter(listing)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be resolved: a circle of links, say
        return False
