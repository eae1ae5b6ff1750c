"""index_summary: what would make an index better is said, and nothing if it is fine."""

from __future__ import annotations

from pathlib import Path

from vectors import clusters, filled

import rn50feat
from rn50feat.searching import index_plan
from rn50feat.searching.index_summary import should_rebuild, summary


def test_an_index_that_is_fine_needs_nothing_and_a_flat_one_of_many_rows_a_rebuild(tmp_path: Path) -> None:
    store = filled(tmp_path / "out.h5", clusters(40))
    facts = rn50feat.index(store).facts
    ids = store.column("ids")
    assert not should_rebuild(facts, ids)
    assert summary(store, facts, index_plan.MAX_RAM).advice == ""
    many = ids.repeat(index_plan.FLAT_ROWS)
    assert should_rebuild(facts, many)
    found = summary(store, facts, index_plan.MAX_RAM, rebuild=True)
    assert found.rebuild_pays and found.advice.endswith(f"full scan: rn50feat index {store.path} --rebuild")
