"""Groups say what is at the paths of their members now."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from fake import FakeStart
from packing import tar
from PIL import Image
from scenes import encoded, scene
from vectors import clusters

from rn50feat import duplicates, extract
from rn50feat.images.provenance import Provenance
from rn50feat.searching import groups
from rn50feat.searching.groups import Group, GroupImage, Groups, Pair, PairImage
from rn50feat.sources import contents, presence
from rn50feat.sources.reference import UNKNOWN, Reference
from rn50feat.store.writer import create_store


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
        assert [member.location for member in group.rest] == files[2:]
        done = rn50feat("duplicates", store, "--exact")
        assert [line.split("\t")[1] for line in done.stdout.splitlines()] == [
            "1.000000",
            "same file",
            *["copy"] * copies,
        ]
        redundant = "1 more image, 1 of them a copy" if copies else "0 more images"
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


def copied(folder: Path, *names: str) -> bytes:
    """Make copies of one image under `names`."""
    data = encoded(scene(0, 40, 30), "PNG")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return data


def kept(groups: list[Group]) -> dict[str, str]:
    return {member.path: member.kept for group in groups for member in group.members}


def test_only_what_frees_space_and_loses_nothing_may_be_deleted(tmp_path: Path, start: FakeStart) -> None:
    data = copied(tmp_path, "a.png", "b.png", "c.png", "d.png", "e.png", "x/f.png")
    os.link(tmp_path / "c.png", tmp_path / "hard.data")
    (tmp_path / "link.png").symlink_to("b.png")
    tar(tmp_path / "z.tar", [("g.png", data)])
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    (tmp_path / "d.png").unlink()
    (tmp_path / "e.png").write_bytes(encoded(scene(1, 50, 30), "PNG"))
    (group,) = duplicates(tmp_path / "out.h5", exact=True)
    assert {path: why for path, why in kept([group]).items() if not path.endswith(".data")} == {
        "a.png": "first",
        "b.png": "",
        "c.png": "a link",
        "d.png": "missing",
        "e.png": "changed",
        "link.png": "same file",
        "x/f.png": "",
        "z.tar::g.png": "in an archive",
    }
    assert group.reclaimable == 2 * len(data)
    sides = {member.path: (member.width, member.height) for member in group.members}
    assert (sides["a.png"], sides["x/f.png"], sides["z.tar::g.png"]) == ((40, 30),) * 3
    assert sides["d.png"] == sides["e.png"] == (None, None)


def test_nothing_may_be_deleted_where_the_first_is_gone(tmp_path: Path, start: FakeStart) -> None:
    for name, side in (("a", 90), ("b", 40), ("c", 30)):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (side, side), "red"), "PNG"))
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    (group,) = duplicates(tmp_path / "out.h5")
    assert len(group.rest) == 2
    Path(group.members[0].location).unlink()
    (group,) = duplicates(tmp_path / "out.h5")
    assert [member.kept for member in group.members] == ["first", "first not present", "first not present"]


def test_one_file_through_two_mounts_is_not_its_own_copy(
    tmp_path: Path, start: FakeStart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two mounts of a network file system give a file two devices, but one inode."""
    copied(tmp_path, "a.png", "b.png", "mount/a.png")
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    seen = presence.fingerprint
    monkeypatch.setattr(groups, "fingerprint", lambda location: seen(location.replace("/mount", "")))
    found = kept(duplicates(tmp_path / "out.h5", exact=True))
    assert found == {"a.png": "first", "b.png": "", "mount/a.png": "same file"}


def test_a_link_to_a_file_in_no_group_is_left_out(tmp_path: Path) -> None:
    copied(tmp_path, "a.png")
    (tmp_path / "link.png").symlink_to("a.png")
    assert [presence.keeper(str(tmp_path / name)) for name in ("a.png", "link.png", "gone")] == [
        "",
        "a link",
        "missing",
    ]


def test_remote_objects_are_left_out_and_not_looked_up() -> None:
    for location in ("s3://bucket/a.png", "http://127.0.0.1:9/x.zip::a.png"):
        assert presence.keeper(location) == "in remote storage"
        assert presence.fingerprint(location) == ()


def test_odd_names_need_nuls(tmp_path: Path, start: FakeStart, rn50feat: Run) -> None:
    names = ["a.png", "b c.png", "d\ne.png", "f\\ne.png"]
    copied(tmp_path, *names)
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    done = rn50feat("duplicates", "--exact", "--rest", "-0")
    assert done.stdout == "".join(f"{tmp_path}/{name}\0" for name in names[1:])
    done = rn50feat("duplicates", "--exact", "--rest")
    assert done.stdout == f"{tmp_path}/b c.png\n"
    assert done.stderr.splitlines()[0].endswith("; left out: 2 (name needs -0)")


def test_an_image_with_more_pixels_stays_though_its_file_is_smaller(tmp_path: Path, start: FakeStart) -> None:
    red = Image.new("RGB", (64, 48), "red")
    (tmp_path / "large.png").write_bytes(encoded(red, "PNG"))
    (tmp_path / "small.bmp").write_bytes(encoded(red.resize((32, 24)), "BMP"))
    (tmp_path / "smaller.png").write_bytes(encoded(red.resize((16, 12)), "PNG"))
    (tmp_path / "unknown.png").write_bytes(encoded(red, "TGA"))
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    found = kept(duplicates(tmp_path / "out.h5"))
    assert found.pop("unknown.png", "pixels unknown") in ("pixels unknown", "first")
    assert found == {"small.bmp": "first", "large.png": "more pixels", "smaller.png": ""}


def overwritten(path: Path) -> None:
    """Change a byte of a file, but neither its size nor its time."""
    times = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_what_has_changed_behind_its_size_and_time_stays(tmp_path: Path, start: FakeStart, rn50feat: Run) -> None:
    copied(tmp_path, "a.png", "b.png", "c.png")
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    overwritten(tmp_path / "b.png")
    assert kept(duplicates(tmp_path / "out.h5", exact=True)) == {"a.png": "first", "b.png": "", "c.png": ""}
    assert kept(duplicates(tmp_path / "out.h5", exact=True, rehash=True)) == {
        "a.png": "first",
        "b.png": "changed",
        "c.png": "",
    }
    done = rn50feat("duplicates", "--exact", "--rest")
    assert done.stdout == f"{tmp_path}/c.png\n"
    assert "; left out: 1 (changed)" in done.stderr
    overwritten(tmp_path / "a.png")
    assert rn50feat("duplicates", "--exact", "--rest", "--quiet").stdout == ""


def test_a_file_whose_digest_is_unknown_stays(tmp_path: Path) -> None:
    copied(tmp_path, "a.png", "b.png", "c.png")
    known = [contents.digest(Reference(f"{tmp_path}/{name}.png", 0, 0)) for name in "abc"]
    known[1] = replace(known[1], digest=UNKNOWN)
    with create_store(tmp_path / "out.h5", Provenance("random:0", "00"), np.dtype("float32")) as writer:
        writer.append(known, np.ones((3, 2048), np.float32))
    assert kept(duplicates(tmp_path / "out.h5", exact=True)) == {"a.png": "first", "c.png": ""}
    assert kept(duplicates(tmp_path / "out.h5", rehash=True)) == {"a.png": "first", "b.png": "changed", "c.png": ""}


def test_similar_images_are_not_advised_to_be_deleted(tmp_path: Path, start: FakeStart, rn50feat: Run) -> None:
    data = copied(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").write_bytes(data + b"another file, the same image")
    extract(tmp_path, tmp_path / "out.h5", weights="random", start=start)
    done = rn50feat("duplicates", "--rest")
    assert done.stderr.splitlines()[:2] == [
        f"2 files, {2 * len(data) / 1000:.3g} kB",
        "2 of them are not copies of the first image, only similar to it:"
        " look before you delete, or use --exact or --verify",
    ]
    (tmp_path / "c.png").unlink()
    assert "similar to" not in rn50feat("duplicates", "--exact", "--rest").stderr


def test_near_images_are_one_scene_across_groups_too() -> None:
    def image(number: int) -> GroupImage:
        return GroupImage(f"{number}.jpg", f"/{number}.jpg", number, 9, 1.0, False)

    def pair(one: int, other: int) -> Pair:
        return Pair(0.99, (PairImage("", "", one, 9, None), PairImage("", "", other, 9, None)))

    found = Groups([Group((image(7), image(2), image(9))), Group((image(3), image(4)))], [pair(4, 2), pair(11, 12)])
    ids = np.array([9, 1, 2, 3, 4, 7, 11, 12])
    _, first, scenes = np.unique(found.scenes(ids), return_index=True, return_inverse=True)
    assert first[scenes].tolist() == [0, 1, 0, 0, 0, 0, 6, 6]
    assert Groups().scenes(ids).tolist() == ids.tolist()
