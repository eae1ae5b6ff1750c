"""Read and write lists of names: one a line, or each ended by a NUL.

In: a file, or ``-`` for standard input. Out: a stream of the names in it; of
the list itself no more than a block is held. Bytes that are not UTF-8 are
surrogate escapes in a name, as they are everywhere else.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import BufferedReader
from pathlib import Path
from typing import cast

from rn50feat.errors import SourceError

LONGEST = 1 << 16  # bytes of a name; a file system takes 4096. What has a longer one is no list.


def can_be_read_again(listing: Path) -> bool:
    """Tell whether a list is a file, or nothing yet; standard input and pipes give their names once only."""
    return not _is_standard_input(listing) and (os.path.isfile(listing) or not os.path.exists(listing))


def _is_standard_input(listing: Path) -> bool:
    return os.fspath(listing) == "-"


def names(listing: Path, *, null: bool = False) -> Iterator[str]:
    r"""Yield the names in a list: its lines, or what its NULs end; empty ones are passed over.

    A line may end in ``\r\n``. Raises `SourceError` for a list that cannot be read, or is none.
    """
    mark, rest = (b"\0" if null else b"\n"), b""
    try:
        # Standard input stays open, and gives what there is already: a run may begin before a list has ended.
        with nullcontext(_standard_input()) if _is_standard_input(listing) else open(listing, "rb") as file:
            while block := file.read1(LONGEST):
                *whole, rest = (rest + block).split(mark)
                for name in (*whole, rest) if len(rest) > LONGEST else whole:
                    if name:
                        yield _decoded(name, listing, null)
    except OSError as error:
        raise SourceError(f"{listing} cannot be read ({error.strerror}): name a list of names") from error
    if rest:
        yield _decoded(rest, listing, null)


def _standard_input() -> BufferedReader:
    return cast(BufferedReader, sys.stdin.buffer)


def _decoded(name: bytes, listing: Path, null: bool) -> str:
    if len(name) > LONGEST:
        raise SourceError(f"{listing} is no list of names: one would be longer than {LONGEST} bytes: name another file")
    if null:
        return os.fsdecode(name)
    if b"\0" in name:
        raise SourceError(f"{listing} has NULs in its lines: give -0 if they end its names, or name another file")
    return os.fsdecode(name.removesuffix(b"\r"))


def fits_a_line(name: str) -> bool:
    """Tell whether a list of lines gives back `name`."""
    return "\n" not in name and not name.endswith("\r")


def readable(name: str) -> str:
    r"""Return a name as text that is UTF-8, for formats that take nothing else: other bytes become ``\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Names:
    """A set of names that takes some 20 bytes for each, a fifth of a `set` of their hashes."""

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(1 << 16)]

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        key = hashlib.blake2b(os.fsencode(name), digest_size=16).digest()
        bucket = self._buckets[int.from_bytes(key[:2], "big")]
        if key in bucket:  # at a place between two keys it would be found about as often as two names share a key
            return False
        bucket += key
        return True
