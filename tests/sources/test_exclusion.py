"""exclusion: what is left out of a run, in folders, lists, archives and remote storage."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from conftest import Run, rows
from fake import FakeStart
from packing import packed
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore
from rn50feat.errors import PruneError, SourceError
from rn50feat.extraction.preview import preview
from rn50feat.sources.archive import Archive
from rn50feat.sources.exclusion import LEFTOVERS, Excluded, Exclusion
from rn50feat.sources.selection import Selection
from rn50feat.store.summary import Summary

NAS = ("@eaDir/red.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.png", "sub/.thumbnails/green.png", "lost+found/#12.png")


def image(red: int) -> bytes:
    return encoded(Image.new("RGB", (9, 9), (red, 1, 0)), "PNG")


@pytest.fixture
def nas(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of five images, with four more in what a NAS and a desktop leave behind."""
    monkeypatch.chdir(pictures.parent)
    for number, name in enumerate(NAS):
        path = pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    return pictures


def extract(sources: object, start: FakeStart, *patterns: str, listing: object = None, **settings: object) -> Summary:
    selection = Selection(sources, exclude=patterns, listing=listing)  # type: ignore[arg-type]
    return rn50feat.extract(selection, "out.h5", weights="random", start=start, **settings)  # type: ignore[arg-type]


def names() -> set[str]:
    return set(rows(Path("out.h5")))


# Rules


def test_every_leftover_is_left_out_wherever_it_lies_and_nothing_like_it(tmp_path: Path) -> None:
    rules = Exclusion()
    for pattern in LEFTOVERS:
        name = pattern.removeprefix("**/").replace("[#]", "#").replace("[0-9][0-9][0-9]", "007").replace("*", "1000")
        for above in ("", "a/", "a/b/"):
            assert rules.rule_of_folder(f"{above}{name[:-1]}") == pattern
            assert rules.rule(f"{above}{name}x.jpg") == rules.rule(f"{above}{name}deeper/x.jpg") == pattern
            assert rules.rule(f"{above}{name[:-1]}") is None  # a file of that name
            assert rules.rule(f"{above}not{name}x.jpg") is None
    assert rules.rule("a\nb/@eaDir/c\nd.jpg") == "@eaDir/"
    assert rules.rule("photos.zip::lost+found/x.jpg") == "lost+found/"
    assert rules.rule("/" * 4000 + "@eaDir/x") == "@eaDir/"


def test_the_rules_are_those_of_git(tmp_path: Path) -> None:
    files = [
        f"{folder}{name}" for folder in ("", "a/", "b/", "a/b/", "b/a/", "a/b/a/") for name in ("c.jpg", "x", "d x")
    ]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    rng = random.Random(0)
    parts = ["a", "b", "*", "*.jpg", "c.jpg", "x", "?", "[ab]", "[!a]", "a*", r"d\ x", "d x"]
    families: list[tuple[str, ...]] = [
        ("/*", "!/a/"),
        ("*.jpg", "!a/"),
        ("a/*", "!a/b/"),
        ("b/", "!b/c.jpg"),
        ("**", "!**"),
    ]
    for _ in range(40):
        made = ("/".join(rng.choices(parts, k=rng.choice((1, 1, 2)))) for _ in range(rng.randint(1, 3)))
        families.append(tuple(rng.choice(("", "/")) + pattern + rng.choice(("", "/")) for pattern in made))
    for patterns in families:
        (tmp_path / ".git/info/exclude").write_text("\n".join(patterns) + "\n")
        done = subprocess.run(
            ["git", "check-ignore", "--no-index", "--stdin", "-z"],
            input="\0".join(files), cwd=tmp_path, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        rules = Exclusion(patterns)
        assert {file for file in files if rules.rule(file)} == set(done.stdout.split("\0")) - {""}, patterns


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("#recycle", r"--exclude '#recycle' is a comment in .gitignore files: write '\[#\]recycle'"),
        ("", "--exclude '' is not a pattern"),
        ("  ", "is not a pattern of .gitignore files: write one such as 'folder/' or '\\*.png'"),
        ("!", "is not a pattern"),
        ("/", "is not a pattern"),
        ("[z-a]", "is not a pattern"),
        ("a[", "is not a pattern"),
        ("./raw/", "can match nothing: patterns start at the source, without ./"),
        ("!../raw/", "can match nothing"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(nas: Path, pattern: str, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        Selection([nas], exclude=[pattern])


def test_a_pattern_that_repeats_the_source_is_refused(nas: Path) -> None:
    with pytest.raises(SourceError, match=f"can match nothing: patterns start at the source, without {nas}/"):
        Selection([nas], exclude=[f"{nas}/sub/"])


# Folders


def test_leftovers_are_left_out_counted_and_listed(nas: Path, start: FakeStart) -> None:
    left: list[Excluded] = []
    summary = extract("pictures", start, on_excluded=left.append)
    assert (summary.new, summary.excluded, summary.ignored, summary.files) == (5, 4, 0, 9)
    assert left == [
        Excluded(f"{nas}/#recycle/", "[#]recycle/"),
        Excluded(f"{nas}/@eaDir/", "@eaDir/"),
        Excluded(f"{nas}/lost+found/", "lost+found/"),
        Excluded(f"{nas}/sub/.thumbnails/", ".thumbnails/"),
    ]
    assert Selection("pictures").count() == 9
    assert extract("pictures", start, "sub/", "*e.png").excluded == 5  # and three rows stay until they are pruned
    assert len(names()) == 5


def test_a_pattern_takes_back_what_another_leaves_out(nas: Path, start: FakeStart) -> None:
    assert extract("pictures", start, "!lost+found/").new == 6
    assert "pictures/lost+found/#12.png" in names()
    assert extract("pictures", start, "!**").new == 3
    assert len(names()) == 9


def test_a_folder_that_is_named_is_taken_whatever_its_name(nas: Path, start: FakeStart) -> None:
    assert extract("pictures/lost+found", start, "lost+found/").new == 1
    assert extract(["pictures/red.png", "pictures/z.png"], start, "z.*").excluded == 1


def test_folders_that_are_left_out_are_not_listed(nas: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(os.path.relpath(path)) or scandir(path))
    extract("pictures", start)
    assert listed == ["pictures", "pictures/sub"]


def test_the_next_prune_removes_rows_that_are_left_out_whatever_the_limit(nas: Path, start: FakeStart) -> None:
    extract("pictures", start, "!**")
    (nas / "sub/broken.png").write_text("no image")
    assert extract("pictures", start, "!**").failed == 1
    assert extract("pictures", start, "sub/").excluded == 4
    assert len(names()) == 9
    expected = preview(Selection("pictures", exclude=["sub/"]), "out.h5", prune=True)
    assert (expected.remove, expected.unchanged, expected.excluded) == (6, 3, 4)
    summary = extract("pictures", start, "sub/", prune=True, prune_limit=0)
    assert (summary.removed, summary.unchanged) == (6, 3)
    assert names() == {"pictures/red.png", "pictures/white.png", "pictures/z.png"}
    assert FeatureStore("out.h5").failures() == []
    assert extract("pictures", start, "sub/", prune=True).removed == 0
    assert (extract("pictures", start).new, len(start.seen)) == (2, 13)  # taken again, computed again


def test_prune_still_refuses_what_looks_like_an_unmounted_disk(nas: Path, start: FakeStart) -> None:
    extract("pictures", start)
    with pytest.raises(PruneError, match="pictures holds only what is excluded: change that"):
        extract("pictures", start, "**", prune=True)
    for path in nas.iterdir():
        if path.name != "@eaDir":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PruneError, match="pictures holds only what is excluded: change that"):
        extract("pictures", start, prune=True, prune_limit=100)
    assert len(names()) == 5
    assert extract("pictures", start, prune=True, force=True).removed == 5


def test_a_run_that_finds_nothing_else_says_so(nas: Path, start: FakeStart) -> None:
    with pytest.raises(SourceError, match=r"no image .* besides what is excluded \(7; --list-excluded shows it\)"):
        extract("pictures", start, "*")
    assert not Path("out.h5").exists()


# Lists, archives, remote storage


def test_names_in_a_list_are_matched_as_they_are_written(nas: Path, start: FakeStart) -> None:
    Path("list").write_text(
        "pictures/@eaDir/red.png/SYNOPHOTO_THUMB_M.jpg\npictures/red.png\npictures/sub\npictures/gone.raw\n"
    )
    summary = extract([], start, "/pictures/sub/blue.png", "*.raw", listing="list")
    assert (summary.new, summary.failed, summary.excluded) == (2, 0, 4)
    assert names() == {"pictures/red.png", "pictures/sub/green.png"}


@pytest.mark.parametrize("suffix", ["tar", "zip"])
@pytest.mark.parametrize("source", ["packed", "packed/a"])
def test_members_are_left_out_as_files_are(
    tmp_path: Path, start: FakeStart, suffix: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    archive = tmp_path / f"packed/a.{suffix}"
    archive.parent.mkdir()
    packed(
        archive,
        {"1.png": image(1), "@eaDir/2.png": image(2), "raw/3.png": image(3), "raw/broken.png": b"", "x": b""}.items(),
    )
    source = source if source == "packed" else f"{source}.{suffix}"
    summary = extract(source, start)
    assert (summary.new, summary.excluded, summary.failed, summary.ignored) == (2, 1, 1, 1)
    summary = extract(source, start)
    assert (summary.unchanged, summary.excluded, summary.failed_before, summary.ignored) == (2, 1, 1, 1)
    summary = extract(source, start, "raw/", prune=True)
    assert (summary.unchanged, summary.excluded, summary.removed) == (1, 3, 1)
    assert FeatureStore("out.h5").failures() == []
    assert names() == {f"packed/a.{suffix}::1.png"}
    assert extract(source, start, "raw/", prune=True).unchanged == 1
    summary = extract(source, start, "!@eaDir/")  # what is left out no longer is found, though the archive is as it was
    assert (summary.unchanged, summary.new, summary.failed) == (1, 2, 1)
    assert extract(source, start, f"a.{suffix}", prune=True, force=True).removed == 3


def test_an_archive_without_anything_left_out_is_not_opened_again(
    tmp_path: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packed(tmp_path / "a.zip", {"1.png": image(1), "2.png": image(2)}.items())
    extract("a.zip", start, "raw/")
    monkeypatch.setattr(Archive, "listing", None)
    assert extract("a.zip", start, "raw/").unchanged == 2


def test_a_tar_archive_that_is_compressed_as_a_whole_is_reported(
    nas: Path, start: FakeStart, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(nas / "old.tar.gz", "w:gz") as file:
        file.add(nas / "red.png", "red.png")
    summary = extract("pictures", start)
    assert (summary.new, summary.failed, summary.ignored) == (5, 1, 0)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        f"{nas}/old.tar.gz is compressed as a whole, so that no member can be read without all before it"
    ]
    (failure,) = FeatureStore("out.h5").failures()
    assert failure.path == "pictures/old.tar.gz"
    assert failure.reason.endswith("uncompress it to a .tar, or pack it again as .zip")
    caplog.clear()
    assert (extract("pictures", start).failed_before, caplog.records) == (1, [])
    assert extract("pictures", start, "*.tar.gz", prune=True).excluded == 5
    assert FeatureStore("out.h5").failures() == []
    (nas.parent / "alone").mkdir()
    shutil.copy(nas / "old.tar.gz", "alone/x.TGZ")
    Path("out.h5").unlink()
    with pytest.raises(SourceError, match=r"alone/x.TGZ is compressed as a whole"):
        extract("alone", start)
    packed(nas / "b.zip", {"inner.tar.gz": b"x", "9.png": image(9)}.items())
    assert extract("pictures/b.zip", start).ignored == 1  # archives in archives are passed over


# The command


def test_the_command_lists_what_is_left_out(nas: Path, start: FakeStart, rn50feat: Run) -> None:
    extract("pictures", start)
    done = rn50feat(
        "extract", "pictures", "out.h5", "--list-excluded", "--exclude", "sub/", "--exclude", "!@eaDir/", "--dry-run"
    )
    listed = ["[#]recycle/", "lost+found/", "sub/"]
    lines = [f"{nas}/{pattern.replace('[#]', '#')}\t{pattern}" for pattern in listed]
    assert done.stdout.splitlines()[:-1] == lines
    assert "at most 1 to compute, 3 unchanged, 0 failed before, 0 ignored, 3 excluded, 0 to remove" in done.stdout
    variable = rn50feat("extract", "pictures", "out.h5", "--json", "--list-excluded", RN50FEAT_EXCLUDE="sub/\n*e.png")
    found = json.loads(variable.stdout)
    assert found["excluded"] == len(found["excluded_list"]) == 5
    assert found["excluded_list"][-1] == {"location": f"{nas}/white.png", "pattern": "*e.png"}
    assert "2 unchanged, 5 excluded, in" in variable.stderr
