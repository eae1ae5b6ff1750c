"""salvage: what can be read of a damaged store is saved, and everything else is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import Result
from conftest import rows
from fake import FakeStart
from stores import store, values

from rn50feat import FeatureStore, extract, verify
from rn50feat.errors import DamagedStoreError
from rn50feat.searching.search import search_stored
from rn50feat.store import salvage
from rn50feat.store.compact import Compacted, compact
from rn50feat.store.writer import open_store


@pytest.fixture
def path(shades: Path, start: FakeStart) -> Path:
    """A store of twenty images, and one that failed."""
    (shades / "bad.png").write_text("text")
    extract(shades, shades.parent / "out.h5", weights="random", start=start)
    return shades.parent / "out.h5"


def zero(path: Path, start: int, length: int) -> None:
    """Overwrite a part of a file with zeros."""
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(length))


def header(path: Path, name: str) -> int:
    """Return where the header of a dataset or group is in its file."""
    with h5py.File(path) as file:
        return int(h5py.h5o.get_info(file[name].id).addr)


def saved(path: Path, shades: Path) -> Compacted:
    """Salvage a store; what is saved is sound, is part of what there was, and an extract adds the rest."""
    with pytest.raises(DamagedStoreError, match="out.h5 is damaged .*compact .*out.h5 --to"):
        compact(path)
    done = compact(path, path.parent / "new.h5")
    assert verify(done.path).findings == []
    for name, row in rows(done.path).items():
        assert row[0] == int(Path(name).stem)
    extract(shades, done.path, weights="random", start=FakeStart())
    assert len(FeatureStore(done.path)) == 20 and len(FeatureStore(done.path).failures()) == 1
    assert verify(done.path).findings == []
    return done


def test_a_damaged_heap_of_paths_costs_the_rows_whose_paths_it_has(tmp_path: Path) -> None:
    names = [f"{i:02}{'x' * 100}.png" for i in range(99)]
    for part in (slice(0, 50), slice(50, 99)):  # each run has a heap of its own
        path = store(tmp_path / "out.h5", [(name, int(name[:2]), int(name[:2]) + 1) for name in names[part]])
    whole = path.read_bytes()
    zero(path, whole.rindex(b"GCOL", 0, whole.index(names[70].encode())), 16)
    with pytest.raises(DamagedStoreError, match="out.h5 is damaged .*compact .*out.h5 --to"):
        FeatureStore(path).paths()
    done = compact(path, tmp_path / "new.h5")
    assert values(done.path) == {name: i + 1 for i, name in enumerate(names) if name in values(done.path)}
    assert 0 < done.lost_rows < 50 and len(values(done.path)) == 99 - done.lost_rows
    assert done.lost[0].startswith("row ") and verify(done.path).findings == []


def test_a_damaged_chunk_index_of_features_costs_all_rows(path: Path) -> None:
    whole = path.read_bytes()
    at = [i for i in range(len(whole)) if whole.startswith(b"TREE", i) and whole[i + 4] == 1]
    for start in at:
        zero(path, start, 4)
    with pytest.raises(DamagedStoreError, match="damaged .no row can be read.: restore it from a backup; without one,"):
        compact(path, path.parent / "new.h5")
    assert [file.name for file in path.parent.glob("*.h5*")] == ["out.h5"]


def test_damaged_headers_of_small_tables_cost_these(path: Path, shades: Path) -> None:
    zero(path, header(path, "failures"), 12)
    zero(path, header(path, "runs"), 12)
    assert saved(path, shades).lost == ("failures", "runs")


def test_a_damaged_list_of_checksums_costs_no_rows(path: Path, shades: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["checksums"] = "{"
    assert saved(path, shades).lost_rows == 0


def test_rows_that_differ_from_their_checksums_are_left_out(path: Path, shades: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["features"][3] = np.full(2048, 7)
        file["labels"], file.attrs["author"] = np.arange(20), "somebody"
        file["failures/reason"][0] = "is fine"
    zero(path, header(path, "archives"), 12)
    lost = FeatureStore(path).path_of(3)
    done = saved(path, shades)
    assert done.lost == (lost, "failures", "archives", "labels", "@author") and done.lost_rows == 1
    assert len(search_stored(["pictures/01.png"], done.path, k=20)[0].hits) == 20


def test_only_some_lost_rows_are_named(path: Path, shades: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salvage, "BLOCK", 3)
    with h5py.File(path, "r+") as file:
        file["size"][:19] = 1
    zero(path, header(path, "failures"), 12)
    done = saved(path, shades)
    assert done.lost_rows == 19 and len(done.lost) == salvage.NAMED + 1


def test_the_history_goes_on(path: Path) -> None:
    before = FeatureStore(path)
    ids, history = before.column("ids").tolist(), before.history()
    zero(path, header(path, "failures"), 12)
    after = FeatureStore(compact(path, path.parent / "new.h5").path)
    assert (after.id, after.column("ids").tolist(), after.next_id) == (before.id, ids, before.next_id)
    assert after.history()[:-1] == history
    with open_store(after.path):
        pass


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10]), "is a truncated HDF5 file"),
        (lambda path: zero(path, header(path, "/"), 12), "is damaged"),
        (lambda path: zero(path, header(path, "features"), 12), "is damaged"),
        (lambda path: zero(path, path.read_bytes().index(b'"weights"'), 1), "its id or provenance differs from its"),
    ],
)
def test_without_header_or_provenance_nothing_can_be_saved(
    path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(path)
    with pytest.raises(DamagedStoreError, match=f"out.h5 .*{reason}.*: restore it from a backup; without one, move it"):
        compact(path, path.parent / "new.h5")
    assert [file.name for file in path.parent.glob("*.h5*")] == ["out.h5"]


def test_the_command_says_what_is_lost(path: Path, here: Callable[..., Result]) -> None:
    zero(path, header(path, "failures"), 12)
    for command in ("compact", "verify"):
        refused = here(command, "out.h5")
        assert refused.exit_code == 1 and "out.h5 --to NEW.h5 saves what can be read" in refused.stderr
    done = here("compact", "out.h5", "--to", "new.h5")
    assert done.exit_code == 1
    assert "new.h5: 20 rows" in done.stderr
    assert "new.h5 lacks what could not be read (0 rows; failures): run rn50feat extract" in done.stderr
    told = json.loads(here("compact", "out.h5", "--to", "new.h5", "--overwrite", "--json").stdout)
    assert (told["exit_code"], told["rows"], told["lost_rows"], told["lost"]) == (1, 20, 0, ["failures"])
