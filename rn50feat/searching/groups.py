"""Describe groups of near-identical images, and pairs across groups, by their files.

In: the files of a group, as they were when they were extracted. Out: what is
there now. Several paths may lead to the same file, and a file may be gone or
have changed. Deleting such a path would free nothing, or lose an original.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rn50feat.searching.distinct import KnownFile
from rn50feat.sources.presence import Identity, identity
from rn50feat.sources.presence import state as file_state

State = Literal["present", "same file", "missing", "changed", "unchecked"]
_FILES = ("present", "unchecked")  # the states of members that are separate files


@dataclass(frozen=True)
class GroupImage:
    """An image in a group.

    ``path`` is the stored path, ``location`` opens the image, ``size`` is the
    file's size in bytes. ``similarity`` is the cosine with the first member.
    ``exact`` is true if the files had the same bytes when they were extracted.
    ``state`` says what is at the path now: the extracted file, the same file
    as an earlier member's, no file, or a file of another size or time.
    Objects in remote storage stay unchecked unless requested.
    """

    path: str
    location: str
    id: int
    size: int
    similarity: float
    exact: bool
    state: State = "present"

    @property
    def is_copy(self) -> bool:
        """Whether this is a separate file with the same bytes as the first member; true for the first itself."""
        return self.exact and self.state in _FILES


@dataclass(frozen=True)
class Group:
    """Two or more near-identical images: the largest file, then the others, most similar first.

    Among exact copies of the largest file, one that still exists comes first.
    """

    members: tuple[GroupImage, ...]

    @property
    def redundant(self) -> int:
        """The number of redundant copies, without paths to the same file and files that are gone or changed."""
        return max(0, sum(member.state in _FILES for member in self.members) - 1)


@dataclass(frozen=True)
class PairImage:
    """An image in a pair; ``group`` is the number of its group, from 1 on, None if it is in none."""

    path: str
    location: str
    id: int
    size: int
    group: int | None


@dataclass(frozen=True)
class Pair:
    """Two near-identical images that are not in the same group, the larger file first, and their cosine.

    Of several files with the same bytes, only the first one is in pairs.
    """

    similarity: float
    images: tuple[PairImage, PairImage]


class Groups(list[Group]):
    """Groups, the one with the largest file first, and the near-identical ``pairs`` across them, most similar first.

    There may be ``more_pairs``, at most so many: the others are left out.
    """

    def __init__(self, groups: Iterable[Group] = (), pairs: Sequence[Pair] = (), more_pairs: int = 0) -> None:
        super().__init__(groups)
        self.pairs = tuple(pairs)
        self.more_pairs = more_pairs


@dataclass(frozen=True)
class Member:
    """A file in a group, as it was when it was extracted, its cosine with the first, and whether it is a copy."""

    file: KnownFile
    similarity: float
    exact: bool


def described(group: Iterable[Member], *, check: bool) -> Group:
    """Look up the state of each member; put a copy of the first member that still exists first."""
    members = [_image(member, check=check) for member in group]
    lead = next((i for i, member in enumerate(members) if member.is_copy), 0)
    members.insert(0, members.pop(lead))
    seen: set[Identity] = set()
    for i, member in enumerate(members):
        if (own := identity(member.location)) in seen:
            members[i] = replace(member, state="same file")
        elif own is not None:
            seen.add(own)
    return Group(tuple(members))


def _image(member: Member, *, check: bool) -> GroupImage:
    known, similarity = member.file.reference, member.similarity
    state = file_state(known, check=check)
    return GroupImage(member.file.path, known.location, member.file.id, known.size, similarity, member.exact, state)
