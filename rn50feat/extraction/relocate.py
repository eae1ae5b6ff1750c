"""Change the paths of images that have moved: their rows keep ids and features.

In: a store, and the prefix of locations that is replaced by another one. Out:
the store with the new paths, or only what would change. Images that a run has
already met in their new place have two rows; the older one stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rn50feat.errors import ArgumentError, SourceError
from rn50feat.extraction.catalogue import path_key
from rn50feat.sources.location import archive_of, at, locate
from rn50feat.sources.reference import UNKNOWN
from rn50feat.store.checksums import spans
from rn50feat.store.paths import stored_path
from rn50feat.store.reader import FeatureStore, locate_store
from rn50feat.store.session import WriteSession

_BLOCK = 8192  # paths in memory at once
_MOST_ROOTS = 5  # that an error names


@dataclass(frozen=True)
class Relocated:
    """What relocating from ``old`` to ``new`` changes, or would change unless ``applied``.

    Counts: ``rows``, ``failures`` and ``archives`` that get new paths; rows
    that are ``removed``, since an older row of the image stays, or its file is
    gone and another image is in its new place; rows that are ``left`` under
    their old paths, since another image is in their new place; ``missing``
    images of ``rows``, None in remote storage, which is not asked; ``still``
    images that are in their old place. ``example`` has the location of one
    image before and after.
    """

    old: str
    new: str
    rows: int
    failures: int
    archives: int
    removed: int
    left: int
    missing: int | None
    still: int
    example: tuple[str, str]
    applied: bool = False


def relocate(
    old: str | os.PathLike[str], new: str | os.PathLike[str], store: str | os.PathLike[str], *, apply: bool = False
) -> Relocated:
    """Replace the prefix `old` of all locations in `store` with `new`, in one commit; without `apply`, only report.

    Prefixes are folders, archives, files or URLs, and match whole names of a
    path. Where both an old row and one that is there already have the same
    bytes, the one with the lower id stays, unless it is damaged. Where their
    bytes differ, the row that fits the file stays, else the one that is there;
    the other one goes if its own file is gone, and keeps its path otherwise. No
    image that exists loses its features. Takes 1 kB of memory per row that
    changes: 1 GB, and 2 minutes, for a million. Raises `ArgumentError` if nothing in
    the store matches, or if nothing would change.
    """
    path = locate_store(store)
    if not apply:
        return _planned(FeatureStore(path), os.fspath(old), os.fspath(new)).outcome()
    FeatureStore(path)  # raises if there is no store
    with WriteSession(path, "relocate") as session:
        assert session.old is not None
        session.repair()
        plan = _planned(session.old, os.fspath(old), os.fspath(new))
        session.prepare(session.old.provenance, relocated=[plan.move.old, plan.move.new])
        _write(session, plan)
        return plan.outcome(applied=True)


@dataclass(frozen=True)
class Move:
    """A prefix and the one that replaces it, both without a slash at the end."""

    old: str
    new: str

    def of(self, location: str) -> str | None:
        """Return where a location is moved, None if it stays."""
        rest = location[len(self.old) :]
        if not location.startswith(self.old) or not (rest == "" or rest.startswith(("/", "::"))):
            return None
        if rest.startswith("::") and not archive_of(self.new + rest):
            raise ArgumentError(f"{self.new} is not the name of an archive, but {self.old} is one: name an archive")
        return self.new + rest


@dataclass
class Plan:
    """What a move does to the rows and tables of a store: masks and values of shape (N,), and entries by path."""

    move: Move
    moving: NDArray[np.bool_]
    mtimes: NDArray[np.int64]
    gone: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    failures: dict[str, str | None] = field(default_factory=dict)
    archives: dict[str, str | None] = field(default_factory=dict)
    missing: int = 0
    still: int = 0
    checked: bool = True
    example: tuple[str, str] | None = None

    @property
    def renamed(self) -> NDArray[np.bool_]:
        """Which rows get new paths."""
        mask = self.moving.copy()
        mask[[*self.gone, *self.left]] = False
        return mask

    def outcome(self, *, applied: bool = False) -> Relocated:
        """Count what changes."""
        assert self.example is not None
        return Relocated(
            self.move.old or "/",
            self.move.new or "/",
            int(self.renamed.sum()),
            sum(path is not None for path in self.failures.values()),
            sum(path is not None for path in self.archives.values()),
            len(self.gone),
            len(self.left),
            self.missing if self.checked else None,
            self.still,
            self.example,
            applied,
        )


def _planned(store: FeatureStore, old: str, new: str) -> Plan:
    """Plan the move; `old` may be the name of a link that is no more, or of what it led to."""
    if not (old and new):  # an unset variable of a script
        raise ArgumentError("the old or the new place is empty: name it, or use . for the working folder")
    place = at(old)
    olds = [locate(old).path] if place.needs_network else [os.path.abspath(old), locate(old).path]
    with store.reading():
        for name in dict.fromkeys(olds):
            plan = survey(store, Move(name.rstrip("/"), locate(new).path.rstrip("/")))
            if plan.example is not None and plan.move.old == plan.move.new:
                raise ArgumentError(f"{old} and {new} are the same place: name the one where the images were, first")
            if plan.example is not None:
                return plan
        raise ArgumentError(f"{store.path} has nothing in {olds[0]}: it has images in {_roots(store)}")


def survey(store: FeatureStore, move: Move) -> Plan:
    """Plan a move, and look up which images are in their new place, and which still in the old one."""
    with store.reading():
        count = len(store)
        plan = Plan(move, np.zeros(count, bool), store.column("mtime_ns"), checked=not at(move.new).needs_network)
        look_back, keys = not at(move.old).needs_network, bytearray()
        for row, location in _locations(store):
            target = move.of(location)
            keys += path_key(location if target is None else target)
            if target is not None:
                plan.moving[row] = True
                plan.example = plan.example or (location, target)
                plan.missing += plan.checked and not at(target).exists()
                plan.still += look_back and at(location).exists()
        places = np.frombuffer(keys, "V16")
        _settle_doubles(store, plan, places)
        _settle_tables(store, plan, places[~plan.moving])
    return plan


def _locations(store: FeatureStore) -> Iterator[tuple[int, str]]:
    for first in range(0, len(store), _BLOCK):
        for row, path in enumerate(store.paths(first, first + _BLOCK), first):
            yield row, store.locate(path)


def _settle_doubles(store: FeatureStore, plan: Plan, places: NDArray[np.void]) -> None:
    """Choose a row for each location that would have several; `places` has the keys of all, after the move."""
    _, place, counts = np.unique(places, return_inverse=True, return_counts=True)
    crowded = np.zeros(len(counts), bool)
    crowded[place[plan.moving]] = True
    rows = np.flatnonzero((crowded & (counts > 1))[place])
    if len(rows):
        choice = _Choice(store, plan, frozenset(_wrong(store, rows)))
        for _, group in groupby(rows[np.argsort(place[rows], kind="stable")].tolist(), lambda row: int(place[row])):
            choice.settle(list(group))


def _wrong(store: FeatureStore, rows: NDArray[np.int64]) -> Iterator[int]:
    for part in spans(rows.tolist()):
        yield from store.wrong_rows(part.start, part.stop - part.start)


class _Choice:
    """Chooses which of the rows that would share a location stays."""

    def __init__(self, store: FeatureStore, plan: Plan, damaged: frozenset[int]) -> None:
        self._store, self._plan, self._damaged = store, plan, damaged
        self._ids, self._digests, self._sizes = store.column("ids"), store.column("digest"), store.column("size")

    def settle(self, rows: Sequence[int]) -> None:
        """Note in the plan which of `rows`, all for one location, go and which are left where they are."""
        plan = self._plan
        best = self._best(rows)
        same = [row for row in rows if row == best or self._same(row, best)]
        stays = min([row for row in same if row not in self._damaged] or same, key=lambda row: int(self._ids[row]))
        plan.mtimes[stays] = plan.mtimes[best]
        for row in rows:
            if row in same:
                if row != stays:
                    plan.gone.add(row)
            elif plan.moving[row] and not self._is_replaced(row):
                plan.left.add(row)
            else:
                plan.gone.add(row)

    def _same(self, row: int, other: int) -> bool:
        digest = bytes(self._digests[row])
        return digest != UNKNOWN and digest == bytes(self._digests[other])

    def _best(self, rows: Sequence[int]) -> int:
        """Return the row that fits the file, else the one that is there already."""
        there = sorted(rows, key=lambda row: bool(self._plan.moving[row]))
        if all(self._same(row, there[0]) for row in rows):
            return there[0]
        try:
            now = at(self._new(rows)).stat() if self._plan.checked else None
        except SourceError:
            now = None
        fits = (row for row in there if now and (self._sizes[row], self._plan.mtimes[row]) == (now.size, now.mtime_ns))
        return next(fits, there[0])

    def _new(self, rows: Sequence[int]) -> str:
        moving = next(row for row in rows if self._plan.moving[row])
        return self._plan.move.of(self._store.locate(self._store.path_of(moving))) or ""

    def _is_replaced(self, row: int) -> bool:
        """Check whether a row's file is gone, and another one is in its new place."""
        old = self._store.locate(self._store.path_of(row))
        known = not at(old).needs_network and self._plan.checked
        return known and not at(old).exists() and at(self._new([row])).exists()


def _settle_tables(store: FeatureStore, plan: Plan, there: NDArray[np.void]) -> None:
    """Plan for the ledger and the archives: what is in the new place is newer, also a row (`there` has their keys)."""
    for table, paths, rows in (
        (plan.failures, [failure.path for failure in store.failures()], there),
        (plan.archives, [archive.path for archive in store.archives()], there[:0]),
    ):
        targets = {path: target for path in paths if (target := plan.move.of(store.locate(path))) is not None}
        own = set(paths) - set(targets)
        keys = np.frombuffer(b"".join(map(path_key, targets.values())), "V16")
        for (path, target), known in zip(targets.items(), np.isin(keys, rows).tolist()):
            plan.example = plan.example or (store.locate(path), target)
            name = stored_path(store.path, target)
            table[path] = None if known or name in own else name


def _write(session: WriteSession, plan: Plan) -> None:
    """Remove the rows that go, then change all paths in one commit: whoever is killed in between can try again."""
    store = FeatureStore(session.path)
    ids = store.column("ids")
    changed = plan.renamed | (plan.mtimes != store.column("mtime_ns"))
    changed[[*plan.gone]] = False
    numbers, times = ids[changed], plan.mtimes[changed]
    session.remove(np.array(sorted(plan.gone), np.int64))
    now = store.column("ids")
    order = np.argsort(now)
    rows = order[np.searchsorted(now, numbers, sorter=order)]
    times = times[np.argsort(rows)]
    for part in spans(rows.tolist()):
        here = [store.locate(path) for path in store.paths(part.start, part.stop)]
        session.rename(part.start, [plan.move.of(location) or location for location in here], times[: len(here)])
        times = times[len(here) :]
    for table in ("failures", "archives"):
        if renamed := getattr(plan, table):
            session.rename_entries(table, renamed)
    session.commit(ended=True)


def _roots(store: FeatureStore) -> str:
    """Name the folders and URLs that hold the store's images, one for each first two names of their paths."""
    found: dict[str, str] = {}
    paths = (location for _, location in _locations(store))
    for location in (*paths, *(store.locate(failure.path) for failure in store.failures())):
        folder = os.path.dirname(archive_of(location) or location)
        start = "/".join(folder.split("/")[:3])
        both = [found.get(start, folder) + "/", folder + "/"]
        found[start] = os.path.commonprefix(both).rpartition("/")[0]  # noqa: RUF071 - commonpath spoils s3://
    names = sorted(found.values())
    more = f" and {len(names) - _MOST_ROOTS} more" if len(names) > _MOST_ROOTS else ""
    return f"{', '.join(names[:_MOST_ROOTS])}{more}: name one of them" if names else "no folder at all"
