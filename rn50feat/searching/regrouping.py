"""Regroup near-identical images: what to keep comes first, and what is only similar leaves.

In: groups of members. Out: groups whose first is the one to keep, and in which
the others come from the first by their pixels, if pixels are compared. Those
that leave a group may form others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from rn50feat.errors import QueryError
from rn50feat.searching import exact
from rn50feat.searching.distinct import DistinctFiles
from rn50feat.searching.groups import Kept, Member, measured
from rn50feat.searching.scores import reaches
from rn50feat.sources.presence import readable, state

if TYPE_CHECKING:
    from rn50feat.searching.relations import Relations

KEEP = ("largest", "oldest", "first-extracted")
_MOST_FIRSTS = 16  # images of a group with which each other one is compared


@dataclass(frozen=True)
class Regrouping:
    """What to `keep`: one of `KEEP`, a pattern for paths, or "" for the largest file; and how images are compared."""

    files: DistinctFiles
    threshold: float
    keep: str = ""
    relations: Relations | None = None
    check: bool = False

    def apply(
        self, groups: Sequence[Sequence[Member]], on_progress: Callable[[str, int, int], None]
    ) -> tuple[list[list[Member]], int]:
        """Return the new groups, and how many images could not be compared; raise `QueryError` for a vain pattern."""
        members = [member for group in groups for member in group]
        if self._by_pattern and members and not any(map(self._matches, members)):
            raise QueryError(f"--keep {self.keep} matches no image in a group: check the pattern")
        made, uncompared = [], 0
        for number, group in enumerate(groups, 1):
            ordered = sorted(group, key=self._order)
            parts = [ordered] if self.relations is None else list(self._related(ordered, self.relations))
            if self.relations is not None:
                uncompared += len(ordered) - sum(map(len, parts))
                parts = [part for part in parts if len(part) > 1]
            made += [self._scored(part) for part in parts]
            stage = "choosing what to keep" if self.relations is None else "comparing pixels"
            on_progress(stage, number, len(groups))
        return made, uncompared

    @property
    def _by_pattern(self) -> bool:
        return self.keep not in ("", *KEEP)

    def _matches(self, member: Member) -> bool:
        return self._by_pattern and fnmatchcase(member.file.path, self.keep)

    def _order(self, member: Member) -> tuple[bool, int, int, int]:
        """Order members, the one to keep first."""
        known = member.file.reference
        gone = state(known, check=self.check) in ("missing", "changed")
        first = 0
        if self.keep == "largest" and readable(known.location, check=self.check):
            sides = measured(known.location, known.size)
            first = 0 if sides is None else -sides.width * sides.height
        elif self.keep == "oldest":
            first = known.mtime_ns
        elif self.keep == "first-extracted":
            first = member.file.id
        elif self._by_pattern:
            first = not self._matches(member)
        return gone, first, -known.size, member.file.id

    def _related(self, members: Sequence[Member], relations: Relations) -> Iterator[list[Member]]:
        """Yield parts of a group, each with all that come from its first; without those that cannot be compared."""
        left, compared = list(members), set[int]()
        for _ in range(_MOST_FIRSTS):
            if not left:
                return
            first, *others = left
            known = first.file.reference
            same = [bool(known.known_digest) and known.digest == one.file.reference.digest for one in others]
            found = relations.of(known, [one.file.reference for one, alike in zip(others, same) if not alike])
            part, left = [replace(first, relation=None)], []
            for other, alike in zip(others, same):
                made = None if alike else next(found)
                if alike:
                    part.append(replace(other, relation="same bytes", stays=""))
                elif made is None or made.relation is None:
                    left.append(other)
                else:
                    stays: Kept = "edited" if made.relation == "edited" else "" if made.contained else "shows more"
                    part.append(replace(other, relation=made.relation, stays=stays))
                if made is not None:
                    compared |= {first.file.id, other.file.id}
            if len(part) > 1 or first.file.id in compared:
                yield part
        yield from ([one] for one in left if one.file.id in compared)

    def _scored(self, members: Sequence[Member]) -> list[Member]:
        """Score members by their cosine with the first: copies of it come first, then the most similar."""
        first, files = members[0], self.files
        digest = first.file.reference.known_digest
        members = [
            replace(one, exact=one is first or (digest != b"" and one.file.reference.digest == digest))
            for one in members
        ]
        rows = files.rows([one.file.id for one in members])
        with files.reading():
            query = files.store.features(rows[:1])[0]
            ranked, scores = exact.rank(query, rows[1:], files.store, files.ids, "cosine")
        places = dict(zip(files.ids[ranked].tolist(), enumerate(scores.tolist())))
        scored = []
        for one in members:
            similarity = 1.0 if one.exact else places.get(one.file.id, (0, 0.0))[1]
            near = one.exact or self.relations is not None or reaches(np.array([similarity]), self.threshold)[0]
            stays = one.stays or ("" if near else "less similar")
            scored.append(replace(one, similarity=similarity, stays="to keep" if self._matches(one) else stays))
        return scored[:1] + sorted(scored[1:], key=lambda one: (not one.exact, places.get(one.file.id, (len(rows), 0))))
