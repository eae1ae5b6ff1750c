"""Say what an archive holds, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a member begins in its archive (in a zip: its local header), and its ``size`` unpacked, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """The members of an archive by name, in the order of the archive.

    ``fault`` says what part of the archive cannot be read, ``doubt`` what is
    uncertain about its names; both are "" where all is well.
    """

    members: Mapping[str, Extent]
    fault: str = ""
    doubt: str = ""
