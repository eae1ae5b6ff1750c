"""selection: which files belong to a run, by folder, by list and by share."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RN50FEAT, Run, rows
from fake import FakeStart
from packing import packed_folder
from PIL import Image
from scenes import encoded

import rn50feat
from rn50feat import FeatureStore, Shard
from rn50feat.errors import PruneError, SourceError
from rn50feat.extraction.preview import preview
from rn50feat.sources import urls
from rn50feat.sources.selection import Selection
from rn50feat.store.summary import Summary


@pytest.fixture
def desk(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder above the pictures, as the working folder."""
    monkeypatch.chdir(pictures.parent)
    return pictures.parent


def extract(start: FakeStart, *pictures: str, out: str = "out.h5", **settings: object) -> Summary:
    chosen = {name: settings.pop(name) for name in ("listing", "null", "shard") if name in settings}
    selection = Selection(pictures, **chosen)
    return rn50feat.extract(selection, out, start=start, **{"weights": "random", **settings})


def listed(*names: str) -> str:
    Path("list.txt").write_bytes(b"".join(os.fsencode(name) + b"\n" for name in names))
    return "list.txt"


# Lists


def test_a_list_names_pictures_and_folders_once_each_in_its_own_order(desk: Path, start: FakeStart) -> None:
    listing = listed(
        "pictures/z.png", "pictures/sub", "./pictures/z.png", "pictures/sub/../sub/blue.png", f"{desk}/pictures/red.png"
    )
    assert extract(start, listing=listing).new == 4
    assert FeatureStore("out.h5").paths() == [
        f"pictures/{name}" for name in ("z.png", "sub/blue.png", "sub/green.png", "red.png")
    ]
    assert extract(start, listing=listing).unchanged == 4
    assert len(start.engines) == 1


def test_a_list_comes_on_top_of_folders(desk: Path, start: FakeStart) -> None:
    listing = listed("pictures/sub/blue.png", "pictures/red.png")
    assert extract(start, "pictures/sub", listing=listing).new == 3


def test_folders_of_a_list_and_of_sources_are_entered_once(desk: Path, start: FakeStart) -> None:
    (desk / "link").symlink_to("pictures/sub")
    (desk / "pictures/back").symlink_to("sub")
    assert extract(start, "pictures", listing=listed("link", "pictures/sub", "link/../sub/blue.png")).new == 5
    assert sorted(FeatureStore("out.h5").paths())[1:3] == ["pictures/sub/blue.png", "pictures/sub/green.png"]
    summary = extract(start, "link", "pictures")
    assert (summary.reused, summary.unchanged) == (2, 3)


def test_links_that_lead_out_of_the_sources_are_told_of(
    desk: Path, start: FakeStart, rn50feat: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (desk / "in").mkdir()
    for name, target in (("out", "../pictures/sub"), ("again", "../pictures/sub"), ("here", "."), ("loop", "loop")):
        (desk / "in" / name).symlink_to(target)
    summary = extract(start, "in")
    assert (summary.new, summary.linked) == (2, [f"{desk}/in/again -> {desk}/pictures/sub"])
    assert extract(start, "in", "pictures").linked == []
    done = rn50feat("extract", "in", "out.h5")
    assert f"followed links out of the sources: {desk}/in/again -> {desk}/pictures/sub\n" in done.stderr


def test_names_that_lead_nowhere_are_failures_until_they_do(desk: Path, start: FakeStart) -> None:
    os.mkfifo(desk / "pipe")
    listing = listed("pictures/none.png", "pictures/red.png", "pipe", "nowhere", "pictures/red.png/x", "ftp://x/y.jpg")
    summary = extract(start, listing=listing, dtype=None)
    assert (summary.new, summary.failed, summary.found) == (1, 5, 6)
    reasons = {failure.path: failure.reason for failure in FeatureStore("out.h5").failures()}
    assert reasons == {
        "pictures/none.png": "is listed, but cannot be found: No such file or directory",
        "nowhere": "is listed, but cannot be found: No such file or directory",
        "pictures/red.png/x": "is listed, but cannot be found: Not a directory",
        "pipe": "is listed, but is not a regular file",
        "ftp:/x/y.jpg": "is listed, but cannot be found: No such file or directory"
        f" (of URLs, {', '.join(urls.PACKAGES)} are read)",
    }
    assert [os.path.basename(location) for location in start.engines[0].seen] == ["red.png"]
    shutil.copy("pictures/white.png", "nowhere")
    summary = extract(start, listing=listing)
    assert (summary.unchanged, summary.failed_before, summary.new) == (1, 4, 1)
    assert len(FeatureStore("out.h5").failures()) == 4


def test_a_picture_that_is_gone_but_listed_keeps_its_row(desk: Path, start: FakeStart) -> None:
    listing = listed("pictures/red.png", "pictures/white.png")
    extract(start, listing=listing)
    (desk / "pictures/red.png").unlink()
    assert extract(start, listing=listing).failed == 1
    assert len(rows(desk / "out.h5")) == 2


def test_a_list_of_nothing_but_mistakes_makes_no_store(desk: Path, start: FakeStart) -> None:
    with pytest.raises(SourceError, match=r"none0.png is listed, but cannot be found.*relative to the working folder"):
        extract(start, listing=listed(*(f"none{i}.png" for i in range(1500))))
    assert not Path("out.h5").exists()
    assert start.engines == []


def test_missing_names_do_not_choose_the_dtype_of_a_new_store(
    desk: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake.FakeEngine.precision", "bf16")
    extract(start, listing=listed(*(f"none{i}.png" for i in range(1500)), "pictures/red.png"))
    assert FeatureStore("out.h5").dtype == "float16"


def test_a_list_that_breaks_off_leaves_what_was_committed(desk: Path, start: FakeStart) -> None:
    listing = listed("pictures/red.png", "pictures/white.png", "bad\0name")
    with pytest.raises(SourceError, match="has NULs in its lines"):
        extract(start, listing=listing, commit_rows=1, options=rn50feat.EngineOptions(batch_size=1))
    assert len(rows(desk / "out.h5")) == 2


def test_pruning_by_a_list_is_refused_before_anything_is_done(desk: Path, start: FakeStart) -> None:
    selection = Selection([], listing=listed("pictures"))
    for function in (rn50feat.extract, preview):
        with pytest.raises(SourceError, match="--prune removes what is gone from folders"):
            function(selection, "out.h5", prune=True)
    assert not Path("out.h5").exists()


def test_a_preview_tells_what_a_list_would_do(desk: Path, start: FakeStart) -> None:
    extract(start, listing=listed("pictures/red.png"))
    expected = preview(Selection([], listing=listed("pictures/red.png", "pictures/z.png", "none.png")), "out.h5")
    assert (expected.unchanged, expected.compute, expected.missing, expected.failed_before) == (1, 1, 1, 0)


def test_standard_input_is_read_once_and_its_length_not_known(
    desk: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"pictures/red.png\0pictures/sub\0"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    totals: list[int | None] = []
    summary = extract(start, listing="-", null=True, on_progress=lambda progress: totals.append(progress.total))
    assert summary.new == 3
    assert set(totals) == {None}
    assert Selection([], listing=listed("pictures", "pictures/red.png")).count() == 6


def test_a_pipe_with_a_name_is_read_by_the_run_alone(desk: Path, start: FakeStart) -> None:
    extract(start, "pictures")
    command = f"{shlex.join(RN50FEAT)} extract --from-file <(find pictures -name '*.png') out.h5"
    for _ in range(3):  # a second reader, the one that counts, would take some names away
        done = subprocess.run(["bash", "-c", command], capture_output=True, encoding="utf-8")
        assert (done.returncode, done.stderr[:22]) == (0, "out.h5: 5 unchanged, i")
    os.mkfifo("pipe")
    assert Selection([], listing="pipe").count() is None


def test_the_command_line_takes_lists(desk: Path, start: FakeStart, rn50feat: Run) -> None:
    extract(start, "pictures")
    command = f"find pictures -name '*.png' -print0 | {shlex.join(RN50FEAT)} extract --from-file - -0 out.h5"
    done = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr[:22]) == (0, "out.h5: 5 unchanged, i")
    for arguments, message in (
        (["--null", "pictures", "out.h5"], "--null requires --from-file"),
        (["out.h5"], "Missing argument 'SOURCE...'"),
        (["pictures", "out.h5", "--shard", "0/4"], "0/4 is not a shard: give 1/8"),
        (["pictures", "out.h5", "--shard", "half"], "half is not a shard: give 1/8"),
    ):
        done = rn50feat("extract", *arguments)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    done = rn50feat("extract", "--from-file", "none.txt", "out.h5")
    assert done.stderr == "Error: none.txt cannot be read (No such file or directory): name a file that lists images\n"
    done = rn50feat("extract", "--from-file", listed("none.png"), "out.h5", "--max-failures", "0")
    assert (done.returncode, "1 of 1 images failed" in done.stderr) == (4, True)


# Shares


@pytest.fixture
def many(desk: Path) -> list[str]:
    """The names of 200 pictures in a folder ``many``."""
    names = [f"{i % 7}/{i}.png" for i in range(200)]
    for i, name in enumerate(names):
        path = desk / "many" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(Image.new("RGB", (8, 8), (i, 0, 0)), "PNG"))
    return names


def share(number: int, count: int, *pictures: str, **settings: object) -> list[str]:
    return [r.location for r in Selection(pictures, shard=Shard(number, count), **settings).references()]


def test_shares_are_disjoint_even_and_all(many: list[str]) -> None:
    shares = [share(number, 4, "many") for number in (1, 2, 3, 4)]
    assert sorted(location for part in shares for location in part) == sorted(share(1, 1, "many"))
    assert all(35 <= len(part) <= 65 for part in shares)


def test_a_share_is_the_same_on_every_machine_and_in_every_version() -> None:
    assert [name for name in "abcdefghijklmnop" if Shard(2, 4).holds(f"{name}.jpg")] == list("ahjl")


def test_a_collection_that_moves_keeps_its_shares(many: list[str], desk: Path) -> None:
    before = share(1, 3, "many")
    (desk / "many").rename(desk / "elsewhere")
    assert [location.replace("elsewhere", "many") for location in share(1, 3, "elsewhere")] == before
    (desk / "elsewhere/another.png").touch()
    assert set(before) <= {location.replace("elsewhere", "many") for location in share(1, 3, "elsewhere")}


def test_shares_of_a_list_go_by_its_names(many: list[str], desk: Path) -> None:
    os.chdir("many")
    by_name = [share(number, 3, listing=listed(*many)) for number in (1, 2, 3)]
    by_folder = [share(number, 3, listing=listed(*map(str, range(7)))) for number in (1, 2, 3)]
    assert [sorted(part) for part in by_name] == [sorted(part) for part in by_folder]
    assert sum(map(len, by_name)) == 200
    Path("list.txt").unlink()
    assert sorted(by_name[0]) == sorted(share(1, 3, "."))


def test_runs_over_shares_meet_in_one_store_and_prune_their_own_share_alone(many: list[str], start: FakeStart) -> None:
    for number in (1, 2, 3):
        extract(start, "many", shard=Shard(number, 3))
    assert len(FeatureStore("out.h5")) == 200
    own = share(1, 3, "many")
    for location in [*own[:5], *share(2, 3, "many")[:5]]:
        os.unlink(location)
    summary = extract(start, "many", shard=Shard(1, 3), prune=True)
    assert (summary.removed, summary.unchanged) == (5, len(own) - 5)
    assert len(FeatureStore("out.h5")) == 195
    for location in own[5:25]:
        os.unlink(location)
    message = f"20 of the {len(own) - 5} rows under these sources would go"
    with pytest.raises(PruneError, match=message):  # a fifth of all rows, but more of the share's
        extract(start, "many", shard=Shard(1, 3), prune=True)


def test_a_preview_looks_at_its_share_alone(many: list[str], start: FakeStart) -> None:
    assert preview(Selection("many", shard=Shard(2, 3)), "out.h5", weights="random").compute == len(share(2, 3, "many"))


# Archives


def test_the_members_of_an_archive_are_in_one_share(desk: Path, start: FakeStart) -> None:
    (desk / "shards").mkdir()
    for i in range(6):
        packed_folder(desk / "shards" / f"{i}.tar", desk / "pictures")
    parts = [share(number, 2, "shards") for number in (1, 2)]
    assert sorted(Path(location).name for part in parts for location in part) == [f"{i}.tar" for i in range(6)]
    for number in (1, 2):
        assert extract(start, "shards", shard=Shard(number, 2)).found == 5 * len(parts[number - 1])
    extract(start, "shards", shard=Shard(1, 2), prune=True)
    assert len(FeatureStore("out.h5")) == 30
    assert Selection(["shards"], shard=Shard(1, 2)).covers(f"{parts[0][0]}::red.png")
    assert not Selection(["shards"], shard=Shard(1, 2)).covers(f"{parts[1][0]}::red.png")


def test_a_list_names_members(desk: Path, start: FakeStart) -> None:
    packed_folder(desk / "a.zip", desk / "pictures")
    listing = listed("a.zip::red.png", "a.zip::sub/blue.png", "a.zip::none.png")
    summary = extract(start, listing=listing)
    assert (summary.new, summary.failed) == (2, 1)
    (failure,) = FeatureStore("out.h5").failures()
    assert (failure.path, failure.reason) == ("a.zip::none.png", "is listed, but has vanished from its archive")
