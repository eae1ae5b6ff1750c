"""Build a store's index, or bring it up to date.

In: a store. Out: the FAISS file next to it, which matches the rows that the
store had when the command began, and an `IndexSummary`. Updating an index
costs only the difference: new rows are added, removed ones are removed, and
nothing is trained or encoded again. Without a difference nothing is written;
otherwise the whole file is, which takes 0.1 s for 200,000 rows. A large file is
left alone as long as the difference costs a search next to nothing. Memory is
bounded: what does not fit is built in parts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rn50feat.durable import lock
from rn50feat.errors import HistoryError, IndexingError
from rn50feat.searching import index_file, index_plan, path_file
from rn50feat.searching.best import NO_ROWS, Rows
from rn50feat.searching.exact import BLOCK, prepared
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.index_file import IndexFacts, require_same
from rn50feat.searching.index_parts import Parts, require_room
from rn50feat.searching.index_plan import MAX_RAM, Plan
from rn50feat.searching.index_summary import IndexSummary, should_rebuild, summary
from rn50feat.searching.inverted_lists import Lists, places
from rn50feat.searching.recall import tune
from rn50feat.searching.scores import METRICS
from rn50feat.store.reader import FeatureStore

logger = logging.getLogger(__name__)

TARGET_RECALL = 0.98
CHANGED = 1 / 10  # the share of rows more or fewer from which the recall is measured again
# A file of at least LARGE bytes is not written again before the difference to the store has this size: a search scans
# the rows that the index lacks, 2 µs each, and drops candidates that the store no longer has.
LARGE, MOST_LACKING, MOST_GONE = 500_000_000, 2_000, 1 / 100
OnProgress = Callable[[str, int, int], None]


def index(
    store: FeatureStore | str | os.PathLike[str],
    *,
    metric: str | None = None,
    factory: str | None = None,
    max_ram: int = MAX_RAM,
    target_recall: float | None = None,
    rebuild: bool = False,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> IndexSummary:
    """Bring the index next to `store` up to date; build it if there is none or if `rebuild` is set.

    `metric` (cosine by default) and `factory`, a FAISS factory string, apply
    when an index is built; they cannot be changed later. `target_recall` is
    `TARGET_RECALL` unless the index has another or one is given; then recall
    is measured again. What is not given stays as it was when an index is
    rebuilt. Building takes at most `max_ram` bytes. `on_plan` gets the kind of
    index before it is built, `on_progress` (stage, rows done, rows in total).

    An index that belongs to another history of the store, as after restoring
    a backup, is rebuilt. Raises `IndexingError` for an index that is damaged
    or belongs to another store, for a kind that cannot be built, and for a
    full disk; `StoreLockedError` if another process is writing the index. The
    existing index is then left as it was.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    if metric not in (None, *METRICS):
        raise IndexingError(f"there is no metric {metric}: use one of {', '.join(METRICS)}")
    with lock.run_lock(index_file.faiss_path(store.path)):
        index_file.remove_leftovers(store.path)
        if not rebuild and (postponed := _postponed(store, metric, factory, max_ram, target_recall)):
            return postponed
        loaded = None if rebuild else index_file.load(store.path, FaissIndex.load_to_change, thorough=True)
        if loaded is not None:
            try:
                require_same(store, loaded[1])
            except HistoryError:
                logger.warning(
                    "%s belongs to another history of %s: rebuilding it", index_file.faiss_path(store.path), store.path
                )
            else:
                _require_kind(store, loaded[1], metric, factory)
                return _update(store, *loaded, max_ram, target_recall, on_progress)
        return _build(store, *_choices(store, metric, factory, target_recall), max_ram, on_plan, on_progress)


def _choices(
    store: FeatureStore, metric: str | None, factory: str | None, target: float | None
) -> tuple[str, str | None, float]:
    """Complete the choices for an index that is to be built by those for the last one next to `store`, if any."""
    if last := index_file.last_facts(store.path):
        metric, factory = metric or last.metric, factory or index_plan.chosen_by_user(last.factory)
        target = last.target if target is None and last.target else target
    return metric or "cosine", factory, TARGET_RECALL if target is None else target


def _postponed(
    store: FeatureStore, metric: str | None, factory: str | None, max_ram: int, target: float | None
) -> IndexSummary | None:
    """Leave a large index as it is if few rows differ: return its summary; None if it is to be updated."""
    try:
        facts = index_file.read_facts(store.path)
        if facts is None or facts.size < LARGE or target not in (None, facts.target):
            return None
        require_same(store, facts)
    except IndexingError:  # `index` deals with it
        return None
    _require_kind(store, facts, metric, factory)
    with store.reading():
        ids = store.column("ids")
    lacking = int((ids >= facts.next_id).sum())
    gone = facts.rows - (len(ids) - lacking)
    if lacking > MOST_LACKING or not 0 <= gone <= MOST_GONE * facts.rows:
        return None
    return summary(store, facts, max_ram, behind=lacking, rebuild=should_rebuild(facts, ids))


def _require_kind(store: FeatureStore, facts: IndexFacts, metric: str | None, factory: str | None) -> None:
    for name, asked, held in (("metric", metric, facts.metric), ("factory", factory, facts.factory)):
        if asked not in (None, held):
            path = index_file.faiss_path(store.path)
            raise IndexingError(f"{path} has the {name} {held}, you asked for {asked}: use --rebuild")


def _build(
    store: FeatureStore,
    metric: str,
    factory: str | None,
    target: float,
    max_ram: int,
    on_plan: Callable[[Plan], None],
    on_progress: OnProgress,
) -> IndexSummary:
    with store.reading():
        rows, next_id, mark = len(store), store.next_id, _last_mark(store)
    plan, made = _plan(factory, metric, rows, max_ram)
    on_plan(plan)
    if plan.part < rows:
        require_room(store.path, 2 * plan.size)  # the parts and what they are merged into, or that and the final file
    order = np.random.default_rng(0).choice(rows, min(rows, plan.sample + _held_out(rows)), replace=False)
    with store.reading():
        held_out = _ids(store, np.sort(order[plan.sample :]))
    if plan.sample:
        on_progress("training", 0, 0)
        _train(made, store, np.sort(order[: plan.sample]), metric)
    wanted = _wanted(store, next_id)
    with Parts(store.path, made, plan.part) as parts:
        _add(parts, store, wanted, np.ones(len(wanted), bool), metric, on_progress)
        del wanted  # 8 bytes a row
        facts = IndexFacts(
            store.id, store.provenance, metric, plan.factory, len(parts), next_id, next_id, plan.sample, None, None
        )  # fmt: skip
        facts = replace(facts, mark=mark, target=target)
        on_progress("measuring", 0, 0)
        made = parts.whole()
        facts = _tuned(store, made, facts, held_out)
        before = _facts_there(store)
        path_file.save(store)
        facts = index_file.save(store.path, made.save, facts, before)
    return summary(store, facts, max_ram, built=True, added=facts.rows)


def _plan(factory: str | None, metric: str, rows: int, max_ram: int) -> tuple[Plan, FaissIndex]:
    """Plan the index, and create it empty."""
    if factory is None:
        plan = index_plan.choose(rows, max_ram=max_ram)
        return plan, FaissIndex.make(plan.factory, metric)
    made = FaissIndex.make(factory, metric)
    plan = index_plan.custom(
        factory,
        rows,
        row_size=made.row_size,
        sample_row=index_plan.HALF if made.halves else index_plan.VECTOR,
        lists=made.lists,
        trained=made.trained,
        divisible=made.lists_last,
        max_ram=max_ram,
    )
    return plan, made


def _facts_there(store: FeatureStore) -> IndexFacts | None:
    """Read the facts of an index that is about to be replaced; None if there are none or they cannot be used."""
    try:
        return index_file.read_facts(store.path)
    except IndexingError:
        return None


def _train(made: FaissIndex, store: FeatureStore, rows: Rows, metric: str) -> None:
    """Train on `rows`, ascending, as far as they still exist."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(rows), BLOCK):
            with store.reading():
                part = rows[start : start + BLOCK]
                features = store.features(part[part < len(store)])
            yield prepared(features, metric)

    made.train(blocks(), len(rows))


def _ids(store: FeatureStore, rows: Rows) -> Rows:
    """Return the ids of a few `rows`, as far as they still exist."""
    return np.concatenate([NO_ROWS, *(store.column("ids", row, row + 1) for row in rows.tolist())])


def _wanted(store: FeatureStore, next_id: int) -> Rows:
    """Return the ids below `next_id` that the store has, ascending, each once."""
    with store.reading():
        ids = store.column("ids")
    ids.sort()  # in place: there may be 100 million
    ids = ids[: np.searchsorted(ids, next_id)]
    return np.unique(ids) if (ids[1:] == ids[:-1]).any() else ids


def _add(
    parts: Parts,
    store: FeatureStore,
    wanted: Rows,
    lacking: NDArray[np.bool_],
    metric: str,
    on_progress: OnProgress,
) -> int:
    """Add the rows with the ids ``wanted[lacking]``; `wanted` is ascending. Return how many still existed.

    The store may change between two blocks: rows may disappear or move to
    another place. Rows that were missed are looked up again.
    """
    total, added, before = int(lacking.sum()), 0, -1
    while before < added < total:
        before = added
        for first in range(0, len(store), BLOCK):
            with store.reading():  # once per block, so that a run can commit in between
                ids = store.column("ids", first, first + BLOCK)
                at, known = places(wanted, ids)
                rows = np.flatnonzero(known & lacking[at])
                features = store.features(first + rows)
            if len(rows):
                parts.add(ids[rows], prepared(features, metric))
                lacking[at[rows]] = False
                added += len(rows)
                on_progress("adding", added, total)
    return added


def _update(
    store: FeatureStore,
    made: FaissIndex,
    before: IndexFacts,
    max_ram: int,
    target: float | None,
    on_progress: OnProgress,
) -> IndexSummary:
    aimed = target not in (None, before.target)
    if target is None:  # an index of a version without targets has the target 0
        target = before.target or TARGET_RECALL
    with store.reading():
        next_id, mark = store.next_id, _last_mark(store)
    wanted = _wanted(store, next_id)
    rows, divisible = len(wanted), made.mapped
    lists, lacking, gone = _difference(made, wanted, index_file.remedy(store.path))
    if not aimed and not gone and not lacking.any() and (before.mark or not mark):
        if not path_file.fits(store):
            path_file.save(store)
        return summary(store, before, max_ram, rebuild=should_rebuild(before, wanted))
    room = index_plan.part_rows(rows, made.row_size, made.lists, max_ram) if divisible else rows
    with Parts(store.path, made, room, lists, wanted) as parts:
        added = _add(parts, store, wanted, lacking, before.metric, on_progress)
        facts = replace(before, rows=len(parts), next_id=next_id, mark=mark, target=target)
        write = parts.save
        changed = abs(len(parts) - before.measured_rows) > CHANGED * len(parts)
        if aimed or (before.recall is not None and changed):
            on_progress("measuring", 0, 0)
            queries = np.random.default_rng(0).choice(wanted, _held_out(rows), replace=False)
            made = parts.whole()
            facts, write = _tuned(store, made, facts, queries), made.save
        path_file.save(store)
        facts = index_file.save(store.path, write, facts, before)
    rebuild = should_rebuild(facts, wanted)
    return summary(store, facts, max_ram, added=added, removed=gone, tuned=aimed, rebuild=rebuild)


def _difference(made: FaissIndex, wanted: Rows, remedy: str) -> tuple[list[Lists], NDArray[np.bool_], int]:
    """Remove rows that are not `wanted`: all of them from memory, if the index is mapped.

    Returns the lists in its file, which of `wanted` it lacks, and how many of its rows are gone.
    """
    if made.mapped:
        lists, lacking = made.mapped_lists().keep(wanted)
        made.clear()
        return [lists], lacking, int((lists.sizes - lists.kept).sum())
    held = made.ids()
    gone = np.setdiff1d(held, wanted)
    if len(gone):
        made.remove(gone, remedy)
    return [], ~np.isin(wanted, held), len(gone)


def _held_out(rows: int) -> int:
    """Return how many of `rows` rows to measure recall with."""
    return min(rows, max(1, min(index_plan.HELD_OUT, rows // 4)))


def _tuned(store: FeatureStore, made: FaissIndex, facts: IndexFacts, queries: Rows) -> IndexFacts:
    """Measure the recall, and return the facts with the way to search that it needs; `queries` are ids."""
    found = tune(store, made, facts.metric, queries, facts.target)
    return replace(
        facts, nprobe=found.nprobe, candidates=found.candidates, recall=found.recall, measured_rows=len(made)
    )


def _last_mark(store: FeatureStore) -> str:
    return (store.history(-1) or [""])[0]
