"""search: the right neighbours in the right order, whatever the size of the blocks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import ProvenanceError, QueryError, WeightsError
from rn50feat.model.weights import hash_file
from rn50feat.searching.search import Result, search_stored


@pytest.fixture
def pink(tmp_path: Path) -> Path:
    path = tmp_path / "pink.png"
    path.write_bytes(encoded(Image.new("RGB", (20, 20), (255, 128, 128)), "PNG"))
    return path


def names(result: Result) -> list[str]:
    return [Path(hit.path).stem for hit in result.hits]


def test_a_picture_finds_the_most_similar_first(store: FeatureStore, pink: Path, start: FakeStart) -> None:
    (result,) = rn50feat.search(pink, store, start=start)
    assert names(result) == ["white", "z", "red", "blue", "green"]
    assert [hit.rank for hit in result.hits] == [1, 2, 3, 4, 5]
    assert result.hits[2].score == pytest.approx(255 / np.linalg.norm([255, 128, 128]))
    assert Path(result.hits[2].location) == store.path.parent / "pictures/red.png"
    assert result.hits[2].id == 0


@pytest.mark.parametrize(
    ("metric", "expected", "score"),
    [
        ("cosine", ["white", "z"], (255 + 128 + 128) / np.sqrt(3) / np.linalg.norm([255, 128, 128])),
        ("ip", ["white", "red"], 255 * (255 + 128 + 128)),
        ("l2", ["z", "white"], np.linalg.norm([159, 32, 0])),
    ],
)
def test_metrics(
    store: FeatureStore, pink: Path, start: FakeStart, metric: str, expected: list[str], score: float
) -> None:
    (result,) = rn50feat.search(pink, store, start=start, metric=metric, k=2)
    assert names(result) == expected
    assert result.hits[0].score == pytest.approx(score)


def test_a_threshold_ends_the_hits(store: FeatureStore, pink: Path, start: FakeStart) -> None:
    (result,) = rn50feat.search(pink, store, start=start, min_score=0.8)
    assert names(result) == ["white", "z", "red"]
    with pytest.raises(QueryError, match="l2 is a distance"):
        rn50feat.search(pink, store, start=start, min_score=0.8, metric="l2")


def test_many_queries_come_back_in_their_order(store: FeatureStore, pictures: Path, start: FakeStart) -> None:
    queries = [pictures / name for name in ("sub/blue.png", "red.png", "sub/blue.png")]
    results = rn50feat.search(queries, store, start=start, k=1)
    assert [result.query for result in results] == [str(query) for query in queries]
    assert [names(result) for result in results] == [["blue"], ["red"], ["blue"]]


def test_a_stored_picture_is_not_touched(store: FeatureStore, pictures: Path) -> None:
    shutil.rmtree(pictures)
    (result,) = search_stored(["pictures/red.png"], store, k=2)
    assert names(result)[0] == "red"
    assert result.hits[0].score == pytest.approx(1)
    with pytest.raises(QueryError, match="has no image red.png"):
        search_stored(["red.png"], store)


def test_the_query_itself_can_be_left_out(store: FeatureStore, pictures: Path, start: FakeStart) -> None:
    shutil.copy(pictures / "red.png", pictures / "copy.png")
    rn50feat.extract(pictures, store.path, start=start)
    for queries, search in ((pictures / "red.png", rn50feat.search), (["pictures/red.png"], search_stored)):
        more = {"start": start} if search is rn50feat.search else {}
        (result,) = search(queries, store, exclude_self=True, **more)
        assert "red" not in names(result)
        assert names(result)[0] == "copy"  # another file with the same bytes is a finding, not the query
    outside = pictures.parent / "elsewhere.png"
    shutil.copy(pictures / "red.png", outside)
    (result,) = rn50feat.search(outside, store, exclude_self=True, start=start)
    assert {"red", "copy"}.isdisjoint(names(result))


def test_hits_whose_picture_is_missing_or_has_changed_are_marked(store: FeatureStore, pictures: Path) -> None:
    (pictures / "white.png").unlink()
    (pictures / "z.png").write_text("another")
    (result,) = search_stored(["pictures/red.png"], store)
    assert {Path(hit.path).stem: hit.state for hit in result.hits} == {
        **dict.fromkeys(("red", "blue", "green"), "present"), "white": "missing", "z": "changed",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("none.png", "none.png cannot be found: No such file"),
        ("text.png", "text.png is not an image"),
    ],
)
def test_a_query_that_is_no_picture_is_named(
    store: FeatureStore, tmp_path: Path, start: FakeStart, query: str, reason: str
) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(QueryError, match=reason):
        rn50feat.search(tmp_path / query, store, start=start)


def test_weights_that_moved_are_asked_for_and_checked(
    pictures: Path, start: FakeStart, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded, weights, moved = weights, tmp_path / "weights.pth", tmp_path / "moved.pth"
    shutil.copy(seeded, weights)
    monkeypatch.setattr("fake.FakeBackend.__init__.__defaults__", (hash_file(weights),))
    store = tmp_path / "out.h5"
    rn50feat.extract(pictures, store, weights=str(weights), start=start)
    query = pictures / "red.png"
    assert names(rn50feat.search(query, store, k=1, start=start)[0]) == ["red"]
    weights.rename(moved)
    with pytest.raises(WeightsError, match="weights.pth .* is no longer at .*: name the file with --weights FILE"):
        rn50feat.search(query, store, start=start)
    assert names(rn50feat.search(query, store, k=1, weights_file=str(moved), start=start)[0]) == ["red"]
    shutil.copy(seeded, weights)
    with open(weights, "ab") as file:
        file.write(b"other weights")
    with pytest.raises(WeightsError, match="has changed since the store was made"):
        rn50feat.search(query, store, start=start)
    with pytest.raises(ProvenanceError, match="holds features with weights .* you asked for weights.pth"):
        rn50feat.search(query, store, weights_file=str(weights), start=start)
    # A run that names the new place notes it.
    weights.unlink()
    rn50feat.extract(pictures, store, weights=str(moved), start=start)
    assert names(rn50feat.search(query, store, k=1, start=start)[0]) == ["red"]
