"""Read and write lists of names: one per line, or each ended by a NUL.

In: a file, or ``-`` for standard input. Out: a stream of the names in it; only
a block of the list is in memory. A byte order mark at its start gives its
encoding: UTF-8 or UTF-16, as editors and PowerShell on Windows write them; it
is not part of a name. Without one, names are the bytes of the file system;
those that are not UTF-8 are surrogate escapes, as they are everywhere else.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import cast

from rn50feat.errors import SourceError

logger = logging.getLogger(__name__)

LONGEST = 1 << 16  # bytes of a name; file systems take 4096. A file with a longer one is not a list.
_MARKS = {  # that of UTF-32 begins as that of UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "",
}


def can_be_read_again(listing: Path) -> bool:
    """Check whether a list is a file, or nothing yet; standard input and pipes give their names only once."""
    return not _is_standard_input(listing) and (os.path.isfile(listing) or not os.path.exists(listing))


def _is_standard_input(listing: Path) -> bool:
    return os.fspath(listing) == "-"


def names(listing: Path, *, null: bool = False) -> Iterator[str]:
    r"""Yield the names in a list: its lines, or what its NULs end; skip empty ones.

    A line may end in ``\r\n``; a list in which only some do gets a warning,
    since a name may end in ``\r``, too. Raises `SourceError` for a list that
    cannot be read, or a file that is not a list.
    """
    mark, rest = (b"\0" if null else b"\n"), b""
    ends: set[bool] = set()  # whether lines end in \r
    try:
        # Standard input stays open and gives what is there already: a run may begin before the list ends.
        with nullcontext(_standard_input()) if _is_standard_input(listing) else open(listing, "rb") as file:
            for block in _as_utf8(file, listing):
                *whole, rest = (rest + block).split(mark)
                ends |= {name.endswith(b"\r") for name in whole if name}
                for name in (*whole, rest) if len(rest) > LONGEST else whole:
                    if _is_name(name, null):
                        yield _decoded(name, listing, null)
    except OSError as error:
        raise SourceError(f"{listing} cannot be read ({error.strerror}): name a file that lists images") from error
    if _is_name(rest, null):
        yield _decoded(rest, listing, null)
    if len(ends) > 1 and not null:
        logger.warning(
            "%s ends only some of its lines in CR LF: a CR before a line's end was not taken as part of the name;"
            " for names that end in CR, use -0",
            listing,
        )


def _is_name(entry: bytes, null: bool) -> bool:
    """Check whether an entry is not empty; the CR before a line's end is not part of it."""
    return entry not in ((b"",) if null else (b"", b"\r"))


def _as_utf8(file: BufferedReader, listing: Path) -> Iterator[bytes]:
    """Yield the bytes of a list without its byte order mark, converted to UTF-8 where the mark says otherwise."""
    head = b""
    while any(mark.startswith(head) for mark in _MARKS) and (block := file.read1(LONGEST)):
        head += block
    mark = next((mark for mark in _MARKS if head.startswith(mark)), b"")
    blocks = chain([head[len(mark) :]], iter(partial(file.read1, LONGEST), b""))
    if not (encoding := _MARKS.get(mark, "")):
        yield from blocks
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise SourceError(
            f"{listing} begins as {encoding[:6].upper()}, but is damaged or cut off: save it as UTF-8"
        ) from error


def _standard_input() -> BufferedReader:
    return cast(BufferedReader, sys.stdin.buffer)


def _decoded(name: bytes, listing: Path, null: bool) -> str:
    if len(name) > LONGEST:
        raise SourceError(f"{listing} is not a list of names: one has more than {LONGEST} bytes: name another file")
    if null:
        return os.fsdecode(name)
    if b"\0" in name and len(name) >= 6 and not (any(name[0::2]) and any(name[1::2])):
        raise SourceError(f"{listing} looks like UTF-16 without a byte order mark: save it as UTF-8")
    if b"\0" in name:
        raise SourceError(f"{listing} has NULs in its lines: use -0 if they end its names, or name another file")
    return os.fsdecode(name.removesuffix(b"\r"))


def marked(first: str) -> bytes:
    """Return the bytes that a list must begin with for `names` to give back its `first` name whole."""
    return codecs.BOM_UTF8 if os.fsencode(first).startswith(tuple(_MARKS)) else b""


def fits_a_line(name: str) -> bool:
    """Check whether a list of lines gives back `name`."""
    return "\n" not in name and not name.endswith("\r")


def is_utf8(name: str) -> bool:
    """Check whether the bytes of a name are UTF-8."""
    return name.isascii() or readable(name) == name


def readable(name: str) -> str:
    r"""Convert a name to valid UTF-8, for formats that take nothing else: other bytes become ``\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Names:
    """A set of names that takes about 20 bytes for each, a fifth of a `set` of their hashes."""

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(1 << 16)]

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        bucket = self._buckets[int.from_bytes(key[:2], "big")]
        if key in bucket:  # a match that straddles two keys is about as likely as two names sharing a key
            return False
        bucket += key
        return True
