"""renaming: paths change, and nothing else of rows and entries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stores import store, values

from rn50feat import FeatureStore
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import open_store


def test_rows_and_entries_get_new_paths_and_checksums(tmp_path: Path) -> None:
    out = store(tmp_path / "a/b/out.h5", [(f"/old/{i}.png", i, i) for i in range(1, 6)])
    with open_store(out) as writer:
        for name in ("x", "y", "z"):
            writer.fail(Reference(f"/old/{name}.png", 9, 9), f"is {name}")
    before = FeatureStore(out).column("ids").tolist()
    with open_store(out) as writer:
        writer.rename(1, [str(tmp_path / "a/new.png"), "/new/3.png"], np.array([8, 9]))
        writer.rename_entries("failures", {"/old/x.png": None, "/old/z.png": "../z.png", "/old/q.png": "/q.png"})
        writer.fail(Reference(str(tmp_path / "a/z.png"), 9, 9), "is z again")
    after = FeatureStore(out)
    assert values(out) == {"/old/1.png": 1, "../new.png": 2, "/new/3.png": 3, "/old/4.png": 4, "/old/5.png": 5}
    assert after.column("mtime_ns").tolist() == [1, 8, 9, 4, 5]
    assert after.column("ids").tolist() == before
    assert [(one.path, one.reason, one.attempts) for one in after.failures()] == [
        ("/old/y.png", "is y", 1),
        ("../z.png", "is z again", 2),
    ]
    assert not after.wrong_rows(0, 5) and not after.wrong_tables()
