"""Sum up an index: what was done to it, and what would make it better.

In: the facts about an index, and the ids of its store. Out: an `IndexSummary`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rn50feat.errors import invocation
from rn50feat.searching import index_plan
from rn50feat.searching.best import Rows
from rn50feat.searching.index_file import IndexFacts
from rn50feat.store.reader import FeatureStore


@dataclass(frozen=True)
class IndexSummary:
    """What `index` did: rows added and removed, and the state of the index.

    ``behind`` rows of the store are not in the index yet, since adding a few
    to a large index does not pay; searches scan them. ``advice`` is what to do
    about an index that finds less than it should, or that is slow; "" if it is
    fine. ``tuned`` if another target was set for its recall.
    """

    facts: IndexFacts
    built: bool
    added: int
    removed: int
    rebuild_pays: bool
    behind: int = 0
    advice: str = ""
    tuned: bool = False


def should_rebuild(facts: IndexFacts, ids: Rows) -> bool:
    """Check whether the lists no longer fit the rows, or the store has become too large for a full scan."""
    if not facts.trained_on:
        return facts.factory == index_plan.FLAT and len(ids) > index_plan.FLAT_ROWS
    return facts.short and bool((ids >= facts.trained_next_id).any())


def summary(
    store: FeatureStore,
    facts: IndexFacts,
    max_ram: int,
    *,
    built: bool = False,
    added: int = 0,
    removed: int = 0,
    behind: int = 0,
    tuned: bool = False,
    rebuild: bool = False,
) -> IndexSummary:
    """Sum up what was done to an index that has `facts` now."""
    advice = _advice(store, facts, max_ram, rebuild=rebuild)
    return IndexSummary(facts, built, added, removed, rebuild, behind, advice, tuned)


def _advice(store: FeatureStore, facts: IndexFacts, max_ram: int, *, rebuild: bool) -> str:
    """Say what would make the index better; "" if it is fine."""
    again = invocation("index", store.path, "--rebuild")
    if rebuild and not facts.short:
        return f"the store has grown too large for a full scan: {again}"
    if not facts.short:
        return ""
    shortfall = f"recall@10 is {facts.recall:.4f}, less than the {facts.target:g} of --target-recall"
    if rebuild:
        return f"{shortfall}, since many rows are newer than the index's training: {again}"
    if larger := index_plan.larger(facts.factory, facts.rows, max_ram):
        return f"{shortfall}: larger codes find more, for example with {again} --factory {larger}"
    return f"{shortfall}, and larger codes would not help: search --exact compares every row"
