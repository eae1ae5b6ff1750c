"""Read and replace the two files of an index atomically.

In: the bytes of a FAISS file and the facts about it. Out: ``out.faiss``, an
ordinary FAISS file next to the store ``out.h5``, and ``out.faiss.json`` with
the facts.

Two files cannot be renamed at once. So the facts are replaced first, and
describe both the existing FAISS file and the new one; a reader uses the facts
that match the FAISS file it finds, by size and time, or else by checksum.
Whenever a write stops, either the old index is complete or the new one. Needs
no FAISS.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rn50feat.durable.disk import DISK, Disk, advice, close, open_regular
from rn50feat.durable.records import typed
from rn50feat.errors import HistoryError, IndexingError, ProvenanceError, invocation
from rn50feat.images.provenance import Provenance
from rn50feat.searching.scores import METRICS
from rn50feat.store.reader import FeatureStore

FORMAT = "rn50feat index"
SCHEMA = 1
_LATER = ("candidates", "measured_rows", "target")  # facts that versions which read the others do not expect there
_READ = 1 << 24  # bytes that are hashed at once: 300 MB take 0.3 s
_LONGEST_TEXT = 1 << 20  # bytes of facts; they take some 3,000
_ATTEMPTS = 5  # to read both files while another process replaces them

Index = TypeVar("Index")


@dataclass(frozen=True)
class IndexFacts:
    """The facts about an index.

    It holds all rows of the store ``store_id`` with ids below ``next_id``,
    and perhaps some that the store no longer has. ``trained_next_id`` is the
    ``next_id`` when the index was built, from ``trained_on`` rows. A search
    probes ``nprobe`` lists, and ranks ``candidates`` exactly for 10 hits;
    ``recall`` is the recall@10 that was measured so when there were
    ``measured_rows``, None if there were no rows to compare, and ``target``
    what it should be. ``mark`` is the mark of the store's last commit
    when the index was written, empty for a store without marks. ``size``,
    ``mtime_ns`` and ``checksum`` (BLAKE2b-128) are those of the FAISS file.
    """

    store_id: str
    provenance: Provenance
    metric: str
    factory: str
    rows: int
    next_id: int
    trained_next_id: int
    trained_on: int
    nprobe: int | None
    recall: float | None
    size: int = 0
    mtime_ns: int = 0
    checksum: str = ""
    mark: str = ""
    candidates: int = 100
    measured_rows: int = 0
    target: float = 0.0

    @property
    def short(self) -> bool:
        """Whether the recall is below its target."""
        return self.recall is not None and self.recall < self.target

    def as_dict(self) -> dict[str, Any]:
        """Convert the facts, without the mark, to a dict for JSON."""
        facts = {**asdict(self), "provenance": json.loads(self.provenance.to_json())}
        return {name: value for name, value in facts.items() if name != "mark"}


def faiss_path(store: Path) -> Path:
    """Return the path of a store's FAISS file."""
    return store.with_suffix(".faiss")


def facts_path(store: Path) -> Path:
    """Return the path of the facts about a store's FAISS file."""
    return store.with_suffix(".faiss.json")


def parts_path(store: Path) -> Path:
    """Return the path of a temporary file for the parts of an index."""
    return store.with_suffix(".faiss-parts")


def merged_path(store: Path) -> Path:
    """Return the path of a temporary FAISS file that is measured before its final place is written."""
    return store.with_suffix(".faiss-merged")


def _new(path: Path) -> Path:
    return path.with_name(path.name + "-new")


def read_facts(store: Path, *, thorough: bool = False) -> IndexFacts | None:
    """Read the facts of the index next to `store`; None if there is none.

    A FAISS file that has the size and time of its facts is assumed to be
    intact; any other, and any if `thorough`, is hashed. Raises `IndexingError`
    if it is damaged.
    """
    for _ in range(_ATTEMPTS):
        seen = _state(store)
        if seen is None:
            return None
        try:
            return _fitting(store, seen, thorough)
        except IndexingError:
            if _state(store) == seen:
                raise
    raise IndexingError(f"{faiss_path(store)} keeps changing: try again later")


def last_facts(store: Path) -> IndexFacts | None:
    """Read the facts of the last index next to `store`, even if its FAISS file is damaged; None if they are unknown."""
    with suppress(OSError, IndexingError):
        if text := _text(facts_path(store)):
            return _parsed(store, text)[0]
    return None


def load(store: Path, read: Callable[[Path], Index], *, thorough: bool = False) -> tuple[Index, IndexFacts] | None:
    """Read the FAISS file with `read`, and its facts like `read_facts`; None if there is none."""
    for _ in range(_ATTEMPTS):
        seen = _state(store)
        if (facts := read_facts(store, thorough=thorough)) is None:
            return None
        index = read(faiss_path(store))
        if _state(store) == seen:
            return index, facts
    raise IndexingError(f"{faiss_path(store)} keeps changing: try again later")


def require_same(store: FeatureStore, facts: IndexFacts) -> None:
    """Raise `IndexingError` if an index does not belong to `store`, `HistoryError` if it once did."""
    path, helps = faiss_path(store.path), remedy(store.path)
    if facts.store_id != store.id:
        raise IndexingError(f"{path} belongs to another store, {facts.store_id}, not {store.id}: {helps}")
    if difference := store.provenance.difference(facts.provenance):
        name, own, others = difference
        raise IndexingError(f"{path} has features with {name} {others}, but {store.path} has {own}: {helps}")
    # Of 100,000 marks, 10 years of them, all take 120 ms, and the last thousand 1.
    if facts.mark and facts.mark not in store.history(-1000) and facts.mark not in store.history():
        raise HistoryError(
            f"{path} belongs to another history of {store.path} (one of them was restored from a backup, or copies of"
            f" both were changed separately): {helps}"
        )
    if facts.next_id > store.next_id:
        raise IndexingError(f"{path} is newer than {store.path}, which may be a restored backup: {helps}")


@dataclass(frozen=True)
class _State:
    """Both files at one moment: the text of the facts, and which FAISS file there is."""

    text: bytes | None
    inode: int
    size: int
    mtime_ns: int


def _state(store: Path) -> _State | None:
    """Look up the state of both files; None if there is no FAISS file."""
    try:
        with open_regular(faiss_path(store)) as file:
            status = os.fstat(file.fileno())
        text = _text(facts_path(store))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IndexingError(f"{faiss_path(store)} cannot be read ({error.strerror}): {advice(error)}") from error
    return _State(text, status.st_ino, status.st_size, status.st_mtime_ns)


def _text(path: Path) -> bytes | None:
    """Read the text of the facts up to `_LONGEST_TEXT` bytes; None if there are none."""
    try:
        with open_regular(path) as file:
            return file.read(_LONGEST_TEXT)
    except FileNotFoundError:
        return None


def remedy(store: Path) -> str:
    """Return the fix for an index that cannot be used, whichever command found it."""
    again = invocation("index", store, "--rebuild")
    return f"rebuild it with {again}, or ignore it: search --exact, duplicates --scan"


def _fitting(store: Path, seen: _State, thorough: bool) -> IndexFacts:
    """Find the facts that match the existing FAISS file; raise `IndexingError` if there are none."""
    path = faiss_path(store)
    if seen.text is None:
        raise IndexingError(f"{path} lacks the facts in {facts_path(store).name}: {remedy(store)}")
    known = [facts for facts in _parsed(store, seen.text) if facts.size == seen.size]
    if not thorough:
        for facts in known:
            if facts.mtime_ns == seen.mtime_ns:
                return facts
    checksum = _checksum(path) if known else ""
    for facts in known:
        if facts.checksum == checksum:
            return facts
    raise IndexingError(f"{path} is damaged, or written by another program: {remedy(store)}")


def _parsed(store: Path, text: bytes) -> list[IndexFacts]:
    try:
        record = json.loads(text)
        if (record["format"], record["schema"]) != (FORMAT, SCHEMA):
            raise ValueError(f"{record['format']}, schema {record['schema']}")
        marks, later = record.get("marks", {}), record.get("search", {})
        entries = [
            {**record[name], **later.get(name, {}), "mark": marks.get(name, "")}
            for name in ("index", "before")
            if record[name]
        ]
        provenances = [Provenance.from_json(json.dumps(entry.pop("provenance"))) for entry in entries]
        found = [typed(IndexFacts(provenance=one, **entry)) for one, entry in zip(provenances, entries)]
        if unknown := {facts.metric for facts in found} - {*METRICS}:
            raise ValueError(f"the metric {unknown}")
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ProvenanceError) as error:
        raise IndexingError(f"{facts_path(store)} is damaged or of another version: {remedy(store)}") from error


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_regular(path) as file:
            while piece := file.read(_READ):
                digest.update(piece)
    except OSError as error:
        raise IndexingError(f"{path} cannot be read ({error.strerror}): {advice(error)}") from error
    return digest.hexdigest()


def save(
    store: Path,
    write_index: Callable[[Callable[[bytes], None]], None],
    facts: IndexFacts,
    before: IndexFacts | None,
    *,
    disk: Disk = DISK,
) -> IndexFacts:
    """Replace the index next to `store`, whose facts are `before`, by a new one; return its facts.

    `write_index` passes the bytes of the FAISS file to its argument. The
    caller holds the `lock.run_lock` of `faiss_path`. Raises `IndexingError`
    if the disk cannot be written; the existing index is then unchanged.
    """
    path, about = faiss_path(store), facts_path(store)
    try:
        facts = _write_index(_new(path), write_index, facts, disk)
        known = {"index": facts, "before": before}
        record = {
            "format": FORMAT,
            "schema": SCHEMA,
            **{name: state and _early(state) for name, state in known.items()},
            "marks": {name: state.mark for name, state in known.items() if state},
            "search": {name: {key: getattr(state, key) for key in _LATER} for name, state in known.items() if state},
        }
        _write_text(_new(about), json.dumps(record, indent=2) + "\n", disk)
        disk.rename(_new(about), about)
        disk.sync_folder(path.parent)  # before the FAISS file: facts that match neither file must never be visible
        disk.rename(_new(path), path)
        disk.sync_folder(path.parent)
    except OSError as error:
        remove_leftovers(store, disk=disk)
        raise unwritable(path, error) from error
    return facts


def unwritable(path: Path, error: OSError) -> IndexingError:
    """Return the error for a file of an index that cannot be written."""
    reason = error.strerror or error
    return IndexingError(f"{path} cannot be written ({reason}): {advice(error)}; the existing index is unchanged")


def _early(facts: IndexFacts) -> dict[str, Any]:
    return {name: value for name, value in facts.as_dict().items() if name not in _LATER}


def remove_leftovers(store: Path, *, disk: Disk = DISK) -> None:
    """Remove temporary files, also those of an interrupted write; the caller holds the lock."""
    for path in (_new(faiss_path(store)), _new(facts_path(store)), parts_path(store), merged_path(store)):
        if path.exists():
            with suppress(OSError):
                disk.remove(path)


def _write_index(
    path: Path, write_index: Callable[[Callable[[bytes], None]], None], facts: IndexFacts, disk: Disk
) -> IndexFacts:
    """Write a FAISS file; return `facts` with its size, time and checksum."""
    digest, length = hashlib.blake2b(digest_size=16), 0

    def write(piece: bytes) -> None:
        nonlocal length
        disk.write(handle, piece, length)
        digest.update(piece)
        length += len(piece)

    handle = disk.create(path)
    try:
        write_index(write)
        disk.sync(handle)
        mtime_ns = os.fstat(handle).st_mtime_ns
    finally:
        close(handle)
    return replace(facts, size=length, mtime_ns=mtime_ns, checksum=digest.hexdigest())


def _write_text(path: Path, text: str, disk: Disk) -> None:
    handle = disk.create(path)
    try:
        disk.write(handle, text.encode(), 0)
        disk.sync(handle)
    finally:
        close(handle)
