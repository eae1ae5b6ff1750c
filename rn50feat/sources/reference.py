"""Name one file, and keep what is known of its bytes.

In: what a listing, a store or a read says of a file. Out: a `Reference`, the
record that travels through the whole program. Millions of them exist at once,
and they are pickled to other processes: locations in them are plain text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

UNKNOWN = bytes(16)  # the digest of a file that nobody could read: equal to none, not even to another such one


@dataclass(frozen=True)
class Reference:
    """One file: its location and what is known of its bytes.

    ``location`` is an absolute path, a URL, or ``archive::member``; bytes of a
    name that are not UTF-8 are surrogate escapes. ``size`` is in bytes, -1 for
    a name in a list that leads to no file. ``mtime_ns`` is in nanoseconds
    since 1970; a member has its archive's, an object in remote storage one
    that `remote` makes up from its time and ETag. ``digest`` is the
    BLAKE2b-128 of the bytes, empty before they are read, `UNKNOWN` for a row
    whose file could not be read. ``offset`` is where a member begins in its
    archive, -1 where that is not known. ``damage`` says what is wrong with the
    image, "" for nothing that is known.
    """

    location: str
    size: int
    mtime_ns: int
    digest: bytes = b""
    offset: int = field(default=-1, compare=False)
    damage: str = field(default="", compare=False)

    @property
    def known_digest(self) -> bytes:
        """The digest, empty where it is not known: programs that compare digests take two empty ones for no match."""
        return b"" if self.digest == UNKNOWN else self.digest

    def __fspath__(self) -> str:
        return self.location
