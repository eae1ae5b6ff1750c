"""prune: rows go whose images are gone, and no others."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, rows
from fake import FakeStart, extract
from PIL import Image
from scenes import encoded
from stores import stored

import rn50feat
from rn50feat import FeatureStore
from rn50feat.cli.report import preview_line
from rn50feat.errors import PruneError
from rn50feat.extraction.preview import preview
from rn50feat.store import session


def test_prune_removes_what_is_gone_and_only_there(shades: Path, start: FakeStart) -> None:
    other = shades.parent / "other"
    shutil.copytree(shades, other)
    (shades / "bad.png").write_text("no picture")
    store = shades.parent / "out.h5"
    rn50feat.extract([shades, other], store, weights="random", start=start)
    for path in (shades / "03.png", shades / "19.png", shades / "bad.png", other / "00.png"):
        path.unlink()
    assert extract(shades, start).removed == 0
    assert len(FeatureStore(store)) == 40
    assert extract(shades, start, prune=True).removed == 2
    after = rows(store)
    assert {"pictures/03.png", "pictures/19.png"}.isdisjoint(after)
    assert "other/00.png" in after  # not under this run's sources
    assert len(after) == 38
    assert all(int(row[0]) == int(Path(path).stem) for path, row in after.items())
    assert FeatureStore(store).failures() == []
    assert len(set(FeatureStore(store).column("ids"))) == 38
    # A file that comes back is found again, under a new id.
    shutil.copy(other / "03.png", shades / "03.png")
    assert extract(shades, start).reused == 1
    assert max(FeatureStore(store).column("ids")) == 40
    assert FeatureStore(store).rows_of(["pictures/03.png"]) == [38]


@pytest.mark.parametrize("gone", [[0], [19], [0, 1, 2], [17, 18, 19], [0, 5, 18], list(range(19)), [1, 3, 5, 7, 16]])
def test_rows_stay_dense_whichever_go(
    shades: Path, start: FakeStart, gone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(shades, start)
    for i in gone:
        (shades / f"{i:02}.png").unlink()
    monkeypatch.setattr(session, "PORTION", 2)
    assert extract(shades, start, prune=True, force=True).removed == len(gone)
    assert stored(shades.parent) == {f"{i:02}.png": i for i in range(20) if i not in gone}
    assert rn50feat.verify(shades.parent / "out.h5").findings == []


def test_prune_in_a_run_that_adds_rows(shades: Path, start: FakeStart) -> None:
    extract(shades, start)
    (shades / "04.png").unlink()
    (shades / "new.png").write_bytes(encoded(Image.new("RGB", (9, 8), (1, 2, 3)), "PNG"))
    summary = extract(shades, start, prune=True)
    assert (summary.new, summary.removed, summary.unchanged) == (1, 1, 19)
    assert {"pictures/04.png", "pictures/new.png"} & rows(shades.parent / "out.h5").keys() == {"pictures/new.png"}


def test_prune_refuses_what_looks_like_a_mistake(shades: Path, start: FakeStart) -> None:
    extract(shades, start)
    for i in range(5):
        (shades / f"{i:02}.png").unlink()
    with pytest.raises(PruneError, match="5 of the 20 rows .* more than 20 %: use --force"):
        extract(shades, start, prune=True)
    assert len(FeatureStore(shades.parent / "out.h5")) == 20
    assert extract(shades, start, prune=True, prune_limit=25).removed == 5
    for path in shades.iterdir():
        path.unlink()
    with pytest.raises(PruneError, match="pictures is empty: mount it"):
        extract(shades, start, prune=True, prune_limit=100)
    assert len(FeatureStore(shades.parent / "out.h5")) == 15
    assert extract(shades, start, prune=True, force=True).removed == 15


def test_images_that_moved_are_not_lost(shades: Path, start: FakeStart) -> None:
    extract(shades, start)
    for i in range(12):
        (shades / f"{i:02}.png").rename(shades / f"moved{i:02}.png")
    expected = preview(shades, shades.parent / "out.h5", prune=True)
    assert (expected.remove, expected.moved) == (12, 12)
    assert "12 to remove (12 of them may only have moved);" in preview_line(expected)
    summary = extract(shades, start, prune=True)
    assert (summary.reused, summary.moved, summary.removed) == (12, 12, 0)
    assert len(stored(shades.parent)) == 20
    other, store = shades.parent / "other", shades.parent / "out.h5"
    other.mkdir()
    for i in range(4):
        (shades / f"moved{i:02}.png").rename(other / f"again{i:02}.png")
    for i in range(5, 10):
        (shades / f"moved{i:02}.png").unlink()
    assert rn50feat.extract(other, store, start=start).moved == 0  # it does not look where they were
    with pytest.raises(PruneError, match="5 of the 20 rows under these sources would go, not counting 4 that moved,"):
        extract(shades, start, prune=True)
    assert len(stored(shades.parent)) == 24
    assert extract(shades, start, prune=True, prune_limit=25).removed == 9


def test_a_copy_elsewhere_keeps_content_and_a_copy_that_goes_too_does_not(shades: Path, start: FakeStart) -> None:
    other = shades.parent / "other"
    shutil.copytree(shades, other)
    rn50feat.extract([shades, other], shades.parent / "out.h5", weights="random", start=start)
    for folder in (shades, other):
        for i in range(5):
            (folder / f"{i:02}.png").unlink()
    with pytest.raises(PruneError, match="10 of the 40 rows under these sources would go, more"):
        rn50feat.extract([shades, other], shades.parent / "out.h5", start=start, prune=True)
    assert extract(shades, start, prune=True).removed == 5  # as things are, the other rows stay


def test_a_source_whose_images_all_moved_may_be_empty(shades: Path, start: FakeStart) -> None:
    extract(shades, start)
    other, store = shades.parent / "other", shades.parent / "out.h5"
    shades.rename(other)
    shades.mkdir()
    with pytest.raises(PruneError, match="pictures is empty: mount it"):
        extract(shades, start, prune=True)
    assert rn50feat.extract([shades, other], store, start=start, prune=True).removed == 20
    with pytest.raises(PruneError, match="pictures is empty: mount it"):
        extract(shades, start, prune=True)


def test_rows_of_unknown_content_never_count_as_moved(shades: Path, start: FakeStart) -> None:
    store = shades.parent / "out.h5"
    extract(shades, start)
    np.save(shades.parent / "rows.npy", np.ones((5, 2048), np.float32))
    names = [f"{shades}/none{i}.png" for i in range(4)] + ["/elsewhere.png"]
    (shades.parent / "rows.paths.txt").write_text("\n".join(names))
    rn50feat.import_features(shades.parent / "rows.npy", store, weights="random")
    with pytest.raises(PruneError, match="4 of the 24 rows"):
        extract(shades, start, prune=True, prune_limit=10)


def test_a_refused_prune_tells_what_was_done_all_the_same(rn50feat: Run, shades: Path, start: FakeStart) -> None:
    extract(shades, start)
    for i in range(5, 20):
        (shades / f"{i:02}.png").unlink()
    done = rn50feat("extract", "pictures", "out.h5", "--prune", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["unchanged"] == 5
    assert "out.h5: 5 unchanged, in" in done.stderr
    assert "Error: nothing was pruned: 15 of the 20 rows" in done.stderr


def test_a_folder_that_cannot_be_searched_proves_nothing(
    shades: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(shades, start)
    shutil.move(shades / "04.png", shades.parent)
    stat = os.stat

    def forbidden(path: object, **settings: object) -> os.stat_result:
        if isinstance(path, str) and path.endswith("04.png"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, **settings)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(os, "stat", forbidden)
    assert extract(shades, start, prune=True).removed == 0


def test_an_unmounted_mirror_is_not_a_move(shades: Path, tmp_path: Path, start: FakeStart) -> None:
    """Its images have copies, which were there before: the rows of the mirror stay."""
    mirror = tmp_path / "mirror"
    shutil.copytree(shades, mirror)
    rn50feat.extract([shades, mirror], tmp_path / "out.h5", weights="random", start=start)
    shutil.rmtree(mirror)
    mirror.mkdir()
    with pytest.raises(PruneError, match="mirror is empty: mount it"):
        rn50feat.extract([shades, mirror], tmp_path / "out.h5", prune=True, start=start)
    assert len(FeatureStore(tmp_path / "out.h5")) == 40
