"""queries: whatever people search with gives the vectors that its file gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from fake import FakeStart
from PIL import Image

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import QueryError
from rn50feat.searching.queries import Query, combined


def scores(query: object, store: FeatureStore, start: FakeStart, **settings: object) -> list[tuple[str, float]]:
    (result,) = rn50feat.search(query, store, metric="l2", start=start, **settings)  # type: ignore[arg-type]
    return [(hit.path, round(hit.score, 4)) for hit in result.hits]


def test_an_image_in_memory_is_like_its_file(store: FeatureStore, start: FakeStart) -> None:
    path = store.path.parent / store.paths()[0]
    expected = scores(path, store, start)
    with Image.open(path) as image:
        assert scores(image, store, start) == expected
        assert scores(np.asarray(image.convert("RGB")), store, start) == expected
    assert scores(store.features(0), store, start) == expected
    assert scores(store.features([0]), store, start) == expected


def test_a_mode_that_png_lacks(store: FeatureStore, start: FakeStart) -> None:
    with Image.open(store.path.parent / store.paths()[0]) as image:
        assert scores(image.convert("CMYK"), store, start)


def test_only_what_is_in_memory_needs_a_temporary_folder(
    store: FeatureStore, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(store.path.parent / "missing"))
    path = store.path.parent / store.paths()[0]
    assert scores(path, store, start)
    with Image.open(path) as image, pytest.raises(QueryError, match="temporary file .*: set TMPDIR to a folder"):
        rn50feat.search(image, store, start=start)


def test_a_folder_stands_for_its_images(store: FeatureStore, start: FakeStart) -> None:
    folder = store.path.parent / "pictures"
    (folder / "notes.txt").write_text("no image")
    results = rn50feat.search(folder, store, k=1, metric="l2", start=start)
    assert sorted(result.query for result in results) == sorted(str(store.path.parent / path) for path in store.paths())
    assert all(result.hits[0].score == 0 and result.location == result.query for result in results)
    (folder.parent / "none").mkdir()
    with pytest.raises(QueryError, match="none has no images: name an image, or a folder with some"):
        rn50feat.search(folder.parent / "none", store, start=start)


def test_a_box_is_the_part_that_counts(store: FeatureStore, start: FakeStart, tmp_path: Path) -> None:
    whole = Image.new("RGB", (40, 30), (200, 10, 10))
    whole.paste((10, 10, 200), (20, 10, 32, 22))
    whole.save(tmp_path / "whole.png")
    Image.new("RGB", (12, 12), (10, 10, 200)).save(tmp_path / "part.png")
    expected = scores(tmp_path / "part.png", store, start)
    assert scores(tmp_path / "whole.png", store, start, box=(20, 10, 12, 12)) == expected
    assert scores(whole, store, start, box=(20, 10, 12, 12)) == expected
    assert scores(whole, store, start) != expected
    for box in ((-1, 0, 5, 5), (0, 0, 41, 5), (0, 0, 0, 5)):
        with pytest.raises(QueryError, match="whole.png has 40x30 pixels, and .* is not inside: choose another"):
            rn50feat.search(tmp_path / "whole.png", store, box=box, start=start)


def test_several_images_as_one_query_and_images_to_avoid(store: FeatureStore, start: FakeStart) -> None:
    paths = [store.path.parent / path for path in store.paths()[:3]]
    rows = store.features(slice(3)).astype(np.float64)
    every = store.features(slice(None)).astype(np.float64)

    def expected(vector: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
        return sorted(np.linalg.norm(every - vector, axis=1).round(4).tolist())

    together = scores(paths[:2], store, start, together=True)
    assert [score for _, score in together] == pytest.approx(expected(rows[:2].mean(axis=0)), abs=1e-3)
    avoiding = scores(paths[0], store, start, unlike=paths[1:])
    assert [score for _, score in avoiding] == pytest.approx(expected(2 * rows[0] - rows[1:].mean(axis=0)), abs=1e-3)
    (result,) = rn50feat.search(paths[:2], store, together=True, exclude_self=True, start=start)
    assert not {hit.path for hit in result.hits} & set(store.paths()[:2])
    assert result.query == f"{paths[0]} + {paths[1]}"


def test_cosine_takes_all_vectors_at_length_one() -> None:
    vectors = np.zeros((3, 2048), np.float32)
    vectors[0, 0], vectors[1, 1], vectors[2, 0] = 5, 1, 9
    first, second, third = (Query("vector", vector=vector) for vector in vectors)
    found = combined([first, second], [third], "cosine", together=True)
    assert found[0, :2].tolist() == [2 * 0.5 - 1, 1.0]


@pytest.mark.parametrize(
    "query",
    [np.zeros(7), np.full(2048, np.nan), np.full(2048, 1e300), np.zeros((2, 2, 2048)), np.zeros((4, 4), np.int64)],
)
def test_arrays_that_are_no_queries(store: FeatureStore, start: FakeStart, query: object) -> None:
    with pytest.raises(QueryError, match="an array of shape"):
        rn50feat.search(query, store, start=start)  # type: ignore[arg-type]


def test_a_query_that_cannot_be_used_costs_only_its_own_hits(
    store: FeatureStore, start: FakeStart, tmp_path: Path
) -> None:
    good, broken = store.locate(store.paths()[0]), tmp_path / "broken.png"
    broken.write_text("text")
    given = [good, tmp_path / "none.png", np.zeros(7), broken, good]
    errors: list[QueryError] = []
    results = rn50feat.search(given, store, start=start, on_failure=errors.append)
    assert [result.query for result in results] == [str(good)] * 2
    assert [str(error).partition(" ")[0] for error in errors] == [str(tmp_path / "none.png"), "an", str(broken)]
    for together in (given, [good, broken]):
        with pytest.raises(QueryError):
            rn50feat.search(together, store, start=start, on_failure=errors.append, together=True)
    with pytest.raises(QueryError, match="none.png"):
        rn50feat.search(good, store, start=start, on_failure=errors.append, unlike=[tmp_path / "none.png"])
    assert len(errors) == 3
