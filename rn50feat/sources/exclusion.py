"""Decide which folders and files are left out of a run, by the rules of ``.gitignore`` files.

In: patterns, on top of those for what NAS systems and desktops leave behind.
Out: for a name below its source, the pattern that leaves it out. An archive
counts as a folder that holds its members.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rn50feat.errors import SourceError
from rn50feat.sources.archive import is_archive, split

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Folders only, so that a file is never left out by its own name unless a user says so.
LEFTOVERS = (
    "@eaDir/",  # Synology: thumbnails
    ".@__thumb/",  # QNAP: thumbnails
    ".thumbnails/",  # Android, older desktops
    "**/.cache/thumbnails/",  # desktops
    "[#]recycle/",  # Synology
    "@Recycle/",  # QNAP
    "$RECYCLE.BIN/",  # Windows
    "$Recycle.Bin/",
    "RECYCLER/",
    ".Trash/",  # macOS
    ".Trashes/",
    ".Trash-*/",  # desktops, on other disks than that of the home folder
    "**/.local/share/Trash/",
    "[#]snapshot/",  # Synology: every image once more for each snapshot
    "@Recently-Snapshot/",  # QNAP
    ".snapshot/",  # NetApp
    ".zfs/",
    "lost+found/",  # fsck
    "FOUND.[0-9][0-9][0-9]/",  # chkdsk
    "System Volume Information/",
    ".Spotlight-V100/",  # macOS
    ".DocumentRevisions-V100/",
    ".TemporaryItems/",
    ".fseventsd/",
)


@dataclass(frozen=True)
class Excluded:
    """A folder, whose location ends in a slash, or a file that is left out, and the pattern that leaves it out."""

    location: str
    pattern: str


class Exclusion:
    """The patterns of a run: `LEFTOVERS`, then `patterns`; the last one that matches a name decides.

    They start at the source, one of `roots`. Raises `SourceError` for a
    pattern that can match nothing.
    """

    def __init__(self, patterns: Iterable[str] = (), roots: Iterable[str] = ()) -> None:
        self._patterns = (*LEFTOVERS, *patterns)
        for pattern in patterns:
            _check(pattern, roots)
        self._spec = _compiled(self._patterns)
        self._takes_back = any(pattern.startswith("!") for pattern in self._patterns)
        self._of_files = any(not pattern.endswith("/") for pattern in self._patterns)
        self._folder = lru_cache(4096)(self._rule_of_folder)

    def rule(self, name: str) -> str | None:
        """Return the pattern that leaves out a file, by its name below its source; None for one that is taken.

        As in git, all files of a folder that is left out are left out, whatever else matches them.
        """
        member = split(name)
        if member is None and is_archive(name):
            return self.rule_of_folder(name)
        path = "/".join(member) if member else name
        return self._folder(path.rpartition("/")[0]) or (self._match(path) if self._of_files else None)

    def rule_of_folder(self, name: str) -> str | None:
        """Return the pattern that leaves out a folder, by its name below its source; None for one that is taken."""
        return self._folder(name)

    def _rule_of_folder(self, name: str) -> str | None:
        # What leaves a folder out matches all below it, so that folders above matter only to what is taken back.
        ends = [match.start() for match in re.finditer("/", name)] if self._takes_back else []
        folders = (name[:end] for end in (*ends, len(name)))
        return next(filter(None, (self._match(f"{folder}/") for folder in folders if folder)), None)

    def _match(self, path: str) -> str | None:
        result = self._spec.check_file(_flat(path))
        return self._patterns[result.index] if result.include and result.index is not None else None


def _compiled(patterns: Iterable[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec  # takes 30 ms, which commands without a walk need not pay

    return GitIgnoreSpec.from_lines(map(_flat, patterns))


def _flat(text: str) -> str:
    """Return a name or a pattern without line breaks, which a dot in a regular expression does not match."""
    return text.replace("\n", "\0")


def _check(pattern: str, roots: Iterable[str]) -> None:
    """Raise `SourceError` for a pattern that is not a rule of ``.gitignore`` files, or can match nothing."""
    plain = pattern.removeprefix("!")
    for start in (".", "..", *roots):
        if plain.startswith(f"{start}/"):
            raise SourceError(
                f"--exclude '{pattern}' can match nothing: patterns start at the source, without {start}/"
            )
    try:
        (compiled,) = _compiled([pattern]).patterns
        if compiled.include is not None:
            return
    except (ValueError, re.error):  # the latter for [z-a]
        pass
    if pattern.startswith("#"):
        raise SourceError(f"--exclude '{pattern}' is a comment in .gitignore files: write '[#]{pattern[1:]}'")
    raise SourceError(
        f"--exclude '{pattern}' is not a pattern of .gitignore files: write one such as 'folder/' or '*.png'"
    )
