"""duplicates: all that belong together, nothing that does not, the largest first, with an index and without."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from fake import FakeStart
from packing import tar
from scenes import encoded, scene
from vectors import append, clusters, filled, remove, replace

import rn50feat
from rn50feat import EngineOptions, FeatureStore, duplicates, extract
from rn50feat.errors import QueryError, StoreError
from rn50feat.images.provenance import Provenance
from rn50feat.searching.duplicates import Group
from rn50feat.sources import contents
from rn50feat.sources.reference import Reference
from rn50feat.store.writer import create_store

KINDS = [None, "IDMap2,Flat", "IVF8,RaBitQ"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, with seeded random weights, of 15 scenes: each re-encoded, resized and slightly cropped, some copied."""
    folder = tmp_path_factory.mktemp("planted")
    for seed in range(15):
        image = scene(seed, 240, 180)
        versions = {
            "a.jpg": encoded(image, quality=92),
            "b.jpg": encoded(image, quality=60),
            "c.png": encoded(image.resize((180, 135)), "PNG"),
            "d.jpg": encoded(image.crop((4, 3, 236, 177)), quality=88),
        }
        for name, data in versions.items():
            (folder / f"pictures/{seed:02}").mkdir(parents=True, exist_ok=True)
            (folder / f"pictures/{seed:02}/{name}").write_bytes(data)
    for seed in (3, 7):
        shutil.copy(folder / f"pictures/{seed:02}/a.jpg", folder / f"pictures/{seed:02}/copy.jpg")
    options = EngineOptions(backend="torch", precision="fp32", workers=1)
    rn50feat.extract(folder / "pictures", folder / "out.h5", weights="random", options=options)
    return folder / "out.h5"


def sets(groups: list[Group]) -> set[frozenset[str]]:
    return {frozenset(member.path for member in group.members) for group in groups}


@pytest.mark.parametrize("factory", KINDS)
def test_all_planted_duplicates_are_found_and_no_two_scenes_joined(planted: Path, factory: str | None) -> None:
    if factory is not None:
        rn50feat.index(planted, factory=factory, rebuild=True)
    groups = rn50feat.duplicates(planted, scan=factory is None)
    expected = {
        frozenset(f"pictures/{folder.name}/{path.name}" for path in folder.iterdir())
        for folder in (planted.parent / "pictures").iterdir()
    }
    assert sets(groups) == expected
    for group in groups:
        first, *others = group.members
        assert first.size == max(member.size for member in group.members)
        assert (first.similarity, first.exact) == (1.0, True)
        assert all(0.9998 <= member.similarity <= 1 for member in others)
        copies = {member.path[-8:] for member in others if member.exact}
        assert copies <= {"copy.jpg", "/a.jpg"}
        assert Path(first.location).stat().st_size == first.size
    assert [group.members[0].size for group in groups] == sorted((g.members[0].size for g in groups), reverse=True)


def test_exact_copies_need_no_features(planted: Path) -> None:
    groups = rn50feat.duplicates(planted, exact=True)
    assert sets(groups) == {frozenset({f"pictures/{s}/a.jpg", f"pictures/{s}/copy.jpg"}) for s in ("03", "07")}
    assert all(member.exact and member.similarity == 1 for group in groups for member in group.members)


def by_definition(store: FeatureStore, threshold: float) -> set[frozenset[str]]:
    """Return the groups as the module's docstring says them, row by row; sizes fall with rows."""
    features = store.features(np.arange(len(store))).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    order = np.argsort(-store.column("size"), kind="stable").tolist()
    paths, near, free, groups = store.paths(), features @ features.T >= threshold, set(order), set()
    for first in order:
        if first in free:
            members = {row for row in free if near[first, row]} | {first}
            free -= members
            if len(members) > 1:
                groups.add(frozenset(paths[row] for row in members))
    return groups


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.99])
def test_groups_are_what_the_rule_says_whatever_the_blocks(
    tmp_path: Path, factory: str | None, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[rn50feat.duplicates.__module__]
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "_LEADERS", 50)
    monkeypatch.setattr(module, "_NEIGHBOURS", 4)
    store = filled(tmp_path / "out.h5", clusters(300), dtype="float16")
    if factory is not None:
        rn50feat.index(store, factory=factory, target_recall=1.0)
    append(store, 300, clusters(40, seed=1))
    replace(store, 3, clusters(300)[8])
    remove(store, [20, 21])
    assert sets(rn50feat.duplicates(store, threshold=threshold)) == by_definition(store, threshold)


def test_chains_join_nothing(tmp_path: Path) -> None:
    angles = np.array([0.0, 0.2, 0.4, 0.6])
    rows = np.zeros((4, 2048), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    store = filled(tmp_path / "out.h5", rows)
    assert sets(rn50feat.duplicates(store, threshold=np.cos(0.21))) == {
        frozenset({"00000.jpg", "00001.jpg"}),
        frozenset({"00002.jpg", "00003.jpg"}),
    }


def test_rows_whose_files_nobody_could_read_are_copies_of_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(50))
    (tmp_path / "x.paths.txt").write_text("".join(f"gone/{i}.jpg\n" for i in range(50)))
    rn50feat.import_features(tmp_path / "x.npy", tmp_path / "x.h5", made_by="gen")
    rn50feat.merge([tmp_path / "x.h5"], tmp_path / "merged.h5")
    for store in ("x.h5", "merged.h5"):
        assert rn50feat.duplicates(tmp_path / store, exact=True) == []
        groups = rn50feat.duplicates(tmp_path / store, threshold=0.999999)
        assert not any(member.exact for group in groups for member in group.members[1:])


def packed_twice(folder: Path) -> Path:
    """Make an archive with one picture, and a second path to it."""
    tar(folder / "a.tar", [("x.png", encoded(scene(1, 40, 30), "PNG"))])
    (folder / "b.tar").symlink_to("a.tar")
    return folder


def linked(folder: Path, kind: str) -> None:
    """Make one picture, and a second path to it."""
    (folder / "one").mkdir()
    (folder / "one/x.png").write_bytes(encoded(scene(0, 40, 30), "PNG"))
    if kind == "folder":
        (folder / "two").symlink_to("one")
    else:
        (folder / "two").mkdir()
        {"hard link": os.link, "link": os.symlink}[kind](folder / "one/x.png", folder / "two/x.png")


@pytest.mark.parametrize("kind", ["folder", "hard link", "link"])
def test_paths_to_one_file_are_no_copies(tmp_path: Path, rn50feat: Run, kind: str) -> None:
    linked(tmp_path, kind)
    files = [f"{tmp_path}/one/x.png", f"{tmp_path}/two/x.png"]
    for store, copies in (("out.h5", 0), ("more.h5", 1)):
        if copies:
            shutil.copy(tmp_path / "one/x.png", tmp_path / "copy.png")
            files.append(f"{tmp_path}/copy.png")
        with create_store(tmp_path / store, Provenance("random:0", "00"), np.dtype("float32")) as writer:
            writer.append([contents.digest(Reference(file, 0, 0)) for file in files], clusters(len(files)))
        (group,) = duplicates(tmp_path / store, exact=True)
        assert [member.state for member in group.members] == ["present", "same file", *["present"] * copies]
        assert group.redundant == copies
        done = rn50feat("duplicates", store, "--exact")
        assert [line.split("\t")[1] for line in done.stdout.splitlines()] == [
            "1.000000",
            "same file",
            *["copy"] * copies,
        ]
        redundant = "1 redundant copy" if copies else "0 redundant copies"
        assert done.stderr.startswith(f"1 group, {redundant}; 1 other path to the same")


def test_members_of_an_archive_with_two_paths_are_no_copies(tmp_path: Path, start: FakeStart) -> None:
    extract(packed_twice(tmp_path), tmp_path / "out.h5", weights="random", start=start)
    (group,) = duplicates(tmp_path / "out.h5", exact=True)
    assert [(member.path, member.state) for member in group.members] == [
        ("a.tar::x.png", "present"),
        ("b.tar::x.png", "same file"),
    ]


def test_what_is_gone_or_has_changed_is_no_copy_and_leads_no_group(tmp_path: Path, start: FakeStart) -> None:
    data = encoded(scene(0, 40, 30), "PNG")
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(data)
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    (tmp_path / "a.png").unlink()
    (tmp_path / "c.png").write_bytes(encoded(scene(1, 50, 30), "PNG"))
    (group,) = duplicates(tmp_path / "out.h5", exact=True)
    assert [(member.path[0], member.state, member.is_copy) for member in group.members] == [
        ("b", "present", True),
        ("a", "missing", False),
        ("c", "changed", False),
        ("d", "present", True),
    ]
    assert group.redundant == 1


def test_a_run_that_changes_rows_meanwhile_is_told_of(tmp_path: Path) -> None:
    store = filled(tmp_path / "out.h5", clusters(100))
    rn50feat.duplicates(store, threshold=0.9, on_progress=lambda *_: append(store, 100, clusters(5, seed=1)))
    with pytest.raises(StoreError, match="another run replaced or removed rows of .*: wait until it ends"):
        rn50feat.duplicates(store, threshold=0.9, on_progress=lambda *_: remove(store, [0]))


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_a_threshold_is_a_cosine(planted: Path, threshold: float) -> None:
    with pytest.raises(QueryError, match="is not a similarity: use one above 0 and at most 1"):
        rn50feat.duplicates(planted, threshold=threshold)


def test_the_command(rn50feat: Run, planted: Path, tmp_path: Path) -> None:
    lines = rn50feat("duplicates", planted).stdout.splitlines()
    assert len(lines) == 62
    assert {line.split("\t")[3].split("/")[1] for line in lines if line.startswith("1\t")} == {lines[0].split("/")[1]}
    lines = rn50feat("duplicates", planted, "--exact").stdout.splitlines()
    assert [line.split("\t")[1] for line in lines] == ["1.000000", "copy"] * 2
    done = rn50feat("duplicates", planted, "--exact", "--csv")
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["group"], row["exact"], row["similarity"]) for row in table] == [
        (group, "True", "1.0") for group in "1122"
    ]
    assert done.stderr.startswith("2 groups, 2 redundant copies\n")
    result = json.loads(rn50feat("duplicates", planted, "--json", "--threshold", "0.5", "--quiet").stdout)
    assert (result["threshold"], result["weights"], len(result["groups"])) == (0.5, "random:0", 1)
    assert len(result["groups"][0]["members"]) == 62
    assert rn50feat("duplicates", planted, "--threshold", "2").returncode == 2
    page = tmp_path / "groups.html"
    assert rn50feat("duplicates", planted, "--exact", "--html", page).returncode == 0
    assert "Group 1:" in page.read_text()
    filled(tmp_path / "empty.h5", clusters(0))
    done = rn50feat("duplicates", "empty.h5", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_terminal_gets_a_table(planted: Path) -> None:
    import subprocess

    code = "import sys; sys.stdout.isatty = lambda: True; from rn50feat.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "duplicates", str(planted), "--exact", "--quiet"]
    lines = subprocess.run(arguments, capture_output=True, encoding="utf-8").stdout.splitlines()
    assert lines[:2] == ["group 1", "similarity      size  path"]
    assert lines[2].startswith("  1.000000 ")
    assert lines[3].startswith("      copy ")
    assert lines[4] == ""
