"""compare: every image of the second store that is in the first, and no other, whatever the blocks."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fake import FakeStart
from PIL import ImageOps
from scenes import encoded, scene
from stores import store as made
from vectors import append, clusters, filled, hard

from rn50feat import EngineOptions, FeatureStore, compare, extract
from rn50feat.cli.main import main
from rn50feat.errors import ProvenanceError, QueryError
from rn50feat.searching import many_queries


def by_definition(first: FeatureStore, second: FeatureStore, threshold: float) -> tuple[dict[int, int], set[int]]:
    """Return the row in `first` of each row in `second` that is in it, and the others; no two files are equal."""
    both = [store.features(np.arange(len(store))).astype(np.float64) for store in (first, second)]
    both = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in both]
    cosines = both[1] @ both[0].T
    best = {row: int(line.argmax()) for row, line in enumerate(cosines) if line.max() >= threshold - 1e-6}
    return best, set(range(len(second))) - set(best)


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.985])
def test_images_are_found_as_a_product_of_all_with_all_finds_them(
    tmp_path: Path, threshold: float, many: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_queries, "size_of_blocks", lambda queries: 100)
    monkeypatch.setattr("rn50feat.searching.comparison.most", lambda k: 300 if many else 10)
    rows = np.concatenate(list(hard(900)))
    for name, part in (("a", rows[:500]), ("b", rows[500:])):
        (tmp_path / name).mkdir()
        filled(tmp_path / name / "out.h5", part[:0], "float16")
    first, second = FeatureStore(tmp_path / "a/out.h5"), FeatureStore(tmp_path / "b/out.h5")
    append(first, 0, rows[:500])
    append(second, 5000, rows[500:])
    found = compare(first, second, threshold=threshold)
    expected, new = by_definition(first, second, threshold)
    assert {match.image.id: match.original.id for match in found.found} == expected
    assert {image.id for image in found.new} == new
    assert not found.uncompared
    assert (np.diff([match.similarity for match in found.found]) < 2e-6).all()  # ties are ordered by id


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_stores_without_rows(tmp_path: Path, sizes: tuple[int, int]) -> None:
    stores = [filled(tmp_path / f"{i}.h5", clusters(40)[:size]) for i, size in enumerate(sizes)]
    found = compare(*stores)
    assert (found.found, len(found.new), found.uncompared) == ((), sizes[1], ())


def test_copies_need_no_features_and_name_the_first_of_several(tmp_path: Path) -> None:
    first = made(tmp_path / "a.h5", [("1.png", 1, 1), ("again.png", 1, 1), ("2.png", 1, 2)])
    second = made(
        tmp_path / "b/b.h5",
        [("x.png", 1, 3), ("y.png", 1, 1), ("../1.png", 1, 1)],
        weights="random:1",
        weights_sha256="6e" * 32,
    )
    found = compare(first, second, exact=True)
    assert [(m.image.path, m.original.path, m.relation, m.similarity) for m in found.found] == [
        ("y.png", "1.png", "same bytes", 1.0),
        ("../1.png", "1.png", "same bytes", 1.0),
    ]
    assert [image.path for image in found.new] == ["x.png"]
    with pytest.raises(ProvenanceError, match=r"random:0.*random:1.*--exact, which compares no features"):
        compare(first, second)


def test_two_paths_of_one_file_are_no_copies(tmp_path: Path, pictures: Path, start: FakeStart) -> None:
    os.link(pictures / "red.png", pictures / "sub/link.png")
    shutil.copy(pictures / "white.png", pictures / "sub/copy.png")
    extract(pictures, tmp_path / "a.h5", weights="random", start=start)
    extract(pictures / "sub", tmp_path / "b.h5", weights="random", start=start)
    relations = {m.image.path: m.relation for m in compare(tmp_path / "a.h5", tmp_path / "b.h5", exact=True).found}
    assert relations["pictures/sub/link.png"] == relations["pictures/sub/green.png"] == "same file"
    assert relations["pictures/sub/copy.png"] == "same file"  # it is in the first store, too
    moved = shutil.copytree(pictures, tmp_path / "moved")
    extract(moved, tmp_path / "c.h5", weights="random", start=start)
    assert {m.relation for m in compare(tmp_path / "a.h5", tmp_path / "c.h5", exact=True).found} == {"same bytes"}


def test_rows_that_cannot_be_compared_are_not_called_new(tmp_path: Path) -> None:
    first, rows = filled(tmp_path / "a.h5", clusters(40)), clusters(40, seed=1)
    rows[3] = np.nan
    rows[4] = 0
    second = filled(tmp_path / "b.h5", rows[:0])
    append(second, 100, rows)
    found = compare(first, second, threshold=1.0)
    assert [image.id for image in found.uncompared] == [3]
    assert 4 in {image.id for image in found.new}


def test_a_store_is_not_compared_with_itself(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.h5", clusters(5))
    (tmp_path / "b.h5").symlink_to(store.path)
    with pytest.raises(QueryError, match="are one store: to find what it has twice, use duplicates"):
        compare(store, tmp_path / "b.h5")
    with pytest.raises(QueryError, match="threshold 2 is not a similarity"):
        compare(store, filled(tmp_path / "c.h5", clusters(5)), threshold=2)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.h5 and test.h5, by random weights: of 20 scenes in test, 8 are in train as a version."""
    folder = tmp_path_factory.mktemp("compared")
    images = [scene(seed, 240, 180) for seed in range(24)]
    versions = {
        "copy.jpg": encoded(images[0], quality=92),
        "again.jpg": encoded(images[1], quality=60),
        "small.png": encoded(images[2].resize((180, 135)), "PNG"),
        "crop.jpg": encoded(images[3].crop((4, 3, 236, 177)), quality=88),
        "pixels.png": encoded(images[4], "PNG"),
        "pale.jpg": encoded(ImageOps.autocontrast(images[5], 2)),
    }
    train = {f"{i}.jpg": encoded(image, quality=92) for i, image in enumerate(images[:12])}
    train["4.png"] = encoded(images[4], "PNG")
    train["pixels.bmp"] = encoded(images[4], "BMP")
    test = versions | {f"{i}.jpg": encoded(image, quality=92) for i, image in enumerate(images[12:], 12)}
    options = EngineOptions(backend="torch", precision="fp32", workers=1)
    for name, files in (("train", train), ("test", test)):
        (folder / name).mkdir()
        for file, data in files.items():
            (folder / name / file).write_bytes(data)
        extract(folder / name, folder / f"{name}.h5", weights="random", options=options)
    return folder


def test_every_planted_image_is_found_and_no_other_scene(planted: Path) -> None:
    found = compare(planted / "train.h5", planted / "test.h5")
    planted_in = {match.image.path: match.original.path for match in found.found}
    planted_in.pop("test/pale.jpg", None)  # may be near or not
    names = {
        "copy.jpg": "0.jpg",
        "again.jpg": "1.jpg",
        "small.png": "2.jpg",
        "crop.jpg": "3.jpg",
        "pixels.png": "4.png",
    }
    assert planted_in == {f"test/{name}": f"train/{original}" for name, original in names.items()}
    verified = compare(planted / "train.h5", planted / "test.h5", threshold=0.9, verify=True)
    assert {match.image.path.removeprefix("test/"): match.relation for match in verified.found} == {
        "copy.jpg": "same bytes",
        "again.jpg": "re-encoded",
        "small.png": "resized",
        "crop.jpg": "cropped",
        "pixels.png": "same bytes",
        "pale.jpg": "edited",
    }
    assert (planted / "test.relations").exists()


def run(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_exits_with_1_if_an_image_is_found(tmp_path: Path) -> None:
    first = made(tmp_path / "a.h5", [("1.png", 1, 1), ("2.png", 1, 2)])
    second = made(tmp_path / "b.h5", [("x\n.png", 1, 1), ("y.png", 1, 3)])
    assert run(first, second, "--exact") == (
        1,
        "1.000000\tsame bytes\tx\\n.png\t1.png\n",
        "2 images of b.h5: 1 in a.h5 (1 copy, 0 near-identical); 1 not in it\n"
        "Note: the weights are random:0: good for trying things out, not for results\n",
    )
    assert run(first, second, "--exact", "-0", "--quiet") == (1, f"{tmp_path}/x\n.png\0", "")
    assert run(first, second, "--exact", "--new", "--quiet") == (0, "y.png\n", "")
    assert run(first, second, "--exact", "--new", "-0", "--quiet") == (0, f"{tmp_path}/y.png\0", "")
    code, text, _ = run(first, second, "--exact", "--csv")
    (row,) = csv.DictReader(io.StringIO(text))
    assert (code, row["path"], row["original_path"], row["original_id"]) == (1, "x\n.png", "1.png", "0")
    code, text, _ = run(first, second, "--exact", "--json")
    facts = json.loads(text)
    assert (code, facts["exit_code"], facts["error"], facts["images"], facts["copies"]) == (1, 1, None, 2, 1)
    assert facts["found"][0]["image"]["location"] == f"{tmp_path}/x\n.png"
    assert [image["path"] for image in facts["new"]] == ["y.png"]
    third = made(tmp_path / "c.h5", [("z.png", 1, 9)])
    assert run(first, third, "--exact", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (["a.h5"], 2, "Missing argument 'B.h5': name the store whose images to look for."),
        (["a.h5", "none.h5"], 1, "none.h5: No such file or directory: name an existing store"),
        (["a.h5", "a.h5"], 1, "are one store"),
        (["a.h5", "b.h5", "--exact", "--threshold", "0.9"], 2, "--exact cannot be combined with --threshold"),
        (["a.h5", "b.h5", "--csv", "--json"], 2, "--json and --csv cannot be combined"),
        (["a.h5", "b.h5", "--html", "a.h5"], 1, "does not end in .html"),
    ],
)
def test_mistakes_get_one_line(
    tmp_path: Path, arguments: list[str], code: int, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        made(tmp_path / f"{name}.h5", [("1.png", 1, 1)])
    found, out, err = run(*arguments)
    assert (found, fault in out + err) == (code, True), out + err
