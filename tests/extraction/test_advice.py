"""advice: a run over images that have moved says so, and following it leaves one row for each image."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake import FakeStart
from stores import store
from trees import COUNT, extract, ids, moved

import rn50feat
from rn50feat import FeatureStore, Selection
from rn50feat.cli.main import main
from rn50feat.extraction.advice import moved_from
from rn50feat.store.summary import MovedFrom, Summary


def run(monkeypatch: pytest.MonkeyPatch, start: FakeStart, *arguments: str) -> str:
    """Run the program with a fake engine, and return what it prints for people."""
    monkeypatch.setitem(rn50feat.extract.__kwdefaults__, "start", start)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.stderr


def advised(text: str) -> list[str]:
    """Return the arguments of the last command that a text advises."""
    return shlex.split(re.findall(r"rn50feat (relocate .*)", text)[-1])


@pytest.mark.parametrize("part", ["images", "features"])
def test_following_the_advice_word_for_word_leaves_one_row_each(
    tree: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    extract(tree / "images", tree / "features/out.h5", start)
    numbers = sorted(ids(tree / "features/out.h5").values())
    there = moved(tree, part)
    images = str((there if part == "images" else tree) / "images")
    out = str((there if part == "features" else tree) / "features/out.h5")
    told = run(monkeypatch, start, "extract", images, out)
    assert f"Note: {COUNT} images look moved from " in told
    assert len(FeatureStore(out)) == 2 * COUNT
    told = run(monkeypatch, start, *advised(told))
    assert "18 rows would get new paths" in told and "18 of 18 exist there" in told and len(ids(Path(out))) == 2 * COUNT
    assert "18 rows got new paths" in run(monkeypatch, start, *advised(told))
    assert sorted(ids(Path(out)).values()) == numbers
    told = run(monkeypatch, start, "extract", images, out)
    assert f"{COUNT} unchanged, 1 failed before" in told and "Note: 18" not in told
    assert not rn50feat.verify(out, sources=True).findings


def test_programs_are_told_too(tree: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tree / "features/out.h5"
    extract(tree / "images", out, start)
    images = moved(tree, "images") / "images"
    monkeypatch.setitem(rn50feat.extract.__kwdefaults__, "start", start)
    done = CliRunner().invoke(main, ["extract", str(images), str(out), "--json"])
    assert json.loads(done.stdout)["moved_from"] == {"images": 18, "old": str(tree / "images"), "new": str(images)}


def test_copies_are_not_moved(tree: Path, start: FakeStart) -> None:
    out = tree / "features/out.h5"
    extract(tree / "images", out, start)
    shutil.copytree(tree / "images", tree / "copy")
    summary = extract(tree / "copy", out, start)
    assert (summary.reused, summary.moved_from) == (COUNT, None)
    (tree / "copy2").mkdir()
    for path in (tree / "images/odd").iterdir():  # a few that have moved
        path.rename(tree / "copy2" / path.name)
    assert extract(tree / "copy2", out, start).moved_from is None


@pytest.mark.parametrize(
    ("old", "new", "prefixes"),
    [
        ("/old/{}.png", "/new/{}.png", ("/old", "/new")),
        ("/images/{}.png", "/mnt/images/{}.png", ("/images", "/mnt/images")),
        ("/data/images/{}/x.png", "/data/kept/images/{}/x.png", ("/data/images", "/data/kept/images")),
        ("/old/{}/x.png", "/new/{}/x.png", ("/old", "/new")),
        ("/old/a.tar::i/{}.png", "/new/a.tar::i/{}.png", ("/old", "/new")),
        ("/old/a.tar::i/{}.png", "/old/b.tar::i/{}.png", ("/old/a.tar", "/old/b.tar")),
        ("/old/a.tar::{}.png", "/old/b.tar::{}.png", ("/old/a.tar", "/old/b.tar")),
    ],
)
def test_the_prefixes_hold_all_that_moved_and_no_more(
    tmp_path: Path, old: str, new: str, prefixes: tuple[str, str]
) -> None:
    (tmp_path / "empty").mkdir()
    rows = [(old.format(i), 1, i) for i in range(1, 13)] + [("/data/other.png", 1, 99)]
    out = store(tmp_path / "s/t/out.h5", rows + [(new.format(i), 2, i) for i in range(1, 13)])
    told = moved_from(FeatureStore(out), Selection([tmp_path / "empty"]), 13, Summary(reused=12, unchanged=12))
    assert told == MovedFrom(12, *prefixes)
    assert moved_from(FeatureStore(out), Selection([tmp_path / "empty"]), 13, Summary(reused=12, unchanged=13)) is None
