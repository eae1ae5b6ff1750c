"""Read files of any kind of place.

In: a reference. Out: its bytes, or their digest, with the size and time that
the file had when they were read.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from rn50feat.errors import TooLargeError
from rn50feat.sources.location import at
from rn50feat.sources.reference import Reference


def head(reference: Reference, length: int = 32) -> bytes:
    """Read the first `length` bytes of a file; raise `SourceError` with the reason when they cannot be read."""
    return at(reference.location).head(reference, length)


def digest(reference: Reference) -> Reference:
    """Hash a file; return `reference` with its size, time and digest as they are now. Raises `SourceError`."""
    with at(reference.location).open(reference, 1 << 20) as (now, blocks):
        state = hashlib.blake2b(digest_size=16)
        for block in blocks:
            state.update(block)
    return replace(now, digest=state.digest())


def read(reference: Reference, most: int = 0) -> tuple[Reference, bytes]:
    """Read a file; return what `digest` does, and the bytes.

    Raises `SourceError`, and `TooLargeError` before reading more than `most` bytes (0: any number).
    """
    with at(reference.location).open(reference, -1) as (now, blocks):
        if 0 < most < now.size:
            raise TooLargeError(now.size, most)
        data = b"".join(blocks)
    return replace(now, digest=hashlib.blake2b(data, digest_size=16).digest()), data
