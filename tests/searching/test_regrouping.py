"""What to keep comes first, and what is only similar leaves its group."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Run
from fake import FakeStart
from PIL import ImageOps
from scenes import encoded, scene

from rn50feat import duplicates, extract
from rn50feat.cli.main import main
from rn50feat.errors import QueryError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--exact", "--verify"], "--exact cannot be combined with --verify: copies need no comparison."),
        (["--pairs", "--verify"], "--pairs cannot be combined with --verify: only groups are verified."),
    ],
)
def test_options_that_make_no_sense_together(arguments: list[str], fault: str) -> None:
    done = CliRunner().invoke(main, ["duplicates", *arguments])
    assert (done.exit_code, fault in done.output) == (2, True)


@pytest.fixture
def mixed(tmp_path: Path, start: FakeStart) -> Path:
    """A store of two scenes, which the fake network takes for one, with a version of each that is larger or older."""
    one, other = scene(1, 160, 120), scene(2, 160, 120)
    files = {
        "one.png": encoded(one, "PNG"),
        "one-small.png": encoded(one.resize((80, 60)), "PNG"),
        "one-grey.jpg": encoded(ImageOps.grayscale(one)),
        "one-large.jpg": encoded(one.resize((320, 240)), quality=30),
        "masters/other.jpg": encoded(other, quality=90),
        "other-crop.jpg": encoded(other.crop((20, 10, 150, 110)), quality=70),
    }
    for i, (name, data) in enumerate(files.items()):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (1_700_000_000 - i,) * 2)
    shutil.copy(tmp_path / "images/masters/other.jpg", tmp_path / "images/copy.jpg")
    extract(tmp_path / "images", tmp_path / "out.h5", weights="random", start=start)
    return tmp_path / "out.h5"


def members(store: Path, **settings: object) -> list[dict[str, tuple[str | None, str]]]:
    """Return the relation of each member of each group, and why it is kept."""
    groups = duplicates(store, threshold=0.5, **settings)  # type: ignore[arg-type]
    return [{m.path.removeprefix("images/"): (m.relation, m.kept) for m in group.members} for group in groups]


def test_images_that_are_only_similar_leave_and_form_their_own_group(mixed: Path) -> None:
    ((*_,),) = members(mixed)
    first, second = members(mixed, verify=True)
    assert first == {
        "one.png": (None, "first"),
        "one-large.jpg": ("resized", "more pixels"),
        "one-small.png": ("resized", ""),
        "one-grey.jpg": ("edited", "edited"),
    }
    assert second == {
        "copy.jpg": (None, "first"),
        "masters/other.jpg": ("same bytes", ""),
        "other-crop.jpg": ("cropped", ""),
    }
    assert Path(mixed).with_suffix(".relations").exists()


@pytest.mark.parametrize(
    ("keep", "firsts"),
    [
        ("largest", ["one-large.jpg", "copy.jpg"]),
        ("oldest", ["one-large.jpg", "other-crop.jpg"]),
        ("*masters/*", ["masters/other.jpg", "one.png"]),
    ],
)
def test_what_to_keep_comes_first(mixed: Path, keep: str, firsts: list[str]) -> None:
    groups = members(mixed, verify=True, keep=keep)
    assert sorted(next(iter(group)) for group in groups) == sorted(firsts)
    if keep == "oldest":
        assert {path: kept for group in groups for path, (_, kept) in group.items() if "other" in path} == {
            "other-crop.jpg": "first",
            "masters/other.jpg": "more pixels",
        }


def test_all_that_match_a_pattern_stay(mixed: Path) -> None:
    (group,) = members(mixed, keep="*.png")
    assert {name: kept for name, (_, kept) in group.items() if name.endswith(".png")} == {
        "one.png": "first",
        "one-small.png": "to keep",
    }
    (group,) = members(mixed, exact=True, keep="images/masters/*")
    assert group == {"masters/other.jpg": (None, "first"), "copy.jpg": (None, "")}
    with pytest.raises(QueryError, match=r"--keep nothing\* matches no image in a group: check the pattern"):
        members(mixed, keep="nothing*")


def test_images_that_cannot_be_compared_are_counted(mixed: Path) -> None:
    (mixed.parent / "images/one-grey.jpg").unlink()
    (mixed.parent / "images/one-small.png").write_bytes(b"changed")
    assert duplicates(mixed, threshold=0.5, verify=True).uncompared == 2


def test_relations_in_every_form(mixed: Path, rn50feat: Run) -> None:
    at = ["duplicates", "--threshold", "0.5", "--verify"]
    lines = [line.split("\t") for line in rn50feat(*at).stdout.splitlines()]
    assert [(line[0], Path(line[3]).name, *line[4:]) for line in lines][4:] == [
        ("2", "copy.jpg", "", ""),
        ("2", "other.jpg", "", "same bytes"),
        ("2", "other-crop.jpg", "", "cropped"),
    ]
    done = rn50feat(*at, "--rest")
    assert {Path(line).name for line in done.stdout.splitlines()} == {"one-small.png", "other.jpg", "other-crop.jpg"}
    assert "2 of them are not copies of the first image: 1 cropped, 1 resized" in done.stderr
    result = json.loads(rn50feat(*at, "--json", "--html", "page.html").stdout)
    assert (result["verified"], result["uncompared"]) == (True, 0)
    assert result["groups"][1]["members"][2]["relation"] == "cropped"
    assert '<p class="same">cropped</p>' in (mixed.parent / "page.html").read_text()


def test_without_opencv_the_error_names_the_extra(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("relations", "alignment", "guesses"):
        monkeypatch.delitem(sys.modules, f"rn50feat.searching.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(QueryError, match=r"--verify needs OpenCV: pip install 'rn50feat\[verify\]'"):
        members(mixed, verify=True)
