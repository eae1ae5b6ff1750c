"""Decode the names in a zip archive as the programs that wrote them meant them.

In: the bytes of names, with what the directory of the archive says about each.
Out: the names, and whether some of them had to be guessed. The format knows
two encodings, UTF-8 with a flag and the code page of the first PC; programs
also write UTF-8 without the flag (macOS), the code page of their machine, or
the bytes of a Unix file system.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

_UTF8 = 0x800  # flag of a member
_UNICODE_PATH = 0x7075  # Info-ZIP's field for a name in UTF-8 next to one in a code page: APPNOTE.TXT 6.3.10, 4.6.9
_UNIX, _MACOS = 3, 19  # systems of the writer, 4.4.2
_WINDOWS = (10, 11)


class RawName(NamedTuple):
    """A name as its bytes, with the member's flags, its extra fields, and the system and version that wrote it."""

    raw: bytes
    flags: int
    extra: bytes
    system: int
    version: int


def decoded(names: Sequence[RawName]) -> tuple[list[str], str]:
    """Decode names; return them, and the code page that was guessed for some of them, "" if none was.

    Names with the UTF-8 flag or field are decoded as UTF-8. Of the others,
    those of a Unix program keep their bytes, as its files do. Those of other
    systems are UTF-8 if all of them can be, since text in a code page hardly
    ever is valid UTF-8; else they are in the code page that Info-ZIP's
    programs assume for that system.
    """
    told = [_told(name) for name in names]
    open_questions = [name for name, known in zip(names, told) if known is None and not _keeps_bytes(name)]
    utf8 = all(_is_utf8(name.raw) for name in open_questions)
    found, guessed = [], ""
    for name, known in zip(names, told):
        if known is None and not utf8 and not _keeps_bytes(name):
            guessed = _code_page(name)
            known = name.raw.decode(guessed, "surrogateescape")
        found.append(name.raw.decode("utf-8", "surrogateescape") if known is None else known)
    return found, guessed


def as_now(name: str) -> tuple[str, ...]:
    """List today's possible names of a member that early versions, which knew only CP437, called `name`."""
    try:
        raw = name.encode("cp437")
    except UnicodeEncodeError:
        return ()
    return raw.decode("utf-8", "surrogateescape"), raw.decode("cp1252", "surrogateescape")


def _told(name: RawName) -> str | None:
    """Decode a name whose encoding the archive states, or does not matter; None for any other."""
    if name.flags & _UTF8 or name.raw.isascii():
        return name.raw.decode("utf-8", "surrogateescape")
    extra = name.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        # Version 1, the checksum of the name that it is for (a program may have renamed the member), and the name.
        if kind == _UNICODE_PATH and field[:5] == b"\1" + zlib.crc32(name.raw).to_bytes(4, "little"):
            return field[5:].decode("utf-8", "surrogateescape")
    return None


def _keeps_bytes(name: RawName) -> bool:
    return name.system in (_UNIX, _MACOS)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _code_page(name: RawName) -> str:
    """Choose the code page of a name by the system that wrote it, as unzip 6.0 (`Ext_ASCII_TO_Native`) does.

    Programs on DOS, or that claim to be, write DOS's code page, except PKZIP
    for Windows 2.5, 2.6 and 4.0; so does Windows NT 5.0.
    """
    dos = name.system not in _WINDOWS and (name.system, name.version) not in ((0, 25), (0, 26), (0, 40))
    return "cp437" if dos or (name.system, name.version) == (11, 50) else "cp1252"
