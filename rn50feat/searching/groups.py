"""Describe groups of near-identical images, and pairs across groups, by their files.

In: the files of groups, as they were when they were extracted. Out: what is
there now. Several paths may lead to the same file, and a file may be gone or
have changed. Deleting such a path would free nothing, or lose an original: the
images of `Group.rest` are those for which neither is so, and which have no more
pixels than the first image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import SourceError
from rn50feat.searching.distinct import KnownFile, StoredImage
from rn50feat.sources.contents import digest, head
from rn50feat.sources.presence import Identity, fingerprint, identity, keeper, readable
from rn50feat.sources.presence import state as file_state
from rn50feat.sources.reference import Reference

if TYPE_CHECKING:
    from rn50feat.images.dimensions import Dimensions

Relation = Literal[
    "same file", "same bytes", "same pixels", "re-encoded", "resized", "cropped", "rotated or mirrored", "edited"
]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
State = Literal["present", "same file", "missing", "changed", "unchecked"]
Kept = Literal[
    "",
    "first",
    "same file",
    "missing",
    "changed",
    "unchecked",
    "first not present",
    "more pixels",
    "pixels unknown",
    "edited",
    "shows more",
    "less similar",
    "to keep",
    "in an archive",
    "in remote storage",
    "a link",
]
_HEADS = (1 << 16, 1 << 24)  # bytes that are read for the dimensions, first and if they are not in there
_FILES = ("present", "unchecked")  # the states of members that are separate files


@dataclass(frozen=True)
class GroupImage:
    """An image in a group.

    ``path`` is the stored path, ``location`` opens the image, ``size`` is the
    file's size in bytes. ``similarity`` is the cosine with the first member.
    ``exact`` is true if the files had the same bytes when they were extracted.
    ``state`` says what is at the path now: the extracted file, the same file
    as an earlier member's, no file, or a file of another size or time.
    Objects in remote storage stay unchecked unless requested. ``width`` and
    ``height`` are those of the upright image, None if they are not known.
    ``kept`` says why it must stay; "" if deleting it frees ``size`` bytes, and
    the first member stays and has as many pixels. ``relation`` is the member's
    to the first one, if pixels were compared; None for the first.
    """

    path: str
    location: str
    id: int
    size: int
    similarity: float
    exact: bool
    state: State = "present"
    width: int | None = None
    height: int | None = None
    kept: Kept = "unchecked"
    relation: Relation | None = None

    @property
    def is_copy(self) -> bool:
        """Whether this is a separate file with the same bytes as the first member; true for the first itself."""
        return self.exact and self.state in _FILES

    @property
    def pixels(self) -> int | None:
        """The number of pixels, None if it is not known."""
        return None if self.width is None or self.height is None else self.width * self.height


@dataclass(frozen=True)
class Group:
    """Two or more near-identical images: the one to keep, by default the largest file, then the most similar ones.

    Among exact copies of the largest file, one that still exists comes first.
    """

    members: tuple[GroupImage, ...]

    @property
    def redundant(self) -> int:
        """The number of images beyond the first, without paths to the same file and files that are gone or changed."""
        return max(0, sum(member.state in _FILES for member in self.members) - 1)

    @property
    def rest(self) -> tuple[GroupImage, ...]:
        """The members that could be deleted: those whose ``kept`` is empty."""
        return tuple(member for member in self.members if not member.kept)

    @property
    def reclaimable(self) -> int:
        """The bytes that deleting the ``rest`` would free."""
        return sum(member.size for member in self.rest)


@dataclass(frozen=True)
class PairImage(StoredImage):
    """An image in a pair; ``group`` is the number of its group, from 1 on, None if it is in none."""

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
    ``uncompared`` images are in no group because their pixels cannot be read.
    """

    def __init__(
        self, groups: Iterable[Group] = (), pairs: Sequence[Pair] = (), more_pairs: int = 0, uncompared: int = 0
    ) -> None:
        super().__init__(groups)
        self.pairs = tuple(pairs)
        self.more_pairs = more_pairs
        self.uncompared = uncompared

    def scenes(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number the images with these `ids` so that near-identical ones have the same number.

        Images that a chain of groups and ``pairs`` connects count as one
        scene: keep them on one side of a split into training and test data.
        """
        near = [(group.members[0].id, member.id) for group in self for member in group.members]
        near += [(pair.images[0].id, pair.images[1].id) for pair in self.pairs]
        leads: dict[int, int] = {}

        def lead(image: int) -> int:
            while (above := leads.get(image, image)) != image:
                leads[image] = leads.get(above, above)  # halves the way of the next search
                image = above
            return image

        for one, other in near:
            leads[lead(other)] = lead(one)
        return np.array([lead(number) for number in ids.tolist()], np.int64)


@dataclass(frozen=True)
class Member:
    """A file in a group, as it was when it was extracted, its cosine with the first, and whether it is a copy.

    ``stays`` says why it must stay, ``relation`` how it comes from the first, as far as these are known.
    """

    file: KnownFile
    similarity: float
    exact: bool
    relation: Relation | None = None
    stays: Kept = ""


def described(
    groups: Sequence[Sequence[Member]], *, check: bool, rehash: bool, on_progress: Callable[[str, int, int], None]
) -> list[Group]:
    """Look up the files of groups, and read their dimensions; `rehash` those that may be deleted, and their firsts.

    Nothing in remote storage is looked up or read unless `check` is set.
    """
    stays = {member.file.id: member.stays for group in groups for member in group}
    found = _with_reasons([_with_dimensions(_with_states(group, check=check), check=check) for group in groups], stays)
    if rehash:
        references = {member.file.id: member.file.reference for group in groups for member in group}
        rehashed = []
        for i, group in enumerate(found):
            rehashed.append(_rehashed(group, references))
            on_progress("hashing", i + 1, len(found))
        found = _with_reasons(rehashed, stays)
    return [Group(tuple(members)) for members in found]


def _with_states(group: Iterable[Member], *, check: bool) -> list[GroupImage]:
    """Look up the state of each member; put a copy of the first member that still exists first."""
    members = [_image(member, check=check) for member in group]
    lead = next((i for i, member in enumerate(members) if member.is_copy), 0)
    members.insert(0, members.pop(lead))
    seen: set[Identity] = set()
    for i, member in enumerate(members):
        if (own := identity(member.location)) in seen:
            members[i] = replace(member, state="same file", relation=member.relation and "same file")
        elif own is not None:
            seen.add(own)
    return members


def _image(member: Member, *, check: bool) -> GroupImage:
    known, similarity = member.file.reference, member.similarity
    state = file_state(known, check=check)
    return GroupImage(
        member.file.path,
        known.location,
        member.file.id,
        known.size,
        similarity,
        member.exact,
        state,
        relation=member.relation,
    )


def _with_dimensions(members: Sequence[GroupImage], *, check: bool) -> list[GroupImage]:
    """Add the dimensions of the files that are there, if their heads have them; copies are read once."""
    found: list[GroupImage] = []
    for member in members:
        if member.state in ("present", "same file") and readable(member.location, check=check):
            if member.exact and found and found[0].width is not None:
                member = replace(member, width=found[0].width, height=found[0].height)
            elif (sides := measured(member.location, member.size)) is not None:
                member = replace(member, width=sides.width, height=sides.height)
        found.append(member)
    return found


def measured(location: str, size: int) -> Dimensions | None:
    """Read the dimensions of an image in a file of `size` bytes; None if it cannot be read, or its head lacks them."""
    from rn50feat.images.dimensions import dimensions

    for length in _HEADS:
        try:
            found = dimensions(head(Reference(location, size, -1), length))
        except (SourceError, ValueError):  # gone since
            return None
        if found is not None or length >= size:
            return found
    return None


def _rehashed(group: Sequence[GroupImage], references: Mapping[int, Reference]) -> list[GroupImage]:
    """Hash the first, and all that may be deleted: size and time alone may hide that a file has changed.

    A file whose digest was unknown counts as changed.
    """
    if all(member.kept for member in group):
        return [*group]
    members = []
    for member in group:
        if member.kept in ("", "first"):
            known = references[member.id]
            try:
                same = digest(known).digest == known.digest
            except SourceError:
                member = replace(member, state="missing")
            else:
                member = member if same else replace(member, state="changed")
        members.append(member)
    return members


def _with_reasons(groups: Iterable[Sequence[GroupImage]], stays: Mapping[int, Kept]) -> list[list[GroupImage]]:
    """Say of each member why it must stay, if it must; `stays` has reasons by id."""
    judged = [
        [replace(member, kept=_reason(i, member, group[0]) or stays[member.id]) for i, member in enumerate(group)]
        for group in groups
    ]
    # A file may have other paths in other groups, and other devices through other mounts.
    others = (member for group in judged for member in group if member.kept and member.state != "same file")
    held = {fingerprint(member.location) for member in others}
    for group in judged:
        for i, member in enumerate(group):
            if not member.kept:
                if (own := fingerprint(member.location)) in held:
                    group[i] = replace(member, kept="same file")
                held.add(own)
    return judged


def _reason(number: int, member: GroupImage, first: GroupImage) -> Kept:
    if number == 0:
        return "first"
    if member.state != "present":
        return member.state
    if first.state != "present":
        return "first not present"
    if not member.exact and (member.pixels is None or first.pixels is None):
        return "pixels unknown"
    if not member.exact and (member.pixels or 0) > (first.pixels or 0):
        return "more pixels"
    return keeper(member.location)
