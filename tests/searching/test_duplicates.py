"""duplicates: all that belong together, nothing that does not, the largest first, with an index and without."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import Run
from scenes import encoded, scene
from vectors import append, clusters, filled, hard, remove, replace

import rn50feat
from rn50feat import EngineOptions, FeatureStore, duplicates
from rn50feat.cli import groups as words
from rn50feat.cli.main import main
from rn50feat.errors import QueryError, StoreError
from rn50feat.searching import near_pairs
from rn50feat.searching.faiss_index import FaissIndex
from rn50feat.searching.groups import Group, Groups, Pair, PairImage
from rn50feat.searching.near_pairs import NearBlock
from rn50feat.searching.nearest import open_index

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


def by_definition(store: FeatureStore, threshold: float) -> tuple[set[frozenset[str]], set[frozenset[str]]]:
    """Return the groups as the module's docstring says them, row by row, and the near pairs that they separate."""
    features = store.features(np.arange(len(store))).astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    order = np.argsort(-store.column("size"), kind="stable").tolist()
    paths, near, free, groups = store.paths(), features @ features.T >= threshold - 1e-6, set(order), set()
    leader = {}
    for first in order:
        if first in free:
            members = {row for row in free if near[first, row]} | {first}
            free -= members
            leader |= dict.fromkeys(members, first)
            if len(members) > 1:
                groups.add(frozenset(paths[row] for row in members))
    pairs = zip(*np.nonzero(np.triu(near, 1)))
    return groups, {frozenset((paths[one], paths[other])) for one, other in pairs if leader[one] != leader[other]}


def apart(groups: Groups) -> set[frozenset[str]]:
    """Return the paths of all pairs; each pair comes once, and knows the groups of its images."""
    numbers = {member.path: i for i, group in enumerate(groups, 1) for member in group.members}
    for pair in groups.pairs:
        assert [image.group for image in pair.images] == [numbers.get(image.path) for image in pair.images]
    found = {frozenset(image.path for image in pair.images) for pair in groups.pairs}
    assert len(found) == len(groups.pairs)
    assert [pair.similarity for pair in groups.pairs] == sorted((p.similarity for p in groups.pairs), reverse=True)
    return found


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.99])
def test_groups_are_what_the_rule_says_whatever_the_blocks(
    tmp_path: Path, factory: str | None, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_pairs, "BLOCK", 64)
    monkeypatch.setattr(near_pairs, "_LEADERS", 50)
    monkeypatch.setattr(near_pairs, "_NEIGHBOURS", 4)
    monkeypatch.setattr(FaissIndex, "compares_all", False)  # so that the index is used
    store = filled(tmp_path / "out.h5", clusters(300), dtype="float16")
    if factory is not None:
        rn50feat.index(store, factory=factory, target_recall=1.0)
    append(store, 300, clusters(40, seed=1))
    replace(store, 3, clusters(300)[8])
    remove(store, [20, 21])
    groups, pairs = by_definition(store, threshold)
    found = rn50feat.duplicates(store, threshold=threshold)
    assert sets(found) == groups
    assert (apart(found), found.more_pairs) == (pairs, 0) if factory is None else apart(found) <= pairs


def test_every_planted_pair_is_in_a_group_or_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greedy rule separates some near-duplicates: the scan lists all of these pairs, the index what it finds."""
    monkeypatch.setattr(near_pairs, "BLOCK", 256)
    store = filled(tmp_path / "out.h5", np.concatenate(list(hard(1200))), dtype="float16")
    groups, pairs = by_definition(store, 0.985)
    found = rn50feat.duplicates(store, threshold=0.985)
    assert pairs
    assert (sets(found), apart(found)) == (groups, pairs)
    monkeypatch.setattr(sys.modules[duplicates.__module__], "MOST_PAIRS", 10)
    capped = rn50feat.duplicates(store, threshold=0.985)
    assert len(capped.pairs) == 10
    assert apart(capped) < pairs
    assert len(pairs) <= len(capped.pairs) + capped.more_pairs < 1.01 * len(pairs) + 10


@pytest.mark.slow
def test_every_pair_that_the_index_finds_is_in_a_group_or_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "out.h5", np.concatenate(list(hard(600))), dtype="float16")
    rn50feat.index(store, factory="IVF15,RaBitQ", target_recall=0.9)
    monkeypatch.setattr(FaissIndex, "compares_all", False)
    _, pairs = by_definition(store, 0.985)
    found = rn50feat.duplicates(store, threshold=0.985)
    assert len(apart(found) & pairs) >= 0.9 * len(pairs)
    seen, by_index = set[tuple[int, int]](), near_pairs.by_index

    def watched(*arguments: Any) -> Iterator[NearBlock]:
        for block in by_index(*arguments):
            seen.update((int(block.firsts[0]), row) for row in block.rows.tolist())
            yield block

    monkeypatch.setattr(sys.modules[duplicates.__module__], "by_index", watched)
    found = rn50feat.duplicates(store, threshold=0.99)  # the hubs fall apart
    leader = {member.path: i for i, group in enumerate(found) for member in group.members}
    paths, listed = store.paths(), apart(found)
    told = {frozenset((paths[one], paths[other])) for one, other in seen}
    assert len(listed) > 100
    assert listed == {pair for pair in told if len({leader.get(path, path) for path in pair}) == 2}


@pytest.mark.parametrize("factory", ["IDMap2,Flat", "IVF4,Flat"])
def test_an_index_that_would_compare_everything_is_not_used(tmp_path: Path, factory: str) -> None:
    store = filled(tmp_path / "out.h5", clusters(300))
    rn50feat.index(store, factory=factory, target_recall=1.0)
    opened = open_index(store)
    assert opened is None or opened.faiss.compares_all
    found = rn50feat.duplicates(store, threshold=0.9)
    assert found == rn50feat.duplicates(store, threshold=0.9, scan=True)


def test_an_empty_pattern_keeps_nothing_and_is_refused() -> None:
    done = CliRunner().invoke(main, ["duplicates", "--keep", ""])
    assert (done.exit_code, "--keep is empty: name largest" in done.output) == (2, True)


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
    assert re.match(r"2 groups, 2 more images, 2 of them copies; \S+ kB reclaimable\n", done.stderr)
    assert [(row["width"], row["height"], row["kept"]) for row in table] == [
        ("240", "180", "first"),
        ("240", "180", ""),
    ] * 2
    result = json.loads(rn50feat("duplicates", planted, "--json", "--threshold", "0.5", "--quiet").stdout)
    assert (result["threshold"], result["weights"], len(result["groups"])) == (0.5, "random:0", 1)
    assert len(result["groups"][0]["members"]) == 62
    frees = sum(member["size"] for member in result["groups"][0]["members"] if not member["kept"])
    assert result["reclaimable"] == result["groups"][0]["reclaimable"] == frees > 0
    assert (result["pairs"], result["more_pairs"]) == ([], 0)
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
    assert re.fullmatch(r"group 1 \(\S+ kB reclaimable\)", lines[0])
    assert lines[1] == "similarity      size       pixels  path"
    assert lines[2].startswith("  1.000000 ")
    assert lines[3].startswith("      copy ")
    assert lines[4] == ""


def test_pairs_in_every_form(tmp_path: Path, rn50feat: Run) -> None:
    angles = np.array([0.0, 0.2, 0.4, 0.55])
    rows = np.zeros((4, 2048), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    filled(tmp_path / "out.h5", rows)
    at = ["duplicates", "--threshold", str(np.cos(0.21)), "--quiet"]
    lines = rn50feat(*at).stdout.splitlines()
    assert [line.split("\t")[3] for line in lines] == [f"0000{i}.jpg" for i in range(4)]
    assert rn50feat(*at, "--pairs").stdout == "0.980067\t1\t00001.jpg\t2\t00002.jpg\n"
    (row,) = csv.DictReader(io.StringIO(rn50feat(*at, "--pairs", "--csv").stdout))
    assert (row["path_1"], row["group_1"], row["path_2"], row["group_2"]) == ("00001.jpg", "1", "00002.jpg", "2")
    (pair,) = json.loads(rn50feat(*at, "--json", "--html", "page.html").stdout)["pairs"]
    assert [(image["path"], image["group"]) for image in pair["images"]] == [("00001.jpg", 1), ("00002.jpg", 2)]
    assert "1 pair across groups." in (tmp_path / "page.html").read_text()
    assert rn50feat(*at[:3]).stderr.startswith("2 groups, 0 more images; 1 near pair across groups (--pairs)\n")


def test_a_table_shows_the_first_pairs() -> None:
    one, other = PairImage("a\n.jpg", "/a", 1, 5, 1), PairImage("b.jpg", "/b", 2, 5, None)
    lines = words.table(Groups([], [Pair(0.96, (one, other))] * 21)).splitlines()
    assert lines[:3] == [
        "near-identical, but in different groups",
        "similarity  group  path",
        "  0.960000      1  a\\n.jpg",
    ]
    assert lines[3] == "                -  b.jpg"
    assert lines[-1] == "and 1 more: --pairs prints all"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["-0", "--csv"], "-0 requires --rest."),
        (["--rest", "--json"], "--json and --rest cannot be combined: choose one."),
        (["--rest", "--pairs"], "--pairs cannot be combined with --rest: pairs are of images to keep."),
        (["--pairs", "--json"], "--pairs cannot be combined with --json: it has both groups and pairs."),
        (["--pairs", "--exact"], "--exact cannot be combined with --pairs: it finds none."),
    ],
)
def test_options_that_make_no_sense_together(arguments: list[str], fault: str) -> None:
    done = CliRunner().invoke(main, ["duplicates", *arguments])
    assert (done.exit_code, fault in done.output) == (2, True)
