"""Groups say what is at the paths of their members now."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from fake import FakeStart
from packing import tar
from scenes import encoded, scene
from vectors import clusters

from rn50feat import duplicates, extract
from rn50feat.images.provenance import Provenance
from rn50feat.sources import contents
from rn50feat.sources.reference import Reference
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
