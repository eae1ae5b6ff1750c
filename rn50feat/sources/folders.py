"""Walk folders of this machine: each real one once, and none of the kernel's.

In: their paths. Out: a stream of what lies below them, in sorted order. Memory
holds the folders on the way down, and 100 bytes for each folder entered. Links
to folders are set aside, for the caller to follow once the real folders are
done: so files keep the names that lead to them without a link.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache

logger = logging.getLogger(__name__)

MOST_OUTSIDE = 100
SYSTEM = ("/proc", "/sys", "/dev")
_SHM = "/dev/shm/"  # an ordinary file system in spite of its name: what lies there may lead to others there
# File systems without files: the kernel makes up what is read from them, and some of it never ends.
_MADE_UP = frozenset(
    "proc sysfs devtmpfs devpts cgroup cgroup2 debugfs tracefs securityfs configfs bpf pstore efivarfs mqueue fusectl"
    " binfmt_misc nsfs selinuxfs rpc_pipefs".split()
)
_Key = int | str


class Tour:
    """A walk through any number of folders, which warns of those that it cannot list if `warn` is set."""

    def __init__(self, warn: bool) -> None:
        self._warn = warn
        self._entered: set[_Key] = set()
        self._links: list[str] = []
        self.outside: dict[str, str] = {}

    def entries(self, location: str, enters: Callable[[str], bool]) -> Iterator[os.DirEntry[str]]:
        """Yield every entry below the folder at `location` that is not a folder, or is one that `enters` refuses.

        Skips folders that were entered before, that the kernel makes up or
        that cannot be listed. Keeps links to folders for `links`.
        """
        trail = [self._list(location)]
        while trail:
            for entry in trail[-1]:
                if not is_folder(entry) or not enters(entry.path):
                    yield entry
                elif entry.is_symlink():
                    self._links.append(entry.path)
                else:
                    trail.append(self._list(entry.path))
                    break
            else:
                trail.pop()

    def links(self) -> list[str]:
        """Return the links to folders found since the last call."""
        links, self._links = self._links, []
        return links

    def target(self, link: str) -> str | None:
        """Resolve a link to a folder; None for a folder that must not be entered through it."""
        target = os.path.realpath(link)
        shared = target.startswith(_SHM) and os.path.join(os.path.realpath(os.path.dirname(link)), "").startswith(_SHM)
        if not shared and any(target == folder or target.startswith(f"{folder}/") for folder in SYSTEM):
            self._say("%s leads to %s, where the system has no images: not followed", link, target)
            return None
        return None if self._has_entered(link) else target

    def note_outside(self, link: str, target: str) -> None:
        """Keep a link that leads out of the sources, for the report; at most `MOST_OUTSIDE` of them."""
        if len(self.outside) < MOST_OUTSIDE:
            self.outside[link] = target

    def warn_if_entered(self, folder: str) -> None:
        """Warn if a folder was already entered by another path."""
        if self._has_entered(folder):
            self._say("%s was already walked by another path: its images are not taken twice", folder)

    def _has_entered(self, folder: str) -> bool:
        try:
            return _key(folder, os.stat(folder)) in self._entered
        except OSError:
            return False

    def linked(self, enters: Callable[[str], bool]) -> Iterator[os.DirEntry[str]]:
        """Yield what `entries` does for the targets of all links found so far."""
        later = deque(self.links())
        while later:
            if self.target(link := later.popleft()) is not None:
                yield from self.entries(link, enters)
                later.extend(self.links())

    def _list(self, folder: str) -> Iterator[os.DirEntry[str]]:
        """Enter a folder and return its entries in sorted order; none where it must not or cannot be entered."""
        try:
            status = os.stat(folder)
            if _is_made_up(status):
                self._say("%s belongs to the system and has no images: not entered", folder)
                return iter(())
            if (key := _key(folder, status)) in self._entered:
                return iter(())
            self._entered.add(key)
            with os.scandir(folder) as entries:
                return iter(sorted(entries, key=lambda entry: entry.name))
        except OSError as error:
            self._say("%s cannot be listed (%s): its images are skipped", folder, error.strerror)
            return iter(())

    def _say(self, message: str, *arguments: object) -> None:
        if self._warn:
            logger.warning(message, *arguments)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Check whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be resolved: a circle of links, say
        return False


def is_made_up(device: int) -> bool:
    """Check whether a device is a file system that the kernel makes up, whose files are not real."""
    return device in _made_up_devices()


def _is_made_up(folder: os.stat_result) -> bool:
    return is_made_up(folder.st_dev) or (folder.st_dev, folder.st_ino) in _system_folders()


@lru_cache(1)
def _system_folders() -> frozenset[tuple[int, int]]:
    """Return the devices and inodes of the `SYSTEM` folders: in a container, /dev is an ordinary file system."""
    found = set()
    for folder in SYSTEM:
        if os.path.isdir(folder):
            status = os.stat(folder)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


@lru_cache(1)
def _made_up_devices() -> frozenset[int]:
    """Return the devices of all `_MADE_UP` file systems, wherever they are mounted; none on systems but Linux."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split(" - ") for line in file]
    except OSError:
        return frozenset()
    numbers = [mount[0].split()[2].split(":") for mount in mounts if mount[1].split()[0] in _MADE_UP]
    return frozenset(os.makedev(int(major), int(minor)) for major, minor in numbers)


def _key(folder: str, status: os.stat_result) -> _Key:
    """Identify a folder: by device and inode, or by its real path on a file system without inodes."""
    return status.st_dev << 64 | status.st_ino if status.st_ino else os.path.realpath(folder)
