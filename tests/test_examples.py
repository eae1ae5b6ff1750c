"""The examples of what scikit-learn does with features run on drawn stores, and find what is planted."""

from __future__ import annotations

import os
import re
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake import FakeStart
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.images.provenance import Provenance
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import create_store

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
ODD = os.fsdecode(b"dogs/odd\xff.jpg")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three folders with 12 scenes each, a copy of each scene, a cat among the dogs, and an outlier."""
    path = tmp_path_factory.mktemp("drawn") / "out.h5"
    rng = np.random.default_rng(1)
    rows, names = [], []
    centres = rng.random((3, 2048))
    for label, centre in zip(("birds", "cats", "dogs"), centres):
        for i in range(12):
            rows.append(centre + 0.4 * rng.random(2048))
            rows.append(rows[-1] * 1.001)
            names += [f"{label}/{i}.jpg", f"{label}/{i}-copy.jpg"]
    rows += [centres[1] + 0.4 * rng.random(2048), 5 * rng.random(2048) ** 4]
    names += [ODD, "birds/outlier.jpg"]
    with create_store(path, Provenance("random:0", "00"), np.dtype("float32")) as writer:
        files = [Reference(str(path.parent / name), 9, 9, i.to_bytes(16, "big")) for i, name in enumerate(names)]
        writer.append(files, np.array(rows, np.float32))
    return path


def printed(
    script: str, arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_folders_are_classified_and_the_wrong_label_is_found(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed("classify_by_folder.py", [drawn], monkeypatch, capsys)
    for line, name in zip(lines, ("k-NN", "linear probe")):
        (share,) = re.findall(rf"^{name}: (\d\.\d+) of 74 images are put into their folders", line)
        assert float(share) > 0.95
    assert [line.split()[-1] for line in lines[2:5]] == ["'birds'", "'cats'", "'dogs'"]
    assert sum(int(number) for line in lines[2:5] for number in line.split()[:3]) == 74
    assert any(line.endswith(f"'cats'  {ODD!r}") for line in lines[5:])


def test_near_duplicates_stay_on_one_side_of_a_split(drawn: Path) -> None:
    store = FeatureStore(drawn)
    scenes = rn50feat.duplicates(store).scenes(store.column("ids"))
    assert (scenes[0:72:2] == scenes[1:72:2]).all() and len(set(scenes)) == 38


def test_labels_that_cannot_be_classified_are_one_line(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="has fewer than two folders with 30 different images: try another --level"):
        printed("classify_by_folder.py", [drawn, "--folds", 30], monkeypatch, capsys)


def test_the_confusion_matrix_is_drawn(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLBACKEND", "agg")
    printed("classify_by_folder.py", [drawn, "--plot", tmp_path / "plot.png"], monkeypatch, capsys)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_diverse_subset_has_an_image_of_each_kind(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, last = printed("pick_diverse.py", [drawn, 4], monkeypatch, capsys)
    picked = [FeatureStore(drawn).rows_of([line.split("'")[1]])[0] or 0 for line in lines]
    assert len(picked) == 4 and {min(row // 24, 3) + (row == 73) for row in picked} == {0, 1, 2, 4}
    vectors = np.asarray(FeatureStore(drawn))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    coverage = (vectors @ vectors[picked].T).max(axis=1).min()
    assert float(last.split()[8]) == pytest.approx(coverage, abs=1e-3)
    everything = printed("pick_diverse.py", [drawn, 99], monkeypatch, capsys)
    assert len(everything) == 75 and everything[-1].startswith("every image has a cosine of at least 1.0000")


def test_the_outlier_is_first(drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("find_outliers.py", [drawn, "--top", 3], monkeypatch, capsys)
    assert len(lines) == 3 and lines[0].endswith("'birds/outlier.jpg'")


def test_a_folder_is_explored_from_images_to_a_map(
    tmp_path: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The features are colours here: a class has one, in shades that are no near-duplicates."""
    for i in range(12):
        for label, color in (("red", (200, 15 * i, 0)), ("sea", (0, 15 * i, 200))):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{i}.png").write_bytes(encoded(Image.new("RGB", (9, 9), color), "PNG"))
    monkeypatch.setattr(rn50feat, "extract", partial(rn50feat.extract, start=start))
    lines = printed("explore_folder.py", [tmp_path, "random"], monkeypatch, capsys)
    assert "24 rows of 2048" in lines[0] and lines[1] == "{'red': 12, 'sea': 12}"
    assert float(lines[2].removeprefix("k-NN accuracy ")) > 0.9
    assert (tmp_path / "map.png").exists() or set("".join(lines[3:])) == set("rs ")
